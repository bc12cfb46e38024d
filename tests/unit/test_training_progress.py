"""What trainers say, and what is wrong with their pods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay_operator.training.failures import engine_failure, gang_failure, last_words
from assay_operator.training.observation import TrainerAnswer
from assay_operator.training.progress import (
    Farewell,
    Marker,
    Progress,
    end_of,
    farewell,
    heard,
    in_words,
)
from assay_trainer.metrics import Metrics
from assay_trainer.status import Status, as_json
from assay_trainer.watch import Alarm
from tests.unit.training_worlds import START, Cluster, Json, digest, unschedulable

SAVED: Json = {
    "step": 6,
    "path": "/checkpoints/solver-rl/checkpoints/step-000006",
    "digest": digest("1.6"),
    "version": "1.6",
}


def answer(**more: Any) -> TrainerAnswer:
    said = {"name": "solver-rl", "phase": "train", "step": 3, "of": 6}
    return TrainerAnswer({**said, **more})


def progress(**more: Any) -> Progress:
    said = heard(answer(**more), "solver-rl")
    assert isinstance(said, Progress)
    return said


# --- answers ----------------------------------------------------------------------------------


def test_what_the_trainer_of_this_release_says_is_understood() -> None:
    status = Status("solver-rl", 100, step=11, clock=lambda: 8.0)
    line: Metrics = {"step": 12.0, "loss": float("nan"), "reward/mean": 0.41, "seconds/step": 2.0}
    status.finished(line)
    status.weighed(12, {"evaluation/score": 0.5, "evaluation/low": 0.4, "evaluation/high": 0.6})
    status.update(
        phase="evaluate",
        done=3,
        total=9,
        alarms=(Alarm("entropy", False, "the entropy fell", "Set algorithm.entropy"),),
        doubts=("evaluation: there is none",),
    )
    told = json.loads(json.dumps(as_json(status.state, 8.0)))
    said = heard(TrainerAnswer(told), "solver-rl")
    assert isinstance(said, Progress)
    assert (said.step, said.of, said.reward, said.score) == (12, 100, 0.41, 0.5)
    assert (said.phase, said.phase_done, said.eta_seconds) == ("evaluate", 3, 176)
    assert said.warnings == [
        "entropy: the entropy fell. Set algorithm.entropy",
        "doubt: evaluation: there is none",
    ]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (TrainerAnswer(error="connection refused"), "connection refused"),
        (TrainerAnswer(), "said nothing"),
        (TrainerAnswer({}), "must be of the operator's release"),
        (answer(step="many"), "step"),
        (answer(step=-1), "step"),
        (answer(checkpoints=[{"step": 6, "path": "/x", "digest": digest("a")}]), "version"),
        (answer(checkpoints=[{**SAVED, "digest": "../../etc"}]), "digest"),
        (answer(reward=float("inf")), "reward"),
        (answer(name="other"), "'other' answers"),
    ],
)
def test_what_is_not_understood_is_an_error_that_says_why(said: TrainerAnswer, why: str) -> None:
    told = heard(said, "solver-rl")
    assert isinstance(told, str) and why in told


def test_a_newer_trainer_may_say_more() -> None:
    assert progress(mood="good").step == 3


def test_every_bit_of_progress_changes_the_mark() -> None:
    marks = {
        progress(**more).mark
        for more in ({}, {"step": 4}, {"phase": "push"}, {"phaseDone": 1}, {"checkpoints": [SAVED]})
    }
    assert len(marks) == 5
    assert progress(reward=0.5, message="x").mark == progress().mark


# --- the end ----------------------------------------------------------------------------------

DONE = Marker(6, digest("1.6"))


@pytest.mark.parametrize(
    ("said", "words", "marker"),
    [
        (progress(phase="finished", step=6, checkpoints=[SAVED]), None, DONE),
        (progress(phase="checkpoint", step=6, checkpoints=[SAVED]), None, None),
        (progress(phase="finished", step=6), None, None),
        (progress(phase="finished", step=5, of=5, checkpoints=[{**SAVED, "step": 5}]), None, None),
        (None, Farewell(finished=True, step=6, digest=digest("1.6")), DONE),
        (None, Farewell(finished=False, step=6, digest=digest("1.6")), None),
        (None, Farewell(finished=True, step=5, digest=digest("1.5")), None),
        (None, Farewell(finished=True, step=6), None),
        (None, None, None),
    ],
)
def test_a_run_is_done_with_its_last_steps_checkpoint_only(
    said: Progress | None, words: Farewell | None, marker: Marker | None
) -> None:
    assert end_of(said, words, 6) == marker


@pytest.mark.parametrize("text", ["", "Traceback ...", "{", "[]", "17", '{"finished": "maybe"}'])
def test_the_end_of_a_log_is_no_last_word(text: str) -> None:
    assert farewell(text) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (-3, "0s"),
        (59.4, "59s"),
        (59.9, "1m"),
        (3599, "1h"),
        (4800, "1h20m"),
        (86400, "1d"),
        (2 * 86400 + 4 * 3600 + 120, "2d4h"),
    ],
)
def test_durations_are_told_in_two_units(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# --- pods -------------------------------------------------------------------------------------


def ended(code: int = 1, message: str = "", *, reason: str = "Error", nodes: int = 1) -> Json:
    cluster = Cluster({"trainer": {"nodes": nodes}})
    cluster.until_pods()
    pod = cluster.trainer_pods[0]
    cluster.words = False
    cluster.end(pod, code, message, reason)
    return pod


@pytest.mark.parametrize(
    ("code", "message", "reason", "remedy"),
    [
        (137, "", "OutOfMemory", "spec.trainer.resources.limits.memory"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "OutOfMemory", "tokensPerMicro"),
        (1, "step 20 could not be saved: 1 GB are free in /c", "StorageFull", "enlarge it"),
        (1, "OSError: [Errno 28] No space left on device", "StorageFull", "checkpoint.keep"),
        (1, "[Errno 30] Read-only file system: '/c'", "StorageNotWritable", "user 65532"),
        (1, "another trainer works in the folder", "FolderInUse", "Another trainer"),
        (1, "no checkpoint under /c is whole: repair one", "CheckpointsDamaged", "repair one"),
        (2, "job.json: trainer.steps: wrong", "JobFileWrong", "trainer.images"),
        (3, "stopped: entropy", "TrainingStopped", "Change the spec"),
        (143, "", "Terminated", "SIGTERM"),
        (139, "", "TrainerExited", "signal 11"),
        (1, "assay-train: boom", "TrainerExited", "boom"),
        (1, "", "TrainerExited", "kubectl logs"),
    ],
)
def test_an_exit_says_what_it_was_and_what_to_do(
    code: int, message: str, reason: str, remedy: str
) -> None:
    found = gang_failure(
        [ended(code, message, reason="OOMKilled" if code == 137 else "Error")], START
    )
    assert found is not None
    assert (found.failure.reason, found.failure.exit_code) == (reason, code)
    assert remedy in found.failure.message
    assert found.hopeless is (reason in {"CheckpointsDamaged", "JobFileWrong", "TrainingStopped"})


def test_of_several_pods_the_first_that_ended_is_the_cause() -> None:
    first, second = ended(1, "NCCL: the peer is gone"), ended(1, "assay-train: boom")
    times = ("2026-11-24T12:05:00Z", "2026-11-24T12:04:59Z")
    for pod, time in zip((first, second), times, strict=True):
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = time
    found = gang_failure([first, second], START)
    assert found is not None and "boom" in found.failure.message


def test_a_pod_that_was_evicted_says_so() -> None:
    pod = ended()
    pod["status"].update(phase="Failed", reason="Evicted", message="low on memory")
    pod["status"]["containerStatuses"] = []
    found = gang_failure([pod], START)
    assert found is not None and not found.disrupted
    assert (found.failure.reason, found.trouble.counts) == ("Evicted", True)
    assert "low on memory" in found.failure.message


def test_a_pod_that_runs_or_succeeded_has_not_failed() -> None:
    cluster = Cluster()
    cluster.until("Training")
    assert gang_failure(cluster.trainer_pods, START) is None
    assert last_words(cluster.trainer_pods[0]) is None
    assert last_words(None) is None
    cluster.until("Complete")
    cluster.ticks(2)
    assert gang_failure(cluster.trainer_pods, START) is None
    words = last_words(cluster.trainer_pods[0])
    assert words is not None and words.finished


def test_remedies_name_the_fields_of_a_job() -> None:
    cluster = Cluster()
    cluster.until_pods()
    for pods, find in (
        (cluster.trainer_pods, lambda pods: getattr(gang_failure(pods, START), "failure", None)),
        (cluster.component("engine"), lambda pods: engine_failure(pods, {}, START)),
    ):
        for message in (
            "0/3 nodes: 3 Insufficient nvidia.com/gpu, didn't match node selector",
            'persistentvolumeclaim "ckpt" not found',
            "pod has unbound immediate PersistentVolumeClaims",
            "0/3 nodes: untolerated taint",
        ):
            unschedulable(pods[0], message)
            failure = find(pods)
            assert failure is not None
            for foreign in ("spec.engine", "spec.replicas", "spec.template"):
                assert foreign not in failure.message, failure.message
