"""Jobs that learn to sort on a cluster, and how these are waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.assay import Assay
from tests.cluster.processes import Processes
from tests.cluster.steps import StepRun
from tests.e2e.nodes import folder_of
from tests.e2e.rollouts import suite_config_map
from tests.kube import Json, Kube, NotYet, infsvc, wait_for

HELD_OUT = "held-out"
ENGINE: Json = {"extraArgs": ["--max-total-tokens", "8192"]}
"""Without what the tests' usual model asks for: this one reads 64 tokens only."""
TRAINED_SECONDS = 400
ENDS = ("Complete", "Failed")


def make_task(assay: Assay, kube: Kube, log: Path) -> None:
    """The small task on the claim `models`, and its held-out items in the ConfigMap HELD_OUT."""
    assay.make_task(kube.namespace, StepRun("task", log, Processes()))
    suite = folder_of(kube, "models").run("cat task/heldout.jsonl")
    kube.apply(suite_config_map(HELD_OUT, suite))


def sorting_job(
    name: str,
    *,
    steps: int,
    every: int,
    storage: Json,
    items: str = "task/train.jsonl",
    **spec: object,
) -> Json:
    """A VerifiedRLJob on the small task.

    Args:
        name: of the job.
        steps: of training.
        every: how many of these lie between two checkpoints, each of which is weighed.
        storage: spec.checkpoint.storage.
        items: the file that it is trained on, on the claim `models`.
        spec: further fields of the spec.
    """
    engine = infsvc(name, {"engine": ENGINE})["spec"]["engine"]
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "VerifiedRLJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "pvc://models/task/model"},
            "data": {"claim": "models", "path": items, "maxPromptTokens": 16},
            "algorithm": {"name": "grpo", "groupSize": 8},
            "rollout": {"engine": engine, "maxTokens": 12, "maxStaleness": 0},
            "trainer": {
                "accelerator": "cpu",
                "steps": steps,
                "promptsPerStep": 8,
                "learningRate": 3e-4,
                "precision": "fp32",
                "activationCheckpointing": False,
                "tokensPerMicroBatch": 2048,
            },
            "checkpoint": {"every": every, "storage": storage},
            "evaluation": {"every": every, "suite": {"configMap": HELD_OUT}, "minScore": 0.3},
            **spec,
        },
    }


def status_of(kube: Kube, name: str) -> Json:
    """A job's status, empty while it has none."""
    found: Json = (kube.get("vrl", name) or {}).get("status", {})
    return found


def wait_job(
    kube: Kube,
    name: str,
    what: str,
    is_it: Callable[[Json], object],
    seconds: float = TRAINED_SECONDS,
) -> Json:
    """A job's status, once it is what is waited for."""

    def look() -> Json | None:
        status = status_of(kube, name)
        return status if status and is_it(status) else None

    try:
        return wait_for(f"job {name}: {what}", look, seconds, every=1)
    except NotYet as error:
        words = ("logs", "-l", f"app.kubernetes.io/instance=verifiedrljob.{name}", "--tail=30")
        raise NotYet(f"{error}\n{kube.kubectl(*words, '--prefix', check=False)}") from None


def wait_end(kube: Kube, name: str) -> Json:
    """A job's status, once it is over."""
    return wait_job(kube, name, "its end", lambda status: status.get("phase") in ENDS)
