"""Mathematical answers: the final answer of a completion equals the reference.

Plain numbers, which most answers are, are compared here and now: that takes microseconds and cannot
hang. Everything else goes to a worker process with a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from assay_verifiers.config import MathVerifier
from assay_verifiers.contract import (
    Status,
    Task,
    Unavailable,
    Verdict,
    Verifier,
    error,
    timeout,
    unparsed,
)
from assay_verifiers.registry import Bench
from assay_verifiers.types.math_extract import extract, reference_text
from assay_verifiers.types.math_text import Unreadable, plain, same_quantity
from assay_verifiers.workers import WorkerTimeout


@dataclass(frozen=True)
class _Math:
    model: MathVerifier
    bench: Bench

    async def verify(self, task: Task, completion: str) -> Verdict:
        try:
            references = references_of(task.reference)
        except Unreadable as reason:
            return error(f"the item's reference cannot be read: {reason}")
        try:
            answer = extract(completion, self.model.answer)
        except Unreadable as reason:
            return unparsed(str(reason))
        found = quick(answer, references, self.model)
        if found is None:
            try:
                found = await self.bench.workers.call(
                    self.model.timeout,
                    _judge,
                    answer,
                    references,
                    self.model.absoluteTolerance,
                    self.model.unit,
                )
            except WorkerTimeout as reason:
                return timeout(f"comparing {answer[:200]}: {reason}")
            except Exception as reason:
                return error(f"comparing {answer[:200]}: {type(reason).__name__}: {reason}")
        status, detail = found
        return Verdict(1.0 if status == "ok" else 0.0, status, detail)


def references_of(reference: object) -> list[str]:
    """The acceptable answers of an item.

    Raises:
        Unreadable: there is none, or one is neither a number nor a text.
    """
    several = reference if isinstance(reference, (list, tuple)) else [reference]
    if not several:
        raise Unreadable("an empty list")
    return [reference_text(one) for one in several]


def quick(answer: str, references: list[str], model: MathVerifier) -> tuple[Status, str] | None:
    """The verdict where everything is a plain number, or None."""
    given = plain(answer)
    known = [plain(reference) for reference in references]
    if given is None:
        return None
    for reference, text in zip(known, references, strict=True):
        if reference is None:
            return None
        if same_quantity(reference, given, model.absoluteTolerance, model.unit):
            return "ok", f"{answer} equals {text}"
    return "wrong", f"{answer} is not {' or '.join(references)}"


def _judge(
    answer: str, references: list[str], tolerance: float, unit: Literal["ignore", "require"]
) -> tuple[Status, str]:
    # Only worker processes pay for sympy.
    from assay_verifiers.types.math_answer import judge  # noqa: PLC0415

    return judge(answer, references, tolerance, unit)


def warm_up() -> None:
    """Called in the process that workers are forked from, so that they find `_judge` ready."""
    from assay_verifiers.types import math_answer  # noqa: PLC0415

    math_answer.warm_up()


def make(model: MathVerifier, bench: Bench) -> Verifier:
    """The verifier of mathematical answers.

    Raises:
        Unavailable: math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise Unavailable(
            "verifier type 'math' needs the package 'math-verify': pip install 'assay[verifiers]'"
        )
    return _Math(model, bench)
