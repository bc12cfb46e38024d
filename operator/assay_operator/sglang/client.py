"""Asks engines and routers over HTTP. Nothing here raises: an error is an answer, too."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from assay_operator.inference.kernels import (
    KERNELS_PATH,
    Kernels,
    asks_for_fused,
    not_there,
    read_kernels,
)
from assay_operator.inference.observation import ENGINE_PORT, METRICS_PORT, Probe
from assay_operator.plan import Json
from assay_operator.sglang.reach import ProbeError, Question, Reach

SOON_SECONDS = 2.0
"""For what even an engine that is busy or unwell answers at once, if it answers at all."""
GENERATE_SECONDS = 10.0
LIVING_SECONDS = 30.0
"""Longer than the 20 s after which SGLang itself gives an answer up."""
LIVING_INTERVAL = 20.0
INACTIVE_INTERVAL = 20.0
"""How often an engine without its fused kernels is asked again: what it says of one start changes
at most while its processes come up."""
HANGING_AFTER = 2
"""Looks in a row without a token until an engine counts as hanging: one may be a long prefill."""


MODEL_INFO = Question(ENGINE_PORT, "/model_info")
_MODEL_INFO_SOON = Question(ENGINE_PORT, "/model_info", SOON_SECONDS)
_GENERATION = Question(
    ENGINE_PORT,
    "/generate",
    GENERATE_SECONDS,
    # Ids that every vocabulary has: one beyond it would end the engine's whole process.
    {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1, "temperature": 0}},
)
# Answers once the scheduler has produced anything, for others or for this question: a busy engine
# passes, one whose scheduler hangs does not, though its /health still answers.
_LIVING = Question(ENGINE_PORT, "/health_generate", LIVING_SECONDS)
# As text: whatever is no answer of the plugin's says that it is not there, and not that the engine
# is silent.
_KERNELS = Question(ENGINE_PORT, KERNELS_PATH, text=True)
# What the router lists is read from its metrics: its /workers is closed to everybody, us included,
# since whoever may ask there may also change the list.
_HEALTH = Question(METRICS_PORT, "/metrics", text=True)
_HEALTH_METRIC = "smg_worker_health"


@dataclass(frozen=True)
class Listing:
    """The workers of one router, by their URLs.

    Attributes:
        healthy: those that it sends requests to.
        known: these, and those that it finds unwell or drains.
    """

    healthy: frozenset[str]
    known: frozenset[str]


@dataclass
class Life:
    """What is known of one engine since it made its first token; a new start is a new life.

    Attributes:
        running: restarts of its container and version of its weights, by which a life is told.
        silent: looks in a row that brought no token.
        looked: when the last look began, in monotonic seconds.
        look: the look that is under way.
    """

    running: tuple[int, str]
    silent: int = 0
    looked: float = -math.inf
    look: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self.look:
            self.look.cancel()


@dataclass(frozen=True)
class Told:
    """What an engine told of its kernels in one start, and when, in monotonic seconds."""

    start: int
    time: float
    kernels: Kernels


class SGLang:
    """Probes engines and lists what routers know.

    A generation that succeeded is remembered, and so is what an engine tells of its kernels: it
    cannot change before the next start.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._lives: dict[str, Life] = {}
        self._told: dict[str, Told] = {}

    async def probes(self, engines: Iterable[Json], busy: Collection[str] = ()) -> dict[str, Probe]:
        """What each engine answers, by the uid of its pod; all are asked at once.

        Args:
            engines: their pods.
            busy: uids of those that cannot generate now, paused or loading: they are asked for
                their version only.
        """
        pods = list(engines)
        answers = await asyncio.gather(
            *(self.probe(pod, pod["metadata"]["uid"] in busy) for pod in pods)
        )
        return {pod["metadata"]["uid"]: probe for pod, probe in zip(pods, answers, strict=True)}

    async def kernels(self, engines: Iterable[Json]) -> dict[str, Kernels]:
        """What those say that were asked for fused kernels and answer, by the uid of the pod."""
        pods = [pod for pod in engines if asks_for_fused(pod)]
        answers = await asyncio.gather(*map(self._kernels_of, pods))
        found = zip(pods, answers, strict=True)
        return {pod["metadata"]["uid"]: kernels for pod, kernels in found if kernels}

    async def listings(self, routers: Iterable[Json]) -> dict[str, Listing | None]:
        """The workers that each router lists, by the uid of its pod."""
        pods = list(routers)
        answers = await asyncio.gather(*map(self.listing, pods))
        return {pod["metadata"]["uid"]: found for pod, found in zip(pods, answers, strict=True)}

    async def probe(self, engine: Json, busy: bool = False) -> Probe:
        """What one engine serves, whether it runs its kernels, and whether it can generate.

        One token is generated once for each start of its container and version of its weights;
        from then on it is only asked whether it still produces any. Kernels are asked for once a
        start, and again as long as they are not active.
        """
        told = self.known_kernels(engine)
        try:
            info = await self._reach.ask(engine, _MODEL_INFO_SOON if busy else MODEL_INFO)
        except ProbeError as error:
            return Probe(error=str(error), kernels=told)
        version = info.get("weight_version") if isinstance(info, dict) else None
        if not isinstance(version, str):
            return Probe(error="/model_info: there is no weight_version in the answer")
        running = (restarts(engine), version)
        life = self._lives.get(engine["metadata"]["uid"])
        known = life if life and life.running == running else None
        if busy:
            return Probe(version, generated=known is not None, kernels=told)
        try:
            told = await self._ask_kernels(engine) if asks_for_fused(engine) else None
        except ProbeError as error:
            # It may well run them: silence is no reason to take it out of service.
            return Probe(error=str(error), kernels=told)
        if told and not told.active:
            return Probe(version, kernels=told)
        made = self._living(engine, known) if known else await self._begin(engine, running)
        return replace(made, kernels=told)

    def known_kernels(self, engine: Json) -> Kernels | None:
        """What an engine told since its last start; nobody is asked."""
        told = self._told.get(engine["metadata"]["uid"])
        return told.kernels if told and told.start == restarts(engine) else None

    async def _kernels_of(self, engine: Json) -> Kernels | None:
        try:
            return await self._ask_kernels(engine)
        except ProbeError:
            return None

    async def _ask_kernels(self, engine: Json) -> Kernels:
        """What an engine says of its kernels, from memory where that cannot have changed.

        Raises:
            ProbeError: it says nothing at all.
        """
        uid, now, known = engine["metadata"]["uid"], time.monotonic(), self.known_kernels(engine)
        if known and (known.active or now - self._told[uid].time < INACTIVE_INTERVAL):
            return known
        try:
            found = read_kernels(await self._reach.ask(engine, _KERNELS))
        except ProbeError as error:
            if not 400 <= error.status < 500:
                raise
            found = not_there(str(error))
        self._told[uid] = Told(restarts(engine), now, found)
        return found

    async def _begin(self, engine: Json, running: tuple[int, str]) -> Probe:
        """Asks for the first token of a life."""
        uid, version = engine["metadata"]["uid"], running[1]
        try:
            answer = await self._reach.ask(engine, _GENERATION)
            if not isinstance(answer, dict) or "meta_info" not in answer:
                return Probe(version, error="/generate: there is no meta_info in the answer")
        except ProbeError as error:
            return Probe(version, error=str(error))
        self._end(uid)
        self._lives[uid] = Life(running)
        return Probe(version, generated=True)

    def _living(self, engine: Json, life: Life) -> Probe:
        """What the last look for life said. The next one goes on beside: it may take long, and
        nobody else's replica shall wait for it."""
        now, version = time.monotonic(), life.running[1]
        if life.look is None and now - life.looked >= LIVING_INTERVAL:
            life.looked = now
            life.look = asyncio.create_task(self._look(engine, life))
        if life.silent >= HANGING_AFTER:
            return Probe(version, error=f"{_LIVING.path}: its scheduler produces no token")
        return Probe(version, generated=True)

    async def _look(self, engine: Json, life: Life) -> None:
        try:
            await self._reach.ask(engine, _LIVING)
            life.silent = 0
        except ProbeError:
            life.silent += 1
        finally:
            life.look = None

    async def listing(self, router: Json) -> Listing | None:
        """The workers of one router, None where it does not answer."""
        try:
            return workers(await self._reach.ask(router, _HEALTH))
        except (ProbeError, ValueError, KeyError):
            return None

    def forget(self, pod_uid: str) -> None:
        """A pod is gone."""
        self._told.pop(pod_uid, None)
        self._end(pod_uid)

    def _end(self, pod_uid: str) -> None:
        """The life that an engine had is over."""
        if life := self._lives.pop(pod_uid, None):
            life.end()


def workers(metrics: str) -> Listing:
    """The workers that a router's metrics page tells of.

    One appears there when the router lists it, and goes when it has been drained.

    Raises:
        ValueError, KeyError: it is not such a page.
    """
    # The page has hundreds of lines that are of no use here, and parsing is not cheap.
    lines = [line for line in metrics.splitlines() if line.startswith(_HEALTH_METRIC + "{")]
    if not lines and "smg_" not in metrics:
        raise ValueError("these are not a router's metrics")
    found = {
        sample.labels["worker"].rstrip("/"): sample.value == 1
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
    }
    return Listing(frozenset(url for url, healthy in found.items() if healthy), frozenset(found))


def restarts(pod: Json) -> int:
    """How often the pod's containers were started again."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return sum(status.get("restartCount", 0) for status in statuses)
