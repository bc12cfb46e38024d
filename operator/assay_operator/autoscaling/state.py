"""What a decision remembers, and its form in JSON.

Times are *observed* seconds: the sum of the spans of the samples. So a clock that is set, or an
operator that was away, makes nothing older than it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.alias_generators import to_camel

from assay_operator.plan import Json

_CONFIG = ConfigDict(alias_generator=to_camel)


@dataclass(frozen=True)
class Line:
    """Sums of a weighted regression of y on u, from which old observations fade.

    Attributes:
        w, u, uu, y, uy: sums of weights, of u, of u squared, of y, of u times y.
        spread: typical distance from the line, as a share of y; by it outliers are told.
    """

    w: float = 0.0
    u: float = 0.0
    uu: float = 0.0
    y: float = 0.0
    uy: float = 0.0
    spread: float = 0.3

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Tally:
    """Sums over the last minutes of so many engines, from which old ones fade.

    Attributes:
        engines: how many; of another number of them it begins anew.
        seconds: observed.
        firsts, firsts_within: first tokens, and those within the objective.
        answers, answers_within: answers, and those whose tokens came within the objective.
        prompt_tokens, output_tokens: computed, and generated.
    """

    engines: int = 0
    seconds: float = 0.0
    firsts: float = 0.0
    firsts_within: float = 0.0
    answers: float = 0.0
    answers_within: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Learned:
    """What is known of one kind of engine.

    Attributes:
        itl: time between tokens over other running requests.
        prefill: engine time that a prompt takes over its computed tokens.
        kv_per_request: share of an engine's KV memory that a running request takes.
        prompt_cv2: variance of the prompts' lengths, by the square of their mean.
        tally: of what users felt.
        correction: what the load is multiplied by since users wait longer than the model says.
        samples: how many it was learned from.
    """

    itl: Line = Line()
    prefill: Line = Line()
    kv_per_request: float | None = None
    prompt_cv2: float | None = None
    tally: Tally = Tally()
    correction: float = 1.0
    samples: int = 0

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Mix:
    """Sums over the requests of the last minutes, from which old ones fade.

    Attributes:
        requests: how many came to their turn.
        prompt_tokens: computed for them.
        output_tokens: generated for them.
    """

    requests: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Point:
    """Half a minute or so of a service, for windows, for the trend and for a picture.

    Attributes:
        start: its first moment, in observed seconds.
        seconds: observed in it.
        unknown: of these, those in which the load was not known.
        arrivals: requests that came while it was known.
        level: requests/s in the usual window at its end.
        peak: the highest rate in it over a few seconds, requests/s.
        need: the most replicas that were needed in it, margin included.
        replicas: wanted at its end.
        ready: routable at its end.
        waiting: most requests that waited, queued or held.
        within: share of requests within the objectives, as last measured in it.
    """

    start: float
    seconds: float = 0.0
    unknown: float = 0.0
    arrivals: float = 0.0
    level: float = 0.0
    peak: float = 0.0
    need: int = 0
    replicas: int = 0
    ready: int = 0
    waiting: float = 0.0
    within: float | None = None

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class Pending:
    """Replicas that were asked for at `since` and are there when `replicas` are ready."""

    since: float
    replicas: int

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True)
class State:
    """What a decision remembers. It may be lost: then nothing goes down until it knows again.

    Attributes:
        now: of the last sample, by the wall clock.
        clock: observed seconds.
        replicas: wanted since the last decision, None before the first.
        recent: of the last minutes' samples the span, the arrivals and the requests under way,
            None where they were not known.
        history: the last hour.
        learned: by profile.
        mix: what the requests are like.
        waiting: how many waited at the last sample, as far as known.
        queue: when there was a queue last, more than one request for a replica.
        startup_s: from wanting a replica until it is routable, None while none was seen.
        rise: by which the rate rises within a start-up, as it does usually; requests/s.
        most: to which it rises usually, requests/s.
        pending: replicas on their way.
        active: when there was a request last, in observed seconds.
        starting: since when replicas have been starting without a break.
        went_up, went_down: when it last did.
        step_from, step_since: replicas at the beginning of the current step, and when that was.
        caution: what the window of scale-downs is multiplied by.
        burst: when there was a burst last.
    """

    now: float | None = None
    clock: float = 0.0
    replicas: int | None = None
    recent: tuple[tuple[float, float | None, float | None], ...] = ()
    history: tuple[Point, ...] = ()
    learned: dict[str, Learned] = field(default_factory=dict)
    mix: Mix = Mix()
    waiting: float = 0.0
    queue: float | None = None
    startup_s: float | None = None
    rise: float = 0.0
    most: float = 0.0
    pending: tuple[Pending, ...] = ()
    active: float = 0.0
    starting: float | None = None
    went_up: float | None = None
    went_down: float | None = None
    step_from: int | None = None
    step_since: float = 0.0
    caution: float = 1.0
    burst: float | None = None

    __pydantic_config__ = _CONFIG


_STATE: TypeAdapter[State] = TypeAdapter(State)
_POINT = tuple(each.name for each in fields(Point))
_DIGITS, _POINT_DIGITS = 8, 4


def read(data: Json | None) -> State:
    """The state that `write` wrote; an empty one where there is none that can be read."""
    try:
        points = [dict(zip(_POINT, row, strict=True)) for row in (data or {}).get("history", [])]
        return _STATE.validate_python({**(data or {}), "history": points})
    except (AttributeError, TypeError, ValueError):
        return State()


def write(state: State) -> Json:
    """The state as plain JSON, without what is as at the beginning. Points are lists."""
    data: Json = _STATE.dump_python(state, mode="json", by_alias=True, exclude_defaults=True)
    data = {name: _rounded(value, _DIGITS) for name, value in data.items()}
    if state.history:
        data["history"] = [
            [
                _rounded(getattr(point, name), _DIGITS if name == "start" else _POINT_DIGITS)
                for name in _POINT
            ]
            for point in state.history
        ]
    return data


def _rounded(value: Any, digits: int) -> Any:
    """With so many digits that count in every number."""
    if isinstance(value, dict):
        return {name: _rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each, digits) for each in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short
