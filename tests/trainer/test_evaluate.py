"""The held-out evaluation: what is asked, what counts, when a checkpoint is verified."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from assay_trainer.batch import Completion, Finish, Prompt
from assay_trainer.evaluate import Evaluated, Judged, evaluate, pass_at_k, summed_up
from assay_trainer.settings import Evaluation
from assay_verifiers.config import RegexVerifier
from assay_verifiers.contract import Task, Verdict, error, ok, timeout, unparsed, wrong
from assay_verifiers.registry import Bench
from assay_verifiers.statistics import wilson


def settings(**fields: Any) -> Evaluation:
    return Evaluation.model_validate({"suite": "held-out.jsonl", **fields})


def prompt(number: int, pattern: str | None = "^yes$") -> Prompt:
    """An item; one without a pattern cannot be judged."""
    text = f"question {number}"
    reference = {"pattern": pattern} if pattern else {}
    return Prompt(number, tuple(text.encode()), Task(f"item-{number}", text, reference), JUDGE)


JUDGE = RegexVerifier()


class Scripted:
    """Engines that say what they are told, in order, for greedy requests and for sampled ones."""

    def __init__(
        self, greedy: str, sampled: Sequence[str] = (), finish: Finish = "stop", delay: float = 0
    ) -> None:
        self._greedy, self._sampled = greedy, itertools.cycle(sampled or ("",))
        self._finish, self._delay = finish, delay
        self.asked: list[tuple[bytes, int, int, float]] = []
        self.under_way = 0

    async def generate(
        self, ids: Sequence[int], *, n: int, max_tokens: int, temperature: float
    ) -> Sequence[Completion]:
        self.asked.append((bytes(ids), n, max_tokens, temperature))
        self.under_way += 1
        try:
            await asyncio.sleep(self._delay)
        finally:
            self.under_way -= 1
        texts = [self._greedy if temperature == 0 else next(self._sampled) for _ in range(n)]
        return [
            Completion(tuple(t.encode()), (-0.5,) * len(t), ("1.0",) * len(t), self._finish)
            for t in texts
        ]


async def run(
    engines: Any,
    prompts: Sequence[Prompt],
    truncated: Literal["judge", "wrong", "mask"] = "judge",
    on_progress: Any = None,
    **fields: Any,
) -> Evaluated:
    async with Bench(1) as bench:
        return await evaluate(
            engines,
            prompts,
            bench,
            settings(**fields),
            max_tokens=7,
            temperature=0.8,
            decode=lambda ids: bytes(ids).decode(),
            truncated=truncated,
            on_progress=on_progress,
        )


async def test_each_item_is_asked_once_greedily_and_its_answer_judged_by_its_own_verifier() -> None:
    engines = Scripted("yes")
    found = await run(engines, [prompt(0), prompt(1, "^no$"), prompt(2)])
    assert engines.asked == [(f"question {i}".encode(), 1, 7, 0.0) for i in range(3)]
    assert found.score == pytest.approx(2 / 3)
    assert (found.items, found.masked) == (3, 0)
    assert found.interval == wilson(2, 3, 0.95)
    assert found.sample_at_1 is None
    assert found.pass_at == {}


async def test_samples_are_drawn_besides_at_the_temperature_of_training() -> None:
    engines = Scripted("yes", ["yes", "no", "no", "no"])
    found = await run(engines, [prompt(0)], samples=4)
    assert [(n, temperature) for _, n, _, temperature in engines.asked] == [(1, 0.0), (4, 0.8)]
    assert found.score == 1
    assert found.sample_at_1 == 0.25
    assert found.sample_interval == wilson(0.25, 1, 0.95)
    assert found.pass_at == {1: 0.25, 2: 0.5, 4: 1.0}


async def test_what_cannot_be_judged_is_counted_and_has_no_part_in_the_score() -> None:
    found = await run(Scripted("yes", ["yes"]), [prompt(0), prompt(1, None)], samples=2)
    assert (found.score, found.items, found.masked, found.samples_masked) == (1, 1, 1, 2)
    assert found.sample_at_1 == 1


@pytest.mark.parametrize(("word", "score"), [("judge", 1.0), ("wrong", 0.0), ("mask", 1.0)])
async def test_cut_off_answers_score_as_in_training_but_are_never_left_out(
    word: Literal["judge", "wrong", "mask"], score: float
) -> None:
    found = await run(Scripted("yes", finish="length"), [prompt(0)], truncated=word)
    assert (found.score, found.items, found.truncated) == (score, 1, 1)


async def test_progress_is_told_item_by_item() -> None:
    told: list[tuple[int, int]] = []
    await run(
        Scripted("yes"), [prompt(i) for i in range(3)], on_progress=lambda *at: told.append(at)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_when_no_engine_answers_the_evaluation_ends_with_that_reason_and_leaves_nothing() -> (
    None
):
    class Dying(Scripted):
        async def generate(self, ids: Sequence[int], **how: Any) -> Sequence[Completion]:
            if ids[-1] == ord("3"):
                raise ConnectionError("no engine is left")
            return await super().generate(ids, **how)

    engines = Dying("yes", delay=30)
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionError, match="no engine is left"):
            await run(engines, [prompt(i) for i in range(5)])
    assert engines.under_way == 0


async def test_a_cancelled_evaluation_leaves_nothing_under_way() -> None:
    engines = Scripted("yes", delay=30)
    task = asyncio.create_task(run(engines, [prompt(i) for i in range(5)]))
    await asyncio.sleep(0.1)
    assert engines.under_way == 5
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert engines.under_way == 0


async def test_an_evaluation_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match="no held-out item"):
        await run(Scripted("yes"), [])


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (8, 3), (8, 8)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(
    n: int, right: int
) -> None:
    samples = [i < right for i in range(n)]
    for k in range(1, n + 1):
        choices = [any(chosen) for chosen in itertools.combinations(samples, k)]
        assert pass_at_k(n, right, k) == pytest.approx(sum(choices) / len(choices), abs=1e-15)


def test_pass_at_k_is_exact_where_floats_would_overflow() -> None:
    assert pass_at_k(1024, 1, 512) == pytest.approx(0.5)


def judged(greedy: Verdict, *samples: Verdict) -> Judged:
    return Judged(greedy, samples, 0)


def test_pass_at_k_counts_only_what_is_wholly_right_and_items_with_enough_judged_samples() -> None:
    partly = wrong(score=0.9)
    items = [
        judged(ok(), ok(), partly, partly, partly),
        judged(ok(), ok(), timeout(), error(), partly),
        judged(ok(), timeout(), error(), error(), error()),
    ]
    found = summed_up(items, settings(samples=4), 1.0)
    assert found.pass_at == {
        1: pytest.approx((1 / 4 + 1 / 2) / 2),
        2: pytest.approx((1 / 2 + 1) / 2),
        4: 1.0,
    }
    assert found.sample_at_1 == pytest.approx(((1 + 3 * 0.9) / 4 + (1 + 0.9) / 2) / 2)
    assert found.samples_masked == 6


def test_pass_at_k_asks_for_powers_of_two_up_to_the_samples() -> None:
    item = judged(ok(), *[wrong()] * 6)
    assert list(summed_up([item], settings(samples=6), 1.0).pass_at) == [1, 2, 4]


@pytest.mark.parametrize(
    ("greedy", "bar", "verified", "why"),
    [
        ([ok(), ok(), wrong()], 0.6, True, "verified: score 0.6667 of 3 items, at least 0.6"),
        ([ok(), ok(), ok(score=0.5)], 5 / 6, True, "verified: score 0.8333"),
        ([ok(), wrong(), unparsed()], 0.6, False, "not verified: score 0.3333 of 3 items"),
        ([ok(), wrong()], None, False, "minScore is not set"),
        ([timeout(), error()], 0.0, False, "none of 2 items could be judged"),
        # 2 of 2 judged ones are right, but with two that the verifier failed on that says little.
        ([ok(), ok(), timeout(), error()], 0.6, False, "were they wrong it would be 0.5000"),
        ([ok(), ok(), ok(), error()], 0.6, True, "verified: score 1.0000 of 3 items"),
    ],
)
def test_a_checkpoint_is_verified_where_its_score_reaches_the_bar_whatever_was_masked(
    greedy: list[Verdict], bar: float | None, verified: bool, why: str
) -> None:
    found = summed_up([judged(verdict) for verdict in greedy], settings(minScore=bar), 1.0)
    assert found.verified is verified
    assert why in found.why


def test_without_a_judged_item_there_is_no_score_and_the_interval_says_nothing() -> None:
    found = summed_up([judged(error())], settings(), 1.0)
    assert math.isnan(found.score)
    assert (found.interval.low, found.interval.high) == (0, 1)
    assert found.record()["score"] is None


def test_the_interval_is_of_the_confidence_that_the_job_asks_for() -> None:
    items = [judged(ok())] * 6 + [judged(wrong())] * 4
    assert summed_up(items, settings(confidence=0.8), 1.0).interval == wilson(6, 10, 0.8)


def test_an_evaluation_becomes_metrics_and_a_record_that_is_json() -> None:
    found = summed_up([judged(ok(), ok(), wrong())], settings(samples=2, minScore=0.5), 2.5)
    metrics = found.metrics()
    assert metrics["evaluation/score"] == 1
    assert metrics["evaluation/sample@1"] == 0.5
    assert metrics["evaluation/pass@2"] == 1
    assert metrics["evaluation/verified"] == 1
    assert metrics["seconds/evaluate"] == 2.5
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (record["score"], record["pass@k"], record["verified"]) == (1, {"1": 0.5, "2": 1}, True)
