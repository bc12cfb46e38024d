"""Clients inside the cluster: they go through DNS, Service and router as users do."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from examples import chat as chat_module
from tests.cluster import Cluster
from tests.kube import Json, Kube, NotYet, wait_for

CLIENT = "client"

# Asks for answers in a loop, several at a time, and writes a line for each. SGLang tells with
# each answer which weights made it.
_LOAD = """
import json, sys, threading, time, urllib.request
url, model, threads, pause = sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
tokens, patience = int(sys.argv[6]), float(sys.argv[7])
out, lock = open(sys.argv[1], "w", buffering=1), threading.Lock()
def loop(number):
    count = 0
    while True:
        count += 1
        body = {"model": model, "prompt": f"{number} {count} + 1 =", "max_tokens": tokens,
                "ignore_eos": True}
        request = urllib.request.Request(url + "/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        began, error, version = time.time(), None, None
        try:
            answer = json.load(urllib.request.urlopen(request, timeout=patience))
            answer["choices"][0]
            version = (answer.get("metadata") or {}).get("weight_version")
        except Exception as problem:
            error = repr(problem)
        line = {"at": began, "s": time.time() - began, "error": error, "version": version}
        with lock:
            print(json.dumps(line), file=out)
        time.sleep(pause)
for number in range(threads):
    threading.Thread(target=loop, args=(number,), daemon=True).start()
time.sleep(3600)
"""


def client_pod(image: str) -> Json:
    """A pod that sleeps, in which clients run."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": CLIENT,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", "import time; time.sleep(1e6)"],
                }
            ],
        },
    }


def run_in_pod(kube: Kube, script: str, *args: str, check: bool = True) -> str:
    """What a Python script prints in the client pod."""
    words = ("exec", "-i", CLIENT, "--", "python3", "-", *args)
    return kube.kubectl(*words, input=script, check=check)


def chat(kube: Kube, name: str, prompt: str, check: bool = True) -> str:
    """One streamed chat through the Service."""
    script = Path(chat_module.__file__).read_text()
    url = f"http://{name}.{kube.namespace}.svc/v1"
    return run_in_pod(kube, script, url, name, prompt, check=check)


def _pods(kube: Kube, name: str, component: str) -> list[Json]:
    selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component={component}"
    return kube.list("pods", selector)


def engines(kube: Kube, name: str) -> list[Json]:
    """A service's engine pods, but for those on their way out."""
    pods = _pods(kube, name, "engine")
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def routers(kube: Kube, name: str) -> list[Json]:
    """A service's router pods."""
    return _pods(kube, name, "router")


def _told_within(kube: Kube, pod: str, request: str) -> Any:
    """What an engine answers to a request from its own pod, as JSON data.

    From there: a NetworkPolicy may keep the client pod away from engines.

    Args:
        kube: where the pod is.
        pod: of the engine.
        request: path and, if any, body: the arguments of urllib's Request, as Python.
    """
    script = (
        "import urllib.request as r\n"
        f"print(r.urlopen(r.Request('http://127.0.0.1:30000' + {request})).read().decode())"
    )
    return json.loads(kube.kubectl("exec", pod, "-c", "engine", "--", "python3", "-c", script))


def _version_by_pod(kube: Kube, name: str) -> dict[str, str]:
    """The version of weights that each of a service's engines itself reports, by pod."""
    names = [str(pod["metadata"]["name"]) for pod in engines(kube, name)]
    return {pod: _told_within(kube, pod, "'/model_info'")["weight_version"] for pod in names}


