"""What is known of a Checkpoint: from training, from its status, or from its Job. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.conditions import Verdict, by_type, stamp
from assay_operator.inference.jobs import JobResult
from assay_operator.plan import EVALUATION_ANNOTATION, Json

INTACT = "Inspected"
UNDER_WAY = frozenset({"Inspecting", "Weighing"})
"""Reasons of the conditions while the Job runs."""
_OPEN = "NoVerdict"
_BROKEN_FILES = frozenset({"OtherDigest", "Unsafe", "Damaged"})
_WEIGHED = frozenset({"Weighed", "ScoreTooLow", "Undecided"})
_NEVER = Verdict(
    False,
    "NotWeighed",
    "Its spec has no evaluation, so nobody weighs it. To have it weighed, delete this Checkpoint "
    "and make it again with spec.evaluation.",
)
_ANEW = "Bring the right files, then delete this Checkpoint and make it again."


@dataclass(frozen=True)
class Finding:
    """What is known of a Checkpoint.

    Attributes:
        digest: of its files, as far as that is known.
        intact: whether its files are whole and are those that the digest names.
        verified: whether its score was enough.
        evaluations: as the status has them, the latest first.
    """

    digest: str | None
    intact: Verdict
    verified: Verdict
    evaluations: tuple[Json, ...] = ()

    @property
    def open(self) -> bool:
        """Whether the Job came to no verdict, so that another is to be made."""
        return _OPEN in {self.intact.reason, self.verified.reason}


class _Trained(BaseModel):
    """What the job noted of the evaluation, as `plan.EVALUATION_ANNOTATION` has it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    verified: bool
    suite: str | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = None
    why: str | None = None
    time: datetime | None = None


def of_training(checkpoint: Json, spec: CheckpointSpec) -> Finding:
    """Of a Checkpoint that a job made."""
    intact = Verdict(
        True,
        "WrittenByTraining",
        "The run wrote it whole, with this digest. A service inspects it again before its engines "
        "read it.",
    )
    note = (checkpoint["metadata"].get("annotations") or {}).get(EVALUATION_ANNOTATION)
    try:
        found = _Trained.model_validate_json(note) if note else None
    except ValidationError:
        message = f"The annotation {EVALUATION_ANNOTATION} is not what a job writes."
        return Finding(spec.digest, intact, Verdict(False, "NotEvaluated", message))
    if found is None:
        verdict = Verdict(
            False,
            "NotEvaluated",
            "The run did not weigh it: its step is none of those of the job's evaluation.every.",
        )
        return Finding(spec.digest, intact, verdict)
    score = "without a score" if found.score is None else f"with a score of {found.score:.3f}"
    said = found.why or f"It was weighed in training, {score}."
    verdict = Verdict(found.verified, "EvaluatedInTraining" if found.verified else _LOW, said)
    if found.score is None:
        return Finding(spec.digest, intact, verdict)
    entry = {
        "suite": found.suite or "the job's evaluation",
        "score": found.score,
        "low": found.low,
        "high": found.high,
        "items": found.items,
        "by": "Training",
        "time": stamp(found.time) if found.time else None,
    }
    return Finding(spec.digest, intact, verdict, (_without_nulls(entry),))


_LOW = "ScoreTooLow"


def settled(checkpoint: Json, spec: CheckpointSpec) -> Finding | None:
    """What the status says of a Checkpoint that somebody brought, once it says all."""
    status = checkpoint.get("status") or {}
    told = by_type(status)
    intact, verified = told.get("Intact", {}), told.get("Verified", {})
    reason = intact.get("reason")
    whole = reason == INTACT and (spec.evaluation is None or verified.get("reason") in _WEIGHED)
    if not whole and reason not in _BROKEN_FILES:
        return None
    return Finding(
        status.get("digest"),
        _verdict(intact),
        _verdict(verified),
        tuple(status.get("evaluations") or ()),
    )


