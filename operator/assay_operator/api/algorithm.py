"""The algorithm of a training job: the words and bounds of the trainer's job file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.meta import ApiModel, all_defaults, cel, validated

_GROUP_HELP = (
    "grpo, dr-grpo and rloo compare the completions of a prompt: groupSize must be at least 2, or "
    "name reinforce++"
)
_CLIP_HELP = (
    "clip must be two numbers: how far the ratio may lie below 1, above 0 and at most 1 (which "
    "means no bound), and how far above 1, above 0 and at most 1000000"
)
_CAP_HELP = "cap belongs to type tis only"
_BAND_HELP = "alpha and beta belong to type icepop only"


class Kl(ApiModel):
    """What keeps the policy near the model that the run began with."""

    coef: float = Field(
        0.0, ge=0, le=100, description="Of the estimate in the loss; 0 needs no reference model."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Which estimate of the divergence: docs/algorithms.md."
    )


class ImportanceCorrection(ApiModel):
    """How tokens are weighted for the difference between engine and trainer."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("!has(self.cap) || self.type == 'tis'", _CAP_HELP),
            cel("!(has(self.alpha) || has(self.beta)) || self.type == 'icepop'", _BAND_HELP),
        )
    )

    type: Literal["tis", "icepop", "none"] = Field(
        "tis",
        description="tis: truncated importance sampling. icepop: tokens on which engine and "
        "trainer differ too much are left out. none: tokens count as if the trainer itself had "
        "drawn them.",
    )
    cap: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None, description="tis: the largest weight of a token. Default: 2."
    )
    alpha: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="icepop: the smallest weight that is kept. Default: 0.5."
    )
    beta: Annotated[float, Field(ge=1, le=1e6)] | None = Field(
        None, description="icepop: the largest weight that is kept. Default: 5."
    )

    @model_validator(mode="after")
    def _bounds_are_the_types(self) -> ImportanceCorrection:
        if self.cap is not None and self.type != "tis":
            raise ValueError(_CAP_HELP)
        if (self.alpha is not None or self.beta is not None) and self.type != "icepop":
            raise ValueError(_BAND_HELP)
        return self


class Algorithm(ApiModel):
    """How rewards become a gradient: docs/algorithms.md has the formulas."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self.groupSize > 1 || self.name == 'reinforce++'", _GROUP_HELP)
        )
    )

    name: Literal["grpo", "dr-grpo", "rloo", "reinforce++"] = Field(
        "grpo", description="How rewards become advantages."
    )
    groupSize: int = Field(
        16, ge=1, le=4096, description="Completions of each prompt; 1 only for reinforce++."
    )
    loss: Literal["clip", "gspo", "cispo"] = Field(
        "clip", description="What is bounded: each token's ratio, the sequence's, or its weight."
    )
    clip: Annotated[tuple[float, ...], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="How far the ratio may lie below and above 1, such as [0.2, 0.28]. Default: "
        "the loss's own.",
        json_schema_extra=validated(
            cel(
                "self.size() == 2 && self[0] > 0.0 && self[0] <= 1.0 && self[1] > 0.0 && "
                "self[1] <= 1000000.0",
                _CLIP_HELP,
            )
        ),
    )
    average: Literal["tokens", "sequences"] | None = Field(
        None,
        description="Whether every token counts alike, or every sequence. Default: sequences for "
        "gspo, tokens else.",
    )
    kl: Kl = all_defaults(Kl)
    importanceCorrection: ImportanceCorrection = all_defaults(ImportanceCorrection)
    entropy: float = Field(0.0, ge=0, le=10, description="Coefficient of the entropy bonus.")

    @model_validator(mode="after")
    def _can_be_computed(self) -> Algorithm:
        if self.groupSize < 2 and self.name != "reinforce++":
            raise ValueError(_GROUP_HELP)
        if self.clip and not (0 < self.clip[0] <= 1 and 0 < self.clip[1] <= 1e6):
            raise ValueError(_CLIP_HELP)
        return self
