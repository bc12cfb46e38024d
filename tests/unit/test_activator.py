"""A request to a service without a replica waits, and is answered once there is one."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from assay_operator.activator import body as bodies
from assay_operator.activator import door
from tests.unit.activator_world import CHAT, MODEL, SOON, World, says, until, world


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


# --- waiting ------------------------------------------------------------------------------------


async def test_a_request_waits_until_a_replica_is_routable(at_zero: World) -> None:
    await at_zero.router.stop()
    waiting = at_zero.post({"model": MODEL, "n": 1})
    await at_zero.held(1)
    await at_zero.router.start()
    await until(lambda: at_zero.router.looks > 2)
    assert not waiting.done(), "a router without a worker is no replica"
    at_zero.router.workers = True
    reply = await waiting
    assert reply.status == 200
    assert json.loads(json.loads(reply.body)["said"]) == {"model": MODEL, "n": 1}
    assert len(at_zero.router.seen) == 1


async def test_all_that_wait_are_answered(at_zero: World) -> None:
    waiting = [at_zero.post({"model": MODEL, "n": number}) for number in range(20)]
    await at_zero.held(20)
    at_zero.router.workers = True
    assert {reply.status for reply in await asyncio.gather(*waiting)} == {200}
    assert await at_zero.status() | {"lastWakeSeconds": 0} == {
        "held": 0,
        "requests": 20,
        "lastWakeSeconds": 0,
    }


async def test_nobody_looks_for_a_replica_while_nobody_waits(at_zero: World) -> None:
    waiting = at_zero.post()
    await until(lambda: at_zero.router.looks > 2)
    waiting.cancel()
    await at_zero.held(0)
    await asyncio.sleep(0.1)  # what was under way arrives
    looks = at_zero.router.looks
    await asyncio.sleep(0.1)
    assert at_zero.router.looks == looks


async def test_with_a_replica_a_request_passes_at_once(awake: World) -> None:
    """As over a connection that is older than the Service's turn to the routers."""
    reply = await awake.post()
    assert reply.status == 200
    assert awake.router.looks == 1
    assert "Server-Timing" not in reply.headers
    assert (await awake.status())["lastWakeSeconds"] is None, "nobody had to wait"


async def test_the_next_request_comes_over_another_connection(awake: World) -> None:
    """So that it goes to the routers as soon as the Service points to them."""
    assert (await awake.post()).headers["Connection"] == "close"
    assert (await awake.ask("GET", "/health")).headers["Connection"] == "close"


async def test_the_first_requests_wait_is_told(at_zero: World) -> None:
    waiting = at_zero.post()
    await at_zero.held(1)
    await asyncio.sleep(0.05)
    at_zero.router.workers = True
    reply = await waiting
    name, _, milliseconds = reply.headers["Server-Timing"].partition(";dur=")
    assert (name, float(milliseconds) >= 50) == ("held", True)
    assert (await at_zero.status())["lastWakeSeconds"] >= 0.05
    page = await at_zero.metrics()
    assert "assay_activator_wake_seconds_count 1.0" in page
    assert "assay_activator_forwarded_total 1.0" in page


# --- a router that has no worker for a moment ---------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "model_not_found"), (400, "missing_model"), (503, "no_available_workers")],
)
async def test_a_worker_that_went_in_between_costs_no_request(
    awake: World, status: int, code: str
) -> None:
    """smg tells of a model that it does not know where it has no worker at all."""

    async def lose(request: web.BaseRequest) -> web.Response:
        await request.read()
        awake.router.workers, awake.router.answer = False, None
        return says(status, code)

    awake.router.answer = lose
    waiting = awake.post()
    await until(lambda: not awake.router.workers and awake.router.looks > 2)
    assert not waiting.done()
    assert awake.proxy.hall.held == 1
    awake.router.workers = True
    assert (await waiting).status == 200


async def test_a_router_that_went_in_between_costs_no_request(awake: World) -> None:
    assert (await awake.post()).status == 200
    await awake.router.stop()
    waiting = awake.post()
    await asyncio.sleep(0.05)
    await awake.held(1)
    await awake.router.start()
    assert (await waiting).status == 200


async def test_a_model_that_nobody_serves_is_told_as_the_router_tells_it(awake: World) -> None:
    asked = 0

    async def unknown(request: web.BaseRequest) -> web.Response:
        nonlocal asked
        asked += 1
        return says(404, "model_not_found")

    awake.router.answer = unknown
    reply = await awake.post({"model": "nobody"})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert asked == 2, "once more, for it could have been a router without workers"


async def test_what_a_replica_refuses_is_passed_on(awake: World) -> None:
    async def refuse(_: web.BaseRequest) -> web.Response:
        return web.json_response({"error": "full"}, status=503, headers={"Retry-After": "7"})

    awake.router.answer = refuse
    reply = await awake.post()
    assert (reply.status, reply.headers["Retry-After"]) == (503, "7")


# --- what passes through ------------------------------------------------------------------------


async def test_an_answer_is_streamed_as_it_is_made(awake: World) -> None:
    more = asyncio.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        made = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await made.prepare(request)
        await made.write(b"data: 1\n\n")
        await more.wait()
        await made.write(b"data: 2\n\n")
        return made

    awake.router.answer = stream
    async with awake.session.post(awake.url + CHAT, data=b"{}") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readline() == b"data: 1\n"
        more.set()
        assert await answer.content.read() == b"\ndata: 2\n\n"


