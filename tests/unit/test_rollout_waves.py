"""The rollout, by example: how it begins, spreads, ends, goes back, and what is told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from assay_operator.inference.results import result
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_state import read
from assay_operator.inference.rollout_words import short
from assay_operator.inference.rollout_world import Policy, Target
from assay_operator.plan import Load, Pause, Restart
from tests.unit.rollout_examples import (
    THREE,
    canary,
    loading,
    loads,
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
    BEGIN,
    BY_VERSION,
    WORSE,
    A,
    B,
    C,
)

# -- the first start ---------------------------------------------------------------------------


def test_at_first_the_pointer_is_simply_what_is_wanted() -> None:
    made = step(None, world(replica(0, version=None, routable=False), served=None))
    assert made.state is None and made.served is None
    assert made.pointer == A and made.template == A.version
    assert made.admitted == {A.version}
    assert not made.actions and not made.jobs


def test_what_never_served_is_replaced_without_a_rollout() -> None:
    """The first source was a mistake: pods that came up with it start anew."""
    came_up = replica(0, version=A.version, generated=False, routable=False)
    made = step(None, world(came_up, served=None, target=B, pointer=A))
    assert made.pointer == B
    assert made.actions == (Restart("engine-0"),)


def test_what_serves_first_is_what_later_rollouts_begin_from() -> None:
    made = step(None, world(*THREE, served=None))
    assert made.state is not None and made.state["phase"] == "Done"
    assert made.served == A
    assert [(each["version"], each["reason"]) for each in made.history] == [
        (A.version, "FirstStart")
    ]


def test_an_engine_that_came_up_counts_although_no_status_says_so() -> None:
    """What is wanted changed after the first engine was in the router and before that was told."""
    made = step(None, world(*THREE, served=None, target=B, pointer=A))
    assert made.served == A and made.pointer == A
    assert made.state is not None and made.state["phase"] == "Inspecting"


def test_a_state_that_cannot_be_read_is_none() -> None:
    made = step({"phase": "Sideways"}, world(*THREE))
    assert made.state is not None and made.state["phase"] == "Done"
    assert made.pointer == A and made.admitted == {A.version}


# -- all goes well -----------------------------------------------------------------------------


def test_a_rollout_from_beginning_to_end() -> None:
    fleet = serving()
    fleet.target = B
    fleet.settle()
    assert reasons(fleet) == [
        "RolloutStarted",
        "InspectionPassed",
        "CanaryLoaded",
        "GatePassed",
        "CanaryServes",
        "RolloutCommitted",
        "RolloutDone",
    ]
    assert {each.version for each in fleet.engines} == {B.version}
    assert all(each.restarts == 0 for each in fleet.engines)
    entry = fleet.status["history"][0]
    assert (entry["version"], entry["from"], entry["result"]) == (B.version, A.version, "Served")
    assert entry["seconds"] > 0


def test_one_can_read_what_goes_on() -> None:
    fleet = serving()
    fleet.target = B
    fleet.settle()
    a, b = short(A.version), short(B.version)
    assert fleet.told == [
        f"Inspecting: the files of solver-b ({b}) are checked and compared with those of "
        f"solver-a ({a}). No engine is touched.",
        "Canary: pod/pod-1 is out of the router and finishes its requests.",
        f"Canary: pod/pod-1 loads {b}.",
        f"Gating: canary pod/pod-1 serves {b} and is asked the suite beside {a}.",
        f"Holding: canary pod/pod-1 has {b} and comes back into the router.",
        f"Holding: canary pod/pod-1 serves {b} for 10 s before the others follow.",
        f"Waving: 1 of 3 replicas serve {b}. pod/pod-2 is out of the router and finishes its "
        "requests.",
        f"Waving: 1 of 3 replicas serve {b}. pod/pod-2 loads {b}.",
        f"Waving: 1 of 3 replicas serve {b}.",
        f"Waving: 2 of 3 replicas serve {b}. pod/pod-3 is out of the router and finishes its "
        "requests.",
        f"Waving: 2 of 3 replicas serve {b}. pod/pod-3 loads {b}.",
        f"Waving: 2 of 3 replicas serve {b}.",
        f"Done: solver-b ({b}) is served.",
    ]


@pytest.mark.parametrize(
    ("phase", "versions", "one_more", "pointer"),
    [
        ("Inspecting", {A}, False, A),
        ("Canary", {A}, False, A),
        ("Gating", {A}, False, A),
        ("Holding", {A}, True, A),
        ("Waving", {A, B}, False, B),
        ("Done", {B}, False, B),
    ],
)
def test_who_may_serve_what(
    phase: str, versions: set[Target], one_more: bool, pointer: Target
) -> None:
    fleet = rolling(phase)
    if phase == "Done":
        fleet.advance(1)
    made = fleet.reconcile()
    assert made.admitted == {each.version for each in versions}
    found = state(fleet).canary
    assert made.canary == ((found.uid, B.version) if one_more and found else None)
    assert made.pointer == pointer


def test_in_the_hold_only_the_canary_may_serve_the_new_version() -> None:
    fleet = rolling("Holding")
    made = fleet.reconcile()
    others = [each for each in fleet.engines if each is not canary(fleet)]
    assert made.admits(canary(fleet).uid, B.version)
    assert not any(made.admits(each.uid, B.version) for each in others)


def test_what_opens_a_way_waits_until_it_is_written() -> None:
    """Whoever dies before that leaves nothing that the next one would not do, too."""
    fleet = rolling("Gating")
    fleet.advance(1)
    (order,) = fleet.reconcile().jobs
    fleet.results[order.id] = result("pass", {}, "passed")
    fleet.passed.add(B.version)
    made = step(fleet.status["rollout"], fleet.world())
    assert made.state is not None and made.state["phase"] == "Holding"
    assert made.canary is None and canary(fleet).uid in made.excluded
    assert made.next_look < 1
    fleet = rolling("Holding")
    until(fleet, lambda: state(fleet).canary.held is not None)  # type: ignore[union-attr]
    late = replace(fleet.world(), now=BEGIN + timedelta(seconds=fleet.now + 20))
    made = step(fleet.status["rollout"], late)
    assert made.state is not None and made.state["phase"] == "Waving"
    assert made.pointer == A and made.admitted == {A.version} and made.served == B
    assert made.canary == (canary(fleet).uid, B.version)


def test_what_closes_one_does_not() -> None:
    fleet = rolling("Holding")
    until(fleet, lambda: state(fleet).canary.held is not None)  # type: ignore[union-attr]
    held = canary(fleet)
    fleet.kill(held)
    made = step(fleet.status["rollout"], fleet.world())
    assert made.state is not None and made.state["phase"] == "Returning"
    assert not made.admits(held.uid, B.version)
    # It is silent: whoever keeps silent members is told that this is none any more.
    assert held.version is None and held.uid in made.excluded


def test_the_same_weights_at_another_place_move_the_pointer_only() -> None:
    moved = replace(A, path="/elsewhere/a")
    first = stepped(None, world(*THREE))
    second = stepped(first, world(*THREE, target=moved))
    assert stepped(second, world(*THREE, target=moved)).pointer == moved
    assert not second.actions and not second.jobs


def test_without_a_gate_the_canary_is_proved_and_held() -> None:
    fleet = serving(gate=False)
    fleet.target = B
    fleet.settle()
    assert "GatePassed" not in reasons(fleet)
    assert {each.version for each in fleet.engines} == {B.version}


def test_what_passed_here_before_is_not_gated_when_it_is_wanted_back() -> None:
    fleet = rolling("Done")
    fleet.events.clear()
    fleet.target = A
    fleet.settle()
    assert "GatePassed" not in reasons(fleet)
    assert reasons(fleet)[-1] == "RolloutDone"
    assert state(fleet).serves == A


# -- requests under way ------------------------------------------------------------------------


def test_with_continue_requests_pause_and_go_on_with_the_new_weights() -> None:
    fleet = rolling("Waving", in_flight="Continue")
    fleet.endless = True
    fleet.advance(3)
    done: list[Any] = []
    for _ in range(60):
        done += [each for each in fleet.reconcile().actions if each not in done]
        fleet.advance(1)
        if state(fleet).phase == "Done":
            break
    pods = [type(each).__name__ for each in done if each.pod == "pod-2"]
    assert pods == ["Pause", "Load", "Resume"]
    assert not any(load.abort for load in done if isinstance(load, Load))
    asked = [each for each in fleet.engines if each.requests]
    assert asked and not any(each.paused for each in fleet.engines)


def test_the_canary_always_finishes_its_requests() -> None:
    fleet = rolling("Canary", in_flight="Continue")
    fleet.endless = True
    fleet.advance(3)
    for _ in range(30):
        made = fleet.reconcile()
        assert not any(isinstance(each, Pause) for each in made.actions)
        fleet.advance(1)


def test_whoever_comes_next_resumes_an_engine_that_an_operator_left_paused() -> None:
    fleet = rolling("Waving", in_flight="Continue")
    fleet.endless = True
    fleet.advance(3)
    until(fleet, lambda: any(each.paused for each in fleet.engines))
    fleet.crash()
    fleet.policy = replace(fleet.policy, in_flight="Finish")
    fleet.heal()
    fleet.settle()
    assert not any(each.paused for each in fleet.engines)


# -- another target on the way -----------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Inspecting", "Canary", "Gating", "Holding"])
@pytest.mark.parametrize("goal", [A, C])
def test_before_the_commit_another_target_means_back_and_then_there(
    phase: str, goal: Target
) -> None:
    fleet = rolling(phase)
    fleet.target = goal
    fleet.settle()
    assert "RolloutSuperseded" in reasons(fleet)
    assert {each.version for each in fleet.engines} == {goal.version}
    assert fleet.status["refused"] == []


def test_after_the_commit_it_begins_from_what_is_served_now() -> None:
    fleet = rolling("Waving")
    fleet.target = C
    fleet.reconcile()
    assert state(fleet).origin.version == B.version
    assert state(fleet).older == (A.version,)
    fleet.settle()
    results = [(each["version"], each["reason"]) for each in fleet.status["history"][:2]]
    assert results == [(C.version, "RolloutDone"), (B.version, "Superseded")]


def test_the_new_candidate_is_compared_with_one_version_not_with_a_mixture() -> None:
    fleet = rolling("Waving")
    fleet.target = C
    fleet.run("Canary")
    assert {each.version for each in fleet.engines} == {B.version}


def test_after_the_commit_the_old_version_is_a_target_like_any_other() -> None:
    fleet = rolling("Waving")
    fleet.target = A
    fleet.settle()
    assert {each.version for each in fleet.engines} == {A.version}
    assert state(fleet).phase == "Done"


def test_a_load_that_a_dead_operator_ordered_is_undone_and_not_forgotten() -> None:
    """The engine reports the old version still when the target goes back to it. It would change
    its weights a moment later, among the users' requests."""
    fleet = rolling("Canary")
    fleet.load_seconds = 30
    until(fleet, lambda: bool(loading(fleet)))
    fleet.reconcile(dies_after=0)
    fleet.target = A
    engine = canary(fleet)
    made = fleet.reconcile()
    assert engine.version == A.version and engine.uid in made.excluded
    assert loads(made)[0].version == A.version
    fleet.advance(5)
    fleet.crash()
    made = fleet.reconcile()
    assert engine.version == A.version and engine.uid in made.excluded
    fleet.run("Superseded")
    assert engine.version == A.version and not engine.queue
    assert "B" not in fleet.told[-1]


