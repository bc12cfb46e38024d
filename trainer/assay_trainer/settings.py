"""The parts of a job file, one model each; `algorithms.settings` has the algorithm's.

Pydantic only: see `job`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from assay_verifiers.config import AnyVerifier, parse_verifier

GENERATOR = "reasoning-gym"
FOLDER = "folder"
"""The validation context's key for the folder that paths are relative to."""


class JobModel(BaseModel):
    """A part of the job file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _beside_the_job(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context[FOLDER]) / path if info.context else path


LocalPath = Annotated[Path, AfterValidator(_beside_the_job)]


@dataclass(frozen=True)
class Generator:
    """A source of items that are made and not read.

    Attributes:
        dataset: reasoning-gym's name of the task.
        parameters: what it is made with.
    """

    dataset: str
    parameters: Mapping[str, Any]


def generator(source: str) -> Generator | None:
    """What `reasoning-gym://NAME?key=value&...` says; None where a source is a file.

    Values are JSON where they can be read as such, else text.

    Raises:
        ValueError: a scheme that does not exist, no name, or a key twice.
    """
    if "://" not in source:
        return None
    url = urlsplit(source)
    if url.scheme != GENERATOR or not url.netloc or url.path or url.fragment:
        raise ValueError(
            f"{source!r} is neither a file nor {GENERATOR}://NAME?key=value, such as "
            f"{GENERATOR}://number_sorting?seed=7"
        )
    parameters: dict[str, Any] = {}
    for key, text in parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)):
        if key in parameters:
            raise ValueError(f"{source!r} gives {key!r} twice")
        try:
            parameters[key] = json.loads(text)
        except ValueError:
            parameters[key] = text
    return Generator(url.netloc, parameters)


def _source(source: str, info: ValidationInfo) -> str:
    if generator(source):
        return source
    return str(_beside_the_job(Path(source), info))


Source = Annotated[str, Field(min_length=1), AfterValidator(_source)]


class Model(JobModel):
    """What is trained."""

    path: LocalPath = Field(
        description="A Hugging Face folder: config.json, the tokenizer, *.safetensors. Also the "
        "reference that algorithm.kl holds the model to."
    )
    contextLength: int | None = Field(
        None,
        ge=2,
        description="The most tokens that prompt and completion may have together. Default: what "
        "config.json says.",
    )


class Data(JobModel):
    """What is asked."""

    source: Source = Field(
        description="A suite (JSON lines, docs/verifiers.md), or items that are made: "
        "reasoning-gym://number_sorting?seed=7&size=1000 (without a seed, the job's)."
    )
    split: str | None = Field(None, min_length=1, description="Only the suite's items of it.")
    shuffle: bool = Field(
        True,
        description="Whether the items come in an order drawn from the seed, another one each time "
        "round; else in the source's.",
    )
    chatTemplate: bool = Field(
        True,
        description="Whether prompts go through the tokenizer's chat template; else the text is "
        "the prompt, as base models want it.",
    )
    maxPromptTokens: int = Field(
        1024, ge=1, description="A longer prompt is refused with its item's id, never cut."
    )

    @field_validator("split")
    @classmethod
    def _has_splits(cls, split: str | None, info: ValidationInfo) -> str | None:
        if split is not None and "source" in info.data and generator(info.data["source"]):
            raise ValueError("generated items have no splits")
        return split


class NamedVerifier(JobModel):
    """One verifier with its share of the reward: {name, weight, type, the type's own fields}."""

    name: str = Field(min_length=1, max_length=128, description="In metrics. Default: the type.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Of the weighted mean that is the reward.")
    verifier: AnyVerifier

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = {key: data[key] for key in ("name", "weight") if key in data}
        # Here and not as a field, so that an error's path has no step that the file does not have.
        verifier = parse_verifier({key: data[key] for key in data if key not in own})
        return {"name": verifier.type, **own, "verifier": verifier}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        fields = self.verifier.model_dump(mode="json", by_alias=True)
        return {"name": self.name, "weight": self.weight, **fields}


class Weights(JobModel):
    """How new weights come to the engines."""

    transfer: Literal["disk", "broadcast"] = Field(
        "disk",
        description="disk: through storage that both see. broadcast: from GPU to GPU by NCCL "
        "(between CPUs by gloo).",
    )
    directory: LocalPath | None = Field(
        None,
        description="Where they are put, best on memory; the engines see it by the same path. "
        "broadcast: only for engines that come back. Default: weights under checkpoint.directory.",
    )


_URL = r"^https?://[^\s/?#]+/?$"


class Rollout(JobModel):
    """How completions are drawn."""

    engines: tuple[Annotated[str, Field(pattern=_URL)], ...] = Field(
        min_length=1, description="The SGLang engines' URLs, such as http://127.0.0.1:30000."
    )
    concurrency: int = Field(64, ge=1, le=65536, description="Requests under way on each engine.")
    requestSeconds: float = Field(
        300.0, gt=0, le=86400, description="An engine that takes longer for one request hangs."
    )
    attempts: int = Field(
        4, ge=1, le=100, description="Of one request, each on another engine if there is one."
    )
    waitSeconds: float = Field(
        900.0,
        gt=0,
        le=86400,
        description="Without any usable engine for longer, at the start or later, the run ends.",
    )
    tokenEnv: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="The environment variable that holds the engines' bearer token, which must be "
        "allowed to update weights. Default: no token.",
    )
    maxTokens: int = Field(512, ge=1, description="The longest completion.")
    temperature: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Of sampling, and of the log-probs that the trainer compares. There is no "
        "top-p or top-k: what they cut off would have to be known to the trainer too.",
    )
    truncated: Literal["judge", "wrong", "mask"] = Field(
        "judge",
        description="Of a completion that maxTokens cut off: judge it as it is, give it 0, or "
        "leave it out of the loss (DAPO's overlong filtering).",
    )
    resampleRounds: int = Field(
        0,
        ge=0,
        le=64,
        description="How often a step may replace groups without variance by other prompts "
        "(DAPO's dynamic sampling). What is uniform after that stays, with advantage 0.",
    )
    maxStaleness: Literal[0, 1] = Field(
        1,
        description="How many steps old the weights that drew a token may be. 1: the next batch is "
        "drawn while this one trains; 0: strictly in turn.",
    )
    kernels: Literal["any", "fused"] = Field(
        "any",
        description="fused: an engine gets prompts only while it says that it runs Assay's "
        "kernels (GET /assay/kernels). any: it is not asked.",
    )
    weights: Weights = Weights()

    @field_validator("engines")
    @classmethod
    def _once(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(engine.rstrip("/") for engine in engines)
        if len(set(plain)) < len(plain):
            raise ValueError("an engine stands twice")
        return plain


class Trainer(JobModel):
    """How the model learns from them."""

    steps: int = Field(ge=1, le=10_000_000, description="Batches of completions that are drawn.")
    promptsPerStep: int = Field(
        64, ge=1, le=1_000_000, description="In each batch, over all processes."
    )
    updatesPerStep: int = Field(
        1,
        ge=1,
        le=1024,
        description="Optimiser updates on each batch, each with its share of the prompts. With 1 "
        "the ratio that algorithm.clip bounds is always 1.",
    )
    learningRate: float = Field(1e-6, gt=0, le=1, description="The highest.")
    warmupSteps: int = Field(0, ge=0, description="Over which it rises to that.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How it falls after that; the last two reach 0 after the last step."
    )
    weightDecay: float = Field(0.0, ge=0, le=1, description="AdamW's.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.95), description="AdamW's."
    )
    gradientClip: float = Field(1.0, gt=0, le=1e6, description="The longest gradient.")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of the passes; weights and optimiser are fp32 in either case."
    )
    tokensPerMicroBatch: int = Field(
        16384, ge=2, description="The most tokens of one pass. It changes memory, not the result."
    )
    activationCheckpointing: bool = Field(
        True, description="Whether activations are computed twice instead of kept."
    )
    logProbChunk: int = Field(
        2048, ge=1, description="Tokens whose logits are in memory at the same time."
    )
    kernels: Literal["auto", "fused", "stock"] = Field(
        "auto",
        description="Whether head and loss go through assay_kernels: on GPUs where they can run; "
        "in any case, or the run does not begin; or never.",
    )
    deterministic: bool = Field(
        False,
        description="Whether the model runs with the operations of an engine in deterministic "
        "mode, so that log-probs are the engine's bit for bit.",
    )

    @field_validator("updatesPerStep")
    @classmethod
    def _shares(cls, updates: int, info: ValidationInfo) -> int:
        prompts = info.data.get("promptsPerStep", updates)
        if prompts % updates:
            raise ValueError(
                f"{prompts} prompts cannot be shared out evenly over {updates} updates"
            )
        return updates

    @field_validator("warmupSteps")
    @classmethod
    def _ends(cls, warmup: int, info: ValidationInfo) -> int:
        if warmup > info.data.get("steps", warmup):
            raise ValueError(f"longer than the run, which has {info.data['steps']} steps")
        return warmup


