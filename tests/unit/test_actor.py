"""Actors: one task an object, woken by news, never in each other's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from assay_operator import actor as module
from assay_operator.actor import Actors, backoff, debounce
from assay_operator.cluster.apply import Outcome
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.topics import Topic
from assay_operator.cluster.view import Key, View
from assay_operator.conditions import Verdict, with_verdicts
from assay_operator.plan import Json, Plan
from assay_operator.reconciler import Reconciler
from assay_operator.reconcilers.shell import Decide

A, B = Key("inferenceservice", "team", "a"), Key("inferenceservice", "team", "b")
NOW = datetime.fromisoformat("2026-11-24T12:00:00+00:00")


class World:
    """Counts passes; `act` may be replaced by what a pass shall do."""

    def __init__(self) -> None:
        self._grew = asyncio.Condition()
        self.passes: list[Key] = []
        self.complaints: list[tuple[Key, str]] = []
        self.act: Callable[[Key], Awaitable[float | None]] = self.idle
        self.actors = Actors(self.one_pass, self.failed)

    async def idle(self, key: Key) -> float | None:
        return 60.0

    async def one_pass(self, key: Key) -> float | None:
        async with self._grew:
            self.passes.append(key)
            self._grew.notify_all()
        return await self.act(key)

    async def failed(self, key: Key, error: Exception) -> None:
        self.complaints.append((key, str(error)))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(2), self._grew:
            await self._grew.wait_for(lambda: len(self.passes) >= count)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "FIRST_BACKOFF", 0.05)
    made = World()
    yield made
    await made.actors.stop()


async def test_a_follower_has_no_actors(world: World) -> None:
    world.actors.wake(A)
    await asyncio.sleep(0.02)
    assert world.passes == []


async def test_a_leader_begins_with_one_pass_over_every_object(world: World) -> None:
    world.actors.start([A, B])
    await world.until(2)
    assert set(world.passes) == {A, B}
    assert len(world.actors) == 2


async def test_many_wake_ups_at_once_are_one_pass(world: World) -> None:
    world.actors.start([A])
    await world.until(1)
    for _ in range(50):
        world.actors.wake(A)
    await world.until(2)
    await asyncio.sleep(0.1)
    assert len(world.passes) == 2


async def test_a_wake_up_during_a_pass_is_not_lost(world: World) -> None:
    async def slow(_: Key) -> float | None:
        await asyncio.sleep(0.05)
        return 60.0

    world.act = slow
    world.actors.start([A])
    await world.until(1)
    world.actors.wake(A)
    await world.until(2)


async def test_without_news_an_actor_looks_again_when_the_plan_said(world: World) -> None:
    async def soon(_: Key) -> float | None:
        return 0.02

    world.act = soon
    world.actors.start([A])
    await world.until(3)


async def test_an_actor_ends_with_its_object_and_begins_again_with_the_next(world: World) -> None:
    async def gone(_: Key) -> float | None:
        return None

    world.act = gone
    world.actors.start([A])
    await world.until(1)
    await asyncio.sleep(0.02)
    assert len(world.actors) == 0
    world.actors.wake(A)
    await world.until(2)


async def test_a_failure_is_told_repeated_and_delays_nobody_else(world: World) -> None:
    async def fails_for_a(key: Key) -> float | None:
        if key == A:
            raise ValueError("broken")
        return 60.0

    world.act = fails_for_a
    world.actors.start([A, B])
    await world.until(4)
    assert (A, "broken") in world.complaints
    assert world.passes.count(B) == 1
    world.act = world.idle
    await world.until(5)


async def test_a_complaint_that_fails_too_ends_nothing(world: World) -> None:
    async def raises(*_: object) -> Any:
        raise ApiError(503, "ServiceUnavailable", "down")

    world.act = raises
    world.actors = Actors(world.one_pass, raises)
    world.actors.start([A])
    await world.until(2)
    await world.actors.stop()


async def test_after_a_stop_nothing_works_any_more(world: World) -> None:
    world.actors.start([A, B])
    await world.until(2)
    await world.actors.stop()
    world.actors.wake(A)
    await asyncio.sleep(0.02)
    assert len(world.actors) == 0
    assert len(world.passes) == 2


@pytest.mark.parametrize("ticks", range(5))
async def test_news_in_the_moment_of_a_stop_holds_nothing_up(world: World, ticks: int) -> None:
    world.actors.start([A])
    await world.until(1)
    await asyncio.sleep(0.05)
    world.actors.wake(A)
    for _ in range(ticks):
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await world.actors.stop()
    assert len(world.actors) == 0


def test_back_off_grows_and_is_bounded() -> None:
    assert [backoff(n) for n in (1, 2, 3, 10, 1000)] == [1, 2, 4, 60, 60]


def test_dear_passes_gather_more_wake_ups() -> None:
    assert debounce(0.0001) == 0.02
    assert debounce(0.3) == 0.3
    assert debounce(30) == 1.0


def an_object(status: Json | None = None, **metadata: Any) -> Json:
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "a", "namespace": "team", "resourceVersion": "1", **metadata},
        "status": status or {},
    }


class FakeApplier:
    """Says what became of the children, and keeps what was told."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.told: list[Plan] = []
        self.statuses: list[Json] = []
        self.forgotten: list[Key] = []
        self.retry: float | None = None

    def forget(self, key: Key) -> None:
        self.forgotten.append(key)

    def rejections(self, key: Key) -> Json:
        return {}

    def retry_in(self, key: Key) -> float | None:
        return self.retry

    async def children(self, key: Key, owner: Json, plan: Plan) -> Outcome:
        return self.outcomes.pop(0) if self.outcomes else Outcome(changed=False)

    async def tell(self, key: Key, owner: Json, plan: Plan, now: datetime) -> None:
        self.told.append(plan)

    async def status(self, key: Key, owner: Json, status: Json) -> None:
        self.statuses.append(status)


