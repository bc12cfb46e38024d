"""`assay-train run`: puts the parts of a run together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig

from assay_trainer import recording
from assay_trainer.batch import Batch
from assay_trainer.broadcast import transfer
from assay_trainer.checkpoint import Checkpoints, Loaded
from assay_trainer.data import decoder, held_out, load_tokenizer, training_prompts
from assay_trainer.display import Display
from assay_trainer.engine import EngineError, bearer
from assay_trainer.engines import Engines
from assay_trainer.evaluate import Evaluated, evaluate
from assay_trainer.items import DataError
from assay_trainer.job import Job
from assay_trainer.kernels import KernelError
from assay_trainer.learner import Learner, LearnerError
from assay_trainer.loop import Draws, Engined, Loop, place_of
from assay_trainer.manifest import fingerprint
from assay_trainer.metrics import MetricsError, MetricsLog
from assay_trainer.model import ModelError
from assay_trainer.processes import Group, ProcessError, World, agreed, follow, joined
from assay_trainer.rollout import Rollout
from assay_trainer.snapshot import StateError
from assay_trainer.status import Status
from assay_trainer.status_server import Server, StatusError
from assay_trainer.storage import CheckpointError
from assay_trainer.weights import WeightsError
from assay_verifiers.contract import Unavailable
from assay_verifiers.registry import Bench

FAILURES = (
    CheckpointError,
    DataError,
    EngineError,
    KernelError,
    LearnerError,
    MetricsError,
    ModelError,
    OSError,
    ProcessError,
    recording.RecordingError,
    StateError,
    StatusError,
    Unavailable,
    WeightsError,
)
"""What may go wrong with a run; the messages are for people."""


class _Replayed:
    """Batches from a recording."""

    def __init__(self, folder: Path) -> None:
        self._replay = recording.Replay(folder)

    async def draw(self, step: int, position: int) -> Batch:
        return self._replay.batch(step)


class _Recorded:
    """Batches of another source, each kept before it is used."""

    def __init__(self, source: Draws, folder: Path) -> None:
        self._source, self._recorder = source, recording.Recorder(folder)

    async def draw(self, step: int, position: int) -> Batch:
        batch = await self._source.draw(step, position)
        await asyncio.to_thread(self._recorder.keep, batch)
        return batch


def run(
    job: Job,
    *,
    record: Path | None,
    replay: Path | None,
    console: Console,
    doubts: Sequence[str] = (),
) -> None:
    """Trains to the last step, from the newest checkpoint on if there is one.

    Where torchrun started several processes, all of them call this.

    Args:
        job: what to do.
        record: a folder that every batch is kept in.
        replay: a folder that batches are read from; then no engine is asked, no weights are
            pushed, nothing is weighed.
        console: where it is shown how it goes.
        doubts: what is allowed and seldom meant, for whoever watches.

    Raises:
        Interrupted: a signal came; the same call goes on.
        TrainingStopped: an alarm says that it is of no use to go on.
        FAILURES: what went wrong.
    """
    with joined() as world:
        # What a model draws itself, such as dropout, begins from here; checkpoints keep its place.
        torch.manual_seed(job.seed)
        if world.rank:
            _follow(job, world)
            return
        with ExitStack() as stack:
            keeper = stack.enter_context(
                Checkpoints(
                    job.checkpoint.directory,
                    job.checkpoint.keep,
                    job=fingerprint(job.model_dump(mode="json")),
                )
            )
            loaded = keeper.newest()
            learner = Learner.load(job, world, agreed(world, loaded.path if loaded else None))
            group = Group(world, learner)
            stack.callback(group.close)
            if loaded:
                group.load_state(loaded.tensors())
            place = place_of(job, loaded)
            log = stack.enter_context(
                MetricsLog(job.checkpoint.directory / "metrics.jsonl", place.step)
            )
            display = stack.enter_context(Display(console))
            _tell(display, job, keeper, loaded, doubts)
            status = Status(
                job.checkpoint.directory.name,
                job.trainer.steps,
                step=place.step,
                on_change=display.show,
            )
            status.update(checkpoints=keeper.kept(), doubts=tuple(doubts))
            if job.status:
                stack.enter_context(Server(status, job.status))
            make = partial(
                Loop, job, place, learner=group, checkpoints=keeper, log=log, status=status
            )
            asyncio.run(
                _replayed(make, replay) if replay else _engined(job, world, make, status, record)
            )


def _follow(job: Job, world: World) -> None:
    # Process 0 says when to end: a signal goes to all, and it needs the others for its checkpoint.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    folder: Path | None = agreed(world, None)
    follow(world, Learner.load(job, world, folder))


def _tell(
    display: Display, job: Job, keeper: Checkpoints, loaded: Loaded | None, doubts: Sequence[str]
) -> None:
    """What is doubtful, where the run begins, and what was passed over on the way."""
    for doubt in doubts:
        display.tell(f"warning: {doubt}", "yellow")
    if loaded is None:
        display.tell(f"begins with {job.model.path}")
        return
    for path, why in loaded.skipped:
        display.tell(f"{path} is damaged and was passed over: {why}", "red")
    display.tell(f"goes on after step {loaded.manifest.step}, from {loaded.path}")
    if loaded.manifest.job != keeper.job:
        display.tell("the job file is another one than this checkpoint's", "yellow")


async def _replayed(make: partial[Loop], folder: Path) -> None:
    await make(source=_Replayed(folder), engined=None).run()


async def _engined(
    job: Job, world: World, make: partial[Loop], status: Status, record: Path | None
) -> None:
    tokenizer = load_tokenizer(job.model.path)
    config = AutoConfig.from_pretrained(job.model.path)
    context = job.model.contextLength or getattr(config, "max_position_embeddings", None)
    prompts = training_prompts(job, tokenizer, context)
    questions = held_out(job, tokenizer, context)
    decode = decoder(tokenizer)
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(Bench())
        bench.check([*prompts.verifiers(), *(question.verifier for question in questions)])
        engines = await stack.enter_async_context(
            Engines(
                job.rollout,
                config.vocab_size,
                token=bearer(job.rollout),
                seeded=job.trainer.deterministic,
            )
        )
        status.update(message="waiting for an engine")
        await engines.start()
        status.update(message="")

        async def weigh() -> Evaluated:
            assert job.evaluation
            return await evaluate(
                engines,
                questions,
                bench,
                job.evaluation,
                max_tokens=job.rollout.maxTokens,
                temperature=job.rollout.temperature,
                decode=decode,
                truncated=job.rollout.truncated,
                on_progress=lambda done, total: status.update(done=done, total=total),
                concurrency=job.rollout.concurrency * len(job.rollout.engines),
            )

        source: Draws = Rollout(engines, prompts, bench, job, decode)
        if record:
            source = _Recorded(source, record)
        way = transfer(job.rollout, engines, job.checkpoint.directory, world.device)
        engined = Engined(way, weigh if job.evaluation else None, lambda: engines.states)
        await make(source=source, engined=engined).run()
