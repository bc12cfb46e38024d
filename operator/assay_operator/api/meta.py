"""What every custom resource of the group shares: group, base model, conditions, failures."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

GROUP = "assay.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


class ApiModel(BaseModel):
    """A part of a custom resource. Unknown keys are errors, as `kubectl apply` treats them."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


def cel(rule: str, message: str, **more: str) -> dict[str, str]:
    """One `x-kubernetes-validations` entry: the API server refuses what does not hold."""
    return {"rule": rule, "message": message, **more}


def validated(*rules: dict[str, str], **schema: Any) -> dict[str, Any]:
    """JSON-schema extras that carry CEL `rules` (and further schema keys) into the CRD."""
    return {"x-kubernetes-validations": list(rules), **schema}


def text(pattern: str, help_: str, most: int, *more: dict[str, str]) -> Any:
    """A string that matches `pattern` as a whole, for use as `Annotated[str, *text(...)]`.

    Args:
        pattern: for Python and RE2 alike, without anchors.
        help_: what is said of one that does not match.
        most: characters at most.
        more: further CEL rules.
    """
    whole = re.compile(pattern)

    def check(value: str) -> str:
        if len(value) > most or not whole.fullmatch(value):
            raise ValueError(help_)
        return value

    return (
        AfterValidator(check),
        WithJsonSchema(
            {
                "type": "string",
                "maxLength": most,
                **validated(cel(f"self.matches(r'^({pattern})$')", help_), *more),
            }
        ),
    )


_UNITS = {"s": 1, "m": 60, "h": 3600}
# Seven digits of hours are a thousand years: no date that comes of it is beyond what can be told.
_DURATION_LENGTH = 8

Duration = Annotated[
    str,
    *text(
        r"[0-9]+(s|m|h)",
        "must be a whole number and s, m or h, such as 90s, 30m or 24h",
        _DURATION_LENGTH,
    ),
]
PositiveDuration = Annotated[
    str,
    *text(
        r"[0-9]*[1-9][0-9]*(s|m|h)",
        "must be a whole number above 0 and s, m or h, such as 90s, 30m or 24h",
        _DURATION_LENGTH,
    ),
]


def seconds(duration: str) -> int:
    """The seconds of a `Duration`."""
    return int(duration[:-1]) * _UNITS[duration[-1]]


Label = Annotated[
    str,
    *text(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?",
        "must be lower-case letters, digits and '-', and begin and end with a letter or digit",
        63,
    ),
]
"""The name of a namespace or of an object of ours."""

ObjectName = Annotated[
    str,
    *text(
        r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
        "must be lower-case letters, digits, '-' and '.', and begin and end with a letter or digit",
        253,
    ),
]
"""The name of a ConfigMap, claim or storage class."""

Digest = Annotated[
    str,
    *text(r"sha256:[0-9a-f]{64}", "must be sha256: and 64 hexadecimal digits, in lower case", 71),
]


def all_defaults(model: type[ApiModel]) -> Any:
    """A field whose value, where it is left out, has every default of `model`.

    All of them are told to the API server: it checks a default against the CEL rules before it
    fills in the defaults within.
    """
    return Field(
        default_factory=model,
        json_schema_extra={"default": model().model_dump(mode="json", exclude_none=True)},
    )


def free_form(**schema: Any) -> dict[str, Any]:
    """JSON-schema extras of an object that may have other fields than those that it names."""
    return {"x-kubernetes-preserve-unknown-fields": True, **schema}


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


Conditions = Annotated[
    list[Condition],
    Field(
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        }
    ),
]

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
