"""What every custom resource of the group shares: group, base model, conditions, failures."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

GROUP = "assay.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class ApiModel(BaseModel):
    """A part of a custom resource. Unknown keys are errors, as `kubectl apply` treats them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def cel(rule: str, message: str, **more: str) -> dict[str, str]:
    """One `x-kubernetes-validations` entry: the API server refuses what does not hold."""
    return {"rule": rule, "message": message, **more}


def validated(*rules: dict[str, str], **schema: Any) -> dict[str, Any]:
    """JSON-schema extras that carry CEL `rules` (and further schema keys) into the CRD."""
    return {"x-kubernetes-validations": list(rules), **schema}


class Condition(ApiModel):
    """One aspect of an object's state, as `metav1.Condition` defines it."""

    type: str = Field(description="The aspect, such as Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(description="One word for why, for programs.")
    message: str = Field(description="Why, and what to do about it, for people.")
    lastTransitionTime: datetime = Field(description="When `status` last changed.")
    observedGeneration: int | None = Field(
        None, description="The generation of the spec that this was said about."
    )


class LastFailure(ApiModel):
    """The latest failure of an engine or router: where it was, what it was, what to do."""

    where: str = Field(description="The place: pod/NAME, or the kind and name of another object.")
    reason: str = Field(description="One word, such as ImagePullFailed or OutOfMemory.")
    message: str = Field(description="What happened and what to do about it.")
    fatal: bool = Field(
        description="True where waiting cannot help: something has to be changed by somebody."
    )
    exitCode: int | None = Field(None, description="The container's exit code, where it exited.")
    time: datetime = Field(description="When it was first seen.")


Quantity = Annotated[
    int | str,
    Field(
        description="A Kubernetes quantity, such as 500m, 2 or 16Gi.",
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        },
    ),
]
