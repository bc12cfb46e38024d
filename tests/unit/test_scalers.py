"""What watches the load of services: who is asked, what is kept, and when a pass is asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from assay_operator.cluster.view import Key, View
from assay_operator.conditions import stamp
from assay_operator.inference.kernels import Kernels
from assay_operator.inference.observation import ENGINE_PORT, METRICS_PORT
from assay_operator.plan import Json
from assay_operator.reconcilers import autoscaling as module
from assay_operator.reconcilers.autoscaling import Scalers
from assay_operator.sglang.reach import ProbeError, Question
from tests.unit.test_reconcilers import SERVICE, pod, resource
from tests.unit.test_signals import URL, page
from tests.unit.worlds import SOURCE

SPEC: Json = {
    "model": {"source": SOURCE},
    "engine": {"accelerator": "cpu"},
    "replicas": 1,
    "autoscaling": {"min": 0, "max": 4, "objectives": {"concurrency": 8}},
}
AWAY: Json = {
    "autoscaling": {"driver": "builtin", "replicas": 0, "specReplicas": 1},
    "activation": {"phase": "Away"},
}


class Fake:
    """Pods that answer, an activator that says what waits at it, and who is woken."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.silent: set[str] = set()
        self.lacking: set[str] = set()
        self.requests = 5.0
        self.running = "3.0"
        self.held = 0
        self.attended: list[str] = []
        self.woken: list[Key] = []

    async def ask(self, item: Any, question: Question | None = None) -> Any:
        if question is None:
            return await self.activators(list(item))
        name = item["metadata"]["name"]
        self.asked.append(f"{name}:{question.port}{question.path}")
        if name in self.silent:
            raise ProbeError("no answer")
        if question.port == METRICS_PORT:
            health = f'smg_worker_health{{worker="{URL}"}} 1'
            return f'{health}\nsmg_router_requests_total{{model="x"}} {self.requests}'
        return page(running=self.running)

    async def activators(self, pods: list[Json]) -> tuple[Json | None, ...]:
        return tuple(
            None
            if item["metadata"]["name"] in self.silent
            else {"held": self.held, "requests": self.held}
            for item in pods
        )

    def known_kernels(self, item: Json) -> Kernels | None:
        return Kernels(active=False) if item["metadata"]["name"] in self.lacking else None

    def attend(self, pods: Any) -> None:
        self.attended += [item["metadata"]["name"] for item in pods]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def view() -> View:
    made = View()
    made.put(service())
    for item in (pod(SERVICE, "e", "engine"), pod(SERVICE, "r", "router")):
        item["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        made.put(item)
    return made


@pytest.fixture
async def scalers(view: View, fake: Fake) -> AsyncIterator[Scalers]:
    anything: Any = fake
    made = Scalers(view, anything, anything, anything, fake.woken.append)
    yield made
    made.close()


def service(spec: Json | None = None, status: Json | None = None, version: int = 1) -> Json:
    made = resource("InferenceService", SERVICE, {**SPEC, **(spec or {})}, status)
    made["metadata"]["resourceVersion"] = str(version)
    return made


async def looked(scalers: Scalers, view: View, turns: int = 1) -> Any:
    """What is known after so many looks."""
    watched = await alone(scalers, view)
    for _ in range(turns):
        await scalers._turn(SERVICE, watched)
    return watched.seen


async def alone(scalers: Scalers, view: View) -> Any:
    """What is kept of the service, with nobody who looks at it but the test."""
    owner = view.owner(SERVICE)
    assert owner
    await scalers.look(SERVICE, owner)
    watched = scalers._watched[SERVICE]
    watched.end()
    return watched


def now() -> datetime:
    return datetime.now(UTC)


def gauge(name: str) -> float | None:
    labels = {"namespace": SERVICE.namespace, "service": SERVICE.name}
    return REGISTRY.get_sample_value(f"assay_autoscaling_{name}", labels)


async def test_engines_and_routers_are_asked_once_for_each_look(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    view.put(pod(SERVICE, "unready", "engine", ready=False))
    view.put(pod(SERVICE, "gate", "gate"))
    seen = await looked(scalers, view)
    assert sorted(fake.asked) == [f"e:{ENGINE_PORT}/metrics", f"r:{METRICS_PORT}/metrics"]
    sample = seen.decision.findings.sample
    assert (sample.ready, sample.running, sample.arrivals) == (1, 3, None)
    fake.requests = 9
    sample = (await looked(scalers, view)).decision.findings.sample
    assert sample.arrivals == 4 and sample.known


async def test_an_engine_that_lacks_its_kernels_is_not_waited_for(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    """It is up beside the one that serves, gets no requests, and brings none of the others."""
    view.put(lost := pod(SERVICE, "lost", "engine"))
    lost["status"]["podIP"] = "10.0.0.77"
    assert (await looked(scalers, view)).decision.findings.sample.starting == 1
    fake.lacking = {"lost"}
    sample = (await looked(scalers, view)).decision.findings.sample
    assert (sample.ready, sample.starting) == (1, 0)


async def test_a_pass_waits_for_no_engine(scalers: Scalers, view: View, fake: Fake) -> None:
    """Looks go on beside the passes: one that takes for ever delays nobody."""
    never = asyncio.Event()

    async def ask(*_: Any) -> Any:
        await never.wait()

    fake.ask = ask  # type: ignore[method-assign]
    owner = view.owner(SERVICE)
    assert owner and await asyncio.wait_for(scalers.look(SERVICE, owner), 1) is None


async def test_a_pass_is_asked_for_when_there_is_something_to_write(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    seen = await looked(scalers, view)
    assert fake.woken == [SERVICE]
    written = {"driver": "builtin", "replicas": seen.decision.replicas, "time": stamp(now())}
    view.put(service(status={"autoscaling": written}, version=2))
    await looked(scalers, view)
    assert fake.woken == [SERVICE], "it stands there"
    view.put(service(status={"autoscaling": {**written, "replicas": 3}}, version=3))
    await looked(scalers, view)
    assert fake.woken == [SERVICE] * 2


async def test_one_that_does_not_answer_is_unknown_and_its_time_is_counted(
    scalers: Scalers, view: View, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    await looked(scalers, view)
    fake.silent = {"e"}
    seen = await looked(scalers, view, turns=3)
    assert seen.decision.findings.sample.silent == 1
    assert seen.unknown_s >= 30
    fake.silent = set()
    assert (await looked(scalers, view)).unknown_s == 0


async def test_an_engine_that_keeps_a_look_waiting_makes_no_rate_smaller(
    scalers: Scalers, view: View, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    await looked(scalers, view)
    answers = fake.ask

    async def late(item: Any, question: Question | None = None) -> Any:
        if question and question.port == ENGINE_PORT:
            clock[0] += 4
            raise ProbeError("no answer")
        return await answers(item, question)

    clock[0], fake.ask = 5.0, late  # type: ignore[method-assign]
    assert (await looked(scalers, view)).decision.findings.sample.seconds == 5


async def test_at_rest_a_pass_hears_at_once_of_the_first_request(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    view.put(service(status=AWAY, version=2))
    view.remove(pod(SERVICE, "e", "engine"))
    view.remove(pod(SERVICE, "r", "router"))
    view.put(pod(SERVICE, "a", "activator"))
    seen = (await alone(scalers, view)).seen
    assert seen and seen.decision.replicas == 0
    assert fake.attended == ["a"], "its activator wakes the actor"
    fake.held = 2
    seen = (await alone(scalers, view)).seen
    assert seen and (seen.decision.replicas, seen.decision.reason) == (1, "FirstRequest")
    assert SERVICE in fake.woken and seen.answers == ({"held": 2, "requests": 2},)


async def test_what_waits_at_an_activator_on_its_way_out_is_heard_of_too(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    view.put(service(status=AWAY, version=2))
    view.remove(pod(SERVICE, "e", "engine"))
    view.remove(pod(SERVICE, "r", "router"))
    view.put(leaving := pod(SERVICE, "a", "activator", ready=False))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    view.put(evicted := pod(SERVICE, "b", "activator", ready=False))
    evicted["status"]["phase"] = "Failed"
    fake.held = 2
    seen = (await alone(scalers, view)).seen
    assert seen and (seen.decision.replicas, seen.decision.reason) == (1, "FirstRequest")
    assert seen.decision.findings.sample.held == 2 and fake.attended == ["a"]


async def test_only_the_silence_of_an_activator_that_is_ready_is_a_load_that_is_not_known(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    view.put(pod(SERVICE, "a", "activator", ready=False))
    fake.silent = {"a"}
    assert (await looked(scalers, view, turns=2)).decision.findings.sample.known
    view.put(ready := pod(SERVICE, "a", "activator"))
    ready["metadata"]["resourceVersion"] = "2"
    assert not (await looked(scalers, view)).decision.findings.sample.known


async def test_looks_become_more_frequent_as_soon_as_the_service_wakes(
    scalers: Scalers, view: View
) -> None:
    view.put(service(status=AWAY, version=2))
    await looked(scalers, view)
    watched = scalers._watched[SERVICE]
    assert watched.pause == 30
    waking = {"autoscaling": {**AWAY["autoscaling"], "replicas": 1}}
    view.put(service(status={**waking, "activation": {"phase": "Waking"}}, version=3))
    owner = view.owner(SERVICE)
    assert owner
    await scalers.look(SERVICE, owner)
    assert watched.bell.is_set()


async def test_what_was_learned_comes_back_from_the_status(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    state = json.dumps({"replicas": 3, "startupS": 77.0})
    told = {"driver": "builtin", "replicas": 3, "state": state}
    view.put(service(status={"autoscaling": told}, version=2))
    seen = await looked(scalers, view)
    assert seen.decision.state.startup_s == 77 and seen.decision.findings.before == 3


async def test_a_number_of_another_driver_is_not_gone_on_from(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    state = json.dumps({"replicas": 4})
    told = {"driver": "hpa", "replicas": 4, "state": state}
    view.put(service(status={"autoscaling": told}, version=2))
    assert (await looked(scalers, view)).decision.findings.before == 1


@pytest.mark.parametrize(
    "spec", [{"autoscaling": None}, {"replicas": 0}, {"engine": {"accelerator": "abacus"}}]
)
async def test_who_does_not_scale_or_cannot_is_not_watched(
    scalers: Scalers, view: View, fake: Fake, spec: Json
) -> None:
    await looked(scalers, view)
    assert gauge("replicas_wanted") == 1
    changed = service(spec, version=2)
    view.put(changed)
    assert await scalers.look(SERVICE, changed) is None
    assert not scalers._watched and gauge("replicas_wanted") is None


async def test_a_service_that_is_gone_is_forgotten(
    scalers: Scalers, view: View, fake: Fake
) -> None:
    await looked(scalers, view)
    watched = scalers._watched[SERVICE]
    view.remove(service(version=2))
    await scalers._turn(SERVICE, watched)
    assert not scalers._watched


async def test_an_error_of_our_own_ends_no_watch(
    scalers: Scalers, view: View, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "decide", broken)
    await looked(scalers, view)
    assert "the load could not be judged" in caplog.text
    assert SERVICE in scalers._watched


async def test_prometheus_is_told(scalers: Scalers, view: View, fake: Fake) -> None:
    await looked(scalers, view, turns=2)
    assert gauge("replicas_wanted") == 1
    steady = {"reason": "MetricsUnknown"}
    assert REGISTRY.get_sample_value("assay_autoscaling_decisions_total", steady)
