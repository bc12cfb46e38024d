"""The rollout under generated schedules of faults: what must never be is not, and it settles.

Each schedule lets a fleet, its operator and its users do and suffer things in any order: engines
and pods end at any moment, the operator dies between any two of its writes, targets, sizes and
policies change, routers go blind, disks fail. `Fleet` checks the invariants at every second and
every step; at the end the faults are gone and everything has to come to rest.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from assay_operator.inference.rollout_state import read
from assay_operator.inference.rollout_world import Target
from tests.unit.rollout_fleet import (
    GOOD,
    POLICY,
    SHAPES,
    TARGETS,
    UNLOADABLE,
    WORSE,
    A,
    B,
    C,
    Engine,
    Fleet,
)

SCHEDULES = int(os.environ.get("ASSAY_FAULT_SCHEDULES", "200"))
"""Where this is set, they are drawn anew in each run."""
STEPS = 40
UNLUCKY = {"CanaryUnwell", "LoadFailed", "ReplicasFail"}
"""What may be said of good weights whose engines were ended again and again."""
SEEN: Counter[str] = Counter()


class Schedule(RuleBasedStateMachine):
    """One fleet and what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet, self.pace = Fleet(), 1

    @initialize(
        wanted=st.integers(1, 4),
        unavailable=st.integers(0, 2),
        gate=st.booleans(),
        in_flight=st.sampled_from(["Finish", "Continue"]),
        strategy=st.sampled_from(["InPlace", "InPlace", "Recreate"]),
        goal=st.sampled_from(TARGETS[1:]),
        serves=st.booleans(),
        pace=st.sampled_from([1, 3, 6]),
    )
    def begin(self, wanted, unavailable, gate, in_flight, strategy, goal, serves, pace) -> None:
        policy = replace(
            POLICY,
            max_unavailable=unavailable,
            gate=gate or unavailable == 1,
            in_flight=in_flight,
            strategy=strategy,
        )
        self.fleet = Fleet(wanted, policy)
        if serves:
            self.fleet.settle()
        self.fleet.target, self.pace = goal, pace

    @invariant()
    def the_operator_works(self) -> None:
        """Between any two things that happen it passes, as it does all the time."""
        for _ in range(2):
            self.fleet.reconcile()
            self.fleet.advance(self.pace)

    @rule(seconds=st.sampled_from([5, 15]), times=st.integers(1, 6))
    def nothing_happens(self, seconds, times) -> None:
        for _ in range(times):
            self.fleet.reconcile()
            self.fleet.advance(seconds)

    @rule(after=st.integers(0, 8), seconds=st.sampled_from([0, 0, 5, 60]))
    def operator_dies_in_a_pass(self, after, seconds) -> None:
        self.fleet.reconcile(dies_after=after)
        self.fleet.advance(seconds)

    @precondition(lambda self: self.loading())
    @rule(after=st.integers(5, 8), goal=st.sampled_from([None, A, B, C]), back=st.booleans())
    def operator_dies_while_an_engine_loads(self, after, goal, back) -> None:
        self.fleet.reconcile(dies_after=after)
        if back and self.fleet.rollout:
            self.fleet.target = self.fleet.rollout.origin
        elif goal:
            self.fleet.target = goal

    @precondition(lambda self: self.loading())
    @rule()
    def engine_ends_while_it_loads(self) -> None:
        self.fleet.kill(self.loading()[0])

    @precondition(lambda self: self.canary() is not None)
    @rule(deleted=st.booleans())
    def canary_ends(self, deleted) -> None:
        if deleted:
            self.fleet.delete(self.canary())
        else:
            self.fleet.kill(self.canary())

    @precondition(lambda self: any(each.paused for each in self.fleet.engines))
    @rule(stops=st.booleans(), goal=st.sampled_from([None, A, B, C]))
    def something_happens_while_an_engine_is_paused(self, stops, goal) -> None:
        if stops:
            self.fleet.policy = replace(self.fleet.policy, paused=True)
        if goal:
            self.fleet.target = goal
        self.fleet.reconcile(dies_after=6)

    @rule(number=st.integers(0, 9), deleted=st.booleans())
    def engine_ends(self, number, deleted) -> None:
        if self.fleet.engines:
            engine = self.fleet.engines[number % len(self.fleet.engines)]
            self.fleet.delete(engine) if deleted else self.fleet.kill(engine)

    @rule(goal=st.sampled_from(TARGETS), midway=st.sampled_from([False, False, True]))
    def target_changes(self, goal, midway) -> None:
        rollout = self.fleet.rollout
        if midway or (rollout is not None and rollout.over):
            self.fleet.target = goal

    @rule(
        wanted=st.integers(0, 5),
        unavailable=st.integers(0, 2),
        in_flight=st.sampled_from(["Finish", "Continue"]),
        strategy=st.sampled_from(["InPlace", "Recreate"]),
        what=st.sampled_from(["wanted", "policy"]),
    )
    def spec_changes(self, wanted, unavailable, in_flight, strategy, what) -> None:
        if what == "wanted":
            self.fleet.wanted = wanted
        else:
            self.fleet.policy = replace(
                self.fleet.policy,
                max_unavailable=unavailable,
                in_flight=in_flight,
                strategy=strategy,
            )

    @rule(paused=st.sampled_from([False, False, True]))
    def rollout_is_paused(self, paused) -> None:
        self.fleet.policy = replace(self.fleet.policy, paused=paused)

    @rule(
        fault=st.sampled_from(
            ["router_stuck", "router_blind", "no_room", "disk_fails", "jobs_break", "endless"]
        ),
        lasts=st.sampled_from([False, False, True]),
    )
    def fault_comes_or_goes(self, fault, lasts) -> None:
        setattr(self.fleet, fault, lasts)

    @rule(load=st.sampled_from([1, 4, 15]), lag=st.sampled_from([0, 1, 4, 9]))
    def things_get_slow(self, load, lag) -> None:
        self.fleet.load_seconds, self.fleet.lag = load, lag

    @rule(goal=st.sampled_from(TARGETS), asks=st.booleans())
    def it_is_asked_for_again(self, goal, asks) -> None:
        self.fleet.retry = goal.version if asks else None

    @precondition(lambda self: bool(self.fleet.jobs))
    @rule()
    def jobs_are_deleted(self) -> None:
        self.fleet.jobs, self.fleet.results = {}, {}

    def loading(self) -> list[Engine]:
        return [each for each in self.fleet.engines if each.queue]

    def canary(self) -> Engine | None:
        canary = self.fleet.rollout.canary if self.fleet.rollout else None
        return self.fleet.engine(canary.uid) if canary else None

    def teardown(self) -> None:
        fleet = self.fleet
        if fleet.violated:
            return
        fleet.heal()
        fleet.wanted = max(fleet.wanted, 1)
        if fleet.rollout is None and fleet.target in UNLOADABLE:
            # What never served has nothing to go back to.
            fleet.target = A
        fleet.settle()
        SEEN.update(event.partition(":")[0] for event in fleet.events)
        made = fleet.reconcile()
        assert not made.actions
        assert not made.excluded
        assert not made.events
        assert made.surge == 0
        rollout = read(made.state)
        assert rollout is not None
        goal, served = fleet.target.version, rollout.serves.version
        if served == goal:
            return
        refused = {each["version"]: each["reason"] for each in fleet.status["refused"]}
        assert goal in refused, fleet.events
        if goal in GOOD:
            assert refused[goal] in UNLUCKY


