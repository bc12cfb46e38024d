"""The verifiers of a training job.

Their fields differ by type, which no structural schema can say: it keeps them as they are, and
pydantic checks them with the verifiers' own models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.meta import ApiModel, cel, free_form, validated
from assay_verifiers.config import MODELS, SOFT_TYPES, VerifierModel, parse_verifier

MOST = 16
"""Verifiers of a job."""

TYPES = tuple(
    sorted(name for name, model in MODELS.items() if model.__module__ == VerifierModel.__module__)
)
"""The built-in types. Those of packages are not offered: the operator has no such packages."""

_TYPE_HELP = f"type must be one of {', '.join(TYPES)}"
_TWICE_HELP = "two verifiers have the same name (by default the type): give each its own"


class Verifier(ApiModel):
    """One verifier with its share of the reward."""

    model_config = ConfigDict(extra="allow", json_schema_extra=free_form())

    type: str = Field(
        description=f"One of {', '.join(TYPES)}. The type's own fields stand beside it, as in "
        "docs/verifiers.md.",
        json_schema_extra=validated(cel(f"self in {list(TYPES)}", _TYPE_HELP), maxLength=32),
    )
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="In metrics. Default: the type."
    )
    weight: float = Field(1.0, gt=0, le=1e6, description="Of the weighted mean that is the reward.")

    @model_validator(mode="after")
    def _is_one(self) -> Verifier:
        if self.type not in TYPES:
            raise ValueError(_TYPE_HELP)
        try:
            self.parsed()
        except RecursionError:
            raise ValueError("verifiers within verifiers, too deep to be read") from None
        return self

    def parsed(self) -> VerifierModel:
        """What the type's own fields say."""
        return parse_verifier({"type": self.type, **(self.model_extra or {})})

    @property
    def called(self) -> str:
        """Its name, by default the type."""
        return self.type if self.name is None else self.name


def names_differ(verifiers: tuple[Verifier, ...]) -> tuple[Verifier, ...]:
    names = [verifier.called for verifier in verifiers]
    if len(set(names)) < len(names):
        raise ValueError(_TWICE_HELP)
    return verifiers


NAMES_DIFFER = cel(
    "self.all(one, self.filter(other, (has(other.name) ? other.name : other.type) == "
    "(has(one.name) ? one.name : one.type)).size() == 1)",
    _TWICE_HELP,
)


def weak(verifiers: Iterable[Verifier]) -> bool:
    """Whether all verifiers are soft, so that nothing proves what they reward.

    False where there are none: each item then names its own.
    """
    models = [verifier.parsed() for verifier in verifiers]
    return bool(models) and all(_soft(model) for model in models)


def _soft(model: VerifierModel) -> bool:
    children = model.children()
    return all(map(_soft, children)) if children else model.type in SOFT_TYPES


def plain(verifier: Verifier) -> dict[str, Any]:
    """A verifier as the job file has it."""
    fields = verifier.model_extra or {}
    return {"name": verifier.called, "weight": verifier.weight, "type": verifier.type, **fields}
