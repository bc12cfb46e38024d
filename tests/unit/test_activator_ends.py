"""Clients that leave, routers that break off, and an activator that ends, each in mid-request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from assay_operator.activator import door, server
from tests.unit.activator_world import CHAT, MODEL, SOON, Router, World, until, world

OPERATOR = Path(__file__).parents[2] / "operator"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for a replica follow each other fast."""
    monkeypatch.setattr(door, "INTERVAL", 0.01)


@pytest.fixture
async def at_zero() -> AsyncIterator[World]:
    async with world() as made:
        yield made


@pytest.fixture
async def awake() -> AsyncIterator[World]:
    async with world(workers=True) as made:
        yield made


class Stream:
    """An answer whose first piece is there; the second comes when it is let go on."""

    def __init__(self, made: World) -> None:
        self.more = asyncio.Event()
        made.router.answer = self.answer

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        made = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await made.prepare(request)
        await made.write(b"data: 1\n\n")
        await self.more.wait()
        await made.write(b"data: 2\n\n")
        return made


# --- clients that leave ---------------------------------------------------------------------


async def test_the_request_of_a_client_that_left_is_not_handed_on(at_zero: World) -> None:
    gone, stays = at_zero.post({"n": 1}), at_zero.post({"n": 2})
    await at_zero.held(2)
    gone.cancel()
    await at_zero.held(1)
    at_zero.router.workers = True
    assert (await stays).status == 200
    assert [json.loads(seen.body) for seen in at_zero.router.seen] == [{"n": 2}]
    assert "assay_activator_gone_total 1.0" in await at_zero.metrics()


async def test_a_wait_that_all_have_left_is_no_wake(at_zero: World) -> None:
    gone = at_zero.post()
    await until(lambda: at_zero.router.looks > 1)
    gone.cancel()
    await at_zero.held(0)
    at_zero.router.workers = True
    assert (await at_zero.post()).status == 200
    assert (await at_zero.status())["lastWakeSeconds"] is None


async def test_a_client_that_leaves_in_mid_answer_ends_the_routers_request(awake: World) -> None:
    Stream(awake)
    async with awake.session.post(awake.url + CHAT, data=b"{}") as answer:
        assert await answer.content.readline() == b"data: 1\n"
    await until(lambda: awake.router.gone == 1)


async def test_a_client_that_leaves_in_mid_upload_frees_its_place(at_zero: World) -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    waiting = at_zero.post(data=upload())
    await until(lambda: at_zero.proxy.hall.size == 1)
    waiting.cancel()
    await at_zero.held(0)
    assert at_zero.proxy.hall.size == 0


# --- routers that break off -----------------------------------------------------------------


async def test_half_an_answer_is_not_taken_for_a_whole_one(awake: World) -> None:
    stream = Stream(awake)
    async with awake.session.post(awake.url + CHAT, data=b"{}") as answer:
        assert await answer.content.readline() == b"data: 1\n"
        await awake.router.stop()
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    stream.more.set()
    assert "assay_activator_broken_total 1.0" in await awake.metrics()


async def test_a_request_that_may_have_been_carried_out_is_not_sent_again(awake: World) -> None:
    """Tools may have been called for it already."""
    asked = 0

    async def die(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        assert request.transport
        request.transport.abort()
        return web.Response()

    awake.router.answer = die
    reply = await awake.post()
    assert (reply.status, reply.error["code"]) == (502, "router_failed")
    assert asked == 1


# --- an activator that ends -----------------------------------------------------------------


async def test_one_that_is_told_to_end_still_hands_on_what_waits(at_zero: World) -> None:
    waiting = at_zero.post()
    await at_zero.held(1)
    leaving = asyncio.create_task(at_zero.leave(SOON + server.REFUSING_SECONDS))
    await until(lambda: is_closed(at_zero.url))
    at_zero.router.workers = True
    assert (await waiting).status == 200
    await leaving


async def test_one_that_is_told_to_end_finishes_answers_under_way(awake: World) -> None:
    stream = Stream(awake)
    async with awake.session.post(awake.url + CHAT, data=b"{}") as answer:
        await answer.content.readline()
        leaving = asyncio.create_task(awake.leave(SOON))
        await until(lambda: is_closed(awake.url))
        stream.more.set()
        assert await answer.content.read() == b"\ndata: 2\n\n"
    await leaving


async def test_answers_under_way_have_as_long_as_it_was_told_and_not_as_aiohttp_gives_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, defaults = 0.01, web.BaseRunner.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "shutdown_timeout", short)
    async with world(workers=True, finish_seconds=SOON) as made:
        stream = Stream(made)
        async with made.session.post(made.url + CHAT, data=b"{}") as answer:
            await answer.content.readline()
            leaving = asyncio.create_task(made.leave(SOON))
            await until(lambda: is_closed(made.url))
            # It waits once for the handler, and once more after it was cancelled.
            await asyncio.sleep(5 * short)
            stream.more.set()
            assert await answer.content.read() == b"\ndata: 2\n\n"
        await leaving


