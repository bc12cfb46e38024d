"""What an activator counts: for Prometheus, and for the operator."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from assay_operator.activator.hall import Hall

_BUCKETS = (0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 1800)


class Figures:
    """Counters of one process.

    Args:
        hall: who waits.
    """

    def __init__(self, hall: Hall) -> None:
        self._hall = hall
        self._came = 0
        self._last_wake: float | None = None
        self.registry = CollectorRegistry()
        self._gauge("held", "Requests that wait for a replica.").set_function(lambda: hall.held)
        self._gauge("kept_bytes", "Memory that bodies take.").set_function(lambda: hall.size)
        self._gauge("oldest_wait_seconds", "How long the oldest request has waited.").set_function(
            lambda: hall.oldest
        )
        self._requests = self._counter("requests", "Requests that need a replica.")
        self.refused = Counter(
            "assay_activator_refused", "Refused requests.", ["reason"], registry=self.registry
        )
        self.gone = self._counter("gone", "Requests whose clients left before the end.")
        self.forwarded = self._counter("forwarded", "Requests that a router answered.")
        self.broken = self._counter("broken", "Requests whose answer a router broke off.")
        self._wakes = Histogram(
            "assay_activator_wake_seconds",
            "How long the first request had waited when requests were let through.",
            registry=self.registry,
            buckets=_BUCKETS,
        )

    @property
    def last_wake(self) -> float | None:
        """How long the first request had waited at the last wake, in seconds."""
        return self._last_wake

    def request(self) -> None:
        """One came that needs a replica."""
        self._came += 1
        self._requests.inc()

    def woken(self) -> None:
        """Those that wait are let through now."""
        self._last_wake = self._hall.oldest
        self._wakes.observe(self._last_wake)

    def status(self) -> dict[str, Any]:
        """What the operator is told."""
        return {
            "held": self._hall.held,
            "requests": self._came,
            "lastWakeSeconds": None if self._last_wake is None else round(self._last_wake, 3),
        }

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(f"assay_activator_{name}", told, registry=self.registry)

    def _counter(self, name: str, told: str) -> Counter:
        return Counter(f"assay_activator_{name}", told, registry=self.registry)
