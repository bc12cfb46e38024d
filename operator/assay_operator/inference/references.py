"""What an InferenceService's spec names beyond itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from assay_operator.api.sources import CHECKPOINT_SCHEME
from assay_operator.plan import Json, Ref


@dataclass(frozen=True)
class References:
    """What a service's spec names beyond itself.

    Attributes:
        pinned: the Checkpoint of its own namespace that it pins.
        job: the name of the job that it follows, and
        namespace: where that is.
        names: objects of users in its own namespace.
    """

    pinned: str | None = None
    job: str | None = None
    namespace: str = ""
    names: tuple[Ref, ...] = ()


def references(service: Json) -> References:
    """What a service's spec refers to; the spec has only been through the API server's schema."""
    spec, namespace = service.get("spec") or {}, service["metadata"]["namespace"]
    model = spec.get("model") or {}
    source, follow = model.get("source") or "", model.get("follow") or {}
    pins = source.startswith(CHECKPOINT_SCHEME)
    gate = (spec.get("rollout") or {}).get("gate") or {}
    names = []
    if suite := (gate.get("suite") or {}).get("configMap"):
        names.append(Ref("ConfigMap", suite))
    if claim := follow.get("claim"):
        names.append(Ref("PersistentVolumeClaim", claim))
    return References(
        source.removeprefix(CHECKPOINT_SCHEME) if pins else None,
        follow.get("job"),
        follow.get("namespace") or namespace,
        tuple(names),
    )


def is_made_by(checkpoint: Json, job: str) -> bool:
    """Whether a Checkpoint says that a job of this name made it."""
    made_by = checkpoint["spec"].get("job") or {}
    return bool(made_by.get("name") == job)