def under_way(spec: CheckpointSpec) -> Finding:
    """While the Job runs."""
    if spec.evaluation is None:
        return Finding(None, Verdict(False, "Inspecting", "A Job reads its files."), _NEVER)
    both = Verdict(
        False,
        "Weighing",
        "A Job reads its files and then asks it the items of "
        f"{spec.evaluation.suite.configMap}; `kubectl logs` of its pod shows how far.",
    )
    return Finding(None, both, both)


def impossible(spec: CheckpointSpec, reason: str, message: str) -> Finding:
    """Where no Job can come to a verdict, for a reason that may pass."""
    why = Verdict(False, reason, message)
    return Finding(None, why, _NEVER if spec.evaluation is None else why)


def of_job(spec: CheckpointSpec, result: JobResult, now: datetime) -> Finding:
    """From what came of the Job."""
    inspection = result.summary if "intact" in result.summary else None
    inspection = inspection or result.summary.get("inspection") or {}
    digest = _digest(inspection)
    if inspection.get("intact") is False:
        reason, message = _damage(spec, inspection, result.message)
        wrong = Verdict(False, reason, f"{message} {_ANEW}")
        return Finding(digest, wrong, wrong)
    if inspection.get("intact") is not True:
        return impossible(spec, _OPEN, _no_verdict(result))
    intact = Verdict(True, INTACT, "Its files are whole and safe to load.")
    if spec.evaluation is None:
        return Finding(digest, intact, _NEVER)
    if result.verdict == "broken":
        return Finding(digest, intact, Verdict(False, _OPEN, _no_verdict(result)))
    entry = _evaluation(spec.evaluation.suite.configMap, result.summary, now)
    return Finding(digest, intact, _weighed(result), (entry,) if entry else ())


def _weighed(result: JobResult) -> Verdict:
    if result.verdict == "pass":
        return Verdict(True, "Weighed", result.message)
    if result.verdict == "fail":
        return Verdict(False, _LOW, result.message)
    return Verdict(
        False,
        "Undecided",
        f"{result.message} To decide it, delete this Checkpoint and make it again with a suite of "
        "more items, or with another minScore.",
    )


def _damage(spec: CheckpointSpec, inspection: Json, message: str) -> tuple[str, str]:
    """What is wrong with the files, in a word and in a sentence."""
    found, problems = _digest(inspection), " ".join(map(str, inspection.get("problems") or []))
    if "may be a pickle" in problems or " is code:" in problems:
        return "Unsafe", f"{message}. Only safetensors are ever loaded."
    if spec.digest and found and found != spec.digest:
        return "OtherDigest", f"{message}."
    return "Damaged", f"{message}."


def _no_verdict(result: JobResult) -> str:
    again = " The Job is done again in some minutes." if result.finished else ""
    return f"{result.message.rstrip('.')}.{again}"


def _evaluation(suite: str, summary: Json, now: datetime) -> Json | None:
    """The gate's figures as an entry of the status; None where it has none."""
    score = (summary.get("score") or {}).get("candidate") or {}
    if not isinstance(score.get("mean"), int | float):
        return None
    low, high = score.get("interval") or (None, None)
    return _without_nulls(
        {
            "suite": suite,
            "score": score["mean"],
            "low": low,
            "high": high,
            "items": score.get("items"),
            "by": "Weighing",
            "time": stamp(now),
        }
    )


def _digest(inspection: Json) -> str | None:
    digest = inspection.get("digest")
    if not isinstance(digest, str):
        return None
    return digest if digest.startswith("sha256:") else f"sha256:{digest}"


def _verdict(condition: Json) -> Verdict:
    return Verdict(
        condition.get("status") == "True",
        condition.get("reason", ""),
        condition.get("message", ""),
    )


def _without_nulls(data: dict[str, Any]) -> Json:
    return {name: value for name, value in data.items() if value is not None}
