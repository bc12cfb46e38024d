"""How many requests wait, how long, and what is told to those that cannot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_operator.activator import door, messages
from assay_operator.activator.hall import Hall, Ticket
from tests.unit.activator_world import CHAT, MODEL, SOON, Reply, World, world


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for a replica follow each other fast."""
    monkeypatch.setattr(door, "INTERVAL", 0.01)


def assert_later(reply: Reply, code: str) -> None:
    """It is told why not now, and when to come back, as OpenAI's API tells errors."""
    assert reply.status == 503
    assert reply.error["code"] == code
    assert reply.error["type"] == "server_error"
    assert reply.error["message"]
    assert 1 <= int(reply.headers["Retry-After"]) <= 30


# --- how many -----------------------------------------------------------------------------------


async def test_too_many_are_refused_and_the_others_go_on_waiting() -> None:
    async with world(requests=2) as made:
        waiting = [made.post(), made.post()]
        await made.held(2)
        assert_later(await made.post(), "too_many_waiting")
        assert (await made.status())["requests"] == 3, "who was refused needs a replica, too"
        made.router.workers = True
        assert [reply.status for reply in await asyncio.gather(*waiting)] == [200, 200]
        assert 'refused_total{reason="too_many_waiting"} 1.0' in await made.metrics()


async def test_who_leaves_makes_room() -> None:
    async with world(requests=1) as made:
        first = made.post()
        await made.held(1)
        first.cancel()
        await made.held(0)
        second = made.post()
        await made.held(1)
        made.router.workers = True
        assert (await second).status == 200


async def test_bodies_take_no_more_memory_than_they_may() -> None:
    async with world(size=1000) as made:
        waiting = made.post(data=b"x" * 600)
        await made.held(1)
        assert_later(await made.post(data=b"x" * 600), "no_memory")
        made.router.workers = True
        assert (await waiting).status == 200
        assert (await made.post(data=b"x" * 600)).status == 200, "the memory is free again"


async def test_nothing_is_left_of_those_that_are_over() -> None:
    async with world(requests=3, size=100, hold_seconds=0.1) as made:
        replies = await asyncio.gather(*(made.post(data=b"x" * 40) for _ in range(5)))
        assert {reply.status for reply in replies} == {503}
        assert (made.proxy.hall.held, made.proxy.hall.size) == (0, 0)


# --- how long -----------------------------------------------------------------------------------


async def test_who_waited_too_long_is_told_to_come_back() -> None:
    async with world(hold_seconds=0.05) as made:
        reply = await made.post()
        assert_later(reply, "no_replica_in_time")
        assert made.router.seen == []


async def test_a_slow_upload_wakes_the_service_from_its_first_byte() -> None:
    more = asyncio.Event()

    async def upload() -> AsyncIterator[bytes]:
        yield b"{"
        await more.wait()
        yield b"}"

    async with world() as made:
        waiting = made.post(data=upload())
        await made.held(1)
        made.router.workers = True
        more.set()
        assert (await waiting).status == 200
        assert [seen.body for seen in made.router.seen] == [b"{}"]


async def test_an_upload_that_does_not_end_is_given_up() -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with world(workers=True, hold_seconds=0.05) as made:
        reply = await made.post(data=upload())
        assert (reply.status, reply.error["code"]) == (408, "body_too_slow")
        assert made.router.seen == []


async def test_a_client_that_asks_before_it_uploads_is_told_to_go_on() -> None:
    async with world(workers=True) as made:
        reply = await made.ask("POST", CHAT, data=b"{}", expect100=True)
        assert reply.status == 200


@settings(deadline=None)
@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_who_is_refused_comes_back_within_half_a_minute(start: float, oldest: float) -> None:
    again = messages.again_after(start, oldest)
    assert 1 <= again <= 30
    assert again >= min(30, start - oldest)


# --- what cannot be held ------------------------------------------------------------------------


async def test_a_websocket_is_refused_with_a_word() -> None:
    async with world(workers=True) as made:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await made.session.ws_connect(made.url + "/v1/realtime")
        assert refusal.value.status == 501
        assert made.router.seen == []


