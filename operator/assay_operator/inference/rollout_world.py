"""What a rollout sees and what it decides: plain data, and nothing of how it comes about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from assay_operator.inference.observation import LoadState
from assay_operator.inference.results import JobResult
from assay_operator.plan import Action, Event, Json

Strategy = Literal["InPlace", "Recreate"]


@dataclass(frozen=True)
class Target:
    """Weights that can be served.

    Attributes:
        version: what an engine reports that has them.
        path: where they lie in the engine's container.
        name: their name for people.
        volume: key of the volume that they lie on.
    """

    version: str
    path: str
    name: str
    volume: str

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
        named: whether the list of workers names it, read by the routers or not yet.
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
    named: bool = False
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
        gated: whether it has to pass the gate. False for what passed it here before and is wanted
            back by hand: the gate would compare it with what was found wanting.
        served: status.served. It counts where there is no state; None: nothing was ever served, as
            far as the status says.
        replicas: all engine pods of the service, terminating ones included.
        wanted: how many there shall be, without a surge.
        policy: how to go about it.
        results: of Jobs, by the id of their order; without one that has no result yet.
        retry: the annotation by which a refused version is asked for again.
        refused: status.refused, the newest first.
        history: status.history, the newest first.
        pointer: what the pointer names as it stands in the cluster, None where there is none. An
            engine that has come up with it is served before any status says so.
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
    pointer: Target | None = None
    gated: bool = True

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
        halted: whether the Deployment stays as it is, in the midst of making pods anew.
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
    halted: bool = False
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
