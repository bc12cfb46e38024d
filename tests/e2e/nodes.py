"""What can be done to a cluster from its nodes: files that change, disks, a silent API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.cluster import Cluster
from tests.e2e.clients import Processes, processes
from tests.kube import Json, Kube, wait_for

SHOWN_MEGABYTES = 1024
"""Claimed of a folder that is there already; nothing holds anybody to it."""
CONTROL_PLANE = "component=kube-apiserver"
SLACK_SECONDS = 30
"""After which an API server that was stopped goes on even if nobody is left to tell it."""


@dataclass(frozen=True)
class Folder:
    """A folder of a node, in which a claim's files lie."""

    cluster: Cluster
    node: str
    path: str

    def run(self, script: str) -> str:
        """What a shell prints that runs there, as root."""
        words = ("exec", "-w", self.path, self.node, "sh", "-ec", script)
        return self.cluster.docker(*words).stdout

    def remount(self, option: str) -> None:
        """Mounts the file system that begins here anew, with `ro` or `rw`: for all who have it."""
        self.cluster.docker("exec", self.node, "mount", "-o", f"remount,{option}", self.path)


def folder_of(kube: Kube, claim: str) -> Folder:
    """Where a claim that is bound to a folder of a node has its files."""
    found: Any = kube.get("pvc", claim)
    spec: Any = (kube.get("pv", found["spec"]["volumeName"]) or {})["spec"]
    term = spec["nodeAffinity"]["required"]["nodeSelectorTerms"][0]
    path = (spec.get("hostPath") or spec.get("local"))["path"]
    return Folder(kube.cluster, term["matchExpressions"][0]["values"][0], path)


@contextmanager
def disk(kube: Kube, claim: str, node: str, megabytes: int) -> Iterator[Folder]:
    """A claim on a file system of its own, in a node's memory, for the time of a `with` block.

    Unlike a folder of the node, it can be full, and it can become read-only.
    """
    path = f"/var/assay-{kube.namespace}-{claim}"
    options = f"size={megabytes}m,mode=1777"
    make = f"mkdir -p {path} && mount -t tmpfs -o {options} tmpfs {path}"
    kube.cluster.docker("exec", node, "sh", "-ec", make)
    volume, bound = _volume(kube, claim, node, path, megabytes)
    try:
        kube.apply(volume, bound)
        yield Folder(kube.cluster, node, path)
    finally:
        kube.delete("pvc", claim)
        kube.delete("pv", volume["metadata"]["name"])
        kube.cluster.docker("exec", node, "umount", "--lazy", path)


@contextmanager
def shown(folder: Folder, kube: Kube, claim: str) -> Iterator[None]:
    """A claim that shows the files of a folder, for the time of a `with` block: as a file server
    would show them to another namespace."""
    volume, bound = _volume(kube, claim, folder.node, folder.path, SHOWN_MEGABYTES)
    try:
        kube.apply(volume, bound)
        yield
    finally:
        kube.delete("pvc", claim)
        kube.delete("pv", volume["metadata"]["name"])


def _volume(kube: Kube, claim: str, node: str, path: str, megabytes: int) -> tuple[Json, Json]:
    name, modes = f"{kube.namespace}-{claim}", ["ReadWriteOnce"]
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": f"{megabytes}Mi"},
            "accessModes": modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"namespace": kube.namespace, "name": claim},
            "hostPath": {"path": path, "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
    bound = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim},
        "spec": {
            "accessModes": modes,
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": {"storage": f"{megabytes}Mi"}},
        },
    }
    return volume, bound


def api_server(cluster: Cluster) -> Processes:
    """The API server's process."""
    system = Kube(cluster, "kube-system")
    (pod,) = system.list("pods", CONTROL_PLANE)
    return processes(system, pod["metadata"]["name"], "kube-apiserver")


def silence(server: Processes, seconds: int) -> None:
    """The API server answers nobody for so long; its connections stay open."""
    # Should this process end meanwhile, the API server goes on all the same.
    later = f"sleep {seconds + SLACK_SECONDS}; kill -CONT {' '.join(server.ids)}"
    server.cluster.docker("exec", "--detach", server.node, "sh", "-c", later)
    server.send("STOP")
    try:
        time.sleep(seconds)
    finally:
        server.send("CONT")
    wait_for("a healthy cluster", lambda: not server.cluster.problem(), 90)