def completed_by(kube: Kube, pod: str, tokens: int) -> tuple[int, str]:
    """How long an answer became that an engine was asked for, and what weights it had then."""
    asked = {"text": "1 + 1 =", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    header = {"Content-Type": "application/json"}
    said = _told_within(kube, pod, f"'/generate', {json.dumps(asked).encode()!r}, {header}")
    return said["meta_info"]["completion_tokens"], said["meta_info"]["weight_version"]


def reported(kube: Kube, name: str) -> set[str]:
    """The versions of weights that a service's engines themselves report."""
    return set(_version_by_pod(kube, name).values())


def wait_reported(kube: Kube, name: str, version: str, seconds: float = 60) -> None:
    """Waits until all of a service's engines report one version of weights.

    Raises:
        NotYet: they do not; the message names what each reports instead.
    """
    found: dict[str, str] = {}

    def same() -> bool:
        found.clear()
        found.update(_version_by_pod(kube, name))
        return set(found.values()) == {version}

    try:
        wait_for(f"weights {version} in all engines", same, seconds, every=1)
    except NotYet as late:
        raise NotYet(f"{late}; they report {found}") from late


@dataclass(frozen=True)
class Processes:
    """The processes of one container, as its node knows them.

    Who looks them up beforehand can hit them within a tenth of a second, and without the API
    server.
    """

    cluster: Cluster
    node: str
    ids: tuple[str, ...]

    def send(self, signal: str) -> None:
        """A signal to the first and all below it; with the first the others may be gone already."""
        self.cluster.docker("exec", self.node, "kill", f"-{signal}", *self.ids, check=False)

    def slow_down(self) -> None:
        """Lets them run for a third of the time, until the first of them ends."""
        first, all_ = self.ids[0], " ".join(self.ids)
        turn = f"kill -STOP {all_}; sleep 0.1; kill -CONT {all_}; sleep 0.05"
        script = f"while kill -0 {first}; do {turn}; done"
        self.cluster.docker("exec", "--detach", self.node, "sh", "-c", script)


def processes(kube: Kube, pod: str, container: str) -> Processes:
    """The processes of a pod's container."""
    found: Any = kube.get("pod", pod)
    status = next(
        item for item in found["status"]["containerStatuses"] if item["name"] == container
    )
    identity = status["containerID"].removeprefix("containerd://")
    node = found["spec"]["nodeName"]
    tasks = kube.cluster.docker("exec", node, "ctr", "-n", "k8s.io", "tasks", "ps", identity).stdout
    ids = tuple(line.split()[0] for line in tasks.splitlines()[1:])
    assert ids, f"pod {pod} has no process in {container}"
    return Processes(kube.cluster, node, ids)


def kill_process(kube: Kube, pod: str, container: str, signal: str) -> None:
    """A signal to the first process of a container and all below it, from the node."""
    processes(kube, pod, container).send(signal)


def kill_router(kube: Kube, name: str) -> None:
    """SIGKILL to a service's router; returns once it answers again, workers and all."""
    kill_process(kube, routers(kube, name)[0]["metadata"]["name"], "router", "KILL")
    wait_for("an answer", lambda: "time to first token" in chat(kube, name, "x", check=False), 60)


class Background:
    """A script that runs in the client pod for the time of a `with` block and writes JSON lines.

    Args:
        kube: where the client pod is.
        label: of its files: two with one label cannot run at a time.
        script: Python. Its first argument is the file that it writes to.
        arguments: the others.
    """

    def __init__(self, kube: Kube, label: str, script: str, *arguments: object) -> None:
        self.kube = kube
        self._place, self._script = f"/tmp/{label}", script
        self._arguments = [f"{self._place}.jsonl", *map(str, arguments)]
        self._lines: list[Json] = []

    def __enter__(self) -> Self:
        place = self._place
        self.kube.kubectl(
            "exec", "-i", CLIENT, "--", "sh", "-c",
            f"rm -f {place}.jsonl; cat > {place}.py; "
            f"nohup python3 {place}.py {' '.join(self._arguments)} "
            f">{place}.log 2>&1 & echo $! > {place}.pid",
            input=self._script,
        )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._read()
        self.kube.kubectl("exec", CLIENT, "--", "sh", "-c", f"kill -9 $(cat {self._place}.pid)")

    def _read(self) -> None:
        file = f"{self._place}.jsonl"
        text = self.kube.kubectl("exec", CLIENT, "--", "cat", file, check=False)
        whole = text[: text.rfind("\n") + 1]
        self._lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    @property
    def lines(self) -> list[Json]:
        """What it has written, as far as that was read."""
        return self._lines


class Load(Background):
    """Requests in a loop from the client pod for the time of a `with` block.

    Of each request that is over, `lines` has `at` (when it began, in seconds since the epoch), `s`
    (how long it took), `error`, and the `version` of the weights that answered.

    Args:
        kube: where the client pod is.
        name: of the Service, and of the model.
        threads: requests at a time.
        pause: seconds from an answer to the same thread's next request.
        tokens: of each answer.
        patience: seconds after which a request that has no answer has failed.
    """

    def __init__(
        self,
        kube: Kube,
        name: str,
        threads: int = 3,
        pause: float = 0.0,
        tokens: int = 8,
        patience: float = 60.0,
    ) -> None:
        url = f"http://{name}.{kube.namespace}.svc/v1"
        super().__init__(kube, "load", _LOAD, url, name, threads, pause, tokens, patience)

    def versions(self) -> set[str]:
        """The weights that answered."""
        return {line["version"] for line in self._lines if line["version"]}

    def answers(self) -> int:
        return len(self._lines)

    def failures(self) -> list[Json]:
        return [line for line in self._lines if line["error"]]

    def wait_for_answers(self, more: int, seconds: float = 120) -> None:
        """Until this many more requests have been answered."""
        self._read()
        goal = self.answers() + more

        def enough() -> bool:
            self._read()
            return self.answers() >= goal

        wait_for(f"{more} more answers", enough, seconds)
        time.sleep(0.1)
