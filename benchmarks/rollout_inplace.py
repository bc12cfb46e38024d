"""Rollouts of new weights into running engines, each timed from its checkpoint's `Verified`.

Two folders by turns, each time under a new Checkpoint. The service is told to serve it before it is
verified, so that its rollout begins by itself at that moment. A run's own checkpoints become
verified by what the operator notes of them; so do these, though here a cluster's administrator, whom
the admission policy lets, writes the note: a Job that weighs them would start an engine of its own on
the cores that are measured. Both folders were weighed by such a Job before.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from assay_operator.plan import EVALUATION_ANNOTATION
from benchmarks.common import Json, say
from benchmarks.rollout_requests import Change
from tests.e2e.clients import reported
from tests.e2e.rollouts import ROLLOUT_SECONDS, SUITE, serve
from tests.kube import Kube, wait_for

SERVICE = "live"
OVER = {"Done", "Failed", "Superseded"}
EVALUATED = {"verified": True, "score": 1.0, "items": 49, "suite": f"configmap/{SUITE}/suite.jsonl"}


@dataclass(frozen=True)
class Weights:
    """A folder on the claim `models`, and the digest that it is known by."""

    folder: str
    version: str


@dataclass(frozen=True)
class Sight:
    """An object as the API server told of it, and when that arrived here."""

    at: float
    item: Json


class Watch:
    """Every state of some objects, for the time of a `with` block; there has to be one already.

    The conditions' own times are whole seconds, and a look every now and then would cost more than
    what is measured.
    """

    def __init__(self, kube: Kube, kind: str) -> None:
        self._kube, self._kind = kube, kind
        self.sights: list[Sight] = []

    def __enter__(self) -> Watch:
        cluster = self._kube.cluster
        self._process = subprocess.Popen(
            [
                *(cluster.bin / "kubectl", "--namespace", self._kube.namespace),
                *("get", self._kind, "--watch", "--output", 'jsonpath={@}{"\\n"}'),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **cluster.environment},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.first(f"a first look at {self._kind}", lambda _: True, 60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                self.sights.append(Sight(time.time(), json.loads(line)))

    def first(self, what: str, holds: Callable[[Json], bool], seconds: float) -> Sight:
        """The first state that was seen in which something holds; waits for it."""

        def look() -> Sight | None:
            if self._process.poll() is not None:
                raise RuntimeError(f"the watch of {self._kind} ended")
            return next((each for each in self.sights if holds(each.item)), None)

        return wait_for(what, look, seconds, every=0.2)


def trained(name: str, weights: Weights, number: int) -> Json:
    """A Checkpoint as a job makes one, not evaluated yet."""
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "source": f"pvc://models/{weights.folder}",
            "digest": weights.version,
            "job": {
                "name": "bench-rollout",
                "uid": "bench-rollout",
                "step": number,
                "version": f"1.{number}",
            },
        },
    }


def verified(item: Json) -> bool:
    """Whether a Checkpoint is."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Verified" and each["status"] == "True" for each in conditions)


def phase_of(item: Json, name: str) -> str | None:
    """Where a service is with the rollout to Checkpoint `name`; None where it is at another."""
    rollout = (item.get("status") or {}).get("rollout") or {}
    phase: str | None = rollout.get("phase")
    return phase if rollout.get("to", {}).get("name") == name else None


def passed(item: Json, name: str) -> bool:
    """Whether Checkpoint `name` has passed the gate of a service."""
    return phase_of(item, name) is not None and item["status"]["rollout"].get("passed", False)


def phases(sights: list[Sight], name: str) -> dict[str, float]:
    """When each phase of the rollout to Checkpoint `name` was first seen, without its end."""
    found: dict[str, float] = {}
    for sight in sights:
        phase = phase_of(sight.item, name)
        if phase is not None and phase not in OVER:
            found.setdefault(phase, sight.at)
    return found


class Rollouts:
    """Rollouts of one service, one after the other.

    Args:
        kube: where it is.
        services: sees every state of it.
        checkpoints: sees every state of the Checkpoints.
    """

    def __init__(self, kube: Kube, services: Watch, checkpoints: Watch) -> None:
        self._kube, self._services, self._checkpoints = kube, services, checkpoints

    def bring(self, weights: Weights, number: int) -> Change:
        """Brings weights under a new Checkpoint, `round-NUMBER`.

        Raises:
            AssertionError: they were not brought.
        """
        kube, name = self._kube, f"round-{number}"
        kube.apply(trained(name, weights, number))
        serve(kube, SERVICE, f"checkpoint://{name}")
        waits = "CheckpointNotVerified"
        wait_for(waits, lambda: kube.condition(SERVICE, "Target").get("reason") == waits, 60)
        note = f"{EVALUATION_ANNOTATION}={json.dumps(EVALUATED)}"
        kube.kubectl("annotate", "checkpoint", name, note)
        began = self._checkpoints.first(
            f"{name} verified", lambda item: _called(item, name) and verified(item), 60
        )
        over = self._services.first(
            f"rollout to {name} over", lambda item: phase_of(item, name) in OVER, ROLLOUT_SECONDS
        )
        rollout = over.item["status"]["rollout"]
        assert rollout["phase"] == "Done", rollout["message"]
        gate = self._services.first(f"{name} passed", lambda item: passed(item, name), 0)
        assert reported(kube, SERVICE) == {weights.version}
        change = Change(
            version=weights.version,
            began=began.at,
            passed=gate.at,
            ended=over.at,
            phases=phases(self._services.sights, name),
        )
        told = ", ".join(f"{phase} {took:.1f}" for phase, took in change.durations().items())
        say(f"{name} ({weights.folder}): {change.seconds:.1f} s ({told})")
        return change


def _called(item: Json, name: str) -> bool:
    return bool(item["metadata"]["name"] == name)
