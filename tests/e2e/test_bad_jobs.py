"""Jobs, Checkpoints and services that cannot work: what is said of them, and what is left alone.

What `kubectl apply` refuses at once (no steps, groups of one, ...) is in tests/integration.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.assay import Assay
from tests.e2e.jobs import make_task, sorting_job, wait_end, wait_job
from tests.e2e.nodes import disk, folder_of
from tests.e2e.rollouts import checkpoint, suite_config_map, wait_verdict
from tests.kube import Json, Kube, infsvc, wait_for

NOT_THERE = "not-there"
TOLD_SECONDS = 60


def condition(status: Json, kind: str) -> Json:
    """One condition of a status, empty while it is not there."""
    found: list[Json] = status.get("conditions") or []
    return next((each for each in found if each["type"] == kind), {})


def follower(name: str, job: str) -> Json:
    """A service that follows a job. It needs no engine for saying why it cannot."""
    model = {"source": "pvc://models/tiny", "follow": {"job": job}}
    return infsvc(name, {"model": model, "replicas": 0})


def wait_told(kube: Kube, service: str, reason: str, *says: str) -> None:
    """Until a service's condition Target is False for a reason, in these words."""

    def look() -> bool:
        found = kube.condition(service, "Target")
        is_it = (found.get("status"), found.get("reason")) == ("False", reason)
        return is_it and all(words in found["message"] for words in says)

    wait_for(f"{service}: {reason}", look, TOLD_SECONDS)


@pytest.fixture(scope="module")
def models(kube: Kube, model: str) -> Kube:
    """A model on a volume, and a suite."""
    kube.apply(suite_config_map())
    return kube


class TestJobs:
    def test_storage_that_is_not_there_is_named_and_nothing_is_started(self, models: Kube) -> None:
        job = sorting_job("homeless", steps=2, every=2, storage={"claim": NOT_THERE})
        models.apply(job)
        try:
            status = wait_job(
                models,
                "homeless",
                "StorageMissing",
                lambda status: condition(status, "Admitted").get("reason") == "StorageMissing",
                TOLD_SECONDS,
            )
            assert NOT_THERE in condition(status, "Admitted")["message"]
            assert status["phase"] == "Pending"
            assert not models.list("pods", "app.kubernetes.io/instance=verifiedrljob.homeless")
        finally:
            models.delete("vrl", "homeless")

    def test_storage_that_is_too_small_fails_the_job_with_a_remedy(
        self, assay: Assay, models: Kube, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        make_task(assay, models, tmp_path_factory.mktemp("task") / "log")
        with disk(models, "cramped-disk", folder_of(models, "models").node, megabytes=1):
            storage = {"claim": "cramped-disk"}
            models.apply(sorting_job("cramped", steps=2, every=2, storage=storage, backoffLimit=0))
            try:
                status = wait_end(models, "cramped")
                failed = condition(status, "Failed")
                assert (failed["status"], failed["reason"]) == ("True", "StorageFull")
                assert "enlarge it" in status["lastFailure"]["message"]
            finally:
                models.delete("vrl", "cramped")


class TestFollowing:
    def test_a_job_that_does_not_exist_is_named(self, models: Kube) -> None:
        models.apply(follower("lost", NOT_THERE))
        try:
            meanwhile = "pvc://models/tiny is served meanwhile"
            wait_told(models, "lost", "JobNotFound", NOT_THERE, meanwhile)
        finally:
            models.delete("infsvc", "lost")

    @pytest.fixture
    def circle(self, models: Kube) -> Iterator[str]:
        """A job that begins with its own checkpoint; it never runs."""
        own = {"source": "pvc://models/circle/checkpoints/step-000002"}
        storage = {"claim": "models"}
        models.apply(
            sorting_job("circle", steps=2, every=2, storage=storage, model=own, suspend=True)
        )
        yield "circle"
        models.delete("vrl", "circle")

    def test_a_circle_is_told(self, models: Kube, circle: str) -> None:
        models.apply(follower("dizzy", circle))
        try:
            wait_told(models, "dizzy", "Loop", "one of its own checkpoints")
        finally:
            models.delete("infsvc", "dizzy")


class TestCheckpoints:
    def test_a_pickle_among_the_weights_is_never_loaded(self, models: Kube) -> None:
        folder = folder_of(models, "models")
        folder.run("cp -r tiny tiny-pickled && echo pickled > tiny-pickled/pytorch_model.bin")
        models.apply(checkpoint("pickled", "tiny-pickled", 0.0))
        try:
            intact = wait_verdict(models, "pickled", "Intact")
            assert (intact["status"], intact["reason"]) == ("False", "Unsafe")
            assert "pytorch_model.bin" in intact["message"]
            assert "safetensors" in intact["message"]
        finally:
            models.delete("ckpt", "pickled")
            folder.run("rm -r tiny-pickled")

    def test_a_service_that_pins_one_with_a_wrong_digest_starts_nothing(self, models: Kube) -> None:
        models.apply(checkpoint("forged", "tiny", 0.0, digest=f"sha256:{'0' * 64}"))
        models.apply(infsvc("trusting", {"model": {"source": "checkpoint://forged"}}))
        try:
            verdict = wait_verdict(models, "forged", "Intact")
            assert (verdict["status"], verdict["reason"]) == ("False", "OtherDigest")
            wait_told(models, "trusting", "CheckpointNotIntact", "these are other files")
            assert not models.children("trusting")
        finally:
            models.delete("infsvc", "trusting")
            models.delete("ckpt", "forged")
