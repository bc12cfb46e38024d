"""The HorizontalPodAutoscaler, on requests for each replica, and KEDA, on the length of the queue.

Sources: kubernetes/kubernetes, pkg/controller/podautoscaler/replica_calculator.go
(calcPlainMetricReplicas, GetExternalPerPodMetricReplicas) and horizontal.go
(stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate); the page "Horizontal
Pod Autoscaling" of kubernetes.io for the defaults; kedacore/keda-docs,
content/docs/2.17/reference/scaledobject-spec.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.autoscaling.policy import Sample

SYNC_S = 15.0
"""--horizontal-pod-autoscaler-sync-period."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance."""


def within(ratio: float) -> bool:
    """Whether a ratio of usage to target is too near to 1 to act upon."""
    return abs(1.0 - ratio) <= TOLERANCE


def by_pods(loads: Sequence[float], missing: int, current: int, target: float) -> int:
    """Replicas for a Pods metric with a target per replica.

    The ratio of the mean load to the target decides. Replicas without a metric, such as those that
    still start, count as idle where the ratio asks for more and as at the target where it asks for
    less; if that turns the direction, nothing changes.

    Args:
        loads: of the replicas that report.
        missing: replicas that do not.
        current: replicas wanted so far.
        target: load of a replica.
    """
    if not loads:
        return current
    ratio = sum(loads) / len(loads) / target
    if not missing:
        return current if within(ratio) else math.ceil(ratio * len(loads))
    count = len(loads) + missing
    filler = target * missing if ratio < 1.0 else 0.0
    again = (sum(loads) + filler) / count / target
    turned = (ratio - 1.0) * (again - 1.0) < 0.0
    wanted = math.ceil(again * count)
    backwards = (again < 1.0 and wanted > current) or (again > 1.0 and wanted < current)
    return current if within(again) or turned or backwards else wanted


def by_total(total: float, current: int, target: float) -> int:
    """Replicas for an External metric whose target is a value per replica."""
    if current and within(total / (target * current)):
        return current
    return math.ceil(total / target)


@dataclass
class Behaviour:
    """The default `spec.behavior`, whose window for scale-down may be set.

    Up: at once, within 15 s at most to twice as many or by 4, whichever is more. Down: to the
    highest recommendation of the window, without a bound on the step.

    Attributes:
        down_s: stabilisation window for scale-down; 300 by default.
    """

    down_s: float = 300.0
    _recent: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)

    def apply(self, wanted: int, current: int, now: float) -> int:
        """What becomes of a recommendation."""
        # This recommendation is the window's newest, so up, whose window is 0, is at once.
        self._recent = [(at, one) for at, one in self._recent if at > now - self.down_s]
        highest = max([wanted, *(one for _, one in self._recent)])
        self._recent.append((now, wanted))
        result = wanted if wanted > current else min(current, highest)
        if result > current:
            self._changes = [(at, one) for at, one in self._changes if at > now - SYNC_S]
            begun = current - sum(change for _, change in self._changes)
            result = min(result, max(current, begun + 4, 2 * begun))
        if result != current:
            self._changes.append((now, result - current))
        return result


@dataclass
class Hpa:
    """HPA on the mean number of requests, running and waiting, of a replica.

    Attributes:
        target: requests of a replica.
        down_s: stabilisation window for scale-down.
    """

    target: float
    down_s: float = 300.0
    period: float = SYNC_S

    def __post_init__(self) -> None:
        self._behaviour = Behaviour(self.down_s)

    def observe(self, sample: Sample) -> int:
        loads = [replica.load for replica in sample.replicas]
        wanted = by_pods(loads, sample.starting, sample.wanted, self.target)
        return self._behaviour.apply(max(1, wanted), sample.wanted, sample.now)


@dataclass
class Keda:
    """KEDA on the number of requests that wait for their first token.

    KEDA polls every 30 s to go between zero and one and leaves the rest to an HPA on an External
    metric with a value per replica, for which it is asked every 15 s. `cooldownPeriod` concerns
    only the way to zero, which nobody takes here.

    Attributes:
        target: waiting requests of a replica.
        down_s: stabilisation window for scale-down.
    """

    target: float
    down_s: float = 300.0
    period: float = SYNC_S

    def __post_init__(self) -> None:
        self._behaviour = Behaviour(self.down_s)

    def observe(self, sample: Sample) -> int:
        waiting = sample.held + sum(replica.queued for replica in sample.replicas)
        wanted = by_total(waiting, sample.wanted, self.target)
        return self._behaviour.apply(max(1, wanted), sample.wanted, sample.now)
