"""Type `logic`: the answer satisfies the item's constraints. The checking itself: `logic_check`."""

from __future__ import annotations

from dataclasses import dataclass

from assay_verifiers.config import LogicVerifier
from assay_verifiers.contract import Task, Verdict, Verifier, error
from assay_verifiers.registry import Bench
from assay_verifiers.types.in_worker import judged, need

# z3 is asked to stop before its worker is killed: it can then say what it could not decide.
_SOLVERS_SHARE = 0.8


@dataclass(frozen=True)
class _Logic:
    model: LogicVerifier
    bench: Bench

    async def verify(self, task: Task, completion: str) -> Verdict:
        reference = task.reference
        unique = self.model.unique
        if isinstance(reference, dict):
            unique = bool(reference.get("unique", unique))
            reference = reference.get("smt2")
        if not isinstance(reference, str):
            return error('the reference is neither an SMT-LIB script nor {"smt2": ...}')
        seconds = self.model.timeout
        solving = seconds * _SOLVERS_SHARE
        return await judged(self.bench, seconds, _check, reference, completion, unique, solving)


def _check(script: str, completion: str, unique: bool, seconds: float) -> Verdict:
    # Only worker processes pay for z3.
    from assay_verifiers.types.logic_check import check  # noqa: PLC0415

    return check(script, completion, unique, seconds)


def make(model: LogicVerifier, bench: Bench) -> Verifier:
    """The verifier of a `logic` configuration.

    Raises:
        Unavailable: z3 is not installed.
    """
    need("z3", "z3-solver", model.type)
    return _Logic(model, bench)
