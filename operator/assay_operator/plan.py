"""What a plan is: the one way out of every reconcile.

A planner is a pure function of a spec, an observation and the time; it returns a `Plan`, which the
shell in `cluster/` carries out. Kubernetes objects are plain JSON data (`Json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]

MANAGED_BY = "assay"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
OWNER_LABEL = "assay.dev/owner"
"""KIND.NAME of the custom resource that a child belongs to, lower case: its actor's key."""
KEEP_LABEL = "assay.dev/keep"
"""`true` on a child that outlives its owner: it gets no owner reference and is never pruned."""
EVALUATION_ANNOTATION = "assay.dev/evaluation"
"""On a Checkpoint that a job made: how it was weighed in training, as JSON with the keys suite,
score, low, high, items, verified, why and time; all but `verified` may be null."""


class Ref(NamedTuple):
    """Names an object within the namespace of its owner."""

    kind: str
    name: str


def ref(item: Mapping[str, Any]) -> Ref:
    """The `Ref` of a Kubernetes object."""
    return Ref(item["kind"], item["metadata"]["name"])


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event about the owner. The same event said twice is written once."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Annotate:
    """Set an annotation on a pod, so that its kubelet looks at the pod's volumes at once."""

    pod: str
    key: str
    value: str


@dataclass(frozen=True)
class Load:
    """Have the engine in a pod read weights from disk; how it went shows in the next observations.

    Nothing happens while the same engine still reads others.

    Attributes:
        pod: its name.
        path: of the weights, within the engine's container.
        version: the name by which the engine reports them from then on.
        flush: drop the engine's cache of prefixes, which the old weights made.
        token: of this order, another for each try. It comes back in the `LoadState`, so that the
            end of one try is not taken for that of the next.
        abort: end the requests that are still under way. Without it the engine waits for them, and
            lets new ones wait, too; one that is paused does neither.
    """

    pod: str
    path: str
    version: str
    flush: bool = True
    token: str = ""
    abort: bool = False


@dataclass(frozen=True)
class Pause:
    """Have the engine in a pod hold its requests, those under way included, and lose none."""

    pod: str


@dataclass(frozen=True)
class Resume:
    """Have the engine in a pod go on with the requests that it holds."""

    pod: str


@dataclass(frozen=True)
class Restart:
    """Delete a pod, so that its controller makes a new one."""

    pod: str


EngineAction = Load | Pause | Resume | Restart
"""What changes engines. The status that decided it stands in the API server before it is done."""
Action = Annotate | EngineAction


@dataclass(frozen=True)
class Plan:
    """What shall be, and when to look again.

    Attributes:
        objects: the complete children, to be applied in this order. A child of the owner that is
            not named here is deleted, but for claims, custom resources and what is to be kept.
        status: the complete status of the owner.
        events: what happened since the status was last written.
        actions: imperative steps, each idempotent, decided anew from every observation.
        next_look: seconds until the world is looked at again without being woken.
        prune: False where `objects` could not be worked out, so that nothing may be deleted.
        delete: custom resources that the owner made, in its namespace, that shall go.
    """

    objects: tuple[Json, ...] = ()
    status: Json = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    actions: tuple[Action, ...] = ()
    next_look: float = 30.0
    prune: bool = True
    delete: tuple[Ref, ...] = ()
