"""Weights for rollouts on a cluster, and how these are asked for and waited for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from examples.looks import verdict
from tests.assay import Assay
from tests.cluster.processes import Processes
from tests.cluster.steps import StepRun
from tests.e2e.clients import engines
from tests.kube import Json, Kube, infsvc, wait_for

SUITE = "sums"
ROLLOUT_SECONDS = 300
# The canary is asked and held in seconds, so that nobody need wait for what people would.
ROLLOUT: Json = {
    "canary": {"hold": "5s"},
    "gate": {
        "suite": {"configMap": SUITE},
        "minScore": 0.5,
        "maxRegression": 0.2,
        "maxTokens": 8,
        "timeout": "5m",
    },
}


def suite() -> str:
    """49 sums, as JSON lines."""
    head = {"suite": SUITE, "verifier": {"type": "math"}, "maxTokens": 8}
    items = [
        {"id": f"{a}+{b}", "prompt": f"{a} + {b} =", "reference": str(a + b)}
        for a in range(1, 8)
        for b in range(1, 8)
    ]
    return "".join(json.dumps(line) + "\n" for line in (head, *items))


def suite_config_map(name: str = SUITE, items: str = "") -> Json:
    """A suite where gates and Checkpoints find it: its items as JSON lines, or the sums."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"suite.jsonl": items or suite()},
    }


def checkpoint(
    name: str,
    folder: str,
    min_score: float,
    *,
    suite: str = SUITE,
    engine: Json | None = None,
    **spec: str,
) -> Json:
    """A folder that a user brings; it is weighed as a service's engines would serve it.

    Args:
        name: of the Checkpoint.
        folder: on the claim `models`.
        min_score: from which it counts as verified.
        suite: the ConfigMap with what it is asked.
        engine: of the service; without it, of the tests' usual ones.
        spec: further fields of the spec.
    """
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "source": f"pvc://models/{folder}",
            **spec,
            "evaluation": {
                "suite": {"configMap": suite},
                "minScore": min_score,
                "engine": engine or infsvc(name, {})["spec"]["engine"],
            },
        },
    }


def make_models(
    assay: Assay, namespace: str, log: Path, models: Mapping[str, tuple[str, ...]]
) -> None:
    """Small models on the claim `models`: by folder, the options of make_model.py."""
    for folder, options in models.items():
        assay.make_model(namespace, StepRun(folder, log, Processes()), folder, options)


def wait_verdict(kube: Kube, name: str, kind: str) -> Json:
    """A Checkpoint's condition, once nothing is under way any more."""

    def look() -> Json:
        return verdict(kube.get("ckpt", name) or {}, kind)

    return wait_for(f"{kind} of checkpoint {name}", look, ROLLOUT_SECONDS, every=1)


def digest_of(kube: Kube, name: str) -> str:
    """What a Checkpoint's files are known by."""
    found: str = (kube.get("ckpt", name) or {})["status"]["digest"]
    return found


def patch(kube: Kube, name: str, change: Json) -> None:
    """Changes a service as a user does."""
    kube.kubectl("patch", "infsvc", name, "--type=merge", "--patch", json.dumps(change))


def serve(kube: Kube, name: str, source: str) -> None:
    """Asks a service to serve `source`."""
    patch(kube, name, {"spec": {"model": {"source": source}}})


def wait_rollout(kube: Kube, name: str, phase: str, version: str) -> Json:
    """A service's status.rollout, once a rollout to `version` ended in `phase`."""

    def look() -> Json | None:
        rollout: Json = (kube.get("infsvc", name) or {}).get("status", {}).get("rollout") or {}
        return (
            rollout
            if (rollout.get("phase"), rollout.get("to", {}).get("version")) == (phase, version)
            else None
        )

    try:
        return wait_for(f"rollout to {version} {phase}", look, ROLLOUT_SECONDS, every=1)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{kube.describe(name)}") from None


def engine_uids(kube: Kube, name: str) -> set[str]:
    """Which pods they are: others after a restart."""
    return {pod["metadata"]["uid"] for pod in engines(kube, name)}
