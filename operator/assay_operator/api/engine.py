"""How SGLang engines run: alike in a service, in a job and where a checkpoint is weighed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from assay_operator.api.meta import ApiModel, Quantity, cel, validated
from assay_operator.api.reserved import RESERVED_ARGUMENTS, reserved_argument

GPUS_PER_NODE = 8
"""Engines of one pod only: what a node of every accelerator in the table can hold at most."""

Profile = Literal[
    "auto", "qwen3", "qwen3-moe", "llama", "deepseek-v3", "deepseek-v4-flash", "deepseek-v4-pro"
]
Accelerator = Literal[
    "cpu", "nvidia", "nvidia-a100", "nvidia-l40s", "nvidia-h100", "nvidia-h200", "nvidia-b200"
]
Tuning = Literal["throughput", "latency"]
Kernels = Literal["fused", "stock"]

_DETERMINISTIC_HELP = (
    "engine.deterministic needs a GPU: SGLang has no deterministic mode on the CPU, take it away "
    "or choose another engine.accelerator"
)


def _reserved_rules() -> list[dict[str, str]]:
    """CEL rules, one for each remedy, that refuse flags which Assay sets itself.

    A flag is matched alone, as `--flag=value`, and by any beginning of it, because SGLang's parser
    takes those too. Flags with the same remedy share one rule, so that the message can name the
    spec's field to use instead.
    """
    by_remedy: dict[str, list[str]] = {}
    for flag, remedy in RESERVED_ARGUMENTS.items():
        by_remedy.setdefault(remedy, []).append(flag)
    rules = []
    for remedy, flags in by_remedy.items():
        known = "[" + ", ".join(f"'{flag}'" for flag in sorted(flags)) + "]"
        rules.append(
            cel(
                "!self.exists(argument, argument.startsWith('--') && "
                f"{known}.exists(flag, flag.startsWith(argument.split('=')[0])))",
                f"{', '.join(sorted(flags))} cannot stand in extraArgs: {remedy}",
            )
        )
    return rules


class Parallelism(ApiModel):
    """How one engine is spread over the GPUs of its pod."""

    tensor: Annotated[int, Field(ge=1, le=GPUS_PER_NODE)] = Field(
        1, description="GPUs over which each layer is split."
    )
    data: Annotated[int, Field(ge=1, le=GPUS_PER_NODE)] = Field(
        1, description="Data-parallel ranks in the engine."
    )
    expert: Annotated[int, Field(ge=1, le=GPUS_PER_NODE)] = Field(
        1, description="Groups over which the experts of a mixture-of-experts model are spread."
    )


class Resources(ApiModel):
    """Requests and limits of the engine container; GPUs follow from accelerator and parallelism."""

    requests: dict[str, Quantity] | None = Field(None, description="What the scheduler reserves.")
    limits: dict[str, Quantity] | None = Field(None, description="What the kubelet enforces.")


class Engine(ApiModel):
    """How the SGLang engines run."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel(
                "!(has(self.deterministic) && self.deterministic && has(self.accelerator) && "
                "self.accelerator == 'cpu')",
                _DETERMINISTIC_HELP,
            )
        )
    )

    profile: Profile = Field(
        "auto",
        description="Arguments for a model family. auto sets only what the accelerator needs and "
        "leaves the rest to SGLang, which reads the model's config.json.",
    )
    accelerator: Accelerator = Field(
        "nvidia", description="What the engine runs on. nvidia takes any NVIDIA GPU."
    )
    tuning: Tuning = Field(
        "throughput", description="Whether a profile favours tokens per second or latency."
    )
    parallelism: Parallelism | None = Field(
        None,
        description="How one engine is spread over GPUs. Default: what the profile says.",
    )
    kernels: Kernels | None = Field(
        None,
        description="fused: Assay's kernels, which its plugin puts in the place of SGLang's; an "
        "engine that does not run them gets no requests: of a service Ready says KernelsInactive, "
        "of a job EnginesReady, and a weighing says that it cannot be done. On the CPU they are "
        "plain PyTorch, which shows that all is wired and is not faster. stock: "
        "SGLang's own, for images without the plugin, too. Default: fused on GPUs, stock on the "
        "CPU.",
    )
    deterministic: bool = Field(
        False,
        description="SGLang's deterministic mode: what an engine answers does not depend on what "
        "else it is asked meanwhile. It costs speed, less of it with fused kernels. A request then "
        "draws by its seed, and without one by a fixed seed: equal requests get equal answers. "
        "Refused where SGLang has no such mode: on the CPU, and for DeepSeek-V4.",
    )
    extraArgs: list[Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=list,
        max_length=64,
        description="Further SGLang arguments, after those of the profile, such as "
        "--context-length 8192. Arguments that Assay sets itself are refused.",
        json_schema_extra=validated(*_reserved_rules()),
    )
    resources: Resources | None = Field(
        None, description="Requests and limits over those of the profile."
    )

    @field_validator("extraArgs")
    @classmethod
    def _check_extra_arguments(cls, arguments: list[str]) -> list[str]:
        for argument in arguments:
            flag = reserved_argument(argument)
            if flag:
                raise ValueError(f"{argument} cannot stand here: {RESERVED_ARGUMENTS[flag]}")
        return arguments

    @model_validator(mode="after")
    def _deterministic_where_that_is(self) -> Engine:
        if self.deterministic and self.accelerator == "cpu":
            raise ValueError(_DETERMINISTIC_HELP)
        return self
