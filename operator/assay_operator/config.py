"""The operator's own configuration: one YAML file, usually a ConfigMap that the chart writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

ENGINE_VERSION = "0.5.23"
OUR_VERSION = "0.1.0"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineDefaults(_Part):
    """Where engine pods come from, by class of accelerator (`cpu`, `nvidia`)."""

    images: dict[str, str] = Field(
        default={
            "cpu": f"assay/engine:{ENGINE_VERSION}-cpu",
            "nvidia": f"assay/engine:{ENGINE_VERSION}",
        },
        description="Image by class of accelerator.",
    )
    templates: dict[str, dict[str, Any]] = Field(
        default={},
        description="Cluster-wide overrides of the engine pod by class of accelerator, merged "
        "before the user's own: tolerations, node caches, pull secrets.",
    )


class RouterDefaults(_Part):
    """Where router pods come from."""

    image: str = f"assay/router:{OUR_VERSION}"
    template: dict[str, Any] = Field(
        default={}, description="Cluster-wide overrides of the router pod."
    )


class ActivatorDefaults(_Part):
    """The pod that holds the requests of a service without a replica, and how many it holds."""

    image: str = Field(
        default="",
        description="Of the operator. The chart names its own; else assay/operator of this "
        "version.",
    )
    template: dict[str, Any] = Field(
        default={},
        description="Cluster-wide overrides of the activator pod. Its container is called "
        "activator.",
    )
    holdSeconds: int = Field(
        default=600, ge=1, description="A request waits so long at most, then it is refused."
    )
    requests: int = Field(default=512, ge=1, description="Requests of a service that wait at once.")
    megabytes: int = Field(default=64, ge=1, description="Of memory for their bodies together.")


class VerifierDefaults(_Part):
    """Where the pods come from that inspect a checkpoint's files and ask models a suite's items."""

    image: str = Field(
        default=f"assay/verifier:{OUR_VERSION}",
        description="assay-train inspect and assay-verify; neither needs torch.",
    )
    template: dict[str, Any] = Field(
        default={},
        description="Cluster-wide overrides of these pods. Their container is called verifier; an "
        "init container that inspects gets the same overrides.",
    )


class TrainerDefaults(_Part):
    """Where trainer pods come from, by class of accelerator (`cpu`, `nvidia`)."""

    images: dict[str, str] = Field(
        default={
            "cpu": f"assay/trainer:{OUR_VERSION}-cpu",
            "nvidia": f"assay/trainer:{OUR_VERSION}",
        },
        description="Image by class of accelerator.",
    )
    templates: dict[str, dict[str, Any]] = Field(
        default={},
        description="Cluster-wide overrides of the trainer pod by class of accelerator, merged "
        "before the user's own. Its container is called trainer.",
    )


class OperatorPods(_Part):
    """Where the operator's own pods run."""

    namespace: str = Field(min_length=1)
    podLabels: dict[str, str] = Field(
        min_length=1, description="Labels that they have and nobody else's pods do."
    )


class NetworkPolicies(_Part):
    """Who may reach the pods of services and jobs, beside those that belong together."""

    operator: OperatorPods
    metricsFrom: list[dict[str, Any]] = Field(
        default=[],
        description="Who may read the metrics of engines, routers and trainers, as peers of a "
        "NetworkPolicy. An engine has them at the port of all else.",
    )


class OperatorConfig(_Part):
    """Defaults that a cluster's administrator sets once."""

    engine: EngineDefaults = EngineDefaults()
    router: RouterDefaults = RouterDefaults()
    activator: ActivatorDefaults = ActivatorDefaults()
    verifier: VerifierDefaults = VerifierDefaults()
    trainer: TrainerDefaults = TrainerDefaults()
    imagePullPolicy: str = "IfNotPresent"
    metricsUrl: str | None = Field(
        None,
        description="Where KEDA reaches this operator's port, as http://NAME.NAMESPACE.svc:8080. "
        "The chart writes it; without it there is no driver keda.",
    )
    networkPolicy: NetworkPolicies | None = Field(
        None,
        description="Makes NetworkPolicies for engines, routers and trainers. The chart writes it. "
        "An operator in a shell comes to pods through the API server, which no policy can name: "
        "without this it makes none.",
    )


def load(path: Path | None) -> OperatorConfig:
    """The configuration at `path`, or the defaults.

    Raises:
        pydantic.ValidationError: a key is unknown or a value has the wrong type.
        OSError: the file cannot be read.
    """
    if path is None:
        return OperatorConfig()
    return OperatorConfig.model_validate(yaml.safe_load(path.read_text()) or {})