async def raw(made: World, sent: bytes) -> bytes:
    """The first line of what comes back for these bytes."""
    host, _, port = made.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with contextlib.closing(writer):
        writer.write(sent)
        async with asyncio.timeout(SOON):
            return await reader.readline()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", id="TLS"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", id="no path"),
        pytest.param(b"CONNECT other:443 HTTP/1.1\r\nHost: x\r\n\r\n", id="tunnel"),
        pytest.param(b"POST @other/ HTTP/1.1\r\nHost: x\r\n\r\n", id="other host"),
        pytest.param(
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two lengths",
        ),
    ],
)
async def test_what_is_not_plain_http_is_no_request(sent: bytes) -> None:
    async with world(workers=True) as made:
        assert b" 400 " in await raw(made, sent)
        assert made.router.seen == []


async def test_an_offer_of_http_2_is_declined_by_answering_in_http_1() -> None:
    async with world(workers=True) as made:
        head = (
            b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n{}"
        )
        assert await raw(made, head) == b"HTTP/1.1 200 OK\r\n"
        names = {name.lower() for name, _ in made.router.seen[0].headers}
        assert not {"upgrade", "http2-settings"} & names


async def test_the_target_of_a_proxys_client_is_the_model_all_the_same() -> None:
    async with world(workers=True) as made:
        head = b"POST http://other.example/v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        assert await raw(made, head) == b"HTTP/1.1 200 OK\r\n"
        assert [seen.path for seen in made.router.seen] == ["/v1/x"]


# --- the bounds themselves ----------------------------------------------------------------------


STEPS = ("enter", "keep", "go", "wait", "drop", "leave")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 50),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9))),
)
def test_the_hall_never_holds_more_than_it_may_and_forgets_nobody(
    requests: int, size: int, steps: list[tuple[str, int]]
) -> None:
    hall = Hall(requests, size, Clock())
    inside: list[Ticket] = []
    waiting: set[Ticket] = set()
    kept: dict[Ticket, int] = {}
    for step, number in steps:
        if step == "enter":
            ticket = hall.enter()
            assert (ticket is None) == (len(waiting) == requests)
            if ticket:
                inside.append(ticket)
                waiting.add(ticket)
                kept[ticket] = 0
        elif inside:
            act(inside, waiting, kept, step, number)
        assert hall.held == len(waiting) <= requests
        assert hall.size == sum(kept.values()) <= size
        assert (hall.oldest > 0) == bool(waiting)
    for ticket in inside:
        ticket.__exit__(None, None, None)
    assert (hall.held, hall.size) == (0, 0)


def act(
    inside: list[Ticket], waiting: set[Ticket], kept: dict[Ticket, int], step: str, number: int
) -> None:
    """One step of one of those that are inside."""
    ticket = inside[number % len(inside)]
    if step == "keep":
        kept[ticket] += number if ticket.keep(number) else 0
    elif step == "wait":
        if ticket.wait():
            waiting.add(ticket)
    elif step == "go":
        ticket.go()
        waiting.discard(ticket)
    elif step == "drop":
        ticket.drop()
        kept[ticket] = 0
    else:
        ticket.__exit__(None, None, None)
        inside.remove(ticket)
        waiting.discard(ticket)
        kept[ticket] = 0


NAMES = st.sampled_from(
    ["X-A", "x-b", "Connection", "TE", "Upgrade", "Cookie", "Transfer-Encoding", "Keep-Alive"]
)
VALUES = st.sampled_from(["close", "X-A, te", "x-b", "1"])


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES)))
def test_only_what_is_for_the_other_end_is_passed_on_in_its_order(
    headers: list[tuple[str, str]],
) -> None:
    passed = messages.end_to_end(headers)
    assert passed == [header for header in headers if header in passed]
    assert {name.lower() for name, _ in passed} <= {"x-a", "x-b", "cookie"}
    named = " ".join(value for name, value in headers if name == "Connection").lower()
    for name, value in headers:
        if name in {"X-A", "x-b", "Cookie"}:
            assert ((name, value) in passed) == (name.lower() not in named)


def test_the_model_is_called_as_clients_call_it() -> None:
    answer = messages.models("GET", "/v1/models", MODEL, 7)
    assert answer and f'"id": "{MODEL}"' in answer.body
