"""The operator's own HTTP endpoints: liveness, readiness, metrics."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from assay_operator.cluster.lease import ECHO_SECONDS, Heartbeat

Reasons = Callable[[], list[str]]
"""What is wrong, a sentence each; empty where all is well."""


def sick(heartbeat: Heartbeat, dead_watches: dict[str, str]) -> list[str]:
    """Why this process should be started again.

    Only a new start mends a watch that died while its process lives. An API server that does not
    answer is no reason: a new start would not bring it back.
    """
    reasons = []
    silence = heartbeat.silence()
    if silence > ECHO_SECONDS:
        reasons.append(
            f"the watch of our Lease is dead: renewals succeeded for {silence:.0f} s "
            "and none of them arrived through it"
        )
    reasons += [
        f"the watch of {kind} is dead: it never told of {what}"
        for kind, what in dead_watches.items()
    ]
    return reasons


def application(
    alive: Reasons,
    ready: Reasons,
    refresh: Callable[[], None],
    more: Iterable[web.RouteDef] = (),
) -> web.Application:
    """The endpoints /healthz, /readyz and /metrics.

    Args:
        alive: reasons against liveness.
        ready: reasons against readiness.
        refresh: brings gauges up to date before they are read.
        more: further endpoints.
    """

    async def healthz(_: web.Request) -> web.Response:
        return _verdict(alive())

    async def readyz(_: web.Request) -> web.Response:
        return _verdict(ready())

    async def metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    made = web.Application()
    made.router.add_get("/healthz", healthz)
    made.router.add_get("/readyz", readyz)
    made.router.add_get("/metrics", metrics)
    made.router.add_routes(more)
    return made


async def serve(
    made: web.Application, port: int, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Listens on `port` of all addresses; `cleanup` of what is returned ends it.

    Raises:
        OSError: the port is taken.
    """
    runner = web.AppRunner(made, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, None, port, shutdown_timeout=1.0, ssl_context=tls)
    await site.start()
    return runner


def _verdict(reasons: list[str]) -> web.Response:
    if reasons:
        return web.Response(status=503, text="\n".join(reasons) + "\n")
    return web.Response(text="ok\n")
