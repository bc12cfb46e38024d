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
    KEEP_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    OWNER_LABEL,
    Event,
    Json,
    Ref,
    ref,
)

_MAX_EVENT_MESSAGE = 1024
_CLAIM = "PersistentVolumeClaim"
_JOB = "Job"
_PRECIOUS = frozenset({_CLAIM, "HorizontalPodAutoscaler", "ScaledObject"})


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
    """`item` as it is applied: in the owner's namespace, with its labels, and its reference unless
    it is to be kept.

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
    made = {**metadata, "namespace": owner["metadata"]["namespace"], "labels": labels}
    if not is_kept(item):
        made["ownerReferences"] = [reference]
    return {**item, "metadata": made}


def is_kept(item: Json) -> bool:
    """Whether `item` outlives its owner."""
    return _label(item, KEEP_LABEL) == "true"


def is_precious(item: Json) -> bool:
    """Whether `item` must not even by chance be taken over from somebody who made it first."""
    return bool(item["kind"] in _PRECIOUS or item["apiVersion"].startswith("assay.dev/"))


def is_ours(there: Json, desired: Json, uid: str) -> bool:
    """Whether what is there is the owner's: by reference, or by label where it is kept.

    What was kept has no reference any more, and an owner that is made anew under the same name
    goes on with it.
    """
    same = _label(there, OWNER_LABEL) == _label(desired, OWNER_LABEL)
    return belongs_to(there, uid) or (is_kept(there) and same)


def is_anothers(there: Json, desired: Json) -> bool:
    """Whether what is there is the child of another object of ours.

    The API server would not mind: to it all of our fields are one manager's.
    """
    owner = _label(there, OWNER_LABEL)
    return owner is not None and owner != _label(desired, OWNER_LABEL)


def _label(item: Json, name: str) -> str | None:
    value: str | None = (item["metadata"].get("labels") or {}).get(name)
    return value


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

    A Job is made once: what it shall do can never change, and a new release that would make it
    differently must not fail for those that run.
    """
    if live is None or not _is_child_of(live, desired):
        return True
    if desired["kind"] == _JOB:
        return False
    return last is None or last.digest != digest(desired) or _moved(live, desired, last)


def _is_child_of(live: Json, desired: Json) -> bool:
    references = desired["metadata"].get("ownerReferences") or []
    return all(belongs_to(live, reference["uid"]) for reference in references)


def _moved(live: Json, desired: Json, last: Applied) -> bool:
    metadata = live["metadata"]
    for part in ("labels", "annotations"):
        wanted = desired["metadata"].get(part) or {}
        if not wanted.items() <= (metadata.get(part) or {}).items():
            return True
    if "generation" in metadata:
        return bool(metadata["generation"] != last.generation)
    return version(live) != last.version


def has_drifted(live: Json, last: Applied) -> bool:
    """Whether somebody else changed the spec of a child since our last apply of it."""
    generation = live["metadata"].get("generation")
    return generation is not None and generation != last.generation


def other_writer(item: Json, *path: str) -> str | None:
    """Who but us wrote a field last, as the API server knows them; None where it knows of nobody.

    Args:
        item: an object with its managedFields.
        path: the field's.
    """
    entries = [
        entry
        for entry in item["metadata"].get("managedFields") or ()
        if entry.get("manager") != MANAGED_BY and _owns(entry.get("fieldsV1") or {}, path)
    ]
    if not entries:
        return None
    last = max(entries, key=lambda entry: str(entry.get("time") or ""))
    way = last.get("subresource")
    return f"{last.get('manager')} (by the subresource {way})" if way else str(last.get("manager"))


def _owns(fields: Json, path: tuple[str, ...]) -> bool:
    for name in path:
        if f"f:{name}" not in fields:
            return False
        fields = fields[f"f:{name}"]
    return True


def superfluous(children: Iterable[Json], named: Iterable[Ref], owner_uid: str) -> list[Json]:
    """The owner's children that a plan does not name and that are not on their way out.

    Never a claim, which holds what cannot be made again: it goes with its owner, or stays.
    """
    wanted = set(named)
    return [
        child
        for child in children
        if ref(child) not in wanted
        and child["kind"] != _CLAIM
        and belongs_to(child, owner_uid)
        and not is_kept(child)
        and not child["metadata"].get("deletionTimestamp")
    ]


def is_dismissible(item: Json, owner_label: str) -> bool:
    """Whether a custom resource that a plan wants to go is the owner's and not yet on its way."""
    metadata = item["metadata"]
    return (
        _label(item, MANAGED_BY_LABEL) == MANAGED_BY
        and _label(item, OWNER_LABEL) == owner_label
        and not metadata.get("deletionTimestamp")
    )


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
