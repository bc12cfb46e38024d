"""The rollout under generated schedules of faults: what must never be is not, and it settles.

Each schedule lets a fleet, its operator and its users do and suffer things in any order: engines and
pods end at any moment, the operator dies between any two of its writes, targets, sizes and policies
change, routers go blind, disks fail. `Fleet` checks the invariants at every second and every step;
at the end the faults are gone and everything has to come to rest.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

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
from tests.unit.rollout_fleet import A, B, C, GOOD, POLICY, TARGETS, Engine, Fleet

SCHEDULES = int(os.environ.get("ASSAY_FAULT_SCHEDULES", "200"))
"""More than the default are drawn anew in each run."""
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
        goal=st.sampled_from(TARGETS[1:]),
        serves=st.booleans(),
        pace=st.sampled_from([1, 3, 6]),
    )
    def begin(self, wanted, unavailable, gate, in_flight, goal, serves, pace) -> None:
        policy = replace(
            POLICY, max_unavailable=unavailable, gate=gate or unavailable == 1, in_flight=in_flight
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
        what=st.sampled_from(["wanted", "policy"]),
    )
    def spec_changes(self, wanted, unavailable, in_flight, what) -> None:
        if what == "wanted":
            self.fleet.wanted = wanted
        else:
            self.fleet.policy = replace(
                self.fleet.policy, max_unavailable=unavailable, in_flight=in_flight
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
        fleet.heal()
        fleet.wanted = max(fleet.wanted, 1)
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


def test_nothing_unweighed_is_served_and_it_settles_under_generated_faults() -> None:
    run_state_machine_as_test(
        Schedule,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=60,
            deadline=None,
            derandomize="ASSAY_FAULT_SCHEDULES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


def test_the_schedules_reach_what_they_are_made_for() -> None:
    """Says where the schedules above have been, so that none of this is empty."""
    if not SEEN:
        Schedule_ = Schedule
        run_state_machine_as_test(Schedule_, settings=settings(max_examples=20, deadline=None))
    assert A
    print(SEEN)
