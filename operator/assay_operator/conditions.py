"""Conditions and failures as every status keeps them, worked out from what stood there before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from assay_operator.inference.failures import Failure
from assay_operator.inference.profiles import UnsupportedProfile
from assay_operator.plan import Json


@dataclass(frozen=True)
class Verdict:
    """A condition before it has a time; None where nobody can say yet whether it holds."""

    holds: bool | None
    reason: str
    message: str


def refusal(error: ValidationError | UnsupportedProfile, engine: str = "spec.engine") -> Verdict:
    """What is told of a spec that cannot be carried out.

    Args:
        error: why not.
        engine: where the spec has its engine.
    """
    if isinstance(error, UnsupportedProfile):
        return Verdict(False, "UnsupportedProfile", str(error).replace("spec.engine", engine))
    return Verdict(False, "InvalidSpec", "; ".join(wrong_fields(error)))


def wrong_fields(error: ValidationError) -> list[str]:
    """What is wrong with a spec: a sentence a field, with the field's path."""
    return [
        f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
        for item in error.errors()
    ]


def stamp(now: datetime) -> str:
    """A time as Kubernetes writes it."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def by_type(status: Json) -> dict[str, Json]:
    """The conditions of a status by their type."""
    return {item["type"]: item for item in status.get("conditions") or []}


def conditions(
    verdicts: Mapping[str, Verdict], old: Json, generation: int, now: datetime
) -> list[Json]:
    """The conditions of a status; one that goes on as it was keeps its time.

    Args:
        verdicts: by type, in the order in which they are told.
        old: the status before.
        generation: of the spec that they are about.
        now: the time of those that changed.
    """
    previous = by_type(old)
    return [
        _condition(kind, verdict, previous.get(kind), generation, now)
        for kind, verdict in verdicts.items()
    ]


def with_verdicts(
    status: Json, verdicts: Mapping[str, Verdict], generation: int, now: datetime
) -> Json:
    """`status` with the conditions that `verdicts` are about, and the others as they were."""
    made = {item["type"]: item for item in conditions(verdicts, status, generation, now)}
    return {**status, "conditions": [*({**by_type(status), **made}).values()]}


def _condition(
    kind: str, verdict: Verdict, previous: Json | None, generation: int, now: datetime
) -> Json:
    value = "Unknown" if verdict.holds is None else str(verdict.holds)
    unchanged = previous is not None and previous["status"] == value
    return {
        "type": kind,
        "status": value,
        "reason": verdict.reason,
        "message": verdict.message,
        "lastTransitionTime": previous["lastTransitionTime"]
        if unchanged and previous
        else stamp(now),
        "observedGeneration": generation,
    }


def last_failure(failure: Failure | None, previous: Json | None, now: datetime) -> Json | None:
    """The failure as status keeps it: the time of the first sight stays while it is the same."""
    if failure is None:
        return previous
    same = (
        previous is not None
        and previous["where"] == failure.where
        and previous["reason"] == failure.reason
    )
    shown: Json = {
        "where": failure.where,
        "reason": failure.reason,
        "message": failure.message,
        "fatal": failure.fatal,
        "time": previous["time"] if same and previous else stamp(now),
    }
    if failure.exit_code is not None:
        shown["exitCode"] = failure.exit_code
    return shown
