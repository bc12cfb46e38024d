"""Figures of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.simulate import Run, Scaling

WINDOW_S = 300.0
"""In which a change of mind counts as oscillation: the HPA's stabilisation window."""


@dataclass(frozen=True)
class Score:
    """What a run was worth between two moments.

    Attributes:
        requests: that arrived.
        attained: share of them that felt what the objective asks, in both parts.
        ttft: share of them within the objective's time to the first token.
        itl: share of them within its time between tokens.
        gpu_hours: of all replicas, from being asked for until drained.
        scalings: changes of the wanted number.
        reversals: those of them in the other direction than the one before.
        oscillation: most reversals within any 300 s.
        peak: most replicas wanted.
    """

    requests: int
    attained: float
    ttft: float
    itl: float
    gpu_hours: float
    scalings: int
    reversals: int
    oscillation: int
    peak: int


def score(run: Run, objective: Objective, begin: float, end: float, first: int) -> Score:
    """Scores the requests that arrived, and the GPUs that were held, from `begin` to `end`.

    Args:
        run: a whole run.
        objective: for its requests.
        begin: seconds since the trace began.
        end: likewise, and after `begin`.
        first: replicas wanted when the trace began.
    """
    inside = [one for one in run.served if begin <= one.request.at < end]
    number = max(1, len(inside))
    scalings = [one for one in run.scalings if begin <= one.at < end]
    reversed_at = reversals(scalings)
    before = [one.after for one in run.scalings if one.at < begin]
    return Score(
        requests=len(inside),
        attained=sum(objective.met(one) for one in inside) / number,
        ttft=sum(one.ttft <= objective.ttft_s for one in inside) / number,
        itl=sum(one.itl <= objective.itl_s for one in inside) / number,
        gpu_hours=gpu_hours(run, begin, end),
        scalings=len(scalings),
        reversals=len(reversed_at),
        oscillation=most_within(reversed_at, WINDOW_S),
        peak=max([before[-1] if before else first, *(one.after for one in scalings)]),
    )


def gpu_hours(run: Run, begin: float, end: float) -> float:
    """GPU-hours that replicas held between two moments, in seconds since the trace began."""
    held = (min(end, life.gone) - max(begin, life.asked) for life in run.lives)
    return sum(seconds for seconds in held if seconds > 0) / 3600


def reversals(scalings: Sequence[Scaling]) -> list[float]:
    """When the direction of scaling changed, in seconds."""
    return [
        later.at
        for earlier, later in pairwise(scalings)
        if (earlier.after > earlier.before) != (later.after > later.before)
    ]


def most_within(times: Sequence[float], window: float) -> int:
    """Most of the times, which are in order, that lie within one window."""
    most = oldest = 0
    for newest, time in enumerate(times):
        while time - times[oldest] >= window:
            oldest += 1
        most = max(most, newest - oldest + 1)
    return most


def replicas_over_time(run: Run, first: int, end: float) -> tuple[list[float], list[int]]:
    """Wanted replicas as steps: from each time on, so many; up to `end`."""
    times, values = [0.0], [first]
    for one in run.scalings:
        if one.at < end:
            times.append(one.at)
            values.append(one.after)
    times.append(end)
    values.append(values[-1])
    return times, values


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of the values do not exceed; not a number where there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
