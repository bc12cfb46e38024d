"""New weights come into engines that serve: what a user does, and what then holds."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.assay import Assay
from tests.e2e.clients import Load, completed_by, engines, reported
from tests.e2e.rollouts import (
    ROLLOUT,
    checkpoint,
    digest_of,
    engine_uids,
    make_models,
    patch,
    serve,
    suite_config_map,
    wait_rollout,
    wait_verdict,
)
from tests.e2e.scene import MOMENT_SECONDS
from tests.e2e.watching import Story, Told
from tests.kube import Kube

NAME = "live"
MODELS = {"tiny-next": ("--seed", "11"), "tiny-untrained": ("--steps", "0")}
LONG_TOKENS = 1000
"""Of an answer that takes longer than its engine takes to change weights."""
PAUSE_SECONDS = 5


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


@pytest.fixture(scope="module")
def lone(live: Kube) -> Kube:
    """The same service with one replica, and nothing that holds it to what was served before."""
    patch(live, NAME, {"metadata": {"annotations": {"assay.dev/rollback": None}}})
    patch(live, NAME, {"spec": {"replicas": 1}})
    live.wait_ready(NAME, replicas=1)
    return live


def test_a_lone_replica_gets_one_beside_it_and_its_long_answers_go_on_with_the_new_weights(
    lone: Kube,
) -> None:
    wanted = digest_of(lone, "next")
    patch(lone, NAME, {"spec": {"rollout": {"inFlight": "Continue", "canary": {"hold": "1s"}}}})
    before = engine_uids(lone, NAME)
    (engine,) = engines(lone, NAME)
    with Story(lone, NAME) as story, Load(lone, NAME) as load, ThreadPoolExecutor() as threads:
        load.wait_for_answers(4)
        serve(lone, NAME, "checkpoint://next")
        story.wait(lambda told: told.phase == "Holding", 0, MOMENT_SECONDS)
        long_answer = threads.submit(completed_by, lone, engine["metadata"]["name"], LONG_TOKENS)
        wait_rollout(lone, NAME, "Done", wanted)
        load.wait_for_answers(4)
        assert long_answer.result() == (LONG_TOKENS, wanted)
    assert load.failures() == []
    assert max(told.status["replicas"] for told in story.told) == 2
    lone.wait_ready(NAME, replicas=1)
    assert reported(lone, NAME) == {wanted}
    assert engine_uids(lone, NAME) <= before, "the one that was made for the canary went again"


def test_new_pods_bring_the_weights_where_that_is_asked_and_a_pause_holds_them_up(
    lone: Kube,
) -> None:
    first = (lone.get("infsvc", NAME) or {})["status"]["history"][-1]["version"]
    patch(lone, NAME, {"spec": {"rollout": {"inFlight": "Finish", "strategy": "Recreate"}}})
    before = engine_uids(lone, NAME)
    with Story(lone, NAME) as story, Load(lone, NAME, threads=2) as load:
        load.wait_for_answers(4)
        serve(lone, NAME, "pvc://models/tiny")
        recreating = story.wait(lambda told: told.phase == "Recreating", 0, MOMENT_SECONDS)
        patch(lone, NAME, {"spec": {"rollout": {"paused": True}}})

        def stands(told: Told) -> bool:
            return bool(told.rollout.get("paused"))

        story.wait(stands, recreating, MOMENT_SECONDS)
        time.sleep(PAUSE_SECONDS)
        assert story.told[-1].phase == "Recreating"
        assert before <= engine_uids(lone, NAME), "no pod goes while it is paused"
        patch(lone, NAME, {"spec": {"rollout": {"paused": False}}})
        wait_rollout(lone, NAME, "Done", first)
        load.wait_for_answers(4)
    assert load.failures() == []
    lone.wait_ready(NAME, replicas=1)
    assert reported(lone, NAME) == {first}
    assert engine_uids(lone, NAME).isdisjoint(before)
