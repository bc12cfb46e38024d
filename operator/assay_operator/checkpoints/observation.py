"""What is seen of one Checkpoint: plain data, gathered by the shell, read by the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_operator.plan import Json, Ref


@dataclass(frozen=True)
class Observation:
    """The world as far as one Checkpoint is concerned.

    Attributes:
        checkpoint: the Checkpoint itself, as the API server has it.
        children: its live children but pods, by kind and name.
        pods: those of its Jobs, raw, terminating ones included.
        serving: the InferenceServices, in all namespaces, that serve it or are brought it.
        found: the objects of the user's that the spec names (`looked_up`), None where there is
            none; what could not be looked up is absent.
        rejections: the API server's words about children that it refused in the last pass.
    """

    checkpoint: Json
    children: Mapping[Ref, Json] = field(default_factory=dict)
    pods: tuple[Json, ...] = ()
    serving: tuple[Json, ...] = ()
    found: Mapping[Ref, Json | None] = field(default_factory=dict)
    rejections: Mapping[Ref, str] = field(default_factory=dict)


def looked_up(checkpoint: Json) -> tuple[Ref, ...]:
    """What has to be there before a Checkpoint that somebody brings can be inspected or weighed."""
    spec = checkpoint.get("spec") or {}
    if spec.get("job"):
        return ()
    suite = ((spec.get("evaluation") or {}).get("suite") or {}).get("configMap")
    claim = claim_of(spec.get("source") or "")
    return (
        *((Ref("PersistentVolumeClaim", claim),) if claim else ()),
        *((Ref("ConfigMap", suite),) if suite else ()),
    )


def claim_of(source: str) -> str:
    """The claim of a pvc:// source."""
    return source.removeprefix("pvc://").partition("/")[0]


def digests_of(checkpoint: Json) -> frozenset[str]:
    """The digests by which services may know it: what the spec says, and what was found."""
    told = (checkpoint.get("spec") or {}).get("digest")
    found = (checkpoint.get("status") or {}).get("digest")
    return frozenset(filter(None, (told, found)))
