"""An activator on loopback, with a router behind it that speaks as smg does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from assay_operator.activator.proxy import Proxy
from assay_operator.activator.server import back, front, leave, proxying
from assay_operator.activator.settings import Settings

MODEL = "solver"
CHAT = "/v1/chat/completions"
SOON = 30.0
"""Seconds after which a test that waits for something has failed."""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """A request as a router got it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


def says(status: int, code: str) -> web.Response:
    """An error of smg's own."""
    told = {"error": {"type": "server_error", "code": code, "message": code, "param": None}}
    return web.json_response(told, status=status, headers={"x-smg-error-code": code})


@dataclass
class Router:
    """smg, as far as it can be told from outside.

    Attributes:
        workers: whether it has a worker that is well.
        answer: what answers a request that a worker gets.
        looks: how often it was asked whether it has one.
        seen: the other requests, also those that no worker got.
        gone: how many requests were given up by whoever asked.
        port: where it listens; the same after it was away.
    """

    workers: bool = False
    answer: Handler | None = None
    looks: int = 0
    seen: list[Seen] = field(default_factory=list)
    gone: int = 0
    port: int = 0
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            auto_decompress=False,
            max_field_size=1 << 16,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/readiness":
            self.looks += 1
            return web.Response(status=200 if self.workers else 503)
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            self.gone += 1
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        workers, answer = self.workers, self.answer
        if workers and answer:
            return await answer(request)
        body = await request.read()
        headers = list(request.headers.items())
        self.seen.append(Seen(request.method, str(request.rel_url), headers, body))
        if not workers:
            return says(404, "model_not_found")
        return web.json_response({"said": body.decode(errors="replace")})


@dataclass
class World:
    """An activator, its router, and a client."""

    router: Router
    proxy: Proxy
    clients: web.ServerRunner
    url: str
    status_url: str
    session: aiohttp.ClientSession
    leaving: asyncio.Event

    def post(self, body: Any = None, path: str = CHAT, **more: Any) -> asyncio.Task[Reply]:
        """A request under way."""
        sent = json.dumps({"model": MODEL} if body is None else body).encode()
        return asyncio.create_task(self.ask("POST", path, data=more.pop("data", sent), **more))

    async def ask(self, method: str, path: str, **more: Any) -> Reply:
        async with self.session.request(method, self.url + path, **more) as answer:
            return Reply(answer.status, dict(answer.headers), await answer.read())

    async def status(self, query: str = "") -> Any:
        async with self.session.get(f"{self.status_url}/status{query}") as answer:
            return await answer.json()

    async def metrics(self) -> str:
        async with self.session.get(f"{self.status_url}/metrics") as answer:
            return await answer.text()

    async def held(self, count: int) -> None:
        """Until so many requests wait."""
        await until(lambda: self.proxy.hall.held == count)

    async def leave(self, seconds: float) -> None:
        """As at SIGTERM."""
        self.leaving.set()
        await leave(self.proxy, self.clients, seconds)


@dataclass
class Reply:
    """An answer that is over."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


async def until(holds: Callable[[], bool]) -> None:
    """Until something is so.

    Raises:
        TimeoutError: it never was.
    """
    async with asyncio.timeout(SOON):
        while not holds():  # noqa: ASYNC110 (what is waited for knows nothing of the tests)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(workers: bool = False, **settings: Any) -> AsyncIterator[World]:
    """An activator on loopback for the time of an `async with` block.

    Args:
        workers: whether its router has one at first.
        settings: of the activator, beside upstream and model.
    """
    router = Router(workers)
    await router.start()
    made = Settings(f"http://127.0.0.1:{router.port}", MODEL, **settings)
    leaving = asyncio.Event()
    async with proxying(made) as proxy, aiohttp.ClientSession() as session:
        runners = front(proxy, made.finish_seconds), back(proxy, leaving)
        urls = []
        for runner in runners:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield World(router, proxy, runners[0], urls[0], urls[1], session, leaving)
        proxy.door.give_up()
        for runner in runners:
            await runner.cleanup()
        await router.stop()
