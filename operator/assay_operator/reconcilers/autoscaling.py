"""Watches the load of services that scale themselves, and decides how many replicas they need.

One task for each of them asks its routers and engines every few seconds, beside the passes, so that
an engine that does not answer delays none. A pass is made only when there is something to write or
to do. What is decided counts once it stands in the status; what this process knows beyond that may
be lost with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from pydantic import ValidationError

from assay_operator import telemetry
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.autoscaling.decision import Decision, decide
from assay_operator.autoscaling.model import Policy
from assay_operator.autoscaling.queueing import Load, bearable
from assay_operator.autoscaling.signals import Scan, engine_page, quiet, router_page, sample
from assay_operator.autoscaling.state import State
from assay_operator.cluster.client import jittered
from assay_operator.cluster.view import Key, View
from assay_operator.inference.observation import (
    ENGINE_PORT,
    METRICS_PORT,
    Observation,
    Probe,
    Seen,
    has_ended,
    is_ready,
    is_terminating,
)
from assay_operator.inference.profiles import UnsupportedProfile, profile_of
from assay_operator.inference.scaling import (
    SCRAPE_SECONDS,
    interval,
    is_stopped,
    policy_of,
    rests,
    standing,
)
from assay_operator.inference.scaling_status import due, remembered, required
from assay_operator.plan import Json
from assay_operator.reconcilers.shell import of_component
from assay_operator.sglang.activators import Activators
from assay_operator.sglang.client import SGLang
from assay_operator.sglang.reach import ProbeError, Question, Reach

ANSWER_SECONDS = 4.0
"""A page is long, and what tells nothing for so long tells nothing this time."""
_OF_ENGINE = Question(ENGINE_PORT, "/metrics", ANSWER_SECONDS, text=True)
_OF_ROUTER = Question(METRICS_PORT, "/metrics", ANSWER_SECONDS, text=True)

_GAUGES = (
    telemetry.REPLICAS_WANTED,
    telemetry.REPLICAS_REQUIRED,
    telemetry.REPLICA_CAPACITY,
)

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A service that is watched, and what this process knows of it.

    Attributes:
        uid: of the object.
        state: what the next decision goes on from.
        driver: who sets the number of its replicas.
        scan: the last look.
        seen: what came of it.
        unknown_s: for how long the load has not been known whole.
        pause: seconds from one look to the next.
        bell: ends a pause that has become too long.
        lock: one look at a time.
        task: looks again and again.
    """

    uid: str
    state: State
    driver: str
    scan: Scan | None = None
    seen: Seen | None = None
    unknown_s: float = 0.0
    pause: float = SCRAPE_SECONDS
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self.task:
            self.task.cancel()


