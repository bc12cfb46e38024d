"""A fleet of pretended engines, a router, a Deployment and an operator that may die anywhere.

It is what the rollout's state machine is let loose on: engines load with a delay, wait for their
requests, lose everything when they are started anew; the router reads its list late and drains; the
Deployment makes, replaces and deletes pods. After every second the fleet checks that nobody is
answered by weights that have not passed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from assay_operator.inference.observation import LoadState
from assay_operator.inference.results import JobResult, result
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_state import Rollout, read
from assay_operator.inference.rollout_world import JobOrder, Policy, Replica, Step, Target, World
from assay_operator.plan import Load, Pause, Restart, Resume

Json = dict[str, Any]
BEGIN = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
START, DRAIN, GATE, INSPECT = 20, 5, 15, 3
READY = 90
"""The kubelet ends an engine that is not ready by then."""
ANSWERS = (2, 9, 4, 30)
"""How long requests take, one after the other."""


def target(letter: str, volume: str = "pvc/models") -> Target:
    """Weights whose version is a digest of one digit."""
    return Target(f"sha256:{letter * 64}", f"/checkpoints/{letter}", f"solver-{letter}", volume)


A, B, C = target("a"), target("b"), target("c")
WORSE, UNDECIDED, UNSAFE = target("d"), target("e"), target("f")
"""Fails the gate; decides nothing; fails the inspection."""
SHAPES, ELSEWHERE = target("1"), target("2", "pvc/other")
"""Not for engines that run: other shapes; a volume that they do not mount."""
BROKEN, AWAY, HANGS = target("0"), target("3", "pvc/other"), target("4", "pvc/other")
"""No engine can load it, and none can start with it: it ends, or it never gets ready."""
UNLOADABLE = (BROKEN, AWAY, HANGS)
TARGETS = (A, B, C, WORSE, UNDECIDED, UNSAFE, SHAPES, ELSEWHERE, *UNLOADABLE)
GOOD = {each.version for each in (A, B, C, SHAPES, ELSEWHERE)}
BY_VERSION = {each.version: each for each in TARGETS}
POLICY = Policy(
    hold=10,
    gate=True,
    min_score=True,
    gate_seconds=120,
    load_seconds=60,
    start_seconds=180,
    drain_seconds=60,
)


@dataclass
class Loading:
    """One load in an engine's queue; `epoch` is the operator process that ordered it."""

    order: Load
    epoch: int
    done: float | None = None


@dataclass
class Engine:
    """One pod."""

    uid: str
    volumes: frozenset[str]
    template: str
    boot: Target
    up: float
    version: str | None = None
    restarts: int = 0
    paused: bool = False
    gone: float | None = None
    pending: bool = False
    queue: list[Loading] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)

    @property
    def pod(self) -> str:
        return f"pod-{self.uid}"

    @property
    def works(self) -> bool:
        return self.version is not None and not self.paused


class Violation(AssertionError):
    """The fleet did what must never be."""


