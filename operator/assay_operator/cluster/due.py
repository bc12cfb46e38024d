"""Pure decisions about children, status and Events: what is due, whose it is, how it is said."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from assay_operator.cluster.view import version
from assay_operator.plan import (
    MANAGED_BY,
    MANAGED_BY_LABEL,
    OWNER_LABEL,
    Event,
    Json,
    Ref,
    ref,
)

_MAX_EVENT_MESSAGE = 1024


@dataclass(frozen=True)
class Applied:
    """What our last apply of a child sent, and what the API server made of it."""

    digest: str
    generation: int | None
    version: int

    @classmethod
    def of(cls, desired: Json, live: Json) -> Applied:
        return cls(digest(desired), live["metadata"].get("generation"), version(live))


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def owned(item: Json, owner: Json) -> Json:
    """`item` as it is applied: in the owner's namespace, with its reference and labels.

    The reference does not block the owner's deletion: that would need a right on finalizers, and
    nothing here has to be gone before its owner is.
    """
    metadata = item["metadata"]
    labels = {
        **(metadata.get("labels") or {}),
        MANAGED_BY_LABEL: MANAGED_BY,
        OWNER_LABEL: f"{owner['kind']}.{owner['metadata']['name']}".lower(),
    }
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        **item,
        "metadata": {
            **metadata,
            "namespace": owner["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [reference],
        },
    }


def belongs_to(item: Json, uid: str) -> bool:
    """Whether `item` is controlled by the owner with this uid."""
    references = item["metadata"].get("ownerReferences") or []
    return any(each.get("controller") and each["uid"] == uid for each in references)


def is_due(desired: Json, live: Json | None, last: Applied | None) -> bool:
    """Whether a child has to be applied.

    It is when it is missing, when something else is wanted than last time, or when it moved since:
    by its generation where its kind has one (a status written by others does not count), else by
    its resourceVersion. Contents are never compared, so the API server's defaults and its spelling
    of quantities cause no loop; but for labels, annotations and owner, which move no generation.
    """
    if live is None or last is None or last.digest != digest(desired):
        return True
    metadata = live["metadata"]
    if not belongs_to(live, desired["metadata"]["ownerReferences"][0]["uid"]):
        return True
    for part in ("labels", "annotations"):
        wanted = desired["metadata"].get(part) or {}
        if not wanted.items() <= (metadata.get(part) or {}).items():
            return True
    if "generation" in metadata:
        return bool(metadata["generation"] != last.generation)
    return version(live) != last.version


def superfluous(children: Iterable[Json], named: Iterable[Ref], owner_uid: str) -> list[Json]:
    """The owner's children that a plan does not name and that are not on their way out."""
    wanted = set(named)
    return [
        child
        for child in children
        if ref(child) not in wanted
        and belongs_to(child, owner_uid)
        and not child["metadata"].get("deletionTimestamp")
    ]


def without_nulls(data: Any) -> Any:
    """Data as the API server keeps it: a key without a value is no key."""
    if isinstance(data, dict):
        return {key: without_nulls(value) for key, value in data.items() if value is not None}
    return [without_nulls(value) for value in data] if isinstance(data, list) else data


def status_is_due(desired: Json, live: Json, last: tuple[Json, Json] | None) -> bool:
    """Whether the status has to be written: it differs, and not just by what others add to it."""
    return bool(desired) and desired != live and last != (desired, live)


def event_object(event: Event, owner: Json, now: datetime) -> Json:
    """The Kubernetes Event that says `event` about `owner`.

    Its name is made of what is said and of the status that it was said after, so that a pass that
    is repeated, by this process or by the next leader, says nothing twice, while the same thing
    happening again later is told again.
    """
    metadata = owner["metadata"]
    said = digest([metadata["uid"], event.reason, event.message, owner.get("status") or {}])
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{said[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MAX_EVENT_MESSAGE],
        "source": {"component": MANAGED_BY},
        "reportingComponent": MANAGED_BY,
        "reportingInstance": socket.gethostname(),
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
