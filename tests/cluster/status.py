"""What `status` shows."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.cluster import engine
from tests.cluster.cluster import GPU_RESOURCE, Cluster, is_ready
from tests.cluster.engine import Engine
from tests.cluster.settings import SHARE_MOUNT, Cache


def print_status(name: str) -> bool:
    """Print how engine, cluster, nodes and pods are; returns whether the cluster is healthy."""
    console = Console(soft_wrap=True, highlight=False)
    cluster = Cluster.named(name)
    console.print(f"Docker engine  {_engine_text()}")
    problem = cluster.problem() if engine.answers() else "no Docker engine answers"
    console.print(f"cluster {name}  {problem or 'healthy'}")
    if problem:
        console.print("Bring it up with: python -m tests.cluster up")
        return False
    console.print(f"kubeconfig     {cluster.kubeconfig}")
    console.print(f"tools          {cluster.bin}")
    console.print(f"share          {cluster.share} (on every node: {SHARE_MOUNT})")
    console.print(_node_table(cluster.nodes()))
    pods = json.loads(cluster.kubectl("get", "pods", "-A", "-o", "json").stdout)["items"]
    unwell = [pod for pod in pods if not is_well(pod)]
    console.print(f"pods           {len(pods) - len(unwell)} of {len(pods)} are well")
    for pod in unwell:
        meta = pod["metadata"]
        console.print(f"  {meta['namespace']}/{meta['name']}: {pod['status'].get('phase')}")
    return True


def is_well(pod: dict[str, Any]) -> bool:
    """Whether a pod is done or ready."""
    return pod["status"].get("phase") == "Succeeded" or is_ready(pod)


def _engine_text() -> str:
    if not engine.answers():
        return "does not answer"
    pid = Engine(Cache.default()).started_by_us()
    return f"running, started by us as process {pid}" if pid else "running"


def _node_table(nodes: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("NODE", "READY", "VERSION", "ADDRESS", "POD RANGE", "GPUS"):
        table.add_column(title)
    for node in nodes:
        status = node["status"]
        addresses = [a["address"] for a in status["addresses"] if a["type"] == "InternalIP"]
        table.add_row(
            node["metadata"]["name"],
            "yes" if is_ready(node) else "NO",
            status["nodeInfo"]["kubeletVersion"],
            addresses[0],
            node["spec"].get("podCIDR", ""),
            status["allocatable"].get(GPU_RESOURCE, ""),
        )
    return table
