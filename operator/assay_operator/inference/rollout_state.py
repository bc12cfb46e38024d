"""What a rollout sees, decides and remembers: plain data, and its form in `status.rollout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from assay_operator.inference.observation import LoadState
from assay_operator.inference.results import JobResult
from assay_operator.plan import Action, Event, Json

Strategy = Literal["InPlace", "Recreate"]
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
class Target:
    """Weights that can be served.

    Attributes:
        version: what an engine reports that has them.
        path: where they lie in the engine's container.
        name: their name for people.
        volume: key of the volume that they lie on.
        gated: whether they have to pass the gate. False for what passed it here before and is
            wanted back by hand: the gate would compare it with what was found wanting.
    """

    version: str
    path: str
    name: str
    volume: str
    gated: bool = True

    def same_place(self, other: Target) -> bool:
        """Whether both are the same files."""
        return (self.version, self.path, self.volume) == (other.version, other.path, other.volume)


@dataclass(frozen=True)
class Replica:
    """One engine pod, as it is seen.

    Attributes:
        uid: of the pod.
        pod: its name.
        version: what the engine reports; None while it does not answer.
        generated: whether it generated a token since it was started or got this version, and has
            not stopped doing so since.
        listed: whether any router knows it, healthy or not; None where a router did not answer and
            no other one knows it.
        routable: whether it is ready, and every router that answers finds it healthy.
        requests: that it has, running and waiting; None where it does not tell.
        paused: whether it holds its requests back; None where it does not tell.
        load: what this process knows of the last load that it ordered.
        terminating: whether the pod is on its way out.
        error: what keeps it from serving and what to do about it, in a sentence.
        restarts: how often the engine's container was started again.
        volumes: keys of the volumes that the pod mounts.
        template: the version in the pod template that it was made from.
    """

    uid: str
    pod: str
    version: str | None = None
    generated: bool = False
    listed: bool | None = None
    routable: bool = False
    requests: int | None = None
    paused: bool | None = None
    load: LoadState | None = None
    terminating: bool = False
    error: str | None = None
    restarts: int = 0
    volumes: frozenset[str] = frozenset()
    template: str = ""


@dataclass(frozen=True)
class Policy:
    """How a rollout shall go. Times are in seconds.

    Attributes:
        strategy: as wanted; where InPlace is impossible it is Recreate.
        in_flight: what becomes of requests under way on replicas after the canary.
        max_unavailable: replicas that may be out of service for it; 0 takes one more replica.
        hold: how long the canary serves before the others follow.
        paused: whether nothing goes on.
        gate: whether a candidate is asked a suite.
        min_score: whether the gate can decide without an incumbent to compare with.
        gate_seconds: the gate's Job is over by then.
        load_seconds: an engine that does not answer for so long takes no load any more.
        start_seconds: until a new pod serves, at most.
        drain_seconds: until requests under way are over, at most.
    """

    strategy: Strategy = "InPlace"
    in_flight: Literal["Finish", "Continue"] = "Finish"
    max_unavailable: int = 1
    hold: float = 60
    paused: bool = False
    gate: bool = False
    min_score: bool = False
    gate_seconds: float = 1800
    load_seconds: float = 600
    start_seconds: float = 1200
    drain_seconds: float = 180


@dataclass(frozen=True)
class World:
    """Everything that a step decides from, beside the state.

    Attributes:
        now: with a zone.
        target: what shall be served.
        served: what status.served names, or else the live pointer: it counts where there is no
            state. None: nothing was ever served.
        replicas: all engine pods of the service, terminating ones included.
        wanted: how many there shall be, without a surge.
        policy: how to go about it.
        results: of Jobs, by the id of their order; without one that has no result yet.
        retry: the annotation by which a refused version is asked for again.
        refused: status.refused, the newest first.
        history: status.history, the newest first.
    """

    now: datetime
    target: Target
    served: Target | None
    replicas: tuple[Replica, ...]
    wanted: int
    policy: Policy = Policy()
    results: Mapping[str, JobResult] = field(default_factory=dict)
    retry: str | None = None
    refused: tuple[Json, ...] = ()
    history: tuple[Json, ...] = ()

    @property
    def live(self) -> dict[str, Replica]:
        """The replicas that are to stay, by uid."""
        return {each.uid: each for each in self.replicas if not each.terminating}

    def since(self, then: datetime) -> float:
        """Seconds since `then`."""
        return (self.now - then).total_seconds()


@dataclass(frozen=True)
class JobOrder:
    """A Job that shall run.

    Attributes:
        kind: `inspect` compares the candidate's folder with that of what is served; `gate` asks
            the candidate the suite.
        id: eight hexadecimal digits, another for each try: the end of the Job's name.
        uid: of the replica that is asked as the candidate; None: an engine of the Job's own.
        pod: its name.
        compare: whether what is served is asked too.
    """

    kind: Literal["inspect", "gate"]
    id: str
    uid: str | None = None
    pod: str | None = None
    compare: bool = False

    __pydantic_config__ = _CONFIG


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


@dataclass(frozen=True)
class Step:
    """What shall be, decided from one state and one world.

    What opens a way (a version admitted, a replica given back, a pointer moved, a Job begun)
    follows from a state that was read, not from the new one, which is not written yet. What closes
    one follows from both.

    Attributes:
        state: the new status.rollout.
        served: the new status.served, None while nothing was ever served.
        pointer: what the pointer shall name.
        template: the version in the engines' pod template: another one makes the Deployment roll.
        admitted: versions that any replica may serve.
        canary: uid of a replica, and the one version more that it may serve.
        excluded: uids of replicas that must not be members, whatever they report.
        surge: how many engine pods there shall be above what is wanted.
        recreate: whether the Deployment rolls because of the rollout.
        jobs: the Jobs that shall be there.
        actions: for engines and pods. They may be done only once `state` is written.
        events: what happened.
        refused: the new status.refused.
        history: the new status.history.
        next_look: seconds until the next step is due without anything having happened.
    """

    state: Json | None
    served: Target | None
    pointer: Target
    template: str
    admitted: frozenset[str]
    canary: tuple[str, str] | None = None
    excluded: frozenset[str] = frozenset()
    surge: int = 0
    recreate: bool = False
    jobs: tuple[JobOrder, ...] = ()
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    refused: tuple[Json, ...] = ()
    history: tuple[Json, ...] = ()
    next_look: float = 30.0

    def admits(self, uid: str, version: str) -> bool:
        """Whether a replica that reports `version` may be a member of the router."""
        if uid in self.excluded:
            return False
        return version in self.admitted or (uid, version) == self.canary


@dataclass
class Diary:
    """What is noted while a step is made."""

    events: list[Event] = field(default_factory=list)
    history: list[Json] = field(default_factory=list)
    refused: list[Json] = field(default_factory=list)

    def say(self, reason: str, message: str) -> None:
        self.events.append(Event(reason, message))

    def warn(self, reason: str, message: str) -> None:
        self.events.append(Event(reason, message, "Warning"))
