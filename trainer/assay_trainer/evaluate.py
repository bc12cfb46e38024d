"""How good the model is on items that it never learns from: greedily, and by several samples.

A score without its interval is a rumour: both are given. What could not be judged has no part in
any mean and is counted, as everywhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from assay_trainer.batch import Completion, Generates, Prompt
from assay_trainer.settings import Evaluation
from assay_verifiers.batch import DEFAULT_CONCURRENCY
from assay_verifiers.contract import Verdict, wrong
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.statistics import Interval, wilson

Decode = Callable[[Sequence[int]], str]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judged:
    """What became of one item: its greedy verdict, and those of its samples."""

    greedy: Verdict
    samples: tuple[Verdict, ...]
    truncated: int


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        score: the mean of the greedy completions that were judged; NaN where there is none.
        interval: Wilson's, of the score.
        items: how many greedy completions were judged.
        masked: how many could not be.
        sample_at_1: the mean over items of the mean over their judged samples: what one completion,
            drawn as in training, scores on average. None without samples.
        sample_interval: Wilson's, of that, with an item as the unit.
        samples_masked: samples that could not be judged.
        pass_at: by k, the chance that of k samples at least one is wholly right (status `ok`).
        truncated: the share of completions that ended at the limit of tokens.
        seconds: how long it took.
        verified: whether the score is good enough for a checkpoint to count as verified.
        why: what decided that, in a sentence.
    """

    score: float
    interval: Interval
    items: int
    masked: int
    sample_at_1: float | None
    sample_interval: Interval | None
    samples_masked: int
    pass_at: Mapping[int, float]
    truncated: float
    seconds: float
    verified: bool
    why: str

    def metrics(self) -> dict[str, float]:
        """As numbers beside a step's others."""
        found = {
            "evaluation/score": self.score,
            "evaluation/low": self.interval.low,
            "evaluation/high": self.interval.high,
            "evaluation/items": float(self.items),
            "evaluation/masked": float(self.masked + self.samples_masked),
            "evaluation/truncated": self.truncated,
            "evaluation/verified": float(self.verified),
            "seconds/evaluate": self.seconds,
        }
        if self.sample_at_1 is not None and self.sample_interval is not None:
            found["evaluation/sample@1"] = self.sample_at_1
            found["evaluation/sample@1/low"] = self.sample_interval.low
            found["evaluation/sample@1/high"] = self.sample_interval.high
        return found | {f"evaluation/pass@{k}": share for k, share in self.pass_at.items()}

    def record(self) -> dict[str, Any]:
        """As JSON data, for a checkpoint's manifest. What is NaN is null."""
        return {
            "score": None if math.isnan(self.score) else self.score,
            "interval": [self.interval.low, self.interval.high],
            "items": self.items,
            "masked": self.masked,
            "sample@1": self.sample_at_1,
            "pass@k": {str(k): share for k, share in self.pass_at.items()},
            "verified": self.verified,
            "why": self.why,
        }


