"""What a rollout remembers: plain data, and its form in `status.rollout`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from assay_operator.inference.rollout_world import JobOrder, Strategy, Target
from assay_operator.plan import Json

Phase = Literal[
    "Inspecting",
    "Canary",
    "Gating",
    "Holding",
    "Waving",
    "Recreating",
    "Returning",
    "Done",
    "Failed",
    "Superseded",
]
Stage = Literal["Out", "Loading", "Proving", "Loaded", "Spoilt", "Restarting", "Quarantined"]
OVER: frozenset[Phase] = frozenset({"Done", "Failed", "Superseded"})
FIRST_RETRY_SECONDS = 600.0
LAST_RETRY_SECONDS = 6 * 3600.0
"""What failed without a fault of the target is tried again, each time after twice as long."""
FORWARD: frozenset[Phase] = frozenset({"Waving", "Recreating", "Done"})
"""Phases in which the new weights are what is served, and what the pointer names."""

_CONFIG = ConfigDict(alias_generator=to_camel)


@dataclass(frozen=True)
class Canary:
    """The replica that has the new weights first.

    Attributes:
        uid: of its pod.
        pod: its name.
        restarts: of its container when it had loaded them: one more, and it has lost them.
        held: since when it serves.
        unwell: since when it does not, in the hold.
    """

    uid: str
    pod: str
    restarts: int = 0
    held: datetime | None = None
    unwell: datetime | None = None

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Record:
    """A replica in the rollout's hands: the router must not use it.

    There is one from the moment that it is taken out of the list of workers until it is proved
    that it has the weights of `goal`. So a load that a dead operator ordered is never forgotten.

    Attributes:
        uid: of its pod.
        pod: its name.
        goal: the version that it shall have.
        stage: Out: it finishes its requests; Loading: a load is ordered; Proving: that came out
            well, and the replica has to show it; Loaded: the canary shown to be so; Spoilt: the
            canary cannot load; Restarting: its pod is deleted; Quarantined: not even that helped.
        since: when the stage began.
        token: of the last load that was ordered; empty while there was none.
        loads: how many were.
        restarts: of its container at the last order: one more, and it came to nothing.
        dirty: whether an engine may still be at a load of another version than `goal`.
        guilty: whether a load came to nothing in a way that speaks against the weights.
        abort: whether the next one ends requests that are still under way.
        note: why the last one came to nothing.
    """

    uid: str
    pod: str
    goal: str
    stage: Stage
    since: datetime
    token: str = ""
    loads: int = 0
    restarts: int = 0
    dirty: bool = False
    guilty: bool = False
    abort: bool = False
    note: str = ""

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Rollout:
    """All that an operator has to know to go on with a rollout that another one began.

    Attributes:
        id: eight hexadecimal digits.
        phase: where it is.
        strategy: how it goes, for this one.
        origin: what is served before, and again if it fails.
        target: what shall be served.
        started: when it began.
        since: when the phase began.
        template: the version in the engines' pod template.
        home: that in it when the rollout began.
        progress: when one more replica had the weights, while the fleet gets them.
        updated: how many have them.
        committed: whether the target is or was what is served.
        passed: whether the target passed the gate.
        touched: whether any engine was told to load the target.
        canary: the replica that has it first.
        canaries: how many of those went away.
        job: the one that shall run now.
        jobs: how many there were.
        broken: how many of the current kind ended without a verdict.
        records: replicas in the rollout's hands.
        orders: loads ordered.
        restarts: pods deleted because they could not load.
        surge: whether there is one replica more than wanted.
        older: versions, passed once, that replicas still have from a rollout cut short.
        paused: whether it stands still.
        idle: whether no replica is wanted, so that there is nobody to try the target on.
        blame: whether what failed speaks against the target.
        tries: rollouts of the target that failed for other reasons, one after the other.
        reason: one word for why it goes back.
        detail: why, for people.
        finished: when it was over.
        retried: the annotation that asked for it again, so that it asks only once.
        message: what is going on, for people.
    """

    id: str
    phase: Phase
    strategy: Strategy
    origin: Annotated[Target, Field(alias="from")]
    target: Annotated[Target, Field(alias="to")]
    started: Annotated[datetime, Field(alias="startedAt")]
    since: datetime
    template: str
    home: str
    progress: datetime
    updated: int = 0
    committed: bool = False
    passed: bool = False
    touched: bool = False
    canary: Canary | None = None
    canaries: int = 0
    job: JobOrder | None = None
    jobs: int = 0
    broken: int = 0
    records: Annotated[tuple[Record, ...], Field(alias="replicas")] = ()
    orders: int = 0
    restarts: int = 0
    surge: bool = False
    older: tuple[str, ...] = ()
    paused: bool = False
    idle: bool = False
    blame: bool = False
    tries: int = 0
    reason: str = ""
    detail: str = ""
    finished: Annotated[datetime | None, Field(alias="finishedAt")] = None
    retried: str = ""
    message: str = ""

    __pydantic_config__ = _CONFIG

    @property
    def over(self) -> bool:
        """Whether nothing is on its way any more."""
        return self.phase in OVER

    @property
    def serves(self) -> Target:
        """What the pointer names: a pod that starts comes up with it."""
        return self.target if self.phase in FORWARD else self.origin

    @property
    def mixed(self) -> bool:
        """Whether replicas with the target and with what was before may serve side by side."""
        return self.phase in {"Waving", "Recreating"} or (
            self.phase == "Returning" and self.committed
        )

    @property
    def renews(self) -> bool:
        """Whether the Deployment makes pods anew, for it or for its way back."""
        return self.strategy == "Recreate" and self.mixed

    @property
    def admitted(self) -> frozenset[str]:
        """The versions that any replica may serve."""
        if self.over:
            return frozenset({self.serves.version})
        versions = {self.origin.version, *self.older}
        return frozenset(versions | {self.target.version} if self.mixed else versions)

    def admits(self, uid: str, version: str) -> bool:
        """Whether the replica may serve `version`, as far as that goes."""
        holds = self.phase == "Holding" and self.canary is not None and self.canary.uid == uid
        return version in self.admitted or (holds and version == self.target.version)

    @property
    def excluded(self) -> frozenset[str]:
        """The uids of the replicas that must not be used whatever they report."""
        return frozenset(record.uid for record in self.records)

    @property
    def again_at(self) -> datetime | None:
        """When a rollout that failed, and not for its target's fault, is tried again."""
        if self.phase != "Failed" or self.blame or self.finished is None:
            return None
        wait = min(FIRST_RETRY_SECONDS * 2 ** min(self.tries, 10), LAST_RETRY_SECONDS)
        return self.finished + timedelta(seconds=wait)

    def record(self, uid: str) -> Record | None:
        """The record of a replica, None where it has none."""
        return next((record for record in self.records if record.uid == uid), None)

    def place_of(self, version: str) -> str:
        """The path of the weights that a record has as its goal."""
        return self.target.path if version == self.target.version else self.origin.path

    def with_record(self, record: Record) -> Rollout:
        """With `record` in the place of the one of the same replica, or as a new one."""
        others = self.without(record.uid).records
        records = sorted((*others, record), key=lambda each: each.pod)
        return replace(self, records=tuple(records))

    def without(self, uid: str) -> Rollout:
        """Without the record of a replica."""
        return replace(self, records=tuple(each for each in self.records if each.uid != uid))


_ROLLOUT: TypeAdapter[Rollout] = TypeAdapter(Rollout)


def read(state: Json | None) -> Rollout | None:
    """The rollout in `status.rollout`; None where there is none, or nothing that can be read."""
    try:
        return _ROLLOUT.validate_python(state)
    except ValidationError:
        return None


def write(rollout: Rollout) -> Json:
    """The rollout as `status.rollout` keeps it."""
    data: Json = _ROLLOUT.dump_python(rollout, mode="json", by_alias=True, exclude_defaults=True)
    return data


def whole_seconds(now: datetime) -> datetime:
    """The time as a status keeps it."""
    return now - timedelta(microseconds=now.microsecond)
