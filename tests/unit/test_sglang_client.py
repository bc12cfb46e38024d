"""Asking engines and routers: over real HTTP, against servers that speak as SGLang and smg do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from assay_operator.cluster.client import ApiError
from assay_operator.inference.observation import Probe
from assay_operator.plan import Json
from assay_operator.sglang import client as module
from assay_operator.sglang import reach as ways
from assay_operator.sglang.client import Listing, SGLang
from assay_operator.sglang.reach import ApiServerReach, PodReach, ProbeError, Question

ROUTER_METRICS = """\
# HELP smg_router_requests_total Requests
# TYPE smg_router_requests_total counter
smg_router_requests_total{model="m"} 12
# HELP smg_worker_health Worker health status (1=healthy, 0=unhealthy)
# TYPE smg_worker_health gauge
smg_worker_health{worker="http://10.0.0.1:30000"} 1
smg_worker_health{worker="http://10.0.0.2:30000/"} 1
smg_worker_health{worker="http://10.0.0.3:30000"} 0
"""


class Server:
    """An engine and a router on one port of the loopback interface."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.bodies: list[Json] = []
        self.answers: dict[str, Any] = {
            "/model_info": {"model_path": "/m", "weight_version": "v1"},
            "/generate": {"text": "x", "output_ids": [7], "meta_info": {"id": "1"}},
            "/metrics": web.Response(text=ROUTER_METRICS),
        }

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        if request.can_read_body:
            self.bodies.append(await request.json())
        answer = self.answers.get(request.path)
        if isinstance(answer, web.Response):
            # A response is sent once: one like it for each request.
            return web.Response(status=answer.status, body=answer.body)
        return web.json_response(answer) if answer is not None else web.Response(status=404)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
async def sglang(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SGLang]:
    names = ("MODEL_INFO", "_MODEL_INFO_SOON", "_KERNELS", "_GENERATION", "_LIVING", "_HEALTH")
    for name in names:
        question = getattr(module, name)
        moved = replace(question, port=server.port, seconds=0.3)
        monkeypatch.setattr(module, name, moved)
    reach = PodReach()
    yield SGLang(reach)
    await reach.close()


async def settle(sglang: SGLang) -> None:
    """Until no look for life is under way."""
    await asyncio.gather(*(life.look for life in sglang._lives.values() if life.look))


