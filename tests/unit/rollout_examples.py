"""Fleets and single worlds to tell a rollout by example in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_state import Rollout
from assay_operator.inference.rollout_world import Replica, Step, Target, World
from assay_operator.plan import Load
from tests.unit.rollout_fleet import (
    BEGIN,
    POLICY,
    A,
    B,
    Engine,
    Fleet,
)

Json = dict[str, Any]


def serving(wanted: int = 3, **policy: Any) -> Fleet:
    """A fleet that serves A."""
    fleet = Fleet(wanted, replace(POLICY, **policy))
    fleet.settle()
    fleet.events.clear()
    fleet.told.clear()
    return fleet


def rolling(phase: str, to: Target = B, wanted: int = 3, **policy: Any) -> Fleet:
    """A fleet in a phase of the way from A to another target."""
    fleet = serving(wanted, **policy)
    fleet.target = to
    fleet.run(phase)
    return fleet


def reasons(fleet: Fleet) -> list[str]:
    return [event.partition(":")[0] for event in fleet.events]


def state(fleet: Fleet) -> Rollout:
    assert fleet.rollout is not None
    return fleet.rollout


def canary(fleet: Fleet) -> Engine:
    found = state(fleet).canary
    engine = fleet.engine(found.uid) if found else None
    assert engine is not None
    return engine


def until(fleet: Fleet, holds: Callable[[], bool], most: int = 600) -> None:
    """Passes, second by second, until something holds."""
    for _ in range(most):
        if holds():
            return
        fleet.reconcile()
        fleet.advance(1)
    raise AssertionError(f"it never holds: {fleet.status.get('rollout')}")


def live(fleet: Fleet) -> list[Engine]:
    return [each for each in fleet.engines if each.gone is None]


def loading(fleet: Fleet) -> list[Engine]:
    return [each for each in fleet.engines if each.queue]


def replica(number: int, **more: Any) -> Replica:
    """A replica that serves A to everybody."""
    seen: Json = {
        "version": A.version,
        "generated": True,
        "listed": True,
        "named": True,
        "routable": True,
        "requests": 0,
        "paused": False,
        "volumes": frozenset({"pvc/models"}),
        "template": A.version,
    }
    return Replica(f"uid-{number}", f"engine-{number}", **{**seen, **more})


THREE = (replica(0), replica(1), replica(2))


def world(*replicas: Replica, seconds: float = 0, **more: Any) -> World:
    known: Json = {"target": A, "served": A, "wanted": len(replicas), "policy": POLICY}
    now = BEGIN + timedelta(seconds=seconds)
    return World(now=now, replicas=replicas, **{**known, **more})


def stepped(before: Step | None, seen: World) -> Step:
    """The step after `before`, whose state was written meanwhile."""
    return step(before.state if before else None, seen)


def loads(made: Step) -> list[Load]:
    return [action for action in made.actions if isinstance(action, Load)]
