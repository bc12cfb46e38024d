"""Runs a trace against replicas whose number a policy decides."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter

from benchmarks.autoscaling.engine import NEVER, Engine, News, Replica, Served
from benchmarks.autoscaling.policy import Policy, ReplicaView, Sample
from benchmarks.autoscaling.trace import Trace

_LOAD = attrgetter("load")
LONGEST_DRAIN_S = 3600.0
"""After the last arrival; what has not finished by then counts as not served in time."""


@dataclass(frozen=True)
class World:
    """What all policies share.

    Attributes:
        engine: the model of an engine.
        start_s: seconds from asking for a replica until it is routable.
        least: fewest replicas, at least 1.
        most: most replicas.
        first: replicas that are there, warm, when the trace begins.
        route: "least-load" (fewest requests) or "round-robin".
    """

    engine: Engine
    start_s: float
    least: int = 1
    most: int = 16
    first: int = 1
    route: str = "least-load"


@dataclass(frozen=True, slots=True)
class Scaling:
    """A change of the number of wanted replicas.

    Attributes:
        at: seconds since the trace began.
        before: wanted until then.
        after: wanted from then on.
    """

    at: float
    before: int
    after: int


@dataclass
class Life:
    """How long a replica held its GPU, in seconds since the trace began.

    Attributes:
        asked: when it was asked for.
        left: when it was let go.
        gone: when it had finished, after that, what it had.
    """

    asked: float
    left: float = NEVER
    gone: float = NEVER


@dataclass
class Run:
    """What happened.

    Attributes:
        served: each request of the trace, in its order.
        scalings: in order of time.
        lives: of all replicas.
        end: when the last request finished.
    """

    served: list[Served]
    scalings: list[Scaling] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    end: float = 0.0


class Fleet:
    """The replicas, the router before them and what a scaler does to them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wanted = world.first
        self.lives: list[Life] = []
        self.starting: list[Replica] = []
        """In the order in which they were asked for, which is that in which they are ready."""
        self.ready: list[Replica] = []
        self.draining: list[Replica] = []
        self.held: deque[Served] = deque()
        self._turn = 0
        for _ in range(world.first):
            # Long ready, so warm.
            self.ready.append(Replica(world.engine, len(self.lives), -world.engine.warm_s))
            self.lives.append(Life(0.0))

    def advance(self, until: float) -> None:
        """Everything up to `until` happens."""
        while self.starting and self.starting[0].ready_at <= until:
            replica = self.starting.pop(0)
            self.ready.append(replica)
            while self.held:
                # All that waited goes to the first that comes: it is the only one there is.
                replica.take(self.held.popleft(), replica.ready_at)
        for replica in self.ready:
            # Asked here too, since most have nothing to do most of the time.
            if replica.next_end <= until:
                replica.advance(until)
        for replica in self.draining:
            replica.advance(until)

    def arrive(self, served: Served, at: float) -> None:
        """The router sends a request to a replica, or holds it; the fleet is advanced to `at`."""
        if not self.ready:
            self.held.append(served)
        elif self.world.route == "round-robin":
            self._turn += 1
            self.ready[self._turn % len(self.ready)].take(served, at)
        else:
            min(self.ready, key=_LOAD).take(served, at)

    def scale(self, wanted: int, at: float) -> None:
        """Asks for more replicas or lets some go: those that start first, then the youngest.

        That is the order of Kubernetes' ReplicaSet controller. One that goes gets no more requests
        and holds its GPU until it has finished those that it has.
        """
        self.wanted = wanted
        while len(self.starting) + len(self.ready) < wanted:
            ready_at = at + self.world.start_s
            self.starting.append(Replica(self.world.engine, len(self.lives), ready_at))
            self.lives.append(Life(at))
        while len(self.starting) + len(self.ready) > wanted:
            if self.starting:
                life = self.lives[self.starting.pop().number]
                life.left = life.gone = at
            else:
                self.draining.append(self.ready.pop())
                self.lives[self.draining[-1].number].left = at
        self.bury()

    def bury(self) -> None:
        """Replicas that have finished what they had give their GPU back."""
        for replica in self.draining:
            if not replica.load:
                life = self.lives[replica.number]
                life.gone = max(life.left, replica.done_at)
        self.draining = [replica for replica in self.draining if replica.load]


def simulate(trace: Trace, policy: Policy, world: World) -> Run:
    """Replays a trace until all of it is served.

    The same arguments give the same result, provided that the policy is fresh.

    Args:
        trace: in order of time, not empty.
        policy: decides every `period` seconds, the first time after one period.
        world: what is there.
    """
    fleet = Fleet(world)
    run = Run([Served(request) for request in trace], lives=fleet.lives)
    watch = _Watch(fleet)
    tick = policy.period
    last = trace[-1].at
    for served in run.served:
        at = served.request.at
        while tick <= at:
            _look(run, fleet, watch, policy, tick)
            tick += policy.period
        fleet.advance(at)
        watch.arrived(served)
        fleet.arrive(served, at)
    while watch.in_system and tick < last + LONGEST_DRAIN_S:
        _look(run, fleet, watch, policy, tick)
        tick += policy.period
    run.end = max((one.finished for one in run.served if one.times), default=last)
    return run


def _look(run: Run, fleet: Fleet, watch: _Watch, policy: Policy, now: float) -> None:
    """The policy looks, and what it wants is done."""
    fleet.advance(now)
    sample = watch.sample(now)
    fleet.bury()
    world = fleet.world
    wanted = min(world.most, max(world.least, policy.observe(sample)))
    if wanted != fleet.wanted:
        run.scalings.append(Scaling(now, fleet.wanted, wanted))
        fleet.scale(wanted, now)


class _Watch:
    """Counts what samples report.

    The mean concurrency over a time is the integral of requests in the system over its length, and
    that integral up to t is the sum of (t - arrival) less that of (t - finish).
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._at = 0.0
        self._area = 0.0
        self._arrivals, self._arrival_sum = 0, 0.0
        self._finishes, self._finish_sum = 0, 0.0
        self._new, self._new_tokens = 0, 0

    @property
    def in_system(self) -> int:
        """Requests that have arrived and, as of the last sample, not finished."""
        return self._arrivals - self._finishes

    def arrived(self, served: Served) -> None:
        self._arrivals += 1
        self._arrival_sum += served.request.at
        self._new += 1
        self._new_tokens += served.request.prompt

    def sample(self, now: float) -> Sample:
        views = [_view(replica) for replica in self._fleet.ready]
        finished: list[Served] = []
        for replica in (*self._fleet.ready, *self._fleet.draining):
            finished += replica.news.finished
            replica.news = News()
        for served in finished:
            self._finish_sum += served.finished
        self._finishes += len(finished)
        area = self._arrivals * now - self._arrival_sum - (self._finishes * now - self._finish_sum)
        sample = Sample(
            now=now,
            wanted=self._fleet.wanted,
            starting=len(self._fleet.starting),
            replicas=views,
            held=len(self._fleet.held),
            in_system=self.in_system,
            concurrency=(area - self._area) / (now - self._at),
            arrived=self._new,
            prompt_tokens=self._new_tokens,
            finished=finished,
        )
        self._at, self._area = now, area
        self._new, self._new_tokens = 0, 0
        return sample


def _view(replica: Replica) -> ReplicaView:
    return ReplicaView(
        number=replica.number,
        ready_at=replica.ready_at,
        running=replica.running,
        queued=replica.queued,
        queued_tokens=replica.waiting_tokens,
        context=replica.context,
        kv_share=replica.kv_share,
        news=replica.news,
    )
