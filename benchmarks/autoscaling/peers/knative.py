"""Knative's pod autoscaler on concurrency, with its stable and panic windows.

Source: knative/serving, pkg/autoscaler/scaling/autoscaler.go (Scale), and config/core/configmaps/
autoscaler.yaml for the defaults: target utilisation 70%, stable window 60 s, panic window 10% of
it, panic threshold 200%, max-scale-up-rate 1000, max-scale-down-rate 2, tick 2 s.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from benchmarks.autoscaling.policy import Sample

TICK_S = 2.0
UTILISATION = 0.7
PANIC_THRESHOLD = 2.0
UP_RATE, DOWN_RATE = 1000.0, 2.0


@dataclass
class Kpa:
    """Knative's pod autoscaler.

    Attributes:
        concurrency: requests that a replica may have at once; 70% of it is aimed at.
        stable_s: window over which concurrency is averaged.
        panic_share: the panic window's share of it.
        delay_s: scale-down-delay: what is wanted is the most of what was wanted in that time.
    """

    concurrency: float
    stable_s: float = 60.0
    panic_share: float = 0.1
    delay_s: float = 0.0
    period: float = TICK_S
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)
    _panic_at: float | None = None
    _panic_pods: int = 0

    def observe(self, sample: Sample) -> int:
        self._seen.append((sample.now, sample.concurrency))
        while self._seen[0][0] <= sample.now - self.stable_s:
            self._seen.popleft()
        stable = self._mean(sample.now - self.stable_s)
        panic = self._mean(sample.now - self.stable_s * self.panic_share)
        return self._delayed(self.decide(stable, panic, sample.ready, sample.now), sample.now)

    def decide(self, stable: float, panic: float, ready: int, now: float) -> int:
        """Replicas for the mean concurrency in both windows and so many ready replicas."""
        pods = max(1, ready)
        target = UTILISATION * self.concurrency
        lowest, highest = math.floor(pods / DOWN_RATE), math.ceil(pods * UP_RATE)
        raw = math.ceil(panic / target)
        wanted = min(max(math.ceil(stable / target), lowest), highest)
        if raw / pods >= PANIC_THRESHOLD:
            self._panic_at = now
        elif self._panic_at is not None and self._panic_at + self.stable_s < now:
            self._panic_at, self._panic_pods = None, 0
        if self._panic_at is not None:
            # While in panic nothing goes down.
            in_panic = min(max(raw, lowest), highest)
            self._panic_pods = max(self._panic_pods, wanted, in_panic)
            wanted = self._panic_pods
        return max(1, wanted)

    def _mean(self, since: float) -> float:
        values = [value for at, value in self._seen if at > since]
        return sum(values) / len(values)

    def _delayed(self, wanted: int, now: float) -> int:
        if not self.delay_s:
            return wanted
        self._wanted.append((now, wanted))
        while self._wanted[0][0] <= now - self.delay_s:
            self._wanted.popleft()
        return max(one for _, one in self._wanted)
