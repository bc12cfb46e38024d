"""The rollout, by example: enough replicas, one more, new pods, and a pause."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from assay_operator.inference.results import result
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_words import short
from assay_operator.inference.rollout_world import Target
from assay_operator.plan import Restart
from tests.unit.rollout_examples import (
    THREE,
    canary,
    live,
    loading,
    reasons,
    replica,
    rolling,
    serving,
    state,
    stepped,
    until,
    world,
)
from tests.unit.rollout_fleet import (
    AWAY,
    ELSEWHERE,
    SHAPES,
    WORSE,
    A,
    B,
    C,
    Fleet,
)

# -- enough replicas ---------------------------------------------------------------------------


def test_nothing_is_taken_while_others_are_missing() -> None:
    fleet = serving()
    fleet.target = B
    fleet.kill(fleet.engines[2])
    fleet.no_room = True
    fleet.delete(fleet.engines[2])
    for _ in range(40):
        made = fleet.reconcile()
        assert not made.excluded
        fleet.advance(1)
    assert "no replica can be spared" in fleet.told[-1]
    assert "3 are wanted and at most 1 may be out of service" in fleet.told[-1]
    assert "No node takes the pod." in fleet.told[-1]
    fleet.run("Failed")
    assert state(fleet).reason == "NotEnoughReplicas"
    assert "2 of 3 serve" in fleet.told[-1]


def test_a_replica_that_serves_nobody_is_the_first_canary() -> None:
    seen = world(THREE[0], THREE[1], replica(2, routable=False), target=B)
    made = stepped(stepped(None, world(*THREE)), seen)
    order = made.state["job"]["id"] if made.state else ""
    results = {order: result("pass", {}, "intact")}
    assert stepped(made, replace(seen, results=results)).excluded == {"uid-2"}


@pytest.mark.parametrize(("named", "taken"), [(True, set()), (False, {"uid-2"})])
def test_a_replica_that_a_router_is_still_to_read_of_is_no_canary(
    named: bool, taken: set[str]
) -> None:
    """It might read the older list late, and send requests while the weights change."""
    coming = replica(2, routable=False, listed=False, named=named)
    seen = world(THREE[0], THREE[1], coming, target=B)
    made = stepped(stepped(None, world(*THREE)), seen)
    order = made.state["job"]["id"] if made.state else ""
    results = {order: result("pass", {}, "intact")}
    assert stepped(made, replace(seen, results=results)).excluded == taken


def test_a_wave_is_as_wide_as_may_be_unavailable() -> None:
    fleet = rolling("Waving", wanted=4, max_unavailable=2)
    fleet.reconcile()
    assert len(state(fleet).records) == 2


def test_replicas_that_are_about_to_go_do_not_widen_it() -> None:
    """Three are left of which one is wanted: nobody knows which."""
    fleet = rolling("Waving")
    seen = replace(fleet.world(), wanted=1)
    made = step(fleet.status["rollout"], seen)
    assert len(made.excluded) == 1


def test_a_replica_that_may_be_listed_is_not_free_because_it_answered_nothing_once() -> None:
    fleet = rolling("Waving", wanted=4)
    seen = fleet.world()
    busy = [replace(each, generated=False, routable=False) for each in seen.replicas]
    made = step(fleet.status["rollout"], replace(seen, replicas=tuple(busy)))
    assert made.excluded <= state(fleet).excluded


def test_with_none_to_spare_there_is_one_replica_more_for_the_time_of_the_rollout() -> None:
    fleet = serving(1, max_unavailable=0)
    first = fleet.engines[0]
    fleet.target = B
    fleet.run("Gating")
    assert fleet.replicas == 2 and canary(fleet) is not first
    assert first.uid in fleet.known
    fleet.settle()
    assert fleet.replicas == 1
    assert [each.version for each in live(fleet)] == [B.version]


def test_the_replica_more_stays_until_all_are_in_the_router_or_that_takes_too_long() -> None:
    """Nobody knows which of the two a Deployment takes away."""
    fleet = serving(1, max_unavailable=0)
    fleet.target = B
    fleet.run("Waving")
    until(fleet, lambda: [each.version for each in live(fleet)] == [B.version, B.version])
    told, seen = fleet.status["rollout"], fleet.world()
    first, more = seen.replicas
    seen = replace(seen, replicas=(replace(first, routable=False), replace(more, routable=True)))
    assert step(told, seen).state["phase"] == "Waving"
    for seconds in range(0, 2000, 10):
        told = step(told, replace(seen, now=seen.now + timedelta(seconds=seconds))).state
    assert told["phase"] == "Done"


def test_the_replica_more_that_finds_no_room_is_told_of_and_given_up() -> None:
    fleet = serving(1, max_unavailable=0)
    fleet.no_room = True
    fleet.target = B
    fleet.run("Canary")
    fleet.advance(2)
    fleet.reconcile()
    assert "since spec.rollout.maxUnavailable is 0" in fleet.told[-1]
    assert "pod/pod-2: No node takes the pod." in fleet.told[-1]
    fleet.run("Failed")
    assert state(fleet).reason == "NoRoomForCanary"
    assert "Make room for one replica more, or set" in state(fleet).detail
    assert fleet.status["refused"] == []


def test_without_replicas_it_waits_for_the_first() -> None:
    fleet = serving()
    fleet.target, fleet.wanted = B, 0
    for _ in range(100):
        fleet.reconcile()
        fleet.advance(10)
    assert state(fleet).phase == "Canary"
    assert "no replica is wanted" in fleet.told[-1]
    assert fleet.pointer == A
    fleet.wanted = 2
    fleet.settle()
    assert "Recreate" not in reasons(fleet)
    assert {each.version for each in fleet.engines} == {B.version}


def test_without_replicas_no_new_pod_shows_that_it_can_start() -> None:
    fleet = serving(gate=False, strategy="Recreate")
    fleet.target, fleet.wanted = AWAY, 0
    fleet.run("Recreating")
    for _ in range(100):
        fleet.reconcile()
        fleet.advance(10)
    assert state(fleet).phase == "Recreating"
    assert fleet.told[-1].startswith("Recreating: no replica is wanted, so ")
    fleet.wanted = 2
    fleet.settle()
    assert fleet.status["refused"][0]["reason"] == "ReplicasFail"
    assert {each.version for each in live(fleet)} == {A.version}


def test_a_volume_that_the_first_replica_does_not_mount_is_seen_when_it_comes() -> None:
    fleet = serving()
    fleet.target, fleet.wanted = ELSEWHERE, 0
    fleet.run("Canary")
    fleet.wanted = 2
    fleet.settle()
    assert "Recreate" in reasons(fleet) and fleet.status["refused"] == []
    assert {each.version for each in live(fleet)} == {ELSEWHERE.version}


PHASES = ["Inspecting", "Canary", "Gating", "Holding", "Waving"]


@pytest.mark.parametrize("phase", PHASES)
def test_no_replica_for_a_while_in_any_phase(phase: str) -> None:
    fleet = rolling(phase)
    fleet.wanted = 0
    for _ in range(40):
        fleet.reconcile()
        fleet.advance(5)
    assert not live(fleet)
    fleet.wanted = 2
    fleet.settle()
    assert {each.version for each in fleet.engines} == {B.version}
    assert not fleet.status["refused"]


@pytest.mark.parametrize("phase", PHASES)
def test_all_pods_replaced_at_once_in_any_phase(phase: str) -> None:
    fleet = rolling(phase)
    for each in fleet.engines:
        fleet.delete(each)
    fleet.settle()
    assert {each.version for each in live(fleet)} == {B.version}
    assert not fleet.status["refused"]


def test_fewer_replicas_in_mid_wave_are_no_obstacle() -> None:
    fleet = rolling("Waving", wanted=4)
    fleet.wanted = 1
    fleet.settle()
    assert state(fleet).phase == "Done" and len(live(fleet)) == 1


def test_pods_that_come_after_the_commit_come_up_with_the_new_version() -> None:
    fleet = rolling("Waving")
    fleet.wanted = 5
    fleet.settle()
    assert {each.version for each in fleet.engines} == {B.version}
    assert reasons(fleet)[-1] == "RolloutDone"


def test_a_replica_that_stays_away_does_not_keep_a_rollout_from_being_done() -> None:
    fleet = rolling("Waving")
    until(fleet, lambda: state(fleet).updated == 2)
    fleet.no_room = True
    fleet.delete(fleet.engines[2])
    fleet.run("Done", 2000)
    assert "2 of 3 replicas serve it, the others are missing. pod/pod-4: No node" in fleet.told[-1]


def test_when_replicas_cannot_start_with_the_new_version_all_go_back() -> None:
    fleet = rolling("Waving")
    fleet.delete(fleet.engines[2])
    for _ in range(400):
        fleet.reconcile()
        for each in fleet.engines:
            if each.boot == B and each.version is not None and each.uid not in "123":
                fleet.kill(each)
        fleet.advance(5)
        if state(fleet).phase == "Failed":
            break
    assert state(fleet).reason == "ReplicasFail"
    assert fleet.status["history"][0]["result"] == "RolledBack"
    fleet.settle()
    assert {each.version for each in fleet.engines} == {A.version}


# -- new pods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", [SHAPES, ELSEWHERE])
def test_what_running_engines_cannot_load_comes_with_new_pods(candidate: Target) -> None:
    fleet = serving()
    old = {each.uid for each in fleet.engines}
    fleet.target = candidate
    fleet.run("Gating")
    fleet.advance(1)
    made = fleet.reconcile()
    assert made.jobs[0].uid is None and made.jobs[0].compare
    assert made.template == A.version and not made.excluded
    assert "an engine beside the gate serves" in fleet.told[-1]
    fleet.run("Recreating")
    fleet.advance(1)
    made = fleet.reconcile()
    assert made.template == candidate.version and not made.halted
    assert not made.actions
    fleet.settle()
    assert reasons(fleet)[-1] == "RolloutDone"
    assert not old & {each.uid for each in fleet.engines}


def test_recreate_can_be_asked_for() -> None:
    fleet = rolling("Gating", strategy="Recreate")
    told = next(event for event in fleet.events if event.startswith("Recreate"))
    assert "spec.rollout.strategy is Recreate" in told


def test_a_candidate_for_new_pods_that_fails_touches_none() -> None:
    fleet = serving(strategy="Recreate")
    old = {each.uid for each in fleet.engines}
    fleet.target = WORSE
    fleet.run("Failed")
    fleet.settle()
    assert {each.uid for each in fleet.engines} == old
    assert fleet.status["history"][0]["result"] == "Refused"


def test_another_target_before_a_new_pod_serves_begins_from_what_was_served() -> None:
    """Nobody knows whether any pod can start with the new weights: here none can."""
    fleet = rolling("Recreating", AWAY, gate=False)
    until(fleet, lambda: any(each.restarts for each in fleet.engines))
    fleet.target = C
    fleet.run("Inspecting")
    told = f"RolloutSuperseded: solver-3 ({short(AWAY.version)}) is given up: "
    assert any(event.startswith(told) for event in fleet.events)
    assert state(fleet).origin == A
    fleet.settle()
    assert {each.version for each in live(fleet)} == {C.version}
    assert fleet.status["refused"] == []


def test_another_target_once_a_new_pod_serves_begins_from_what_that_serves() -> None:
    fleet = rolling("Recreating", SHAPES)
    until(fleet, lambda: state(fleet).updated == 1)
    fleet.target = C
    fleet.reconcile()
    assert state(fleet).phase == "Inspecting" and state(fleet).origin == SHAPES
    fleet.settle()
    assert {each.version for each in live(fleet)} == {C.version}


def test_a_new_pod_that_read_an_old_pointer_is_started_anew() -> None:
    fleet = rolling("Recreating", SHAPES)
    until(fleet, lambda: any(each.template == SHAPES.version for each in fleet.engines))
    late = next(each for each in fleet.engines if each.template == SHAPES.version)
    until(fleet, lambda: late.version is not None)
    late.version = A.version
    made = fleet.reconcile()
    assert Restart(late.pod) in made.actions
    fleet.settle()
    assert state(fleet).phase == "Done"


def test_new_pods_that_do_not_come_up_give_way_to_the_old_template() -> None:
    fleet = rolling("Recreating", SHAPES)
    fleet.no_room = True
    fleet.run("Failed", 3000)
    assert state(fleet).reason == "NewPodsMissing"
    fleet.no_room = False
    made = fleet.reconcile()
    assert made.template == A.version and made.pointer.version == A.version
    assert fleet.status["refused"] == []


def test_a_template_that_has_the_version_already_gets_another_mark() -> None:
    """A to B in place leaves the template with A; back to A by new pods has to roll it."""
    fleet = rolling("Done", B)
    fleet.settle()
    fleet.policy = replace(fleet.policy, strategy="Recreate")
    old = {each.uid for each in fleet.engines}
    fleet.target = A
    fleet.run("Recreating")
    fleet.advance(1)
    made = fleet.reconcile()
    assert made.template == f"{A.version}-{state(fleet).id}"
    assert not made.actions
    fleet.settle()
    assert {each.version for each in fleet.engines} == {A.version}
    assert not old & {each.uid for each in fleet.engines}


def test_where_no_engine_answers_what_is_wanted_comes_with_new_pods() -> None:
    """What is served lost its files: only what is wanted can help."""
    fleet = serving(2)
    for each in fleet.engines:
        fleet.kill(each)
    fleet.target = B
    for _ in range(400):
        for each in fleet.engines:
            if each.version == A.version:
                fleet.kill(each)
        fleet.reconcile()
        fleet.advance(2)
        if state(fleet).phase == "Done":
            break
    assert "Recreate" in reasons(fleet)
    assert {each.version for each in fleet.engines if each.gone is None} == {B.version}


# -- paused ------------------------------------------------------------------------------------


def pause(fleet: Fleet, paused: bool = True) -> None:
    fleet.policy = replace(fleet.policy, paused=paused)


def test_while_it_is_paused_no_rollout_begins() -> None:
    fleet = serving(paused=True)
    fleet.target = B
    fleet.reconcile()
    assert state(fleet).phase == "Done"
    assert "is wanted, and waits: spec.rollout.paused is true." in fleet.told[-1]


@pytest.mark.parametrize("phase", PHASES)
def test_while_it_is_paused_the_phase_stays_and_no_deadline_runs(phase: str) -> None:
    fleet = rolling(phase)
    pause(fleet)
    for _ in range(100):
        made = fleet.reconcile()
        fleet.advance(30)
        assert state(fleet).phase == phase
    assert not made.actions
    assert fleet.told[-1].startswith(f"Paused: {phase}")
    pause(fleet, False)
    fleet.settle()
    assert reasons(fleet)[-1] == "RolloutDone"
    assert state(fleet).serves.version == B.version


def test_what_was_awaited_when_it_was_paused_is_awaited_afterwards() -> None:
    fleet = rolling("Gating")
    pause(fleet)
    fleet.reconcile()
    fleet.now += 100_000
    pause(fleet, False)
    fleet.results.clear()
    fleet.reconcile()
    assert state(fleet).phase == "Gating"


def test_a_replica_to_which_nothing_was_done_is_put_back_while_it_is_paused() -> None:
    fleet = rolling("Canary")
    pause(fleet)
    fleet.reconcile()
    made = fleet.reconcile()
    assert not made.excluded and state(fleet).canary is None


def test_a_load_that_was_ordered_is_finished_while_it_is_paused() -> None:
    fleet = rolling("Canary")
    until(fleet, lambda: bool(loading(fleet)))
    pause(fleet)
    until(fleet, lambda: state(fleet).records[0].stage == "Loaded")
    assert state(fleet).phase == "Canary"


def test_a_pause_leaves_old_and_new_pods_as_they_are() -> None:
    fleet = rolling("Recreating", SHAPES)
    until(fleet, lambda: state(fleet).updated == 1)
    there = {each.uid for each in live(fleet)}
    pause(fleet)
    for _ in range(60):
        made = fleet.reconcile()
        fleet.advance(10)
        assert made.halted and not made.actions
    assert there <= {each.uid for each in live(fleet)}
    served = {each.version for each in fleet.engines if each.uid in fleet.known}
    assert served == {A.version, SHAPES.version} == made.admitted
    assert fleet.told[-1] == (
        f"Paused: Recreating: {state(fleet).updated} of 3 replicas serve {short(SHAPES.version)}. "
        "Set spec.rollout.paused to false to go on."
    )
    pause(fleet, False)
    assert fleet.reconcile().halted, "it goes on when that is written"
    fleet.settle()
    assert {each.version for each in live(fleet)} == {SHAPES.version}


def test_pausing_lets_no_engine_stand_still() -> None:
    fleet = rolling("Waving", in_flight="Continue")
    fleet.endless = True
    fleet.advance(3)
    until(fleet, lambda: any(each.paused for each in fleet.engines))
    pause(fleet)
    until(fleet, lambda: not any(each.paused for each in fleet.engines))
