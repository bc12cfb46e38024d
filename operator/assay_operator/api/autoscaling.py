"""How many engines a service has, and what is told of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.meta import (
    ApiModel,
    PositiveDuration,
    cel,
    free_form,
    seconds,
    validated,
)

MAX_REPLICAS = 1000
_MOST_DOWN_SECONDS = 3600
Driver = Literal["builtin", "hpa", "keda"]

_BOUNDS_HELP = "autoscaling.min must not be above autoscaling.max"
_OBJECTIVE_HELP = (
    "autoscaling.objectives needs one objective at least: ttftMs, itlMs or concurrency"
)
_ATTAINMENT_HELP = (
    "objectives.attainment is the share of requests within ttftMs and itlMs: it needs one of them"
)
_SILENCE_HELP = "scaleToZeroAfter needs autoscaling.min: 0; with another min a replica always stays"
_DOWN_HELP = "scaleDownAfter must be 1h at most: no more is remembered of a service"
_HPA_HELP = (
    "driver hpa needs autoscaling.min: 1 or more, since a HorizontalPodAutoscaler does not scale "
    "to zero: raise min, or use driver builtin or keda"
)


class Objectives(ApiModel):
    """What the replicas shall be enough for."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("has(self.ttftMs) || has(self.itlMs) || has(self.concurrency)", _OBJECTIVE_HELP),
            cel(
                "!has(self.attainment) || has(self.ttftMs) || has(self.itlMs)",
                _ATTAINMENT_HELP,
            ),
        )
    )

    ttftMs: Annotated[int, Field(ge=1, le=3_600_000)] | None = Field(
        None, description="Most milliseconds until the first token of an answer."
    )
    itlMs: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        None,
        description="Most milliseconds between two tokens of an answer, on average over the "
        "answer.",
    )
    attainment: Annotated[float, Field(ge=0.5, le=0.999)] | None = Field(
        None, description="The share of requests that shall be within both. Default: 0.95."
    )
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Most requests under way for each replica, running and waiting ones."
    )

    @model_validator(mode="after")
    def _say_something(self) -> Objectives:
        times = self.ttftMs is not None or self.itlMs is not None
        if not times and self.concurrency is None:
            raise ValueError(_OBJECTIVE_HELP)
        if self.attainment is not None and not times:
            raise ValueError(_ATTAINMENT_HELP)
        return self


class Autoscaling(ApiModel):
    """How many replicas there are at any time, and who decides it."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self.min <= self.max", _BOUNDS_HELP),
            cel("!has(self.scaleToZeroAfter) || self.min == 0", _SILENCE_HELP),
            cel("self.driver != 'hpa' || self.min > 0", _HPA_HELP),
            cel(
                "!has(self.scaleDownAfter) || duration(self.scaleDownAfter) <= duration('1h')",
                _DOWN_HELP,
            ),
        )
    )

    min: int = Field(
        1,
        ge=0,
        le=MAX_REPLICAS,
        description="Fewest replicas. 0: none while nobody asks; the next request waits until one "
        "is there.",
    )
    max: int = Field(ge=1, le=MAX_REPLICAS, description="Most replicas.")
    objectives: Objectives
    scaleDownAfter: PositiveDuration | None = Field(
        None,
        description="A replica goes once fewer would have been enough for so long, and with driver "
        "builtin for as long as one takes to start. At most 1h. Default: 5m.",
    )
    scaleToZeroAfter: PositiveDuration | None = Field(
        None,
        description="With min: 0, the last replica goes after so long without a request. "
        "Default: 15m.",
    )
    driver: Driver = Field(
        "builtin",
        description="Who sets the number. builtin: the operator, from what users feel. hpa, keda: "
        "a HorizontalPodAutoscaler or a KEDA ScaledObject, which the operator makes, by the "
        "replicas that the objectives require; it writes spec.replicas.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Autoscaling:
        if self.min > self.max:
            raise ValueError(_BOUNDS_HELP)
        if self.scaleToZeroAfter is not None and self.min > 0:
            raise ValueError(_SILENCE_HELP)
        if self.driver == "hpa" and self.min == 0:
            raise ValueError(_HPA_HELP)
        if self.scaleDownAfter is not None and seconds(self.scaleDownAfter) > _MOST_DOWN_SECONDS:
            raise ValueError(_DOWN_HELP)
        return self


class OtherWriter(ApiModel):
    """Somebody else who writes the number of replicas."""

    where: str = Field(description="What was written: KIND/NAME.")
    by: str = Field(description="Who wrote it, as the API server knows them.")
    replicas: int = Field(description="The number that was written.")
    time: datetime = Field(description="When that was last seen.")


class AutoscalingStatus(ApiModel):
    """The latest decision about replicas: from what, how, why, and what would change it."""

    model_config = ConfigDict(json_schema_extra=free_form(), extra="allow")

    replicas: int | None = Field(
        None,
        description="Engine replicas that are wanted. With another driver than builtin: that it "
        "would want.",
    )
    required: int | None = Field(
        None,
        description="Replicas that the load requires now, by the objectives; what drivers hpa and "
        "keda go by. Absent while the load is not known.",
    )
    reason: str | None = Field(None, description="One word for why.")
    message: str | None = Field(None, description="Why, in a sentence.")
    changes: list[str] | None = Field(None, description="What would change it.")
    formula: str | None = Field(None, description="How it was worked out, with its numbers.")
    inputs: dict[str, Any] | None = Field(
        None, description="What was measured.", json_schema_extra=free_form()
    )
    capacity: dict[str, Any] | None = Field(
        None,
        description="What a replica can do, as far as it is learned.",
        json_schema_extra=free_form(),
    )
    time: datetime | None = Field(None, description="Of this decision.")
    scaled: datetime | None = Field(None, description="When the number last changed.")
    driver: str | None = Field(None, description="Who sets the number.")
    specReplicas: int | None = Field(
        None, description="spec.replicas when the builtin driver took over."
    )
    others: OtherWriter | None = Field(None, description="Who else writes the number of replicas.")
    state: str | None = Field(
        None,
        description="What the next decision goes on from, as JSON: the last hour, what was learned "
        "of a replica, what is on its way. `assay explain NAME` draws it.",
    )


class ActivationStatus(ApiModel):
    """Where requests go while there may be no replica."""

    phase: str | None = Field(
        None,
        description="Serving, Leaving, Closing, Away or Waking; only in Serving requests go "
        "straight to the routers.",
    )
    since: datetime | None = Field(None, description="When the phase began.")
    message: str | None = Field(None, description="What is going on, for people.")
    firstRequestWaitSeconds: float | None = Field(
        None, description="How long the request waited that last woke the service."
    )
