"""How new weights come into a service: the real planner in a pretended cluster.

`Cluster` checks at every second that nobody is answered by bytes that have not passed, that pods
start with none, and that a version names the same bytes in every engine that is asked.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from assay_operator.inference.observation import Probe
from assay_operator.inference.planner import MISSING_SECONDS, SETTLED_SECONDS
from assay_operator.plan import Load, Plan, Ref, Restart, ref
from tests.unit.plan_fleet import BASE, GATED, SUITE, Cluster, checkpoint, digest, job

Json = dict[str, Any]
FOLLOW: Json = {"source": BASE, "follow": {"job": "solver-rl"}}
TRAINING: Json = {"conditions": [{"type": "Training", "status": "True", "message": ""}]}
NEXT = "pvc://models/next"


def following(**spec: Any) -> Cluster:
    """A service that follows a job which trains, and serves its base model."""
    cluster = Cluster({"rollout": GATED, "model": FOLLOW, **spec})
    cluster.followed = job() | {"status": TRAINING}
    cluster.settle()
    return cluster


def serving(content: str = "good", **spec: Any) -> Cluster:
    """A service that serves its base model, and beside that another folder."""
    cluster = Cluster({"rollout": GATED, **spec})
    cluster.settle()
    cluster.disk["models", "next"] = content
    return cluster


def child(made: Plan, kind: str, name: str) -> Json:
    return next(item for item in made.objects if ref(item) == Ref(kind, name))


def jobs(cluster: Cluster) -> list[Json]:
    return [item for (kind, _), item in cluster.children.items() if kind == "Job"]


def template(cluster: Cluster) -> Json:
    found: Json = cluster.children[Ref("Deployment", "solver-engine")]["spec"]["template"]
    return found


# --- from the first start to the newest checkpoint --------------------------------------------


def test_the_first_start_needs_no_rollout() -> None:
    cluster = Cluster({"rollout": GATED})
    cluster.reconcile()
    assert cluster.condition("RolledOut")["status"] == "Unknown"
    assert "served" not in cluster.status and "rollout" not in cluster.status
    cluster.settle()
    assert cluster.condition("RolledOut")["status"] == "True"
    assert cluster.status["served"]["name"] == BASE
    assert [entry["reason"] for entry in cluster.status["history"]] == ["FirstStart"]
    assert "RolloutStarted" not in cluster.said() and not jobs(cluster)


def test_in_steady_state_nothing_is_new() -> None:
    cluster = following()
    cluster.write("good", step=20)
    cluster.run("Done")
    cluster.settle()
    for _ in range(2):
        made, again = cluster.plan(), cluster.plan()
        assert made == again
        assert json.loads(json.dumps(made.status)) == cluster.status
        assert {ref(item): json.loads(json.dumps(item)) for item in made.objects} == {
            **cluster.children
        }
        assert not made.events and made.next_look == SETTLED_SECONDS
        cluster.advance(100)


def test_a_new_checkpoint_is_followed_step_by_step() -> None:
    cluster = following()
    item, before = cluster.write("good", step=20), cluster.uids()
    version, base = item["spec"]["digest"], cluster.status["served"]["version"]
    pointers: dict[str, set[str]] = {}
    for _ in range(200):
        cluster.reconcile()
        phase = cluster.rollout["phase"]
        pointers.setdefault(phase, set()).add(cluster.pointer()["version"])
        if phase == "Done" and cluster.rollout["to"]["version"] == version:
            break
        cluster.advance(1)
    assert list(pointers) == ["Inspecting", "Canary", "Gating", "Holding", "Waving", "Done"]
    assert pointers["Holding"] == {base}, "pods that start come up with what passed the hold"
    cluster.settle()
    assert cluster.contents() == {"good"} and cluster.uids() == before, "the same pods"
    assert cluster.pointer()["version"] == version
    assert cluster.status["checkpoint"] == version and cluster.status["score"] == 0.7
    assert cluster.status["served"]["name"] == "solver-rl-1-20"
    assert cluster.condition("Target")["reason"] == "Following"
    assert not jobs(cluster), "the Jobs go when they have said what they know"
    told = ["RolloutStarted", "InspectionPassed", "GatePassed", "RolloutCommitted", "RolloutDone"]
    assert [reason for reason in cluster.said() if reason in told] == told


def test_the_score_of_what_serves_is_known_as_soon_as_it_was_compared() -> None:
    cluster = following()
    assert "score" not in cluster.status
    cluster.write("worse", step=20)
    cluster.run("Failed")
    assert cluster.status["score"] == 0.4


def test_only_engines_that_serve_what_passed_are_counted() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Gating")
    assert (cluster.status["readyReplicas"], cluster.status["routable"]) == (1, "1/2")
    ready = cluster.condition("EnginesReady")
    assert (ready["status"], ready["reason"]) == ("False", "RollingOut")
    assert "is asked the suite" in ready["message"]
    assert cluster.condition("Ready")["status"] == "True", "the others serve"
    assert cluster.condition("RolledOut")["reason"] == "Gating"


def test_an_operator_that_forgets_everything_between_two_passes_goes_on() -> None:
    """After whichever pass that is, and all that it knew of loads is lost with it."""
    cluster = following()
    cluster.write("good", step=20)
    for number in range(200):
        cluster.reconcile()
        if cluster.rollout["phase"] == "Done" and cluster.contents() == {"good"}:
            break
        cluster.advance(1)
        if number % 3 == 0:
            heir = copy.deepcopy(cluster)
            heir.forget()
            heir.settle()
            assert heir.contents() == {"good"}, cluster.rollout


@pytest.mark.parametrize("content", ["worse", "shapes", "pickle", "spoilt"])
def test_operators_that_never_live_long_come_to_the_same_end(content: str) -> None:
    cluster = following()
    cluster.write(content, step=20)
    for _ in range(5):
        cluster.reconcile()
    cluster.settle(forgets=7)
    assert cluster.contents() == {"shapes" if content == "shapes" else "tiny"}


def test_an_operator_that_dies_between_any_two_writes_goes_on() -> None:
    cluster = following()
    cluster.write("good", step=20)
    for writes in range(400):
        cluster.reconcile(dies_after=writes % 14)
        cluster.reconcile()
        cluster.advance(2)
        if cluster.rollout["phase"] == "Done" and cluster.contents() == {"good"}:
            break
    cluster.settle()
    assert cluster.contents() == {"good"}


def test_the_jobs_claim_is_mounted_before_there_is_anything_on_it() -> None:
    """It makes the pods anew, one by one, so that later none has to be."""
    cluster = Cluster({"rollout": GATED, "model": FOLLOW})
    cluster.settle()
    assert cluster.condition("Target")["reason"] == "JobNotFound"
    before = cluster.uids()
    cluster.followed = job()
    cluster.settle()
    assert cluster.uids() == before, "nobody knows yet whether the claim is there"
    cluster.followed = job() | {"status": TRAINING}
    cluster.change(rollout={**GATED, "paused": True})
    cluster.settle()
    assert cluster.uids() == before, "a pause touches no engine"
    cluster.change(rollout=GATED)
    cluster.reconcile()
    cluster.advance(1)
    cluster.settle()
    after = cluster.uids()
    assert not after & before
    assert {volume["name"] for volume in template(cluster)["spec"]["volumes"]} >= {
        *("model", "checkpoints"),
    }
    cluster.followed = None
    cluster.settle()
    assert cluster.uids() == after, "a mount that is there stays"


# --- what is refused, and what is taken back --------------------------------------------------


def test_a_worse_checkpoint_is_refused_and_never_stays() -> None:
    cluster = following()
    cluster.write("good", step=20)
    cluster.run("Done")
    cluster.settle()
    cluster.write("worse", step=40, score=0.99)
    state = cluster.run("Failed")
    assert state["reason"] == "GateFailed"
    cluster.settle()
    assert cluster.contents() == {"good"}
    assert [entry["version"] for entry in cluster.status["refused"]] == [digest("worse")]
    assert cluster.status["history"][0]["result"] == "RolledBack"
    started = cluster.said().count("RolloutStarted")
    cluster.advance(5)
    cluster.settle()
    assert cluster.said().count("RolloutStarted") == started, "it is not tried again"
    assert "solver-rl-1-20" in cluster.condition("Target")["message"]
    cluster.annotate("assay.dev/retry", "solver-rl-1-40")
    for _ in range(2):
        cluster.reconcile()
        cluster.run("Failed")
        cluster.settle()
    assert cluster.said().count("RolloutStarted") == started + 1, "but for once, by hand"


def test_a_checkpoint_that_was_asked_for_by_name_before_it_was_tried_is_not_tried_twice() -> None:
    cluster = serving()
    cluster.write("worse", step=40, claim="models")
    cluster.annotate("assay.dev/retry", "solver-rl-1-40")
    cluster.reconcile()
    cluster.serve("checkpoint://solver-rl-1-40")
    cluster.run("Failed")
    cluster.settle()
    cluster.reconcile()
    cluster.settle()
    assert cluster.said().count("RolloutStarted") == 1


def test_files_that_are_not_what_they_should_be_touch_no_engine() -> None:
    cluster = following()
    cluster.write("pickle", step=20)
    before = len(cluster.events)
    state = cluster.run("Failed")
    assert state["reason"] == "InspectionFailed" and "touched" not in state
    assert not any("CanaryLoaded" in event for event in cluster.events[before:])
    assert "may be a pickle" in cluster.status["refused"][0]["message"]


def test_an_annotation_takes_back_what_was_served_before_for_as_long_as_it_stands() -> None:
    cluster = following()
    cluster.write("good", step=20)
    cluster.run("Done")
    cluster.settle()
    cluster.annotate("assay.dev/rollback", "previous")
    cluster.reconcile()
    cluster.settle()
    assert cluster.contents() == {"tiny"}
    assert "GatePassed" not in cluster.said()[-8:], "it passed here before"
    assert cluster.condition("Target")["reason"] == "RolledBack"
    cluster.write("better", step=40)
    cluster.advance(20)
    cluster.settle(forgets=9)
    assert cluster.contents() == {"tiny"}
    cluster.annotate("assay.dev/rollback", None)
    cluster.reconcile()
    cluster.settle()
    assert cluster.contents() == {"better"}


def test_what_a_spec_does_not_name_any_more_can_be_taken_back() -> None:
    cluster = serving("good", model={"source": BASE})
    base = cluster.status["served"]["version"]
    cluster.write("good", step=20, claim="models")
    cluster.serve("checkpoint://solver-rl-1-20")
    cluster.run("Inspecting")
    cluster.settle()
    cluster.write("worse", step=40, claim="models")
    cluster.serve("checkpoint://solver-rl-1-40")
    cluster.run("Failed")
    cluster.settle()
    cluster.annotate("assay.dev/rollback", base[:10])
    cluster.reconcile()
    cluster.settle()
    assert cluster.contents() == {"tiny"} and cluster.status["score"] == 0.4


# --- pins, sources, volumes -------------------------------------------------------------------


def test_another_folder_of_the_same_claim_comes_in_place() -> None:
    cluster = serving()
    before, pods = cluster.uids(), template(cluster)
    cluster.serve(NEXT)
    cluster.run("Inspecting")
    cluster.settle()
    assert cluster.contents() == {"good"} and cluster.uids() == before
    assert template(cluster) == pods


def test_a_pin_waits_until_its_checkpoint_is_verified() -> None:
    cluster = serving()
    before = cluster.uids()
    cluster.serve("checkpoint://solver-rl-1-20")
    item = cluster.write("good", step=20, claim="models", verified=False)
    cluster.settle()
    assert cluster.condition("Target")["reason"] == "CheckpointNotVerified"
    assert "CheckpointNotVerified" in cluster.said()
    assert cluster.condition("RolledOut")["status"] == "False"
    assert cluster.condition("Ready")["status"] == "True"
    item["status"]["conditions"][1]["status"] = "True"
    cluster.run("Inspecting")
    cluster.settle()
    assert cluster.contents() == {"good"} and cluster.uids() == before
    assert cluster.pointer()["path"] == "/models/solver-rl/checkpoints/step-000020"


def test_a_pin_without_a_checkpoint_starts_nothing() -> None:
    cluster = Cluster({"model": {"source": "checkpoint://solver-rl-1-20"}})
    made = cluster.reconcile()
    assert not made.objects and not made.prune
    for kind in ("Applied", "Ready", "Target"):
        assert cluster.condition(kind)["reason"] == "CheckpointNotFound"
    cluster.write("good", step=20)
    cluster.settle()
    assert cluster.contents() == {"good"}
    assert {volume["name"] for volume in template(cluster)["spec"]["volumes"]} & {
        *("model", "checkpoints"),
    } == {"checkpoints"}
    cluster.checkpoints.clear()
    cluster.settle()
    assert cluster.contents() == {"good"}, "what is served goes on being served"
    assert cluster.condition("Target")["reason"] == "CheckpointNotFound"


def test_weights_on_another_volume_come_with_new_pods() -> None:
    cluster = serving()
    before = cluster.uids()
    cluster.disk["other", "tiny"] = "good"
    cluster.serve("pvc://other/tiny")
    cluster.run("Gating")
    assert cluster.uids() == before and len(jobs(cluster)) == 1
    cluster.settle()
    assert cluster.contents() == {"good"} and not cluster.uids() & before
    assert cluster.rollout["strategy"] == "Recreate"


def test_other_shapes_come_with_new_pods_after_the_gate_asked_an_engine_of_its_own() -> None:
    cluster = following()
    cluster.write("shapes", step=20)
    cluster.run("Gating")
    cluster.reconcile()
    (gate,) = jobs(cluster)
    spec = gate["spec"]["template"]["spec"]
    engine = next(each for each in spec["initContainers"] if each["name"] == "engine")
    assert "/checkpoints" in {mount["mountPath"] for mount in engine["volumeMounts"]}
    command = spec["containers"][0]["command"]
    assert command[command.index("--candidate") + 1] == "http://127.0.0.1:30000"
    assert command[command.index("--incumbent") + 1] in {each.url for each in cluster.engines}
    cluster.settle()
    assert cluster.contents() == {"shapes"}


def test_new_pods_that_do_not_come_up_are_taken_back_with_the_old_template() -> None:
    cluster = serving(rollout={"canary": {"hold": "5s"}, "strategy": "Recreate"})
    before, pods = cluster.uids(), template(cluster)
    cluster.disk["other", "x"] = "spoilt"
    cluster.serve("pvc://other/x")
    cluster.run("Recreating")
    cluster.advance(5)
    cluster.reconcile()
    assert template(cluster) != pods
    state = cluster.run("Failed", most=1200)
    assert state["reason"] in {"ReplicasFail", "NewPodsMissing"}
    cluster.settle()
    assert template(cluster) == pods, "the old pods are of this very template"
    assert cluster.contents() == {"tiny"} and cluster.uids() & before


def test_another_wish_while_no_pod_starts_with_the_new_weights_begins_from_the_old_ones() -> None:
    """There is no gate, so that nobody tried them before all pods were to start with them."""
    cluster = serving(rollout={"canary": {"hold": "5s"}})
    before, pods = cluster.uids(), template(cluster)
    cluster.disk["other", "x"] = "spoilt"
    cluster.serve("pvc://other/x")
    cluster.run("Recreating")
    for _ in range(40):
        cluster.advance(1)
        cluster.reconcile()
    assert cluster.uids() - before, "one pod of the new template tries to start"
    began = cluster.now
    cluster.serve(NEXT)
    cluster.run("Inspecting")
    assert cluster.rollout["from"]["name"] == BASE
    cluster.settle()
    assert cluster.contents() == {"good"} and cluster.now - began < 180
    assert cluster.uids() & before and template(cluster) == pods
    assert cluster.status["history"][0]["from"].startswith("tiny")
    assert "refused" not in cluster.status, "it was given up, and came to no verdict"


def test_a_pod_of_the_old_template_that_restarts_meanwhile_answers_nobody() -> None:
    """It reads the new pointer, and sees another volume in its place: other bytes by that name."""
    cluster = serving(rollout={"canary": {"hold": "5s"}})
    cluster.disk["other", "next"] = "better"
    cluster.serve("pvc://other/next")
    cluster.run("Recreating")
    cluster.reconcile()
    old = [each for each in cluster.engines if each.number <= 2]
    for engine in old:
        cluster.kill(engine)
        engine.up = cluster.now
    for _ in range(40):
        cluster.reconcile()
        cluster.advance(1)
        lied = [each for each in old if each.content == "good" and each.url in cluster.workers()]
        assert not lied
    cluster.settle()
    assert cluster.contents() == {"better"}


def test_an_engine_is_told_to_load_only_what_its_pod_really_mounts() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Canary")
    for _ in range(30):
        cluster.advance(1)
        if any(isinstance(action, Load) for action in cluster.plan().actions):
            break
        cluster.reconcile()
    canary = cluster.rollout["canary"]["pod"]
    world = cluster.observation()
    pod = next(each for each in world.engines if each["metadata"]["name"] == canary)
    volume = next(v for v in pod["spec"]["volumes"] if v["name"] == "model")
    other = {**volume, "persistentVolumeClaim": {"claimName": "other"}}
    pod["spec"] = {**pod["spec"], "volumes": [other]}
    cluster.observation = lambda: world  # type: ignore[method-assign]
    made = cluster.plan()
    assert [each for each in made.actions if isinstance(each, Load)] == []
    assert Restart(canary) in made.actions


def test_a_service_that_an_earlier_operator_served_goes_on_and_changes_in_place() -> None:
    """Its status says nothing of what is served; the checkpoint pointer does."""
    cluster = serving()
    before = cluster.uids()
    for name in ("served", "rollout", "history"):
        del cluster.service["status"][name]
    cluster.serve(NEXT)
    cluster.run("Inspecting")
    assert cluster.status["served"]["version"].startswith("tiny")
    cluster.settle()
    assert cluster.contents() == {"good"} and cluster.uids() == before


# --- replicas, Jobs, interventions ------------------------------------------------------------


def test_a_lone_replica_is_never_missing() -> None:
    cluster = serving(replicas=1)
    (before,) = cluster.uids()
    cluster.serve(NEXT)
    cluster.run("Canary")
    while not cluster.rollout.get("canary"):
        cluster.advance(1)
        cluster.reconcile()
    deployment = cluster.children[Ref("Deployment", "solver-engine")]["spec"]
    assert deployment["replicas"] == 2 and cluster.rollout["canary"]["uid"] != before
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    least = 1
    for _ in range(120):
        cluster.reconcile()
        least = min(least, cluster.status["readyReplicas"])
        cluster.advance(1)
    assert least == 1
    cluster.settle()
    assert cluster.contents() == {"good"} and len(cluster.uids()) == 1


def test_the_gate_asks_pods_and_never_the_router() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Gating")
    cluster.reconcile()
    (gate,) = jobs(cluster)
    name = gate["metadata"]["name"]
    assert name == f"solver-gate-{cluster.rollout['job']['id']}"
    command = gate["spec"]["template"]["spec"]["containers"][0]["command"]
    canary = next(e for e in cluster.engines if e.uid == cluster.rollout["canary"]["uid"])
    (other,) = (e for e in cluster.engines if e is not canary)
    assert command[command.index("--candidate") + 1] == canary.url
    assert command[command.index("--incumbent") + 1] == other.url
    policy = cluster.children[Ref("NetworkPolicy", name)]
    reached = policy["spec"]["egress"][1]["to"][0]["podSelector"]["matchLabels"]
    assert reached["app.kubernetes.io/component"] == "engine"
    other.silent = True
    made = cluster.plan()
    assert child(made, "Job", name)["spec"] == gate["spec"], "what it does cannot be changed"


def test_the_inspection_sees_both_folders_whatever_volumes_they_are_on() -> None:
    cluster = serving()
    cluster.disk["other", "tiny"] = "good"
    cluster.serve("pvc://other/tiny")
    cluster.run("Inspecting")
    cluster.reconcile()
    (inspection,) = jobs(cluster)
    spec = inspection["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"][4] == "/candidate/tiny"
    assert container["command"][container["command"].index("--like") + 1] == "/incumbent/tiny"
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"][:2]}
    assert claims == {"candidate": "other", "incumbent": "models"}


def test_a_suite_that_is_missing_begins_nothing_and_is_waited_for() -> None:
    cluster = serving()
    cluster.found[SUITE] = None
    cluster.serve(NEXT)
    made = cluster.reconcile()
    assert made.next_look <= MISSING_SECONDS
    assert cluster.condition("Target")["reason"] == "SuiteMissing"
    assert cluster.rollout["phase"] == "Done" and len(cluster.uids()) == 2
    cluster.found[SUITE] = {"data": {"suite.jsonl": ""}}
    cluster.run("Inspecting")
    cluster.settle()
    assert cluster.contents() == {"good"}


def test_a_suite_that_goes_away_meanwhile_ends_the_rollout_soon() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Canary")
    cluster.found[SUITE] = None
    cluster.suite_gone = True
    began = cluster.now
    state = cluster.run("Failed")
    assert state["reason"] == "GateBroken" and "does not exist" in state["detail"]
    assert cluster.now - began < 60
    cluster.settle()
    assert cluster.contents() == {"tiny"} and "refused" not in cluster.status


def deleted_as_the_gate_begins() -> Cluster:
    """The suite was there when it was looked up last, so the gate's Job was made. Its pod hangs."""
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Canary")
    cluster.suite_gone = True
    cluster.run("Gating")
    cluster.reconcile()
    cluster.advance(5)
    assert [pod["status"]["phase"] for pod in cluster.pods.values()] == ["Pending"]
    return cluster


