"""The same change of weights without Assay: a plain Deployment that rolls to another model path."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass

from benchmarks.common import Json, say
from benchmarks.rollout_requests import Change
from tests.kube import Kube, wait_for

PLAIN = "plain"
LABELS = {"app": PLAIN}
PATH_VARIABLE = "MODEL_PATH"
READY_SECONDS = 600


@dataclass(frozen=True)
class Restarts:
    """How its pods are replaced, and how often.

    Attributes:
        surge: pods that there may be more meanwhile.
        unavailable: pods that may be missing meanwhile.
        rounds: changes of the weights.
    """

    surge: int
    unavailable: int
    rounds: int

    @property
    def name(self) -> str:
        """For people."""
        return f"rolling restart, maxSurge {self.surge}, maxUnavailable {self.unavailable}"


def plain_objects(template: Json, service: str, folder: str, replicas: int) -> tuple[Json, Json]:
    """A Deployment of the engines that Assay runs, without Assay, and a Service before it.

    Args:
        template: of Assay's engine pods. Image, arguments, resources and the way to end are kept;
            the model's path comes by an environment variable instead of the checkpoint pointer, and
            the readiness probe asks /health.
        service: the name of the InferenceService that it was made for.
        folder: that is served first.
        replicas: how many.
    """
    pod = copy.deepcopy(template["spec"])
    pod.pop("topologySpreadConstraints", None)
    container = next(each for each in pod["containers"] if each["name"] == "engine")
    path = f"$({PATH_VARIABLE})"
    container["command"] = ["python3", "-m", "sglang.launch_server"]
    container["args"] = [
        *(PLAIN if each == service else each for each in container["args"]),
        *("--model-path", path, "--weight-version", path, "--load-format", "safetensors"),
    ]
    container["env"] = [
        *container.get("env", []),
        {"name": "HF_HUB_OFFLINE", "value": "1"},
        {"name": PATH_VARIABLE, "value": path_of(folder)},
    ]
    container["readinessProbe"]["httpGet"]["path"] = "/health"
    pod["volumes"] = [each for each in pod["volumes"] if each["name"] != "pointer"]
    container["volumeMounts"] = [
        each for each in container["volumeMounts"] if each["name"] != "pointer"
    ]
    deployment: Json = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": PLAIN},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": LABELS},
            "template": {"metadata": {"labels": LABELS}, "spec": pod},
        },
    }
    before: Json = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": PLAIN},
        "spec": {"selector": LABELS, "ports": [{"port": 80, "targetPort": "http"}]},
    }
    return deployment, before


def path_of(folder: str) -> str:
    """Where a folder of the claim `models` is in a pod, which is also its name in answers."""
    return f"/models/{folder}"


def replace_by(kube: Kube, restarts: Restarts) -> None:
    """How its pods shall be replaced from now on."""
    bounds = {"maxSurge": restarts.surge, "maxUnavailable": restarts.unavailable}
    patch = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": bounds}}}
    kube.kubectl("patch", "deployment", PLAIN, "--patch", json.dumps(patch))


def restart_with(kube: Kube, folder: str) -> Change:
    """Another model path, and the time until all pods are new and ready."""
    path = path_of(folder)
    began = time.time()
    kube.kubectl("set", "env", f"deployment/{PLAIN}", f"{PATH_VARIABLE}={path}")
    wait_rolled(kube)
    change = Change(version=path, began=began, passed=began, ended=time.time())
    say(f"{PLAIN} ({folder}): {change.seconds:.1f} s")
    return change


def wait_rolled(kube: Kube) -> None:
    """Until all its pods are new and ready."""
    kube.kubectl("rollout", "status", f"deployment/{PLAIN}", f"--timeout={READY_SECONDS}s")


def wait_settled(kube: Kube, replicas: int) -> None:
    """Until the old pods have finished their requests and are gone."""
    wait_for(
        f"{replicas} pods of {PLAIN}",
        lambda: len(kube.list("pods", f"app={PLAIN}")) == replicas,
        READY_SECONDS,
        every=1,
    )
