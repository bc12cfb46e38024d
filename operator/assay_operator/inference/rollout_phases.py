"""The phases in which replicas get the candidate, serve it, and go back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from assay_operator.inference.rollout_ends import completed, fail, returned
from assay_operator.inference.rollout_replicas import available, may_take, take
from assay_operator.inference.rollout_state import Canary, Phase, Rollout
from assay_operator.inference.rollout_weighing import (
    after_candidate,
    by_recreating,
    enter,
    gating,
    inspecting,
    unmounted,
)
from assay_operator.inference.rollout_words import missing, sentences, short, who
from assay_operator.inference.rollout_world import Diary, Replica, World

UNWELL_SECONDS = 30.0
"""How long the canary may be out of service in its hold: a router may miss one look at it."""
MAX_CANARIES = 5
"""Canaries that may go away in one rollout."""


def serving(rollout: Rollout, world: World) -> list[Replica]:
    """The replicas that serve what all shall have."""
    version = rollout.serves.version
    return [each for each in available(rollout, world) if each.version == version]


def _canary(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    if rollout.canary is None:
        return _picked(rollout, world, diary)
    uid, pod = rollout.canary.uid, rollout.canary.pod
    replica, record = world.live.get(uid), rollout.record(uid)
    if replica is None or record is None:
        return _lost(rollout, world, diary)
    if record.stage == "Spoilt":
        why = f"pod/{pod} could not load it in {record.loads} tries: {record.note}"
        return fail(rollout, world, diary, "LoadFailed", why, blame=record.guilty)
    if record.stage == "Loaded":
        diary.say("CanaryLoaded", f"pod/{pod} serves {who(rollout.target)}, to nobody yet.")
        kept = replace(rollout, canary=Canary(uid, pod, replica.restarts))
        return after_candidate(kept, world, diary)
    late = world.since(record.since) >= world.policy.drain_seconds
    if record.stage == "Out" and late and replica.listed is not False:
        why = (
            f"no router could be seen to let go of pod/{pod}, so its weights were not changed: see "
            "whether the router's pods answer."
        )
        return fail(rollout, world, diary, "NotDrained", why)
    return rollout


def _picked(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """With a canary, if a replica can be spared: one that serves nobody yet before the others.

    One that a router is still to read of is none: it might read the older list late, and send
    requests while the weights change.
    """
    found = [
        each
        for each in world.live.values()
        if each.generated
        and each.version in rollout.admitted
        and each.uid not in rollout.excluded
        and (each.listed or not each.named)
        and may_take(rollout, world, each)
    ]
    if found and not rollout.idle:
        if why := unmounted(rollout, world):
            # There was no pod when the target was inspected.
            return by_recreating(rollout, world, diary, why)
        chosen = min(found, key=lambda each: (each.routable, each.pod))
        taken = take(rollout, world, chosen, rollout.target)
        return replace(taken, canary=Canary(chosen.uid, chosen.pod))
    if rollout.idle or world.since(rollout.since) < world.policy.start_seconds:
        return rollout
    waited = f"within {world.policy.start_seconds:.0f} s"
    if all(each.version is None for each in world.live.values()):
        why = sentences(f"no running engine answered {waited}", missing(rollout, world))
        return by_recreating(rollout, world, diary, why)
    if rollout.surge:
        why = sentences(
            f"the replica that is made to try it on did not come up {waited}. Make room for one "
            "replica more, or set spec.rollout.maxUnavailable to 1",
            missing(rollout, world),
        )
        return fail(rollout, world, diary, "NoRoomForCanary", why)
    count = f"{len(available(rollout, world))} of {world.wanted} serve"
    why = sentences(f"no replica could be spared {waited}: {count}", missing(rollout, world))
    return fail(rollout, world, diary, "NotEnoughReplicas", why)


def _lost(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Without its canary, whose pod went away: that says nothing about the candidate."""
    assert rollout.canary is not None
    number = rollout.canaries + 1
    without = replace(
        enter(rollout.without(rollout.canary.uid), world, "Canary"), canary=None, canaries=number
    )
    told = f"pod/{rollout.canary.pod} went away"
    if number > MAX_CANARIES:
        why = f"{told}, the last of {number} canaries to do so: see what ends the pods."
        return fail(without, world, diary, "CanaryLost", why)
    diary.say("CanaryLost", f"{told}: another one is taken.")
    return without


