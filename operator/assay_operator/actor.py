"""One task for each custom resource: pass, wait for a wake-up or the next look, pass again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from assay_operator import telemetry
from assay_operator.cluster.client import ApiError, jittered
from assay_operator.cluster.view import Key

SLOTS = 16
"""Passes that work at once: each has about four requests under way, over 64 connections."""
FIRST_BACKOFF = 1.0
LAST_BACKOFF = 60.0
SHORTEST_DEBOUNCE = 0.02
LONGEST_DEBOUNCE = 1.0

log = logging.getLogger(__name__)


class Pass(Protocol):
    """One pass over one object, as the actors drive it."""

    async def __call__(self, key: Key) -> float | None:
        """Returns seconds until the next look, or None once the object is gone."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row, before jitter."""
    return float(min(LAST_BACKOFF, FIRST_BACKOFF * 2 ** min(failures - 1, 10)))


def debounce(seconds_of_last_pass: float) -> float:
    """How long to gather further wake-ups: dear passes are not repeated for every pod."""
    return min(LONGEST_DEBOUNCE, max(SHORTEST_DEBOUNCE, seconds_of_last_pass))


class Slots:
    """Bounds how many passes work at once, and counts those that wait for it."""

    def __init__(self, count: int = SLOTS) -> None:
        self._free = asyncio.Semaphore(count)

    async def __aenter__(self) -> None:
        with telemetry.QUEUE.track_inprogress():
            await self._free.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class Actors:
    """All actors of this process. They exist between `start` and `stop`: on the leader only.

    Args:
        one_pass: looks at one object and does what is due.
        failed: told of the exception of a pass; may say so in the object's status.
    """

    def __init__(self, one_pass: Pass, failed: Callable[[Key, Exception], Awaitable[None]]) -> None:
        self._pass = one_pass
        self._failed = failed
        self._running = False
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._bells: dict[Key, asyncio.Event] = {}

    def start(self, keys: Iterable[Key]) -> None:
        """Begins with an actor for each of `keys`."""
        self._running = True
        for key in keys:
            self.wake(key)

    def wake(self, key: Key) -> None:
        """Something changed for `key`: its actor looks, and is made if there is none."""
        if not self._running:
            return
        if key in self._bells:
            self._bells[key].set()
            return
        self._bells[key] = asyncio.Event()
        self._tasks[key] = asyncio.create_task(self._live(key), name=f"actor {key}")
        telemetry.ACTORS.set(len(self._tasks))

    async def stop(self) -> None:
        """Ends all actors; once this returns, none of them writes any more."""
        self._running = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)

    async def _live(self, key: Key) -> None:
        bell, failures = self._bells[key], 0
        try:
            while True:
                bell.clear()
                started = time.monotonic()
                try:
                    wait = await self._pass(key)
                    failures = 0
                except Exception as error:
                    failures += 1
                    wait = backoff(failures)
                    await self._complain(key, error, wait)
                took = time.monotonic() - started
                telemetry.RECONCILE_SECONDS.labels(key.kind).observe(took)
                # A wake-up during the last pass means an object that was made anew meanwhile.
                if wait is None and not bell.is_set():
                    return
                await self._wait(bell, wait or 0.0, failures)
                await asyncio.sleep(debounce(took))
        finally:
            self._bells.pop(key, None)
            self._tasks.pop(key, None)
            telemetry.ACTORS.set(len(self._tasks))

    @staticmethod
    async def _wait(bell: asyncio.Event, seconds: float, failures: int) -> None:
        """Until the bell rings or the time is over; after a failure it is not heard at once."""
        deaf = min(seconds, FIRST_BACKOFF) if failures else 0.0
        await asyncio.sleep(jittered(deaf))
        # Not wait_for: before Python 3.12 it loses a cancellation that comes with the bell, and an
        # actor that misses its end keeps the process from ending.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(jittered(seconds - deaf)):
                await bell.wait()

    async def _complain(self, key: Key, error: Exception, wait: float) -> None:
        reason = error.reason if isinstance(error, ApiError) else type(error).__name__
        telemetry.RECONCILE_ERRORS.labels(key.kind, reason).inc()
        expected = isinstance(error, ApiError)
        log.log(
            logging.WARNING if expected else logging.ERROR,
            "the pass failed and is repeated in about %.0f s: %s",
            wait,
            error,
            exc_info=None if expected else error,
            extra={"object": str(key), "reason": reason},
        )
        try:
            await self._failed(key, error)
        except Exception as again:
            log.warning("the failure could not be told: %s", again, extra={"object": str(key)})
