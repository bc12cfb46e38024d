"""The configuration of a kind cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.settings import SHARE_MOUNT


def render(*, workers: int, share: Path, may_raise_limits: bool) -> str:
    """kind's configuration file for one control plane and some workers."""
    mounts = [{"hostPath": str(share), "containerPath": SHARE_MOUNT}]
    roles = ["control-plane"] + ["worker"] * workers
    return yaml.safe_dump(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {"kubeProxyMode": "iptables"},
            "nodes": [{"role": role, "extraMounts": mounts} for role in roles],
            "kubeadmConfigPatches": [
                yaml.safe_dump(patch, sort_keys=False) for patch in _patches(may_raise_limits)
            ],
        },
        sort_keys=False,
    )


def _patches(may_raise_limits: bool) -> list[dict[str, Any]]:
    kubelet: dict[str, Any] = {
        "kind": "KubeletConfiguration",
        # kubelet refuses cgroup v1 unless told otherwise; there are machines that have no other.
        "failCgroupV1": False,
    }
    if not may_raise_limits:
        kubelet["oomScoreAdj"] = 0
    etcd = {
        "kind": "ClusterConfiguration",
        # A test cluster's data need not survive a power cut, and a slow disk makes tests flaky.
        "etcd": {"local": {"extraArgs": [{"name": "unsafe-no-fsync", "value": "true"}]}},
    }
    return [kubelet, etcd]