def test_a_gate_that_cannot_begin_without_its_suite_is_not_waited_for() -> None:
    cluster = deleted_as_the_gate_begins()
    cluster.found[SUITE] = None
    began = cluster.now
    state = cluster.run("Failed")
    assert cluster.now - began < 30, "as soon as the suite is known to be missing"
    assert state["reason"] == "GateBroken"
    told = [event for event in cluster.events if event.startswith("GateBroken")]
    for text in (state["detail"], cluster.condition("RolledOut")["message"], *told):
        assert f"ConfigMap {SUITE.name}, which spec.rollout.gate.suite names" in text
        assert "create it" in text
    cluster.settle()
    assert cluster.contents() == {"tiny"} and "refused" not in cluster.status


def test_once_its_suite_is_there_again_it_is_tried_again_by_itself() -> None:
    cluster = deleted_as_the_gate_begins()
    cluster.found[SUITE] = None
    cluster.run("Failed")
    cluster.settle()
    assert cluster.condition("Target")["reason"] == "SuiteMissing"
    cluster.found[SUITE] = {"data": {"suite.jsonl": ""}}
    cluster.suite_gone = False
    cluster.run("Done")
    cluster.settle()
    assert cluster.contents() == {"good"}


def test_a_gate_that_has_begun_goes_on_without_its_suite() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Gating")
    cluster.reconcile()
    cluster.advance(1)
    cluster.found[SUITE] = None
    cluster.suite_gone = True
    cluster.run("Done")
    cluster.settle()
    assert cluster.contents() == {"good"}
    assert "GateBroken" not in cluster.said()