class FakeKind:
    """Plans that say how often the object was planned for, and looks that are counted."""

    def __init__(self) -> None:
        self.looks = self.rounds = 0

    async def look(self, key: Key, owner: Json) -> Decide:
        self.looks += 1
        return self.decide

    def decide(self, owner: Json, now: datetime) -> Plan:
        self.rounds += 1
        return Plan(status={"round": self.rounds}, next_look=30.0)


class TestPass:
    def reconciler(self, applier: FakeApplier, *items: Json) -> Reconciler:
        self.kind = FakeKind()
        self.view = View()
        for item in items:
            self.view.put(item)
        fake: Any = applier
        return Reconciler(self.view, fake, {"inferenceservice": self.kind})

    async def test_what_takes_time_is_asked_once_however_often_is_planned(self) -> None:
        applier = FakeApplier(Outcome(changed=True))
        assert await self.reconciler(applier, an_object())(A) == 30.0
        assert (self.kind.looks, self.kind.rounds) == (1, 2)

    async def test_a_kind_without_work_has_no_passes(self) -> None:
        grant = an_object() | {"kind": "CheckpointGrant"}
        reconcile = self.reconciler(FakeApplier(), grant)
        assert await reconcile(Key("checkpointgrant", "team", "a")) is None
        assert self.kind.looks == 0

    async def test_a_status_is_told_once_after_the_world_settled(self) -> None:
        applier = FakeApplier(Outcome(changed=True))
        await self.reconciler(applier, an_object())(A)
        assert [plan.status for plan in applier.told] == [{"round": 2}]

    async def test_a_world_that_never_settles_is_told_of_all_the_same(self) -> None:
        applier = FakeApplier(*[Outcome(changed=True)] * 9)
        await self.reconciler(applier, an_object())(A)
        assert [plan.status for plan in applier.told] == [{"round": 3}]

    async def test_transient_errors_repeat_the_pass_after_the_status_was_told(self) -> None:
        error = ApiError(503, "ServiceUnavailable", "later")
        applier = FakeApplier(Outcome(changed=False, errors=(error,)))
        with pytest.raises(ApiError):
            await self.reconciler(applier, an_object())(A)
        assert len(applier.told) == 1

    async def test_a_refused_child_is_tried_again_before_the_next_look(self) -> None:
        applier = FakeApplier()
        applier.retry = 2.0
        assert await self.reconciler(applier, an_object())(A) == 2.0

    async def test_an_object_that_is_gone_ends_its_actor(self) -> None:
        applier = FakeApplier()
        reconcile = self.reconciler(applier)
        self.view.watch(A, [Topic("Checkpoint", "team")])
        assert await reconcile(A) is None
        assert applier.forgotten == [A]
        woken: list[Key] = []
        self.view.wake = woken.append
        self.view.put(an_object(name="c") | {"kind": "Checkpoint"})
        assert woken == [Key("checkpoint", "team", "c")], "and nothing wakes it any more"

    async def test_an_object_on_its_way_out_is_left_alone(self) -> None:
        applier = FakeApplier()
        going = an_object(deletionTimestamp="2026-11-24T12:00:00Z")
        assert await self.reconciler(applier, going)(A)
        assert applier.told == []

    async def test_our_own_errors_stand_in_the_status_and_the_api_servers_do_not(self) -> None:
        applier = FakeApplier()
        reconcile = self.reconciler(applier, an_object({"replicas": 1}))
        await reconcile.complain(A, ApiError(503, "ServiceUnavailable", "later"))
        assert applier.statuses == []
        await reconcile.complain(A, KeyError("spec"))
        [status] = applier.statuses
        assert status["replicas"] == 1
        assert "KeyError" in status["conditions"][0]["message"]


def test_an_error_that_lasts_keeps_the_time_it_began() -> None:
    ready = {"type": "Ready", "status": "True"}
    broken = {"Applied": Verdict(False, "InternalError", "broken")}
    first = with_verdicts({"conditions": [ready]}, broken, 1, NOW)
    assert first["conditions"][0] == ready
    assert with_verdicts(first, broken, 1, NOW.replace(hour=13)) == first