class Scalers:
    """What services that scale themselves need.

    Args:
        view: knows them and their pods.
        reach: the way to the pods.
        activators: says what waits where there is no replica.
        sglang: knows which engines lack the kernels that they were asked to run.
        wake: told of a service of which something is to be written or done.
    """

    def __init__(
        self,
        view: View,
        reach: Reach,
        activators: Activators,
        sglang: SGLang,
        wake: Callable[[Key], None] = lambda _: None,
    ) -> None:
        self._view = view
        self._reach = reach
        self._activators = activators
        self._sglang = sglang
        self._watched: dict[Key, _Watched] = {}
        self.wake = wake

    async def look(self, key: Key, owner: Json) -> Seen | None:
        """What is known of a service's load, None where it does not scale itself or nothing is.

        From now on it is watched. Where it rests, and a request is what is waited for, the
        activators are asked at once; else this waits for nothing.
        """
        spec, status = _spec(owner), owner.get("status") or {}
        if spec is None or spec.autoscaling is None or is_stopped(spec, status):
            self.forget(key)
            return None
        watched, uid = self._watched.get(key), owner["metadata"]["uid"]
        if watched is None or watched.uid != uid:
            self.forget(key)
            driver = (status.get("autoscaling") or {}).get("driver") or spec.autoscaling.driver
            watched = self._watched[key] = _Watched(uid, remembered(status), driver)
            watched.task = asyncio.create_task(self._live(key, watched), name=f"scale {key}")
        if interval(spec, status) < watched.pause:
            watched.bell.set()
        if rests(spec, status):
            await self._turn(key, watched)
            # One that is on its way out still hands on what it holds.
            self._activators.attend(
                pod for pod in self._holding(key) if is_ready(pod) or is_terminating(pod)
            )
        return watched.seen

    def forget(self, key: Key) -> None:
        """A service is gone, or scales itself no more."""
        if watched := self._watched.pop(key, None):
            watched.end()
            for metric in _GAUGES:
                telemetry.tell_of_service(metric, key.namespace, key.name, None)

    def close(self) -> None:
        """Watches nothing any more."""
        for key in list(self._watched):
            self.forget(key)

    async def _live(self, key: Key, watched: _Watched) -> None:
        """Looks again and again, until the service is gone."""
        while self._watched.get(key) is watched:
            await self._turn(key, watched)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(jittered(watched.pause)):
                    await watched.bell.wait()
            watched.bell.clear()

    async def _turn(self, key: Key, watched: _Watched) -> None:
        """Looks once, and decides."""
        try:
            async with watched.lock:
                scan = await self._scan(key)
                owner = self._view.owner(key)
                if owner is None:
                    self.forget(key)
                else:
                    self._judge(key, owner, watched, scan)
        except Exception:
            # The number stays as it is; to look no more would be worse.
            log.exception("the load could not be judged", extra={"object": str(key)})

    def _judge(self, key: Key, owner: Json, watched: _Watched, scan: Scan) -> None:
        spec, status, now = _spec(owner), owner.get("status") or {}, datetime.now(UTC)
        policy = _policy(spec) if spec else None
        if spec is None or policy is None or spec.autoscaling is None:
            return
        stands = standing(self._observation(key, owner, scan), spec, policy, now)
        told = sample(watched.scan, scan, stands, now.timestamp())
        if watched.driver != spec.autoscaling.driver:
            # What another driver wanted is not what there is.
            watched.state = replace(watched.state, replicas=None, pending=())
            watched.driver = spec.autoscaling.driver
        decision = decide(policy, watched.state, told)
        watched.unknown_s = 0.0 if told.known else watched.unknown_s + told.seconds
        watched.seen = Seen(
            decision=decision,
            unknown_s=watched.unknown_s,
            quiet=quiet(watched.scan, scan),
            answers=tuple(scan.activators.values()),
        )
        watched.state, watched.scan = decision.state, scan
        watched.pause = interval(spec, status)
        written = due(status, spec, watched.seen, now)
        _count(key, decision, written)
        if written:
            self.wake(key)

    async def _scan(self, key: Key) -> Scan:
        """Asks all pods at once."""
        pods = [pod for pod in self._view.pods(key) if is_ready(pod)]
        engines, routers = of_component(pods, "engine"), of_component(pods, "router")
        activators = self._holding(key)
        # Taken before they answer: one that stays silent would make the span of the others longer.
        at = time.monotonic()
        of_engines, of_routers, answers = await asyncio.gather(
            asyncio.gather(*(self._page(pod, _OF_ENGINE, engine_page) for pod in engines)),
            asyncio.gather(*(self._page(pod, _OF_ROUTER, router_page) for pod in routers)),
            self._activators.ask(activators),
        )
        return Scan(
            at=at,
            engines=dict(zip(_uids(engines), of_engines, strict=True)),
            routers=dict(zip(_uids(routers), of_routers, strict=True)),
            activators={
                pod["metadata"]["uid"]: answer
                for pod, answer in zip(activators, answers, strict=True)
                # Only of one that is ready silence says that something is not known.
                if answer or is_ready(pod)
            },
        )

    def _holding(self, key: Key) -> list[Json]:
        """The activators that may hold requests, whether they still take any or not."""
        activators = of_component(self._view.pods(key), "activator")
        return [pod for pod in activators if not has_ended(pod)]

    async def _page(self, pod: Json, question: Question, read: Callable[[str], T]) -> T | None:
        try:
            return read(await self._reach.ask(pod, question))
        except (ProbeError, ValueError):
            return None

    def _observation(self, key: Key, owner: Json, scan: Scan) -> Observation:
        pods = self._view.pods(key)
        engines = of_component(pods, "engine")
        known = zip(_uids(engines), map(self._sglang.known_kernels, engines), strict=True)
        return Observation(
            service=owner,
            engines=engines,
            probes={uid: Probe(kernels=kernels) for uid, kernels in known},
            routers=of_component(pods, "router"),
            listings={uid: page.healthy if page else None for uid, page in scan.routers.items()},
        )


def _count(key: Key, decision: Decision, written: bool) -> None:
    """Tells Prometheus; what takes longer to work out only as often as the status."""
    tell = partial(telemetry.tell_of_service, namespace=key.namespace, service=key.name)
    tell(telemetry.REPLICAS_WANTED, value=decision.replicas)
    tell(telemetry.REPLICAS_REQUIRED, value=required(decision))
    telemetry.DECISIONS.labels(decision.reason).inc()
    found = decision.findings
    if written and found.goals.is_of_times:
        one = Load(1.0, found.load.prompt_tokens, found.load.output_tokens)
        tell(telemetry.REPLICA_CAPACITY, value=bearable(found.goals, found.engine, one, 1))


def _uids(pods: Iterable[Json]) -> list[str]:
    return [pod["metadata"]["uid"] for pod in pods]


def _spec(owner: Json) -> InferenceServiceSpec | None:
    """The spec, None where it cannot be carried out: the planner says why."""
    if not (owner.get("spec") or {}).get("autoscaling"):
        return None
    try:
        return InferenceServiceSpec.model_validate(owner["spec"])
    except ValidationError:
        return None


def _policy(spec: InferenceServiceSpec) -> Policy | None:
    try:
        profile = profile_of(spec.engine)
    except UnsupportedProfile:
        return None
    return policy_of(spec, profile)
