"""The activator's process: two ports, and an end that drops nobody who can still be served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from assay_operator.activator.proxy import Proxy
from assay_operator.activator.settings import Settings

LONGEST_LOOK = 120.0
REFUSING_SECONDS = 5.0
"""So long before the end those that wait are told to ask again."""

_LONGEST_LINE = 64 << 10

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def proxying(settings: Settings) -> AsyncIterator[Proxy]:
    """A proxy with its connections."""
    # Routers come and go, and each new connection goes to one that is there.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector,
        # One client's cookies are nothing to another, and bytes pass through as they are.
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        yield Proxy(settings, session)


def front(proxy: Proxy, finish_seconds: float) -> web.ServerRunner:
    """What clients reach. At its end answers under way have `finish_seconds`."""
    server = web.Server(
        proxy.handle,
        # A client that goes takes its request along.
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        # As long as a router takes them; aiohttp's own bound is 8 KB.
        max_line_size=_LONGEST_LINE,
        max_field_size=_LONGEST_LINE,
    )
    # By itself aiohttp cancels what still runs after twice its default of a minute.
    return web.ServerRunner(server, access_log=None, shutdown_timeout=finish_seconds)


def back(proxy: Proxy, leaving: asyncio.Event) -> web.AppRunner:
    """What kubelet, operator and Prometheus reach: /healthz, /readyz, /status and /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if leaving.is_set():
            return web.Response(status=503, text="this process ends\n")
        return web.Response(text="ok\n")

    async def status(request: web.Request) -> web.Response:
        """With ?until=held&seconds=N it is answered when a request waits, or after N seconds."""
        if request.query.get("until") == "held":
            try:
                seconds = min(float(request.query.get("seconds", "0")), LONGEST_LOOK)
            except ValueError:
                raise web.HTTPBadRequest(text="seconds is no number\n") from None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await proxy.hall.somebody()
        return web.json_response(proxy.figures.status())

    async def metrics(_: web.Request) -> web.Response:
        text = generate_latest(proxy.figures.registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    for path, handler in (
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/status", status),
        ("/metrics", metrics),
    ):
        app.router.add_get(path, handler)
    return web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)


async def run(settings: Settings, port: int, status_port: int) -> None:
    """Works until SIGTERM or SIGINT.

    Raises:
        OSError: a port is taken.
    """
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, leaving.set)
    async with proxying(settings) as proxy:
        clients, watchers = front(proxy, settings.finish_seconds), back(proxy, leaving)
        for runner, number in ((clients, port), (watchers, status_port)):
            await runner.setup()
            await web.TCPSite(runner, None, number).start()
        log.info("holds requests for %s at port %d", settings.upstream, port)
        await leaving.wait()
        log.info("ends, with %d requests that wait", proxy.hall.held)
        await leave(proxy, clients, settings.finish_seconds)
        await watchers.cleanup()


async def leave(proxy: Proxy, clients: web.ServerRunner, seconds: float) -> None:
    """Takes no new connection, and lets what is under way come to its end within `seconds`.

    Shortly before that, who still waits for a replica is told to ask again.
    """
    loop = asyncio.get_running_loop()
    turn_back = loop.call_later(max(0.0, seconds - REFUSING_SECONDS), proxy.door.give_up)
    try:
        async with asyncio.timeout(seconds):
            await clients.cleanup()
    except TimeoutError:
        log.warning("answers that were under way are cut off")
    finally:
        turn_back.cancel()