def run(schedules: int) -> None:
    run_state_machine_as_test(
        Schedule,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="ASSAY_FAULT_SCHEDULES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_nothing_unweighed_is_served_and_it_settles_under_generated_faults() -> None:
    SEEN.clear()
    run(SCHEDULES)
    # The schedules are worth something only where they come to what they are made for.
    assert set(SEEN) >= {
        "CanaryLost",
        "CanaryServes",
        "GatePassed",
        "InspectionBroken",
        "LoadFailed",
        "Recreate",
        "ReplicasFail",
        "RolledBack",
        "RolloutCommitted",
        "RolloutDone",
        "RolloutPaused",
        "RolloutSuperseded",
    }


def fleet(to: Target, in_flight: Literal["Finish", "Continue"] = "Finish") -> Fleet:
    """One that serves A and shall serve another version."""
    made = Fleet(3, replace(POLICY, in_flight=in_flight))
    made.settle()
    made.target = to
    return made


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize(
    ("to", "in_flight"),
    [(B, "Finish"), (B, "Continue"), (WORSE, "Finish"), (SHAPES, "Finish")],
    ids=["good", "in flight", "worse", "new pods"],
)
def test_an_operator_may_die_at_the_same_place_of_every_second_pass(to, in_flight, after) -> None:
    """Whatever is written last, the next one goes on from it."""
    found = fleet(to, in_flight)
    for number in range(160):
        found.reconcile(dies_after=after if number % 2 else None)
        found.advance(1)
    found.settle()
    assert found.rollout is not None
    assert found.rollout.serves == (A if to == WORSE else to)


@pytest.mark.parametrize("goal", [A, C], ids=["back", "on"])
@pytest.mark.parametrize("second", range(0, 100, 5))
def test_another_target_and_a_dead_operator_at_any_second(second, goal) -> None:
    """An engine may be at a load that nobody knows of any more."""
    found = fleet(B)
    found.load_seconds = 12
    for _ in range(second):
        found.reconcile()
        found.advance(1)
    found.target = goal
    found.crash()
    found.settle()
    assert {each.version for each in found.engines} == {goal.version}
    assert not found.status["refused"]


@pytest.mark.parametrize("deleted", [False, True], ids=["engine ends", "pod goes"])
@pytest.mark.parametrize("second", range(0, 100, 12))
def test_any_engine_may_end_at_any_second(second, deleted) -> None:
    for number in range(3):
        found = fleet(B)
        for _ in range(second):
            found.reconcile()
            found.advance(1)
        engine = found.engines[number]
        found.delete(engine) if deleted else found.kill(engine)
        found.settle()
        served = {each.version for each in found.engines}
        if served != {B.version}:
            assert found.status["refused"][0]["reason"] in UNLUCKY
            assert served == {A.version}
