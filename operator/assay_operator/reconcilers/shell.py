"""What all kinds share: the parts of the shell that they look with, and what a look is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from assay_operator.cluster.apply import Applier
from assay_operator.cluster.lookups import Lookups
from assay_operator.cluster.view import Key, View
from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import Seen, is_terminating, labels_of
from assay_operator.plan import Json, Plan
from assay_operator.sglang.client import SGLang
from assay_operator.sglang.control import Control
from assay_operator.sglang.reach import Reach

COMPONENT_LABEL = "app.kubernetes.io/component"

Decide = Callable[[Json, datetime], Plan]
"""From the object as it is and the time to a plan. It reads the view as it is when it is called,
so that what a plan changed is seen by the next one of the same pass."""


class Scaling(Protocol):
    """Knows the load of services that scale themselves."""

    async def look(self, key: Key, owner: Json) -> Seen | None:
        """What is known of it, and what was decided from it; None where nothing is."""


@dataclass(frozen=True)
class Shell:
    """What kinds look with.

    Attributes:
        view: what is known of the cluster.
        applier: knows what the API server refused.
        lookups: finds objects of users.
        reach: the way to pods.
        sglang: asks engines and routers.
        control: has engines load and pause.
        scaling: watches the load of services that scale themselves.
        config: the administrator's defaults.
    """

    view: View
    applier: Applier
    lookups: Lookups
    reach: Reach
    sglang: SGLang
    control: Control
    scaling: Scaling
    config: OperatorConfig


class Kind(Protocol):
    """One kind of custom resource."""

    async def look(self, key: Key, owner: Json) -> Decide:
        """Asks whatever takes time, and returns what decides by the answers. Raises nothing."""


def of_component(pods: Iterable[Json], *components: str) -> tuple[Json, ...]:
    """The pods that have one of these components."""
    return tuple(pod for pod in pods if labels_of(pod).get(COMPONENT_LABEL) in components)


def has_started(pod: Json) -> bool:
    """Whether the kubelet found the pod's containers up since they began; they may not be ready."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    started = bool(statuses) and all(each.get("started") for each in statuses)
    return started and not is_terminating(pod)
