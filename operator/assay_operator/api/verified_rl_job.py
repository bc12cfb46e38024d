"""VerifiedRLJob: training under verifiers, with every checkpoint weighed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from assay_operator.api.algorithm import Algorithm
from assay_operator.api.meta import (
    ApiModel,
    Conditions,
    Duration,
    LastFailure,
    ObjectName,
    PositiveDuration,
    all_defaults,
    cel,
    free_form,
    text,
    validated,
)
from assay_operator.api.training import Data, Evaluation, RolloutEngines, TrainedModel, Trainer
from assay_operator.api.verifiers import MOST, NAMES_DIFFER, Verifier, names_differ

_ONE_STORAGE_HELP = (
    "checkpoint.storage needs exactly one of claim (a PersistentVolumeClaim that is there) and "
    "size (of one that is made)"
)
_OF_SIZE_HELP = "className and accessMode stand only beside size: they are of a claim that is made"
_STORAGE_STAYS_HELP = (
    "checkpoint.storage cannot be changed but for a larger size: the run's checkpoints lie there; "
    "make another job"
)
_CONTEXT_HELP = (
    "data.maxPromptTokens and rollout.maxTokens together are more than model.contextLength: lower "
    "them, or raise it"
)
_BUDGET_HELP = (
    "data.maxPromptTokens and rollout.maxTokens together are more than "
    "trainer.tokensPerMicroBatch: lower them, or raise it"
)
_RESAMPLE_HELP = (
    "rollout.resampleRounds needs algorithm.groupSize of at least 2: a group of one never has "
    "variance"
)
_CHECKPOINT_HELP = "checkpoint.every cannot be more than trainer.steps: lower it, or train longer"
_EVALUATION_HELP = "evaluation.every cannot be more than trainer.steps: lower it, or train longer"
_MULTIPLE_HELP = (
    "evaluation.every must be a multiple of checkpoint.every or the other way round: otherwise "
    "most checkpoints would have no score"
)
_EXACT_HELP = (
    "trainer.deterministic and rollout.engine.deterministic go together: such engines draw each "
    "completion of a prompt alike unless the trainer gives each a seed, and the trainer's bits are "
    "those of such engines only"
)
_EXACT_KERNELS_HELP = (
    "with trainer.deterministic, rollout.engine.kernels cannot be stock: the trainer's bits are "
    "those of the fused kernels"
)

Size = Annotated[
    str,
    *text(
        r"[1-9][0-9]{0,8}(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?",
        "must be a quantity of storage, such as 50Gi",
        16,
    ),
]


class Storage(ApiModel):
    """Where checkpoints are written."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("has(self.claim) != has(self.size)", _ONE_STORAGE_HELP),
            cel("has(self.size) || !(has(self.className) || has(self.accessMode))", _OF_SIZE_HELP),
            cel(
                "has(self.claim) == has(oldSelf.claim) && "
                "(!has(self.claim) || self.claim == oldSelf.claim) && "
                "has(self.className) == has(oldSelf.className) && "
                "(!has(self.className) || self.className == oldSelf.className) && "
                "has(self.accessMode) == has(oldSelf.accessMode) && "
                "(!has(self.accessMode) || self.accessMode == oldSelf.accessMode) && "
                "(!has(self.size) || !has(oldSelf.size) || "
                "quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0)",
                _STORAGE_STAYS_HELP,
            ),
        )
    )

    claim: ObjectName | None = Field(
        None,
        description="A PersistentVolumeClaim of this namespace. The job's folder in it has the "
        "job's name; several jobs may share a claim.",
    )
    size: Size | None = Field(
        None, description="Of the claim NAME-checkpoints, which is made for the job."
    )
    className: ObjectName | None = Field(
        None, description="Its storage class. Default: the cluster's."
    )
    accessMode: Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"] | None = Field(
        None,
        description="How it is mounted. Engines read what the trainer writes, so ReadWriteOnce "
        "keeps all pods on one node. Default: ReadWriteMany.",
    )

    @model_validator(mode="after")
    def _is_one_place(self) -> Storage:
        if (self.claim is None) == (self.size is None):
            raise ValueError(_ONE_STORAGE_HELP)
        if self.size is None and (self.className is not None or self.accessMode is not None):
            raise ValueError(_OF_SIZE_HELP)
        return self

    @property
    def access(self) -> str:
        """The access mode of a claim that is made."""
        return self.accessMode or "ReadWriteMany"


class CheckpointPolicy(ApiModel):
    """What is kept of the run."""

    every: int = Field(
        20, ge=1, le=10_000_000, description="In steps. The last step is always kept."
    )
    keep: int = Field(
        3,
        ge=1,
        le=10_000,
        description="The newest ones that are kept, beside the best verified and those that are "
        "served or followed.",
    )
    storage: Storage = Field(description="Where they are written.")
    onDelete: Literal["Retain", "Delete"] = Field(
        "Retain",
        description="What becomes of the Checkpoints, and of a claim that was made for the job, "
        "when the job is deleted.",
    )


