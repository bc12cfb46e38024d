"""Whatever fails, and whenever the operator dies: what holds for every life of a job.

Never are pods of two generations there at once, never is a job called complete without its final
checkpoint, and every job comes to an end with a reason.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings

from assay_operator.plan import Ref
from tests.unit.training_worlds import Cluster

FAULTY_TICKS = 45
LAST_TICKS = 900


def _crash(cluster: Cluster) -> None:
    cluster.crash(1, "assay-train: no engine answers")


def _alarm(cluster: Cluster) -> None:
    cluster.crash(3, "assay-train: stopped: the entropy fell")


def _out_of_memory(cluster: Cluster) -> None:
    cluster.crash(137, "", reason="OOMKilled")


def _ends_early(cluster: Cluster) -> None:
    """Exit code 0 without having done anything."""
    words, cluster.words = cluster.words, False
    cluster.crash(0, "")
    cluster.words = words


def _evict(cluster: Cluster) -> None:
    cluster.evict()


def _lose_node(cluster: Cluster) -> None:
    for pod in cluster.trainer_pods:
        cluster.pods.remove(pod)


def _hang(cluster: Cluster) -> None:
    for trainer in cluster.trainers.values():
        trainer.hangs = True


def _mute(cluster: Cluster) -> None:
    for trainer in cluster.trainers.values():
        trainer.mute = not trainer.mute


def _delete_job(cluster: Cluster) -> None:
    for name in list(cluster.children):
        if name.kind == "Job":
            cluster._delete(name)


def _suspend(cluster: Cluster) -> None:
    cluster.job["spec"]["suspend"] = not cluster.job["spec"].get("suspend", False)


def _change(cluster: Cluster) -> None:
    cluster.job["spec"]["trainer"]["learningRate"] = 1e-3


def _engines(cluster: Cluster) -> None:
    cluster.engines_start = not cluster.engines_start


def _claim(cluster: Cluster) -> None:
    name = Ref("PersistentVolumeClaim", "ckpt")
    gone = name in cluster.found
    cluster.found = {} if gone else {name: None}


def _lose_status(cluster: Cluster) -> None:
    cluster.job["status"] = {}


FAULTS: tuple[Callable[[Cluster], None], ...] = (
    _crash,
    _out_of_memory,
    _ends_early,
    _evict,
    _lose_node,
    _hang,
    _mute,
    _delete_job,
    _suspend,
    _change,
    _engines,
    _claim,
    _lose_status,
    _alarm,
)
SWITCHES = (_mute, _suspend, _engines, _claim)
"""Faults that a second time puts right."""
DEATHS = ("children", "status", "absent")
TIMES = st.integers(0, FAULTY_TICKS)


def check(cluster: Cluster) -> None:
    """What holds at every moment."""
    assert len(cluster.generations) <= 1
    assert len(cluster.jobs) <= 1
    assert cluster.status.get("restarts", 0) <= cluster.job["spec"]["backoffLimit"]
    if cluster.phase == "Complete":
        marker = cluster.status["gang"]["marker"]
        final = [each for each in cluster.storage.saved if each["digest"] == marker["digest"]]
        assert [each["step"] for each in final] == [cluster.job["spec"]["trainer"]["steps"]]


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    faults=st.dictionaries(TIMES, st.sampled_from(FAULTS), max_size=12),
    deaths=st.dictionaries(TIMES, st.sampled_from(DEATHS), max_size=12),
    lag=st.integers(0, 8),
    words=st.booleans(),
    nodes=st.integers(1, 2),
    limit=st.integers(0, 3),
)
def test_every_life_of_a_job_keeps_its_promises_and_ends(
    *,
    faults: dict[int, Callable[[Cluster], None]],
    deaths: dict[int, str],
    lag: int,
    words: bool,
    nodes: int,
    limit: int,
) -> None:
    spec = {"trainer": {"nodes": nodes, "steps": 9}, "backoffLimit": limit}
    cluster = Cluster(spec, lag=lag, words=words)
    for tick in range(FAULTY_TICKS):
        if tick in faults:
            faults[tick](cluster)
        cluster.tick(deaths.get(tick, ""))
        check(cluster)
    cluster.job["spec"]["suspend"] = False
    cluster.engines_start, cluster.found = True, {}
    for trainer in cluster.trainers.values():
        trainer.mute = False
    finish(cluster)
    ends(cluster)


def finish(cluster: Cluster) -> None:
    """Nothing happens any more, until the job is over."""
    for _ in range(LAST_TICKS):
        if cluster.phase in ("Complete", "Failed"):
            return
        cluster.tick()
        check(cluster)


def ends(cluster: Cluster) -> None:
    """What holds once a job is over."""
    assert cluster.phase in ("Complete", "Failed")
    condition = cluster.condition(str(cluster.phase))
    assert condition["status"] == "True" and condition["reason"] and condition["message"]
    if cluster.phase == "Complete":
        objects = {item["spec"]["digest"] for item in cluster.checkpoints.values()}
        assert f"sha256:{cluster.status['gang']['marker']['digest']}" in objects
    else:
        assert cluster.status["lastFailure"]["message"]
    cluster.ticks(20)
    assert not cluster.component("engine")
    assert not [pod for pod in cluster.trainer_pods if pod["status"]["phase"] == "Running"]


def test_a_fault_at_every_single_moment_of_a_short_life() -> None:
    """Each fault once at several moments, with an operator that dies just then."""
    for turn, fault in enumerate(FAULTS):
        for at, tick in enumerate(range(1, 14, 3)):
            death = DEATHS[(turn + at) % len(DEATHS)]
            cluster = Cluster({"backoffLimit": 2}, lag=2)
            for now in range(20):
                if now == tick or (now == tick + 3 and fault in SWITCHES):
                    fault(cluster)
                cluster.tick(death if now in (tick, tick + 1) else "")
                check(cluster)
            finish(cluster)
            ends(cluster)
            hopeless = fault is _alarm and cluster.phase == "Failed"
            assert hopeless or cluster.phase == "Complete", (fault, tick, death)
