"""AIBrix's APA: tolerances for fluctuations up and down.

Source: vllm-project/aibrix, pkg/controller/podautoscaler/algorithm/apa.go (computeTargetReplicas),
context/context.go (defaults: rates 2, tolerances 0.1, cooldown down 300 s) and autoscaler.go
(applyPendingReplicaGuard, the answer to aibrix#2670: replicas that start are counted).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from benchmarks.autoscaling.policy import Sample

RATE = 2.0
"""max-scale-up-rate and max-scale-down-rate."""


@dataclass
class Apa:
    """APA on the mean number of requests, running and waiting, of a replica.

    Attributes:
        target: requests of a replica.
        up: tolerance above the target, as a share of it.
        down: tolerance below it.
        window_s: over which the load is averaged.
        cooldown_s: for so long the highest recommendation holds against lower ones.
    """

    target: float
    up: float = 0.1
    down: float = 0.1
    window_s: float = 30.0
    cooldown_s: float = 300.0
    period: float = 10.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def observe(self, sample: Sample) -> int:
        if sample.replicas:
            mean = sum(replica.load for replica in sample.replicas) / sample.ready
            self._seen.append((sample.now, mean))
        while self._seen and self._seen[0][0] <= sample.now - self.window_s:
            self._seen.popleft()
        if not self._seen:
            return sample.wanted
        load = sum(value for _, value in self._seen) / len(self._seen)
        wanted = self.decide(load, sample.wanted, sample.ready)
        self._wanted.append((sample.now, wanted))
        while self._wanted[0][0] <= sample.now - self.cooldown_s:
            self._wanted.popleft()
        if wanted < sample.wanted:
            return min(sample.wanted, max(one for _, one in self._wanted))
        return wanted

    def decide(self, load: float, current: int, ready: int) -> int:
        """Replicas for a mean load of the `ready` among `current` replicas."""
        ratio = load / self.target
        starting = current - ready
        if ratio > 1 + self.up:
            wanted = min(math.ceil(current * ratio), math.ceil(RATE * current))
            if starting:
                # What starts counts as idle.
                wanted = min(wanted, max(current, math.ceil(ratio * ready)))
            return wanted
        if ratio < 1 - self.down:
            wanted = max(math.ceil(current * ratio), math.floor(current / RATE))
            if starting:
                # What starts counts as at the target.
                wanted = max(wanted, min(current, math.ceil(ratio * ready + starting)))
            return max(1, wanted)
        return current
