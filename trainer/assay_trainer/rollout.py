"""Draws and judges the completions of a step.

Each group is judged as soon as it is drawn, while others are being drawn; where the job wants it, a
group from which nothing can be learned gives way to another prompt at once, and nobody waits.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from assay_trainer.algorithms.advantage import SAME
from assay_trainer.batch import Batch, Completion, Generates, Prompt, Sample
from assay_trainer.job import Job
from assay_verifiers.batch import DEFAULT_CONCURRENCY, verify_batch
from assay_verifiers.batch import Job as Judgement
from assay_verifiers.contract import STATUSES, Verdict
from assay_verifiers.registry import Bench


class Asks(Protocol):
    """What makes prompts: `data.Prompts`."""

    def prompt(self, number: int) -> Prompt:
        """The prompt with a number in the endless order."""


class Rollout:
    """Draws the batches of a job.

    Args:
        engines: draws.
        prompts: asks.
        bench: judges.
        job: how many, how long, how judged.
        decode: token ids as verifiers read them.
    """

    def __init__(
        self,
        engines: Generates,
        prompts: Asks,
        bench: Bench,
        job: Job,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._engines = engines
        self._prompts = prompts
        self._bench = bench
        self._groups = job.trainer.promptsPerStep
        self._size = job.algorithm.groupSize
        self._settings = job.rollout
        self._decode = decode

    async def draw(self, step: int, position: int) -> Batch:
        """The batch of a step: `promptsPerStep` groups of `groupSize` samples.

        Group i has item number position + i, or that of the last one that replaced it. Numbers are
        used without gaps, so the batch's own `position` says where the next one begins. After a
        failure nothing is lost: the same call draws the same items again.

        Returns:
            The batch, with metrics: `seconds/rollout` and `seconds/verify` (the time in which only
            verdicts were waited for) make the wall time; `seconds/verify-hidden` (verdicts while
            others were drawn) is within the first. Of its samples: `samples`, `samples/truncated`
            (a share), `tokens/prompt` and `tokens/completion` (sums), `length/mean`,
            `length/max`, and `status/...` (how many verdicts of each kind; truncated completions
            that are not judged have none). `groups/resampled` and `tokens/resampled`: groups that
            were replaced, and their completions' tokens.

        Raises:
            DataError: a prompt cannot be used.
            Unavailable: a verifier cannot work here.
            Exception: what the engines raised.
            asyncio.CancelledError: the caller gave up. In any case nothing goes on.
        """
        drawing = _Drawing(itertools.count(position))
        groups = [
            asyncio.create_task(self._informative(drawing, group)) for group in range(self._groups)
        ]
        try:
            samples = tuple(itertools.chain.from_iterable(await asyncio.gather(*groups)))
        finally:
            for task in groups:
                task.cancel()
            await asyncio.gather(*groups, return_exceptions=True)
        return Batch(step, samples, next(drawing.numbers), self._metrics(drawing, samples))

    async def _informative(self, drawing: _Drawing, group: int) -> list[Sample]:
        """A group from which something can be learned, or the last one that may be tried."""
        for left in range(self._settings.resampleRounds, -1, -1):
            samples = await self._group(drawing, group, next(drawing.numbers))
            if not left or differs(samples):
                break
            drawing.replaced(samples)
        return samples

    async def _group(self, drawing: _Drawing, group: int, number: int) -> list[Sample]:
        with drawing.clock.generating():
            # In a thread, since some generators think for a tenth of a second; one at a time, since
            # neither they nor tokenizers promise more.
            async with drawing.asking:
                prompt = await asyncio.to_thread(self._prompts.prompt, number)
            completions = await self._engines.generate(
                prompt.ids,
                n=self._size,
                max_tokens=self._settings.maxTokens,
                temperature=self._settings.temperature,
            )
        with drawing.clock.verifying():
            verdicts = await self._verdicts(prompt, completions)
        return [
            self._sample(prompt, group, completion, verdict)
            for completion, verdict in zip(completions, verdicts, strict=True)
        ]

    async def _verdicts(
        self, prompt: Prompt, completions: Sequence[Completion]
    ) -> list[Verdict | None]:
        """Of each completion; None where the job settles it. What is the same is judged once."""
        texts = [
            self._decode(completion.ids) if self._is_judged(completion) else None
            for completion in completions
        ]
        different = list(dict.fromkeys(text for text in texts if text is not None))
        verdicts = await verify_batch(
            self._bench,
            (Judgement(prompt.verifier, prompt.task, text) for text in different),
            concurrency=min(len(different), DEFAULT_CONCURRENCY) or 1,
        )
        found = dict(zip(different, verdicts, strict=True))
        return [None if text is None else found[text] for text in texts]

    def _is_judged(self, completion: Completion) -> bool:
        return completion.finish == "stop" or self._settings.truncated == "judge"

    def _sample(
        self, prompt: Prompt, group: int, completion: Completion, verdict: Verdict | None
    ) -> Sample:
        left_out = verdict is None and self._settings.truncated == "mask"
        found = verdict or Verdict(0.0, "unparsed" if left_out else "wrong")
        return Sample(
            item=prompt.task.id,
            number=prompt.number,
            group=group,
            prompt=prompt.ids,
            completion=completion,
            reward=found.score,
            status=found.status,
            judged=not (left_out or found.masked),
        )

    def _metrics(self, drawing: _Drawing, samples: Sequence[Sample]) -> dict[str, float]:
        drawing.clock.turn()
        lengths = [len(sample.completion.ids) for sample in samples]
        cut = sum(sample.completion.finish == "length" for sample in samples)
        statuses = Counter(s.status for s in samples if self._is_judged(s.completion))
        return {
            **{f"seconds/{name}": spent for name, spent in drawing.clock.seconds.items()},
            "samples": len(samples),
            "samples/truncated": cut / len(samples),
            "tokens/prompt": sum(len(sample.prompt) for sample in samples),
            "tokens/completion": sum(lengths),
            "tokens/resampled": drawing.tokens_replaced,
            "length/mean": sum(lengths) / len(lengths),
            "length/max": max(lengths),
            **{f"status/{status}": statuses[status] for status in STATUSES},
            "groups/resampled": drawing.groups_replaced,
        }


def differs(samples: Sequence[Sample]) -> bool:
    """Whether a group's judged rewards differ, as `algorithms.advantage.groups` says it."""
    rewards = [sample.reward for sample in samples if sample.judged]
    return len(rewards) > 1 and max(rewards) - min(rewards) > SAME


