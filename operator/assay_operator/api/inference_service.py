"""InferenceService: a model served by SGLang engines behind the SGLang router."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from assay_operator.api.autoscaling import (
    MAX_REPLICAS,
    ActivationStatus,
    Autoscaling,
    AutoscalingStatus,
)
from assay_operator.api.engine import Engine
from assay_operator.api.meta import (
    ApiModel,
    Conditions,
    Label,
    LastFailure,
    ObjectName,
    all_defaults,
    cel,
    validated,
)
from assay_operator.api.rollout import PastRollout, RefusedVersion, Rollout, RolloutStatus, Weights
from assay_operator.api.sources import CHECKPOINT_SCHEME, ServedSource

RoutingPolicy = Literal["cache_aware", "power_of_two", "round_robin", "random"]

_SERVED_NAME_HELP = (
    "model.servedName must be letters, digits, '.', '_', '-', '/' or ':' (at most 128), and begin "
    "and end with a letter or digit, such as qwen3-8b or org/qwen3-8b"
)
_REPLICAS_HELP = "replicas must be between 0 and 1000"
_SERVED_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._/:-]{0,126}[A-Za-z0-9])?$"
_CLAIM_MISSING_HELP = (
    "follow.namespace needs follow.claim, the claim of this namespace that shows the same files: "
    "volumes cannot cross namespaces"
)
_CLAIM_ALONE_HELP = (
    "follow.claim stands only beside follow.namespace: within a namespace the job's own claim is "
    "used"
)
_PINNED_HELP = (
    "model.follow cannot stand beside a checkpoint:// source, which pins one checkpoint: take "
    "follow away, or give the pvc:// or oci:// model to begin with"
)


class Follow(ApiModel):
    """A VerifiedRLJob whose best verified checkpoint is served."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("!has(self.__namespace__) || has(self.claim)", _CLAIM_MISSING_HELP),
            cel("!has(self.claim) || has(self.__namespace__)", _CLAIM_ALONE_HELP),
        )
    )

    job: Label = Field(description="The job's name.")
    namespace: Label | None = Field(
        None,
        description="The job's namespace, where a CheckpointGrant has to allow it. Default: this "
        "one.",
    )
    claim: ObjectName | None = Field(
        None,
        description="With namespace only: the PersistentVolumeClaim of this namespace that shows "
        "the files of the job's claim.",
    )

    @model_validator(mode="after")
    def _files_can_be_seen(self) -> Follow:
        if self.namespace is not None and self.claim is None:
            raise ValueError(_CLAIM_MISSING_HELP)
        if self.claim is not None and self.namespace is None:
            raise ValueError(_CLAIM_ALONE_HELP)
        return self


class Model(ApiModel):
    """Which model is served, and under which name."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel(
                f"!has(self.follow) || !self.source.startsWith('{CHECKPOINT_SCHEME}')", _PINNED_HELP
            )
        )
    )

    source: ServedSource = Field(
        description="Where the weights are: pvc://CLAIM/PATH (a folder in a PersistentVolumeClaim "
        "of this namespace), oci://IMAGE (an OCI image or artifact, mounted as an image volume) or "
        "checkpoint://NAME (a Checkpoint of this namespace; nothing else is served then). "
        "The folder holds config.json, the tokenizer and *.safetensors.",
    )
    follow: Follow | None = Field(
        None,
        description="Serve the best verified checkpoint of a VerifiedRLJob, each after it passed "
        "the rollout's gate; until there is one, source.",
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

    @field_validator("servedName")
    @classmethod
    def _check_served_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(_SERVED_NAME, name):
            raise ValueError(_SERVED_NAME_HELP)
        return name

    @model_validator(mode="after")
    def _pinned_or_following(self) -> Model:
        if self.follow and self.source.startswith(CHECKPOINT_SCHEME):
            raise ValueError(_PINNED_HELP)
        return self


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
        description="Engine replicas. 0 stops engines and router and keeps everything else. Under "
        "autoscaling by driver builtin any other number counts only at the beginning; drivers hpa "
        "and keda write it.",
        json_schema_extra=validated(
            cel(f"self >= 0 && self <= {MAX_REPLICAS}", _REPLICAS_HELP),
        ),
    )
    autoscaling: Autoscaling | None = Field(
        None, description="Lets the number of replicas follow what users feel."
    )
    rollout: Rollout = all_defaults(Rollout)
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
        if not 0 <= replicas <= MAX_REPLICAS:
            raise ValueError(_REPLICAS_HELP)
        return replicas

    @property
    def max_unavailable(self) -> int:
        """How many replicas may be out of service for a rollout at a time."""
        wanted = self.rollout.maxUnavailable
        return wanted if wanted is not None else int(self.replicas > 1)


class InferenceServiceStatus(ApiModel):
    """What the operator sees. Written by the operator only."""

    observedGeneration: int | None = Field(None, description="The generation that was acted on.")
    replicas: int | None = Field(None, description="Engine pods that exist.")
    readyReplicas: int | None = Field(
        None,
        description="Routable engine replicas: the engine reports the version that shall be "
        "served, runs the kernels that it was asked to run, answered a generation probe, and every "
        "router lists it.",
    )
    routable: str | None = Field(None, description="Routable and wanted replicas, as in 1/2.")
    selector: str | None = Field(None, description="Label selector of the engine pods, for scale.")
    checkpoint: str | None = Field(None, description="The version of the weights that is served.")
    score: float | None = Field(None, description="The score of the weights that are served.")
    url: str | None = Field(None, description="Where the OpenAI API is served in the cluster.")
    served: Weights | None = Field(
        None, description="The weights that were last put into service: where a rollout begins."
    )
    rollout: RolloutStatus | None = Field(
        None, description="The latest change of the weights, under way or over."
    )
    history: list[PastRollout] | None = Field(
        None, description="The last ten changes that are over, the newest first."
    )
    refused: list[RefusedVersion] | None = Field(
        None,
        description="The last twenty versions that did not pass, the newest first. model.follow "
        "tries none of them again until the annotation assay.dev/retry names its version.",
    )
    autoscaling: AutoscalingStatus | None = Field(
        None, description="The latest decision about the number of replicas."
    )
    activation: ActivationStatus | None = Field(
        None, description="Where requests go, of a service that may have no replica."
    )
    conditions: Conditions | None = Field(
        None,
        description="Applied, EnginesReady, RouterReady and Ready; Target: what the spec asks for "
        "can be had; RolledOut: it is what is served, Unknown while it is on its way. "
        "KernelsActive: engines run the fused kernels, only where they are asked to. Under "
        "autoscaling: ScalingActive, and ObjectiveUnreachable: not even an idle replica meets an "
        "objective.",
    )
    lastFailure: LastFailure | None = Field(
        None, description="The latest failure, kept after it is over."
    )


class InferenceService(ApiModel):
    """A model served by SGLang engines behind the SGLang router."""

    spec: InferenceServiceSpec
    status: InferenceServiceStatus | None = None
