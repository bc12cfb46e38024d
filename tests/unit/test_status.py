"""What a service's status tells of its weights: conditions, Events, score."""

from __future__ import annotations

from tests.unit.plan_fleet import BASE, GATED, Cluster, job

NEXT = "pvc://models/next"


def serving(content: str = "good") -> Cluster:
    cluster = Cluster({"rollout": GATED})
    cluster.settle()
    cluster.disk["models", "next"] = content
    return cluster


def rolled_out(cluster: Cluster) -> tuple[str, str]:
    found = cluster.condition("RolledOut")
    return found["status"], found["reason"]


def test_rolled_out_is_unknown_as_long_as_it_is_on_its_way() -> None:
    cluster = Cluster({"rollout": GATED})
    cluster.reconcile()
    assert rolled_out(cluster) == ("Unknown", "Starting")
    cluster.settle()
    assert rolled_out(cluster) == ("True", "Served")
    cluster.disk["models", "next"] = "good"
    cluster.serve(NEXT)
    cluster.run("Holding")
    assert rolled_out(cluster) == ("Unknown", "Holding")
    assert cluster.condition("RolledOut")["message"] == cluster.rollout["message"]
    cluster.settle()
    assert rolled_out(cluster) == ("True", "Served")


def test_what_was_refused_is_not_rolled_out_until_something_else_is_wanted() -> None:
    cluster = serving("worse")
    cluster.serve(NEXT)
    cluster.run("Failed")
    cluster.settle()
    assert rolled_out(cluster) == ("False", "GateFailed")
    assert "assay.dev/retry" in cluster.condition("RolledOut")["message"]
    cluster.serve(BASE)
    cluster.settle()
    assert rolled_out(cluster) == ("True", "Served")
    told = cluster.condition("RolledOut")["message"]
    assert told.startswith(f"{BASE} ") and "The latest change: Failed" in told


def test_a_target_that_cannot_be_had_is_said_once_and_what_serves_is_ready() -> None:
    cluster = serving()
    cluster.change(model={"source": BASE, "follow": {"job": "solver-rl"}})
    for _ in range(3):
        cluster.settle()
    assert cluster.said().count("JobNotFound") == 1
    assert rolled_out(cluster) == ("False", "JobNotFound")
    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Serving")
    cluster.followed = job()
    cluster.settle()
    assert cluster.condition("Target")["reason"] == "NoCheckpoint"
    assert rolled_out(cluster) == ("True", "Served")


def test_an_engine_that_has_to_be_put_right_is_said_not_to_serve() -> None:
    cluster = serving()
    cluster.engines[0].version = "strange"
    cluster.reconcile()
    found = cluster.condition("EnginesReady")
    assert (found["status"], found["reason"]) == ("False", "RollingOut")
    assert "The others get back the weights that are served." in found["message"]
    assert cluster.status["readyReplicas"] == 1
    cluster.settle()
    assert cluster.contents() == {"tiny"}


def test_the_score_stays_as_long_as_the_weights_do() -> None:
    cluster = Cluster({"model": {"source": "checkpoint://solver-rl-1-20"}})
    cluster.write("good", step=20, score=0.66)
    cluster.settle()
    assert cluster.status["score"] == 0.66, "what its Checkpoint says"
    cluster.checkpoints.clear()
    cluster.settle()
    assert cluster.status["score"] == 0.66
    cluster.disk["models", "next"] = "good"
    cluster.serve(NEXT)
    cluster.run("Inspecting")
    cluster.settle()
    assert "score" not in cluster.status, "nobody weighed these"


def test_a_checkpoint_is_named_by_its_version_and_told_when_it_changes() -> None:
    cluster = serving()
    first = cluster.status["checkpoint"]
    cluster.serve(NEXT)
    cluster.run("Inspecting")
    cluster.settle()
    second = cluster.status["checkpoint"]
    told = [event for event in cluster.events if event.startswith("CheckpointServed")]
    assert told == [f"CheckpointServed: Serves {first}.", f"CheckpointServed: Serves {second}."]