async def test_who_is_being_answered_waits_no_more_and_keeps_no_memory(awake: World) -> None:
    more = asyncio.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        made = web.StreamResponse()
        await made.prepare(request)
        await made.write(b"first")
        await more.wait()
        return made

    awake.router.answer = stream
    async with awake.session.post(awake.url + CHAT, data=b"{}") as answer:
        assert await answer.content.readexactly(5) == b"first"
        assert (awake.proxy.hall.held, awake.proxy.hall.size) == (0, 0)
        more.set()
        await answer.read()


async def test_a_long_upload_is_handed_on_as_it_comes(
    awake: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST", 10)
    arrived, more = asyncio.Event(), asyncio.Event()

    async def listen(request: web.BaseRequest) -> web.Response:
        first = await request.content.readany()
        arrived.set()
        return web.Response(body=first + await request.content.read())

    async def upload() -> AsyncIterator[bytes]:
        yield b"0123456789"
        await more.wait()
        yield b"the rest"

    awake.router.answer = listen
    waiting = awake.post(data=upload())
    async with asyncio.timeout(SOON):
        await arrived.wait()
    more.set()
    assert (await waiting).body == b"0123456789the rest"


async def test_a_long_upload_of_known_length_keeps_its_length(
    at_zero: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST", 10)
    waiting = at_zero.post(data=b"x" * 500_000)
    await at_zero.held(1)
    at_zero.router.workers = True
    assert (await waiting).status == 200
    (seen,) = at_zero.router.seen
    assert seen.body == b"x" * 500_000
    assert dict(seen.headers)["Content-Length"] == "500000"


async def test_a_long_upload_that_has_passed_through_cannot_be_sent_again(
    awake: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST", 10)
    asked = []

    async def lose(request: web.BaseRequest) -> web.Response:
        asked.append(await request.read())
        return says(503, "no_available_workers")

    awake.router.answer = lose
    reply = await awake.post(data=b"x" * 500_000)
    assert (reply.status, reply.error["code"]) == (503, "no_available_workers")
    assert asked == [b"x" * 500_000]


async def test_a_request_arrives_as_it_was_sent(awake: World) -> None:
    path, packed = f"{CHAT}/%2Fa%20b?x=%26&y=1&x=2", gzip.compress(b"{}")
    headers = [
        ("Authorization", f"Bearer {'secret' * 5000}"),
        ("Content-Encoding", "gzip"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Connection", "keep-alive, X-Mine"),
        ("X-Mine", "for this connection only"),
        ("Cookie", "a=b"),
    ]
    await awake.ask("POST", path, data=packed, headers=headers)
    (seen,) = awake.router.seen
    assert seen.path == path
    assert seen.body == packed
    for header in (*headers[:4], headers[6], ("Via", "1.1 assay-activator")):
        assert header in seen.headers
    names = [name.lower() for name, _ in seen.headers]
    assert "x-mine" not in names and names.count("content-length") == 1


async def test_an_answer_arrives_as_it_was_given(awake: World) -> None:
    packed = gzip.compress(b"hello")

    async def reply(_: web.BaseRequest) -> web.Response:
        headers = {"Content-Encoding": "gzip", "x-request-id": "r-1", "Set-Cookie": "a=b"}
        return web.Response(status=418, reason="Tea", body=packed, headers=headers)

    awake.router.answer = reply
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        for _ in range(2):
            async with session.post(awake.url + CHAT, data=b"{}") as answer:
                assert (answer.status, answer.reason) == (418, "Tea")
                assert answer.headers["x-request-id"] == "r-1"
                assert await answer.read() == packed
    assert (await awake.post()).status == 418


async def test_one_clients_cookies_are_not_anothers(awake: World) -> None:
    async def reply(request: web.BaseRequest) -> web.Response:
        return web.Response(text=request.headers.get("Cookie", ""), headers={"Set-Cookie": "a=b"})

    awake.router.answer = reply
    await awake.post()
    async with aiohttp.ClientSession() as other, other.post(awake.url + CHAT) as answer:
        assert await answer.text() == ""


# --- what wakes nobody --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/liveness", "/readiness"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_question_for_health_is_answered_and_wakes_nobody(
    at_zero: World, method: str, path: str
) -> None:
    assert (await at_zero.ask(method, path)).status == 200
    assert at_zero.router.looks == 0
    assert (await at_zero.status())["requests"] == 0


async def test_the_model_is_listed_and_nobody_is_woken(at_zero: World) -> None:
    await at_zero.router.stop()
    listed = json.loads((await at_zero.ask("GET", "/v1/models")).body)
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert (await at_zero.status())["requests"] == 0


async def test_with_a_replica_the_router_lists_the_models(awake: World) -> None:
    async def models(_: web.BaseRequest) -> web.Response:
        return web.json_response({"data": [{"id": MODEL, "max_model_len": 2048}]})

    awake.router.answer = models
    assert b"max_model_len" in (await awake.ask("GET", "/v1/models")).body


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health_generate"), ("GET", "/v1/responses/7"), ("DELETE", "/v1/responses/7")],
)
async def test_what_only_a_replica_knows_is_refused_without_waking(
    at_zero: World, method: str, path: str
) -> None:
    reply = await at_zero.ask(method, path)
    assert (reply.status, reply.error["code"]) == (503, "no_replica")
    assert int(reply.headers["Retry-After"]) >= 1
    assert (await at_zero.status())["requests"] == 0


async def test_with_a_replica_it_is_asked(awake: World) -> None:
    reply = await awake.ask("DELETE", "/v1/responses/7?x=1")
    assert reply.status == 200
    assert [(seen.method, seen.path) for seen in awake.router.seen] == [
        ("DELETE", "/v1/responses/7?x=1")
    ]