def _holding(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    canary = rollout.canary
    assert canary is not None
    replica = world.live.get(canary.uid)
    if replica is None:
        return _lost(rollout, world, diary)
    if rollout.record(canary.uid):
        # The router may have it from the next step on, when this is written.
        told = f"pod/{canary.pod} has {short(rollout.target.version)} and comes into the router."
        diary.say("CanaryServes", told)
        return rollout.without(canary.uid)
    lost = replica.version not in {None, rollout.target.version}
    if lost or replica.restarts != canary.restarts:
        why = f"the engine of pod/{canary.pod} ended while it served it"
        why = sentences(why, replica.error or "")
        return fail(rollout, world, diary, "CanaryUnwell", why, blame=True)
    if not replica.routable:
        return _not_routable(rollout, world, canary, replica, diary)
    held = canary.held or world.now
    if world.since(held) >= world.policy.hold:
        return _committed(rollout, world, diary)
    return replace(rollout, canary=replace(canary, held=held, unwell=None))


def _not_routable(
    rollout: Rollout, world: World, canary: Canary, replica: Replica, diary: Diary
) -> Rollout:
    others = [each for each in world.live.values() if each.uid != canary.uid]
    if canary.held is None:
        if world.since(rollout.since) < world.policy.start_seconds:
            return rollout
        why = f"pod/{canary.pod} did not come back into the router"
        why = sentences(why, missing(rollout, world))
        return fail(rollout, world, diary, "CanaryNotRouted", why)
    if others and not any(each.routable for each in others):
        # Nobody is routed to: that is not the canary's.
        return replace(rollout, canary=replace(canary, unwell=None))
    if canary.unwell is None:
        return replace(rollout, canary=replace(canary, unwell=world.now))
    if world.since(canary.unwell) < UNWELL_SECONDS:
        return rollout
    error = replica.error or missing(rollout, world)
    why = sentences(f"pod/{canary.pod} stopped to serve it", error)
    return fail(rollout, world, diary, "CanaryUnwell", why, blame=True)


def _committed(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    assert rollout.canary is not None
    diary.say(
        "RolloutCommitted",
        f"pod/{rollout.canary.pod} served {who(rollout.target)} well for {world.policy.hold:g} s: "
        "the others follow, and pods that start come up with it.",
    )
    entered = enter(rollout, world, "Waving")
    return replace(entered, committed=True, canary=None, progress=world.now)


def _waving(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Also of new pods: both are done when all serve, and stuck when no more come to."""
    behind = _behind(rollout, world)
    late = world.since(rollout.progress) >= world.policy.start_seconds
    enough = not behind and not rollout.records and len(serving(rollout, world)) >= world.wanted
    if enough and (late or not _joining(rollout, world)):
        return completed(rollout, world, diary)
    if not late:
        return rollout
    ending = [each for each in world.live.values() if each.version is None and each.restarts]
    stuck = [record for record in rollout.records if record.stage == "Quarantined"]
    told = f"{rollout.updated} of {world.wanted} replicas serve it"
    if ending or stuck:
        notes = [f"pod/{record.pod}: {record.note}" for record in stuck]
        why = sentences(told, *(notes or [missing(rollout, world)]))
        return fail(rollout, world, diary, "ReplicasFail", why, blame=True)
    if rollout.phase == "Recreating":
        why = sentences(f"{told}; the new pods do not come up", missing(rollout, world))
        return fail(rollout, world, diary, "NewPodsMissing", why)
    if behind or rollout.records:
        return rollout
    why = sentences(f"{told}, the others are missing", missing(rollout, world))
    return completed(rollout, world, diary, why)


def _joining(rollout: Rollout, world: World) -> bool:
    """Whether one more replica than is wanted serves, and another is on its way into the router.

    It is not known which of them goes when there is to be one less: until all serve none may.
    """
    serves = {each.uid for each in serving(rollout, world)}
    version = rollout.serves.version
    return rollout.surge and any(
        each.version == version and each.uid not in rollout.excluded | serves
        for each in world.live.values()
    )


def _recreating(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    # Without replicas nobody knows yet whether any can start with it.
    return rollout if rollout.idle else _waving(rollout, world, diary)


def _returning(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    stalled = world.since(rollout.progress) >= world.policy.start_seconds
    moving = [record for record in rollout.records if record.stage != "Quarantined"]
    if _behind(rollout, world) or moving:
        return rollout
    if rollout.committed:
        enough = len(serving(rollout, world)) >= world.wanted
    else:
        # One that is silent may be the canary. It will come up with what is served.
        silent = any(each.version is None for each in world.live.values())
        enough = not (rollout.touched and silent)
    if not rollout.records and enough:
        return returned(rollout, world, diary)
    if not stalled:
        return rollout
    notes = [f"pod/{record.pod} cannot load it: {record.note}" for record in rollout.records]
    why = f"Not all replicas serve {short(rollout.origin.version)} again"
    why = sentences(why, *(notes or [missing(rollout, world)]))
    return returned(rollout, world, diary, why)


def _behind(rollout: Rollout, world: World) -> list[Replica]:
    """Replicas that answer with something else than all shall have, and are not in hand."""
    wrong = {None, rollout.serves.version}
    return [
        each
        for each in world.live.values()
        if each.version not in wrong and each.uid not in rollout.excluded
    ]


PHASES: Mapping[Phase, Callable[[Rollout, World, Diary], Rollout]] = MappingProxyType(
    {
        "Inspecting": inspecting,
        "Canary": _canary,
        "Gating": gating,
        "Holding": _holding,
        "Waving": _waving,
        "Recreating": _recreating,
        "Returning": _returning,
    }
)
