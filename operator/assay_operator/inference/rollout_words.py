"""What a rollout says: one message for each state, for `status.rollout.message`. Pure.

A message changes only with what happens, never with the clock: a status that ticks is written for
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from assay_operator.inference.rollout_state import Record, Rollout
from assay_operator.inference.rollout_world import Target, World
from assay_operator.plan import Json

_DIGEST_DIGITS = 12
_MOST_TOLD = 3
"""Replicas that one message names."""
RETRY_ANNOTATION = "assay.dev/retry"


def short(version: str | None) -> str:
    """A version as people read it: the beginning of a digest is enough."""
    if version is None:
        return "no version"
    kind, colon, digits = version.partition(":")
    if kind == "sha256" and colon and len(digits) > _DIGEST_DIGITS:
        return f"{kind}:{digits[:_DIGEST_DIGITS]}"
    return version


def who(target: Target) -> str:
    """Weights by their name and version."""
    mark = short(target.version)
    return mark if target.name in {"", target.version, mark} else f"{target.name} ({mark})"


def tell(rollout: Rollout, world: World) -> str:
    """What is going on, why, and what can be done where it is stuck."""
    message = _TOLD[rollout.phase](rollout, world).rstrip()
    if rollout.paused:
        return f"Paused: {message} Set spec.rollout.paused to false to go on."
    return message


def missing(rollout: Rollout, world: World) -> str:
    """Why a replica that should serve does not, with a remedy; empty where none says so."""
    said = sorted(
        f"pod/{each.pod}: {each.error.rstrip('.')}"
        for each in world.live.values()
        if each.error and not each.routable and each.uid not in rollout.excluded
    )
    return f"{said[0]}." if said else ""


def refusal(world: World) -> Json | None:
    """The entry of the target in the list of refused versions."""
    found = (each for each in world.refused if each.get("version") == world.target.version)
    return next(found, None)


def _inspecting(rollout: Rollout, world: World) -> str:
    if any(each.version in rollout.older for each in world.live.values()):
        return (
            f"Inspecting: the files of {who(rollout.target)} are checked, while all replicas get "
            f"{who(rollout.origin)}, with which alone it is compared then."
        )
    return (
        f"Inspecting: the files of {who(rollout.target)} are checked and compared with those of "
        f"{who(rollout.origin)}. No engine is touched."
    )


def _canary(rollout: Rollout, world: World) -> str:
    new = short(rollout.target.version)
    if rollout.canary is None:
        return f"Canary: {_waits_for_canary(rollout, world)}"
    record = rollout.record(rollout.canary.uid)
    return f"Canary: {_hand(record, rollout.canary.pod, new)}"


def _waits_for_canary(rollout: Rollout, world: World) -> str:
    new = who(rollout.target)
    if rollout.idle:
        return f"no replica is wanted, so there is none to try {new} on: it goes on with the first."
    if rollout.surge:
        return (
            f"one more replica is made to try {new} on, since spec.rollout.maxUnavailable is 0. "
            f"{missing(rollout, world)}"
        )
    return (
        f"no replica can be spared to try {new} on: {world.wanted} are wanted and at most "
        f"{world.policy.max_unavailable} may be out of service. {missing(rollout, world)}"
    )


def _hand(record: Record | None, pod: str, version: str) -> str:
    if record is None:
        return f"pod/{pod} is away."
    failed = f" The last try: {record.note}." if record.note else ""
    told = {
        "Out": "is out of the router and finishes its requests.",
        "Loading": f"loads {version}.{failed}",
        "Proving": f"has loaded {version} and has to generate a token.",
        "Loaded": f"serves {version}, to nobody yet.",
        "Restarting": f"is started anew: {record.note or 'it read an old pointer'}.",
    }
    return f"pod/{pod} {told.get(record.stage, f'cannot load {version}: {record.note}.')}"


def _gating(rollout: Rollout, world: World) -> str:
    new, old = short(rollout.target.version), short(rollout.origin.version)
    whose = (
        f"canary pod/{rollout.canary.pod} serves {new}"
        if rollout.canary
        else f"an engine beside the gate serves {new}"
    )
    if rollout.job is None:
        return f"Gating: {whose} and waits until {old} is there to compare with."
    beside = f" beside {old}" if rollout.job.compare else ", compared with nothing,"
    return f"Gating: {whose} and is asked the suite{beside}."


def _holding(rollout: Rollout, world: World) -> str:
    assert rollout.canary is not None
    new = short(rollout.target.version)
    if rollout.canary.held is None:
        return (
            f"Holding: canary pod/{rollout.canary.pod} has {new} and comes back into the router. "
            f"{missing(rollout, world)}"
        )
    if rollout.canary.unwell:
        return (
            f"Holding: canary pod/{rollout.canary.pod} does not serve just now. "
            f"{missing(rollout, world)}"
        )
    return (
        f"Holding: canary pod/{rollout.canary.pod} serves {new} for {world.policy.hold:g} s before "
        "the others follow."
    )


def _spreading(rollout: Rollout, world: World) -> str:
    new = short(rollout.target.version)
    if rollout.idle and rollout.phase == "Recreating":
        return (
            f"Recreating: no replica is wanted, so there is none to start with {new}: it goes on "
            "with the first."
        )
    told = f"{rollout.phase}: {rollout.updated} of {world.wanted} replicas serve {new}."
    hands = [_hand(record, record.pod, short(record.goal)) for record in rollout.records]
    if hands:
        return " ".join([told, *hands[:_MOST_TOLD]])
    if rollout.updated < world.wanted and any(each.error for each in world.live.values()):
        return f"{told} {missing(rollout, world)}"
    return told


def _returning(rollout: Rollout, world: World) -> str:
    old = short(rollout.origin.version)
    hands = [_hand(record, record.pod, old) for record in rollout.records]
    told = [f"Returning to {who(rollout.origin)}: {rollout.reason}: {_stop(rollout.detail)}"]
    return " ".join([*told, *hands[:_MOST_TOLD]])


def _done(rollout: Rollout, world: World) -> str:
    extra = f" {_stop(rollout.detail)}" if rollout.detail else ""
    return f"Done: {who(rollout.target)} is served.{extra}{_not_tried(rollout, world)}"


def _failed(rollout: Rollout, world: World) -> str:
    return (
        f"Failed: {who(rollout.origin)} is still served. {who(rollout.target)}: {rollout.reason}: "
        f"{_stop(rollout.detail)}{_not_tried(rollout, world)}"
    )


def _superseded(rollout: Rollout, world: World) -> str:
    return (
        f"Superseded: {who(rollout.origin)} is still served; {who(rollout.target)} is not wanted "
        f"any more.{_not_tried(rollout, world)}"
    )


def _not_tried(rollout: Rollout, world: World) -> str:
    """Why what is wanted is not on its way."""
    target = world.target
    if target.version == rollout.serves.version:
        return ""
    again = f" To try it again, set the annotation {RETRY_ANNOTATION} to {target.version}."
    if rollout.phase == "Failed" and rollout.target.same_place(target):
        at = rollout.again_at
        return f" It is tried again at {at:%Y-%m-%dT%H:%M:%SZ}.{again}" if at else again
    if refused := refusal(world):
        why = _stop(str(refused.get("message") or refused.get("reason") or ""))
        return f" {who(target)} is wanted, and was refused at {refused.get('time')}: {why}{again}"
    if world.policy.paused:
        return f" {who(target)} is wanted, and waits: spec.rollout.paused is true."
    return ""


def sentences(*parts: str) -> str:
    """The parts that say something, one after the other, each with its stop."""
    return " ".join(_stop(part.strip()) for part in parts if part.strip())


def _stop(text: str) -> str:
    return f"{text.rstrip('.')}."


_TOLD: dict[str, Callable[[Rollout, World], str]] = {
    "Inspecting": _inspecting,
    "Canary": _canary,
    "Gating": _gating,
    "Holding": _holding,
    "Waving": _spreading,
    "Recreating": _spreading,
    "Returning": _returning,
    "Done": _done,
    "Failed": _failed,
    "Superseded": _superseded,
}
