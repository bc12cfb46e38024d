"""One service that scales itself: how tests change it, look at it and ask it."""

from __future__ import annotations

import json
from urllib.parse import quote

from assay_operator.inference.observation import ACTIVATOR_STATUS_PORT
from tests.e2e.clients import CLIENT, Background, run_in_pod
from tests.kube import Json, Kube, NotYet, wait_for

NAME = "scaled"
SCALING: Json = {
    "min": 1,
    "max": 3,
    "objectives": {"concurrency": 4},
    # A replica goes no sooner than one could be started, however short this is.
    "scaleDownAfter": "20s",
}
WAKE_SECONDS = 300.0
"""What an engine may take to start here, beside others."""
SLEEP_SECONDS = 120.0

# Opens one connection and asks over it once; then once for each file that says so. As libraries do,
# it opens another where the server has closed this one meanwhile.
_KEPT = """
import http.client, json, pathlib, select, sys, time
out, host, model = open(sys.argv[1], "w", buffering=1), sys.argv[2], sys.argv[3]
connection, count = http.client.HTTPConnection(host, timeout=300), 0
while True:
    go = pathlib.Path(f"/tmp/kept-go-{count}")
    while count and not go.exists():
        time.sleep(0.02)
    go.unlink(missing_ok=True)
    body, error = json.dumps({"model": model, "prompt": f"{count} + 1 =", "max_tokens": 8}), None
    try:
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
        error = None if answer.status == 200 else f"{answer.status} {told}"
    except Exception as problem:
        error = repr(problem)
    print(json.dumps({"count": count, "error": error}), file=out)
    count += 1
"""


class Kept(Background):
    """A client that keeps its connection, as libraries do, and asks when it is told to."""

    def __init__(self, kube: Kube) -> None:
        super().__init__(kube, "kept", _KEPT, f"{NAME}.{kube.namespace}.svc", NAME)
        self._asked = 0

    def ask(self) -> None:
        """One request over the connection that is there."""
        self._asked += 1
        self.kube.kubectl("exec", CLIENT, "--", "touch", f"/tmp/kept-go-{self._asked}")

    def wait_answered(self) -> None:
        """Until all requests are over, the first one included."""

        def over() -> bool:
            self._read()
            return len(self.lines) > self._asked

        wait_for("answers over a kept connection", over, WAKE_SECONDS)
        assert [line for line in self.lines if line["error"]] == []


def change(kube: Kube, scaling: Json) -> None:
    """Another spec.autoscaling, whole."""
    whole = {"driver": "builtin", **scaling}
    patch = [{"op": "replace", "path": "/spec/autoscaling", "value": whole}]
    kube.kubectl("patch", "infsvc", NAME, "--type=json", "-p", json.dumps(patch))


def decision(kube: Kube) -> Json:
    """The latest one about replicas."""
    found: Json = (kube.get("infsvc", NAME) or {})["status"].get("autoscaling") or {}
    return found


def written(kube: Kube) -> int:
    """spec.replicas, as whoever scales the service has written it."""
    return int((kube.get("infsvc", NAME) or {})["spec"]["replicas"])


def wait_same_number(kube: Kube, metric: str, label: str) -> None:
    """Until an external metric is what the objectives require, as the status has it.

    Args:
        kube: where the service is.
        metric: as the HorizontalPodAutoscaler of the service names it.
        label: of the metric, that has the service's name.
    """
    path = (
        f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{kube.namespace}/{metric}"
        f"?labelSelector={quote(f'{label}={NAME}', safe='')}"
    )

    def same() -> bool:
        [item] = json.loads(kube.kubectl("get", "--raw", path))["items"]
        return bool(item["value"] == str(decision(kube).get("required")))

    wait_for("the number of the status", same, 30)


def wait_scaling(kube: Kube, reason: str, seconds: float = 120) -> Json:
    """The condition ScalingActive once it has this reason."""

    def look() -> Json | None:
        found = kube.condition(NAME, "ScalingActive")
        return found if found.get("reason") == reason else None

    return wait_for(f"ScalingActive {reason}", look, seconds)


def activation(kube: Kube) -> Json:
    """Where the requests go."""
    found: Json = (kube.get("infsvc", NAME) or {})["status"].get("activation") or {}
    return found


def wait_phase(kube: Kube, phase: str, seconds: float = SLEEP_SECONDS) -> None:
    """Until requests go where they do in a phase of `status.activation`."""

    def reached() -> bool:
        return activation(kube).get("phase") == phase

    try:
        wait_for(f"phase {phase}", reached, seconds, every=0.1)
    except NotYet as error:
        raise NotYet(f"{error}\n{kube.describe(NAME)}") from None


def pods(kube: Kube) -> dict[str, list[str]]:
    """The names of the pods that are not on their way out, by component."""
    found: dict[str, list[str]] = {}
    for pod in kube.list("pods", f"app.kubernetes.io/instance={NAME}"):
        if not pod["metadata"].get("deletionTimestamp"):
            component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
            found.setdefault(component, []).append(pod["metadata"]["name"])
    return found


def points_to(kube: Kube) -> str:
    """The component that the Service sends requests to."""
    selector = (kube.get("service", NAME) or {})["spec"]["selector"]
    return str(selector["app.kubernetes.io/component"])


def held(kube: Kube) -> int:
    """Requests that wait at the activator, as itself says."""
    script = (
        "import json,urllib.request as r\n"
        f"url = 'http://127.0.0.1:{ACTIVATOR_STATUS_PORT}/status'\n"
        "print(json.load(r.urlopen(url))['held'])"
    )
    [name] = pods(kube)["activator"]
    return int(kube.kubectl("exec", name, "--", "python3", "-c", script))


def get(kube: Kube, path: str) -> str:
    """What a GET brings, through the Service."""
    script = (
        "import sys,urllib.request as r\n"
        f"print(r.urlopen('http://{NAME}.{kube.namespace}.svc{path}', timeout=10).read().decode())"
    )
    return run_in_pod(kube, script)
