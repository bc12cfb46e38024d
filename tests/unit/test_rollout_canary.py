"""The rollout, by example: the canary, its weights, its gate and its hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from assay_operator.inference.observation import LoadState
from assay_operator.inference.results import result
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_replicas import tend
from assay_operator.inference.rollout_state import read
from assay_operator.inference.rollout_words import short
from assay_operator.inference.rollout_world import Diary, Step, Target
from assay_operator.plan import Resume
from tests.unit.rollout_examples import (
    THREE,
    canary,
    live,
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
    BROKEN,
    POLICY,
    UNDECIDED,
    UNSAFE,
    WORSE,
    A,
    B,
)

Json = dict[str, Any]


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


def test_a_replica_that_only_a_restart_can_put_right_gets_one_however_often_that_was() -> None:
    fleet = serving(1)
    fleet.disk_fails = True
    for number in range(1, 7):
        live(fleet)[0].version = B.version
        until(fleet, lambda: fleet.number > number, 1000)  # noqa: B023
        until(fleet, lambda: live(fleet)[0].version == A.version)
    assert "is tried again later" in "".join(fleet.events), "and not at once in the end"


def test_such_a_restart_comes_also_when_fewer_replicas_are_wanted_by_then() -> None:
    fleet = serving(3)
    fleet.disk_fails = True
    for number in range(3, 9):
        live(fleet)[0].version = B.version
        until(fleet, lambda: fleet.number > number, 1000)  # noqa: B023
    fleet.wanted = 1
    until(fleet, lambda: len(live(fleet)) == 1 and live(fleet)[0].version == A.version)
    live(fleet)[0].version = B.version
    until(fleet, lambda: fleet.number > 9, 1000)


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
