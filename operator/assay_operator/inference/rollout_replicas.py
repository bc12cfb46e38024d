"""Brings replicas to the weights that they shall have, one careful stage after the other. Pure.

    Out -> Loading -> Proving -> given back, or, the canary, Loaded

A load counts once the engine reports the version and generates. Where one of another version was
ordered before, this process must also have seen the last one end well: an engine that merely
reports the right version may still be at what an operator ordered before it died, and would change
its weights among the users' requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from assay_operator.inference.rollout_state import Record, Rollout
from assay_operator.inference.rollout_words import short
from assay_operator.inference.rollout_world import Diary, Replica, Target, World
from assay_operator.plan import EngineAction, Load, Pause, Restart, Resume

MAX_LOADS = 3
SETTLE_SECONDS = 5.0
"""How long a replica is out of the list at least before its weights change. A router that has not
read of it yet could else read an older list late; draining takes a router as long anyway."""
LET_GO_SECONDS = 10.0
"""When a replica pauses though a router has not let go of it: its new requests wait, too."""
OTHER_SECONDS = 10.0
"""How long an engine may report another version after a load that came out well."""
PROVE_SECONDS = 60.0
QUARANTINE_SECONDS = 600.0
MAX_RESTARTS = 3
"""Pods deleted in one rollout above one for each replica: then one more for each quarantine."""


def goal_of(rollout: Rollout) -> Target:
    """What every replica but the canary shall have."""
    return rollout.serves


def available(rollout: Rollout, world: World) -> list[Replica]:
    """The replicas that serve and are not in the rollout's hands."""
    return [
        each
        for each in world.live.values()
        if each.routable and each.uid not in rollout.excluded and _is_member(rollout, each)
    ]


def may_take(rollout: Rollout, world: World, replica: Replica) -> bool:
    """Whether the replica can be taken out of service.

    One that serves nobody is free. Of the others so many are left as the policy says, counting
    only those that serve: nothing is taken while others are missing.
    """
    if not _is_member(rollout, replica):
        return True
    most = world.policy.max_unavailable
    if len(rollout.records) >= max(1, most):
        return False
    left = [each for each in available(rollout, world) if each.uid != replica.uid]
    return len(left) >= world.wanted - most


def take(rollout: Rollout, world: World, replica: Replica, goal: Target) -> Rollout:
    """The rollout with the replica in its hands."""
    return rollout.with_record(Record(replica.uid, replica.pod, goal.version, "Out", world.now))


