"""The parts of a VerifiedRLJob that say what is trained, on what, and how.

Names and bounds are those of the trainer's job file wherever it has the same field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.engine import GPUS_PER_NODE, Accelerator, Engine, Resources
from assay_operator.api.meta import ApiModel, ObjectName, cel, free_form, validated
from assay_operator.api.sources import (
    DATA_KEY,
    SUITE_KEY,
    FilePath,
    FolderSource,
    GeneratorSource,
    Key,
)

MOST_TOKENS = 10_000_000
"""Of a prompt or a completion: so large that sums stay far from what an integer can be."""
MOST_NODES = 64
MOST_ENGINES = 64

Split = Annotated[str, Field(min_length=1, max_length=128)]

_ONE_DATA_HELP = (
    "data needs exactly one of source (items that are made), configMap and claim (your own items)"
)
_PATH_HELP = "data.claim needs data.path, the file within the claim; path stands only beside claim"
_KEY_HELP = "key stands only beside configMap"
_SPLIT_HELP = "split stands only beside items of your own: generated items have no splits"
_ONE_SUITE_HELP = "evaluation.suite needs exactly one of configMap and source"


class TrainedModel(ApiModel):
    """What is trained."""

    source: FolderSource = Field(
        description="pvc://CLAIM/PATH, a folder in a PersistentVolumeClaim of this namespace with "
        "config.json, the tokenizer and *.safetensors. Also the reference that algorithm.kl holds "
        "the model to."
    )
    contextLength: Annotated[int, Field(ge=2, le=2 * MOST_TOKENS)] | None = Field(
        None,
        description="The most tokens that prompt and completion may have together. Default: what "
        "config.json says.",
    )


class Data(ApiModel):
    """What is asked in training."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel(
                "[has(self.source), has(self.configMap), has(self.claim)]"
                ".filter(given, given).size() == 1",
                _ONE_DATA_HELP,
            ),
            cel("has(self.claim) == has(self.path)", _PATH_HELP),
            cel("!has(self.key) || has(self.configMap)", _KEY_HELP),
            cel("!has(self.split) || !has(self.source)", _SPLIT_HELP),
        )
    )

    source: GeneratorSource | None = Field(
        None,
        description="Items that are made: reasoning-gym://number_sorting?seed=7&size=1000 (without "
        "a seed, the job's).",
    )
    configMap: ObjectName | None = Field(
        None, description="A ConfigMap of this namespace that holds a suite (docs/verifiers.md)."
    )
    key: Key | None = Field(None, description=f"Of the ConfigMap. Default: {DATA_KEY}.")
    claim: ObjectName | None = Field(
        None, description="A PersistentVolumeClaim of this namespace that holds a suite."
    )
    path: FilePath | None = Field(None, description="The suite's file within the claim.")
    split: Split | None = Field(None, description="Only the suite's items of it.")
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
        1024,
        ge=1,
        le=MOST_TOKENS,
        description="A longer prompt is refused with its item's id, never cut.",
    )

    @model_validator(mode="after")
    def _is_one_place(self) -> Data:
        given = [place for place in (self.source, self.configMap, self.claim) if place is not None]
        if len(given) != 1:
            raise ValueError(_ONE_DATA_HELP)
        if (self.claim is None) != (self.path is None):
            raise ValueError(_PATH_HELP)
        if self.key is not None and self.configMap is None:
            raise ValueError(_KEY_HELP)
        if self.split is not None and self.source is not None:
            raise ValueError(_SPLIT_HELP)
        return self


