"""The job file: one JSON that says everything about a training run.

Pydantic only, no torch: the operator and a laptop can read and check a job that neither could run.
Unknown keys and sizes that cannot work are refused with the field's path. Paths are relative to the
job file's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from assay_trainer.algorithms.settings import Algorithm
from assay_trainer.settings import (
    FOLDER,
    Checkpoint,
    Data,
    Evaluation,
    JobModel,
    Model,
    NamedVerifier,
    Rollout,
    Status,
    Trainer,
)
from assay_verifiers.config import Part, VerifierModel, WeightedVerifier
from assay_verifiers.jsonlines import parsed, told


class JobError(ValueError):
    """A job file cannot be used; `problems` holds a line for each thing that is wrong."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class Job(JobModel):
    """A training run."""

    model: Model
    data: Data
    verifiers: tuple[NamedVerifier, ...] = Field(
        (),
        description="Which judge every completion, by their weighted mean. Empty: each item names "
        "its own, as in a suite.",
    )
    algorithm: Algorithm = Algorithm()
    rollout: Rollout
    trainer: Trainer
    checkpoint: Checkpoint
    evaluation: Evaluation | None = Field(
        None, description="Without it no checkpoint is ever verified."
    )
    status: Status | None = Field(None, description="Without it there is no HTTP server.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Of the items' order, and of items that are made where their source names no "
        "seed. Not of sampling: engines have a seed of their own.",
    )

    @property
    def longest(self) -> int:
        """The most tokens that a sequence can have."""
        return self.data.maxPromptTokens + self.rollout.maxTokens

    @property
    def verifier(self) -> VerifierModel | None:
        """The one judge of every completion; None where each item names its own."""
        if len(self.verifiers) < 2:
            return self.verifiers[0].verifier if self.verifiers else None
        parts = (Part(name=v.name, weight=v.weight, verifier=v.verifier) for v in self.verifiers)
        return WeightedVerifier(parts=tuple(parts))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if wrong := self._contradictions():
            raise ValueError("\n".join(wrong))
        return self

    def _contradictions(self) -> list[str]:
        """What is right by itself and wrong beside another field."""
        prompt, completion = self.data.maxPromptTokens, self.rollout.maxTokens
        sizes = (
            f"data.maxPromptTokens {prompt} and rollout.maxTokens {completion} make {self.longest}"
        )
        context, budget = self.model.contextLength, self.trainer.tokensPerMicroBatch
        steps, evaluation, every = self.trainer.steps, self.evaluation, self.checkpoint.every
        names = [verifier.name for verifier in self.verifiers]
        wrong = []
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            wrong.append(f"verifiers: two are called {twice!r}: give each a name of its own")
        if context is not None and self.longest > context:
            wrong.append(f"model.contextLength: {context} tokens are too few: {sizes}")
        if self.longest > budget:
            wrong.append(f"trainer.tokensPerMicroBatch: {budget} tokens are too few: {sizes}")
        if self.rollout.resampleRounds and self.algorithm.groupSize < 2:
            wrong.append("rollout.resampleRounds: a group of one never has variance")
        if every > steps:
            wrong.append(f"checkpoint.every: {every}, but the run has only {steps} steps")
        if evaluation and evaluation.every > steps:
            wrong.append(f"evaluation.every: {evaluation.every}, but the run has {steps} steps")
        elif evaluation and every % evaluation.every and evaluation.every % every:
            wrong.append(
                f"evaluation.every: neither {evaluation.every} nor checkpoint.every {every} is a "
                "multiple of the other, so most checkpoints would have no score"
            )
        return wrong


def load(path: Path) -> Job:
    """The job that a file holds.

    Raises:
        JobError: it cannot be read, is not JSON (with line and column), or a field is wrong (with
            its path). All wrong fields are told at once.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise JobError(path, [f"cannot be read: {reason.strerror}"]) from reason
    data, problem = parsed(content)
    if problem:
        raise JobError(path, [problem])
    if not isinstance(data, dict):
        raise JobError(path, ["not a JSON object"])
    try:
        return Job.model_validate(data, context={FOLDER: path.absolute().parent})
    except ValidationError as reason:
        lines = [line for text in told(reason) for line in text.splitlines()]
        raise JobError(path, lines) from reason
