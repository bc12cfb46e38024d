"""A request's body: kept in memory as far as there is room, so that it can be sent twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import StreamReader

from assay_operator.activator.hall import Ticket

MOST = 4 << 20
"""Bytes of one body that are kept. What is longer stays in its connection, and its client waits,
until it is handed on: then it passes through."""


class NoRoom(Exception):
    """All memory for bodies is taken."""


@dataclass(frozen=True)
class Body:
    """What was read, and what there is to come; None where it is whole."""

    first: bytes
    rest: StreamReader | None = None

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """What is sent; to be asked for anew each time."""
        return self._stream(self.rest) if self.rest else self.first or None

    async def _stream(self, rest: StreamReader) -> AsyncIterator[bytes]:
        if self.first:
            yield self.first
        async for chunk in rest.iter_any():
            yield chunk


async def read(content: StreamReader, ticket: Ticket) -> Body:
    """A body as it comes in, however slowly, up to `MOST`.

    Raises:
        NoRoom: there is no memory for it.
    """
    parts: list[bytes] = []
    size = 0
    while size < MOST:
        chunk = await content.readany()
        if not chunk:
            return Body(b"".join(parts))
        if not ticket.keep(len(chunk)):
            raise NoRoom
        parts.append(chunk)
        size += len(chunk)
    return Body(b"".join(parts), content)