class RolloutEngines(ApiModel):
    """How completions are drawn."""

    engines: int = Field(1, ge=1, le=MOST_ENGINES, description="SGLang engines of the job's own.")
    engine: Engine = Field(default_factory=Engine, json_schema_extra={"default": {}})
    template: dict[str, Any] | None = Field(
        None,
        description="Overrides of the engines' pod template, as spec.template of an "
        "InferenceService.",
        json_schema_extra=free_form(),
    )
    concurrency: int = Field(64, ge=1, le=65536, description="Requests under way on each engine.")
    requestSeconds: float = Field(
        300.0, gt=0, le=86400, description="An engine that takes longer for one request hangs."
    )
    maxTokens: int = Field(512, ge=1, le=MOST_TOKENS, description="The longest completion.")
    temperature: float = Field(
        1.0,
        gt=0,
        le=10,
        description="Of sampling, and of the log-probs that the trainer compares.",
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


_UPDATES_HELP = (
    "promptsPerStep must be a multiple of updatesPerStep: each update gets the same share of the "
    "prompts"
)
_WARMUP_HELP = "warmupSteps cannot be more than steps"
_CPU_HELP = "with accelerator cpu a node has one process: leave gpusPerNode at 1, raise nodes"
_FUSED_HELP = "trainer.kernels fused needs a GPU: choose auto, or another trainer.accelerator"
_EXACT_HELP = (
    "trainer.deterministic needs a GPU, precision bf16 and other kernels than stock: its bits are "
    "those of the engines"
)


class Trainer(ApiModel):
    """How the model learns from them."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self.promptsPerStep % self.updatesPerStep == 0", _UPDATES_HELP),
            cel("self.warmupSteps <= self.steps", _WARMUP_HELP),
            cel("self.accelerator != 'cpu' || self.gpusPerNode == 1", _CPU_HELP),
            cel("self.accelerator != 'cpu' || self.kernels != 'fused'", _FUSED_HELP),
            cel(
                "!self.deterministic || (self.accelerator != 'cpu' && self.precision == 'bf16' && "
                "self.kernels != 'stock')",
                _EXACT_HELP,
            ),
        )
    )

    nodes: int = Field(
        1, ge=1, le=MOST_NODES, description="Trainer pods. They start, fail and restart together."
    )
    gpusPerNode: int = Field(
        1, ge=1, le=GPUS_PER_NODE, description="GPUs of each, and as many processes."
    )
    accelerator: Accelerator = Field(
        "nvidia", description="What the trainer runs on. nvidia takes any NVIDIA GPU."
    )
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="Of the passes; weights and optimiser are fp32 in either case."
    )
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
    warmupSteps: int = Field(0, ge=0, le=10_000_000, description="Over which it rises to that.")
    decay: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How it falls after that; the last two reach 0 after the last step."
    )
    weightDecay: float = Field(0.0, ge=0, le=1, description="AdamW's.")
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=2, max_length=2)
    ] = Field((0.9, 0.95), description="AdamW's two.")
    gradientClip: float = Field(1.0, gt=0, le=1e6, description="The longest gradient.")
    tokensPerMicroBatch: int = Field(
        16384,
        ge=2,
        le=1_000_000_000,
        description="The most tokens of one pass. It changes memory, not the result.",
    )
    activationCheckpointing: bool = Field(
        True, description="Whether activations are computed twice instead of kept."
    )
    logProbChunk: int = Field(
        2048,
        ge=1,
        le=1_000_000_000,
        description="Tokens whose logits are in memory at the same time.",
    )
    kernels: Literal["auto", "fused", "stock"] = Field(
        "auto",
        description="Whether head and loss go through Assay's kernels. auto: on GPUs where they "
        "can run; fused: in any case, or the run does not begin; stock: never.",
    )
    deterministic: bool = Field(
        False,
        description="Whether the model runs with the operations of engines in deterministic mode, "
        "so that log-probs are the engines' bit for bit (docs/training.md). It goes together with "
        "rollout.engine.deterministic.",
    )
    resources: Resources | None = Field(
        None, description="Requests and limits of the trainer's container, over our own."
    )
    template: dict[str, Any] | None = Field(
        None,
        description="Overrides of the trainer's pod template (metadata and spec), merged "
        "strategically. The trainer's container is called trainer.",
        json_schema_extra=free_form(),
    )

    @model_validator(mode="after")
    def _can_run(self) -> Trainer:
        if self.promptsPerStep % self.updatesPerStep:
            raise ValueError(_UPDATES_HELP)
        if self.warmupSteps > self.steps:
            raise ValueError(_WARMUP_HELP)
        on_cpu = self.accelerator == "cpu"
        if on_cpu and self.gpusPerNode != 1:
            raise ValueError(_CPU_HELP)
        if on_cpu and self.kernels == "fused":
            raise ValueError(_FUSED_HELP)
        stock = self.kernels == "stock"
        if self.deterministic and (on_cpu or stock or self.precision != "bf16"):
            raise ValueError(_EXACT_HELP)
        return self


class JobSuite(ApiModel):
    """Held-out items: a suite in a ConfigMap of this namespace, or items that are made."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("has(self.configMap) != has(self.source)", _ONE_SUITE_HELP),
            cel("!has(self.key) || has(self.configMap)", _KEY_HELP),
        )
    )

    configMap: ObjectName | None = Field(None, description="The ConfigMap's name.")
    key: Key | None = Field(None, description=f"Of the ConfigMap. Default: {SUITE_KEY}.")
    source: GeneratorSource | None = Field(
        None, description="Items that are made: reasoning-gym://number_sorting?seed=8&size=200."
    )

    @model_validator(mode="after")
    def _is_one_place(self) -> JobSuite:
        if (self.configMap is None) == (self.source is None):
            raise ValueError(_ONE_SUITE_HELP)
        if self.key is not None and self.configMap is None:
            raise ValueError(_KEY_HELP)
        return self


class Evaluation(ApiModel):
    """How the model is weighed while it trains: greedily, before the first step, then `every`."""

    model_config = ConfigDict(
        json_schema_extra=validated(cel("!has(self.split) || !has(self.suite.source)", _SPLIT_HELP))
    )

    every: int = Field(
        20, ge=1, le=10_000_000, description="In steps. The last step is always weighed."
    )
    suite: JobSuite = Field(description="What it is asked. Each answer is judged as in training.")
    split: Split | None = Field(None, description="Only the suite's items of it.")
    samples: int = Field(
        0,
        ge=0,
        le=1024,
        description="Further completions of each item, at rollout.temperature, from which pass@k "
        "is estimated; 0: greedy only.",
    )
    minScore: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="The lowest score of a checkpoint that counts as verified. Without it none "
        "does.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the score's interval.")

    @model_validator(mode="after")
    def _has_splits(self) -> Evaluation:
        if self.split is not None and self.suite.source is not None:
            raise ValueError(_SPLIT_HELP)
        return self