class Forever(PodReach):
    """Never answers the look for life."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner

    async def ask(self, pod: Json, question: Question) -> Any:
        if question.path == "/health_generate":
            await asyncio.Event().wait()
        return await self._inner.ask(pod, question)


def pod(
    uid: str = "one",
    restarts: int = 0,
    address: str | None = "127.0.0.1",
    kernels: str | None = None,
) -> Json:
    status: Json = {"containerStatuses": [{"name": "engine", "restartCount": restarts}]}
    if address:
        status["podIP"] = address
    env = [{"name": "ASSAY_KERNELS", "value": kernels}] if kernels else []
    return {
        "metadata": {"name": uid, "namespace": "team", "uid": uid},
        "spec": {"containers": [{"name": "engine", "env": env}]},
        "status": status,
    }


class TestEngines:
    async def test_one_that_serves_and_generates(self, sglang: SGLang, server: Server) -> None:
        assert await sglang.probe(pod()) == Probe("v1", generated=True)
        assert server.asked == ["GET /model_info", "POST /generate"]
        [body] = server.bodies
        assert all(0 < token < 10 for token in body["input_ids"]), "a wild id ends the engine"
        assert body["sampling_params"]["max_new_tokens"] == 1

    async def test_a_token_is_generated_once_a_start_and_version(
        self, sglang: SGLang, server: Server
    ) -> None:
        await sglang.probe(pod())
        await sglang.probe(pod())
        assert server.asked.count("POST /generate") == 1
        await sglang.probe(pod(restarts=1))
        assert server.asked.count("POST /generate") == 2
        server.answers["/model_info"] = {"weight_version": "v2"}
        assert (await sglang.probe(pod(restarts=1))).version == "v2"
        assert server.asked.count("POST /generate") == 3

    async def test_a_busy_one_is_asked_for_its_version_only(
        self, sglang: SGLang, server: Server
    ) -> None:
        assert (await sglang.probes([pod()], {"one"}))["one"] == Probe("v1", generated=False)
        assert await sglang.probe(pod()) == Probe("v1", generated=True)
        server.asked.clear()
        assert (await sglang.probes([pod()], {"one"}))["one"] == Probe("v1", generated=True)
        assert server.asked == ["GET /model_info"]

    async def test_one_that_cannot_generate_is_asked_again(
        self, sglang: SGLang, server: Server
    ) -> None:
        good = server.answers["/generate"]
        server.answers["/generate"] = web.Response(status=500, text="CUDA error")
        probe = await sglang.probe(pod())
        assert probe == Probe("v1", error="/generate: 500 CUDA error")
        server.answers["/generate"] = good
        assert (await sglang.probe(pod())).generated

    async def test_one_whose_scheduler_hangs_is_found_though_it_answers(
        self, sglang: SGLang, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One silent look may be a long prefill; two in a row are a hang; life heals it."""
        monkeypatch.setattr(module, "LIVING_INTERVAL", 0.0)

        async def look() -> Probe:
            probe = await sglang.probe(pod())
            await settle(sglang)
            return probe

        server.answers["/health_generate"] = web.Response(status=503)
        for _ in range(3):
            assert (await look()).generated, "the first token, then two silent looks"
        probe = await look()
        assert not probe.generated and "no token" in (probe.error or "")
        server.answers["/health_generate"] = web.Response()
        await look()
        assert (await look()).generated

    async def test_silence_of_before_a_restart_is_not_held_against_the_engine(
        self, sglang: SGLang, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "LIVING_INTERVAL", 0.0)
        server.answers["/health_generate"] = web.Response(status=503)
        for _ in range(4):
            await sglang.probe(pod())
            await settle(sglang)
        assert not (await sglang.probe(pod())).generated
        monkeypatch.setattr(module, "LIVING_INTERVAL", 60.0)
        assert (await sglang.probe(pod(restarts=1))).generated, "it has just made a token"
        assert (await sglang.probe(pod(restarts=1))).generated, "and nothing was asked since"

    async def test_a_look_for_life_delays_nobody(
        self, sglang: SGLang, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await sglang.probe(pod())
        sglang._reach = Forever(sglang._reach)
        assert (await asyncio.wait_for(sglang.probe(pod()), 1)).generated
        sglang.forget("one")

    @pytest.mark.parametrize("answer", [{"error": "x"}, [], "text"])
    async def test_an_answer_that_is_no_generation(
        self, sglang: SGLang, server: Server, answer: Any
    ) -> None:
        server.answers["/generate"] = answer
        probe = await sglang.probe(pod())
        assert not probe.generated and probe.error

    @pytest.mark.parametrize("answer", [{}, [], {"weight_version": 3}])
    async def test_one_without_a_version(self, sglang: SGLang, server: Server, answer: Any) -> None:
        server.answers["/model_info"] = answer
        probe = await sglang.probe(pod())
        assert probe.version is None and "weight_version" in (probe.error or "")
        assert "POST /generate" not in server.asked

    async def test_all_are_asked_and_none_spoils_the_others(self, sglang: SGLang) -> None:
        probes = await sglang.probes([pod("a"), pod("b", address=None)])
        assert probes["a"].generated
        assert probes["b"].error == "the pod has no address yet"

    async def test_nobody_listens(self, sglang: SGLang) -> None:
        probe = await sglang.probe(pod(address="127.0.0.254"))
        assert probe.version is None and probe.error

    async def test_silence_is_bounded(
        self, sglang: SGLang, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never(*_: object) -> Any:
            raise TimeoutError

        monkeypatch.setattr(ways, "_bounded", never)
        assert (await sglang.probe(pod())).error == "/model_info: no answer within 0.3 s"


def active(**changes: Any) -> Json:
    """What the plugin answers where its kernels run."""
    ops = {"sampler": {"installed": True, "why_not": "", "fused": 0, "fallbacks": {}}}
    scheduler = {"pid": 7, "role": "scheduler", "rank": {"tp": 0}, "ops": ops}
    return {
        "plugin": "0.1.0",
        "sglang": "0.5.23",
        "kernels": "fused",
        "hardened": True,
        "processes": [scheduler, {"pid": 1, "role": "http", "rank": None, "ops": {}}],
        "active": True,
        "why_not": "",
        **changes,
    }


class TestKernels:
    ASKED = "GET /assay/kernels"

    async def test_one_that_runs_them_is_asked_once_a_start(
        self, sglang: SGLang, server: Server
    ) -> None:
        server.answers["/assay/kernels"] = active()
        probe = await sglang.probe(pod(kernels="fused"))
        assert probe.generated and probe.kernels and probe.kernels.ops == ("sampler",)
        assert server.asked == ["GET /model_info", self.ASKED, "POST /generate"]
        server.answers["/model_info"] = {"weight_version": "v2"}
        assert (await sglang.probe(pod(kernels="fused"))).kernels == probe.kernels
        assert server.asked.count(self.ASKED) == 1, "other weights leave the kernels as they are"
        await sglang.probe(pod(restarts=1, kernels="fused"))
        assert server.asked.count(self.ASKED) == 2

    @pytest.mark.parametrize("kernels", [None, "stock"])
    async def test_nobody_else_is_asked(
        self, sglang: SGLang, server: Server, kernels: str | None
    ) -> None:
        assert await sglang.probe(pod(kernels=kernels)) == Probe("v1", generated=True)
        assert self.ASKED not in server.asked

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (web.Response(status=404), "the plugin is not in it (/assay/kernels: 404"),
            (web.Response(text="<html>"), "the plugin is not in it"),
            ([], "the plugin is not in it"),
            ({"active": "yes"}, "the plugin is not in it"),
            (active(active=False, why_not="sampler is\nnot there"), "sampler is not there"),
            (active(active=False, why_not=None), "it does not say why"),
            (active(kernels="stock"), "it runs stock kernels"),
        ],
    )
    async def test_one_that_does_not_run_them_says_why_and_is_not_made_to_generate(
        self, sglang: SGLang, server: Server, answer: Any, why: str
    ) -> None:
        server.answers["/assay/kernels"] = answer
        probe = await sglang.probe(pod(kernels="fused"))
        assert probe.version == "v1" and not probe.generated
        assert probe.kernels and not probe.kernels.active and why in probe.kernels.why_not
        assert "POST /generate" not in server.asked

    @pytest.mark.parametrize("processes", [None, [None], [{"ops": [1]}], [{"ops": {"a": 1}}]])
    async def test_nonsense_beside_it_does_no_harm(
        self, sglang: SGLang, server: Server, processes: Any
    ) -> None:
        server.answers["/assay/kernels"] = active(processes=processes)
        probe = await sglang.probe(pod(kernels="fused"))
        assert probe.generated and probe.kernels and probe.kernels.ops == ()

    async def test_one_that_lacks_them_is_asked_again_but_not_in_each_pass(
        self, sglang: SGLang, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its processes may have published what they run only after it was ready."""
        server.answers["/assay/kernels"] = active(active=False, why_not="0 of 1 processes")
        await sglang.probe(pod(kernels="fused"))
        await sglang.probe(pod(kernels="fused"))
        assert server.asked.count(self.ASKED) == 1
        server.answers["/assay/kernels"] = active()
        monkeypatch.setattr(module, "INACTIVE_INTERVAL", 0.0)
        assert (await sglang.probe(pod(kernels="fused"))).generated

    async def test_silence_says_nothing_about_them(self, sglang: SGLang, server: Server) -> None:
        """Neither that they run nor that the engine has to be taken out of service."""
        server.answers["/assay/kernels"] = web.Response(status=503)
        probe = await sglang.probe(pod(kernels="fused"))
        assert probe == Probe(error="/assay/kernels: 503")
        assert await sglang.kernels([pod(kernels="fused")]) == {}
        server.answers["/assay/kernels"] = active()
        assert (await sglang.probe(pod(kernels="fused"))).generated

    async def test_a_busy_one_is_not_asked_and_what_is_known_stays(
        self, sglang: SGLang, server: Server
    ) -> None:
        server.answers["/assay/kernels"] = active()
        engine = pod(kernels="fused")
        assert (await sglang.probe(engine, busy=True)).kernels is None
        known = (await sglang.probe(engine)).kernels
        server.asked.clear()
        assert await sglang.probe(engine, busy=True) == Probe("v1", generated=True, kernels=known)
        server.answers["/model_info"] = web.Response(status=503)
        assert (await sglang.probe(engine)).kernels == known
        assert self.ASKED not in server.asked

    async def test_of_a_jobs_engines_those_that_were_asked_for_them_tell(
        self, sglang: SGLang, server: Server
    ) -> None:
        server.answers["/assay/kernels"] = active()
        found = await sglang.kernels([pod("a", kernels="fused"), pod("b", kernels="stock")])
        assert list(found) == ["a"] and found["a"].active
        await sglang.kernels([pod("a", kernels="fused")])
        assert server.asked == [self.ASKED]
        sglang.forget("a")
        await sglang.kernels([pod("a", kernels="fused")])
        assert server.asked == [self.ASKED] * 2


class TestRouters:
    async def test_healthy_workers_are_told_from_those_that_are_merely_known(
        self, sglang: SGLang
    ) -> None:
        healthy = {"http://10.0.0.1:30000", "http://10.0.0.2:30000"}
        found = await sglang.listing(pod())
        assert found is not None and found.healthy == healthy
        assert found.known == healthy | {"http://10.0.0.3:30000"}

    async def test_none_is_not_the_same_as_no_answer(self, sglang: SGLang, server: Server) -> None:
        server.answers["/metrics"] = web.Response(text="smg_router_requests_total 0\n")
        assert await sglang.listing(pod()) == Listing(frozenset(), frozenset())
        server.answers["/metrics"] = web.Response(status=503)
        assert await sglang.listing(pod()) is None

    @pytest.mark.parametrize(
        "page", ["", "<html>", "smg_worker_health{} 1", 'smg_worker_health{worker="http://x']
    )
    async def test_nonsense_is_no_answer(self, sglang: SGLang, server: Server, page: str) -> None:
        server.answers["/metrics"] = web.Response(text=page)
        assert await sglang.listing(pod()) is None

    async def test_each_router_is_asked(self, sglang: SGLang) -> None:
        listings = await sglang.listings([pod("a"), pod("b", address=None)])
        assert listings["a"] and listings["b"] is None


class TestReach:
    async def test_absurdly_long_answers_are_not_kept(self, sglang: SGLang, server: Server) -> None:
        server.answers["/model_info"] = web.Response(body=b" " * (ways._LARGEST_ANSWER + 1))
        assert "longer than" in ((await sglang.probe(pod())).error or "")

    async def test_text_that_is_not_json(self, sglang: SGLang, server: Server) -> None:
        server.answers["/model_info"] = web.Response(text="<html>")
        assert (await sglang.probe(pod())).error == "/model_info: the answer is not JSON"

    async def test_the_api_server_in_between(self) -> None:
        class Proxy:
            async def proxy(
                self, pod: Json, port: int, path: str, body: Any, s: float, *, text: bool
            ) -> Any:
                if path == "/broken":
                    raise ApiError(503, "ServiceUnavailable", "no endpoints")
                return {"path": path, "port": port, "text": text}

        proxy: Any = Proxy()
        reach = ApiServerReach(proxy)
        assert await reach.ask(pod(), Question(8, "/x")) == {"path": "/x", "port": 8, "text": False}
        with pytest.raises(ProbeError, match="/broken: 503 no endpoints"):
            await reach.ask(pod(), Question(8, "/broken"))
        await reach.close()
