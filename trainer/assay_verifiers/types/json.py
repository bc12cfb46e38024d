"""Type `json`: structured output of documents. The checking itself: `json_check`."""

from __future__ import annotations

from dataclasses import dataclass

from assay_verifiers.config import JsonVerifier
from assay_verifiers.contract import Task, Verdict, Verifier
from assay_verifiers.registry import Bench
from assay_verifiers.types.in_worker import judged
from assay_verifiers.types.json_check import check, configured


@dataclass(frozen=True)
class _Json:
    config: str
    seconds: float
    bench: Bench

    async def verify(self, task: Task, completion: str) -> Verdict:
        return await judged(
            self.bench, self.seconds, check, self.config, task.reference, completion
        )


def make(model: JsonVerifier, bench: Bench) -> Verifier:
    """The verifier of a `json` configuration.

    Raises:
        ValueError: its schema, a rule or a path is none; says which.
    """
    config = model.model_dump_json(by_alias=True)
    configured(config)
    return _Json(config, model.timeout, bench)