def test_a_gate_that_is_taken_away_is_not_waited_for() -> None:
    cluster = serving("worse")
    cluster.serve(NEXT)
    cluster.run("Gating")
    cluster.reconcile()
    cluster.passed.add("worse")
    cluster.change(rollout={"canary": {"hold": "10s"}})
    cluster.run("Done")
    cluster.settle()
    assert cluster.contents() == {"worse"}


def test_a_pause_touches_no_engine() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Holding")
    cluster.change(rollout={**GATED, "paused": True})
    cluster.reconcile()
    assert cluster.condition("RolledOut")["reason"] == "Paused"
    had = {each.content for each in cluster.engines}
    cluster.advance(60)
    for _ in range(60):
        made = cluster.reconcile()
        assert not [each for each in made.actions if isinstance(each, Load | Restart)]
        cluster.advance(1)
    assert {each.content for each in cluster.engines} == had
    cluster.change(rollout=GATED)
    cluster.run("Done")
    cluster.settle()
    assert cluster.contents() == {"good"}


def test_a_pause_halts_the_deployment_that_makes_new_pods() -> None:
    recreate: Json = {"canary": {"hold": "5s"}, "strategy": "Recreate"}
    cluster = serving(rollout=recreate, replicas=3)
    cluster.serve(NEXT)
    cluster.run("Recreating")
    while not cluster.rollout.get("updated"):
        cluster.advance(1)
        cluster.reconcile()
    before = cluster.uids()
    cluster.change(rollout={**recreate, "paused": True})
    for _ in range(120):
        cluster.reconcile()
        cluster.advance(1)
    deployment = cluster.children[Ref("Deployment", "solver-engine")]
    assert deployment["spec"]["paused"] is True and before <= cluster.uids()
    assert cluster.contents() == {"tiny", "good"}, "old and new ones serve side by side"
    assert cluster.condition("RolledOut")["reason"] == "Paused"
    assert cluster.condition("Ready")["status"] == "True"
    cluster.change(rollout=recreate)
    cluster.settle()
    assert cluster.contents() == {"good"}
    assert "paused" not in cluster.children[Ref("Deployment", "solver-engine")]["spec"]


