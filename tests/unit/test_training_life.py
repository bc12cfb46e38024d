"""The life of a VerifiedRLJob as a specification: what happens in a cluster, and what is said."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from assay_operator.inference.kernels import Kernels
from assay_operator.plan import Json, Ref
from tests.unit.training_worlds import Cluster, container, digest, set_ready, unschedulable


def said(cluster: Cluster) -> list[str]:
    return [event.reason for event in cluster.events]


def running(spec: Json | None = None, **more: bool | int) -> Cluster:
    """A job whose trainer has just told that it trains."""
    cluster = Cluster(spec, **more)  # type: ignore[arg-type]
    cluster.until("Training")
    return cluster


# --- the way to the end -----------------------------------------------------------------------


def test_a_job_trains_to_its_last_step_and_is_complete() -> None:
    cluster = Cluster()
    seen = []
    while cluster.phase != "Complete":
        cluster.tick()
        seen.append(cluster.phase)
        assert len(seen) < 50
    assert list(dict.fromkeys(seen)) == ["Starting", "Training", "Complete"]
    assert cluster.status["progress"] == "6/6"
    assert cluster.status["generation"] == 1
    assert cluster.status["best"] == "solver-rl-1-6"
    assert cluster.status["bestScore"] == 0.4
    assert cluster.condition("Complete")["status"] == "True"
    assert digest("1.6")[:12] in cluster.condition("Complete")["message"]
    assert said(cluster)[-1] == "Complete"
    assert "GangStarted" in said(cluster) and "CheckpointVerified" in said(cluster)
    assert not [event for event in cluster.events if event.type == "Warning"]


def test_the_trainer_starts_when_the_first_engine_is_ready() -> None:
    cluster = Cluster({"rollout": {"engines": 2}})
    cluster.engines_start = False
    cluster.ticks(5)
    assert not cluster.jobs and cluster.phase == "Starting"
    assert cluster.condition("Training")["reason"] == "WaitingForEngines"
    cluster.ticks(1)
    set_ready(cluster.component("engine")[0], True, cluster.now)
    cluster.look()
    assert cluster.jobs == ["solver-rl-trainer-1"]
    assert cluster.condition("EnginesReady")["message"].startswith("1 of 2 engines are ready")


def test_numbers_are_told_while_it_trains() -> None:
    cluster = running()
    cluster.until_step(2)
    status = cluster.status
    assert (status["step"], status["of"], status["progress"]) == (2, 6, "2/6")
    assert (status["reward"], status["score"], status["eta"]) == (0.27, 0.2, "40s")
    assert cluster.condition("Training")["status"] == "True"
    assert (
        cluster.condition("CheckpointReady")["message"] == "The newest is Checkpoint solver-rl-1-2."
    )
    assert cluster.condition("Verified")["reason"] == "EvaluatedInTraining"


def test_when_it_is_over_its_engines_go_and_its_pods_stay_for_their_logs() -> None:
    cluster = running()
    cluster.until("Complete")
    cluster.ticks(3)
    assert not cluster.component("engine")
    assert cluster.jobs == ["solver-rl-trainer-1"]
    assert len(cluster.trainer_pods) == 1
    assert cluster.condition("EnginesReady")["reason"] == "Finished"


def test_in_steady_state_nothing_changes() -> None:
    cluster = running()
    cluster.until("Complete")
    cluster.ticks(2)
    before, events = dict(cluster.status), len(cluster.events)
    cluster.ticks(20)
    assert cluster.status == before
    assert len(cluster.events) == events


def test_after_its_time_to_live_all_goes_but_checkpoints_and_claim() -> None:
    storage = {"claim": None, "size": "50Gi"}
    cluster = running({"ttlAfterFinished": "5m", "checkpoint": {"storage": storage}})
    cluster.until("Complete")
    assert cluster.last.next_look <= 300
    cluster.ticks(29)
    assert cluster.jobs
    cluster.ticks(4)
    assert set(cluster.children) == {Ref("PersistentVolumeClaim", "solver-rl-checkpoints")}
    assert not cluster.pods
    assert set(cluster.checkpoints) == {"solver-rl-1-4", "solver-rl-1-6"}
    assert "cleared away" in cluster.condition("Complete")["message"]


def test_a_trainer_that_does_not_end_after_its_last_checkpoint_is_ended() -> None:
    cluster = running()
    cluster.until_step(6)
    cluster.trainer.hangs = True
    cluster.ticks(2)
    assert cluster.phase == "Complete" and cluster.jobs
    cluster.ticks(15)
    assert not cluster.jobs and not cluster.trainer_pods


# --- success needs the marker -----------------------------------------------------------------


def test_exit_code_0_alone_is_no_success() -> None:
    cluster = running(words=False)
    cluster.tick()
    cluster.crash(0)
    cluster.until("Restarting")
    assert cluster.condition("Complete")["status"] == "False"
    assert cluster.status["lastFailure"]["reason"] == "MarkerMissing"
    assert "assay-train checkpoints" in cluster.status["lastFailure"]["message"]
    cluster.until("Complete")
    assert cluster.status["generation"] == 2


def test_last_words_are_enough_if_nobody_looked_in_time() -> None:
    cluster = running()
    for _ in range(10):
        cluster.tick(dies="status")
    assert cluster.phase == "Training"
    cluster.tick()
    assert cluster.phase == "Complete"
    assert "solver-rl-1-6" in cluster.checkpoints


def test_last_words_about_a_checkpoint_that_nobody_knows_are_not_believed() -> None:
    cluster = running()
    words = f'{{"finished": true, "step": 6, "digest": "{digest("evil")}"}}'
    for pod in cluster.trainer_pods:
        cluster.words = False
        cluster.end(pod, 0)
        container(pod)["state"]["terminated"]["message"] = words
    cluster.tick()
    assert cluster.status["lastFailure"]["reason"] == "MarkerMissing"


def test_all_steps_done_without_the_last_ones_checkpoint_is_no_success() -> None:
    cluster = running(words=False)
    cluster.trainer.step, cluster.trainer.phase, cluster.trainer.hangs = 6, "finished", True
    cluster.ticks(3)
    assert cluster.phase == "Training"


# --- restarts ---------------------------------------------------------------------------------


def test_a_gang_starts_again_only_when_nothing_is_left_of_the_last() -> None:
    cluster = running({"trainer": {"nodes": 2}}, lag=6)
    cluster.tick()
    cluster.crash()
    seen = []
    for _ in range(20):
        if cluster.status["generation"] > 1:
            break
        cluster.tick()
        seen.append((cluster.phase, len(cluster.trainer_pods), len(cluster.jobs)))
    assert ("Restarting", 2, 0) in seen, "pods that go slowly are waited for"
    assert cluster.jobs == ["solver-rl-trainer-2"]
    assert cluster.generations <= {2}
    cluster.until("Complete")


def test_it_goes_on_from_the_last_checkpoint_and_says_what_happened() -> None:
    cluster = running()
    cluster.ticks(2)
    cluster.crash(1, "assay-train: no engine answers")
    cluster.tick()
    failure = cluster.status["lastFailure"]
    assert failure["where"].startswith("pod/solver-rl-trainer-1-0")
    assert (failure["reason"], failure["exitCode"]) == ("TrainerExited", 1)
    assert "no engine answers" in failure["message"]
    assert cluster.status["restarts"] == 1
    cluster.until("Training")
    assert cluster.trainer.step >= 2
    cluster.until("Complete")
    assert cluster.status["lastFailure"] == failure, "it is kept after it is over"
    assert said(cluster).count("GangStarted") == 2


def test_a_new_step_wipes_out_the_failures_before_it() -> None:
    cluster = running({"backoffLimit": 1, "trainer": {"steps": 12}})
    for _ in range(4):
        cluster.until_step(cluster.status["gang"]["failedStep"] + 2)
        assert cluster.status["restarts"] == 0
        cluster.crash()
        cluster.until("Restarting")
        cluster.until("Training")
    cluster.until("Complete")
    assert cluster.status["generation"] == 5


def test_it_fails_for_good_after_too_many_failures_in_a_row_and_keeps_the_logs() -> None:
    cluster = running({"backoffLimit": 2})
    cluster.tick()
    for _ in range(3):
        cluster.until("Training")
        cluster.trainer.step = 0
        cluster.crash(1, "assay-train: boom")
        cluster.until("Restarting", "Failed")
    assert cluster.phase == "Failed"
    failed = cluster.condition("Failed")
    assert failed["reason"] == "TrainerExited"
    assert "failure 3 in a row" in failed["message"] and "backoffLimit is 2" in failed["message"]
    assert "assay.dev/retry" in failed["message"]
    assert cluster.jobs == ["solver-rl-trainer-3"] and cluster.trainer_pods
    assert said(cluster)[-1] == "Failed"
    cluster.ticks(30)
    assert cluster.status["generation"] == 3


def test_restarts_pause_longer_each_time() -> None:
    cluster = running({"backoffLimit": 5})
    pauses = []
    for _ in range(4):
        cluster.until("Training")
        cluster.trainer.step = 0
        cluster.crash()
        cluster.until("Restarting")
        ended = cluster.now
        cluster.until_restarted()
        pauses.append((cluster.now - ended).total_seconds())
    assert pauses == sorted(pauses) and pauses[-1] >= 40


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (3, "assay-train: stopped: the entropy fell", "TrainingStopped"),
        (2, "job.json: trainer.steps: wrong", "JobFileWrong"),
        (1, "assay-train: no checkpoint under /c is whole: repair one", "CheckpointsDamaged"),
    ],
)
def test_what_another_start_cannot_help_is_not_tried_again(
    code: int, message: str, reason: str
) -> None:
    cluster = running()
    cluster.crash(code, message)
    cluster.tick()
    assert cluster.phase == "Failed"
    assert cluster.condition("Failed")["reason"] == reason
    assert cluster.status["lastFailure"]["fatal"] is True


def test_with_torchrun_the_last_words_tell_the_code_that_it_swallowed() -> None:
    cluster = running({"trainer": {"nodes": 2}})
    words = '{"finished": false, "step": 1, "code": 3, "message": "the entropy fell"}'
    cluster.crash(1, words)
    cluster.tick()
    assert cluster.condition("Failed")["reason"] == "TrainingStopped"
    assert "the entropy fell" in cluster.condition("Failed")["message"]


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({"trainer": {"learningRate": 0.001}}, True),
        ({"backoffLimit": 7}, True),
        ({"suspend": False}, False),
        ({"ttlAfterFinished": "24h"}, False),
        ({"checkpoint": {"onDelete": "Delete"}}, False),
    ],
)
def test_a_failed_job_is_tried_again_when_its_owner_changes_what_matters(
    change: Json, goes_on: bool
) -> None:
    cluster = running()
    cluster.crash(3, "assay-train: stopped")
    cluster.until("Failed")
    cluster.job["spec"] = cluster.job["spec"] | {
        key: (cluster.job["spec"][key] | value if isinstance(value, dict) else value)
        for key, value in change.items()
    }
    cluster.ticks(10)
    assert (cluster.phase != "Failed") is goes_on
    if goes_on:
        cluster.until("Complete")
        assert cluster.condition("Failed")["status"] == "False"


def test_an_annotation_has_a_failed_job_tried_again() -> None:
    cluster = running()
    cluster.crash(3, "assay-train: stopped")
    cluster.until("Failed")
    cluster.job["metadata"]["annotations"] = {"assay.dev/retry": "now"}
    cluster.until("Complete")


def test_a_complete_job_goes_on_when_it_gets_more_steps() -> None:
    cluster = running()
    cluster.until("Complete")
    cluster.job["spec"]["trainer"]["steps"] = 8
    cluster.tick()
    assert cluster.phase == "Restarting"
    cluster.until("Complete")
    assert cluster.status["progress"] == "8/8"
    assert cluster.generations == {2}
    cluster.job["spec"]["trainer"]["steps"] = 4
    cluster.ticks(5)
    assert cluster.phase == "Complete"


def test_what_the_cluster_takes_away_does_not_count() -> None:
    cluster = running({"backoffLimit": 0})
    for _ in range(3):
        cluster.until("Training")
        cluster.trainer.step = 0
        cluster.evict()
        cluster.until("Restarting")
    assert cluster.status["restarts"] == 0
    assert cluster.status["generation"] == 3
    assert "Disrupted" in said(cluster)
    cluster.until("Complete")


def test_what_the_kubelet_evicts_counts() -> None:
    cluster = running({"backoffLimit": 0})
    cluster.evict("TerminationByKubelet")
    cluster.tick()
    assert cluster.phase == "Failed"


def test_a_job_that_somebody_deleted_is_made_again() -> None:
    cluster = running()
    cluster._delete(Ref("Job", "solver-rl-trainer-1"))
    cluster.tick()
    assert cluster.status["lastFailure"]["reason"] == "JobDeleted"
    cluster.until("Complete")
    assert cluster.status["generation"] == 2


def test_a_changed_spec_ends_the_gang_with_a_checkpoint_and_does_not_count() -> None:
    cluster = running({"trainer": {"steps": 9}})
    cluster.until_step(3)
    cluster.job["spec"]["trainer"]["learningRate"] = 0.001
    cluster.tick()
    assert cluster.phase == "Restarting" and cluster.jobs, "why is written before it is done"
    cluster.until("Training")
    assert cluster.storage.saved[0]["step"] >= 3
    assert cluster.status["generation"] == 2 and cluster.status["restarts"] == 0
    assert "SpecChanged" in said(cluster)
    assert not [event for event in cluster.events if event.type == "Warning"]


# --- no progress ------------------------------------------------------------------------------


def test_a_trainer_that_hangs_is_started_again_after_the_deadline() -> None:
    cluster = running()
    cluster.trainer.hangs = True
    hung = cluster.now
    cluster.until("Restarting")
    assert timedelta(minutes=3) < cluster.now - hung < timedelta(minutes=4)
    assert cluster.status["lastFailure"]["reason"] == "NoProgress"
    assert "spec.progressDeadline" in cluster.status["lastFailure"]["message"]
    cluster.until("Complete")


def test_work_within_a_step_is_progress_too() -> None:
    cluster = running()
    trainer = cluster.trainer
    trainer.hangs = True
    for turn in range(60):
        trainer.phase = "evaluate" if turn % 2 else "rollout"
        cluster.tick()
    assert cluster.phase == "Training"


def test_a_trainer_that_does_not_answer_is_started_again_after_the_deadline() -> None:
    cluster = running()
    cluster.trainer.mute = cluster.trainer.hangs = True
    cluster.ticks(8)
    assert cluster.phase == "Starting"
    assert cluster.condition("Training")["reason"] == "TrainerSilent"
    cluster.until("Restarting")
    assert cluster.status["lastFailure"]["reason"] == "TrainerSilent"
    cluster.until("Complete")


def test_a_short_silence_is_not_told() -> None:
    cluster = running()
    cluster.trainer.mute = cluster.trainer.hangs = True
    cluster.ticks(3)
    assert cluster.phase == "Training"
    cluster.trainer.mute = cluster.trainer.hangs = False
    cluster.until("Complete")
    assert cluster.status["generation"] == 1


def test_an_operator_that_was_away_blames_nobody_for_it() -> None:
    cluster = running()
    cluster.trainer.mute = True
    cluster.now += timedelta(hours=5)
    cluster.look()
    assert cluster.phase == "Training"
    cluster.trainer.mute = False
    cluster.now += timedelta(hours=5)
    cluster.tick()
    assert cluster.phase == "Training"


def test_waiting_for_a_place_in_the_cluster_is_no_failure() -> None:
    cluster = Cluster()
    cluster.until_pods()
    (pod,) = cluster.trainer_pods
    for _ in range(60):
        unschedulable(pod)
        cluster.now += timedelta(minutes=5)
        cluster.look()
    assert cluster.status["generation"] == 1
    reason = cluster.condition("Training")["message"]
    assert cluster.phase == "Starting"
    assert "spec.trainer.gpusPerNode" in reason and "spec.engine" not in reason
    pod["status"]["conditions"][0] |= {
        "status": "True",
        "lastTransitionTime": cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    cluster.until("Complete")
    assert cluster.status["generation"] == 1


def test_an_image_that_cannot_be_pulled_is_named_and_fails_in_the_end() -> None:
    cluster = Cluster({"backoffLimit": 0})
    for _ in range(40):
        for pod in cluster.trainer_pods:
            pod["status"]["phase"] = "Waiting"
            container(pod)["state"] = {"waiting": {"reason": "ErrImagePull", "message": "denied"}}
        cluster.tick()
    assert cluster.phase == "Failed"
    assert cluster.condition("Failed")["reason"] == "ImagePullFailed"
    assert "spec.trainer.template" in cluster.condition("Failed")["message"]


def test_engines_that_never_come_are_a_failure() -> None:
    cluster = Cluster({"backoffLimit": 1})
    cluster.engines_start = False
    cluster.until("Failed", ticks=100)
    assert cluster.condition("Failed")["reason"] == "EnginesNotReady"
    assert "None was ready" in cluster.condition("Failed")["message"]
    assert cluster.status["generation"] == 0
    assert not cluster.trainer_pods


def test_engines_without_the_kernels_that_the_job_asks_for_are_not_trained_with() -> None:
    """Silence is not enough either: what they would draw with is not known."""
    cluster = Cluster({"rollout": {"engine": {"kernels": "fused"}}})
    cluster.kernels = None
    cluster.ticks(3)
    assert cluster.condition("EnginesReady")["reason"] == "Starting" and not cluster.trainer_pods
    cluster.kernels = Kernels(active=False, why_not="the sampler is not in place")
    cluster.ticks(3)
    told = cluster.condition("EnginesReady")
    assert told["reason"] == "KernelsInactive" and not cluster.trainer_pods
    assert "the sampler is not in place" in told["message"]
    assert "spec.rollout.engine.kernels" in told["message"]
    cluster.kernels = Kernels(active=True)
    cluster.until("Training")
    assert cluster.condition("EnginesReady")["status"] == "True"


def test_of_two_engines_the_one_without_kernels_holds_nothing_up_and_the_trainer_asks_it_too() -> (
    None
):
    """Its URL is in the job file, and it may get its kernels with its next start, or lose them."""
    cluster = Cluster({"rollout": {"engines": 2, "engine": {"kernels": "fused"}}})
    cluster.kernels = Kernels(active=True)
    cluster.kernels_of["solver-rl-engine-1"] = Kernels(active=False, why_not="another signature")
    cluster.until("Training")
    told = cluster.condition("EnginesReady")
    assert (told["status"], told["reason"]) == ("False", "KernelsInactive")
    assert "pod/solver-rl-engine-1" in told["message"] and "another signature" in told["message"]
    file = json.loads(cluster.children[Ref("ConfigMap", "solver-rl-job")]["data"]["job.json"])
    assert len(file["rollout"]["engines"]) == 2 and file["rollout"]["kernels"] == "fused"


# --- suspend and resume -----------------------------------------------------------------------


def test_a_suspended_job_writes_a_checkpoint_and_holds_nothing() -> None:
    cluster = running({"trainer": {"steps": 20}}, lag=2)
    cluster.until_step(5)
    cluster.job["spec"]["suspend"] = True
    cluster.tick()
    assert cluster.phase == "Suspending"
    assert cluster.component("engine"), "engines stay until the trainer is done with them"
    cluster.until("Suspended")
    cluster.tick()
    assert not cluster.pods and not cluster.jobs
    assert cluster.storage.step >= 5
    assert cluster.condition("Suspended")["status"] == "True"
    cluster.ticks(100)
    assert cluster.phase == "Suspended"
    cluster.job["spec"]["suspend"] = False
    cluster.until("Training")
    assert cluster.status["generation"] == 2 and cluster.status["restarts"] == 0
    assert cluster.trainer.step >= 5
    assert {"Suspended", "Resumed"} <= set(said(cluster))
    cluster.until("Complete")


def test_a_job_may_be_made_suspended() -> None:
    cluster = Cluster({"suspend": True})
    cluster.ticks(3)
    assert cluster.phase == "Suspended"
    assert not cluster.pods and not cluster.jobs
    cluster.job["spec"]["suspend"] = False
    cluster.until("Complete")


def test_a_job_that_finished_while_it_was_being_suspended_is_complete() -> None:
    cluster = running()
    cluster.until_step(5)
    cluster.job["spec"]["suspend"] = True
    cluster.tick()
    cluster.ticks(5)
    assert cluster.phase == "Complete"


# --- what it needs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (Ref("PersistentVolumeClaim", "ckpt"), "StorageMissing"),
        (Ref("PersistentVolumeClaim", "models"), "ModelMissing"),
        (Ref("ConfigMap", "heldout"), "SuiteMissing"),
        (Ref("ConfigMap", "own"), "DataMissing"),
    ],
)
def test_what_is_missing_is_named_and_waited_for(missing: Ref, reason: str) -> None:
    data = {"source": None, "configMap": "own"} if missing.name == "own" else {}
    cluster = Cluster({"data": data})
    cluster.found[missing] = None
    cluster.ticks(40)
    assert cluster.phase == "Pending"
    admitted = cluster.condition("Admitted")
    assert (admitted["status"], admitted["reason"]) == ("False", reason)
    assert missing.name in admitted["message"]
    assert not cluster.pods
    assert said(cluster) == ["NotAdmitted"]
    keys = {"suite.jsonl": "", "data.jsonl": ""}
    cluster.found[missing] = {"kind": missing.kind, "data": keys}
    cluster.until("Complete")
    assert cluster.status["restarts"] == 0


def test_a_config_map_without_the_key_that_is_mounted_is_as_good_as_none() -> None:
    cluster = Cluster()
    suite = Ref("ConfigMap", "heldout")
    cluster.found[suite] = {"data": {"suite.json": ""}}
    cluster.ticks(5)
    assert cluster.phase == "Pending" and not cluster.pods
    admitted = cluster.condition("Admitted")
    assert admitted["reason"] == "SuiteMissing"
    assert "ConfigMap heldout with the key suite.jsonl" in admitted["message"]
    cluster.found[suite] = {"binaryData": {"suite.jsonl": ""}}
    cluster.until("Complete")


def test_a_gang_that_runs_does_not_end_because_a_suite_was_deleted() -> None:
    cluster = running()
    cluster.found[Ref("ConfigMap", "heldout")] = None
    cluster.tick()
    assert cluster.phase == "Training"
    assert cluster.condition("Admitted")["reason"] == "SuiteMissing"
    cluster.until("Complete")


def test_only_soft_verifiers_are_admitted_with_a_warning() -> None:
    soft = {
        "type": "http",
        "url": "http://judge.default.svc/score",
    }
    cluster = running({"verifiers": [soft]})
    assert cluster.condition("VerificationWeak")["status"] == "True"
    weak = [event for event in cluster.events if event.reason == "VerificationWeak"]
    assert [event.type for event in weak] == ["Warning"]
    assert not running().condition("VerificationWeak")


def test_alarms_of_the_trainer_are_told_once_each() -> None:
    cluster = running({"trainer": {"steps": 20}})
    alarm = {"kind": "entropy", "stop": False, "reason": "entropy is 0.01", "remedy": "Set it"}
    for value in ("0.01", "0.02", "0.03"):
        cluster.trainer.alarms = [{**alarm, "reason": f"entropy is {value}"}]
        cluster.tick()
    assert said(cluster).count("TrainingAlarm") == 1
    assert cluster.status["alarms"] == ["entropy: entropy is 0.03. Set it"]
    cluster.trainer.alarms = []
    cluster.tick()
    assert "alarms" not in cluster.status


def test_what_the_trainers_check_doubts_is_told_once_each() -> None:
    cluster = running({"trainer": {"steps": 20}})
    overlap = "evaluation.suite: 3 of its items are trained on too, such as a: 3"
    cluster.trainer.doubts = [overlap, "evaluation: there is none"]
    cluster.ticks(3)
    told = [event for event in cluster.events if event.reason == "TrainingAlarm"]
    assert [event.message for event in told] == [
        f"doubt: {overlap}",
        "doubt: evaluation: there is none",
    ]
    assert cluster.status["alarms"][0] == f"doubt: {overlap}"


def test_a_spec_that_cannot_be_carried_out_touches_nothing() -> None:
    cluster = running()
    before = dict(cluster.children)
    cluster.job["spec"]["trainer"]["steps"] = 0
    cluster.tick()
    assert cluster.children.keys() == before.keys()
    assert cluster.last.prune is False
    assert cluster.condition("Admitted")["reason"] == "InvalidSpec"
    assert "spec.trainer.steps" in cluster.condition("Admitted")["message"]
    assert cluster.condition("Training")["status"] == "True"


# --- an operator that dies --------------------------------------------------------------------


def test_a_generation_whose_beginner_died_is_taken_over() -> None:
    cluster = Cluster()
    cluster.ticks(1)
    for _ in range(4):
        cluster.tick(dies="status")
    assert cluster.jobs and not cluster.status.get("generation")
    cluster.until("Complete")
    assert cluster.status["generation"] == 1


def test_a_lost_status_starts_nothing_twice() -> None:
    cluster = running()
    cluster.job["status"] = {}
    cluster.tick()
    assert cluster.jobs == ["solver-rl-trainer-1"]
    cluster.until("Complete")
    assert cluster.status["generation"] == 1
