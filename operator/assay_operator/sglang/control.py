"""Has engines load weights, pause and go on, and asks what they are at.

A load takes from a fraction of a second to minutes, so it goes on beside the passes. What is known
of it lives in this process only: after a restart of the operator the engine's own report counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from assay_operator.cluster.view import Key, key_of
from assay_operator.inference.observation import ENGINE_PORT, LoadState, Work
from assay_operator.plan import Json, Load
from assay_operator.sglang.client import MODEL_INFO, SOON_SECONDS, restarts
from assay_operator.sglang.reach import ProbeError, Question, Reach

LOAD_SECONDS = 1800.0
PAUSE_SECONDS = 30.0
_UPDATE = Question(ENGINE_PORT, "/update_weights_from_disk", LOAD_SECONDS)
# Requests under way go back to the queue and lose nothing but their cache, which new weights would
# make useless anyway; the mode `abort`, the default, would end them.
_PAUSE = Question(ENGINE_PORT, "/pause_generation", PAUSE_SECONDS, {"mode": "retract"})
_RESUME = Question(ENGINE_PORT, "/continue_generation", PAUSE_SECONDS, {})
_LOADS = Question(ENGINE_PORT, "/v1/loads", SOON_SECONDS)
_COUNTS = ("num_running_reqs", "num_waiting_reqs")
_READY = Question(ENGINE_PORT, "/ready", SOON_SECONDS)
_HEALTH = Question(ENGINE_PORT, "/health", SOON_SECONDS)

log = logging.getLogger(__name__)


@dataclass
class _Loading:
    """A load of one engine.

    Attributes:
        start: restarts of its container: what an engine had before it was started anew is lost.
        state: how it stands.
        task: carries it out.
    """

    start: int
    state: LoadState
    task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self.task:
            self.task.cancel()


class Control:
    """What can be done with engines.

    Args:
        reach: the way to them.
        wake: told whose engine it was when a load has ended.
    """

    def __init__(self, reach: Reach, wake: Callable[[Key], None] = lambda _: None) -> None:
        self._reach = reach
        self._loading: dict[str, _Loading] = {}
        self.wake = wake

    def load(self, pod: Json, action: Load) -> None:
        """Begins to load weights.

        Nothing happens while the same engine loads any, nor for an order that was carried out.
        Two loads at once would be one after the other in the engine, in an order that nobody
        knows; the planner sees how this one ends and decides anew.
        """
        uid = pod["metadata"]["uid"]
        before = self._current(pod)
        if before and (before.state.state == "running" or _is_of(before.state, action)):
            return
        made = _Loading(restarts(pod), LoadState(action.version, "running", token=action.token))
        self._loading[uid] = made
        made.task = asyncio.create_task(self._load(pod, action, made), name=f"load {uid}")

    def loads(self, pods: Iterable[Json]) -> dict[str, LoadState]:
        """How the last load of each engine stands, by the uid of its pod."""
        found = ((pod["metadata"]["uid"], self._current(pod)) for pod in pods)
        return {uid: loading.state for uid, loading in found if loading}

    async def pause(self, pod: Json) -> None:
        """Has an engine hold its requests; whether it does, `works` tells."""
        await self._order(pod, _PAUSE)

    async def resume(self, pod: Json) -> None:
        """Has an engine go on with them."""
        await self._order(pod, _RESUME)

    async def works(self, pods: Iterable[Json]) -> dict[str, Work]:
        """What each engine is at, by the uid of its pod; all are asked at once."""
        asked = list(pods)
        answers = await asyncio.gather(*map(self.work, asked))
        return {pod["metadata"]["uid"]: work for pod, work in zip(asked, answers, strict=True)}

    async def work(self, pod: Json) -> Work:
        """What one engine is at."""
        requests, paused = await asyncio.gather(self._requests(pod), self._paused(pod))
        return Work(requests, paused)

    def forget(self, pod_uid: str) -> None:
        """A pod is gone."""
        if loading := self._loading.pop(pod_uid, None):
            loading.end()

    def close(self) -> None:
        """Waits for no load any more; engines go on with theirs."""
        for uid in list(self._loading):
            self.forget(uid)

    def _current(self, pod: Json) -> _Loading | None:
        """What is known of the engine as it runs now."""
        uid = pod["metadata"]["uid"]
        loading = self._loading.get(uid)
        if loading and loading.start != restarts(pod):
            self.forget(uid)
            return None
        return loading

    async def _load(self, pod: Json, action: Load, loading: _Loading) -> None:
        try:
            await self._loaded(pod, action)
            loading.state = replace(loading.state, state="done")
        except ProbeError as error:
            loading.state = replace(loading.state, state="failed", message=str(error))
        except Exception as error:
            # Else it would count as running for ever.
            log.exception("a load ended in an error of our own")
            message = f"{type(error).__name__}: {error}"
            loading.state = replace(loading.state, state="failed", message=message)
        key = key_of(pod)
        if key is not None:
            self.wake(key)

    async def _loaded(self, pod: Json, action: Load) -> None:
        """Loads, and asks the engine what it has then.

        Raises:
            ProbeError: it has not what was asked for, or nobody knows.
        """
        body = {
            "model_path": action.path,
            "weight_version": action.version,
            "flush_cache": action.flush,
            "abort_all_requests": action.abort,
        }
        question = Question(_UPDATE.port, _UPDATE.path, _UPDATE.seconds, body)
        done = await self._reach.ask(pod, question)
        if not isinstance(done, dict) or done.get("success") is not True:
            raise ProbeError(f"{_UPDATE.path} did not succeed: {json.dumps(done)[:200]}")
        info = await self._reach.ask(pod, MODEL_INFO)
        has = _text(info, "weight_version"), _text(info, "model_path")
        if has != (action.version, action.path):
            raise ProbeError(
                f"the engine took {action.version} from {action.path} and then reported {has[0]} "
                f"from {has[1]}"
            )

    async def _order(self, pod: Json, question: Question) -> None:
        try:
            await self._reach.ask(pod, question)
        except ProbeError as error:
            log.warning("pod %s did not obey: %s", pod["metadata"]["name"], error)

    async def _requests(self, pod: Json) -> int | None:
        """Requests that the engine has, over all its ranks."""
        try:
            ranks = (await self._reach.ask(pod, _LOADS))["loads"]
            return sum(int(rank[name]) for rank in ranks for name in _COUNTS)
        except (ProbeError, KeyError, TypeError, ValueError):
            return None

    async def _paused(self, pod: Json) -> bool | None:
        """A paused engine is alive and not ready; one that is not well is neither."""
        try:
            await self._reach.ask(pod, _READY)
            return False
        except ProbeError as error:
            if error.status != 503:
                return None
        try:
            await self._reach.ask(pod, _HEALTH)
            return True
        except ProbeError:
            return None


def _is_of(state: LoadState, order: Load) -> bool:
    return bool(order.token) and state.token == order.token


def _text(data: Any, name: str) -> str | None:
    value = data.get(name) if isinstance(data, dict) else None
    return value if isinstance(value, str) else None
