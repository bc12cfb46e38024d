"""A user applies one YAML file and gets answers; what follows is what they may then do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from assay_operator.inference.objects import DRAIN_SECONDS
from tests.assay import Assay
from tests.e2e.clients import Load, chat, engines, kill_process, kill_router, reported
from tests.kube import Json, Kube, infsvc, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "inference-service.yaml"


@pytest.fixture(scope="module")
def solver(kube: Kube, model: str) -> Iterator[Kube]:
    """The example, applied as it stands and ready."""
    kube.kubectl("apply", "-f", str(EXAMPLE))
    kube.wait_ready("solver")
    yield kube
    kube.delete("infsvc", "solver")
    kube.wait_gone("solver")


def set_replicas(kube: Kube, count: int) -> None:
    kube.kubectl("scale", "infsvc/solver", f"--replicas={count}")
    kube.wait_ready("solver", replicas=count)


def test_get_answers_whether_it_is_fine(solver: Kube) -> None:
    head, row = solver.kubectl("get", "infsvc", "solver").splitlines()
    columns = ["NAME", "READY", "REPLICAS", "CHECKPOINT", "SCORE", "URL", "REASON", "AGE"]
    assert head.split() == columns
    served = r"pvc://models/tiny\s+http://solver\.\S+/v1"
    assert re.match(rf"solver\s+True\s+1/1\s+{served}\s+Serving\s", row)


def test_a_chat_is_streamed_through_the_service(solver: Kube) -> None:
    said = chat(solver, "solver", "2 + 3 =")
    assert said.startswith("5\n"), "the small model knows its sums"
    assert "time to first token" in said
    assert int(re.search(r"(\d+) pieces?", said)[1]) >= 1  # type: ignore[index]


def test_events_tell_the_story(solver: Kube) -> None:
    assert {"Ready", "CheckpointServed"} <= {item["reason"] for item in solver.events("solver")}


def test_what_the_engine_reports_is_what_status_says(solver: Kube) -> None:
    status = (solver.get("infsvc", "solver") or {})["status"]
    assert reported(solver, "solver") == {status["checkpoint"]}


def test_the_pods_run_without_privilege(solver: Kube) -> None:
    pod = engines(solver, "solver")[0]["metadata"]["name"]
    proof = solver.kubectl(
        "exec", pod, "--", "sh", "-c",
        "id -u; grep CapEff /proc/self/status; touch /x 2>&1; ls /var/run/secrets 2>&1; true",
    )  # fmt: skip
    assert proof.startswith("65532")
    assert "CapEff:\t0000000000000000" in proof
    assert "Read-only file system" in proof
    assert "No such file" in proof


def test_scaling_down_and_losing_an_engine_drops_no_request(solver: Kube) -> None:
    set_replicas(solver, 2)
    with Load(solver, "solver") as load:
        load.wait_for_answers(20)
        gone = engines(solver, "solver")[0]["metadata"]["name"]
        solver.kubectl("delete", "pod", gone, "--wait=false")
        load.wait_for_answers(40)
        solver.wait_ready("solver", replicas=2)
        set_replicas(solver, 1)
        load.wait_for_answers(20)
    assert load.failures() == []
    assert load.answers() >= 80


def test_a_killed_engine_is_noticed_and_comes_back(solver: Kube) -> None:
    """SIGKILL from the node, as the kernel would do it: status must not say ready meanwhile."""
    name = engines(solver, "solver")[0]["metadata"]["name"]
    kill_process(solver, name, "engine", "KILL")
    wait_for("not ready", lambda: solver.condition("solver").get("status") == "False", 30, 0.2)
    service = solver.wait_ready("solver")
    assert service["status"]["lastFailure"]["where"] == f"pod/{name}"


def test_an_engine_that_hangs_is_noticed_and_restarted(solver: Kube) -> None:
    name = engines(solver, "solver")[0]["metadata"]["name"]
    kill_process(solver, name, "engine", "STOP")

    def told() -> bool:
        failure = (solver.get("infsvc", "solver") or {})["status"].get("lastFailure") or {}
        return failure.get("reason") == "Unresponsive"

    wait_for("Unresponsive", told, 120)
    assert solver.condition("solver")["status"] == "False"
    solver.wait_ready("solver", seconds=400)


def test_a_router_that_is_killed_comes_back_with_its_workers(solver: Kube) -> None:
    kill_router(solver, "solver")


def test_drift_is_put_right(solver: Kube) -> None:
    solver.kubectl("patch", "service", "solver", "--type=merge", "-p",
                   json.dumps({"spec": {"ports": [{"port": 81, "name": "http"}]}}))  # fmt: skip
    solver.kubectl("delete", "pdb", "solver-engine")
    wait_for(
        "port 80 again",
        lambda: (solver.get("service", "solver") or {})["spec"]["ports"][0]["port"] == 80,
        30,
    )
    wait_for("PodDisruptionBudget again", lambda: solver.get("pdb", "solver-engine"), 30)


def test_the_users_object_is_left_alone(solver: Kube) -> None:
    metadata = (solver.get("infsvc", "solver") or {})["metadata"]
    assert "finalizers" not in metadata
    assert set(metadata.get("annotations", {})) <= {
        "kubectl.kubernetes.io/last-applied-configuration"
    }


def test_zero_replicas_stops_and_one_starts_again(solver: Kube) -> None:
    solver.kubectl("scale", "infsvc/solver", "--replicas=0")
    wait_for("no pods", lambda: not engines(solver, "solver"), 60)
    assert solver.condition("solver")["reason"] == "NoReplicas"
    set_replicas(solver, 1)


def test_deleting_the_service_leaves_no_child(kube: Kube, model: str) -> None:
    with kube.service("passing", {"replicas": 0}):
        kube.wait_planned("passing", 30)
    assert kube.children("passing") == set()


def test_a_service_deleted_while_its_engine_loads_is_gone_soon(kube: Kube, model: str) -> None:
    """SIGTERM reaches an engine that has no handler yet: nobody waits for the grace period."""

    def pods() -> list[Json]:
        return kube.list("pods", "app.kubernetes.io/instance=hasty")

    def loading() -> bool:
        statuses = [each for pod in pods() for each in pod["status"].get("containerStatuses", [])]
        return any(each["name"] == "engine" and "running" in each["state"] for each in statuses)

    kube.apply(infsvc("hasty", {}))
    wait_for("the engine's process runs", loading, 60, 0.2)
    kube.delete("infsvc", "hasty")
    wait_for("no pod is left", lambda: not pods(), DRAIN_SECONDS + 20)


def test_a_model_in_an_image_is_served(kube: Kube, assay: Assay, tmp_path: Path) -> None:
    """oci:// mounts an image as a volume; here one that holds an untrained small model."""
    image = "assay/tiny-model:untrained"
    assay.build_model_image(image, tmp_path)
    spec = {"model": {"source": f"oci://docker.io/{image}"}}
    with kube.service("from-image", spec):
        service = kube.wait_ready("from-image")
        assert service["status"]["checkpoint"].startswith("tiny-model:untrained-")
        # An untrained model may end its answer at once: that it answers is what counts here.
        assert "time to first token" in chat(kube, "from-image", "hello", check=False)


def test_every_example_is_accepted(kube: Kube) -> None:
    for path in EXAMPLE.parent.glob("*.yaml"):
        assert yaml.safe_load_all(path.read_text())
        kube.kubectl("apply", "--dry-run=server", "-f", str(path))


def test_the_plan_command_shows_what_is_applied(kube: Kube) -> None:
    """Offline, without a cluster: the same children as those that the operator makes."""
    text = subprocess.run(
        [sys.executable, "-m", "assay_operator", "plan", str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    offline = {f"{item['kind']}/{item['metadata']['name']}" for item in yaml.safe_load_all(text)}
    kube.apply(infsvc("solver-plan", {"replicas": 0}))
    try:
        kube.wait_planned("solver-plan", 30)
        online = {name.replace("solver-plan", "solver") for name in kube.planned("solver-plan")}
        assert offline == online
    finally:
        kube.delete("infsvc", "solver-plan")
