"""The rollout of new weights: a fleet transaction as a pure state machine.

    Inspecting -> Canary -> Gating -> Holding -> Waving -> Done
               -> Gating (on an engine of its own) -> Recreating -> Done
    any of them -> Returning -> Failed | Superseded

The state in `status.rollout` is complete: an operator that dies anywhere leaves nothing that the
next one does not find there or see for itself. Each step is decided anew from both.

What the shell owes it: the state that it passes in is one that was read from the API server;
actions are done after the new state was written there; a load comes to an end, and its `LoadState`
has the token of its order. Members of the router are the replicas that `Step.admits`.

rollout_world.py has what goes in and out, rollout_state.py what is remembered,
rollout_weighing.py and rollout_phases.py the phases, rollout_replicas.py what happens to one
replica, rollout_ends.py how a rollout begins and ends, rollout_words.py what is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from assay_operator.conditions import stamp
from assay_operator.inference.rollout_ends import (
    may_start,
    remembered,
    settled,
    start,
    superseded,
)
from assay_operator.inference.rollout_phases import PHASES, serving
from assay_operator.inference.rollout_replicas import actions, tend
from assay_operator.inference.rollout_state import Rollout, read, whole_seconds, write
from assay_operator.inference.rollout_words import tell, who
from assay_operator.inference.rollout_world import Diary, Replica, Step, Target, World
from assay_operator.plan import EngineAction, Json, Restart, Resume

AT_ONCE = 0.1
"""The next step after one that changed the state: what it opens waits for it to be written."""
BUSY_SECONDS = 1.0
WAITING_SECONDS = 5.0
SETTLED_SECONDS = 30.0
_MOST_MOVES = 100
_SURGES = frozenset({"Canary", "Gating", "Holding", "Waving"})


def step(state: Json | None, world: World) -> Step:
    """What is to be done now, and the state that says so.

    Args:
        state: status.rollout as the API server has it; None where there is none.
        world: everything else.

    Returns:
        the step. Made again in the same world, from its own state, it comes to the same state.
    """
    world = replace(world, now=whole_seconds(world.now))
    before, diary = read(state), Diary()
    found = before
    if found is None:
        served = world.served or _first(world)
        if served is None:
            return _starting(world)
        found = settled(served, world)
        if world.served is None:
            diary.history.append(_first_entry(served, world))
    after = _moved(found, world, diary)
    after = replace(after, message=tell(after, world))
    return _outcome(before or found, after, world, diary)


def _first(world: World) -> Target | None:
    """What is served for the first time, None while nothing is."""
    live, wanted, pointer = world.live.values(), world.target, world.pointer
    if any(each.routable and each.version == wanted.version for each in live):
        return wanted
    if pointer is None or pointer.version == wanted.version:
        return None
    # What is wanted changed when an engine had come up, and before that was written anywhere.
    works = any(each.generated and each.version == pointer.version for each in live)
    return pointer if works else None


def _first_entry(served: Target, world: World) -> Json:
    time = stamp(world.now)
    return {
        "version": served.version,
        "name": served.name,
        "result": "Served",
        "reason": "FirstStart",
        "message": "The first that was served.",
        "started": time,
        "finished": time,
        "seconds": 0.0,
    }


def _starting(world: World) -> Step:
    """Nothing was ever served: the pointer names what is wanted, and no state is needed."""
    return Step(
        state=None,
        served=None,
        pointer=world.target,
        template=world.target.version,
        admitted=frozenset({world.target.version}),
        actions=tuple(_started_anew(world)),
        refused=world.refused,
        history=world.history,
        next_look=WAITING_SECONDS,
    )


def _started_anew(world: World) -> Iterator[EngineAction]:
    """Pods that came up with what the pointer named before it was corrected."""
    for each in sorted(world.live.values(), key=lambda replica: replica.pod):
        if each.version not in {None, world.target.version}:
            yield Restart(each.pod)
        elif each.paused:
            yield Resume(each.pod)


def _moved(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """As far as it goes in this world, one move after the other."""
    for _ in range(_MOST_MOVES):
        after = _move(rollout, world, diary)
        if after == rollout:
            break
        rollout = after
    return rollout


def _move(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    rollout = _clocks(rollout, world, diary)
    if rollout.retried not in {"", world.retry}:
        rollout = replace(rollout, retried="")
    if rollout.over:
        rollout = _wanted(rollout, world, diary)
    elif not rollout.paused:
        other = not rollout.target.same_place(world.target)
        if other and rollout.phase != "Returning":
            rollout = superseded(rollout, world, diary)
        if not rollout.over:
            rollout = PHASES[rollout.phase](rollout, world, diary)
    return _counted(tend(rollout, world, diary), world)


def _wanted(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """After the end: a new rollout where something else is wanted."""
    if may_start(rollout, world):
        return rollout if world.policy.paused else start(rollout, world, diary)
    served = rollout.serves
    if served.version != world.target.version or served == world.target:
        return rollout
    # The same weights lie somewhere else now: only the pointer has to know.
    if rollout.phase == "Done":
        return replace(rollout, target=world.target)
    return replace(rollout, origin=world.target)


def _clocks(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Takes note of what stops a rollout. When it goes on, no deadline has passed meanwhile."""
    if rollout.over:
        return rollout
    paused, idle = world.policy.paused, world.wanted == 0
    if (rollout.paused and not paused) or (rollout.idle and not idle):
        records = tuple(replace(record, since=world.now) for record in rollout.records)
        rollout = replace(rollout, since=world.now, progress=world.now, records=records)
    if paused != rollout.paused:
        told = f"{who(rollout.target)}: {rollout.phase}."
        diary.say("RolloutPaused" if paused else "RolloutResumed", told)
    surge = rollout.surge or (
        world.policy.max_unavailable == 0
        and rollout.strategy == "InPlace"
        and rollout.phase in _SURGES
    )
    canary = rollout.canary
    if paused and canary and rollout.phase == "Canary" and rollout.record(canary.uid) is None:
        # It was put back, since nothing had been done to it.
        canary = None
    return replace(rollout, paused=paused, idle=idle, surge=surge, canary=canary)


