"""Health: a watch that died is noticed, an API server that is away is no reason to die."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY

from assay_operator.cluster.audit import Audit, missed, take_in
from assay_operator.cluster.lease import Heartbeat
from assay_operator.cluster.view import Key, View
from assay_operator.health import application, sick
from assay_operator.plan import Json

KEY = Key("inferenceservice", "team", "solver")


def config_map(name: str, version: int) -> Json:
    labels = {"assay.dev/owner": "inferenceservice.solver"}
    metadata = {"namespace": "team", "name": name, "labels": labels, "uid": name}
    metadata |= {"resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def names(view: View) -> set[str]:
    return {ref.name for ref in view.children(KEY)}


class TestEndpoints:
    async def get(self, path: str, alive: list[str], ready: list[str]) -> tuple[int, str]:
        made = application(lambda: alive, lambda: ready, lambda: None)
        async with TestClient(TestServer(made)) as client:
            answer = await client.get(path)
            return answer.status, await answer.text()

    async def test_all_well(self) -> None:
        assert await self.get("/healthz", [], ["not yet"]) == (200, "ok\n")
        assert await self.get("/readyz", ["dying"], []) == (200, "ok\n")

    async def test_the_reason_is_told(self) -> None:
        assert await self.get("/healthz", ["a watch is dead"], []) == (503, "a watch is dead\n")
        assert await self.get("/readyz", [], ["not synced"]) == (503, "not synced\n")

    async def test_metrics(self) -> None:
        status, text = await self.get("/metrics", [], [])
        assert status == 200
        for name in ("assay_leader", "assay_queue", "assay_actors", "assay_view_objects"):
            assert f"\n{name} " in text


class TestSick:
    def test_a_silent_watch_of_the_lease(self) -> None:
        beat = Heartbeat()
        for second in range(0, 32, 2):
            beat.answered(f"{second:03}", second)
        assert sick(beat, {}) == []
        beat.answered("032", 32)
        assert "watch of our Lease is dead" in sick(beat, {})[0]
        beat.echoed("032")
        assert sick(beat, {}) == []

    def test_a_watch_that_missed_something(self) -> None:
        [reason] = sick(Heartbeat(), {"Pod": "p in team"})
        assert "the watch of Pod is dead" in reason


class TestTakingInAList:
    def test_what_the_watch_said_already_is_no_suspicion(self) -> None:
        view = View()
        view.put(config_map("a", 5), watched=True)
        suspicion = take_in(view, "ConfigMap", [config_map("a", 5)], view.known("ConfigMap"))
        assert not suspicion.stale and not suspicion.gone

    def test_what_is_new_is_taken_in_at_once(self) -> None:
        view = View()
        suspicion = take_in(view, "ConfigMap", [config_map("a", 5)], {})
        assert names(view) == {"a"}
        assert len(missed(view, suspicion)) == 1

    def test_what_the_watch_says_a_moment_later_was_not_missed(self) -> None:
        view = View()
        suspicion = take_in(view, "ConfigMap", [config_map("a", 5), config_map("b", 6)], {})
        view.put(config_map("a", 5), watched=True)
        view.remove(config_map("b", 7))
        assert missed(view, suspicion) == []

    def test_our_own_writes_prove_nothing_about_the_watch(self) -> None:
        view = View()
        view.put(config_map("a", 5), by=KEY)
        suspicion = take_in(view, "ConfigMap", [config_map("a", 5)], view.known("ConfigMap"))
        assert len(missed(view, suspicion)) == 1

    def test_what_is_gone_is_removed(self) -> None:
        view = View()
        view.put(config_map("a", 5), watched=True)
        suspicion = take_in(view, "ConfigMap", [], view.known("ConfigMap"))
        assert names(view) == set()
        assert len(suspicion.gone) == 1

    def test_what_came_or_moved_after_the_list_was_asked_for_stays(self) -> None:
        view = View()
        view.put(config_map("a", 5), watched=True)
        before = view.known("ConfigMap")
        view.put(config_map("a", 8), watched=True)
        view.put(config_map("b", 9), watched=True)
        take_in(view, "ConfigMap", [], before)
        assert names(view) == {"a", "b"}


class FakeLists:
    def __init__(self, *config_maps: Json) -> None:
        self.config_maps = config_maps

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> list[Json]:
        return list(self.config_maps) if kind == "ConfigMap" else []


def counted(kind: str) -> float:
    return REGISTRY.get_sample_value("assay_watch_missed_total", {"kind": kind}) or 0.0


class TestAudit:
    @pytest.fixture
    def view(self) -> View:
        return View()

    def audit(self, view: View, *listed: Json) -> Audit:
        client: Any = FakeLists(*listed)
        return Audit(client, view, [None])

    async def test_a_dead_watch_is_counted_told_and_forgiven_when_it_lives_again(
        self, view: View
    ) -> None:
        audit, before = self.audit(view, config_map("a", 5)), counted("ConfigMap")
        audit.judge("ConfigMap", (await audit.sync())["ConfigMap"])
        assert counted("ConfigMap") == before + 1
        assert audit.dead == {"ConfigMap": "a in team"}
        view.put(config_map("a", 6), watched=True)
        audit.judge("ConfigMap", (await audit.sync())["ConfigMap"])
        assert audit.dead == {}

    async def test_a_missed_deletion_is_mended_and_counted_and_kills_nobody(
        self, view: View
    ) -> None:
        view.put(config_map("a", 5), watched=True)
        audit, before = self.audit(view), counted("ConfigMap")
        audit.judge("ConfigMap", (await audit.sync())["ConfigMap"])
        assert names(view) == set()
        assert counted("ConfigMap") == before + 1
        assert audit.dead == {}
