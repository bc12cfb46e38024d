"""The loop: draw, learn, bring the weights to the engines, weigh, keep.

It may be killed at any line. What counts is in the newest whole checkpoint: weights, optimiser, the
place in the data, and the batch that was drawn ahead. What was done after it is done again.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from assay_trainer import curve, recording
from assay_trainer.batch import Batch
from assay_trainer.checkpoint import Checkpoints, Loaded
from assay_trainer.engine import EngineError
from assay_trainer.evaluate import Evaluated
from assay_trainer.job import Job
from assay_trainer.metrics import MetricsLog
from assay_trainer.status import EngineState, Status
from assay_trainer.watch import Alarm, alarms
from assay_trainer.weights import Source, Transfer, WeightsError
from assay_verifiers.interrupts import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CURVE_SECONDS = 30.0
"""How often curve.png is drawn at most, between evaluations."""

T = TypeVar("T")


class TrainingStopped(Exception):
    """The run harms the model or learns nothing; the message says why, and what to do."""

    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm
        super().__init__(str(alarm))


class Draws(Protocol):
    """Where batches come from: engines, or a recording."""

    async def draw(self, step: int, position: int) -> Batch:
        """The batch of a step, from the items from `position` on."""


class Learns(Source, Protocol):
    """What learns: `processes.Group`."""

    def learn(self, batch: Batch) -> dict[str, float]:
        """Does one step; its metrics."""

    def state(self) -> Mapping[str, Tensor]:
        """All that resuming needs, beside the weights."""


@dataclass(frozen=True)
class Engined:
    """What only a run with engines has.

    Attributes:
        transfer: brings weights to them.
        evaluate: weighs what they have; None where the job asks for no evaluation.
        states: theirs, for status.
    """

    transfer: Transfer
    evaluate: Callable[[], Awaitable[Evaluated]] | None
    states: Callable[[], Sequence[EngineState]]


@dataclass(frozen=True)
class Place:
    """Where a run stands.

    Attributes:
        step: that is done.
        position: the first item that no step up to it has used.
        buffer: the next step's batch, where it was drawn already.
        weighed: False where the step's evaluation was due and the run ended before it.
    """

    step: int = 0
    position: int = 0
    buffer: Batch | None = None
    weighed: bool = True


class Loop:
    """One run, from a place on.

    Args:
        job: what to do.
        place: where to begin.
        source: of batches.
        learner: learns.
        checkpoints: keep.
        log: metrics.jsonl.
        status: told of everything.
        engined: None where batches are replayed: nothing is asked of engines then.
    """

    def __init__(
        self,
        job: Job,
        place: Place,
        *,
        source: Draws,
        learner: Learns,
        checkpoints: Checkpoints,
        log: MetricsLog,
        status: Status,
        engined: Engined | None,
    ) -> None:
        self.place = place
        self._job, self._source, self._learner = job, source, learner
        self._checkpoints, self._log, self._status = checkpoints, log, status
        self._engined = engined
        self._saved = place.step
        self._weighed: Evaluated | None = None
        self._line: dict[str, float] = {}
        self._drawn = 0.0
        self._came: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Works to the last step.

        A SIGTERM or SIGINT ends it in order: the step that is being learned is finished, and a
        checkpoint is written.

        Raises:
            Interrupted: such a signal came.
            TrainingStopped: an alarm says that it is of no use to go on.
            Exception: what went wrong in a part, as `run.FAILURES` lists it. The last checkpoint is
                whole.
        """
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            loop.add_signal_handler(number, self._stop, number)
        try:
            await self._begin()
            while self.place.step < self._job.trainer.steps:
                if self._came.done():
                    raise Interrupted(self._came.result())
                await self._step()
            self._status.update(phase="finished", message="all steps are done")
        except Interrupted:
            await self._leave("ended by a signal; the same command goes on")
            raise
        except (EngineError, WeightsError) as reason:
            await self._leave(str(reason))
            raise
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)
            await self._draw_curve(0.0)
            if self._engined:
                await self._engined.transfer.close()

    def _stop(self, number: int) -> None:
        self._status.update(message=f"{signal.Signals(number).name}: ending with a checkpoint")
        if not self._came.done():
            self._came.set_result(number)
        # Who asks twice does not want to wait, not even for the thread that learns.
        for each in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    async def _until_told(self, work: Awaitable[T]) -> T:
        """The work's result; it is given up when a signal comes, unless it is done by then."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._came), return_when=asyncio.FIRST_COMPLETED)
            if self._came.done() and (not task.done() or task.exception()):
                raise Interrupted(self._came.result())
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _begin(self) -> None:
        """The engines get the weights that the run begins with. Those of the base model are
        weighed, and those of a run that ended just before that."""
        self._line = await self._push()
        base = not self.place.step and not self._log.history
        if base or not self.place.weighed:
            self._line |= await self._until_told(self._weigh())
        if self._weighed and base:
            self._status.weighed(0, self._log.append(0, self._line))
        elif self._weighed:
            self._status.weighed(self.place.step, self._line)
            await self._save()
        # It is of the base model, not of the first checkpoint.
        self._line, self._weighed = {}, None

    async def _step(self) -> None:
        began = time.monotonic()
        step = self.place.step + 1
        batch = self.place.buffer
        waited = 0.0
        if batch is None:
            self._status.update(phase="rollout")
            batch = await self._until_told(self._source.draw(step, self.place.position))
            waited = time.monotonic() - began
        ahead = self._ahead(step + 1, batch.position)
        try:
            self._status.update(phase="train")
            learned = await asyncio.to_thread(self._learner.learn, batch)
            self.place = Place(step, batch.position)
            self._line = {**batch.metrics, **learned}
            if ahead:
                self._status.update(phase="rollout")
                since = time.monotonic()
                # Before the weights change: so one version draws all tokens of a batch.
                self.place = replace(self.place, buffer=await self._until_told(ahead))
                waited += time.monotonic() - since
        finally:
            if ahead:
                ahead.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await ahead
        self._line["seconds/waited"] = waited
        self._line |= await self._push()
        if self._job.evaluation and self._due(self._job.evaluation.every):
            # Not given up either: the checkpoint of this step is to say what it found.
            self._line |= await self._weigh()
        self._line["seconds/step"] = time.monotonic() - began
        self._tell()
        if self._due(self._job.checkpoint.every):
            await self._save()
        self._weighed = None

    def _ahead(self, step: int, position: int) -> asyncio.Task[Batch] | None:
        """The next step's batch, drawn with the weights of the last one while this one trains."""
        if not self._job.rollout.maxStaleness or step > self._job.trainer.steps:
            return None
        return asyncio.ensure_future(self._source.draw(step, position))

    def _due(self, every: int) -> bool:
        return is_due(self.place.step, every, self._job.trainer.steps)

    async def _push(self) -> dict[str, float]:
        if not self._engined:
            return {}
        self._status.update(phase="push")
        version = self._checkpoints.version(self.place.step)
        # Not given up half-way: engines would be left between two versions.
        pushed = await self._engined.transfer.push(self._learner, version)
        self._status.update(engines=tuple(self._engined.states()))
        if pushed.fallback:
            self._status.update(message=pushed.fallback)
        return {"seconds/push": pushed.seconds, "seconds/push/write": pushed.prepared}

    async def _weigh(self) -> dict[str, float]:
        if not self._engined or not self._engined.evaluate:
            return {}
        self._status.update(phase="evaluate")
        self._weighed = await self._engined.evaluate()
        return self._weighed.metrics()

    def _tell(self) -> None:
        """Writes the step's line, and stops where an alarm says so.

        Raises:
            TrainingStopped: one does.
        """
        line = self._log.append(self.place.step, self._line)
        self._line = {}
        self._status.finished(line)
        found = alarms(self._log.history, self._job)
        self._status.update(alarms=tuple(found))
        for alarm in found:
            if alarm.stop:
                self._status.update(phase="stopped", message=str(alarm))
                raise TrainingStopped(alarm)

    async def _save(self) -> None:
        self._status.update(phase="checkpoint")
        weighed, buffer = self._weighed, self.place.buffer

        def write() -> tuple[dict[str, Any], ...]:
            self._checkpoints.save(
                self._learner.write,
                step=self.place.step,
                tensors=self._learner.state(),
                state={"position": self.place.position},
                buffer=(lambda path: recording.save(buffer, path)) if buffer else None,
                evaluation=weighed.record() if weighed else None,
                verified=bool(weighed and weighed.verified),
            )
            self._checkpoints.prune()
            return self._checkpoints.kept()

        self._status.update(checkpoints=await asyncio.to_thread(write))
        self._saved = self.place.step
        await self._draw_curve(0.0 if weighed else CURVE_SECONDS)

    async def _leave(self, why: str) -> None:
        """The end before the end, of which the learner is not to blame: what it learned is kept."""
        if self._line and self.place.step:
            self._tell()
        if self.place.step > self._saved:
            await self._save()
        self._status.update(phase="stopped", message=why)

    async def _draw_curve(self, seconds: float) -> None:
        """The picture, unless it is younger than that. Without it a run is none the worse."""
        if not self._log.history or time.monotonic() - self._drawn < seconds:
            return
        path: Path = self._job.checkpoint.directory / "curve.png"
        history, found = list(self._log.history), self._status.state.alarms
        try:
            await asyncio.to_thread(curve.draw, history, path, self._job, found)
        except OSError as reason:
            self._status.update(message=f"{path} cannot be drawn: {reason}")
        self._drawn = time.monotonic()


def place_of(job: Job, loaded: Loaded | None) -> Place:
    """Where a run goes on from a checkpoint; without one, at its beginning.

    Raises:
        RecordingError: the batch that was drawn ahead cannot be read.
    """
    if loaded is None:
        return Place()
    step = loaded.manifest.step
    buffer = recording.load(loaded.buffer) if loaded.buffer else None
    asked = job.evaluation is not None and is_due(step, job.evaluation.every, job.trainer.steps)
    weighed = not asked or loaded.manifest.evaluation is not None
    return Place(step, int(loaded.state()["position"]), buffer, weighed)


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something is that is done every so many steps, and after the last."""
    return step % every == 0 or step == steps