def _counted(rollout: Rollout, world: World) -> Rollout:
    """With the number of replicas that are where all shall be: the fleet's progress."""
    if rollout.phase not in {"Waving", "Recreating", "Returning"}:
        return rollout
    number = len(serving(rollout, world))
    if number == rollout.updated:
        return rollout
    return replace(rollout, updated=number, progress=world.now)


def _outcome(known: Rollout, after: Rollout, world: World, diary: Diary) -> Step:
    history, refused = remembered(diary, world)
    admitted = known.admitted & after.admitted
    return Step(
        state=write(after),
        served=after.serves,
        pointer=known.serves,
        template=known.template,
        admitted=admitted,
        canary=_one_more(known, after, admitted),
        excluded=known.excluded | after.excluded,
        surge=int((known.surge or after.surge) and world.wanted > 0),
        halted=known.renews and (known.paused or after.paused),
        # Until the state that has its result is written, that result is nowhere but in the Job.
        jobs=(known.job,) if known.job is not None else (),
        actions=tuple(actions(after, world)),
        events=tuple(diary.events),
        refused=refused,
        history=history,
        next_look=_next_look(known, after, world),
    )


def _one_more(known: Rollout, after: Rollout, admitted: frozenset[str]) -> tuple[str, str] | None:
    """The canary and the version that it alone may serve."""
    if known.phase != "Holding" or known.canary is None:
        return None
    uid, version = known.canary.uid, known.target.version
    if version in admitted or not after.admits(uid, version):
        return None
    return uid, version


def _next_look(known: Rollout, after: Rollout, world: World) -> float:
    if known != after:
        return AT_ONCE
    if after.records or after.phase in {"Waving", "Returning"}:
        return BUSY_SECONDS
    if after.over or after.paused:
        return SETTLED_SECONDS
    held = after.canary.held if after.canary else None
    if after.phase == "Holding" and held:
        return max(BUSY_SECONDS, min(WAITING_SECONDS, world.policy.hold - world.since(held)))
    return BUSY_SECONDS if after.phase in {"Canary", "Holding"} else WAITING_SECONDS


__all__ = ["Replica", "Step", "Target", "World", "step"]
