"""A running test cluster, as tests and demos use it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.cluster.errors import ClusterError
from tests.cluster.processes import capture
from tests.cluster.settings import DEFAULT_CLUSTER, Cache

GPU_RESOURCE = "nvidia.com/gpu"
GPU_SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """A handle on a cluster: where its kubeconfig and tools are, and how to use them.

    The paths follow from the name, so a handle can be had before the cluster exists.
    """

    name: str
    kubeconfig: Path
    bin: Path
    share: Path

    @classmethod
    def named(cls, name: str = DEFAULT_CLUSTER, cache: Cache | None = None) -> Cluster:
        cache = cache or Cache.default()
        folder = cache.cluster(name)
        return cls(name, folder / "kubeconfig", folder / "bin", cache.share)

    @property
    def environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.kubeconfig)}

    def kubectl(
        self, *args: str | Path, input: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        """Run kubectl on this cluster; `input` is what `-f -` reads."""
        return self._run("kubectl", *args, input=input, check=check)

    def helm(
        self, *args: str | Path, input: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        """Run helm on this cluster."""
        return self._run("helm", *args, input=input, check=check)

    def docker(
        self, *args: str | Path, input: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        """Run docker; `docker("stop", node)` is a node's failure."""
        return capture("docker", *args, input=input, check=check)

    def load(self, *images: str) -> None:
        """Put images of the Docker engine on all nodes; those that are there already are left."""
        self._run("kind", "load", "docker-image", "--name", self.name, *images)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes as the API server has them."""
        listed = json.loads(self.kubectl("get", "nodes", "-o", "json").stdout)
        items: list[dict[str, Any]] = listed["items"]
        return items

    def workers(self) -> list[str]:
        """Names of the nodes that aren't control planes."""
        return [
            node["metadata"]["name"]
            for node in self.nodes()
            if "node-role.kubernetes.io/control-plane" not in node["metadata"]["labels"]
        ]

    def pretend_gpus(self, count: int, node: str | None = None) -> str:
        """Give a node (else the first worker) a GPU count that the scheduler counts with.

        Nothing of a GPU appears in pods. Zero takes the resource away. Returns the node's name.
        """
        if count < 0:
            raise ClusterError(f"a node cannot have {count} GPUs")
        node = node or next(iter(self.workers()), None)
        if node is None:
            raise ClusterError("this cluster has no worker; name a node")
        amount = {GPU_RESOURCE: str(count) if count else None}
        patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
        self.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)
        deadline = time.monotonic() + GPU_SECONDS
        while self._gpus(node) != count:
            if time.monotonic() > deadline:
                raise ClusterError(f"{node} does not show {count} GPUs", "Is its kubelet running?")
            time.sleep(0.5)
        return node

    def _gpus(self, node: str) -> int:
        status = json.loads(self.kubectl("get", "node", node, "-o", "json").stdout)["status"]
        return int(status["allocatable"].get(GPU_RESOURCE, 0))

    def problem(self) -> str:
        """What is wrong with the cluster, in a few words; empty if it is healthy."""
        if not self.kubeconfig.exists():
            return "there is none"
        with contextlib.suppress(ClusterError):
            ready = self.kubectl("--request-timeout=5s", "get", "--raw", "/readyz", check=False)
            if ready.returncode:
                return "the API server does not answer"
            down = [node["metadata"]["name"] for node in self.nodes() if not is_ready(node)]
            return f"not ready: {', '.join(down)}" if down else ""
        return "the API server does not answer"

    def _run(
        self, tool: str, *args: str | Path, input: str | None = None, check: bool = True
    ) -> CompletedProcess[str]:
        program = self.bin / tool
        if not program.exists():
            raise ClusterError(
                f"there is no cluster named {self.name}.", "Run `python -m tests.cluster up` first."
            )
        return capture(program, *args, input=input, check=check, env=self.environment)


def is_ready(object_: Mapping[str, Any]) -> bool:
    """Whether a node's or a pod's condition Ready is true."""
    conditions = object_["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