# -- the way back ------------------------------------------------------------------------------


def test_when_what_was_served_is_gone_the_pod_starts_anew_and_that_is_told() -> None:
    fleet = rolling("Gating", WORSE)
    fleet.disk_fails = True
    back = canary(fleet)
    for _ in range(300):
        fleet.reconcile()
        fleet.advance(1)
        if state(fleet).phase == "Failed":
            break
    assert back.gone is not None
    told = next(event for event in fleet.events if "ReplicaQuarantined" in event)
    assert f"{back.pod} cannot load {short(A.version)}: no such file" in told
    assert state(fleet).reason == "GateFailed"
    assert back.uid not in fleet.known


def test_after_the_commit_replicas_go_back_one_by_one_and_serve_meanwhile() -> None:
    fleet = rolling("Waving")
    until(fleet, lambda: sum(each.version == B.version for each in fleet.engines) == 2)
    rollout = state(fleet)
    failing = replica(9, version=None, routable=False, generated=False, restarts=4)
    seen = fleet.world()
    late = replace(
        seen, replicas=(*seen.replicas, failing), wanted=4, now=seen.now + timedelta(seconds=400)
    )
    made = step(fleet.status["rollout"], late)
    assert made.state is not None and made.state["phase"] == "Returning"
    assert made.admitted == {A.version, B.version}
    assert made.served == rollout.origin
    assert len(made.excluded) <= 2


