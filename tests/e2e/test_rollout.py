"""New weights come into engines that serve: what a user does, and what then holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.assay import Assay
from tests.e2e.clients import Load, reported
from tests.e2e.rollouts import (
    ROLLOUT,
    checkpoint,
    digest_of,
    engine_uids,
    make_models,
    serve,
    suite_config_map,
    wait_rollout,
    wait_verdict,
)
from tests.kube import Kube

NAME = "live"
MODELS = {"tiny-next": ("--seed", "11"), "tiny-untrained": ("--steps", "0")}


@pytest.fixture(scope="module")
def weights(assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory) -> Kube:
    """A suite, and beside the model that is served one as good and one that knows nothing."""
    make_models(assay, kube.namespace, tmp_path_factory.mktemp("models") / "log", MODELS)
    kube.apply(
        suite_config_map(),
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
    before, wanted = engine_uids(live, NAME), digest_of(live, "next")
    with Load(live, NAME) as load:
        load.wait_for_answers(10)
        serve(live, NAME, "checkpoint://next")
        wait_rollout(live, NAME, "Done", wanted)
        load.wait_for_answers(10)
    assert load.failures() == []
    assert reported(live, NAME) == {wanted}
    assert engine_uids(live, NAME) == before, "the same pods: nothing was started anew"
    status = live.wait_ready(NAME, replicas=2)["status"]
    assert status["served"]["version"] == wanted
    assert status["history"][0]["result"] == "Served"
    assert {"RolloutStarted", "GatePassed", "RolloutDone"} <= reasons(live)


def test_weights_that_know_less_are_refused_and_nobody_is_answered_by_them(live: Kube) -> None:
    wait_verdict(live, "untrained", "Verified")
    good, bad = digest_of(live, "next"), digest_of(live, "untrained")
    with Load(live, NAME) as load:
        load.wait_for_answers(10)
        serve(live, NAME, "checkpoint://untrained")
        wait_rollout(live, NAME, "Failed", bad)
        load.wait_for_answers(10)
    assert load.failures() == []
    assert load.versions() == {good}
    assert reported(live, NAME) == {good}
    status = live.wait_ready(NAME, replicas=2)["status"]
    assert status["served"]["version"] == good
    assert status["refused"][0]["version"] == bad
    assert {"GateFailed", "RolledBack"} & reasons(live)


def test_an_annotation_brings_back_what_was_served_before(live: Kube) -> None:
    first = (live.get("infsvc", NAME) or {})["status"]["history"][-1]["version"]
    with Load(live, NAME) as load:
        live.kubectl("annotate", "infsvc", NAME, f"assay.dev/rollback={first}")
        wait_rollout(live, NAME, "Done", first)
    assert load.failures() == []
    assert reported(live, NAME) == {first}
