"""Verifiers made of verifiers. What a part could not judge, the whole could not judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from assay_verifiers.config import AllVerifier, FormatFirstVerifier, WeightedVerifier
from assay_verifiers.contract import Status, Task, Verdict, Verifier
from assay_verifiers.registry import Bench, verify_one


def combined_status(verdicts: Sequence[Verdict]) -> Status:
    """The status of a whole: masked where a part is masked, ok where all are."""
    statuses = {verdict.status for verdict in verdicts}
    for status in ("error", "timeout"):
        if status in statuses:
            return status
    if statuses == {"ok"}:
        return "ok"
    return "unparsed" if statuses == {"unparsed"} else "wrong"


def combine(names: Sequence[str], verdicts: Sequence[Verdict], score: float) -> Verdict:
    """The verdict of a whole with the score that its parts give, where they may give one.

    Args:
        names: of the parts.
        verdicts: of the parts, of the same length.
        score: in [0, 1], if nothing is masked or unparsed as a whole.
    """
    status = combined_status(verdicts)
    detail = "; ".join(
        f"{name}: {verdict.status} {verdict.score:g}"
        + (f" ({verdict.detail})" if verdict.detail else "")
        for name, verdict in zip(names, verdicts, strict=True)
    )
    return Verdict(score if status in ("ok", "wrong") else 0.0, status, detail)


def weighted(
    names: Sequence[str], weights: Sequence[float], verdicts: Sequence[Verdict]
) -> Verdict:
    """The weighted mean; masked if any part is."""
    total = sum(
        weight * verdict.score for weight, verdict in zip(weights, verdicts, strict=True)
    ) / sum(weights)
    return combine(names, verdicts, min(1.0, total))


def all_must_pass(names: Sequence[str], verdicts: Sequence[Verdict]) -> Verdict:
    """The lowest score where every part is ok, else 0; masked if any part is."""
    passed = all(verdict.status == "ok" for verdict in verdicts)
    return combine(names, verdicts, min(verdict.score for verdict in verdicts) if passed else 0.0)


@dataclass(frozen=True)
class _Composed:
    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    parts: tuple[Verifier, ...]

    async def verify(self, task: Task, completion: str) -> Verdict:
        verdicts = await asyncio.gather(
            *(verify_one(part, task, completion) for part in self.parts)
        )
        if self.weights is None:
            return all_must_pass(self.names, verdicts)
        return weighted(self.names, self.weights, verdicts)


@dataclass(frozen=True)
class _FormatFirst:
    format: Verifier
    then: Verifier

    async def verify(self, task: Task, completion: str) -> Verdict:
        first = await verify_one(self.format, task, completion)
        if first.status != "ok":
            return combine(["format"], [first], 0.0)
        return await verify_one(self.then, task, completion)


def make_weighted(model: WeightedVerifier, bench: Bench) -> Verifier:
    """The weighted mean of the parts."""
    return _Composed(
        tuple(part.name or part.verifier.type for part in model.parts),
        tuple(part.weight for part in model.parts),
        tuple(bench.verifier(part.verifier) for part in model.parts),
    )


def make_all(model: AllVerifier, bench: Bench) -> Verifier:
    """Every part must be ok."""
    names = tuple(part.type for part in model.parts)
    return _Composed(names, None, tuple(bench.verifier(part) for part in model.parts))


def make_format_first(model: FormatFirstVerifier, bench: Bench) -> Verifier:
    """The format is a gate before the rest."""
    return _FormatFirst(bench.verifier(model.format), bench.verifier(model.then))