# -- what is remembered ------------------------------------------------------------------------


def test_what_was_refused_is_tried_again_once_when_asked_for_by_hand() -> None:
    fleet = rolling("Failed", WORSE)
    fleet.settle()
    fleet.events.clear()
    fleet.retry = WORSE.version
    fleet.settle()
    assert reasons(fleet).count("RolloutStarted") == 1
    fleet.retry = None
    fleet.reconcile()
    fleet.retry = WORSE.version[:20]
    fleet.reconcile()
    assert reasons(fleet).count("RolloutStarted") == 2


def test_what_is_asked_for_again_and_comes_to_no_verdict_is_tried_until_it_does() -> None:
    fleet = rolling("Failed", WORSE)
    fleet.settle()
    fleet.retry, fleet.jobs_break = WORSE.version, True
    fleet.run("Inspecting")
    fleet.run("Failed")
    assert "It is tried again at" in fleet.told[-1]
    fleet.jobs_break = False
    fleet.settle()
    assert reasons(fleet).count("GateFailed") == 2


def test_an_annotation_from_before_does_not_try_twice() -> None:
    fleet = serving()
    fleet.retry = WORSE.version
    fleet.target = WORSE
    fleet.settle()
    assert reasons(fleet).count("RolloutStarted") == 1


def test_what_was_refused_is_not_tried_again_after_others() -> None:
    fleet = rolling("Failed", WORSE)
    fleet.target = B
    fleet.settle()
    fleet.target = WORSE
    fleet.settle()
    assert reasons(fleet).count("GateFailed") == 1
    assert f"solver-d ({short(WORSE.version)}) is wanted, and was refused at" in fleet.told[-1]


