"""Type `reasoning-gym`: a task's own scorer. The scoring itself: `reasoning_score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay_verifiers.config import ReasoningGymVerifier
from assay_verifiers.contract import Task, Verdict, Verifier, error
from assay_verifiers.registry import Bench
from assay_verifiers.types.in_worker import judged, need


@dataclass(frozen=True)
class _ReasoningGym:
    model: ReasoningGymVerifier
    bench: Bench

    async def verify(self, task: Task, completion: str) -> Verdict:
        reference = task.reference if isinstance(task.reference, dict) else {}
        entry = reference.get("entry")
        dataset = reference.get("dataset", self.model.dataset)
        if not isinstance(dataset, str):
            return error("neither the reference nor the configuration names a dataset")
        if not isinstance(entry, dict) or "answer" not in entry:
            return error("the reference holds no entry with an answer, as the dataset makes it")
        return await judged(
            self.bench,
            self.model.timeout,
            _score,
            dataset,
            {"question": task.prompt, "metadata": {}, **entry},
            completion,
            self.model.threshold,
            self.model.partial,
        )


def _score(
    dataset: str, entry: dict[str, Any], completion: str, threshold: float, partial: bool
) -> Verdict:
    # Only worker processes pay for reasoning-gym.
    from assay_verifiers.types.reasoning_score import score  # noqa: PLC0415

    return score(dataset, entry, completion, threshold, partial)


def make(model: ReasoningGymVerifier, bench: Bench) -> Verifier:
    """The verifier of a `reasoning-gym` configuration.

    Raises:
        Unavailable: reasoning-gym is not installed.
    """
    need("reasoning_gym", "reasoning-gym", model.type)
    return _ReasoningGym(model, bench)
