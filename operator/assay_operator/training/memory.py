"""A gang's state as the job's status keeps it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from assay_operator.conditions import stamp
from assay_operator.inference.observation import parse_time
from assay_operator.plan import Json
from assay_operator.training.gang import Gang, Trouble
from assay_operator.training.progress import Marker


def read(status: Json) -> Gang:
    """The state in a job's status; an empty one gives the beginning."""
    kept: Json = status.get("gang") or {}
    known: dict[str, Any] = {
        "generation": status.get("generation") or 0,
        "restarts": status.get("restarts") or 0,
        "since": parse_time(status.get("progressedAt")),
        "began": parse_time(status.get("startedAt")),
        "finished": parse_time(status.get("finishedAt")),
        "trouble": Trouble(**kept["trouble"]) if kept.get("trouble") else None,
        "marker": Marker(**kept["marker"]) if kept.get("marker") else None,
        "silent": parse_time(kept.get("silentSince")),
        "ended": parse_time(kept.get("endedAt")),
    }
    for name in ("state", "step", "mark", "seen", "spec"):
        if name in kept:
            known[name] = kept[name]
    return Gang(failed_step=kept.get("failedStep") or 0, **known)


def written(gang: Gang) -> Json:
    """The state as fields of the status."""
    trouble, marker = gang.trouble, gang.marker
    return {
        "generation": gang.generation,
        "restarts": gang.restarts,
        "progressedAt": _time(gang.since),
        "startedAt": _time(gang.began),
        "finishedAt": _time(gang.finished),
        "gang": {
            "state": gang.state,
            "step": gang.step,
            "failedStep": gang.failed_step,
            "mark": gang.mark,
            "seen": gang.seen,
            "spec": gang.spec,
            "silentSince": _time(gang.silent),
            "endedAt": _time(gang.ended),
            "marker": {"step": marker.step, "digest": marker.digest} if marker else None,
            "trouble": {
                "reason": trouble.reason,
                "message": trouble.message,
                "counts": trouble.counts,
                "hopeless": trouble.hopeless,
            }
            if trouble
            else None,
        },
    }


def _time(moment: datetime | None) -> str | None:
    return stamp(moment) if moment else None
