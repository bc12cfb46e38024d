"""How the operator hears of what waits at activators, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from aiohttp import web

from assay_operator.activator import door
from assay_operator.cluster.view import Key
from assay_operator.plan import OWNER_LABEL, Json
from assay_operator.sglang import activators as module
from assay_operator.sglang.activators import Activators
from assay_operator.sglang.reach import PodReach
from tests.unit.activator_world import World, until, world

SERVICE = Key("inferenceservice", "team", "solver")


def pod(uid: str = "one") -> Json:
    labels = {OWNER_LABEL: "inferenceservice.solver"}
    metadata = {"name": uid, "namespace": "team", "uid": uid, "labels": labels}
    status = {"podIP": "127.0.0.1"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "INTERVAL", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


def at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """All activators are at this port."""
    for name in ("STATUS", "_ATTEND"):
        monkeypatch.setattr(module, name, replace(getattr(module, name), port=port))


@pytest.fixture
async def at_zero(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with world() as made:
        at(monkeypatch, int(made.status_url.rpartition(":")[2]))
        yield made


class Heard:
    """An operator's side of it: whom it woke."""

    def __init__(self) -> None:
        self.reach = PodReach()
        self.woken: list[Key] = []
        self.activators = Activators(self.reach, self.woken.append)


@pytest.fixture
async def operator() -> AsyncIterator[Heard]:
    heard = Heard()
    yield heard
    heard.activators.close()
    await heard.reach.close()


async def test_what_waits_is_heard_of(at_zero: World, operator: Heard) -> None:
    async def told() -> tuple[int, bool]:
        (answer,) = await operator.activators.ask([pod()])
        assert answer is not None
        return answer["held"], answer["lastWakeSeconds"] is not None

    assert await told() == (0, False)
    first = at_zero.post()
    await at_zero.held(1)
    assert await told() == (1, False)
    at_zero.router.workers = True
    await first
    assert await told() == (0, True)


async def test_the_first_request_wakes_its_service_at_once(at_zero: World, operator: Heard) -> None:
    operator.activators.attend([pod()])
    operator.activators.attend([pod()])
    await asyncio.sleep(0.05)
    assert operator.woken == [], "nobody asks the service anything"
    waits = at_zero.post()
    await until(lambda: operator.woken == [SERVICE])
    operator.activators.attend([pod()])
    await until(lambda: operator.woken == [SERVICE, SERVICE])
    waits.cancel()


async def test_an_activator_that_does_not_answer_is_asked_again(
    at_zero: World, operator: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = module.STATUS.port
    at(monkeypatch, 1)
    operator.activators.attend([pod()])
    assert await operator.activators.ask([pod()]) == (None,)
    await asyncio.sleep(0.05)
    at(monkeypatch, port)
    waits = at_zero.post()
    await until(lambda: operator.woken == [SERVICE])
    waits.cancel()


async def test_one_that_is_gone_is_attended_no_more(at_zero: World, operator: Heard) -> None:
    operator.activators.attend([pod("one"), pod("two")])
    operator.activators.forget("one")
    operator.activators.forget("never attended")
    waits = at_zero.post()
    await until(lambda: operator.woken == [SERVICE])
    waits.cancel()


@pytest.mark.parametrize("said", ["[]", "{}", "busy", '{"held": 1, "lastWakeSeconds": null}'])
async def test_what_is_no_status_is_unknown(
    operator: Heard, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=said)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    at(monkeypatch, runner.addresses[0][1])
    assert await operator.activators.ask([pod()]) == (None,)
    await runner.cleanup()


async def test_a_long_look_ends_without_news_after_its_time(at_zero: World) -> None:
    assert (await at_zero.status("?until=held&seconds=0.01"))["held"] == 0
    async with at_zero.session.get(f"{at_zero.status_url}/status?until=held&seconds=x") as answer:
        assert answer.status == 400
