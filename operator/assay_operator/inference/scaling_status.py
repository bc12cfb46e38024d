"""What is told of the number of replicas: status.autoscaling, conditions, Events. Pure.

The status keeps what the next decision goes on from. It is written at once when the number changes
or something begins or ceases to hold, else once a minute, and not at all while nothing changes
that a reader would see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.autoscaling.decision import Decision
from assay_operator.autoscaling.record import record
from assay_operator.autoscaling.state import State, read, write
from assay_operator.conditions import Verdict, by_type, stamp
from assay_operator.config import OperatorConfig
from assay_operator.inference.drivers import driver_verdict
from assay_operator.inference.observation import Observation, OtherWriter, Seen, parse_time
from assay_operator.inference.scaling import decides, is_stopped, wanted
from assay_operator.plan import Event, Json

WRITE_SECONDS = 60.0
"""How often mere history is written."""
FALL_SECONDS = 15.0
"""How often it is written that other drivers may go lower."""
UNKNOWN_SECONDS = 30.0
"""After so long it is told that the load is not known."""
OTHERS_SECONDS = 600.0
"""So long it is told of somebody who wrote into a child, where it is put right at once."""
_OTHERS_WRITE_SECONDS = 60.0
_SHOWN = ("required", "reason", "message", "changes", "formula", "inputs", "capacity")


@dataclass(frozen=True)
class Told:
    """What is told in one pass.

    Attributes:
        status: status.autoscaling, None without autoscaling.
        verdicts: conditions.
        events: what happened.
        acts: whether another number is wanted than the one that was read: the next pass, which
            finds this one written, carries it out.
    """

    status: Json | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    acts: bool = False


def tell(
    observation: Observation, spec: InferenceServiceSpec, config: OperatorConfig, now: datetime
) -> Told:
    """What is to be told of a service's number of replicas.

    Args:
        observation: what is seen of it.
        spec: what the user wants, as it stands.
        config: the administrator's defaults.
        now: the time, with a zone.
    """
    scaling = spec.autoscaling
    if scaling is None:
        return Told()
    status = observation.service.get("status") or {}
    stood = status.get("autoscaling") or {}
    old = stood if stood.get("driver") == scaling.driver else {}
    number = wanted(spec, status)
    stopped = is_stopped(spec, status)
    made = _baseline(old, spec, number, stopped=stopped)
    seen = observation.seen
    if seen and not stopped and due(status, spec, seen, now):
        made = _decided(made, old, seen, now)
    made = _with_others(made, observation.other, spec, now)
    verdicts = _verdicts(observation, spec, config, made)
    after = wanted(spec, {"autoscaling": made})
    return Told(
        status=made,
        verdicts=verdicts,
        events=(
            *(_moved(number, after, made) if decides(spec) else ()),
            *_warnings(by_type(status), verdicts),
        ),
        acts=after != number,
    )


def due(status: Json, spec: InferenceServiceSpec, seen: Seen, now: datetime) -> bool:
    """Whether what was decided is to be written."""
    old, decision = status.get("autoscaling") or {}, seen.decision
    time = parse_time(old.get("time"))
    driver = spec.autoscaling.driver if spec.autoscaling else None
    if time is None or old.get("driver") != driver:
        return True
    changed = (
        old.get("replicas") != decision.replicas,
        ("unreachable" in old) != (decision.unreachable is not None),
        ("unknownSince" in old) != (seen.unknown_s >= UNKNOWN_SECONDS),
    )
    age = (now - time).total_seconds()
    if any(changed) or (not decides(spec) and _for_others(old, required(decision), age)):
        return True
    if 0 <= age < WRITE_SECONDS:
        return False
    made = _record(decision)
    return any(old.get(name) != made.get(name) for name in _SHOWN)


def required(decision: Decision) -> int | None:
    """Replicas that the load requires; none where it was silent for long enough."""
    return decision.required if decision.replicas else 0


def _for_others(old: Json, number: int | None, age: float) -> bool:
    """Whether another driver has to know: of more at once, of less, or of nothing, soon."""
    before = old.get("required")
    return before != number and (age >= FALL_SECONDS or (number or 0) > (before or 0))


def _record(decision: Decision) -> Json:
    """The decision in words and numbers, as the status has it."""
    told = record(decision.findings)
    del told["before"]
    number = required(decision)
    return told if number is None else {**told, "required": number}


def remembered(status: Json) -> State:
    """What the next decision goes on from, as a status has it."""
    try:
        data = json.loads((status.get("autoscaling") or {}).get("state") or "null")
    except ValueError:
        data = None
    return read(data)


def _baseline(old: Json, spec: InferenceServiceSpec, number: int, *, stopped: bool) -> Json:
    """status.autoscaling as it was, or as it begins."""
    driver = spec.autoscaling.driver if spec.autoscaling else ""
    made = {"replicas": number, **old, "driver": driver}
    if decides(spec):
        began = made.pop("specReplicas", None)
        # One who stops a service and lets it go on may choose any number for that.
        if not stopped:
            made |= {"replicas": number, "specReplicas": began or spec.replicas}
    return made


def _decided(made: Json, old: Json, seen: Seen, now: datetime) -> Json:
    decision = seen.decision
    told = _record(decision)
    kept: Json = {name: made[name] for name in ("driver", "specReplicas", "others") if name in made}
    moved = old.get("replicas") not in {None, decision.replicas}
    scaled = stamp(now) if moved else old.get("scaled")
    return {
        **kept,
        **told,
        "time": stamp(now),
        **({"scaled": scaled} if scaled else {}),
        **({"unreachable": decision.unreachable} if decision.unreachable else {}),
        **_unknown(old, seen, now),
        "state": json.dumps(write(decision.state), separators=(",", ":")),
    }


def _unknown(old: Json, seen: Seen, now: datetime) -> Json:
    if seen.unknown_s < UNKNOWN_SECONDS:
        return {}
    return {"unknownSince": old.get("unknownSince") or stamp(now)}


def _with_others(
    made: Json, other: OtherWriter | None, spec: InferenceServiceSpec, now: datetime
) -> Json:
    """With who else writes the number, for as long as that is news."""
    noted = made.pop("others", None) if "others" in made else None
    if not decides(spec):
        return made
    if other is None:
        seen = parse_time(noted["time"]) if noted else None
        ours = noted is not None and noted["where"].startswith("InferenceService/")
        recent = seen is not None and (now - seen).total_seconds() < OTHERS_SECONDS
        return {**made, "others": noted} if recent and not ours else made
    where = f"{other.where.kind}/{other.where.name}"
    told = {"where": where, "by": other.by, "replicas": other.replicas}
    time = stamp(now)
    if noted and {**told, "time": noted["time"]} == noted:
        seen = parse_time(noted["time"])
        age = (now - seen).total_seconds() if seen else _OTHERS_WRITE_SECONDS
        still = other.where.kind == "InferenceService" or age < _OTHERS_WRITE_SECONDS
        time = noted["time"] if still else time
    return {**made, "others": {**told, "time": time}}


def _verdicts(
    observation: Observation, spec: InferenceServiceSpec, config: OperatorConfig, made: Json
) -> dict[str, Verdict]:
    reached = made.get("unreachable")
    return {
        "ScalingActive": _active(observation, spec, config, made),
        "ObjectiveUnreachable": Verdict(True, "BelowFloor", reached)
        if reached
        else Verdict(
            False,
            "WithinReach",
            "A replica with one request at a time meets the objectives, as far as is known.",
        ),
    }


def _active(
    observation: Observation, spec: InferenceServiceSpec, config: OperatorConfig, made: Json
) -> Verdict:
    scaling = spec.autoscaling
    if scaling is None or is_stopped(spec, observation.service.get("status") or {}):
        told = "spec.replicas is 0, which stops the service: set it to 1 to go on."
        return Verdict(False, "Stopped", told)
    verdict = _decides(made)
    if scaling.driver != "builtin":
        verdict = driver_verdict(observation, scaling.driver, config)
    if verdict.holds is not False and "unknownSince" in made:
        return Verdict(
            False,
            "MetricsUnknown",
            f"The load has not been known whole since {made['unknownSince']}: "
            f"{made.get('message') or ''} See whether routers and engines answer at /metrics.",
        )
    return verdict


def _decides(made: Json) -> Verdict:
    """Of the operator's own driver."""
    if others := made.get("others"):
        return Verdict(True, "OthersScale", _words(others, made))
    if "time" not in made:
        return Verdict(None, "NotMeasured", "Nothing was measured yet: the number stays.")
    return Verdict(True, "Scaling", "The number of replicas follows the objectives.")


