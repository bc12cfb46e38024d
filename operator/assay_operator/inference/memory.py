"""What a service's status remembers of its weights, beside the rollout's own state.

It stands under `notes` in `status.rollout`. What is lost of it is worked out anew, as far as the
spec and the cluster tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from assay_operator.inference.rollout_state import Rollout, read
from assay_operator.inference.rollout_world import Target
from assay_operator.plan import Json

_NOTES = "notes"


@dataclass(frozen=True)
class Whereabouts:
    """Where weights that were served lie; their version is the key that this is kept under."""

    path: str
    name: str
    volume: str


@dataclass(frozen=True)
class Rollback:
    """What the annotation that takes weights back was understood to mean.

    Attributes:
        asked: what stands in it. While it does, it means the same, whatever is served since.
        target: what it names.
    """

    asked: str
    target: Target


@dataclass(frozen=True)
class Notes:
    """What the planner itself keeps.

    Attributes:
        layouts: by the version in the engines' pod template, what its pods mount.
        places: by version, where weights lie that `status.history` tells of.
        scores: by version, what the gate found.
        rollback: what is taken back, while the annotation says so.
    """

    layouts: Mapping[str, dict[str, str]] = field(default_factory=dict)
    places: Mapping[str, Whereabouts] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    rollback: Rollback | None = None

    def place(self, version: str) -> Target | None:
        """Weights that were served, None where nobody knows any more where they lie."""
        found = self.places.get(version)
        return Target(version, found.path, found.name, found.volume) if found else None


@dataclass(frozen=True)
class Memory:
    """What the status says.

    Attributes:
        rollout: the latest, None where there was none.
        served: what is served, None while nothing was.
        history: as `status.history`.
        refused: as `status.refused`.
        notes: the planner's own.
    """

    rollout: Rollout | None = None
    served: Target | None = None
    history: tuple[Json, ...] = ()
    refused: tuple[Json, ...] = ()
    notes: Notes = Notes()

    @property
    def under_way(self) -> Rollout | None:
        """The rollout that goes forward, None where none does."""
        found = self.rollout
        return found if found and not found.over and found.phase != "Returning" else None

    @property
    def layout(self) -> Mapping[str, str] | None:
        """What the engines' pods mount, None where that is not known."""
        return self.notes.layouts.get(self.rollout.template) if self.rollout else None

    @property
    def known(self) -> tuple[Target, ...]:
        """The weights that engines may have, the ones that are served first."""
        found = self.rollout
        both = (found.serves, found.origin, found.target) if found else ()
        return tuple(dict.fromkeys((*both, *((self.served,) if self.served else ()))))


_TARGET: TypeAdapter[Target] = TypeAdapter(Target)
_READ: TypeAdapter[Notes] = TypeAdapter(Notes)


def recall(status: Json) -> Memory:
    """What a status remembers. What cannot be read is forgotten."""
    state = status.get("rollout") or {}
    rollout = read(state)
    served = _read(_TARGET, status.get("served"))
    return Memory(
        rollout=rollout,
        served=rollout.serves if rollout else served,
        history=tuple(status.get("history") or ()),
        refused=tuple(status.get("refused") or ()),
        notes=_read(_READ, state.get(_NOTES)) or Notes(),
    )


def with_notes(state: Json, notes: Notes) -> Json:
    """status.rollout with the planner's notes."""
    kept = {name: value for name, value in asdict(notes).items() if value}
    return {**state, _NOTES: kept} if kept else state


def as_status(target: Target) -> Json:
    """Weights as `status.served` keeps them."""
    return {name: getattr(target, name) for name in ("version", "name", "path", "volume")}


def kept(
    notes: Notes, rollout: Rollout, template: str, layout: Mapping[str, str], told: Iterable[Json]
) -> Notes:
    """The notes of which somebody may still have need, with what is known now.

    Args:
        notes: as they were.
        rollout: as it is now.
        template: the version in the engines' pod template that is applied now.
        layout: of that template.
        told: the new status.history.
    """
    layouts = {**notes.layouts, template: dict(layout)}
    served = {rollout.serves.version, rollout.origin.version}
    versions = served | {each.get("version") for each in told if each.get("result") == "Served"}
    versions |= {each.get("from") for each in told}
    places = {
        **notes.places,
        **{each.version: _whereabouts(each) for each in (rollout.origin, rollout.serves)},
    }
    scored = {*versions, rollout.target.version}
    return replace(
        notes,
        layouts={
            name: layouts[name]
            for name in sorted({template, rollout.template, rollout.home} & layouts.keys())
        },
        places={name: places[name] for name in sorted(places) if name in versions},
        scores={name: notes.scores[name] for name in sorted(notes.scores) if name in scored},
    )


def _whereabouts(target: Target) -> Whereabouts:
    return Whereabouts(target.path, target.name, target.volume)


def _read(reader: TypeAdapter[Any], data: Any) -> Any:
    try:
        return reader.validate_python(data)
    except ValidationError:
        return None
