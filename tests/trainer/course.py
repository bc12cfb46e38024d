"""A loop whose source, learner and engines are stand-ins that tell what was asked of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay_trainer.batch import Batch
from assay_trainer.checkpoint import Checkpoints, Loaded
from assay_trainer.evaluate import Evaluated
from assay_trainer.job import Job
from assay_trainer.loop import Engined, Loop, place_of
from assay_trainer.manifest import fingerprint
from assay_trainer.metrics import MetricsLog, read
from assay_trainer.status import Status
from assay_trainer.versions import Loaded as Taken
from assay_trainer.weights import Pushed, Source
from assay_verifiers.statistics import Interval
from tests.trainer import models

PROMPTS = 4
JOB = fingerprint({})


def evaluated(score: float = 0.5) -> Evaluated:
    """An evaluation that found this score."""
    return Evaluated(
        score=score,
        interval=Interval(0.0, 1.0),
        items=4,
        masked=0,
        sample_at_1=None,
        sample_interval=None,
        samples_masked=0,
        pass_at={},
        truncated=0.0,
        seconds=0.1,
        verified=score >= 0.5,
        why="",
    )


@dataclass
class Course:
    """A run in a folder.

    Attributes:
        folder: of it.
        told: everything that was asked of the stand-ins, in order.
        faults: what is raised instead, by what was asked: `learn 2`.
        meanwhile: called by the learner's thread in the middle of a step, with its number.
        metrics: the learner's.
        drawing: awaited in the middle of a draw, with the step's number.
        score: that evaluations find.
        loop: the last that was made.
    """

    folder: Path
    told: list[str] = field(default_factory=list)
    faults: dict[str, Exception] = field(default_factory=dict)
    meanwhile: Callable[[int], object] = lambda step: None
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": 0.1, "reward/mean": 0.5})
    drawing: Callable[[int], Awaitable[object]] = lambda step: asyncio.sleep(0.005)
    score: float = 0.5
    loop: Loop | None = None
    served: str = "base"
    learned: int = 0

    def job(self, **changes: Any) -> Job:
        """Four steps, a checkpoint after the last, no evaluation."""
        fields = {"trainer__steps": 4, "checkpoint__every": 4, **changes}
        return models.job(checkpoint__directory=str(self.folder), **fields)

    async def run(self, **changes: Any) -> None:
        """Runs from the newest checkpoint on, as `run.run` does.

        Raises:
            Exception: the loop's.
        """
        job = self.job(**changes)
        with Checkpoints(self.folder, job.checkpoint.keep, job=JOB) as checkpoints:
            loaded = checkpoints.newest()
            place = place_of(job, loaded)
            if loaded:
                self.learned = int(loaded.tensors()["learned"])
            with MetricsLog(self.folder / "metrics.jsonl", place.step) as log:
                self.loop = Loop(
                    job,
                    place,
                    source=self,
                    learner=self,
                    checkpoints=checkpoints,
                    log=log,
                    status=Status("course", job.trainer.steps, step=place.step),
                    engined=Engined(self, self.weigh if job.evaluation else None, lambda: ()),
                )
                await self.loop.run()

    def tell(self, what: str) -> None:
        self.told.append(what)
        if what in self.faults:
            raise self.faults[what]

    async def draw(self, step: int, position: int) -> Batch:
        self.tell(f"draw {step}")
        try:
            await self.drawing(step)
        except asyncio.CancelledError:
            self.tell(f"gave up {step}")
            raise
        self.tell(f"drawn {step} by {self.served} from {position}")
        return replace(models.batch(seed=step), step=step, position=position + PROMPTS)

    def learn(self, batch: Batch) -> dict[str, float]:
        self.tell(f"learn {batch.step}")
        self.meanwhile(batch.step)
        self.learned += 1
        return dict(self.metrics)

    def state(self) -> Mapping[str, Tensor]:
        return {"learned": torch.tensor(self.learned)}

    def write(self, folder: Path) -> None:
        self.tell(f"write {self.learned}")
        (folder / "config.json").write_text(json.dumps({"learned": self.learned}))

    def weights(self) -> Mapping[str, Tensor]:
        raise AssertionError("nobody asked for a broadcast")

    async def push(self, source: Source, version: str) -> Pushed:
        assert source is self
        self.tell(f"push {version}")
        await asyncio.sleep(0.005)
        self.served = version
        self.tell(f"pushed {version}")
        return Pushed(version, 0.02, 0.01, Taken(version, 0.01, ("engine",), {}))

    async def close(self) -> None:
        self.tell("close")

    async def weigh(self) -> Evaluated:
        self.tell(f"weigh {self.served}")
        return evaluated(self.score)

    def lines(self) -> list[dict[str, float]]:
        """Of metrics.jsonl."""
        return read(self.folder / "metrics.jsonl")

    def newest(self) -> Loaded:
        """The newest checkpoint; all that there are have to be whole."""
        with Checkpoints(self.folder, 9, job=JOB) as checkpoints:
            loaded = checkpoints.newest()
        assert loaded is not None and not loaded.skipped
        return loaded

    def saved(self) -> list[int]:
        """The steps of all checkpoints."""
        folder = self.folder / "checkpoints"
        return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())

    def manifest(self, step: int) -> dict[str, Any]:
        path = self.folder / "checkpoints" / f"step-{step:06d}" / "manifest.json"
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found


async def forever(step: int) -> None:
    """A draw that does not come to an end."""
    await asyncio.Event().wait()


async def for_seconds_at_most(event: threading.Event, seconds: float = 5) -> None:
    """Until another thread says so."""
    assert await asyncio.to_thread(event.wait, seconds)


def others() -> set[asyncio.Task[Any]]:
    """Tasks that go on beside the test."""
    with suppress(RuntimeError):
        return asyncio.all_tasks() - {asyncio.current_task()}
    return set()
