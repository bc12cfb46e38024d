"""What is seen of one InferenceService: plain data, gathered by the shell, read by the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from assay_operator.autoscaling.decision import Decision
from assay_operator.inference.kernels import Kernels
from assay_operator.plan import Json, Ref

ENGINE_PORT = 30000
ROUTER_PORT = 30080
METRICS_PORT = 29000
"""smg's own Prometheus port, in the router's pod."""
ACTIVATOR_PORT = 30090
ACTIVATOR_STATUS_PORT = 29090
"""Where an activator says how it is; users reach the other port only."""
_ENDED = frozenset({"Failed", "Succeeded"})


@dataclass(frozen=True)
class Probe:
    """What one engine answered over HTTP.

    Attributes:
        version: the `weight_version` that /model_info reports, None where it did not answer.
        generated: whether it answered a generation of one token since its container started. One
            that does not run the kernels that it was asked to run is not asked for any.
        error: why one of them failed, in one line.
        kernels: what it says of its fused kernels; None where nobody asked for them, or it has not
            told yet.
    """

    version: str | None = None
    generated: bool = False
    error: str | None = None
    kernels: Kernels | None = None


@dataclass(frozen=True)
class LoadState:
    """What this process knows of a load that it started in one engine.

    It knows nothing of what another process started, nor of an engine that was started anew since:
    whoever decides by it must be able to do without.

    Attributes:
        version: of the weights that are, or were, to be loaded.
        state: `done` means that the engine reports the version since.
        message: why it failed, in one line.
        token: of the `Load` that ordered it.
    """

    version: str
    state: Literal["running", "done", "failed"]
    message: str = ""
    token: str = ""


@dataclass(frozen=True)
class Work:
    """What one engine is at, None where it does not tell.

    Attributes:
        requests: running and waiting ones.
        paused: whether it holds them back.
    """

    requests: int | None = None
    paused: bool | None = None


@dataclass(frozen=True)
class Seen:
    """What was last seen of a service that scales itself, and decided from it.

    Attributes:
        decision: how many replicas there shall be.
        unknown_s: for how long the load has not been known whole.
        quiet: whether nothing is under way and nothing came since the look before; None where
            nobody knows.
        answers: what the activators say, None where one does not.
    """

    decision: Decision
    unknown_s: float = 0.0
    quiet: bool | None = None
    answers: tuple[Json | None, ...] = ()


@dataclass(frozen=True)
class OtherWriter:
    """Somebody else who wrote the number of replicas.

    Attributes:
        where: what they wrote into.
        by: as the API server knows them.
        replicas: the number.
    """

    where: Ref
    by: str
    replicas: int


@dataclass(frozen=True)
class Observation:
    """The world as far as one InferenceService is concerned.

    Attributes:
        service: the InferenceService itself, as the API server has it.
        children: its live children but pods, by kind and name.
        engines: its engine pods, raw, terminating ones included.
        routers: its router pods, raw, terminating ones included.
        probes: by uid of the engine pod; one that was not asked is absent. Asked are the ready
            ones, and during a rollout all that have started.
        listings: by uid of the router pod, the URLs of the healthy workers that it lists; None
            where it did not answer; absent where it was not asked, as with engines.
        known: as listings, with the workers that the router finds unwell or drains.
        rejections: the API server's words about children that it refused in the last pass.
        works: by uid of the engine pod, what it is at; during a rollout only.
        loads: by uid of the engine pod, what this process knows of the last load.
        jobs: pods of Jobs of this service, raw, terminating ones included.
        checkpoints: the Checkpoint that it pins, or all those of the job that it follows.
        followed: the job that it follows, None where there is none.
        grants: the CheckpointGrants of that job's namespace.
        found: objects of the user's that the spec refers to by name, None where there is none;
            what could not be looked up is absent.
        activators: its activator pods, raw, terminating ones included.
        seen: what its load is and what was decided from it; None without autoscaling, and until
            that is known.
        other: who else writes the number of replicas, None where nobody was seen to.
    """

    service: Json
    children: Mapping[Ref, Json] = field(default_factory=dict)
    engines: tuple[Json, ...] = ()
    routers: tuple[Json, ...] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict)
    listings: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    rejections: Mapping[Ref, str] = field(default_factory=dict)
    known: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    works: Mapping[str, Work] = field(default_factory=dict)
    loads: Mapping[str, LoadState] = field(default_factory=dict)
    jobs: tuple[Json, ...] = ()
    checkpoints: tuple[Json, ...] = ()
    followed: Json | None = None
    grants: tuple[Json, ...] = ()
    found: Mapping[Ref, Json | None] = field(default_factory=dict)
    activators: tuple[Json, ...] = ()
    seen: Seen | None = None
    other: OtherWriter | None = None


def labels_of(item: Json) -> dict[str, str]:
    """The labels of a Kubernetes object."""
    labels: dict[str, str] = item.get("metadata", {}).get("labels") or {}
    return labels


def has_key(config_map: Json, key: str) -> bool:
    """Whether a ConfigMap has something under a key."""
    return key in (config_map.get("data") or {}) or key in (config_map.get("binaryData") or {})


def is_terminating(pod: Json) -> bool:
    """Whether the pod is on its way out: it must get no new request."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def has_ended(pod: Json) -> bool:
    """Whether its containers have ended for good. One that was evicted stays as an object."""
    return pod.get("status", {}).get("phase") in _ENDED


def is_over(pod: Json) -> bool:
    """Whether nothing comes of the pod any more: it is on its way out, or has ended."""
    return is_terminating(pod) or has_ended(pod)


def parse_time(text: str | None) -> datetime | None:
    """A Kubernetes timestamp, with its zone."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def condition_of(item: Json, kind: str) -> Json | None:
    """One condition of an object's status, None where it is not there."""
    conditions: list[Json] = item.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), None)


def is_ready(pod: Json) -> bool:
    """Whether the kubelet finds the pod ready, and it is to stay."""
    ready = condition_of(pod, "Ready")
    return not is_terminating(pod) and ready is not None and ready["status"] == "True"


def ready_since(pod: Json) -> datetime | None:
    """Since when the pod is ready, None while it is not."""
    ready = condition_of(pod, "Ready")
    if ready is None or not is_ready(pod):
        return None
    return parse_time(ready.get("lastTransitionTime"))


def engine_url(pod: Json) -> str | None:
    """Where the engine in `pod` is reached: its worker URL, None without an address yet."""
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{ENGINE_PORT}"