async def test_shortly_before_its_end_those_that_wait_are_told_to_ask_again(
    at_zero: World,
) -> None:
    waiting = at_zero.post()
    await at_zero.held(1)
    await at_zero.leave(server.REFUSING_SECONDS)
    reply = await waiting
    assert (reply.status, reply.error["code"]) == (503, "leaving")
    assert int(reply.headers["Retry-After"]) >= 1


async def test_one_that_ends_is_not_ready(at_zero: World) -> None:
    async def ready() -> int:
        async with at_zero.session.get(f"{at_zero.status_url}/readyz") as answer:
            return answer.status

    assert await ready() == 200
    await at_zero.leave(server.REFUSING_SECONDS)
    assert await ready() == 503


def is_closed(url: str) -> bool:
    """Whether nobody listens there any more."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as found:
        return found.connect_ex((host, int(port))) != 0


# --- the process ----------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@asynccontextmanager
async def process(upstream: str) -> AsyncIterator[tuple[Process, str, str]]:
    """The program itself; and the URLs of its two ports."""
    port, status_port = free_ports(2)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "assay_operator.activator"),
        *("--upstream", upstream, "--model", MODEL),
        *("--port", str(port), "--status-port", str(status_port)),
        env={**os.environ, "PYTHONPATH": str(OPERATOR)},
        stderr=PIPE,
    )
    urls = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{status_port}"
    try:
        await until(lambda: not is_closed(urls[1]))
        yield running, *urls
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_sigterm_ends_the_process_after_its_last_request() -> None:
    router = Router()
    await router.start()
    async with (
        process(f"http://127.0.0.1:{router.port}") as (running, url, status_url),
        aiohttp.ClientSession() as session,
    ):
        waiting = asyncio.create_task(post(session, url))
        assert (await first(session, status_url))["held"] == 1
        running.send_signal(signal.SIGTERM)
        await until(lambda: is_closed(url))
        assert running.returncode is None, "a request still waits"
        router.workers = True
        assert await waiting == 200
        async with asyncio.timeout(SOON):
            assert await running.wait() == 0
    await router.stop()


async def test_after_a_restart_requests_wait_again() -> None:
    router = Router()
    await router.start()
    upstream = f"http://127.0.0.1:{router.port}"
    async with aiohttp.ClientSession() as session:
        async with process(upstream) as (running, url, _):
            lost = asyncio.create_task(post(session, url))
            await until(lambda: router.looks > 0)
            running.kill()
            with pytest.raises(aiohttp.ClientError):
                await lost
        async with process(upstream) as (_, url, _):
            waiting, before = asyncio.create_task(post(session, url)), router.looks
            await until(lambda: router.looks > before)
            router.workers = True
            assert await waiting == 200
    await router.stop()


async def post(session: aiohttp.ClientSession, url: str) -> int:
    async with session.post(url + CHAT, data=b"{}") as answer:
        return answer.status


async def first(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """What the operator is told once a request waits."""
    async with session.get(f"{url}/status?until=held&seconds={SOON}") as answer:
        found: dict[str, float] = await answer.json()
        return found


def test_it_is_light() -> None:
    """It loads nothing of what only an operator needs: there may be one for each service."""
    code = """import sys, assay_operator.activator.server
print(sorted({"kopf", "kubernetes", "pydantic", "yaml", "torch"} & {*sys.modules}))
print(sorted(name for name in sys.modules if name.startswith("assay_operator.")
             and not name.startswith("assay_operator.activator")))"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(OPERATOR)},
    )
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")
