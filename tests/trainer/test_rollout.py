"""Drawing a step: which items, how judged, what is replaced, what a failure leaves behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.batch import Batch, Completion, Prompt, Sample
from assay_trainer.items import DataError
from assay_trainer.job import Job, load
from assay_trainer.rollout import Rollout, differs
from assay_verifiers.config import MathVerifier, RegexVerifier, VerifierModel
from assay_verifiers.contract import Task
from assay_verifiers.registry import Bench
from tests.trainer.jobs import write

VERSION = "1.0"


class Broken(Exception):
    """What an engine raises when no attempt came through."""


def completion(text: str, cut: bool = False) -> Completion:
    """Letters are tokens; a completion that ends by itself ends with a full stop's."""
    ids = tuple(map(ord, text if cut else f"{text}."))
    finish = "length" if cut else "stop"
    return Completion(ids, (-0.5,) * len(ids), (VERSION,) * len(ids), finish)


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids)).removesuffix(".")


@dataclass
class Questions:
    """Item n asks `n`, and n is right."""

    verifier: VerifierModel = field(default_factory=MathVerifier)
    refused: int | None = None

    def prompt(self, number: int) -> Prompt:
        if number == self.refused:
            raise DataError(f"item {number}: too long")
        ids = tuple(map(ord, str(number)))
        return Prompt(number, ids, Task(f"item-{number}", str(number), str(number)), self.verifier)


