"""A planner like NVIDIA Dynamo's: from predicted demand and what an engine can do.

Source: ai-dynamo/dynamo, components/src/dynamo/planner: core/throughput_scaling.py
(_throughput_agg), core/perf_model/agg.py (find_best_engine_agg_rps, estimate_next_ttft,
estimate_next_itl), core/load_scaling.py (_advance_load_agg, _agg_prefill_scaling,
_agg_decode_scaling, _scale_decision), config/defaults.py (180 s and 5 s, sensitivity 80%).

Where Dynamo learns the time of an iteration by regression, this one is given the simulator's own: a
perfect profile. Of Dynamo's predictors (constant, ARIMA, Kalman, Prophet) it has the constant one,
and a level with a trend, which is the Kalman one's model, by Holt's exponential smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.autoscaling.engine import Engine
from benchmarks.autoscaling.policy import Objective, ReplicaView, Sample

LOAD_S = 5.0
SENSITIVITY = 0.8


@dataclass
class Level:
    """A value over time, predicted one step ahead.

    Attributes:
        alpha: weight of the newest value in the level; 1 with no beta predicts the last value.
        beta: weight of the newest change in the trend.
    """

    alpha: float = 1.0
    beta: float = 0.0
    _level: float | None = None
    _trend: float = 0.0

    def next(self, value: float) -> float:
        """Takes the newest value in, and predicts the one after it; never below 0."""
        if self._level is None:
            self._level = value
        else:
            level = self.alpha * value + (1 - self.alpha) * (self._level + self._trend)
            self._trend = self.beta * (level - self._level) + (1 - self.beta) * self._trend
            self._level = level
        return max(0.0, self._level + self._trend)


CONSTANT = (1.0, 0.0)
TREND = (0.8, 0.3)


@dataclass
class Planner:
    """The planner for engines that both prefill and decode.

    Attributes:
        engine: an iteration's time, known to the planner as it is.
        objective: that an engine must keep at the rate that is expected of it.
        interval_s: between plans by predicted throughput.
        smoothing: alpha and beta of the predictor.
        load: whether it also looks at the load every 5 s, adding or taking one replica at a time,
            with the plan as its lower bound.
    """

    engine: Engine
    objective: Objective
    interval_s: float = 180.0
    smoothing: tuple[float, float] = CONSTANT
    load: bool = False
    period: float = LOAD_S
    _arrived: int = 0
    _prompt: int = 0
    _output: list[int] = field(default_factory=list)
    _next: float = 0.0
    _bound: int = 1

    def __post_init__(self) -> None:
        self._next = self.interval_s
        self._levels = [Level(*self.smoothing) for _ in range(3)]
        self._lengths = (0.0, 1.0)

    def observe(self, sample: Sample) -> int:
        self._arrived += sample.arrived
        self._prompt += sample.prompt_tokens
        self._output += [one.request.output for one in sample.finished]
        wanted = sample.wanted
        if sample.now >= self._next:
            self._next += self.interval_s
            planned = self._plan()
            if planned is not None:
                self._bound = planned
                wanted = max(wanted, planned) if self.load else planned
        if self.load and not sample.starting and sample.replicas:
            return max(self._bound, self.by_load(sample.replicas))
        return wanted

    def _plan(self) -> int | None:
        """Replicas for the next interval; None while nothing was ever seen."""
        prompt, output = self._lengths
        if self._arrived:
            prompt = self._prompt / self._arrived
        if self._output:
            output = sum(self._output) / len(self._output)
        self._lengths = (prompt, output)
        values = (self._arrived, prompt, output)
        requests, prompt, output = (
            level.next(value) for level, value in zip(self._levels, values, strict=True)
        )
        self._arrived = self._prompt = 0
        self._output = []
        if not self._lengths[0]:
            return None
        # A trend may point below what any request has.
        capacity = self.capacity(max(1.0, prompt), max(1.0, output))
        return max(1, math.ceil(requests / self.interval_s / capacity))

    def capacity(self, prompt: float, output: float) -> float:
        """Most requests a second that an engine takes within the objective, by Little's law.

        For each number of sequences, an iteration holds all of them and the prompt tokens that
        keep their number constant; the largest that is within the objective counts.
        """
        context = prompt + output / 2
        most = min(self.engine.most_running, int(self.engine.kv_tokens / context))
        most = min(most, int(output * self.engine.chunk / (prompt + output)))
        best = 0.0
        for sequences in range(1, max(1, most) + 1):
            tokens = min(sequences * prompt / output, self.engine.chunk)
            itl = self._iteration(tokens, sequences, sequences * context)
            ttft = self._ttft(tokens, prompt, sequences, sequences * context)
            if sequences > 1 and (itl > self.objective.itl_s or ttft > self.objective.ttft_s):
                break
            best = sequences / (output * itl)
        return best

    def by_load(self, replicas: Iterable[ReplicaView]) -> int:
        """One more where all are too slow, one fewer where the others could do the work too."""
        views = list(replicas)
        count = len(views)
        ttfts = [self._ttft_of(view, 1.0)[0] for view in views]
        itls = [self._itl_of(view, 1.0) for view in views]
        if min(ttfts) > self.objective.ttft_s or min(itls) > self.objective.itl_s:
            return count + 1
        if count == 1:
            return count
        more = count / (count - 1)
        for view in views:
            ttft, own = self._ttft_of(view, more)
            if ttft - own >= SENSITIVITY * (self.objective.ttft_s - own):
                return count
            if (view.context + view.queued_tokens) * more >= self.engine.kv_tokens:
                return count
            if self._itl_of(view, more) >= SENSITIVITY * self.objective.itl_s:
                return count
        return count - 1

    def _ttft_of(self, view: ReplicaView, more: float) -> tuple[float, float]:
        """Time to the first token of a next request, with and without the queue before it."""
        prompt = self._lengths[0]
        running, context = view.running * more, view.context * more
        queue = view.queued_tokens * more
        return (
            self._ttft(queue, prompt, running, context),
            self._ttft(0.0, prompt, running, context),
        )

    def _itl_of(self, view: ReplicaView, more: float) -> float:
        prompt, output = self._lengths
        running = view.running * more + 1
        tokens = min(running * prompt / output, self.engine.chunk)
        return self._iteration(tokens, running, view.context * more + prompt)

    def _ttft(self, queued: float, prompt: float, sequences: float, context: float) -> float:
        """Seconds until `queued` and then `prompt` tokens have gone through, chunk by chunk."""
        left, seconds = queued + prompt, 0.0
        while left > 0:
            seconds += self._iteration(min(left, self.engine.chunk), sequences, context)
            left -= self.engine.chunk
        return seconds

    def _iteration(self, tokens: float, sequences: float, context: float) -> float:
        return self.engine.decode(sequences, context) + tokens * self.engine.prompt_s
