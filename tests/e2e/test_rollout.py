"""New weights come into engines that serve: what a user does, and what then holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assay import Assay
from tests.cluster.processes import Processes
from tests.cluster.steps import StepRun
from tests.e2e.clients import Load, run_in_pod
from tests.kube import Json, Kube, infsvc, wait_for

NAME = "live"
ENGINES = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=engine"
SUITE = "sums"
ROLLOUT_SECONDS = 300
# The canary is asked and held in seconds, so that a test need not wait for what people would.
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
UNDER_WAY = {"Inspecting", "Weighing"}
MODELS = {"tiny-next": ("--seed", "11"), "tiny-untrained": ("--steps", "0")}


def suite() -> str:
    head = {"suite": SUITE, "verifier": {"type": "math"}, "maxTokens": 8}
    items = [
        {"id": f"{a}+{b}", "prompt": f"{a} + {b} =", "reference": str(a + b)}
        for a in range(1, 8)
        for b in range(1, 8)
    ]
    return "".join(json.dumps(line) + "\n" for line in (head, *items))


def checkpoint(name: str, folder: str, min_score: float, **spec: str) -> Json:
    """A folder that a user brings; it is weighed as the service's engines would serve it."""
    engine = infsvc(name, {})["spec"]["engine"]
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "source": f"pvc://models/{folder}",
            **spec,
            "evaluation": {
                "suite": {"configMap": SUITE},
                "minScore": min_score,
                "engine": engine,
            },
        },
    }


@pytest.fixture(scope="module")
def weights(assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory) -> Kube:
    """A suite, and beside the model that is served one as good and one that knows nothing."""
    log: Path = tmp_path_factory.mktemp("models") / "log"
    for name, options in MODELS.items():
        assay.make_model(kube.namespace, StepRun(name, log, Processes()), name, options)
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SUITE},
            "data": {"suite.jsonl": suite()},
        },
        checkpoint("next", "tiny-next", 0.5),
        # Nothing is asked of it, so that it is the gate that has to stop it.
        checkpoint("untrained", "tiny-untrained", 0.0),
        checkpoint("changed", "tiny-next", 0.5, digest=f"sha256:{'0' * 64}"),
    )
    return kube


@pytest.fixture(scope="module")
def live(weights: Kube) -> Iterator[Kube]:
    """Two replicas of the model."""
    with weights.service(NAME, {"replicas": 2, "rollout": ROLLOUT}):
        weights.wait_ready(NAME, replicas=2)
        yield weights


def wait_verdict(kube: Kube, name: str, kind: str) -> Json:
    """A Checkpoint's condition, once nothing is under way any more."""

    def look() -> Json | None:
        status = (kube.get("ckpt", name) or {}).get("status", {})
        known = {item["type"]: item for item in status.get("conditions", [])}
        found: Json | None = known.get(kind)
        return found if found and found["reason"] not in UNDER_WAY else None

    return wait_for(f"{kind} of checkpoint {name}", look, ROLLOUT_SECONDS, every=1)


def digest_of(kube: Kube, name: str) -> str:
    found: str = (kube.get("ckpt", name) or {})["status"]["digest"]
    return found


def serve(kube: Kube, source: str) -> None:
    patch = json.dumps({"spec": {"model": {"source": source}}})
    kube.kubectl("patch", "infsvc", NAME, "--type=merge", "--patch", patch)


def wait_rollout(kube: Kube, phase: str, version: str) -> Json:
    """status.rollout, once a rollout to `version` ended in `phase`."""

    def look() -> Json | None:
        rollout: Json = (kube.get("infsvc", NAME) or {}).get("status", {}).get("rollout") or {}
        return (
            rollout
            if (rollout.get("phase"), rollout.get("to", {}).get("version")) == (phase, version)
            else None
        )

    try:
        return wait_for(f"rollout to {version} {phase}", look, ROLLOUT_SECONDS, every=1)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{kube.describe(NAME)}") from None


def reported(kube: Kube) -> set[str]:
    """The versions that the engines themselves report."""
    script = (
        "import json,sys,urllib.request as r\n"
        "for ip in sys.argv[1:]:\n"
        "  print(json.load(r.urlopen(f'http://{ip}:30000/model_info'))['weight_version'])"
    )
    addresses = [pod["status"]["podIP"] for pod in kube.list("pods", ENGINES)]
    return set(run_in_pod(kube, script, *addresses).split())


def pods(kube: Kube) -> set[str]:
    return {pod["metadata"]["uid"] for pod in kube.list("pods", ENGINES)}


def reasons(kube: Kube) -> set[str]:
    return {item["reason"] for item in kube.events(NAME)}


def test_a_brought_checkpoint_is_inspected_and_weighed(weights: Kube) -> None:
    assert wait_verdict(weights, "next", "Verified")["status"] == "True"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest_of(weights, "next"))


def test_a_folder_that_is_not_what_its_digest_says_is_not_intact(weights: Kube) -> None:
    intact = wait_verdict(weights, "changed", "Intact")
    assert intact["status"] == "False"
    assert "digest" in intact["message"]


def test_verified_weights_reach_every_engine_and_no_request_fails(live: Kube) -> None:
    wait_verdict(live, "next", "Verified")
    before, wanted = pods(live), digest_of(live, "next")
    with Load(live, NAME) as load:
        load.wait_for_answers(10)
        serve(live, "checkpoint://next")
        wait_rollout(live, "Done", wanted)
        load.wait_for_answers(10)
    assert load.failures() == []
    assert reported(live) == {wanted}
    assert pods(live) == before, "the same pods: nothing was started anew"
    status = live.wait_ready(NAME, replicas=2)["status"]
    assert status["served"]["version"] == wanted
    assert status["history"][0]["result"] == "Served"
    assert {"RolloutStarted", "GatePassed", "RolloutDone"} <= reasons(live)


def test_weights_that_know_less_are_refused_and_nobody_is_answered_by_them(live: Kube) -> None:
    wait_verdict(live, "untrained", "Verified")
    good, bad = digest_of(live, "next"), digest_of(live, "untrained")
    with Load(live, NAME) as load:
        load.wait_for_answers(10)
        serve(live, "checkpoint://untrained")
        wait_rollout(live, "Failed", bad)
        load.wait_for_answers(10)
    assert load.failures() == []
    assert reported(live) == {good}
    status = live.wait_ready(NAME, replicas=2)["status"]
    assert status["served"]["version"] == good
    assert status["refused"][0]["version"] == bad
    assert {"GateFailed", "RolledBack"} & reasons(live)


def test_an_annotation_brings_back_what_was_served_before(live: Kube) -> None:
    first = (live.get("infsvc", NAME) or {})["status"]["history"][-1]["version"]
    with Load(live, NAME) as load:
        live.kubectl("annotate", "infsvc", NAME, f"assay.dev/rollback={first}")
        wait_rollout(live, "Done", first)
    assert load.failures() == []
    assert reported(live) == {first}