class _Clock:
    """Shares out the wall time between drawing and waiting for verdicts only."""

    def __init__(self) -> None:
        self._booked_until = time.monotonic()
        self._generating = 0
        self._verifying = 0
        self.seconds = {"rollout": 0.0, "verify": 0.0, "verify-hidden": 0.0}

    @contextmanager
    def generating(self) -> Iterator[None]:
        """While a group is asked and drawn."""
        self.turn(generating=1)
        try:
            yield
        finally:
            self.turn(generating=-1)

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """While a group is judged."""
        self.turn(verifying=1)
        try:
            yield
        finally:
            self.turn(verifying=-1)

    def turn(self, generating: int = 0, verifying: int = 0) -> None:
        """Books the time since the last turn."""
        now = time.monotonic()
        spent, self._booked_until = now - self._booked_until, now
        alone = self._verifying and not self._generating
        self.seconds["verify" if alone else "rollout"] += spent
        if self._verifying and not alone:
            self.seconds["verify-hidden"] += spent
        self._generating += generating
        self._verifying += verifying


@dataclass
class _Drawing:
    """What the groups of one draw share."""

    numbers: Iterator[int]
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    clock: _Clock = field(default_factory=_Clock)
    groups_replaced: int = 0
    tokens_replaced: int = 0

    def replaced(self, samples: Sequence[Sample]) -> None:
        self.groups_replaced += 1
        self.tokens_replaced += sum(len(sample.completion.ids) for sample in samples)