def tend(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Moves every replica in hand by the stage that is due, then takes those that can be taken."""
    live = world.live
    for record in rollout.records:
        replica = live.get(record.uid)
        if replica is None:
            rollout = rollout.without(record.uid)
        else:
            rollout = _Hand(rollout, world, record, replica, diary).moved()
    return rollout if world.policy.paused else _taken(rollout, world, diary)


def redirect(rollout: Rollout, world: World, goal: Target) -> Rollout:
    """Has all replicas in hand brought to `goal`, wherever they were going."""
    for record in rollout.records:
        replica = world.live.get(record.uid)
        if replica is None or record.goal == goal.version:
            continue
        ordered = bool(record.token)
        changed = replace(
            record, goal=goal.version, loads=0, note="", dirty=ordered, abort=ordered, guilty=False
        )
        # Whatever was ordered is not forgotten: only a load that is seen to end well undoes it.
        if record.token and record.stage not in {"Restarting", "Quarantined"}:
            rollout = _order(rollout, world, changed, replica)
        else:
            rollout = rollout.with_record(changed)
    return rollout


def load_again(rollout: Rollout, world: World, record: Record, why: str, diary: Diary) -> Rollout:
    """Has a replica that lost its weights load them once more, if a try is left."""
    return _Hand(rollout, world, record, world.live[record.uid], diary).again(why)


def actions(rollout: Rollout, world: World) -> Iterator[EngineAction]:
    """What is to be done to engines and pods as things stand; all of it may be repeated."""
    for replica in sorted(world.live.values(), key=lambda each: each.pod):
        record = rollout.record(replica.uid)
        if record is None:
            if replica.paused:
                yield Resume(replica.pod)
        elif record.stage == "Out":
            if _continues(rollout, world, record):
                if _pauses(world, record, replica):
                    yield Pause(replica.pod)
            elif replica.paused:
                yield Resume(replica.pod)
        elif record.stage == "Loading":
            if _is_due(record, replica):
                path = rollout.place_of(record.goal)
                abort = record.abort and not replica.paused
                yield Load(replica.pod, path, record.goal, token=record.token, abort=abort)
        elif record.stage == "Restarting":
            if not world.policy.paused:
                yield Restart(replica.pod)
        elif replica.paused:
            yield Resume(replica.pod)


def _is_member(rollout: Rollout, replica: Replica) -> bool:
    """Whether it serves, or is about to: one that generates nothing and that no router knows is
    neither."""
    version = replica.version
    works = replica.generated or replica.listed is not False
    return version is not None and works and rollout.admits(replica.uid, version)


def _taken(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Takes replicas that have other weights than they shall have, those that serve last."""
    goal = goal_of(rollout)
    holds = rollout.canary.uid if rollout.phase == "Holding" and rollout.canary else None
    for replica in sorted(world.live.values(), key=lambda each: (each.routable, each.pod)):
        known = rollout.record(replica.uid) or replica.uid == holds
        if known or replica.version in {None, goal.version}:
            continue
        # A Deployment that rolls replaces the pods of the old template; one of the new template
        # that read an old pointer can only be started anew.
        if rollout.renews and replica.template != rollout.template:
            continue
        if not may_take(rollout, world, replica):
            continue
        returns = rollout.phase == "Returning"
        if not returns and not rollout.admits(replica.uid, replica.version or ""):
            diary.warn(
                "ReplicaQuarantined",
                f"pod/{replica.pod} reports {short(replica.version)}, which it must not serve: it "
                f"gets no request until it has {short(goal.version)}.",
            )
        rollout = take(rollout, world, replica, goal)
        if rollout.renews:
            record = rollout.record(replica.uid)
            assert record is not None
            rollout = rollout.with_record(replace(record, stage="Restarting"))
    return rollout


def _continues(rollout: Rollout, world: World, record: Record) -> bool:
    """Whether requests under way go on with the new weights. Never with some that did not pass."""
    passed = record.goal != rollout.target.version or rollout.committed
    return passed and world.policy.in_flight == "Continue" and not rollout.paused


def _pauses(world: World, record: Record, replica: Replica) -> bool:
    waited = world.since(record.since)
    let_go = replica.listed is False and waited >= SETTLE_SECONDS
    return not replica.paused and (let_go or waited >= LET_GO_SECONDS)


def _is_due(record: Record, replica: Replica) -> bool:
    """Whether the load that is ordered has to be begun: also again, if nobody knows of it."""
    load = replica.load
    known = load is not None and (load.token == record.token or load.state == "running")
    return not known and (replica.version is not None or bool(replica.paused))


def _order(rollout: Rollout, world: World, record: Record, replica: Replica) -> Rollout:
    number = rollout.orders + 1
    ordered = replace(
        record,
        stage="Loading",
        since=world.now,
        token=f"{rollout.id}-{number}",
        loads=record.loads + 1,
        restarts=replica.restarts,
    )
    touched = rollout.touched or record.goal == rollout.target.version
    return replace(rollout.with_record(ordered), orders=number, touched=touched)


class _Hand:
    """One replica in the rollout's hands."""

    def __init__(
        self, rollout: Rollout, world: World, record: Record, replica: Replica, diary: Diary
    ) -> None:
        self._rollout = rollout
        self._world = world
        self._record = record
        self._replica = replica
        self._diary = diary
        self._waited = world.since(record.since)

    def moved(self) -> Rollout:
        """The rollout after the stage that is due, if one is."""
        match self._record.stage:
            case "Out":
                return self._out()
            case "Loading":
                return self._loading()
            case "Proving":
                return self._proving()
            case "Quarantined":
                return self._quarantined()
            case _:
                return self._rollout

    def again(self, why: str, *, guilty: bool = True) -> Rollout:
        """After a load that came to nothing: another one, or what is left when that is in vain."""
        before = self._record
        noted = replace(before, note=why, abort=True, guilty=before.guilty or guilty)
        if self._world.policy.paused:
            return self._rollout
        if noted.loads < MAX_LOADS:
            return _order(self._rollout, self._world, noted, self._replica)
        if self._is_canary():
            return self._rollout.with_record(self._at(noted, "Spoilt"))
        return self._given_up(noted)

    def _out(self) -> Rollout:
        record, replica, rollout = self._record, self._replica, self._rollout
        if not record.token and not self._is_canary() and replica.version == record.goal:
            # It was started anew, and came up with what it shall have.
            return rollout.without(record.uid)
        if self._world.policy.paused:
            return rollout if record.token else rollout.without(record.uid)
        if self._drained():
            return _order(rollout, self._world, record, replica)
        if self._waited < self._world.policy.drain_seconds:
            return rollout
        # Whoever asked the canary by a router that cannot be told would be answered by weights
        # that did not pass: that the canary's phase sees to.
        if self._is_canary() and replica.listed is not False:
            return rollout
        self._diary.warn(
            "DrainTimedOut",
            f"pod/{record.pod} was not idle within {self._waited:.0f} s: it loads "
            f"{short(record.goal)} now, which ends the requests that it still has.",
        )
        return _order(rollout, self._world, replace(record, abort=True), replica)

    def _drained(self) -> bool:
        replica = self._replica
        if self._waited < SETTLE_SECONDS:
            return False
        if _continues(self._rollout, self._world, self._record) and replica.paused:
            return True
        return replica.listed is False and replica.requests == 0

    def _loading(self) -> Rollout:
        record, load = self._record, self._replica.load
        if load is not None and load.token == record.token and load.state != "running":
            if load.state == "done":
                return self._rollout.with_record(self._at(record, "Proving"))
            return self.again(load.message or "the load failed")
        # The shell sees to it that a load that runs comes to an end.
        runs = load is not None and load.state == "running"
        if not runs and not record.dirty and self._has_it():
            # Another process ordered it, and died.
            return self._rollout.with_record(self._at(record, "Proving"))
        if self._replica.restarts != record.restarts:
            return self.again("the engine was started anew while it loaded")
        if not runs and self._waited >= self._world.policy.load_seconds:
            why = f"no load was seen to end for {self._waited:.0f} s"
            return self.again(why, guilty=False)
        return self._rollout

    def _proving(self) -> Rollout:
        record, replica = self._record, self._replica
        if self._has_it() and not replica.paused:
            if self._is_canary():
                return self._rollout.with_record(self._at(record, "Loaded"))
            return self._rollout.without(record.uid)
        other = replica.version is not None and replica.version != record.goal
        if other and self._waited >= OTHER_SECONDS:
            return self.again(f"the engine reports {short(replica.version)}")
        if self._waited >= PROVE_SECONDS:
            return self.again(replica.error or "the engine generated no token")
        return self._rollout

    def _has_it(self) -> bool:
        return self._replica.version == self._record.goal and self._replica.generated

    def _quarantined(self) -> Rollout:
        if self._waited < QUARANTINE_SECONDS or self._world.policy.paused:
            return self._rollout
        record = replace(self._record, loads=0, guilty=False)
        # Loading it may never help: one pod more can be started anew.
        restarts = min(self._rollout.restarts, self._most_restarts() - 1)
        return replace(self._rollout, restarts=restarts).with_record(self._at(record, "Out"))

    def _given_up(self, record: Record) -> Rollout:
        rollout = self._rollout
        restarts = rollout.restarts < self._most_restarts()
        self._diary.warn(
            "ReplicaQuarantined",
            f"pod/{record.pod} cannot load {short(record.goal)}: {record.note}. It gets no "
            f"request, and is {'started anew' if restarts else 'tried again later'}.",
        )
        if restarts:
            rollout = replace(rollout, restarts=rollout.restarts + 1)
        stage = self._at(record, "Restarting" if restarts else "Quarantined")
        return rollout.with_record(stage)

    def _most_restarts(self) -> int:
        return self._world.wanted + MAX_RESTARTS

    def _is_canary(self) -> bool:
        """Whether it is to get weights that have not passed."""
        canary, rollout = self._rollout.canary, self._rollout
        return canary is not None and canary.uid == self._record.uid and not rollout.committed

    def _at(self, record: Record, stage: str) -> Record:
        return replace(record, stage=stage, since=self._world.now)  # type: ignore[arg-type]
