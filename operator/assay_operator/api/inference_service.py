"""InferenceService: a model served by SGLang engines behind the SGLang router."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from assay_operator.api.meta import (
    ApiModel,
    Condition,
    LastFailure,
    Quantity,
    cel,
    validated,
)
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
RoutingPolicy = Literal["cache_aware", "power_of_two", "round_robin", "random"]

_SOURCE = (
    r"^(pvc://[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[A-Za-z0-9._-]+)*"
    r"|oci://[A-Za-z0-9][A-Za-z0-9.:/_@-]*[A-Za-z0-9])$"
)
_SOURCE_HELP = (
    "model.source must be pvc://CLAIM/PATH or oci://IMAGE, such as pvc://models/qwen3-8b or "
    "oci://registry.example/models/qwen3-8b:v1"
)
_SOURCE_STEPS_HELP = "model.source must not walk through . or ..: name the folder itself"
_SERVED_NAME_HELP = (
    "model.servedName must be letters, digits, '.', '_', '-', '/' or ':' (at most 128), and begin "
    "and end with a letter or digit, such as qwen3-8b or org/qwen3-8b"
)
_REPLICAS_HELP = "replicas must be between 0 and 1000"
_MAX_REPLICAS = 1000
_SERVED_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._/:-]{0,126}[A-Za-z0-9])?$"


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


class Model(ApiModel):
    """Which model is served, and under which name."""

    source: str = Field(
        max_length=1024,
        description="Where the weights are: pvc://CLAIM/PATH (a folder in a PersistentVolumeClaim "
        "of this namespace) or oci://IMAGE (an OCI image or artifact, mounted as an image volume). "
        "The folder holds config.json, the tokenizer and *.safetensors.",
        json_schema_extra=validated(
            cel(f"self.matches('{_SOURCE}')", _SOURCE_HELP),
            cel(
                "!self.split('/').exists(step, step in ['.', '..'])",
                _SOURCE_STEPS_HELP,
            ),
        ),
    )
    servedName: str | None = Field(
        None,
        description="The model name that clients send. Default: the name of this object.",
        json_schema_extra=validated(
            cel(f"self.matches('{_SERVED_NAME}')", _SERVED_NAME_HELP),
            maxLength=128,
        ),
    )
    trustRemoteCode: bool = Field(
        False,
        description="Let the engine run Python code that lies beside the weights. Leave it off "
        "unless the model needs it and its source is trusted.",
    )

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        if not re.match(_SOURCE, source):
            raise ValueError(_SOURCE_HELP)
        if {".", ".."} & set(source.split("/")):
            raise ValueError(_SOURCE_STEPS_HELP)
        return source

    @field_validator("servedName")
    @classmethod
    def _check_served_name(cls, name: str | None) -> str | None:
        if name is not None and not re.match(_SERVED_NAME, name):
            raise ValueError(_SERVED_NAME_HELP)
        return name


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


class Router(ApiModel):
    """The SGLang router in front of the engines."""

    replicas: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="Router pods. Two or more keep the service up when a node is lost."
    )
    policy: RoutingPolicy = Field(
        "cache_aware",
        description="How a request finds its engine. cache_aware sends a prompt to the engine "
        "that already holds its longest prefix, unless that engine is overloaded.",
    )


class InferenceServiceSpec(ApiModel):
    """What the user wants."""

    model: Model
    engine: Engine = Field(default_factory=Engine, json_schema_extra={"default": {}})
    router: Router = Field(default_factory=Router, json_schema_extra={"default": {}})
    replicas: int = Field(
        1,
        description="Engine replicas. 0 stops engines and router and keeps everything else.",
        json_schema_extra=validated(
            cel(f"self >= 0 && self <= {_MAX_REPLICAS}", _REPLICAS_HELP),
        ),
    )
    template: dict[str, Any] | None = Field(
        None,
        description="Overrides of the engine's pod template (metadata and spec), merged "
        "strategically as `kubectl patch` does: lists of named things are merged by name. The "
        "engine's container is called engine.",
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
        },
    )

    @field_validator("replicas")
    @classmethod
    def _check_replicas(cls, replicas: int) -> int:
        if not 0 <= replicas <= _MAX_REPLICAS:
            raise ValueError(_REPLICAS_HELP)
        return replicas


class InferenceServiceStatus(ApiModel):
    """What the operator sees. Written by the operator only."""

    observedGeneration: int | None = Field(None, description="The generation that was acted on.")
    replicas: int | None = Field(None, description="Engine pods that exist.")
    readyReplicas: int | None = Field(
        None,
        description="Routable engine replicas: the engine reports the version that shall be "
        "served, answered a generation probe, and every router lists it.",
    )
    routable: str | None = Field(None, description="Routable and wanted replicas, as in 1/2.")
    selector: str | None = Field(None, description="Label selector of the engine pods, for scale.")
    checkpoint: str | None = Field(None, description="The version of the weights that is served.")
    url: str | None = Field(None, description="Where the OpenAI API is served in the cluster.")
    conditions: list[Condition] | None = Field(
        None,
        description="Applied, EnginesReady, RouterReady and Ready.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    lastFailure: LastFailure | None = Field(
        None, description="The latest failure, kept after it is over."
    )


class InferenceService(ApiModel):
    """A model served by SGLang engines behind the SGLang router."""

    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
