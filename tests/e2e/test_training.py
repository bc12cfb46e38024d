"""A job trains under verifiers; what it makes is weighed, and served by a service that follows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.assay import Assay
from tests.e2e.clients import reported
from tests.e2e.jobs import ENGINE, make_task, sorting_job, wait_end
from tests.kube import Kube, wait_for

JOB, SERVICE = "sorter", "sorted"
STEPS, EVERY = 4, 2


@pytest.fixture(scope="module")
def trained(
    assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kube]:
    """The small task, and a job that was applied and ran to its end."""
    make_task(assay, kube, tmp_path_factory.mktemp("task") / "log")
    storage = {"size": "1Gi", "accessMode": "ReadWriteOnce"}
    kube.apply(sorting_job(JOB, steps=STEPS, every=EVERY, storage=storage))
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


def test_a_service_that_follows_the_job_serves_its_best_checkpoint(trained: Kube) -> None:
    best = ((trained.get("vrl", JOB) or {})["status"])["best"]
    wanted = (trained.get("ckpt", best) or {})["spec"]["digest"]
    follows = {"source": "pvc://models/task/model", "follow": {"job": JOB}}
    spec = {"model": follows, "engine": ENGINE, "rollout": {"canary": {"hold": "1s"}}}
    with trained.service(SERVICE, spec):
        trained.wait_ready(SERVICE)

        def served() -> bool:
            status = (trained.get("infsvc", SERVICE) or {}).get("status", {})
            return bool(status.get("served", {}).get("version") == wanted)

        wait_for(f"{best} served", served, 240, every=1)
        assert reported(trained, SERVICE) == {wanted}