def test_a_lone_replica_is_not_missing_while_a_new_pod_takes_its_place() -> None:
    """By Recreate, too: maxUnavailable is 0 then, and the Deployment makes the other pod first."""
    cluster = serving(replicas=1, rollout={**GATED, "strategy": "Recreate"})
    (before,) = cluster.uids()
    cluster.serve(NEXT)
    told, ready, pods = [], [], []
    for _ in range(200):
        cluster.reconcile()
        message = cluster.rollout["message"].partition(":")[0]
        if message not in told:
            told.append(message)
        ready.append(cluster.status["readyReplicas"])
        pods.append(len(cluster.uids()))
        if cluster.rollout["phase"] == "Done" and cluster.contents() == {"good"}:
            break
        cluster.advance(1)
    assert told == ["Inspecting", "Gating", "Recreating", "Done"], "no canary, and no hold"
    assert min(ready) == 1 and max(pods) == 2
    assert cluster.children[Ref("Deployment", "solver-engine")]["spec"]["replicas"] == 1
    assert before not in cluster.uids()


def test_another_wish_half_way_starts_anew_from_what_is_served() -> None:
    cluster = serving()
    cluster.disk["models", "third"] = "better"
    cluster.serve(NEXT)
    cluster.run("Gating")
    cluster.serve("pvc://models/third")
    cluster.run("Returning")
    assert cluster.rollout["reason"] == "Superseded"
    cluster.run("Inspecting")
    assert cluster.rollout["from"]["name"] == BASE
    cluster.settle()
    assert cluster.contents() == {"better"}


