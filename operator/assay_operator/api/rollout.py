"""How a service changes its weights, and what is told of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from assay_operator.api.meta import ApiModel, Duration, PositiveDuration, cel, free_form, validated
from assay_operator.api.sources import SuiteReference
from assay_verifiers.config import GateLimits

_LOOKS_HELP = (
    "looks above 1 need items: without it the first look asks the whole suite, and there is "
    "nothing to ask more"
)
_ITEMS_HELP = (
    "minItems above items can never be reached in one look: raise items, or allow more looks"
)
_CONTINUE_HELP = (
    "inFlight Continue needs strategy InPlace: with Recreate the pods that answer go away"
)
_MOST_UNAVAILABLE = 1000


class Canary(ApiModel):
    """The replica that gets the new weights first."""

    hold: Duration = Field(
        "60s",
        description="How long it serves them, after the gate has passed, before the others follow.",
    )


class Gate(GateLimits):
    """What a candidate is asked before it may answer anybody, beside what serves now."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self.looks == 1 || has(self.items)", _LOOKS_HELP),
            cel("self.looks > 1 || !has(self.items) || self.minItems <= self.items", _ITEMS_HELP),
        )
    )

    minItems: int = Field(1, ge=1, le=1_000_000, description="Fewer judged items decide nothing.")
    suite: SuiteReference = Field(description="The held-out items that both are asked.")
    items: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="How many items the first look asks; where that decides nothing, each further "
        "look asks more, the last one all. Default: all at once.",
    )
    maxTokens: int = Field(
        2048, ge=1, le=10_000_000, description="The longest answer to an item that names no length."
    )
    timeout: PositiveDuration = Field(
        "30m", description="An asking that takes longer has failed, and the candidate with it."
    )

    @model_validator(mode="after")
    def _looks_can_be_taken(self) -> Gate:
        if self.looks > 1 and self.items is None:
            raise ValueError(_LOOKS_HELP)
        if self.looks == 1 and self.items is not None and self.minItems > self.items:
            raise ValueError(_ITEMS_HELP)
        return self


class Rollout(ApiModel):
    """How new weights come into the engines."""

    model_config = ConfigDict(
        json_schema_extra=validated(
            cel("self.inFlight != 'Continue' || self.strategy == 'InPlace'", _CONTINUE_HELP)
        )
    )

    strategy: Literal["InPlace", "Recreate"] = Field(
        "InPlace",
        description="InPlace: running engines load them, in seconds, one after the other; where "
        "that is impossible (another architecture, tokenizer or tensor shapes) it is Recreate. "
        "Recreate: new pods, as a Deployment rolls.",
    )
    inFlight: Literal["Finish", "Continue"] = Field(
        "Finish",
        description="What happens to requests that an engine is answering when its turn comes. "
        "Finish: they run to their end first. Continue: they pause, and go on with the new "
        "weights. The canary always finishes: nobody's answer ends with weights that have not "
        "passed.",
    )
    maxUnavailable: Annotated[int, Field(ge=0, le=_MOST_UNAVAILABLE)] | None = Field(
        None,
        description="How many replicas may be out of service for the change at a time. 0: a "
        "further replica is made for as long as it takes. Default: 0 with one replica, else 1.",
    )
    canary: Canary = Field(default_factory=Canary, json_schema_extra={"default": {}})
    paused: bool = Field(
        False,
        description="Whether a change stops where it is: no engine is touched until this is false.",
    )
    gate: Gate | None = Field(
        None,
        description="What a candidate has to pass. Without it: its files are whole, the engine "
        "reports their version and generates.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Rollout:
        if self.inFlight == "Continue" and self.strategy != "InPlace":
            raise ValueError(_CONTINUE_HELP)
        return self


class Weights(ApiModel):
    """Weights that can be served, as engines find them."""

    model_config = ConfigDict(json_schema_extra=free_form(), extra="allow")

    version: str | None = Field(None, description="What an engine reports that has them.")
    name: str | None = Field(None, description="Their name for people.")
    path: str | None = Field(None, description="Where they lie in the engine's container.")
    volume: str | None = Field(None, description="Which volume that is on.")


class RolloutStatus(ApiModel):
    """A change of the weights: where it is, and all that it needs to go on after a restart."""

    model_config = ConfigDict(json_schema_extra=free_form(), extra="allow")

    phase: str | None = Field(
        None,
        description="Inspecting, Canary, Gating, Holding, Waving, Recreating, Returning; at the "
        "end Done, Failed or Superseded.",
    )
    from_: Weights | None = Field(None, alias="from", description="What was served before.")
    to: Weights | None = Field(None, description="What shall be served.")
    reason: str | None = Field(None, description="One word for why it is where it is.")
    message: str | None = Field(None, description="What is going on, for people.")
    startedAt: datetime | None = Field(None, description="When it began.")


class PastRollout(ApiModel):
    """A change of the weights that is over."""

    version: str = Field(description="The version that was to be served.")
    name: str | None = Field(None, description="Its name for people.")
    from_: str | None = Field(None, alias="from", description="The version that served before.")
    result: Literal["Served", "Refused", "RolledBack"] = Field(
        description="Served: by all replicas. Refused: before it answered anybody. RolledBack: the "
        "replicas that had it went back."
    )
    reason: str = Field(description="One word for why.")
    message: str | None = Field(None, description="Why, for people.")
    started: datetime | None = Field(None, description="When it began.")
    finished: datetime | None = Field(None, description="When it was over.")
    seconds: float | None = Field(None, description="How long it took.")


class RefusedVersion(ApiModel):
    """Weights that did not pass."""

    version: str = Field(description="Their version.")
    name: str | None = Field(None, description="Their name for people.")
    reason: str = Field(description="One word for why.")
    message: str | None = Field(None, description="Why, for people.")
    time: datetime = Field(description="When they were refused.")
