"""The rollout, by example: what happens when, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from assay_operator.inference.observation import LoadState
from assay_operator.inference.results import result
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_replicas import tend
from assay_operator.inference.rollout_state import Rollout, read
from assay_operator.inference.rollout_words import short
from assay_operator.inference.rollout_world import Diary, Policy, Replica, Step, Target, World
from assay_operator.plan import Load, Pause, Restart, Resume
from tests.unit.rollout_fleet import (
    AWAY,
    BEGIN,
    BROKEN,
    BY_VERSION,
    ELSEWHERE,
    POLICY,
    SHAPES,
    UNDECIDED,
    UNSAFE,
    WORSE,
    A,
    B,
    C,
    Engine,
    Fleet,
)

Json = dict[str, Any]


def serving(wanted: int = 3, **policy: Any) -> Fleet:
    """A fleet that serves A."""
    fleet = Fleet(wanted, replace(POLICY, **policy))
    fleet.settle()
    fleet.events.clear()
    fleet.told.clear()
    return fleet


def rolling(phase: str, to: Target = B, wanted: int = 3, **policy: Any) -> Fleet:
    """A fleet in a phase of the way from A to another target."""
    fleet = serving(wanted, **policy)
    fleet.target = to
    fleet.run(phase)
    return fleet


def reasons(fleet: Fleet) -> list[str]:
    return [event.partition(":")[0] for event in fleet.events]


def state(fleet: Fleet) -> Rollout:
    assert fleet.rollout is not None
    return fleet.rollout


def canary(fleet: Fleet) -> Engine:
    found = state(fleet).canary
    engine = fleet.engine(found.uid) if found else None
    assert engine is not None
    return engine


def until(fleet: Fleet, holds: Callable[[], bool], most: int = 600) -> None:
    """Passes, second by second, until something holds."""
    for _ in range(most):
        if holds():
            return
        fleet.reconcile()
        fleet.advance(1)
    raise AssertionError(f"it never holds: {fleet.status.get('rollout')}")


def live(fleet: Fleet) -> list[Engine]:
    return [each for each in fleet.engines if each.gone is None]


def loading(fleet: Fleet) -> list[Engine]:
    return [each for each in fleet.engines if each.queue]


def replica(number: int, **more: Any) -> Replica:
    """A replica that serves A to everybody."""
    seen: Json = {
        "version": A.version,
        "generated": True,
        "listed": True,
        "named": True,
        "routable": True,
        "requests": 0,
        "paused": False,
        "volumes": frozenset({"pvc/models"}),
        "template": A.version,
    }
    return Replica(f"uid-{number}", f"engine-{number}", **{**seen, **more})


THREE = (replica(0), replica(1), replica(2))


def world(*replicas: Replica, seconds: float = 0, **more: Any) -> World:
    known: Json = {"target": A, "served": A, "wanted": len(replicas), "policy": POLICY}
    now = BEGIN + timedelta(seconds=seconds)
    return World(now=now, replicas=replicas, **{**known, **more})


def stepped(before: Step | None, seen: World) -> Step:
    """The step after `before`, whose state was written meanwhile."""
    return step(before.state if before else None, seen)


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


# -- a replica changes its weights -------------------------------------------------------------


def out(seconds: float, **more: Any) -> Step:
    """A canary that has been out of the list for so long, and is seen as `more` says."""
    seen = world(*THREE, target=B)
    made = stepped(stepped(None, world(*THREE)), seen)
    order = made.state["job"]["id"] if made.state else ""
    results = {order: result("pass", {"intact": True, "inPlace": True}, "intact")}
    made = stepped(made, replace(seen, results=results))
    assert made.state is not None and made.state["phase"] == "Canary"
    assert made.excluded == {"uid-0"}
    first = replica(0, routable=False, **more)
    return stepped(made, world(first, *THREE[1:], target=B, seconds=seconds))


def loads(made: Step) -> list[Load]:
    return [action for action in made.actions if isinstance(action, Load)]


def test_a_canary_out_of_the_list_and_idle_loads() -> None:
    (load,) = loads(out(6, listed=False))
    assert (load.pod, load.path, load.version) == ("engine-0", B.path, B.version)
    assert load.flush and load.token and not load.abort


@pytest.mark.parametrize(
    "why",
    [
        {"listed": True},
        {"listed": None},
        {"listed": False, "requests": 1},
        {"listed": False, "requests": None},
    ],
)
def test_a_canary_that_may_have_requests_does_not_load(why: Json) -> None:
    assert not loads(out(6, **why))


def test_a_router_that_reads_its_list_late_gets_the_time() -> None:
    assert not loads(out(2, listed=False))


def test_requests_that_do_not_end_are_ended_by_the_load() -> None:
    made = out(POLICY.drain_seconds, listed=False, requests=1)
    (load,) = loads(made)
    assert load.abort
    (event,) = made.events
    assert (event.reason, event.type) == ("DrainTimedOut", "Warning")
    assert "not idle within 60 s" in event.message


def test_no_router_that_may_still_know_the_canary_gets_weights_that_did_not_pass() -> None:
    made = out(POLICY.drain_seconds, listed=None)
    assert not loads(made)
    assert made.state is not None and made.state["reason"] == "NotDrained"
    assert not made.refused


def test_not_even_while_its_own_phase_does_not_look() -> None:
    made = out(6, listed=None)
    rollout = read(made.state)
    seen = world(replica(0, listed=None), *THREE[1:], target=B, seconds=1000)
    assert rollout is not None
    assert tend(rollout, seen, Diary()) == rollout


def test_a_load_counts_when_its_end_was_seen_and_the_engine_shows_it() -> None:
    fleet = rolling("Canary")
    until(fleet, lambda: bool(loading(fleet)))
    until(fleet, lambda: canary(fleet).version == B.version)
    fleet.reconcile()
    assert state(fleet).phase == "Gating"


def test_a_load_whose_operator_died_counts_when_the_engine_shows_it() -> None:
    fleet = rolling("Canary")
    until(fleet, lambda: bool(loading(fleet)))
    fleet.advance(fleet.load_seconds)
    assert canary(fleet).version == B.version
    fleet.crash()
    assert not loads(fleet.reconcile())
    assert state(fleet).phase == "Gating"


def test_a_load_that_nobody_knows_of_is_ordered_again() -> None:
    fleet = rolling("Canary")
    until(fleet, lambda: bool(loading(fleet)))
    fleet.crash()
    (load,) = loads(fleet.reconcile())
    assert load.version == B.version
    fleet.settle()
    assert state(fleet).serves == B


def test_an_operator_that_never_lives_to_see_a_load_blames_nobody() -> None:
    fleet = rolling("Canary")
    fleet.load_seconds = 1000
    while state(fleet).phase == "Canary":
        fleet.reconcile()
        fleet.crash()
        fleet.advance(5)
    assert state(fleet).reason == "LoadFailed"
    fleet.load_seconds = 1
    for engine in fleet.engines:
        engine.queue.clear()
    fleet.run("Failed")
    assert fleet.status["refused"] == []


def test_an_engine_that_ends_while_it_loads_loads_again() -> None:
    fleet = rolling("Canary")
    until(fleet, lambda: bool(loading(fleet)))
    fleet.kill(loading(fleet)[0])
    fleet.settle()
    assert reasons(fleet)[-1] == "RolloutDone"


def test_an_engine_that_ends_at_each_load_is_not_tried_for_ever() -> None:
    """Nothing else is known of a load whose engine was started anew."""
    fleet = rolling("Canary")
    for _ in range(3):
        until(fleet, lambda: bool(loading(fleet)))
        fleet.kill(loading(fleet)[0])
    fleet.run("Failed")
    assert state(fleet).reason == "LoadFailed"
    assert "started anew while it loaded" in state(fleet).detail


def test_a_candidate_that_cannot_be_loaded_is_refused() -> None:
    fleet = rolling("Failed", BROKEN)
    assert reasons(fleet)[-2:] == ["LoadFailed", "RolledBack"]
    (refused,) = fleet.status["refused"]
    assert (refused["version"], refused["reason"]) == (BROKEN.version, "LoadFailed")
    assert "in 3 tries: no such file" in refused["message"]
    fleet.settle()
    assert {each.version for each in fleet.engines} == {A.version}


def test_each_try_has_a_token_of_its_own() -> None:
    fleet = serving()
    fleet.target = BROKEN
    seen = []
    for _ in range(60):
        seen += [load.token for load in loads(fleet.reconcile()) if load.version == BROKEN.version]
        fleet.advance(1)
    assert len(set(seen)) == 3


def test_an_engine_that_reports_another_version_than_it_loaded_is_not_believed() -> None:
    made = out(6, listed=False)
    token = loads(made)[0].token
    first = replica(0, listed=False, routable=False, load=LoadState(B.version, "done", token=token))
    made = stepped(made, world(first, *THREE[1:], target=B, seconds=8))
    made = stepped(made, world(first, *THREE[1:], target=B, seconds=9))
    assert not loads(made)
    made = stepped(made, world(first, *THREE[1:], target=B, seconds=19))
    assert made.state is not None
    (record,) = made.state["replicas"]
    assert record["note"] == f"the engine reports {short(A.version)}"
    assert loads(made)[0].token != token


def test_a_load_that_fails_on_one_replica_of_a_wave_starts_its_pod_anew() -> None:
    fleet = rolling("Waving")
    fleet.disk_fails = True
    until(fleet, lambda: "ReplicaQuarantined" in reasons(fleet))
    fleet.disk_fails = False
    fleet.settle()
    assert "solver-b" in fleet.told[-1] and state(fleet).phase == "Done"
    told = next(event for event in fleet.events if "Quarantined" in event)
    assert "cannot load" in told and "started anew" in told


def test_replicas_that_come_up_late_with_the_old_version_get_no_request_and_the_new_one() -> None:
    fleet = rolling("Done")
    fleet.settle()
    late = fleet.engines[0]
    late.version = A.version
    made = fleet.reconcile()
    assert late.uid in made.excluded
    assert "ReplicaQuarantined" in reasons(fleet)
    fleet.settle()
    assert late.version == B.version


def test_a_paused_engine_that_nobody_loads_is_resumed() -> None:
    made = step(None, world(replica(0, paused=True, routable=False), *THREE[1:]))
    assert made.actions == (Resume("engine-0"),)


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


# -- the gate ----------------------------------------------------------------------------------


def test_the_gate_asks_the_canary_beside_what_is_served() -> None:
    fleet = rolling("Gating")
    fleet.advance(1)
    (order,) = fleet.reconcile().jobs
    assert (order.kind, order.uid, order.pod) == ("gate", canary(fleet).uid, canary(fleet).pod)
    assert order.compare and len(order.id) == 8


@pytest.mark.parametrize(
    ("candidate", "reason"), [(WORSE, "GateFailed"), (UNDECIDED, "GateUndecided")]
)
def test_what_does_not_pass_goes_back_and_is_not_tried_again(
    candidate: Target, reason: str
) -> None:
    fleet = rolling("Failed", candidate)
    assert fleet.status["refused"][0]["reason"] == reason
    entry = fleet.status["history"][0]
    assert (entry["result"], entry["reason"]) == ("RolledBack", reason)
    assert f"Returning to solver-a ({short(A.version)}): {reason}: score of" in fleet.told[-2]
    fleet.events.clear()
    fleet.settle()
    fleet.advance(100_000)
    fleet.settle()
    assert fleet.events == []
    assert "set the annotation assay.dev/retry" in fleet.told[-1]


def test_an_inspection_that_finds_something_touches_no_engine() -> None:
    fleet = rolling("Failed", UNSAFE)
    assert fleet.status["refused"][0]["message"] == "model.bin is a pickle."
    assert fleet.status["history"][0]["result"] == "Refused"
    assert reasons(fleet) == ["RolloutStarted", "InspectionFailed", "RolloutFailed"]


def test_a_job_without_a_verdict_is_made_again_and_speaks_against_nobody() -> None:
    fleet = rolling("Gating")
    fleet.jobs_break = True
    fleet.run("Failed")
    assert reasons(fleet).count("GateBroken") == 3
    assert fleet.status["refused"] == []
    assert "It is tried again at" in fleet.told[-1]
    fleet.jobs_break = False
    fleet.settle()
    assert state(fleet).serves.version == B.version


def test_failures_that_are_nobodys_are_tried_again_ever_more_seldom() -> None:
    fleet = serving()
    fleet.jobs_break = True
    fleet.target = B
    waits = []
    for _ in range(3):
        fleet.run("Failed", 3000)
        again = state(fleet).again_at
        finished = state(fleet).finished
        assert again is not None and finished is not None
        waits.append((again - finished).total_seconds())
        fleet.advance(waits[-1] + 1)
        fleet.reconcile()
    assert waits == [600, 1200, 2400]


def test_a_gate_that_never_ends_is_given_up() -> None:
    fleet = rolling("Gating")
    fleet.reconcile()
    for _ in range(200):
        fleet.jobs, fleet.results = {}, {}
        fleet.reconcile()
        fleet.advance(5)
        if state(fleet).phase == "Failed":
            break
    assert state(fleet).reason == "GateTimedOut"


def test_a_gate_that_asked_other_weights_says_nothing() -> None:
    """The canary's engine was started anew, and came up with what is served."""
    fleet = rolling("Gating")
    fleet.advance(1)
    (order,) = fleet.reconcile().jobs
    summary = {"sides": {"candidate": {"weightVersions": [A.version]}}}
    fleet.results[order.id] = result("pass", summary, "as good as ever")
    fleet.reconcile()
    assert state(fleet).phase == "Gating"
    assert f"asked {short(A.version)} instead of {short(B.version)}" in fleet.events[-1]