def test_a_silent_engine_stays_a_member_unless_it_is_a_canary_that_failed() -> None:
    cluster = serving()
    cluster.serve(NEXT)
    cluster.run("Holding")
    while not cluster.rollout["canary"].get("held"):
        cluster.advance(1)
        cluster.reconcile()
    canary = next(e for e in cluster.engines if e.uid == cluster.rollout["canary"]["uid"])
    for engine in cluster.engines:
        engine.silent = True
    made = cluster.plan()
    named = child(made, "ConfigMap", "solver-workers")["data"]["workers.json"]
    assert all(engine.url in named for engine in cluster.engines), "silence is not failure"
    cluster.serve(BASE)
    cluster.reconcile()
    assert canary.url not in cluster.workers()


@pytest.mark.parametrize("volume", [{"persistentVolumeClaim": {"claimName": "mine"}}])
def test_a_users_own_volume_for_the_model_is_believed(volume: Json) -> None:
    cluster = Cluster({"template": {"spec": {"volumes": [{"name": "model", **volume}]}}})
    cluster.disk["mine", "tiny"] = "tiny"
    cluster.settle()
    assert cluster.status["readyReplicas"] == 2


def test_a_probe_that_reports_weights_of_nobody_counts_for_nothing() -> None:
    cluster = serving()
    world = cluster.observation()
    uid = cluster.engines[0].uid
    strange = replace(world, probes={**world.probes, uid: Probe("strange", generated=True)})
    cluster.observation = lambda: strange  # type: ignore[method-assign]
    made = cluster.plan()
    workers = child(made, "ConfigMap", "solver-workers")["data"]["workers.json"]
    assert cluster.engines[0].url not in workers and cluster.engines[1].url in workers
    assert made.status["readyReplicas"] == 1


def test_offline_a_plan_shows_what_would_be_applied() -> None:
    assert checkpoint("good", step=20)["spec"]["job"]["name"] == "solver-rl"
    cluster = Cluster({"model": FOLLOW})
    kinds = [item["kind"] for item in cluster.plan().objects]
    assert kinds.count("Deployment") == 2 and "Job" not in kinds
