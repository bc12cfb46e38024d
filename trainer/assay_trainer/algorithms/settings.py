"""The algorithm's part of a job file. Pydantic only: see `job`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from assay_trainer.settings import JobModel


class Kl(JobModel):
    """What keeps the policy near the model that the run began with."""

    coef: float = Field(
        0.0, ge=0, le=100, description="Of the estimate in the loss; 0 needs no reference model."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="Which estimate of the divergence: docs/algorithms.md."
    )


class Tis(JobModel):
    """Truncated importance sampling."""

    type: Literal["tis"] = "tis"
    cap: float = Field(2.0, ge=1, le=1e6, description="The largest weight of a token.")


class IcePop(JobModel):
    """Tokens on which sampler and trainer differ too much are left out."""

    type: Literal["icepop"] = "icepop"
    alpha: float = Field(0.5, gt=0, le=1, description="The smallest weight that is kept.")
    beta: float = Field(5.0, ge=1, le=1e6, description="The largest weight that is kept.")


class Uncorrected(JobModel):
    """Tokens count as if the trainer itself had drawn them."""

    type: Literal["none"] = "none"


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


ImportanceCorrection = Annotated[
    Annotated[Tis | IcePop | Uncorrected, Field(discriminator="type")], BeforeValidator(_named)
]

CLIP: dict[str, tuple[float, float]] = {"clip": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (1, 4)}
"""The bounds by loss: those of DAPO's and GSPO's experiments; for CISPO none below, since its
authors set none there, and a wide one above, for which they give no number."""


class Algorithm(JobModel):
    """How rewards become a gradient: docs/algorithms.md has the formulas."""

    name: Literal["grpo", "dr-grpo", "rloo", "reinforce++"] = Field(
        "grpo", description="How rewards become advantages."
    )
    groupSize: int = Field(
        16, ge=1, le=4096, description="Completions of each prompt; 1 only for reinforce++."
    )
    loss: Literal["clip", "gspo", "cispo"] = Field(
        "clip", description="What is bounded: each token's ratio, the sequence's, or its weight."
    )
    clip: tuple[float, float] = Field(
        default_factory=lambda data: CLIP.get(data.get("loss", ""), CLIP["clip"]),
        description="How far the ratio may lie below and above 1. Default: the loss's own.",
    )
    average: Literal["tokens", "sequences"] = Field(
        default_factory=lambda data: "sequences" if data.get("loss") == "gspo" else "tokens",
        description="Whether every token counts alike, or every sequence. Default: sequences for "
        "gspo, tokens else.",
    )
    kl: Kl = Kl()
    importanceCorrection: ImportanceCorrection = Field(
        Tis(),
        description="How tokens are weighted for the difference between engine and trainer: tis, "
        "icepop or none, or an object with a type and its bounds.",
    )
    entropy: float = Field(0.0, ge=0, le=10, description="Coefficient of the entropy bonus.")

    @field_validator("groupSize")
    @classmethod
    def _compares(cls, size: int, info: ValidationInfo) -> int:
        name = info.data.get("name", "reinforce++")
        if size < 2 and name != "reinforce++":
            raise ValueError(f"{name} compares completions of a prompt, so it needs at least 2")
        return size

    @field_validator("clip")
    @classmethod
    def _bounds(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = bounds
        if not 0 < low <= 1:
            raise ValueError("the lower bound must be in (0, 1]; 1 means none")
        if not 0 < high <= 1e6:
            raise ValueError("the upper bound must be in (0, 1000000]")
        return bounds
