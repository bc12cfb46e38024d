"""A service goes to zero and comes back, and nobody who asks it notices more than a wait."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from assay_operator.inference.observation import ACTIVATOR_STATUS_PORT
from tests.e2e.clients import CLIENT, Background, Load, chat, engines, run_in_pod
from tests.e2e.operators import no_operators, wait_operators
from tests.kube import Json, Kube, wait_for

NAME = "sleeper"
WAKE_SECONDS = 300.0
"""What an engine may take to start here, beside others."""
SLEEP_SECONDS = 120.0
SCALING: Json = {
    "min": 0,
    "max": 1,
    "objectives": {"concurrency": 8},
    "scaleToZeroAfter": "10s",
}

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


@pytest.fixture(scope="module")
def sleeper(kube: Kube, model: str) -> Iterator[Kube]:
    """A service that goes to zero after ten silent seconds."""
    with kube.service(NAME, {"autoscaling": SCALING}):
        kube.wait_ready(NAME, replicas=1)
        yield kube


def activation(kube: Kube) -> Json:
    """Where the requests go."""
    found: Json = (kube.get("infsvc", NAME) or {})["status"].get("activation") or {}
    return found


def wait_phase(kube: Kube, phase: str, seconds: float) -> None:
    def reached() -> bool:
        return activation(kube).get("phase") == phase

    try:
        wait_for(f"phase {phase}", reached, seconds, every=0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{kube.describe(NAME)}") from None


def sleep(kube: Kube) -> None:
    """Until no engine is left of a service that nobody asks."""
    wait_phase(kube, "Away", SLEEP_SECONDS)
    wait_for("no engine", lambda: not engines(kube, NAME), SLEEP_SECONDS)


def components(kube: Kube) -> set[str]:
    """Of the pods that are not on their way out."""
    return {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for pod in kube.list("pods", f"app.kubernetes.io/instance={NAME}")
        if not pod["metadata"].get("deletionTimestamp")
    }


def activator(kube: Kube) -> Json:
    """The activator's pod."""
    selector = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=activator"
    found = kube.list("pods", selector)
    return next(pod for pod in found if not pod["metadata"].get("deletionTimestamp"))


def held(kube: Kube) -> int:
    """Requests that wait at the activator, as itself says."""
    script = (
        "import json,urllib.request as r\n"
        f"url = 'http://127.0.0.1:{ACTIVATOR_STATUS_PORT}/status'\n"
        "print(json.load(r.urlopen(url))['held'])"
    )
    name = activator(kube)["metadata"]["name"]
    return int(kube.kubectl("exec", name, "--", "python3", "-c", script))


def get(kube: Kube, path: str) -> str:
    """What a GET brings, through the Service."""
    script = (
        "import sys,urllib.request as r\n"
        f"print(r.urlopen('http://{NAME}.{kube.namespace}.svc{path}', timeout=10).read().decode())"
    )
    return run_in_pod(kube, script)


def test_with_a_replica_the_activator_is_not_in_the_path(sleeper: Kube) -> None:
    chat(sleeper, NAME, "1 + 1 =")
    selector = (sleeper.get("service", NAME) or {})["spec"]["selector"]
    assert selector["app.kubernetes.io/component"] == "router"
    assert activation(sleeper)["phase"] == "Serving"
    assert components(sleeper) == {"engine", "router", "activator"}


def test_after_silence_nothing_runs_but_the_activator(sleeper: Kube) -> None:
    sleep(sleeper)
    wait_for("only the activator", lambda: components(sleeper) == {"activator"}, 60)
    selector = (sleeper.get("service", NAME) or {})["spec"]["selector"]
    assert selector["app.kubernetes.io/component"] == "activator"


def test_who_asks_only_whether_it_is_well_does_not_wake_it(sleeper: Kube) -> None:
    assert get(sleeper, "/health").strip() == "OK"
    assert [item["id"] for item in json.loads(get(sleeper, "/v1/models"))["data"]] == [NAME]
    assert activation(sleeper)["phase"] == "Away"


def test_the_next_request_waits_and_is_answered(sleeper: Kube) -> None:
    said = chat(sleeper, NAME, "2 + 3 =")
    assert said.startswith("5\n"), said
    waited = int(re.search(r"time to first token (\d+) ms", said)[1]) / 1000  # type: ignore[index]
    sleeper.wait_ready(NAME, replicas=1)
    wait_phase(sleeper, "Serving", 60)
    told = activation(sleeper)["firstRequestWaitSeconds"]
    assert 1 < told <= waited + 1, "what the client felt is what the status says"
    assert {"ScaledToZero", "Woken"} <= {item["reason"] for item in sleeper.events(NAME)}


def test_one_to_zero_to_one_under_load_fails_no_request(sleeper: Kube) -> None:
    with Load(sleeper, NAME, threads=4, patience=WAKE_SECONDS) as load:
        load.wait_for_answers(40)
    sleep(sleeper)
    with Load(sleeper, NAME, threads=16, patience=WAKE_SECONDS) as again:
        wait_for("requests that wait", lambda: held(sleeper) == 16, 60)
        again.wait_for_answers(64, WAKE_SECONDS)
        wait_phase(sleeper, "Serving", 60)
        again.wait_for_answers(64)
    assert load.failures() == [] and again.failures() == []


@pytest.mark.parametrize("phase", ["Leaving", "Closing"])
def test_a_request_while_the_last_replica_goes_is_answered(sleeper: Kube, phase: str) -> None:
    """Over a connection that a router has from before, and over a new one."""
    sleeper.wait_ready(NAME, WAKE_SECONDS, replicas=1)
    with Kept(sleeper) as kept:
        kept.wait_answered()
        wait_phase(sleeper, phase, SLEEP_SECONDS)
        kept.ask()
        with Load(sleeper, NAME, threads=2, patience=WAKE_SECONDS) as load:
            load.wait_for_answers(4, WAKE_SECONDS)
        kept.wait_answered()
    assert load.failures() == []
    sleeper.wait_ready(NAME, WAKE_SECONDS, replicas=1)


def test_a_request_that_comes_while_the_operator_is_away_waits_for_it(sleeper: Kube) -> None:
    sleep(sleeper)
    with Load(sleeper, NAME, threads=2, patience=2 * WAKE_SECONDS) as load:
        with no_operators(sleeper):
            wait_for("requests that wait", lambda: held(sleeper) == 2, 60)
            assert not engines(sleeper, NAME)
        load.wait_for_answers(4, 2 * WAKE_SECONDS)
    assert load.failures() == []
    wait_operators(sleeper)


def test_an_activator_that_is_replaced_hands_on_what_it_holds(sleeper: Kube) -> None:
    """As when its node is drained."""
    sleep(sleeper)
    with Load(sleeper, NAME, threads=2, patience=WAKE_SECONDS) as load:
        wait_for("requests that wait", lambda: held(sleeper) == 2, 60)
        name = activator(sleeper)["metadata"]["name"]
        sleeper.kubectl("delete", "pod", name, "--wait=false")
        load.wait_for_answers(4, WAKE_SECONDS)
    assert load.failures() == []
