"""Checkpoint: weights that are known by their digest, where they come from, and how they scored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.engine import Engine
from assay_operator.api.meta import (
    ApiModel,
    Conditions,
    Digest,
    Label,
    cel,
    text,
    validated,
)
from assay_operator.api.sources import FolderSource, SuiteReference

_SAME_HELP = "a Checkpoint names bytes and cannot be changed: delete it and make another one"
_DIGEST_HELP = "a Checkpoint of a job needs its digest"
_WEIGHED_HELP = (
    "evaluation is for weights that somebody brings: those of a job were weighed in training; take "
    "job or evaluation away"
)

WeightVersion = Annotated[
    str,
    *text(
        r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)",
        "must be ATTEMPT.STEP, such as 1.20",
        32,
    ),
]
Uid = Annotated[str, *text(r"[-A-Za-z0-9]+", "must be the uid of an object", 64)]


class Provenance(ApiModel):
    """The run that made the weights."""

    name: Label = Field(description="The VerifiedRLJob's name.")
    uid: Uid = Field(description="Its uid: a later job of the same name is another one.")
    step: int = Field(ge=0, le=10_000_000, description="After which they were taken.")
    version: WeightVersion = Field(description="ATTEMPT.STEP, as in the run's manifest.")
    parent: Digest | None = Field(
        None, description="The digest of the checkpoint that training went on from."
    )


class Weighing(ApiModel):
    """How weights that somebody brings are weighed."""

    suite: SuiteReference = Field(description="The held-out items that they are asked.")
    minScore: float = Field(ge=0, le=1, description="The lowest score that counts as verified.")
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="With which the score must be as high as that."
    )
    engine: Engine = Field(
        default_factory=Engine,
        description="The engine that answers.",
        json_schema_extra={"default": {}},
    )


class CheckpointSpec(ApiModel):
    """What it is. It never changes."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self == oldSelf", _SAME_HELP),
            cel("!has(self.job) || has(self.digest)", _DIGEST_HELP),
            cel("!has(self.job) || !has(self.evaluation)", _WEIGHED_HELP),
        )
    )

    source: FolderSource = Field(
        description="pvc://CLAIM/PATH: the folder in a PersistentVolumeClaim of this namespace."
    )
    digest: Digest | None = Field(
        None,
        description="sha256: and the SHA-256 over the model's files (docs/training.md). What is "
        "found must have it. Default: whatever is found.",
    )
    job: Provenance | None = Field(
        None, description="The run that made it. Absent where somebody brings the weights."
    )
    evaluation: Weighing | None = Field(
        None,
        description="How weights that somebody brings are weighed. Without it they are never "
        "verified.",
    )

    @model_validator(mode="after")
    def _says_where_it_is_from(self) -> CheckpointSpec:
        if self.job and not self.digest:
            raise ValueError(_DIGEST_HELP)
        if self.job and self.evaluation:
            raise ValueError(_WEIGHED_HELP)
        return self


class Evaluated(ApiModel):
    """How the weights scored once."""

    suite: str = Field(description="What they were asked.")
    score: float = Field(description="The mean score.")
    low: float | None = Field(None, description="The lower end of its interval.")
    high: float | None = Field(None, description="The upper end.")
    items: int | None = Field(None, description="How many items were judged.")
    by: Literal["Training", "Weighing"] = Field(
        description="Training: by the run that made them. Weighing: by a Job of this Checkpoint."
    )
    time: datetime | None = Field(None, description="When.")


class CheckpointStatus(ApiModel):
    """What the operator sees. Written by the operator only."""

    observedGeneration: int | None = Field(None, description="The generation that was acted on.")
    digest: str | None = Field(None, description="Of what was found.")
    shortDigest: str | None = Field(None, description="Its first twelve digits, for people.")
    score: float | None = Field(None, description="Of the latest evaluation.")
    interval: list[float] | None = Field(None, description="Its lower and upper end.")
    evaluations: list[Evaluated] | None = Field(None, description="All of them, the latest first.")
    servedBy: list[str] | None = Field(
        None, description="The InferenceServices that serve it, as NAMESPACE/NAME."
    )
    conditions: Conditions | None = Field(
        None,
        description="Intact: its files are whole and are those that the digest names. Verified: "
        "its score was enough.",
    )


class Checkpoint(ApiModel):
    """Weights that are known by their digest."""

    spec: CheckpointSpec
    status: CheckpointStatus | None = None
