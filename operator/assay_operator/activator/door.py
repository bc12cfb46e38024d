"""Whether a replica is routable. Looked at only while somebody wants to know."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

INTERVAL = 0.25
FRESH_SECONDS = 1.0
"""For so long a look that found a replica counts. What has changed since shows when it is used."""


class GivenUp(Exception):
    """Nobody is let through any more: the process ends."""


class Door:
    """Open while a replica is routable.

    Args:
        look: asks once whether one is.
        opened: told when it was found open after it had been found shut, before anybody goes.
    """

    def __init__(self, look: Callable[[], Awaitable[bool]], opened: Callable[[], None]) -> None:
        self._look = look
        self._opened = opened
        self._open_until = self._not_before = -math.inf
        self._passage: asyncio.Future[int] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._waiting = 0
        self._ends = False

    async def is_open(self) -> bool:
        """Whether a replica is routable, by one look at most."""
        if time.monotonic() >= self._open_until and await self._look():
            self._open_until = time.monotonic() + FRESH_SECONDS
        return time.monotonic() < self._open_until

    async def wait(self) -> int:
        """Returns once a replica is routable: how many looks found none before.

        Raises:
            GivenUp: nobody is let through any more.
        """
        if self._ends:
            raise GivenUp
        if time.monotonic() < self._open_until:
            return 0
        if self._passage is None:
            self._passage = asyncio.get_running_loop().create_future()
            self._looking = asyncio.create_task(self._look_on(self._passage))
        self._waiting += 1
        try:
            return await asyncio.shield(self._passage)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._rest()

    def shut(self) -> None:
        """It was found shut by somebody who went through: the next look comes after a moment."""
        self._open_until = -math.inf
        self._not_before = time.monotonic() + INTERVAL

    def give_up(self) -> None:
        """Lets nobody through any more, and has who waits turn back."""
        self._ends = True
        if self._passage and not self._passage.done():
            self._passage.set_exception(GivenUp())

    async def _look_on(self, passage: asyncio.Future[int]) -> None:
        await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
        failures = 0
        while not await self._look():
            failures += 1
            await asyncio.sleep(INTERVAL)
        self._open_until = time.monotonic() + FRESH_SECONDS
        if failures:
            self._opened()
        if not passage.done():
            passage.set_result(failures)
        self._passage = self._looking = None

    def _rest(self) -> None:
        """Nobody wants to know any more."""
        if self._looking:
            self._looking.cancel()
        self._passage = self._looking = None
