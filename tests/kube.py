"""How tests look at a cluster: apply YAML, read objects, wait until something holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from assay_operator.inference.objects import DRAIN_SECONDS, FINISH_SECONDS
from tests.cluster import Cluster

Json = dict[str, Any]
PLANNED = 7
"""Children that the operator writes for each service, whatever its configuration: two ConfigMaps,
Deployments and PodDisruptionBudgets, and a Service."""
GONE_SECONDS = DRAIN_SECONDS + FINISH_SECONDS + 60
"""What the last pod of a service may take to go."""
T = TypeVar("T")


class NotYet(AssertionError):
    """What was waited for did not come."""


def wait_for(what: str, look: Callable[[], T | None], seconds: float, every: float = 0.5) -> T:
    """The first true answer of `look`.

    Raises:
        NotYet: there was none in time; the message ends with the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise NotYet(f"{what}: not within {seconds:.0f} s, last seen: {answer!r}")
        time.sleep(every)


@dataclass(frozen=True)
class Kube:
    """One namespace of a cluster."""

    cluster: Cluster
    namespace: str

    def kubectl(self, *args: str, input: str | None = None, check: bool = True) -> str:
        done = self.cluster.kubectl("-n", self.namespace, *args, input=input, check=check)
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def apply(self, *objects: Json) -> None:
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def refusal(self, item: Json) -> str:
        """What the API server says against `item`.

        Raises:
            AssertionError: it has nothing against it.
        """
        done = self.cluster.kubectl(
            "-n", self.namespace, "apply", "-f", "-", input=yaml.safe_dump(item), check=False
        )
        assert done.returncode != 0, f"accepted: {item}"
        return done.stderr

    def get(self, kind: str, name: str) -> Json | None:
        """One object, None where there is none."""
        found: Json = json.loads(
            self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found") or "null"
        )
        return found

    def list(self, kinds: str, selector: str = "") -> list[Json]:
        words = ["get", kinds, "-o", "json", *(["-l", selector] if selector else [])]
        items: list[Json] = json.loads(self.kubectl(*words))["items"]
        return items

    def delete(self, kind: str, name: str) -> None:
        self.kubectl("delete", kind, name, "--ignore-not-found", "--wait=false")

    # --- InferenceServices --------------------------------------------------------------------

    def condition(self, name: str, kind: str = "Ready") -> Json:
        """One condition of an InferenceService, empty while it is not there."""
        service = self.get("infsvc", name) or {}
        conditions = service.get("status", {}).get("conditions") or []
        return next((item for item in conditions if item["type"] == kind), {})

    def wait_ready(self, name: str, seconds: float = 240, replicas: int | None = None) -> Json:
        """The InferenceService, once it is ready with all (or `replicas`) replicas routable."""

        def look() -> Json | None:
            service = self.get("infsvc", name) or {}
            status = service.get("status", {})
            wanted = replicas or service.get("spec", {}).get("replicas", 1)
            ready = self.condition(name).get("status") == "True"
            return service if ready and status.get("readyReplicas") == wanted else None

        try:
            return wait_for(f"infsvc {name} ready", look, seconds, every=1)
        except NotYet as error:
            raise NotYet(f"{error}\n{self.describe(name)}") from None

    def describe(self, name: str) -> str:
        """All that helps to see why a service is as it is."""
        selector = f"app.kubernetes.io/instance={name}"
        return "\n".join(
            [
                self.kubectl("get", "infsvc", name, "-o", "yaml", check=False),
                self.kubectl("get", "pods", "-l", selector, "-o", "wide", check=False),
                self.kubectl(
                    "logs", "-l", selector, "--tail=30", "--prefix", "--all-containers", check=False
                ),
            ]
        )

    def events(self, name: str) -> Sequence[Json]:
        """The Events about the InferenceService."""
        return [
            item
            for item in self.list("events")
            if item["involvedObject"]["kind"] == "InferenceService"
            and item["involvedObject"]["name"] == name
        ]

    def children(self, name: str) -> set[str]:
        """kind/name of everything that belongs to a service, pods and ReplicaSets included."""
        found = self.list(
            "deployments,replicasets,pods,services,configmaps,poddisruptionbudgets",
            f"app.kubernetes.io/instance={name}",
        )
        return {f"{item['kind']}/{item['metadata']['name']}" for item in found}

    def planned(self, name: str) -> set[str]:
        """kind/name of the children that the operator itself writes, but for NetworkPolicies."""
        written = ("ConfigMap", "Deployment", "PodDisruptionBudget", "Service")
        return {child for child in self.children(name) if child.partition("/")[0] in written}

    def wait_planned(self, name: str, seconds: float = 60) -> None:
        """Until the operator has written every child of a service."""
        wait_for(
            f"{PLANNED} children of {name}",
            lambda: len(self.planned(name)) == PLANNED,
            seconds,
            every=0.1,
        )

    def wait_gone(self, name: str) -> None:
        """Until no child of a service is left: at most as long as Kubernetes gives an engine."""
        wait_for(f"children of {name} gone", lambda: not self.children(name), GONE_SECONDS, every=1)

    @contextmanager
    def service(self, name: str, spec: Json) -> Iterator[str]:
        """An InferenceService for the time of a `with` block."""
        self.apply(infsvc(name, spec))
        try:
            yield name
        finally:
            self.delete("infsvc", name)
            self.wait_gone(name)


def infsvc(name: str, spec: Json) -> Json:
    """An InferenceService on CPU, serving the tiny model unless `spec` says otherwise."""
    engine = {
        "accelerator": "cpu",
        "extraArgs": ["--context-length", "2048", "--max-total-tokens", "8192"],
        # Several engines share the two cores of the test machine.
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    }
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "pvc://models/tiny"},
            **spec,
            "engine": {**engine, **spec.get("engine", {})},
        },
    }