def test_what_is_served_in_the_end_is_refused_no_more() -> None:
    fleet = serving()
    refused = {"version": B.version, "reason": "GateUndecided", "time": "2026-11-24T11:00:00Z"}
    fleet.status["refused"] = [refused]
    fleet.target = B
    fleet.reconcile()
    assert state(fleet).phase == "Done"
    fleet.retry = B.version
    fleet.settle()
    assert state(fleet).serves.version == B.version
    assert fleet.status["refused"] == []


def test_only_so_much_is_remembered() -> None:
    fleet = rolling("Failed", WORSE)
    entry = fleet.status["history"][0]
    many = tuple({**entry, "version": str(number)} for number in range(30))
    refused = tuple({"version": str(number)} for number in range(30))
    seen = replace(fleet.world(), history=many, refused=refused)
    made = step(fleet.status["rollout"], seen)
    assert len(made.history) == 10 and len(made.refused) == 20
    assert made.history[0]["version"] == "0"


def test_a_message_does_not_change_with_the_clock() -> None:
    fleet = rolling("Gating")
    fleet.reconcile()
    told = len(fleet.told)
    for _ in range(10):
        fleet.reconcile()
        fleet.now += 1
    assert len(fleet.told) == told


def test_the_state_is_plain_json_with_names_as_kubernetes_writes_them() -> None:
    kept = rolling("Holding").status["rollout"]
    assert json.loads(json.dumps(kept)) == kept
    assert {"id", "phase", "strategy", "from", "to", "startedAt", "message", "canary"} <= set(kept)
    assert kept["from"]["version"] == A.version and kept["to"]["version"] == B.version
    assert read(kept) is not None


def test_nothing_is_due_soon_when_nothing_goes_on() -> None:
    fleet = serving()
    assert fleet.reconcile().next_look == 30
    fleet.target = B
    assert fleet.reconcile().next_look < 1


def test_versions_are_told_short() -> None:
    assert short("sha256:" + "ab" * 32) == "sha256:abababababab"
    assert short("qwen3-8b-1a2b3c4d") == "qwen3-8b-1a2b3c4d"
    assert short(None) == "no version"
    assert BY_VERSION[A.version] is A
    assert Policy().drain_seconds == 180