class Fleet:
    """All of it. Time is in seconds since BEGIN."""

    def __init__(self, wanted: int = 3, policy: Policy = POLICY, first: Target = A) -> None:
        self.now = 0.0
        self.wanted, self.policy, self.target = wanted, policy, first
        self.retry: str | None = None
        self.pointer = first
        self.template = first.version
        self.replicas, self.halted = 0, False
        self.written = False
        self.engines: list[Engine] = []
        self.workers: frozenset[str] = frozenset()
        self.lists: list[tuple[float, frozenset[str]]] = []
        self.known: frozenset[str] = frozenset()
        self.draining: dict[str, float] = {}
        self.jobs: dict[str, tuple[JobOrder, Target, float, set[str | None]]] = {}
        self.results: dict[str, JobResult] = {}
        self.status: Json = {"refused": [], "history": []}
        self.rollout: Rollout | None = None
        self.loads: dict[str, LoadState] = {}
        self.epoch = 0
        self.passed: set[str] = {first.version}
        self.events: list[str] = []
        self.told: list[str] = []
        self.number = self.asked = 0
        # Faults that last until they are taken away.
        self.router_stuck = self.router_blind = self.no_room = self.disk_fails = False
        self.jobs_break = self.endless = False
        self.load_seconds, self.lag = 4.0, 1.0
        self.violated = False

    # -- the world goes on -----------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Lets time pass, in small pieces where little passes."""
        piece = 1.0 if seconds <= 30 else 5.0
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + piece, end)
            self._tick()

    def _tick(self) -> None:
        self._controller()
        for engine in self.engines:
            self._run(engine)
        self.engines = [each for each in self.engines if each.gone is None or each.gone > self.now]
        self._router()
        self._jobs()
        self.check()

    def _run(self, engine: Engine) -> None:
        if engine.pending and not self.no_room:
            engine.pending, engine.up, engine.boot = False, self.now + START, self.pointer
        if engine.pending:
            return
        if engine.version is None and engine.up <= self.now:
            if engine.boot == HANGS and self.now < engine.up + READY - START:
                return
            if engine.boot.volume in engine.volumes and engine.boot not in UNLOADABLE:
                engine.version = engine.boot.version
            else:
                self.kill(engine)
            return
        if not engine.paused:
            engine.requests = [end for end in engine.requests if end > self.now]
        if engine.queue:
            self._load(engine, engine.queue[0])

    def _load(self, engine: Engine, loading: Loading) -> None:
        order = loading.order
        if loading.done is None:
            if order.abort:
                engine.requests = []
            if engine.requests and not engine.paused:
                return
            loading.done = self.now + self.load_seconds
        if loading.done > self.now:
            return
        engine.queue.pop(0)
        weights = BY_VERSION[order.version]
        fails = self.disk_fails or weights in {SHAPES, *UNLOADABLE}
        fails |= weights.volume not in engine.volumes
        if not fails:
            if engine.requests and order.version not in self.passed:
                raise self.violation(f"{engine.pod}: a request goes on with {order.version}")
            engine.version = order.version
        if loading.epoch == self.epoch and self.loads.get(engine.uid, None):
            state = "failed" if fails else "done"
            message = "no such file" if fails else ""
            self.loads[engine.uid] = LoadState(order.version, state, message, order.token)  # type: ignore[arg-type]

    def _router(self) -> None:
        if self.router_stuck:
            return
        while self.lists and self.lists[0][0] <= self.now:
            _, urls = self.lists.pop(0)
            for uid in self.known - urls:
                self.draining[uid] = self.now + DRAIN
            self.known = urls
        self.draining = {
            uid: end
            for uid, end in self.draining.items()
            if end > self.now and uid not in self.known
        }
        for engine in self.engines:
            if engine.uid in self.known and engine.works and len(engine.requests) < 2:
                self.asked += 1
                seconds = 10_000 if self.endless else ANSWERS[self.asked % len(ANSWERS)]
                engine.requests.append(self.now + seconds)

    def _controller(self) -> None:
        """The Deployment: as many pods as wanted, of the template, one more while it rolls.

        One that is halted replaces none: it only keeps their number, by pods like those there are.
        """
        live = [each for each in self.engines if each.gone is None]
        old = [each for each in live if each.template != self.template]
        new = [each for each in live if each.template == self.template]
        ready = [each for each in live if each.works]
        if self.halted and old:
            number = self.replicas + int(bool(new) and self.replicas > 0)
            if len(live) < number:
                self._create(max(old, new, key=len)[0])
            elif len(live) > number:
                self.delete(min(live, key=lambda each: each.works))
        elif len(live) < self.replicas or (old and len(new) < self.replicas >= len(live)):
            self._create()
        elif len(live) > self.replicas and not old:
            self.delete(min(live, key=lambda each: (each.works, -int(each.uid))))
        elif old:
            unready = [each for each in old if not each.works]
            if unready:
                self.delete(unready[0])
            elif len(ready) > self.replicas:
                self.delete(old[0])

    def _create(self, like: Engine | None = None) -> None:
        self.number += 1
        template = like.template if like else self.template
        volumes = like.volumes if like else frozenset({"pvc/models", self.pointer.volume})
        engine = Engine(str(self.number), volumes, template, self.pointer, self.now + START)
        engine.pending = self.no_room
        self.engines.append(engine)

    def _jobs(self) -> None:
        for job, (order, weights, done, seen) in list(self.jobs.items()):
            if job in self.results:
                continue
            if order.uid is not None:
                engine = self.engine(order.uid)
                seen.add(engine.version if engine else None)
            if done <= self.now:
                self.results[job] = self._result(order, weights, seen)

    def _result(self, order: JobOrder, weights: Target, seen: set[str | None]) -> JobResult:
        if self.jobs_break:
            return result("broken", {}, "the suite is gone.")
        if order.kind == "inspect":
            if weights == UNSAFE:
                return result("fail", {"intact": False}, "model.bin is a pickle.")
            if not self.policy.gate:
                self.passed.add(weights.version)
            in_place = weights != SHAPES
            summary = {"intact": True, "inPlace": in_place, "reasons": ["other shapes"]}
            return result("pass", summary, "all as it shall be")
        if order.uid is not None:
            if None in seen or len(seen) != 1:
                return result("broken", {}, "the engine changed while it was asked.")
            (version,) = seen
            weights = BY_VERSION[str(version)]
        verdict = {WORSE: "fail", UNDECIDED: "undecided"}.get(weights, "pass")
        if verdict == "pass":
            self.passed.add(weights.version)
        summary = {"sides": {"candidate": {"weightVersions": [weights.version]}}}
        return result(verdict, summary, f"score of {weights.name}")  # type: ignore[arg-type]

    # -- what goes wrong -------------------------------------------------------------------

    def kill(self, engine: Engine) -> None:
        """Its process ends; the kubelet starts it again, and it reads the pointer."""
        engine.version, engine.paused = None, False
        engine.restarts += 1
        engine.queue, engine.requests = [], []
        engine.boot, engine.up = self.pointer, self.now + START
        self.loads.pop(engine.uid, None)

    def delete(self, engine: Engine) -> None:
        if engine.gone is None:
            engine.gone = self.now + 8

    def crash(self) -> None:
        """The operator dies; what it ordered goes on."""
        self.epoch += 1
        self.loads = {}

    # -- the operator ----------------------------------------------------------------------

    def world(self) -> World:
        now = BEGIN + timedelta(seconds=self.now, microseconds=321)
        served = self.status.get("served")
        return World(
            now=now,
            target=self.target,
            gated=self.target.version not in self.passed,
            served=Target(**served) if served else None,
            replicas=tuple(map(self._replica, self.engines)),
            wanted=self.wanted,
            policy=self.policy,
            results=dict(self.results),
            retry=self.retry,
            refused=tuple(self.status["refused"]),
            history=tuple(self.status["history"]),
            pointer=self.pointer if self.written else None,
        )

    def _replica(self, engine: Engine) -> Replica:
        listed = engine.uid in self.known or engine.uid in self.draining
        return Replica(
            uid=engine.uid,
            pod=engine.pod,
            version=engine.version,
            generated=engine.works,
            listed=None if self.router_blind else listed,
            named=engine.uid in self.workers,
            routable=not self.router_blind and engine.uid in self.known and engine.works,
            requests=None if engine.version is None else len(engine.requests),
            paused=None if engine.version is None else engine.paused,
            load=self.loads.get(engine.uid),
            terminating=engine.gone is not None,
            error="No node takes the pod." if engine.pending else None,
            restarts=engine.restarts,
            volumes=engine.volumes,
            template=engine.template,
        )

    def reconcile(self, dies_after: int | None = None) -> Step:
        """One pass of the operator, which may die after so many of its writes."""
        world = self.world()
        made = step(self.status.get("rollout"), world)
        if made.state != self.status.get("rollout"):
            self._check_again(made, world)
        self._check_step(made, world)
        writes: list[Callable[[], None]] = [
            lambda: self._write_pointer(made),
            lambda: self._write_workers(made),
            lambda: self._write_deployment(made),
            lambda: self._write_jobs(made),
            lambda: self._write_status(made),
            *(lambda action=action: self._act(action) for action in made.actions),  # type: ignore[misc]
        ]
        for write in writes[:dies_after]:
            write()
        if dies_after is not None:
            self.crash()
        return made

    def _write_pointer(self, made: Step) -> None:
        self.pointer, self.written = made.pointer, True

    def members(self, made: Step) -> frozenset[str]:
        """The list of workers, as the planner makes it."""
        return frozenset(
            each.uid
            for each in self.engines
            if each.gone is None
            and (
                made.admits(each.uid, each.version)
                if each.version is not None and each.works
                else each.uid in self.workers and each.uid not in made.excluded and each.paused
            )
        )

    def _write_workers(self, made: Step) -> None:
        members = self.members(made)
        if members != self.workers:
            self.workers = members
            self.lists.append((self.now + self.lag, members))

    def _write_deployment(self, made: Step) -> None:
        self.replicas = self.wanted + made.surge
        self.template, self.halted = made.template, made.halted

    def _write_jobs(self, made: Step) -> None:
        ids = {order.id for order in made.jobs}
        self.jobs = {job: found for job, found in self.jobs.items() if job in ids}
        self.results = {job: found for job, found in self.results.items() if job in ids}
        for order in made.jobs:
            if order.id not in self.jobs:
                assert self.rollout is not None
                seconds = INSPECT if order.kind == "inspect" else GATE
                self.jobs[order.id] = (order, self.rollout.target, self.now + seconds, set())

    def _write_status(self, made: Step) -> None:
        self.events += [f"{event.reason}: {event.message}" for event in made.events]
        if made.state != self.status.get("rollout"):
            self.status = json.loads(
                json.dumps(
                    {
                        "rollout": made.state,
                        "served": vars(made.served) if made.served else None,
                        "refused": list(made.refused),
                        "history": list(made.history),
                    }
                )
            )
            self.rollout = read(self.status["rollout"])
        message = (made.state or {}).get("message")
        if message and [message] != self.told[-1:]:
            self.told.append(message)

    def _act(self, action: Any) -> None:
        engine = next((each for each in self.engines if each.pod == action.pod), None)
        if engine is None:
            return
        match action:
            case Load():
                running = self.loads.get(engine.uid)
                if engine.version is None or (running and running.state == "running"):
                    return
                self.loads[engine.uid] = LoadState(action.version, "running", token=action.token)
                engine.queue.append(Loading(action, self.epoch))
            case Pause():
                engine.paused = engine.version is not None
            case Resume():
                engine.paused = False
            case Restart():
                self.delete(engine)

    # -- what must hold --------------------------------------------------------------------

    def violation(self, what: str) -> Violation:
        self.violated = True
        return Violation(what)

    def engine(self, uid: str) -> Engine | None:
        return next((each for each in self.engines if each.uid == uid), None)

    def check(self) -> None:
        """Nobody is answered by weights that have not passed, and none is what pods start with."""
        if self.status.get("served") is None:
            self.passed.add(self.target.version)
        for engine in self.engines:
            listed = engine.uid in self.known and engine.works
            if listed and engine.version not in self.passed:
                raise self.violation(f"{engine.pod} answers with {engine.version}")
        if self.pointer.version not in self.passed:
            raise self.violation(f"the pointer names {self.pointer.version}")

    def _check_step(self, made: Step, world: World) -> None:
        if made.served is not None and made.served.version not in self.passed:
            raise self.violation(f"{made.served.name} is served, and has not passed")
        self._check_availability(made, world)

    def _check_again(self, made: Step, world: World) -> None:
        """Made again in the same world, from its own state, the step is the same and says no more.

        The state has been through JSON, as between two processes."""
        kept = json.loads(json.dumps(made.state))
        again = step(kept, replace(world, refused=made.refused, history=made.history))
        if made.state is not None and (again.state != made.state or again.events):
            raise self.violation(f"{made.state} became {again.state}")
        if again.actions != made.actions:
            raise self.violation(f"{made.actions} became {again.actions}")

    def _check_availability(self, made: Step, world: World) -> None:
        """No replica that serves is taken out of service while too few are left."""
        rollout = self.rollout
        serving = {each.uid for each in world.replicas if each.routable and not each.terminating}
        serving &= self.workers
        members = self.members(made)
        dropped = serving - members
        if rollout is not None and rollout.phase == "Holding" and rollout.canary is not None:
            # Safety goes before availability: the canary is taken back at once.
            dropped -= {rollout.canary.uid}
        dropped = {uid for uid in dropped if self._version(uid) in self.passed}
        left = len(serving & members)
        if dropped and left < world.wanted - world.policy.max_unavailable:
            raise self.violation(f"{sorted(dropped)} taken out, {left} of {world.wanted} left")

    def _version(self, uid: str) -> str | None:
        engine = self.engine(uid)
        return engine.version if engine else None

    # -- until it is quiet -----------------------------------------------------------------

    def heal(self) -> None:
        """No fault lasts any longer."""
        self.router_stuck = self.router_blind = self.no_room = self.disk_fails = False
        self.jobs_break = self.endless = False
        self.policy = replace(self.policy, paused=False)
        self.load_seconds, self.lag = 4.0, 1.0
        for engine in self.engines:
            engine.requests = [min(end, self.now + 5) for end in engine.requests]

    def settle(self, most: int = 3000) -> None:
        """Passes until nothing is left to do; raises where that does not come."""
        seconds, before = 1.0, None
        for _ in range(most):
            made = self.reconcile()
            self.advance(seconds)
            if self.quiet() and not self.waits():
                return
            seconds = min(seconds * 2, 300.0) if made.state == before else 1.0
            before = made.state
        raise self.violation(f"it does not settle: {self.status.get('rollout')}")

    def waits(self) -> bool:
        """Whether what is wanted will be tried again."""
        rollout = self.rollout
        return (
            rollout is not None
            and rollout.again_at is not None
            and rollout.target.version == self.target.version
        )

    def quiet(self) -> bool:
        """Whether all serve what shall be served, and nobody is in anybody's hands."""
        rollout = self.rollout
        live = [each for each in self.engines if each.gone is None]
        if len(live) != self.wanted or self.replicas != self.wanted:
            return False
        if rollout is None:
            return self.wanted == 0
        if self.wanted == 0:
            return rollout.over or rollout.idle
        served = rollout.serves
        return (
            rollout.over
            and not rollout.records
            and self.pointer == served
            and all(each.works and each.version == served.version for each in live)
            and {each.uid for each in live} == self.known
            and all(each.template == self.template for each in live)
        )

    def run(self, phase: str, most: int = 600) -> Json:
        """Passes until the rollout is in `phase`; returns its state."""
        for _ in range(most):
            self.reconcile()
            state: Json | None = self.status.get("rollout")
            if state and state["phase"] == phase:
                return state
            self.advance(1)
        raise self.violation(f"{phase} does not come: {self.status.get('rollout')}")
