"""Our arm of the learner benchmark: the trainer's learner, given what was recorded.

`Learner.learn` calculates advantages, and takes old log-probs only from a step's second update
on. Here both were recorded, so an update is put together from the same parts: `_works` plans the
passes, lays them out and copies them to the device, `_update` does the rest.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assay_trainer.batch import Completion, Sample
from assay_trainer.job import Job
from assay_trainer.learner import Learner
from assay_trainer.processes import World, joined
from assay_trainer.work import totals
from benchmarks.learner_arms import ON_GPU, SHAPES, Commands, Ended
from benchmarks.learner_batch import CLIP, OPTIMISER, Recorded, Setting, record

WARM = Setting("warm", 1, 1, prompt=(64, 64), completion=(64, 64), per_pass=1)


class FromRecords(Learner):
    """The learner with one more way in."""

    def update(self, samples: Sequence[Sample], advantages: Sequence[float]) -> dict[str, float]:
        """One optimiser update on all samples, whose recorded log-probs are the old ones."""
        every = range(len(samples))
        works = (
            # Without importance correction the engine's log-probs are only watched.
            replace(work, old=work.sampler)
            for work in self._works(samples, every, advantages)
        )
        return self._update(1, works, totals(samples, every))

    def now(self, job: Job) -> None:
        """Goes on with other sizes."""
        self._job = job


def job(
    folder: Path,
    setting: Setting,
    on_gpu: bool,
    clip: float = OPTIMISER.clip,
    **trainer: Any,
) -> Job:
    """What a user would write to get what the other arms do.

    Args:
        folder: of the model.
        setting: of the batch.
        on_gpu: in bf16, else in fp32.
        clip: the longest gradient.
        **trainer: more fields of the job's `trainer`.
    """
    prompt, completion = setting.prompt[1], setting.completion[1]
    return Job.model_validate(
        {
            "model": {"path": folder},
            "data": {"source": "recorded.jsonl", "maxPromptTokens": prompt},
            "algorithm": {
                "name": "reinforce++",
                "groupSize": 1,
                "loss": "clip",
                "clip": CLIP,
                "average": "tokens",
                "importanceCorrection": "none",
            },
            "rollout": {"engines": ["http://127.0.0.1:30000"], "maxTokens": completion},
            "trainer": {
                "steps": 1_000_000,
                "promptsPerStep": setting.groups,
                "learningRate": OPTIMISER.rate,
                "betas": OPTIMISER.betas,
                "weightDecay": OPTIMISER.decay,
                "gradientClip": clip,
                "precision": "bf16" if on_gpu else "fp32",
                # As many as the other arms' passes have with their padding.
                "tokensPerMicroBatch": setting.per_pass * (prompt + completion),
                **trainer,
            },
            "checkpoint": {"directory": folder.parent / "run"},
        }
    )


def samples(batch: Recorded) -> list[Sample]:
    """The batch as a rollout would have left it."""
    columns = zip(batch.prompts, batch.completions, batch.old, batch.group, strict=True)
    return [
        Sample(
            item=f"{number}",
            number=group,
            group=group,
            prompt=tuple(prompt),
            completion=Completion(
                ids=tuple(completion),
                log_probs=tuple(old),
                versions=("0.0",) * len(completion),
                finish="stop",
            ),
            reward=0.0,
            status="ok",
            judged=True,
        )
        for number, (prompt, completion, old, group) in enumerate(columns)
    ]


class _Served:
    def __init__(
        self, folder: Path, shape: str, world: World, first: Setting, trainer: Mapping[str, Any]
    ) -> None:
        self._folder, self._shape, self._world = folder, shape, world
        self._setting, self._trainer = first, trainer
        self._learner: FromRecords | None = self._made()

    def _made(self) -> FromRecords:
        return FromRecords.load(self._job(), self._world)

    def _job(self) -> Job:
        return job(self._folder, self._setting, ON_GPU, **self._trainer)

    def load(self, batch: Recorded, setting: Setting) -> None:
        self._setting = setting
        self._samples, self._advantages = samples(batch), batch.advantages
        if self._learner is None:
            self._learner = self._made()
            # AdamW makes its tensors in its first update, when activations are gone already.
            first = record(WARM, SHAPES[self._shape])
            self._learner.update(samples(first), first.advantages)
        self._learner.now(self._job())

    def update(self) -> dict[str, float] | None:
        """The update's numbers; None for want of memory."""
        assert self._learner
        try:
            return self._learner.update(self._samples, self._advantages)
        except torch.OutOfMemoryError:
            pass
        # A pass that ends in its middle leaves gradients or gathered weights: begin anew.
        self._learner = None
        gc.collect()
        if torch.cuda.memory_allocated() > 2**30:
            # Compiled code can hold on to what it was compiled with.
            torch.compiler.reset()
            gc.collect()
        return None


def serve(folder: Path, shape: str, setting: Setting, trainer: Mapping[str, Any]) -> None:
    """Serves commands until they end.

    Args:
        folder: of the model.
        shape: its name.
        setting: of the first batch.
        trainer: what of the job's `trainer` is not the default.
    """
    with joined() as world:
        served = _Served(folder, shape, world, setting, trainer)
        commands = Commands(served.load, shape)
        served.load(record(setting, SHAPES[shape]), setting)
        commands.answer(ready="ours")
        while True:
            try:
                commands.until_step()
            except Ended:
                return
            numbers = served.update()
            told = numbers or {}
            commands.stepped(told.get("loss"), told.get("grad/norm"), full=numbers is None)