def test_a_canary_that_is_started_anew_while_it_is_asked_loads_and_is_asked_again() -> None:
    fleet = rolling("Gating")
    fleet.advance(1)
    (order,) = fleet.reconcile().jobs
    fleet.kill(canary(fleet))
    fleet.results[order.id] = result("pass", {}, "it passed before that")
    fleet.reconcile()
    assert state(fleet).phase == "Canary"
    fleet.run("Gating")
    fleet.advance(1)
    (again,) = fleet.reconcile().jobs
    assert again.id != order.id


def test_a_lone_canary_is_compared_with_nothing() -> None:
    fleet = rolling("Gating", wanted=1, max_unavailable=1)
    fleet.advance(1)
    (order,) = fleet.reconcile().jobs
    assert not order.compare
    assert "compared with nothing" in fleet.told[-1]


def test_where_only_a_comparison_could_decide_a_lone_canary_is_not_tried() -> None:
    fleet = rolling("Failed", wanted=1, max_unavailable=1, min_score=False)
    assert state(fleet).reason == "NothingToCompare"
    assert "set spec.rollout.gate.minScore, or spec.rollout.maxUnavailable to 0" in fleet.told[-1]
    assert fleet.status["refused"] == []


# -- the hold ----------------------------------------------------------------------------------