def _words(others: Json, made: Json) -> str:
    said = f"{others['by']} set the replicas of {others['where']} to {others['replicas']}"
    if others["where"].startswith("InferenceService/"):
        return (
            f"{said}, where they were {made['specReplicas']}. That has no effect beside driver "
            "builtin, which decides alone. To fix the number set autoscaling.min and max to it; to "
            "let another autoscaler decide take spec.autoscaling away; else take that one away and "
            f"set spec.replicas back to {made['specReplicas']}."
        )
    return (
        f"{said} ({others['time']}), and the operator put them right. Take the other autoscaler "
        "away, or have it scale the InferenceService and take spec.autoscaling away."
    )


def _moved(before: int, after: int, made: Json) -> tuple[Event, ...]:
    if before == after:
        return ()
    told = made.get("message") or f"{before} -> {after}"
    reason = "ScaledUp" if after > before else "ScaledDown"
    if 0 in (before, after):
        reason = "ScaledToZero" if before else "ScaledFromZero"
    return (Event(reason, told),)


def _warnings(before: Mapping[str, Json], verdicts: Mapping[str, Verdict]) -> tuple[Event, ...]:
    """What began to be wrong."""
    said = []
    active, unreachable = verdicts["ScalingActive"], verdicts["ObjectiveUnreachable"]
    was = before.get("ScalingActive", {}).get("reason")
    wrong = active.holds is False and active.reason != "Stopped"
    if active.reason != was and (wrong or active.reason == "OthersScale"):
        said.append(Event(active.reason, active.message, "Warning"))
    was = before.get("ObjectiveUnreachable", {}).get("status")
    if unreachable.holds and was != "True":
        said.append(Event("ObjectiveUnreachable", unreachable.message, "Warning"))
    return tuple(said)
