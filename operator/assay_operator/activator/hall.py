"""Who waits for a replica, and how much memory their bodies take: both within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Hall:
    """The requests that wait.

    Args:
        requests: that may wait at once.
        size: bytes of bodies that may be kept at once, of those that wait and those that are being
            handed on.
        clock: monotonic seconds.
    """

    def __init__(
        self, requests: int, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = requests
        self._size = size
        self._clock = clock
        self._waiting: dict[Ticket, float] = {}
        self._somebody = asyncio.Event()
        self.size = 0
        """Bytes that are kept."""

    @property
    def held(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def oldest(self) -> float:
        """Seconds that the one has waited that waits longest; 0 where none waits."""
        if not self._waiting:
            return 0.0
        return self._clock() - min(self._waiting.values())

    def enter(self) -> Ticket | None:
        """A place to wait in; None where all are taken. It is given back at the end of a `with`."""
        ticket = Ticket(self, self._clock())
        return ticket if ticket.wait() else None

    async def somebody(self) -> None:
        """Returns when a request waits."""
        await self._somebody.wait()

    def seat(self, ticket: Ticket) -> bool:
        """Lets a request wait, unless there are too many."""
        if ticket not in self._waiting and self.held >= self._requests:
            return False
        self._waiting[ticket] = ticket.since
        self._somebody.set()
        return True

    def unseat(self, ticket: Ticket) -> None:
        """It waits no more."""
        self._waiting.pop(ticket, None)
        if not self._waiting:
            self._somebody.clear()

    def keep(self, size: int) -> bool:
        """Takes so many more bytes, unless that were too many."""
        if self.size + size > self._size:
            return False
        self.size += size
        return True


class Ticket:
    """One request's place. It waits from the beginning; `since` is when it came."""

    def __init__(self, hall: Hall, since: float) -> None:
        self._hall = hall
        self._size = 0
        self.since = since

    def keep(self, size: int) -> bool:
        """Takes so many more bytes for its body; False where there is no room for them."""
        taken = self._hall.keep(size)
        if taken:
            self._size += size
        return taken

    def wait(self) -> bool:
        """It waits (again); False where too many do."""
        return self._hall.seat(self)

    def go(self) -> None:
        """It is handed on; its body is still kept, for it may come back."""
        self._hall.unseat(self)

    def drop(self) -> None:
        """Its body is needed no more."""
        self._hall.size -= self._size
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go()
        self.drop()