async def evaluate(
    engines: Generates,
    prompts: Sequence[Prompt],
    bench: Bench,
    settings: Evaluation,
    *,
    max_tokens: int,
    temperature: float,
    decode: Decode,
    truncated: Literal["judge", "wrong", "mask"] = "judge",
    on_progress: OnProgress | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> Evaluated:
    """Asks every item greedily, and `settings.samples` times more at the temperature of training.

    Completions are judged while others are still drawn.

    Args:
        engines: they bound the requests that are under way by themselves.
        prompts: the held-out items.
        bench: what the verifiers share.
        settings: samples, minScore and confidence.
        max_tokens: of a completion.
        temperature: of the samples.
        decode: token ids to the text that is judged.
        truncated: the job's word on completions that the limit cut off. Those that it gives 0 in
            training get 0 here; those that it masks are judged as they are, since leaving them out
            would flatter a model that never comes to an end.
        on_progress: told how many items are done, and of how many, after each.
        concurrency: completions that are judged at a time.

    Raises:
        ValueError: there is no item.
        Unavailable: a verifier cannot work here.
        Exception: what the engines raise where none of them answers; the rest is given up.
        asyncio.CancelledError: the caller gave up; nothing of the evaluation goes on.
    """
    if not prompts:
        raise ValueError("there is no held-out item")
    bench.check(prompt.verifier for prompt in prompts)
    began = time.monotonic()
    room = asyncio.Semaphore(concurrency)
    done = 0

    async def judge(prompt: Prompt, completion: Completion) -> Verdict:
        if truncated == "wrong" and completion.finish == "length":
            return wrong("cut off at the limit of tokens")
        async with room:
            text = decode(completion.ids)
            return await verify_one(bench.verifier(prompt.verifier), prompt.task, text)

    async def draw(prompt: Prompt, n: int, warmth: float) -> tuple[list[Verdict], int]:
        if not n:
            return [], 0
        drawn = await engines.generate(prompt.ids, n=n, max_tokens=max_tokens, temperature=warmth)
        verdicts = await asyncio.gather(*(judge(prompt, completion) for completion in drawn))
        return verdicts, sum(completion.finish == "length" for completion in drawn)

    async def ask(prompt: Prompt) -> Judged:
        nonlocal done
        (greedy,), cut = await draw(prompt, 1, 0.0)
        samples, more = await draw(prompt, settings.samples, temperature)
        done += 1
        if on_progress is not None:
            on_progress(done, len(prompts))
        return Judged(greedy, tuple(samples), cut + more)

    tasks = [asyncio.ensure_future(ask(prompt)) for prompt in prompts]
    try:
        judged = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return summed_up(judged, settings, time.monotonic() - began)


def summed_up(judged: Sequence[Judged], settings: Evaluation, seconds: float) -> Evaluated:
    """The scores of items whose completions were judged. Pure."""
    scores = [item.greedy.score for item in judged if not item.greedy.masked]
    score = math.fsum(scores) / len(scores) if scores else math.nan
    means = []
    for item in judged:
        known = [verdict.score for verdict in item.samples if not verdict.masked]
        if known:
            means.append(math.fsum(known) / len(known))
    completions = sum(1 + len(item.samples) for item in judged)
    verified, why = _decision(math.fsum(scores), len(scores), len(judged), settings.minScore)
    return Evaluated(
        score=score,
        interval=wilson(math.fsum(scores), len(scores), settings.confidence),
        items=len(scores),
        masked=len(judged) - len(scores),
        sample_at_1=math.fsum(means) / len(means) if means else None,
        sample_interval=(
            wilson(math.fsum(means), len(means), settings.confidence) if means else None
        ),
        samples_masked=sum(verdict.masked for item in judged for verdict in item.samples),
        pass_at=_pass_at([item.samples for item in judged], settings.samples),
        truncated=sum(item.truncated for item in judged) / completions,
        seconds=seconds,
        verified=verified,
        why=why,
    )


def _decision(total: float, judged: int, items: int, bar: float | None) -> tuple[bool, str]:
    """Verified is what reaches the bar even if all that could not be judged were wrong: else a
    verifier that fails on the hard items would verify a bad model."""
    if bar is None:
        return False, "not verified: evaluation.minScore is not set"
    if not judged:
        return False, f"not verified: none of {items} items could be judged"
    score, lowest = total / judged, total / items
    masked = items - judged
    if lowest >= bar:
        return True, f"verified: score {score:.4f} of {judged} items, at least {bar:g} was asked"
    if score >= bar:
        return False, (
            f"not verified: score {score:.4f} of {judged} items, but {masked} more could not be "
            f"judged, and were they wrong it would be {lowest:.4f}, below {bar:g}"
        )
    return False, f"not verified: score {score:.4f} of {judged} items, at least {bar:g} was asked"


def pass_at_k(n: int, right: int, k: int) -> float:
    """1 - C(n - right, k) / C(n, k): the chance that k of n samples hold a right one, no bias.

    Source: Chen et al. (2021), arXiv:2107.03374, eq. 1.

    Args:
        n: samples of an item, at least k.
        right: how many of them are right.
        k: how many are looked at.
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def _pass_at(items: Sequence[Sequence[Verdict]], samples: int) -> dict[int, float]:
    """For k = 1, 2, 4, ... up to `samples`. Items with fewer than k judged samples have no part in
    that k; a k without items is left out."""
    counts = []
    for verdicts in items:
        judged = [verdict for verdict in verdicts if not verdict.masked]
        counts.append((len(judged), sum(verdict.status == "ok" for verdict in judged)))
    found = {}
    for k in (1 << power for power in range(samples.bit_length())):
        shares = [pass_at_k(n, right, k) for n, right in counts if n >= k]
        if shares:
            found[k] = math.fsum(shares) / len(shares)
    return found
