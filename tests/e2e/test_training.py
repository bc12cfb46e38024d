"""A job trains under verifiers; what it makes is weighed, and served by a service that follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assay import Assay
from tests.cluster.processes import Processes
from tests.cluster.steps import StepRun
from tests.e2e.clients import reported
from tests.kube import Json, Kube, infsvc, wait_for

JOB, SERVICE, SUITE = "sorter", "sorted", "sorted-heldout"
STEPS, EVERY = 4, 2
TRAINED_SECONDS = 400
ENGINE = {"extraArgs": ["--max-total-tokens", "8192"]}
"""Without what the tests' usual model asks for: this one reads 64 tokens only."""
# The list of what is asked lies on the node with the model; a ConfigMap shows it to gate and job.
READ = "from pathlib import Path; print(Path('/models/task/heldout.jsonl').read_text())"


def reader(image: str) -> Json:
    """A pod that sees the claim `models`."""
    container = {
        "name": "reader",
        "image": image,
        "command": ["python3", "-c", f"import time; {READ}; time.sleep(1e6)"],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        },
    }


def job() -> Json:
    engine = infsvc(JOB, {"engine": ENGINE})["spec"]["engine"]
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "VerifiedRLJob",
        "metadata": {"name": JOB},
        "spec": {
            "model": {"source": "pvc://models/task/model"},
            "data": {"claim": "models", "path": "task/train.jsonl", "maxPromptTokens": 16},
            "algorithm": {"name": "grpo", "groupSize": 8},
            "rollout": {"engine": engine, "maxTokens": 12, "maxStaleness": 0},
            "trainer": {
                "accelerator": "cpu",
                "steps": STEPS,
                "promptsPerStep": 8,
                "learningRate": 3e-4,
                "precision": "fp32",
                "activationCheckpointing": False,
                "tokensPerMicroBatch": 2048,
            },
            "checkpoint": {
                "every": EVERY,
                "storage": {"size": "1Gi", "accessMode": "ReadWriteOnce"},
            },
            "evaluation": {"every": EVERY, "suite": {"configMap": SUITE}, "minScore": 0.3},
        },
    }


@pytest.fixture(scope="module")
def trained(
    assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kube]:
    """The small task, and a job that was applied and ran to its end."""
    log: Path = tmp_path_factory.mktemp("task") / "log"
    assay.make_task(kube.namespace, StepRun("task", log, Processes()))
    kube.apply(reader(assay.engine_image))
    kube.kubectl("wait", "pod/reader", "--for=condition=Ready", "--timeout=120s")
    suite = wait_for("the suite", lambda: kube.kubectl("logs", "reader").strip(), 30)
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SUITE},
            "data": {"suite.jsonl": suite + "\n"},
        },
        job(),
    )
    kube.delete("pod", "reader")

    def ended() -> Json | None:
        status: Json = (kube.get("vrl", JOB) or {}).get("status", {})
        return status if status.get("phase") in ("Complete", "Failed") else None

    wait_for("the job's end", ended, TRAINED_SECONDS, every=1)
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
