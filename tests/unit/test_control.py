"""Having engines load, pause and go on: over real HTTP, against a server that speaks as SGLang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from assay_operator.cluster.view import Key
from assay_operator.inference.observation import LoadState, Work
from assay_operator.plan import Json, Load
from assay_operator.sglang import control as module
from assay_operator.sglang.control import Control
from assay_operator.sglang.reach import PodReach

KEY = Key("inferenceservice", "team", "solver")
LOAD = Load("one", "/checkpoints/b", "sha256:bb")


class Engine:
    """Loads, pauses and goes on as SGLang does."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[str, Any]] = []
        self.paused = self.sick = self.lies = False
        self.weights = ("/models/a", "a")
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.loads: Any = {"loads": [{"num_running_reqs": 2, "num_waiting_reqs": 1}] * 2}

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        if request.path == "/update_weights_from_disk":
            await self.may_load.wait()
            return self.load(body)
        if request.path in ("/pause_generation", "/continue_generation"):
            self.paused = request.path == "/pause_generation"
        path, version = self.weights
        answers: dict[str, Any] = {
            "/pause_generation": {},
            "/continue_generation": {},
            "/model_info": {"model_path": path, "weight_version": version},
            "/v1/loads": self.loads,
            "/ready": None if self.paused or self.sick else {},
            "/health": None if self.sick else {},
        }
        answer = answers[request.path]
        return web.Response(status=503) if answer is None else web.json_response(answer)

    def load(self, body: Any) -> web.Response:
        if not body["model_path"].startswith("/"):
            answer = {"success": False, "message": "no such folder"}
            return web.json_response(answer, status=400)
        if not self.lies:
            self.weights = (body["model_path"], body["weight_version"])
        return web.json_response({"success": True, "message": "ok"})


@pytest.fixture
async def engine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    made = Engine()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    for name in ("MODEL_INFO", "_UPDATE", "_PAUSE", "_RESUME", "_LOADS", "_READY", "_HEALTH"):
        monkeypatch.setattr(module, name, replace(getattr(module, name), port=made.port))
    yield made
    made.may_load.set()
    await runner.cleanup()


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
async def control(woken: list[Key]) -> AsyncIterator[Control]:
    reach = PodReach()
    made = Control(reach, woken.append)
    yield made
    made.close()
    await reach.close()


def pod(restarts: int = 0, address: str = "127.0.0.1") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "one",
            "namespace": "team",
            "uid": "uid-one",
            "labels": {"assay.dev/owner": "inferenceservice.solver"},
        },
        "status": {
            "podIP": address,
            "containerStatuses": [{"name": "engine", "restartCount": restarts}],
        },
    }


async def loaded(control: Control, action: Load = LOAD, item: Json | None = None) -> LoadState:
    """What became of a load."""
    item = item or pod()
    control.load(item, action)
    async with asyncio.timeout(5):
        await asyncio.gather(
            *(loading.task for loading in control._loading.values() if loading.task)
        )
    return control.loads([item])["uid-one"]


