"""What objects tell actors of other objects, so that these are woken by it and find it.

Pure. An actor's own world is its object and that object's children. Beyond it a service looks at
Checkpoints, jobs and grants, and a Checkpoint at who serves it: each by a topic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from assay_operator.plan import Json

_AT_REST = frozenset({"Done", "Failed", "Superseded"})
"""Phases of a rollout that is over: of its target only what is served counts."""
_TELLING_ALL = frozenset({"Checkpoint", "CheckpointGrant"})


class Topic(NamedTuple):
    """What may be looked at, and whose change wakes whoever did."""

    kind: str
    place: str
    """The namespace; for an InferenceService, a version of weights that it serves or is brought."""


def topics(item: Json) -> frozenset[Topic]:
    """Under which topics a custom resource is found; a child has none."""
    if not item["apiVersion"].startswith("assay.dev/"):
        return frozenset()
    kind = item["kind"]
    if kind == "InferenceService":
        return frozenset(Topic(kind, version) for version in versions(item))
    return frozenset([Topic(kind, item["metadata"]["namespace"])])


def news(before: Json | None, after: Json | None) -> frozenset[Topic]:
    """The topics about which there is news when an object changes, appears or goes.

    Services and jobs write progress into their status all the time: of them it counts only that
    one appears under a topic, or goes.
    """
    was = topics(before) if before else frozenset()
    now = topics(after) if after else frozenset()
    item = after or before
    return was | now if item and item["kind"] in _TELLING_ALL else was ^ now


def versions(service: Json) -> frozenset[str]:
    """The versions of weights that a service serves, and those that a rollout brings or takes."""
    status = service.get("status") or {}
    served = (status.get("served") or {}).get("version")
    found = set(filter(None, [served, *(status.get("checkpoint") or "").split(", ")]))
    if not is_at_rest(status.get("rollout")):
        found |= set(_named(status["rollout"]))
    return frozenset(found)


def is_at_rest(rollout: Json | None) -> bool:
    """Whether no change of the weights is under way, by `status.rollout`."""
    return not rollout or rollout.get("phase") in _AT_REST


def _named(rollout: Any) -> Iterator[str]:
    """Every `version` in JSON data, however deep, and the members of `older`."""
    if isinstance(rollout, dict):
        version = rollout.get("version")
        if isinstance(version, str):
            yield version
        yield from rollout.get("older") or ()
        for value in rollout.values():
            yield from _named(value)
    elif isinstance(rollout, list):
        for value in rollout:
            yield from _named(value)
