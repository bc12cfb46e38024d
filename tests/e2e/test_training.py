"""A job trains under verifiers; what it makes is weighed, and served by a service that follows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.assay import Assay
from tests.e2e.clients import reported
from tests.e2e.jobs import ENGINE, make_task, sorting_job, wait_end, wait_job
from tests.e2e.nodes import folder_of, shown
from tests.e2e.rollouts import engine_uids, wait_rollout
from tests.kube import Json, Kube, wait_for

JOB, SERVICE = "sorter", "sorted"
STEPS, EVERY = 4, 2
STORAGE = {"size": "1Gi", "accessMode": "ReadWriteOnce"}
PAIR = "pair"
PAIR_PODS = f"app.kubernetes.io/instance=verifiedrljob.{PAIR}"
PAIR_TRAINERS = f"{PAIR_PODS},app.kubernetes.io/component=trainer"
SUSPENDED_SECONDS = 240
NAMESPACE_SECONDS = 180


@pytest.fixture(scope="module")
def trained(
    assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kube]:
    """The small task, and a job that was applied and ran to its end."""
    make_task(assay, kube, tmp_path_factory.mktemp("task") / "log")
    kube.apply(sorting_job(JOB, steps=STEPS, every=EVERY, storage=STORAGE))
    wait_end(kube, JOB)
    yield kube
    kube.delete("vrl", JOB)


def test_get_shows_how_far_it_is_and_its_best_checkpoint(trained: Kube) -> None:
    head, row = trained.kubectl("get", "vrl", JOB).splitlines()
    assert head.split() == ["NAME", "PHASE", "STEP", "REWARD", "SCORE", "BEST", "ETA", "AGE"]
    assert row.split()[1:3] == ["Complete", f"{STEPS}/{STEPS}"], trained.kubectl(
        "get", "vrl", JOB, "-o", "yaml"
    )
    assert f"{JOB}-1-" in row


def test_every_checkpoint_was_weighed_and_names_its_bytes(trained: Kube) -> None:
    made = {item["metadata"]["name"]: item for item in trained.list("ckpt")}
    for step in (EVERY, STEPS):
        found = made[f"{JOB}-1-{step}"]
        conditions = {each["type"]: each for each in found["status"]["conditions"]}
        assert conditions["Verified"]["reason"] == "EvaluatedInTraining"
        assert found["spec"]["digest"].startswith("sha256:")
        assert found["spec"]["job"]["step"] == step


def test_a_checkpoint_cannot_be_changed(trained: Kube) -> None:
    patch = json.dumps({"spec": {"source": "pvc://models/other"}})
    words = ("patch", "ckpt", f"{JOB}-1-{STEPS}", "--type=merge", "--patch", patch)
    assert "cannot be changed" in trained.kubectl(*words, check=False)


def best_of(kube: Kube, job: str) -> str:
    """The digest of a job's best checkpoint."""
    best = (kube.get("vrl", job) or {})["status"]["best"]
    found: str = (kube.get("ckpt", best) or {})["spec"]["digest"]
    return found


def test_a_service_that_follows_the_job_serves_its_best_checkpoint(trained: Kube) -> None:
    follows = {"source": "pvc://models/task/model", "follow": {"job": JOB}}
    spec = {"model": follows, "engine": ENGINE, "rollout": {"canary": {"hold": "1s"}}}
    with trained.service(SERVICE, spec):
        trained.wait_ready(SERVICE)
        wanted = best_of(trained, JOB)
        wait_rollout(trained, SERVICE, "Done", wanted)
        assert reported(trained, SERVICE) == {wanted}


def grant(namespace: str) -> Json:
    """Lets services of a namespace follow the job."""
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "CheckpointGrant",
        "metadata": {"name": "readers"},
        "spec": {"from": [{"namespace": namespace}], "jobs": [JOB]},
    }


def test_a_service_of_another_namespace_follows_it_once_that_is_granted(trained: Kube) -> None:
    """What it served is another model, so new pods bring what it follows."""
    readers = Kube(trained.cluster, f"{trained.namespace}-readers")
    made = trained.get("ckpt", f"{JOB}-1-{STEPS}") or {}
    claim = made["spec"]["source"].removeprefix("pvc://").partition("/")[0]
    checkpoints = folder_of(trained, claim)
    follow = {"job": JOB, "namespace": trained.namespace, "claim": "checkpoints"}
    spec = {
        "model": {"source": "pvc://models/tiny", "follow": follow},
        "engine": ENGINE,
        "rollout": {"canary": {"hold": "1s"}},
    }
    gone = ("delete", "namespace", readers.namespace, f"--timeout={NAMESPACE_SECONDS}s")
    readers.cluster.kubectl(*gone, "--ignore-not-found")
    readers.cluster.kubectl("create", "namespace", readers.namespace)
    try:
        with (
            shown(folder_of(trained, "models"), readers, "models"),
            shown(checkpoints, readers, "checkpoints"),
            readers.service(SERVICE, spec),
        ):
            readers.wait_ready(SERVICE)
            before = engine_uids(readers, SERVICE)
            assert readers.condition(SERVICE, "Target")["reason"] == "NotGranted"
            trained.apply(grant(readers.namespace))
            wanted = best_of(trained, JOB)
            wait_rollout(readers, SERVICE, "Done", wanted)
            assert reported(readers, SERVICE) == {wanted}
            assert engine_uids(readers, SERVICE).isdisjoint(before)
            said = {event["reason"] for event in readers.events(SERVICE)}
            assert {"Recreate", "RolloutDone"} <= said
    finally:
        trained.delete("ckptgrant", "readers")
        readers.cluster.kubectl(*gone)


def test_two_trainer_pods_train_together_and_go_on_after_the_job_was_suspended(
    trained: Kube,
) -> None:
    job = sorting_job(PAIR, steps=STEPS, every=EVERY, storage=STORAGE)
    # Two of them and an engine have to find room on the test machine.
    small = {"requests": {"cpu": "50m", "memory": "128Mi"}}
    job["spec"]["trainer"] |= {"nodes": 2, "resources": small}
    trained.apply(job)
    try:
        at_work = wait_job(trained, PAIR, "a step", lambda status: status.get("step", 0) >= 1)
        assert len(trained.list("pods", PAIR_TRAINERS)) == 2
        suspend(trained, True)
        wait_job(
            trained,
            PAIR,
            "Suspended",
            lambda status: status["phase"] == "Suspended",
            SUSPENDED_SECONDS,
        )
        wait_for("no pod", lambda: not trained.list("pods", PAIR_PODS), SUSPENDED_SECONDS, every=1)
        suspend(trained, False)
        ended = wait_end(trained, PAIR)
    finally:
        trained.delete("vrl", PAIR)
    assert (ended["phase"], ended["progress"]) == ("Complete", f"{STEPS}/{STEPS}")
    assert ended["generation"] > at_work["generation"]
    made = [item["spec"]["job"] for item in trained.list("ckpt") if item["spec"].get("job")]
    steps: dict[str, list[int]] = {}
    for each in made:
        if each["name"] == PAIR:
            steps.setdefault(each["version"].partition(".")[0], []).append(each["step"])
    assert sorted(steps) == ["1", "2"], "the first attempt left one when its pods went"
    assert max(steps["1"]) < min(steps["2"]), "the second went on there"
    assert max(steps["2"]) == STEPS


def suspend(kube: Kube, wanted: bool) -> None:
    patch = json.dumps({"spec": {"suspend": wanted}})
    kube.kubectl("patch", "vrl", PAIR, "--type=merge", "--patch", patch)