class Checkpoint(JobModel):
    """What is kept of the run."""

    directory: LocalPath = Field(
        description="Where checkpoints, metrics.jsonl and curve.png are written."
    )
    every: int = Field(20, ge=1, description="In steps. The last step is always kept.")
    keep: int = Field(
        3,
        ge=1,
        description="The newest ones that are kept, beside the best verified and the one that is "
        "being served.",
    )


class Evaluation(JobModel):
    """How the model is weighed while it trains: greedily, before the first step, then `every`."""

    every: int = Field(20, ge=1, description="In steps. The last step is always weighed.")
    suite: Source = Field(
        description="Held-out items, as in data.source. Each is judged as in training."
    )
    split: str | None = Field(None, min_length=1, description="Only the suite's items of it.")
    samples: int = Field(
        0,
        ge=0,
        le=1024,
        description="Further completions of each item, at rollout.temperature, from which pass@k "
        "is estimated; 0: greedy only.",
    )
    minScore: float | None = Field(
        None, ge=0, le=1, description="The lowest score of a checkpoint that counts as verified."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the score's interval.")

    @field_validator("split")
    @classmethod
    def _has_splits(cls, split: str | None, info: ValidationInfo) -> str | None:
        if split is not None and "suite" in info.data and generator(info.data["suite"]):
            raise ValueError("generated items have no splits")
        return split


class Status(JobModel):
    """The HTTP server with /status, /metrics and /healthz."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="Where it listens; it asks nobody who they are."
    )
    port: int = Field(8080, ge=1, le=65535, description="Of the process with rank 0.")
    progressSeconds: float = Field(
        1800.0, gt=0, description="Without a finished step for longer, /healthz fails."
    )
