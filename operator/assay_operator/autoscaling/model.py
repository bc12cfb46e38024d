"""What goes into a decision about replicas and what comes out of it: plain frozen data.

Times are seconds; requests, tokens and histograms are those since the sample before.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "Bounds",
    "Demand",
    "Forecast",
    "Burst",
    "Measured",
    "FirstRequest",
    "Quiet",
    "Silence",
    "Steady",
    "Stabilising",
    "RolloutUnderWay",
    "Loading",
    "MetricsUnknown",
    "NothingNew",
]
"""Why the number is what it is. Up: Bounds, Demand (the model says so), Forecast (it will),
Burst, Measured (the model did not see it, but users do wait), FirstRequest (from zero).
Down: Bounds, Quiet (one fewer would do, for long enough), Silence (to zero). The rest hold."""


@dataclass(frozen=True)
class Prior:
    """What is assumed of an engine until it was measured.

    Attributes:
        itl_s: time between two tokens of a request that is alone.
        itl_per_running_s: how much each other running request adds to it.
        first_token_s: the part of the time to the first token that each prompt takes.
        prompt_token_s: what each computed prompt token adds to it.
        startup_s: from wanting a replica until it is routable.
        prompt_tokens: computed for a request.
        output_tokens: generated for a request.
        slots: requests that an engine runs at once, None where only its KV memory limits them.
    """

    itl_s: float = 0.03
    itl_per_running_s: float = 0.0003
    first_token_s: float = 0.03
    prompt_token_s: float = 0.0001
    startup_s: float = 120.0
    prompt_tokens: float = 512.0
    output_tokens: float = 128.0
    slots: float | None = None


@dataclass(frozen=True)
class Policy:
    """What the user wants, and how carefully it is pursued.

    Attributes:
        min: fewest replicas; 0 allows none after `scale_to_zero_after` without a request.
        max: most replicas.
        ttft_s: objective: time to the first token, for the share `attainment` of requests.
        itl_s: objective: mean time between a request's tokens, for the same share.
        concurrency: objective: requests under way for each replica.
        attainment: share of the requests that shall be within the objectives.
        scale_to_zero_after: seconds of silence.
        profile: what kind of engine this is: what was learned is kept by this name.
        prior: of this kind.
        margin: a replica goes only if the others could bear this much more than the load.
        down_window_s: for so long they must have been able to. At least the time that it takes to
            start a replica, and longer after a scale-down that was regretted.
        up_window_s: over which the rate of arrivals is taken.
        burst_window_s: over which it is taken to notice a burst.
        burst_factor: a burst is this many times what the ready replicas can bear.
        surge_quantile: replicas are there for rises of the load within a start-up as this share of
            the last hour's requests saw; 0 provides for none.
        peak_window_s: over which the rate is taken that users feel as such.
        up_factor, up_pods: in `step_s` at most to so many times the replicas, or by so many more,
            whichever is more; a burst knows no such bound.
        down_factor: in `step_s` at most to this share of the replicas.
        step_s: see there.
        drain_s: a queue that has formed shall be gone after this time, or after a start-up.
        warmup_s: a replica's first seconds, from which nothing is learned.
        memory_s: after this time what was learned has lost two thirds of its weight.
        acts: whether replicas follow the decision; else another driver sets their number, and how
            long they take to start is not learned.
    """

    min: int = 1
    max: int = 1
    ttft_s: float | None = None
    itl_s: float | None = None
    concurrency: float | None = None
    attainment: float = 0.95
    scale_to_zero_after: float = 900.0
    profile: str = ""
    prior: Prior = Prior()
    margin: float = 0.15
    down_window_s: float = 300.0
    up_window_s: float = 60.0
    burst_window_s: float = 15.0
    burst_factor: float = 2.0
    surge_quantile: float = 0.8
    peak_window_s: float = 10.0
    up_factor: float = 2.0
    up_pods: int = 4
    down_factor: float = 0.5
    step_s: float = 60.0
    drain_s: float = 60.0
    warmup_s: float = 30.0
    memory_s: float = 1800.0
    acts: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max or self.max < 1:
            raise ValueError(f"min must be between 0 and max: {self.min}, {self.max}")
        goals = (self.ttft_s, self.itl_s, self.concurrency)
        if all(goal is None for goal in goals) or any(
            goal is not None and goal <= 0 for goal in goals
        ):
            raise ValueError("one objective at least is needed, and each must be above 0")
        if not 0 < self.attainment < 1 or not 0 <= self.surge_quantile < 1:
            raise ValueError("attainment and surge_quantile are shares")


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram of what happened in a sample's span.

    Attributes:
        bounds: upper bounds of the buckets in rising order, without +Inf.
        counts: observations in each bucket, not cumulated; the last one is beyond all bounds.
        sum: of the observations.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)
    sum: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float], bounds: Sequence[float]) -> Histogram:
        """The histogram of single observations."""
        counts, total = [0.0] * (len(bounds) + 1), 0.0
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total += value
        return cls(tuple(bounds), tuple(counts), total)

    @property
    def count(self) -> float:
        """How many observations."""
        return math.fsum(self.counts)

    @property
    def mean(self) -> float | None:
        """Their mean, None where there is none."""
        count = self.count
        return self.sum / count if count > 0 else None

    def share_within(self, limit: float) -> float | None:
        """The share of them up to `limit`, as if each bucket were filled evenly."""
        total = self.count
        if total <= 0:
            return None
        below, lower = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if bound > limit:
                below += count * max(0.0, (limit - lower) / (bound - lower))
                break
            below, lower = below + count, bound
        return below / total


@dataclass(frozen=True)
class Measured:
    """What the warm engines did in a sample's span: what capacity is learned from.

    Attributes:
        engines: how many they are.
        running: requests that they run now.
        queued: requests that wait in them now.
        prompt_tokens: prompt tokens that they computed; what their caches held is not among them.
        output_tokens: tokens that they generated.
        kv_use: the share of their memory for keys and values that is in use, their mean.
        ttft: times to the first token.
        itl: times between tokens.
        answers: mean times between tokens of the requests that finished, one for each.
        prompts: lengths of prompts, in tokens.
    """

    engines: int
    running: float = 0.0
    queued: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    kv_use: float | None = None
    ttft: Histogram = Histogram()
    itl: Histogram = Histogram()
    answers: Histogram = Histogram()
    prompts: Histogram = Histogram()


@dataclass(frozen=True)
class Sample:
    """One look at a service. None is what is not known; it is never taken for zero.

    Attributes:
        now: the time by the wall clock, in seconds. It tells two samples apart and nothing else.
        seconds: the span of all that is counted, by a clock that nobody sets; 0 at a first look.
        arrivals: requests that came in the span, to the routers or the activator.
        running: requests that the answering engines run now.
        queued: requests that wait in the answering engines now.
        held: requests that wait at the activator now.
        prompt_tokens: that the answering engines computed.
        output_tokens: that they generated.
        ready: routable replicas.
        warm: those of them that have been so for `warmup_s`, since they loaded weights last.
        starting: replicas that exist or are asked for, are not routable yet and have not failed.
        failed: replicas that are not ready and whose pods say what is wrong: no node takes them, or
            they end again and again. They are not waited for.
        away: replicas that a rollout has in its hands and gives back.
        silent: ready replicas whose metrics did not come.
        oldest_ready_s: how long the oldest ready replica has been ready.
        rollout: whether weights are being changed in running engines.
        measured: what warm engines did, None where nothing can be learned from it.
    """

    now: float
    seconds: float
    arrivals: float | None
    running: float | None = 0.0
    queued: float | None = 0.0
    held: int = 0
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    ready: int = 0
    warm: int = 0
    starting: int = 0
    failed: int = 0
    away: int = 0
    silent: int = 0
    oldest_ready_s: float | None = None
    rollout: bool = False
    measured: Measured | None = None

    @property
    def known(self) -> bool:
        """Whether the whole load is known, so that there can be less than one thinks of."""
        unknown = (self.arrivals is None, self.running is None, self.queued is None)
        return self.silent == 0 and not any(unknown)