def test_the_others_follow_after_the_hold() -> None:
    fleet = rolling("Holding", hold=100)
    until(fleet, lambda: state(fleet).canary is not None and canary(fleet).uid in fleet.known)
    begin = fleet.now
    fleet.run("Waving")
    assert fleet.now - begin >= 100


def test_a_canary_whose_engine_ends_in_the_hold_takes_the_candidate_with_it() -> None:
    fleet = rolling("Holding")
    fleet.kill(canary(fleet))
    fleet.reconcile()
    assert state(fleet).phase == "Returning"
    fleet.settle()
    assert fleet.status["refused"][0]["reason"] == "CanaryUnwell"
    assert {each.version for each in fleet.engines} == {A.version}


def test_a_canary_that_stops_serving_in_the_hold_is_given_half_a_minute() -> None:
    fleet = rolling("Holding", hold=60)
    until(fleet, lambda: canary(fleet).uid in fleet.known)
    until(fleet, lambda: state(fleet).canary.held is not None)  # type: ignore[union-attr]
    canary(fleet).paused = True
    seen = fleet.world()
    ill = [replace(each, routable=False) for each in seen.replicas if each.paused]
    well = [each for each in seen.replicas if not each.paused]
    made = step(fleet.status["rollout"], replace(seen, replicas=(*ill, *well)))
    assert made.state is not None and made.state["phase"] == "Holding"
    assert "does not serve just now" in made.state["message"]
    later = replace(seen, replicas=(*ill, *well), now=seen.now + timedelta(seconds=31))
    assert step(made.state, later).state["reason"] == "CanaryUnwell"  # type: ignore[index]


def test_a_router_that_is_gone_is_not_the_canarys_fault() -> None:
    fleet = rolling("Holding", hold=60)
    until(fleet, lambda: state(fleet).canary.held is not None)  # type: ignore[union-attr]
    fleet.router_blind = True
    for _ in range(50):
        fleet.reconcile()
        fleet.advance(1)
    assert state(fleet).phase == "Holding"


def test_a_canary_whose_pod_goes_away_is_replaced_and_the_gate_not_asked_again() -> None:
    fleet = rolling("Holding", hold=60)
    fleet.delete(canary(fleet))
    fleet.settle()
    assert reasons(fleet).count("GatePassed") == 1
    assert "CanaryLost" in reasons(fleet)
    assert reasons(fleet)[-1] == "RolloutDone"


def test_canaries_that_go_away_one_after_the_other_end_the_rollout() -> None:
    fleet = serving(4)
    fleet.target = B
    for _ in range(6):
        fleet.run("Gating", 3000)
        fleet.delete(canary(fleet))
        fleet.reconcile()
    fleet.run("Failed")
    assert state(fleet).reason == "CanaryLost"


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
def test_a_replica_that_a_router_is_still_to_read_of_is_no_canary(named, taken) -> None:
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
