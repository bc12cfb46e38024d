"""How rollouts begin and end, and what is remembered of them. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from assay_operator.conditions import stamp
from assay_operator.inference.rollout_replicas import redirect, take
from assay_operator.inference.rollout_state import Rollout
from assay_operator.inference.rollout_words import refusal, sentences, short, who
from assay_operator.inference.rollout_world import Diary, Target, World
from assay_operator.plan import Json

REMEMBERED_ROLLOUTS = 10
REMEMBERED_REFUSALS = 20
_SHORTEST_VERSION = len("sha256:") + 8
"""An annotation may name a version by its beginning, if that is at least so long."""
SUPERSEDED = "Superseded"


def identifier(*parts: object) -> str:
    """Eight hexadecimal digits that stand for `parts`."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:8]


def settled(target: Target, world: World) -> Rollout:
    """The state of a service that serves `target` and has known no rollout."""
    now = world.now
    return Rollout(
        id=identifier(target.version, now),
        phase="Done",
        strategy=world.policy.strategy,
        origin=target,
        target=target,
        started=now,
        since=now,
        template=target.version,
        home=target.version,
        progress=now,
        committed=True,
        finished=now,
    )


def may_start(rollout: Rollout, world: World) -> bool:
    """Whether what is wanted is something else than what is served, and may be tried."""
    target = world.target
    if target.version == rollout.serves.version:
        return False
    if asked_again(rollout, world):
        return True
    if rollout.phase == "Failed" and rollout.target.same_place(target):
        # Refused before or not: the last time it came to no verdict, if it is to be tried again.
        return rollout.again_at is not None and rollout.again_at <= world.now
    return refusal(world) is None


def asked_again(rollout: Rollout, world: World) -> bool:
    """Whether the annotation asks for what is wanted, and has not done so before."""
    asked = world.retry or ""
    return asked not in {"", rollout.retried} and _names(asked, world.target.version)


def start(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """A rollout to what is wanted, from what is served; replicas in hand stay so."""
    now, origin, target = world.now, rollout.serves, world.target
    older = {rollout.origin.version, *rollout.older} if not rollout.over else set()
    diary.say("RolloutStarted", f"From {who(origin)} to {who(target)}.")
    asked = world.retry or ""
    again = rollout.phase == "Failed" and rollout.target.same_place(target)
    return Rollout(
        id=identifier(origin.version, target.version, now),
        phase="Inspecting",
        strategy=world.policy.strategy,
        origin=origin,
        target=target,
        started=now,
        since=now,
        template=rollout.template,
        home=rollout.template,
        progress=now,
        records=rollout.records,
        surge=rollout.surge,
        older=tuple(sorted(older - {origin.version})),
        tries=rollout.tries + 1 if again else 0,
        retried=asked if _names(asked, target.version) else rollout.retried,
    )


def fail(
    rollout: Rollout, world: World, diary: Diary, reason: str, detail: str, *, blame: bool = False
) -> Rollout:
    """The rollout on its way back.

    Args:
        rollout: on its way forward.
        world: as it is.
        diary: gets a warning.
        reason: one word.
        detail: why, for people, with what to do.
        blame: whether it speaks against the target, so that nobody offers it again by himself.
    """
    diary.warn(reason, sentences(f"{who(rollout.target)}: {detail}"))
    return _back(replace(rollout, reason=reason, detail=detail, blame=blame), world)


def superseded(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """The rollout after another target came into its way, before or after the commit.

    What no pod has come up with is given up like what was not committed: it may be weights that
    none can start with, and a rollout that began from these would have nothing to go back to.
    """
    if rollout.committed and rollout.target.version == world.target.version:
        return replace(rollout, target=world.target)
    if not rollout.committed or (rollout.phase == "Recreating" and not rollout.updated):
        detail = f"{who(world.target)} is wanted now."
        diary.say("RolloutSuperseded", f"{who(rollout.target)} is given up: {detail}")
        return _back(replace(rollout, reason=SUPERSEDED, detail=detail), world)
    if not may_start(rollout, world):
        return rollout
    diary.history.append(_entry(rollout, world, "Served", SUPERSEDED))
    return start(rollout, world, diary)


def completed(rollout: Rollout, world: World, diary: Diary, detail: str = "") -> Rollout:
    """The rollout done."""
    done = _over(replace(rollout, phase="Done", detail=detail), world)
    diary.history.append(_entry(done, world, "Served", "RolloutDone"))
    told = f"{who(done.target)} is served, after {_seconds(done, world):.0f} s."
    diary.say("RolloutDone", f"{told} {detail}".rstrip())
    return done


def returned(rollout: Rollout, world: World, diary: Diary, detail: str = "") -> Rollout:
    """The rollout over, with what was served before."""
    told = sentences(rollout.detail, detail)
    superseded_ = rollout.reason == SUPERSEDED
    ended = replace(rollout, phase="Superseded" if superseded_ else "Failed", detail=told)
    ended = _over(ended, world)
    if ended.blame:
        diary.refused.append(
            {
                "version": ended.target.version,
                "name": ended.target.name,
                "reason": ended.reason,
                "message": told,
                "time": stamp(world.now),
            }
        )
    if ended.touched:
        diary.history.append(_entry(ended, world, "RolledBack", ended.reason))
        diary.say("RolledBack", f"{who(ended.origin)} is served again by all. {detail}".rstrip())
    elif not superseded_:
        diary.history.append(_entry(ended, world, "Refused", ended.reason))
        diary.warn("RolloutFailed", f"{who(ended.origin)} is still served. {detail}".rstrip())
    return ended


def remembered(diary: Diary, world: World) -> tuple[tuple[Json, ...], tuple[Json, ...]]:
    """The new lists of rollouts that are over and of refused versions, the newest first."""
    served = {each["version"] for each in diary.history if each["result"] == "Served"}
    newly = {each["version"] for each in diary.refused}
    kept = (each for each in world.refused if each.get("version") not in served | newly)
    refused = (*reversed(diary.refused), *kept)
    history = (*reversed(diary.history), *world.history)
    return history[:REMEMBERED_ROLLOUTS], refused[:REMEMBERED_REFUSALS]


def _back(rollout: Rollout, world: World) -> Rollout:
    canary = rollout.canary
    replica = world.live.get(canary.uid) if canary else None
    if replica is not None and rollout.record(replica.uid) is None:
        # It held the target. Whether it says so at this moment or not, it gets no request more.
        rollout = take(rollout, world, replica, rollout.origin)
    back = replace(
        rollout,
        phase="Returning",
        since=world.now,
        progress=world.now,
        template=rollout.home,
        updated=0,
        canary=None,
        job=None,
    )
    return redirect(back, world, back.origin)


def _over(rollout: Rollout, world: World) -> Rollout:
    return replace(
        rollout,
        since=world.now,
        finished=world.now,
        canary=None,
        job=None,
        surge=False,
        older=(),
        restarts=0,
        paused=False,
        idle=False,
    )


def _entry(rollout: Rollout, world: World, result: str, reason: str) -> Json:
    return {
        "version": rollout.target.version,
        "name": rollout.target.name,
        "from": rollout.origin.version,
        "result": result,
        "reason": reason,
        "message": rollout.detail or f"From {short(rollout.origin.version)}.",
        "started": stamp(rollout.started),
        "finished": stamp(world.now),
        "seconds": _seconds(rollout, world),
    }


def _seconds(rollout: Rollout, world: World) -> float:
    return world.since(rollout.started)


def _names(asked: str, version: str) -> bool:
    """Whether an annotation means `version`."""
    return asked == version or (len(asked) >= _SHORTEST_VERSION and version.startswith(asked))
