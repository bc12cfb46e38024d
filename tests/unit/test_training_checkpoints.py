"""Checkpoint objects: they follow what the trainer has, and nothing that is used goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.checkpoints.results import of_training
from assay_operator.cluster.due import owned
from assay_operator.plan import EVALUATION_ANNOTATION, KEEP_LABEL, Json, Ref
from assay_operator.training.checkpoints import Kept, checkpoints, pins
from assay_operator.training.progress import Saved
from tests.unit.training_worlds import Cluster, digest, vrl

JOB = vrl()


def spec_of(job: Json) -> VerifiedRLJobSpec:
    return VerifiedRLJobSpec.model_validate(job["spec"])


def saved(version: str, score: float | None = 0.5, verified: bool = True, **more: Any) -> Saved:
    step = version.partition(".")[2]
    weighed = {"score": score, "interval": [0.4, 0.6], "items": 40, "why": "verified: enough"}
    return Saved.model_validate(
        {
            "step": int(step),
            "path": f"/checkpoints/solver-rl/checkpoints/step-{int(step):06d}",
            "digest": digest(version),
            "version": version,
            "score": score,
            "verified": verified and score is not None,
            "evaluation": weighed if score is not None else None,
            "time": "2026-11-24T12:00:00+00:00",
            **more,
        }
    )


def kept(
    *reported: Saved, existing: list[Json] | None = None, job: Json = JOB, **more: Any
) -> Kept:
    return checkpoints(job, spec_of(job), reported, existing or [], **more)


def there(made: Kept, job: Json = JOB, **verified: float) -> list[Json]:
    """What was applied, as the API server has it; `verified` are scores by name."""
    items = [owned(item, job) for item in made.apply]
    for item in items:
        score = verified.get(item["metadata"]["name"].replace("-", "_"))
        if score is not None:
            item["status"] = {
                "score": score,
                "conditions": [{"type": "Verified", "status": "True"}],
            }
    return items


def names(made: Kept) -> list[str]:
    return [item["metadata"]["name"] for item in made.apply]


def test_one_is_made_of_what_the_trainer_reports() -> None:
    parent = digest("1.20")
    (item,) = kept(saved("2.40", parent=parent)).apply
    assert item["metadata"]["name"] == "solver-rl-2-40"
    assert item["spec"] == {
        "source": "pvc://ckpt/solver-rl/checkpoints/step-000040",
        "digest": f"sha256:{digest('2.40')}",
        "job": {
            "name": "solver-rl",
            "uid": "u-job",
            "step": 40,
            "version": "2.40",
            "parent": f"sha256:{parent}",
        },
    }
    assert CheckpointSpec.model_validate(item["spec"])


def test_its_own_planner_reads_how_it_was_weighed() -> None:
    (item,) = kept(saved("1.20", 0.53)).apply
    found = of_training(item, CheckpointSpec.model_validate(item["spec"]))
    assert found.verified.holds and found.verified.reason == "EvaluatedInTraining"
    assert found.verified.message == "verified: enough"
    (entry,) = found.evaluations
    assert entry == {
        "suite": "configmap/heldout/suite.jsonl",
        "score": 0.53,
        "low": 0.4,
        "high": 0.6,
        "items": 40,
        "by": "Training",
        "time": "2026-11-24T12:00:00Z",
    }


def test_one_that_was_not_weighed_says_so() -> None:
    (item,) = kept(saved("1.10", None)).apply
    assert "annotations" not in item["metadata"] or not item["metadata"]["annotations"]
    found = of_training(item, CheckpointSpec.model_validate(item["spec"]))
    assert (found.verified.holds, found.verified.reason) == (False, "NotEvaluated")


def test_a_claim_that_was_made_for_the_job_is_where_they_are() -> None:
    storage = {"claim": None, "size": "50Gi"}
    (item,) = kept(saved("1.20"), job=vrl({"checkpoint": {"storage": storage}})).apply
    assert item["spec"]["source"].startswith("pvc://solver-rl-checkpoints/solver-rl/checkpoints/")


@pytest.mark.parametrize(("policy", "label"), [("Retain", {KEEP_LABEL: "true"}), ("Delete", {})])
def test_whether_they_outlive_the_job_is_the_specs_word(policy: str, label: Json) -> None:
    job = vrl({"checkpoint": {"onDelete": policy}})
    (item,) = kept(saved("1.20"), job=job).apply
    assert item["metadata"]["labels"] == label
    assert ("ownerReferences" in owned(item, job)["metadata"]) is (policy == "Delete")


def test_while_the_trainer_says_nothing_all_stay() -> None:
    existing = there(kept(saved("1.20"), saved("1.40")))
    silent = checkpoints(JOB, spec_of(JOB), None, existing)
    assert names(silent) == ["solver-rl-1-20", "solver-rl-1-40"]
    assert not silent.delete
    assert silent.apply == kept(saved("1.20"), saved("1.40")).apply


def test_those_that_the_trainer_deleted_go_but_not_what_is_served() -> None:
    existing = there(kept(saved("1.20"), saved("1.40"), saved("1.60")))
    made = kept(saved("1.60"), existing=existing, pinned=frozenset([f"sha256:{digest('1.40')}"]))
    assert made.delete == (Ref("Checkpoint", "solver-rl-1-20"),)
    assert names(made) == ["solver-rl-1-40", "solver-rl-1-60"]


def test_the_best_verified_never_goes() -> None:
    existing = there(kept(saved("1.20", 0.9), saved("1.40", 0.4)), solver_rl_1_20=0.9)
    made = kept(saved("1.40", 0.4), saved("1.60", 0.5), existing=existing)
    assert not made.delete
    assert made.best and (made.best.name, made.best.score) == ("solver-rl-1-20", 0.9)


def test_of_equal_ones_the_newest_is_best_and_an_unverified_one_never() -> None:
    made = kept(saved("1.20"), saved("2.10"), saved("1.60"), saved("2.20", 0.9, verified=False))
    assert made.best and made.best.name == "solver-rl-2-10"
    assert made.newest == "solver-rl-2-20"
    assert kept(saved("1.20", verified=False)).best is None


def test_a_list_that_is_not_complete_deletes_nothing() -> None:
    existing = there(kept(saved("1.20"), saved("1.40")))
    assert not kept(saved("1.60"), existing=existing, complete=False).delete


def test_a_spec_never_changes_even_where_the_job_is_a_new_one() -> None:
    existing = there(kept(saved("1.20")))
    again = vrl()
    again["metadata"]["uid"] = "u-other"
    made = kept(saved("1.20"), saved("2.20"), existing=existing, job=again)
    assert [item["spec"]["job"]["uid"] for item in made.apply] == ["u-job", "u-other"]
    assert not made.delete and not made.problems


def test_what_it_was_weighed_with_stays_when_the_suite_is_another() -> None:
    existing = there(kept(saved("1.20")))
    job = vrl({"evaluation": {"suite": {"configMap": "newer"}}})
    made = kept(saved("1.20"), saved("1.40"), existing=existing, job=job)
    suites = [
        json.loads(item["metadata"]["annotations"][EVALUATION_ANNOTATION])["suite"]
        for item in made.apply
    ]
    assert suites == ["configmap/heldout/suite.jsonl", "configmap/newer/suite.jsonl"]


def test_a_verdict_that_somebody_changed_is_put_right() -> None:
    (item,) = there(kept(saved("1.20", 0.2, verified=False)))
    note = json.loads(item["metadata"]["annotations"][EVALUATION_ANNOTATION])
    item["metadata"]["annotations"][EVALUATION_ANNOTATION] = json.dumps(
        {**note, "verified": True, "score": 1.0}
    )
    (again,) = kept(saved("1.20", 0.2, verified=False), existing=[item]).apply
    assert json.loads(again["metadata"]["annotations"][EVALUATION_ANNOTATION]) == note


@pytest.mark.parametrize("broken", ["{", "[]", "null"])
def test_an_annotation_that_somebody_broke_is_written_anew(broken: str) -> None:
    (item,) = there(kept(saved("1.20")))
    item["metadata"]["annotations"][EVALUATION_ANNOTATION] = broken
    assert kept(saved("1.20"), existing=[item]).apply == kept(saved("1.20")).apply


def test_another_object_of_the_same_name_is_left_alone_and_told() -> None:
    brought: Json = {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": "solver-rl-1-20", "namespace": "default"},
        "spec": {"source": "pvc://mine/weights"},
    }
    made = kept(saved("1.20"), existing=[brought])
    assert not made.apply and not made.delete
    assert "Checkpoint solver-rl-1-20 is there already" in made.problems[0]


def test_one_of_the_same_name_and_another_digest_is_told() -> None:
    existing = there(kept(saved("1.20"), saved("1.40")))
    made = kept(saved("1.20", digest=digest("other")), existing=existing)
    assert "is there already" in made.problems[0]
    assert Ref("Checkpoint", "solver-rl-1-40") in made.delete or made.best


def test_those_of_a_job_of_the_same_name_on_another_claim_are_not_its_own() -> None:
    existing = there(kept(saved("1.20")))
    elsewhere = vrl({"checkpoint": {"storage": {"claim": "other"}}})
    made = kept(saved("1.40"), existing=existing, job=elsewhere)
    assert names(made) == ["solver-rl-1-40"] and not made.delete


@pytest.mark.parametrize(
    "path",
    [
        "/checkpoints/other/checkpoints/step-000020",
        "/checkpoints/solver-rl/checkpoints/../../other/step-000020",
        "/checkpoints/solver-rl/weights/1.20",
        "/etc/passwd",
        "",
    ],
)
def test_a_path_outside_the_jobs_folder_gets_no_object(path: str) -> None:
    made = kept(saved("1.20", path=path))
    assert not made.apply and not made.best
    assert "odd place" in made.problems[0]


def test_what_is_served_is_pinned_for_the_trainer() -> None:
    made = kept(saved("1.20"), saved("1.40"))
    served = frozenset([f"sha256:{digest('1.20')}", "sha256:of-another-job", "base-1234"])
    assert pins(made, served) == {digest("1.20")}


def test_in_a_cluster_the_trainer_keeps_what_is_served_and_so_does_its_object() -> None:
    cluster = Cluster({"trainer": {"steps": 14}, "checkpoint": {"keep": 1}})
    cluster.until_step(4)
    served = cluster.storage.saved[0]
    cluster.pinned = frozenset([f"sha256:{served['digest']}"])
    cluster.until("Complete")
    names_there = set(cluster.checkpoints)
    assert f"solver-rl-{served['version'].replace('.', '-')}" in names_there
    assert len(names_there) == 2, "the newest, which is the best, and the one that is served"
    cluster.tick()
    assert not cluster.last.delete


def test_a_conflict_is_told_in_condition_and_event() -> None:
    cluster = Cluster()
    cluster.checkpoints["solver-rl-1-2"] = {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": "solver-rl-1-2", "namespace": "default"},
        "spec": {"source": "pvc://mine/weights"},
    }
    cluster.until_step(3)
    cluster.tick()
    assert cluster.condition("CheckpointReady")["reason"] == "Conflict"
    assert [event.type for event in cluster.events if event.reason == "CheckpointConflict"] == [
        "Warning"
    ]
    cluster.until("Complete")
