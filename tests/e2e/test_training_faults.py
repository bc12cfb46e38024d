"""What a job trains through: its trainer killed, its storage read-only, its engine killed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.assay import Assay
from tests.cluster.errors import ClusterError
from tests.e2e.clients import kill_process
from tests.e2e.jobs import make_task, sorting_job, status_of, wait_end, wait_job
from tests.e2e.nodes import Folder, disk, folder_of
from tests.kube import Json, Kube, wait_for

JOB, CLAIM = "sturdy", "sturdy-disk"
STEPS, EVERY = 10, 2
DISK_MEGABYTES = 256
FAULT_SECONDS = 240
PODS = f"app.kubernetes.io/instance=verifiedrljob.{JOB}"


@dataclass(frozen=True)
class Sturdy:
    """A job under way, and the disk that it writes to."""

    kube: Kube
    disk: Folder

    @property
    def trainer(self) -> str:
        """The name of the trainer's pod."""
        (pod,) = self.kube.list("pods", f"{PODS},app.kubernetes.io/component=trainer")
        return str(pod["metadata"]["name"])

    def status(self) -> Json:
        return status_of(self.kube, JOB)

    def wait_step(self, step: int) -> Json:
        """The status, once that many steps are done."""
        what = f"step {step}"
        return wait_job(
            self.kube, JOB, what, lambda status: status.get("step", 0) >= step, FAULT_SECONDS
        )

    def checkpoints(self) -> list[tuple[int, int]]:
        """ATTEMPT and STEP of those that there are, in this order."""
        made = (item["spec"].get("job") or {} for item in self.kube.list("ckpt"))
        versions = [each["version"].split(".") for each in made if each.get("name") == JOB]
        return sorted((int(attempt), int(step)) for attempt, step in versions)

    def remounted_read_only(self) -> bool:
        """Whether the disk is read-only now; it cannot be while somebody writes."""
        try:
            self.disk.remount("ro")
        except ClusterError:
            return False
        return True


@pytest.fixture(scope="module")
def sturdy(
    assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sturdy]:
    """A job whose suite is what it is trained on."""
    make_task(assay, kube, tmp_path_factory.mktemp("task") / "log")
    with disk(kube, CLAIM, folder_of(kube, "models").node, DISK_MEGABYTES) as folder:
        storage = {"claim": CLAIM}
        kube.apply(
            sorting_job(JOB, steps=STEPS, every=EVERY, storage=storage, items="task/heldout.jsonl")
        )
        yield Sturdy(kube, folder)
        kube.delete("vrl", JOB)
        wait_for("no pod of the job", lambda: not kube.list("pods", PODS), 120, every=1)


def test_a_suite_that_is_trained_on_too_is_warned_of(sturdy: Sturdy) -> None:
    sturdy.wait_step(1)
    said = [
        event["message"]
        for event in sturdy.kube.list("events")
        if event["involvedObject"]["name"] == JOB and event["reason"] == "TrainingAlarm"
    ]
    assert any("are trained on too" in message for message in said), said


def test_a_killed_trainer_that_finds_its_storage_read_only_goes_on_when_it_can_write(
    sturdy: Sturdy,
) -> None:
    """From its checkpoint, and as another generation of pods."""
    before = sturdy.wait_step(EVERY + 1)
    wait_for("a checkpoint", sturdy.checkpoints, 30)
    kept = max(sturdy.checkpoints())
    kill_process(sturdy.kube, sturdy.trainer, "trainer", "KILL")
    wait_for("a disk that is read-only", sturdy.remounted_read_only, 10, every=0.1)
    try:
        wait_job(
            sturdy.kube,
            JOB,
            "StorageNotWritable",
            lambda status: (status.get("lastFailure") or {}).get("reason") == "StorageNotWritable",
            FAULT_SECONDS,
        )
    finally:
        sturdy.disk.remount("rw")
    after = sturdy.wait_step(before["step"] + EVERY)
    assert after["generation"] > before["generation"]

    def of_another_attempt() -> list[tuple[int, int]]:
        return [each for each in sturdy.checkpoints() if each[0] > kept[0]]

    # Weights of another attempt have names of their own; the operator hears of them after the step.
    later = wait_for("a checkpoint of another attempt", of_another_attempt, 60, every=1)
    assert min(step for _, step in later) > kept[1], "not from the beginning"


def test_a_killed_engine_is_given_the_weights_again_and_the_trainer_goes_on(
    sturdy: Sturdy,
) -> None:
    before = sturdy.status()
    kill_process(sturdy.kube, f"{JOB}-engine-0", "engine", "KILL")
    after = sturdy.wait_step(before["step"] + 2)
    assert after["generation"] == before["generation"], "the same pods"


def test_after_all_that_every_step_was_done(sturdy: Sturdy) -> None:
    ended = wait_end(sturdy.kube, JOB)
    assert (ended["phase"], ended["progress"]) == ("Complete", f"{STEPS}/{STEPS}")
    assert sturdy.checkpoints()[-1][1] == STEPS