class VerifiedRLJobSpec(ApiModel):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel(
                "!has(self.model.contextLength) || self.data.maxPromptTokens + "
                "self.rollout.maxTokens <= self.model.contextLength",
                _CONTEXT_HELP,
            ),
            cel(
                "self.data.maxPromptTokens + self.rollout.maxTokens <= "
                "self.trainer.tokensPerMicroBatch",
                _BUDGET_HELP,
            ),
            cel("self.rollout.resampleRounds == 0 || self.algorithm.groupSize > 1", _RESAMPLE_HELP),
            cel("self.checkpoint.every <= self.trainer.steps", _CHECKPOINT_HELP),
            cel(
                "!has(self.evaluation) || self.evaluation.every <= self.trainer.steps",
                _EVALUATION_HELP,
            ),
            cel(
                "!has(self.evaluation) || self.evaluation.every % self.checkpoint.every == 0 || "
                "self.checkpoint.every % self.evaluation.every == 0",
                _MULTIPLE_HELP,
            ),
            cel("self.trainer.deterministic == self.rollout.engine.deterministic", _EXACT_HELP),
            cel(
                "!self.trainer.deterministic || !has(self.rollout.engine.kernels) || "
                "self.rollout.engine.kernels != 'stock'",
                _EXACT_KERNELS_HELP,
            ),
        )
    )

    model: TrainedModel
    data: Data
    verifiers: Annotated[
        tuple[Verifier, ...], Field(max_length=MOST), AfterValidator(names_differ)
    ] = Field(
        (),
        description="Which judge every completion, by their weighted mean. Empty: each item names "
        "its own, as in a suite.",
        json_schema_extra=validated(NAMES_DIFFER),
    )
    algorithm: Algorithm = all_defaults(Algorithm)
    rollout: RolloutEngines = all_defaults(RolloutEngines)
    trainer: Trainer
    checkpoint: CheckpointPolicy
    evaluation: Evaluation | None = Field(
        None,
        description="How checkpoints are weighed. Without it none is ever verified, and no service "
        "gets one.",
    )
    suspend: bool = Field(
        False,
        description="Whether the job pauses: its pods go after a last checkpoint, and it goes on "
        "there when this is false again.",
    )
    progressDeadline: PositiveDuration = Field(
        "30m",
        description="Without a finished step or other progress for so long, the run has failed and "
        "restarts.",
    )
    backoffLimit: int = Field(
        3,
        ge=0,
        le=1000,
        description="How often it may restart without a finished step in between, before the job "
        "fails for good.",
    )
    ttlAfterFinished: Duration | None = Field(
        None,
        description="How long after the end the job's pods and other objects stay; checkpoints "
        "stay in any case. Default: as long as the job.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Of the items' order, and of items that are made where their source names no "
        "seed. Not of sampling: engines have a seed of their own.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> VerifiedRLJobSpec:
        longest = self.data.maxPromptTokens + self.rollout.maxTokens
        context, steps, every = self.model.contextLength, self.trainer.steps, self.checkpoint.every
        weighed = self.evaluation.every if self.evaluation else None
        exact, engine = self.trainer.deterministic, self.rollout.engine
        wrong = [
            help_
            for is_wrong, help_ in (
                (context is not None and longest > context, _CONTEXT_HELP),
                (longest > self.trainer.tokensPerMicroBatch, _BUDGET_HELP),
                (self.rollout.resampleRounds and self.algorithm.groupSize < 2, _RESAMPLE_HELP),
                (every > steps, _CHECKPOINT_HELP),
                (weighed is not None and weighed > steps, _EVALUATION_HELP),
                (weighed is not None and weighed % every and every % weighed, _MULTIPLE_HELP),
                (exact != engine.deterministic, _EXACT_HELP),
                (exact and engine.kernels == "stock", _EXACT_KERNELS_HELP),
            )
            if is_wrong
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class VerifiedRLJobStatus(ApiModel):
    """What the operator sees. Written by the operator only."""

    observedGeneration: int | None = Field(None, description="The generation that was acted on.")
    phase: str | None = Field(
        None,
        description="Pending, Starting, Training, Restarting, Suspending, Suspended, Complete or "
        "Failed: what the conditions say in one word.",
    )
    step: int | None = Field(None, description="The last finished step.")
    of: int | None = Field(None, description="How many steps there are.")
    progress: str | None = Field(None, description="Both, as in 40/200.")
    reward: float | None = Field(None, description="The mean reward of the last step.")
    score: float | None = Field(None, description="Of the latest evaluation.")
    best: str | None = Field(None, description="The best verified Checkpoint's name.")
    bestScore: float | None = Field(None, description="Its score.")
    eta: str | None = Field(None, description="How long the rest will take, as in 1h20m.")
    message: str | None = Field(None, description="What the trainer is doing, for people.")
    alarms: list[str] | None = Field(
        None, description="What the trainer finds wrong with the run now, the worst first."
    )
    generation: int | None = Field(
        None, description="Of the job's pods: how often they were started together."
    )
    restarts: int | None = Field(
        None, description="How many of those since a step was finished: up to backoffLimit."
    )
    progressedAt: datetime | None = Field(
        None, description="When progress was seen last; progressDeadline counts from there."
    )
    startedAt: datetime | None = Field(None, description="When the job's first pods were made.")
    finishedAt: datetime | None = Field(
        None,
        description="When the job was complete or failed for good; ttlAfterFinished counts "
        "from there.",
    )
    gang: dict[str, Any] | None = Field(
        None,
        description="What the operator has to remember about the pods, to go on after a restart.",
        json_schema_extra=free_form(),
    )
    conditions: Conditions | None = Field(
        None,
        description="Admitted, EnginesReady, Training, CheckpointReady, Verified, Complete, "
        "Failed, Suspended and VerificationWeak.",
    )
    lastFailure: LastFailure | None = Field(
        None, description="The latest failure, kept after it is over."
    )


class VerifiedRLJob(ApiModel):
    """Training under verifiers: SGLang engines draw, verifiers judge, a trainer learns."""

    spec: VerifiedRLJobSpec
    status: VerifiedRLJobStatus | None = None
