"""Takes requests, has them wait for a replica, and hands them on to the routers."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

from assay_operator.activator import body as bodies
from assay_operator.activator import messages
from assay_operator.activator.body import Body
from assay_operator.activator.door import Door, GivenUp
from assay_operator.activator.figures import Figures
from assay_operator.activator.hall import Hall, Ticket
from assay_operator.activator.messages import Answer
from assay_operator.activator.settings import Settings

CONNECT_SECONDS = 2.0
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
_LOOK_TIMEOUT = aiohttp.ClientTimeout(total=2.0, sock_connect=1.0)
_VIA = ("Via", "1.1 assay-activator")

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request is not handed on; `answer` is what its client gets."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class _BrokenOff(Exception):
    """A router broke off an answer."""


@dataclass
class Passage:
    """One request's way to a replica.

    Attributes:
        request: as it came.
        ticket: its place.
        ends: when it is refused, by the event loop's clock.
        waited: whether there was no replica at first.
        doubted: whether a router with workers gave it an answer that one without would give, too.
    """

    request: web.BaseRequest
    ticket: Ticket
    ends: float
    waited: bool = False
    doubted: bool = False


class Proxy:
    """Between clients and routers.

    Args:
        settings: see there.
        session: for requests to the routers; it decompresses nothing and keeps no connection.
    """

    def __init__(self, settings: Settings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._since = int(time.time())
        self.hall = Hall(settings.requests, settings.size)
        self.figures = Figures(self.hall)
        self.door = Door(self._look, self.figures.woken)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request. Its task is cancelled when its client goes."""
        try:
            return await self._handle(request)
        except Refused as refused:
            answer = refused.answer
        except Exception:
            log.exception("an error of our own, for %s %s", request.method, request.path)
            answer = messages.error(500, "internal_error", "The activator failed; see its log.")
        self.figures.refused.labels(answer.reason).inc()
        return _response(answer)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.rel_url.raw_path.startswith("/"):
            # Else it would become a part of the upstream's name.
            raise Refused(messages.error(400, "bad_target", "The target must begin with a slash."))
        if messages.is_websocket(request.headers):
            told = "No WebSocket can be held while no replica runs; ask over HTTP."
            raise Refused(messages.error(501, "websocket_not_held", told))
        if request.method != "POST":
            return await self._pass_by(request)
        self.figures.request()
        ticket = self.hall.enter()
        if ticket is None:
            raise self._later("too_many_waiting", "Too many requests wait for a replica.")
        with ticket:
            ends = asyncio.get_running_loop().time() + self._settings.hold_seconds
            return await self._hold(Passage(request, ticket, ends))

    async def _pass_by(self, request: web.BaseRequest) -> web.StreamResponse:
        """What merely asks about the server, or for what it has, wakes nobody."""
        method, path = request.method, request.rel_url.raw_path
        if well := messages.health(method, path):
            return _response(well)
        if await self.door.is_open():
            await _go_on(request)
            body = Body(b"", request.content if request.body_exists else None)
            if answer := await self._hand_on(request, body, None):
                return answer
        if models := messages.models(method, path, self._settings.model, self._since):
            return _response(models)
        told = "No replica runs. A POST to the API starts one; this request does not."
        raise Refused(messages.error(503, "no_replica", told, again=self._again()))

    async def _hold(self, passage: Passage) -> web.StreamResponse:
        """Waits for a replica, as often as it takes, and hands the request on."""
        ticket = passage.ticket
        try:
            body = await self._read(passage)
            while True:
                await self._wait(passage)
                ticket.go()
                if answer := await self._hand_on(passage.request, body, passage):
                    return answer
                self.door.shut()
                if not ticket.wait():
                    raise self._later("too_many_waiting", "Too many requests wait for a replica.")
        except asyncio.CancelledError:
            self.figures.gone.inc()
            raise

    async def _read(self, passage: Passage) -> Body:
        try:
            async with asyncio.timeout_at(passage.ends):
                await _go_on(passage.request)
                return await bodies.read(passage.request.content, passage.ticket)
        except bodies.NoRoom:
            raise self._later("no_memory", "The requests that wait take all memory.") from None
        except TimeoutError:
            told = "The request's body did not come in time."
            raise Refused(messages.error(408, "body_too_slow", told)) from None

    async def _wait(self, passage: Passage) -> None:
        try:
            async with asyncio.timeout_at(passage.ends):
                failures = await self.door.wait()
        except TimeoutError:
            told = f"No replica was there within {self._settings.hold_seconds:g} s."
            raise self._later("no_replica_in_time", told) from None
        except GivenUp:
            raise self._later("leaving", "This process ends; ask again.") from None
        if failures:
            passage.waited, passage.doubted = True, False

    async def _hand_on(
        self, request: web.BaseRequest, body: Body, held: Passage | None
    ) -> web.StreamResponse | None:
        """The routers' answer; None where none of their workers got the request."""
        try:
            upstream = await self._session.request(
                request.method,
                URL(self._settings.upstream + request.rel_url.raw_path_qs, encoded=True),
                headers=[*self._headers(request, body), _VIA],
                data=body.content(),
                allow_redirects=False,
                timeout=_NO_TIMEOUT,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return None
        except (aiohttp.ClientError, OSError) as error:
            # It may have been carried out, and not everything may be done twice.
            self.figures.broken.inc()
            told = f"The router broke off before it answered: {error or type(error).__name__}"
            raise Refused(messages.error(502, "router_failed", told)) from error
        async with upstream:
            code = upstream.headers.get(messages.ERROR_CODE)
            doubted = held is None or held.doubted
            if not body.rest and messages.lacks_workers(code, doubted=doubted):
                if held:
                    held.doubted = True
                return None
            if held:
                held.ticket.drop()
            self.figures.forwarded.inc()
            return await self._relay(request, upstream, held)

    async def _relay(
        self, request: web.BaseRequest, upstream: aiohttp.ClientResponse, held: Passage | None
    ) -> web.StreamResponse:
        """Passes an answer on as it comes."""
        answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
        for name, value in messages.end_to_end(upstream.headers.items()):
            answer.headers.add(name, value)
        answer.headers.add(*_VIA)
        if held and held.waited:
            waited = 1000 * (time.monotonic() - held.ticket.since)
            answer.headers.add("Server-Timing", f"held;dur={waited:.0f}")
        answer.force_close()
        try:
            await answer.prepare(request)
            while chunk := await _read(upstream):
                await answer.write(chunk)
        except _BrokenOff:
            # Cut off as well: else the client would take what it has for the whole.
            self.figures.broken.inc()
            if request.transport:
                request.transport.abort()
        except ConnectionError:
            self.figures.gone.inc()
        return answer

    def _headers(self, request: web.BaseRequest, body: Body) -> list[tuple[str, str]]:
        # The length of what is sent is known only where it passes through; the rest aiohttp counts.
        mine = ("host", "expect") if body.rest else ("host", "expect", "content-length")
        return messages.end_to_end(request.headers.items(), without=mine)

    async def _look(self) -> bool:
        """Whether a router has a worker that is well."""
        try:
            url = f"{self._settings.upstream}/readiness"
            async with self._session.get(url, timeout=_LOOK_TIMEOUT) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _later(self, code: str, message: str) -> Refused:
        return Refused(messages.error(503, code, message, again=self._again()))

    def _again(self) -> int:
        start = self.figures.last_wake or self._settings.start_seconds
        return messages.again_after(start, self.hall.oldest)


async def _go_on(request: web.BaseRequest) -> None:
    """Has a client send its body that waits for a word before it does."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # That was not the answer yet.
        request.writer.output_size = 0


async def _read(upstream: aiohttp.ClientResponse) -> bytes:
    """More of an answer; nothing at its end.

    Raises:
        _BrokenOff: it ended before its end.
    """
    try:
        return await upstream.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise _BrokenOff from error


def _response(answer: Answer) -> web.Response:
    made = web.Response(status=answer.status, body=answer.body.encode(), headers=answer.headers)
    # The next connection goes where the Service points by then.
    made.force_close()
    return made
