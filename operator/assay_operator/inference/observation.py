"""What is seen of one InferenceService: plain data, gathered by the shell, read by the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_operator.plan import Json, Ref

ENGINE_PORT = 30000
ROUTER_PORT = 30080
METRICS_PORT = 29000
"""smg's own Prometheus port, in the router's pod."""


@dataclass(frozen=True)
class Probe:
    """What one engine answered over HTTP.

    Attributes:
        version: the `weight_version` that /model_info reports, None where it did not answer.
        generated: whether it answered a generation of one token since its container started.
        error: why one of them failed, in one line.
    """

    version: str | None = None
    generated: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Observation:
    """The world as far as one InferenceService is concerned.

    Attributes:
        service: the InferenceService itself, as the API server has it.
        children: its live children but pods, by kind and name.
        engines: its engine pods, raw, terminating ones included.
        routers: its router pods, raw, terminating ones included.
        probes: by uid of the engine pod; a pod that is not ready, or was not asked, is absent.
        listings: by uid of the router pod, the URLs of the healthy workers that it lists; None
            where it did not answer; absent where it is not ready.
        rejections: the API server's words about children that it refused in the last pass.
    """

    service: Json
    children: Mapping[Ref, Json] = field(default_factory=dict)
    engines: tuple[Json, ...] = ()
    routers: tuple[Json, ...] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict)
    listings: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    rejections: Mapping[Ref, str] = field(default_factory=dict)


def labels_of(item: Json) -> dict[str, str]:
    """The labels of a Kubernetes object."""
    labels: dict[str, str] = item.get("metadata", {}).get("labels") or {}
    return labels


def is_terminating(pod: Json) -> bool:
    """Whether the pod is on its way out: it must get no new request."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_ready(pod: Json) -> bool:
    """Whether the kubelet finds the pod ready, and it is to stay."""
    if is_terminating(pod):
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def engine_url(pod: Json) -> str | None:
    """Where the engine in `pod` is reached: its worker URL, None without an address yet."""
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{ENGINE_PORT}"
