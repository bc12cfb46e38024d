"""What any policy lies between: a fixed number of replicas, and knowing the future."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from benchmarks.autoscaling.engine import Engine
from benchmarks.autoscaling.policy import Sample
from benchmarks.autoscaling.trace import Trace


@dataclass
class Static:
    """Always the same number.

    Attributes:
        replicas: that number.
    """

    replicas: int
    period: float = 60.0

    def observe(self, sample: Sample) -> int:
        return self.replicas


@dataclass
class Foresight:
    """Knows the trace: has, whenever work arrives, engines for it, and lets them go afterwards.

    Not a strict bound, since it aims at a utilisation and not at the objective, but no policy that
    can only look back will get past it by much.

    Attributes:
        trace: all of it, in order of time.
        engine: whose times for each request are summed up as work.
        start_s: a replica's start-up time, for which it looks ahead.
        bin_s: seconds over which work is spread: the longest that a request might wait.
        utilisation: of the replicas, at most, in every bin.
        keep_s: seconds for which replicas are kept for later work.
    """

    trace: Trace
    engine: Engine
    start_s: float
    bin_s: float
    utilisation: float
    keep_s: float = 60.0
    period: float = 5.0
    _times: list[float] = field(default_factory=list)
    _work: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._work.append(0.0)
        for request in self.trace:
            self._times.append(request.at)
            # In a batch of eight or so the step's base is shared.
            step = self.engine.decode(8, 8 * request.prompt) / 8
            work = self.engine.prefill(request.prompt) + request.output * step
            self._work.append(self._work[-1] + work)

    def observe(self, sample: Sample) -> int:
        begin = sample.now + self.start_s
        # What is there must last until what is asked for at the next look can come.
        end = begin + self.period + self.keep_s
        most = 0.0
        at = sample.now
        while at < end:
            most = max(most, self._between(at, at + self.bin_s) / self.bin_s)
            at += self.bin_s / 2
        return math.ceil(most / self.utilisation)

    def _between(self, begin: float, end: float) -> float:
        """Engine seconds of the requests that arrive between two moments."""
        first = bisect.bisect_left(self._times, begin)
        return self._work[bisect.bisect_left(self._times, end)] - self._work[first]
