"""A batch is bounded, lazy, in order, and stops when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from assay_verifiers import Bench, Job, Task, Verdict, VerifierModel, verify, verify_batch
from assay_verifiers.config import MathVerifier
from assay_verifiers.contract import Unavailable, ok

MATH = {"type": "math"}


class Watched(VerifierModel):
    type: Literal["watched"] = "watched"


@dataclass
class Watcher:
    """A verifier that counts who is in it; a completion is how long it takes."""

    inside: int = 0
    most: int = 0
    done: list[str] = field(default_factory=list)
    gave_up: int = 0

    async def verify(self, task: Task, completion: str) -> Verdict:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(float(completion))
        except asyncio.CancelledError:
            self.gave_up += 1
            raise
        finally:
            self.inside -= 1
        self.done.append(task.id)
        return ok(task.id)


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Watcher:
    """What the type `watched` is judged by."""
    found = Watcher()
    monkeypatch.setattr("assay_verifiers.registry._maker", lambda _: lambda model, bench: found)
    return found


def jobs(*seconds: float) -> list[Job]:
    return [Job(Watched(), Task(str(n)), str(each)) for n, each in enumerate(seconds)]


async def test_verdicts_come_back_in_the_jobs_order(watcher: Watcher) -> None:
    async with Bench() as bench:
        verdicts = await verify_batch(bench, jobs(0.2, 0.1, 0.0), concurrency=3)
    assert [verdict.detail for verdict in verdicts] == ["0", "1", "2"]
    assert watcher.done == ["2", "1", "0"]


async def test_no_more_are_under_way_than_allowed(watcher: Watcher) -> None:
    async with Bench() as bench:
        await verify_batch(bench, jobs(*[0.01] * 50), concurrency=7)
    assert watcher.most == 7


async def test_jobs_are_taken_as_there_is_room(watcher: Watcher) -> None:
    taken = 0
    most_ahead = 0

    def endless() -> Iterator[Job]:
        nonlocal taken, most_ahead
        for job in jobs(*[0.0] * 500):
            taken += 1
            most_ahead = max(most_ahead, taken - len(watcher.done))
            yield job

    async with Bench() as bench:
        assert len(await verify_batch(bench, endless(), concurrency=5)) == 500
    assert most_ahead <= 5


async def test_progress_is_told_with_the_jobs_number(watcher: Watcher) -> None:
    told: list[tuple[int, str]] = []
    async with Bench() as bench:
        await verify_batch(
            bench, jobs(0.1, 0.0), on_verdict=lambda n, verdict: told.append((n, verdict.detail))
        )
    assert told == [(1, "1"), (0, "0")]


async def test_no_jobs_give_no_verdicts(watcher: Watcher) -> None:
    async with Bench() as bench:
        assert await verify_batch(bench, []) == []


async def test_cancelling_stops_everything(watcher: Watcher) -> None:
    async with Bench() as bench:
        before = asyncio.all_tasks()
        batch = asyncio.create_task(verify_batch(bench, jobs(*[30.0] * 20), concurrency=4))
        await asyncio.sleep(0.1)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(batch, 2)
        assert asyncio.all_tasks() == before
    assert (watcher.gave_up, watcher.inside, watcher.done) == (4, 0, [])


async def test_cancelling_has_its_turn_where_no_verdict_waits() -> None:
    job = Job(MathVerifier(), Task("a", reference="1"), "A: 1")

    def endless() -> Iterator[Job]:
        while True:
            yield job

    async with Bench() as bench:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(verify_batch(bench, endless()), 0.2)


async def test_what_the_progress_raises_ends_the_batch(watcher: Watcher) -> None:
    def full(number: int, verdict: Verdict) -> None:
        raise OSError("disk full")

    async with Bench() as bench:
        with pytest.raises(OSError, match="disk full"):
            await verify_batch(bench, jobs(0.0, 30.0), on_verdict=full)
    assert watcher.gave_up == 1


async def test_a_verifier_that_cannot_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def maker(type_: str) -> Any:
        raise Unavailable("no sandbox here")

    monkeypatch.setattr("assay_verifiers.registry._maker", maker)
    async with Bench() as bench:
        with pytest.raises(Unavailable, match="no sandbox"):
            await verify_batch(bench, jobs(0.0))


async def test_a_batch_without_room_is_refused(watcher: Watcher) -> None:
    async with Bench() as bench:
        with pytest.raises(ValueError, match="at least 1"):
            await verify_batch(bench, jobs(0.0), concurrency=0)


def test_a_single_completion_is_judged_without_an_event_loop() -> None:
    assert verify(MATH, "The answer is 18.", reference=18).status == "ok"
    assert verify(MATH, "The answer is 17.", reference=18).status == "wrong"


async def test_inside_an_event_loop_it_says_what_to_use() -> None:
    with pytest.raises(RuntimeError, match="await verify_one"):
        verify(MATH, "The answer is 18.", reference=18)
