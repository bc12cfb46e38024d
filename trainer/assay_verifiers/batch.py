"""Many verdicts: bounded concurrency, progress, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from assay_verifiers.config import VerifierModel, parse_verifier
from assay_verifiers.contract import Task, Verdict
from assay_verifiers.registry import Bench, verify_one

DEFAULT_CONCURRENCY = 64


@dataclass(frozen=True)
class Job:
    """One completion to be judged.

    Attributes:
        verifier: by what.
        task: the item that it answers.
        completion: what the model wrote.
    """

    verifier: VerifierModel
    task: Task
    completion: str


async def verify_batch(
    bench: Bench,
    jobs: Iterable[Job],
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_verdict: Callable[[int, Verdict], None] | None = None,
) -> list[Verdict]:
    """Judges all jobs and returns their verdicts in the jobs' order.

    Args:
        bench: what the verifiers share. Worker processes bound their own part of the work.
        jobs: taken one by one as there is room, so they may be made while the batch runs.
        concurrency: how many are under way at a time.
        on_verdict: told each verdict with its job's number as soon as it is there.

    Raises:
        Unavailable: a job's verifier cannot work here.
        asyncio.CancelledError: the caller gave up; nothing of the batch goes on.
        Exception: what `jobs` or `on_verdict` raised; the rest of the batch is given up.
    """
    if concurrency < 1:
        raise ValueError("a batch needs a concurrency of at least 1")
    numbered = enumerate(jobs)
    verdicts: dict[int, Verdict] = {}

    async def work() -> None:
        for number, job in numbered:
            verdict = await verify_one(bench.verifier(job.verifier), job.task, job.completion)
            verdicts[number] = verdict
            if on_verdict is not None:
                on_verdict(number, verdict)
            # Many a verdict needs no waiting: cancellation and others' work get their turn here.
            await asyncio.sleep(0)

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [verdicts[number] for number in range(len(verdicts))]


def verify(
    verifier: VerifierModel | Mapping[str, Any],
    completion: str,
    *,
    reference: Any = None,
    prompt: str = "",
    id: str = "item",
) -> Verdict:
    """Judges one completion, from code that is not asynchronous.

    It starts whatever the verifier needs and ends it again, worker processes too, which may take a
    second: for more than a few completions use a `Bench`.

    Args:
        verifier: its configuration, or plain data such as {"type": "math"}.
        completion: what the model wrote.
        reference: the truth, of the form that the verifier's type wants.
        prompt: what the model was asked.
        id: the item's name.

    Raises:
        ValueError: the configuration is wrong.
        Unavailable: the verifier cannot work here.
        RuntimeError: an event loop runs already: `await verify_one(...)` there.
    """
    model = parse_verifier(verifier)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("an event loop runs here already: use `await verify_one(...)`")

    async def judge() -> Verdict:
        async with Bench(workers=1) as bench:
            return await verify_one(bench.verifier(model), Task(id, prompt, reference), completion)

    return asyncio.run(judge())