@dataclass
class Engine:
    """Answers by a function of the question; `n`, and what else was asked, is kept."""

    answers: Callable[[str], list[Completion]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    seconds: Callable[[str], float] = lambda question: 0.0

    async def generate(
        self, ids: Sequence[int], *, n: int, max_tokens: int, temperature: float
    ) -> list[Completion]:
        question = "".join(map(chr, ids))
        given = {"n": n, "max_tokens": max_tokens, "temperature": temperature}
        self.asked.append({"question": question, **given})
        self.under_way += 1
        try:
            await asyncio.sleep(self.seconds(question))
            return self.answers(question)
        finally:
            self.under_way -= 1


def half_right(question: str) -> list[Completion]:
    return [completion(question), completion("no"), completion(question), completion("-5")]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(1) as made:
        yield made


def job_of(folder: Path, **changes: Any) -> Job:
    """Three prompts with four completions each."""
    fields = {f"rollout.{name}": value for name, value in changes.items()}
    sizes = {"trainer.promptsPerStep": 3, "algorithm": {"groupSize": 4}}
    return load(write(folder, {"verifiers": [{"type": "math"}], **sizes, **fields}))


def numbers(batch: Batch) -> list[int]:
    """The item of each group."""
    return [sample.number for sample in batch.samples[::4]]


# What is asked, and what comes of it.


async def test_a_step_is_whole_groups_of_the_next_items(tmp_path: Path, bench: Bench) -> None:
    engine = Engine(half_right)
    job = job_of(tmp_path, maxTokens=9, temperature=0.7)
    batch = await Rollout(engine, Questions(), bench, job, decode).draw(5, 10)
    assert (batch.step, batch.position, batch.groups) == (5, 13, 3)
    assert [sample.group for sample in batch.samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert numbers(batch) == [10, 11, 12]
    assert engine.asked == [
        {"question": question, "n": 4, "max_tokens": 9, "temperature": 0.7}
        for question in ("10", "11", "12")
    ]
    following = await Rollout(engine, Questions(), bench, job, decode).draw(6, batch.position)
    assert numbers(following) == [13, 14, 15]


async def test_samples_keep_what_the_engine_said_and_get_the_verdicts_score(
    tmp_path: Path, bench: Bench
) -> None:
    batch = await Rollout(Engine(half_right), Questions(), bench, job_of(tmp_path), decode).draw(
        1, 42
    )
    first, second, _, last = batch.samples[:4]
    assert first == Sample(
        "item-42", 42, 0, tuple(map(ord, "42")), completion("42"), 1.0, "ok", True
    )
    assert (second.reward, second.status, second.judged) == (0.0, "unparsed", True)
    assert (last.reward, last.status, last.judged) == (0.0, "wrong", True)


async def test_what_cannot_be_judged_is_masked_and_counted(tmp_path: Path, bench: Bench) -> None:
    # Without a pattern in the reference, which is an error of the item.
    prompts = Questions(RegexVerifier())
    batch = await Rollout(Engine(half_right), prompts, bench, job_of(tmp_path), decode).draw(1, 0)
    assert {(s.status, s.reward, s.judged) for s in batch.samples} == {("error", 0.0, False)}
    assert batch.metrics["status/error"] == 12


def one_cut(question: str) -> list[Completion]:
    return [completion(question, cut=True), completion(question), completion("no"), completion("1")]


@pytest.mark.parametrize(
    ("truncated", "outcome", "ok"),
    [
        ("judge", (1.0, "ok", True), 6),
        ("wrong", (0.0, "wrong", True), 3),
        ("mask", (0.0, "unparsed", False), 3),
    ],
)
async def test_a_truncated_completion_is_taken_as_the_job_says(
    tmp_path: Path, bench: Bench, truncated: str, outcome: tuple[float, str, bool], ok: int
) -> None:
    job = job_of(tmp_path, truncated=truncated)
    batch = await Rollout(Engine(one_cut), Questions(), bench, job, decode).draw(1, 50)
    cut, whole = batch.samples[:2]
    assert (cut.reward, cut.status, cut.judged) == outcome
    assert (whole.reward, whole.status, whole.judged) == (1.0, "ok", True)
    assert batch.metrics["samples/truncated"] == 0.25
    # Only what a verifier said is counted.
    assert batch.metrics["status/ok"] == ok
    assert batch.metrics["status/wrong"] == 3


async def test_metrics_count_the_batchs_tokens(tmp_path: Path, bench: Bench) -> None:
    rollout = Rollout(Engine(half_right), Questions(), bench, job_of(tmp_path), decode)
    metrics = (await rollout.draw(1, 10)).metrics
    # "10.", "no.", "10.", "-5."
    assert metrics["samples"] == 12
    assert metrics["tokens/completion"] == 36
    assert metrics["tokens/prompt"] == 24
    assert (metrics["length/mean"], metrics["length/max"]) == (3, 3)
    assert metrics["groups/resampled"] == metrics["tokens/resampled"] == 0
    assert sum(count for name, count in metrics.items() if name.startswith("status/")) == 12


# Verifying.


@dataclass
class Counting:
    """A verifier that counts, and takes its time."""

    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)
    under_way: int = 0

    def put_into(self, bench: Bench) -> None:
        bench.verifier = lambda model: self  # type: ignore[method-assign, assignment]

    async def verify(self, task: Task, text: str) -> Any:
        self.seen.append(text)
        self.under_way += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.under_way -= 1
        return await math().verify(task, text)


def math() -> Any:
    return Bench().verifier(MathVerifier())


async def test_the_same_completion_of_a_prompt_is_judged_once(tmp_path: Path, bench: Bench) -> None:
    verifier = Counting()
    verifier.put_into(bench)
    batch = await Rollout(
        Engine(lambda question: [completion("1")] * 3 + [completion("2")]),
        Questions(),
        bench,
        job_of(tmp_path),
        decode,
    ).draw(1, 0)
    assert verifier.seen == ["1", "2"] * 3
    assert [sample.reward for sample in batch.samples] == [0] * 4 + [1] * 3 + [0] * 4 + [1]


async def test_a_group_is_judged_while_others_are_drawn(tmp_path: Path, bench: Bench) -> None:
    verifier = Counting(seconds=0.3)
    verifier.put_into(bench)
    engine = Engine(half_right, seconds=lambda question: 0.5 if question == "2" else 0.05)
    rollout = Rollout(engine, Questions(), bench, job_of(tmp_path), decode)
    began = time.monotonic()
    metrics = (await rollout.draw(1, 0)).metrics
    wall = time.monotonic() - began
    # Drawn until 0.5 s at least; the last group is then judged for 0.3 s more, alone.
    drawing, waiting = metrics["seconds/rollout"], metrics["seconds/verify"]
    assert drawing >= 0.5
    assert waiting >= 0.3
    assert 0.3 <= metrics["seconds/verify-hidden"] < drawing
    assert drawing + waiting <= wall


# Groups without variance.


def uniform_below(limit: int) -> Callable[[str], list[Completion]]:
    def answers(question: str) -> list[Completion]:
        return [completion(question)] * 4 if int(question) < limit else half_right(question)

    return answers


async def test_groups_without_variance_give_way_to_the_next_prompts(
    tmp_path: Path, bench: Bench
) -> None:
    job = job_of(tmp_path, resampleRounds=2)
    rollout = Rollout(Engine(uniform_below(12)), Questions(), bench, job, decode)
    batch = await rollout.draw(1, 10)
    assert sorted(numbers(batch)) == [12, 13, 14]
    assert [sample.group for sample in batch.samples[::4]] == [0, 1, 2]
    assert batch.position == 15
    assert batch.metrics["groups/resampled"] == 2
    assert batch.metrics["tokens/resampled"] == 24
    assert batch.metrics["samples"] == 12


async def test_what_is_uniform_after_the_last_round_stays(tmp_path: Path, bench: Bench) -> None:
    engine = Engine(uniform_below(1000))
    job = job_of(tmp_path, resampleRounds=2)
    batch = await Rollout(engine, Questions(), bench, job, decode).draw(1, 10)
    assert sorted(numbers(batch)) == [16, 17, 18]
    assert sorted(int(one["question"]) for one in engine.asked) == list(range(10, 19))
    assert (batch.position, batch.metrics["groups/resampled"]) == (19, 6)


async def test_without_rounds_nothing_is_replaced(tmp_path: Path, bench: Bench) -> None:
    engine = Engine(uniform_below(1000))
    batch = await Rollout(engine, Questions(), bench, job_of(tmp_path), decode).draw(1, 10)
    assert (numbers(batch), batch.position) == ([10, 11, 12], 13)


async def test_every_number_is_used_once_whichever_group_comes_first(
    tmp_path: Path, bench: Bench
) -> None:
    engine = Engine(
        lambda question: uniform_below(10**6 if random.Random(question).random() < 0.6 else 0)(
            question
        ),
        seconds=lambda question: random.Random(question).random() / 100,
    )
    job = job_of(tmp_path, resampleRounds=4)
    position = 0
    for step in range(1, 11):
        batch = await Rollout(engine, Questions(), bench, job, decode).draw(step, position)
        assert len(set(numbers(batch))) == 3
        position = batch.position
    assert sorted(int(one["question"]) for one in engine.asked) == list(range(position))


def sample(reward: float, judged: bool = True) -> Sample:
    return Sample("a", 0, 0, (1,), completion("a"), reward, "wrong", judged)


def test_a_group_differs_where_an_advantage_would_not_be_zero() -> None:
    assert differs([sample(0.0), sample(1.0)])
    assert differs([sample(0.0), sample(0.1), sample(0.0, judged=False)])
    assert not differs([sample(0.5), sample(0.5 + 1e-9)])
    assert not differs([sample(1.0), sample(0.0, judged=False)])
    assert not differs([sample(0.0, judged=False)] * 2)


# Failures.


async def nothing_goes_on(engine: Engine, verifier: Counting | None = None) -> bool:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return not others and not engine.under_way and not (verifier and verifier.under_way)


async def test_a_group_that_no_engine_could_draw_ends_the_draw_with_its_reason(
    tmp_path: Path, bench: Bench
) -> None:
    def answers(question: str) -> list[Completion]:
        if question == "11":
            raise Broken("11: all engines are out")
        return half_right(question)

    engine = Engine(answers, seconds=lambda question: 0.01 if question == "11" else 60)
    rollout = Rollout(engine, Questions(), bench, job_of(tmp_path), decode)
    with pytest.raises(Broken, match="11: all engines are out"):
        await rollout.draw(1, 10)
    assert await nothing_goes_on(engine)
    # The engine is back: nothing of the failed draw is missing.
    engine.answers, engine.seconds = half_right, lambda question: 0.0
    assert numbers(await rollout.draw(1, 10)) == [10, 11, 12]


async def test_a_prompt_that_cannot_be_used_ends_the_draw_with_its_reason(
    tmp_path: Path, bench: Bench
) -> None:
    engine = Engine(half_right, seconds=lambda question: 60)
    rollout = Rollout(engine, Questions(refused=12), bench, job_of(tmp_path), decode)
    with pytest.raises(DataError, match="item 12: too long"):
        await rollout.draw(1, 10)
    assert await nothing_goes_on(engine)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_draw_that_is_given_up_leaves_nothing_behind(
    tmp_path: Path, bench: Bench, seconds: float
) -> None:
    verifier = Counting(seconds=60)
    verifier.put_into(bench)
    engine = Engine(half_right, seconds=lambda question: seconds)
    rollout = Rollout(engine, Questions(), bench, job_of(tmp_path), decode)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await rollout.draw(1, 0)
    assert bool(verifier.seen) == (not seconds)
    assert await nothing_goes_on(engine, verifier)