class TestLoading:
    async def test_it_ends_with_the_engines_own_word_and_wakes_the_actor(
        self, control: Control, engine: Engine, woken: list[Key]
    ) -> None:
        assert await loaded(control) == LoadState("sha256:bb", "done")
        wanted = {"model_path": "/checkpoints/b", "weight_version": "sha256:bb"}
        assert engine.asked[0] == (
            "/update_weights_from_disk",
            {**wanted, "flush_cache": True, "abort_all_requests": False},
        )
        assert woken == [KEY]

    async def test_nobody_waits_for_it(self, control: Control, engine: Engine) -> None:
        engine.may_load.clear()
        control.load(pod(), LOAD)
        assert control.loads([pod()]) == {"uid-one": LoadState("sha256:bb", "running")}

    async def test_a_second_one_waits_for_its_turn(self, control: Control, engine: Engine) -> None:
        engine.may_load.clear()
        control.load(pod(), LOAD)
        control.load(pod(), Load("one", "/models/a", "a"))
        engine.may_load.set()
        assert (await loaded(control)).version == "sha256:bb"
        assert [path for path, _ in engine.asked].count("/update_weights_from_disk") == 1

    async def test_after_its_end_another_may_follow(self, control: Control, engine: Engine) -> None:
        await loaded(control)
        assert await loaded(control, Load("one", "/models/a", "a")) == LoadState("a", "done")

    async def test_requests_end_for_it_only_where_that_is_asked_for(
        self, control: Control, engine: Engine
    ) -> None:
        await loaded(control, replace(LOAD, abort=True))
        assert engine.asked[0][1]["abort_all_requests"] is True

    async def test_one_order_is_carried_out_once(self, control: Control, engine: Engine) -> None:
        order = replace(LOAD, token="1")
        assert await loaded(control, order) == LoadState("sha256:bb", "done", token="1")
        assert (await loaded(control, order)).state == "done"
        assert [path for path, _ in engine.asked].count("/update_weights_from_disk") == 1
        assert (await loaded(control, replace(LOAD, token="2"))).token == "2"

    async def test_a_refusal_is_told_in_the_engines_words(
        self, control: Control, engine: Engine, woken: list[Key]
    ) -> None:
        state = await loaded(control, Load("one", "nowhere", "x"))
        assert state.state == "failed" and "no such folder" in state.message
        assert woken == [KEY]

    async def test_an_engine_that_then_reports_other_weights_has_failed(
        self, control: Control, engine: Engine
    ) -> None:
        engine.lies = True
        state = await loaded(control)
        assert state.state == "failed"
        assert "took sha256:bb from /checkpoints/b and then reported a" in state.message

    async def test_an_engine_that_is_gone_has_failed(self, control: Control) -> None:
        state = await loaded(control, item=pod(address="127.0.0.254"))
        assert state.state == "failed" and state.message

    async def test_an_error_of_our_own_is_no_load_that_runs_for_ever(
        self, control: Control, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def breaks(*_: object) -> None:
            raise KeyError("spec")

        monkeypatch.setattr(control, "_loaded", breaks)
        assert (await loaded(control)).message == "KeyError: 'spec'"

    async def test_an_engine_that_was_started_anew_has_loaded_nothing(
        self, control: Control, engine: Engine
    ) -> None:
        await loaded(control)
        assert control.loads([pod(restarts=1)]) == {}
        assert control.loads([pod()]) == {}, "and it is forgotten for good"

    async def test_a_pod_that_is_gone_is_forgotten(self, control: Control, engine: Engine) -> None:
        engine.may_load.clear()
        control.load(pod(), LOAD)
        control.forget("uid-one")
        assert control.loads([pod()]) == {}


class TestPausing:
    async def test_requests_are_held_and_not_ended(self, control: Control, engine: Engine) -> None:
        await control.pause(pod())
        assert engine.asked == [("/pause_generation", {"mode": "retract"})]
        assert (await control.work(pod())).paused is True
        await control.resume(pod())
        assert (await control.work(pod())).paused is False

    async def test_an_engine_that_does_not_obey_raises_nothing(self, control: Control) -> None:
        await control.pause(pod(address="127.0.0.254"))
        await control.resume(pod(address="127.0.0.254"))


class TestWork:
    async def test_requests_of_all_ranks_count_waiting_ones_too(
        self, control: Control, engine: Engine
    ) -> None:
        assert await control.works([pod()]) == {"uid-one": Work(requests=6, paused=False)}

    async def test_an_engine_that_is_not_well_is_not_called_paused(
        self, control: Control, engine: Engine
    ) -> None:
        engine.sick = True
        assert (await control.work(pod())).paused is None

    @pytest.mark.parametrize("answer", [{}, [], {"loads": [{}]}, {"loads": None}])
    async def test_nonsense_is_no_number(
        self, control: Control, engine: Engine, answer: Any
    ) -> None:
        engine.loads = answer
        assert (await control.work(pod())).requests is None

    async def test_silence_is_no_number_either(self, control: Control) -> None:
        assert await control.work(pod(address="127.0.0.254")) == Work()
