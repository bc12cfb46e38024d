"""Asks activators what waits at them, and hears at once when something does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from assay_operator.cluster.view import Key, key_of
from assay_operator.inference.observation import ACTIVATOR_STATUS_PORT
from assay_operator.plan import Json
from assay_operator.sglang.client import SOON_SECONDS
from assay_operator.sglang.reach import ProbeError, Question, Reach

ATTEND_SECONDS = 90
RETRY_SECONDS = 5.0
"""After this an activator that did not answer is asked again."""
STATUS = Question(ACTIVATOR_STATUS_PORT, "/status", SOON_SECONDS)
# The activator answers when a request waits, or else when the time is over.
_ATTEND = Question(
    ACTIVATOR_STATUS_PORT, f"/status?until=held&seconds={ATTEND_SECONDS}", ATTEND_SECONDS + 10.0
)
_FIELDS = frozenset({"held", "requests", "lastWakeSeconds"})


class Activators:
    """What activators say.

    Args:
        reach: the way to them.
        wake: told whose activator it is when a request waits at one that is attended.
    """

    def __init__(self, reach: Reach, wake: Callable[[Key], None] = lambda _: None) -> None:
        self._reach = reach
        self._attended: dict[str, asyncio.Task[None]] = {}
        self.wake = wake

    async def ask(self, pods: Iterable[Json]) -> tuple[Json | None, ...]:
        """What each says now: how many requests it has `held`, how many `requests` came to it since
        it began, and `lastWakeSeconds`; None where it does not answer."""
        return tuple(await asyncio.gather(*(self._ask(pod, STATUS) for pod in pods)))

    def attend(self, pods: Iterable[Json]) -> None:
        """Wakes the service's actor once as soon as a request waits at one of these; one that is
        attended already is not asked twice."""
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if uid not in self._attended:
                task = asyncio.create_task(self._attend(pod, uid), name=f"attend {uid}")
                self._attended[uid] = task

    def forget(self, pod_uid: str) -> None:
        """A pod is gone."""
        if task := self._attended.pop(pod_uid, None):
            task.cancel()

    def close(self) -> None:
        """Attends none any more."""
        for uid in list(self._attended):
            self.forget(uid)

    async def _attend(self, pod: Json, uid: str) -> None:
        while True:
            answer = await self._ask(pod, _ATTEND)
            if answer is None:
                await asyncio.sleep(RETRY_SECONDS)
            elif answer["held"]:
                break
        del self._attended[uid]
        if key := key_of(pod):
            self.wake(key)

    async def _ask(self, pod: Json, question: Question) -> Json | None:
        try:
            answer = await self._reach.ask(pod, question)
        except ProbeError:
            return None
        return answer if isinstance(answer, dict) and answer.keys() >= _FIELDS else None
