"""What users would feel with so many replicas: a queueing model of continuous batching.

One engine runs all its requests in steps. A step takes `a + b * others` for a request that runs
beside `others`, and prompts take the engine for `x` seconds each, in which no step is made. With
`r` requests/s for an engine, each of `n` output tokens, and `busy = r * (x + b * n)`, the engine is
a processor-sharing queue whose speed depends on how many share it. What follows holds whatever the
lengths' distribution is (insensitivity: Cohen, "The multiple phase service network with generalized
processor sharing", Acta Informatica 12, 1979):

- the mean time between tokens is `a / (1 - busy)`;
- the number of running requests is negative binomial with mean `m = r * n * a / (1 - busy)` and
  variance `m / (1 - r * b * n / (1 - r * x))`; so what is kept free grows with the square root of
  the load (square-root staffing: Halfin and Whitt, Operations Research 29, 1981).

How much the mean time between the tokens of one request varies comes from that number and from the
prompts that come in between: an answer of work `n * step` that prompts interrupt is a delay cycle,
with variance `r * E[x^2] * n * step / (1 - r * x)^3` (Conway, Maxwell and Miller, "Theory of
Scheduling", 1967).

First tokens wait for the prompts before them, which go before all steps: M/G/c by Allen and
Cunneen's approximation, in Sakasegawa's closed form (Annals of the Institute of Statistical
Mathematics 29, 1977), which for one server is Pollaczek and Khinchine's formula. Where an engine
can run only so many requests at once, they wait for a place, too, by the same formula. Shares of
requests come from a gamma distribution of the same mean and variance, which is exact for
exponential times and for constant ones, by Wilson and Hilferty's approximation (PNAS 17, 1931).

Replicas count as one station with many servers, since the router sends a request where there is
room. Where it does not, users wait longer than this says, which is measured and learned from as
`Engine.correction`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from assay_operator.autoscaling.model import Policy

FULL = 0.95
"""An engine that is busy for a larger share of its time than this is taken to be overloaded."""
NEAR = 1.25
"""Objectives out of reach are replaced by the best that there is, times this."""
_BISECTIONS = 8
_SHORTEST = 2.0
"""Lengths spread as exponential ones do, and a wait weighs most on the shortest answers: what it
adds to their mean time between tokens is that of an answer so many times shorter than the mean."""


@dataclass(frozen=True)
class Engine:
    """One replica in numbers.

    Attributes:
        itl_s: between two tokens of a request that runs alone (`a`).
        itl_per_running_s: what each other one adds (`b`).
        first_token_s: that each prompt takes, whatever its length.
        prompt_token_s: that each of its computed tokens takes.
        prompt_cv2: variance of the prompts' lengths, by the square of their mean.
        slots: requests that it runs at once at most, None where there is no known limit.
        correction: what the load is multiplied by, for what this model does not see.
        samples: how many it was learned from; 0 means that all is assumed.
    """

    itl_s: float
    itl_per_running_s: float
    first_token_s: float
    prompt_token_s: float
    prompt_cv2: float = 1.0
    slots: float | None = None
    correction: float = 1.0
    samples: int = 0

    def prompt_s(self, tokens: float) -> float:
        """Engine time of a prompt with so many computed tokens (`x`)."""
        return self.first_token_s + self.prompt_token_s * tokens


@dataclass(frozen=True)
class Load:
    """What all replicas together have to bear.

    Attributes:
        rate: requests/s.
        prompt_tokens: to be computed for each.
        output_tokens: to be generated for each.
        under_way: requests that run or wait, for the objective `concurrency`.
    """

    rate: float
    prompt_tokens: float
    output_tokens: float
    under_way: float = 0.0

    def times(self, factor: float) -> Load:
        """So many times the load."""
        return Load(
            self.rate * factor, self.prompt_tokens, self.output_tokens, self.under_way * factor
        )


@dataclass(frozen=True)
class Outlook:
    """What users feel: `inf` where a replica is overloaded.

    Attributes:
        ttft_s: time to the first token that the given share of requests stays within.
        itl_s: mean time between a request's tokens, likewise.
        running: requests that a replica runs at a time, their mean.
        busy: the share of its time in which a replica works at full speed.
    """

    ttft_s: float
    itl_s: float
    running: float
    busy: float


@dataclass(frozen=True)
class Goals:
    """What is planned for; `inf` where there is no objective.

    Attributes:
        share: of the requests that shall be within them.
        ttft_s: most seconds to the first token.
        itl_s: most seconds between a request's tokens, their mean.
        concurrency: most requests under way for a replica.
    """

    share: float
    ttft_s: float
    itl_s: float
    concurrency: float

    @property
    def is_of_times(self) -> bool:
        """Whether there is a goal that queues tell of."""
        return math.isfinite(self.ttft_s) or math.isfinite(self.itl_s)


def outlook(engine: Engine, load: Load, replicas: int, share: float) -> Outlook:
    """What `share` of the requests stays within when `replicas` bear the load evenly."""
    rate = load.rate * engine.correction / replicas
    prompt = engine.prompt_s(load.prompt_tokens)
    prompts = rate * prompt
    growth = rate * engine.itl_per_running_s * load.output_tokens
    busy = prompts + growth
    if busy >= FULL:
        return Outlook(math.inf, math.inf, math.inf, busy)
    running = rate * load.output_tokens * engine.itl_s / (1 - busy)
    place = _NONE
    if engine.slots is not None:
        service = load.output_tokens * engine.itl_s / (1 - busy)
        place = _wait(running / engine.slots, engine.slots * replicas, service, 1.0)
    z = _z(share)
    free = 1 - prompts
    cv2 = engine.prompt_cv2 * (engine.prompt_token_s * load.prompt_tokens / prompt) ** 2
    crowd = running / (1 - growth / free) / replicas
    step = engine.itl_s + engine.itl_per_running_s * running
    stalls = rate * prompt**2 * (1 + cv2) * step * _SHORTEST / max(load.output_tokens, 1.0)
    spread = (engine.itl_per_running_s / free) ** 2 * crowd + stalls / free**3
    itl = _gamma_quantile(step / free, spread, z)
    turn = _wait(prompts, replicas, prompt, cv2)
    mean = prompt + turn.mean + place.mean
    variance = prompt**2 * cv2 + turn.variance + place.variance
    return Outlook(_gamma_quantile(mean, variance, z), itl, running, busy)


def idle(engine: Engine, load: Load, share: float) -> Outlook:
    """What a single replica could do if each request came alone: nothing can be better."""
    return outlook(replace(engine, slots=None), replace(load, rate=0.0), 1, share)


def goals(policy: Policy, best: Outlook) -> Goals:
    """The objectives as they are planned for, given the best that there can be."""
    return Goals(
        share=policy.attainment,
        ttft_s=_nearest(policy.ttft_s, best.ttft_s),
        itl_s=_nearest(policy.itl_s, best.itl_s),
        concurrency=math.inf if policy.concurrency is None else policy.concurrency,
    )


def meets(goals: Goals, engine: Engine, load: Load, replicas: int) -> bool:
    """Whether so many replicas reach the goals."""
    if load.under_way > replicas * goals.concurrency:
        return False
    if not goals.is_of_times:
        return True
    seen = outlook(engine, load, replicas, goals.share)
    return seen.ttft_s <= goals.ttft_s and seen.itl_s <= goals.itl_s and seen.busy < FULL


def needed(goals: Goals, engine: Engine, load: Load, least: int, most: int) -> int:
    """The fewest replicas from `least` on that reach the goals; `most` where fewer do not."""
    if least >= most or meets(goals, engine, load, least):
        return min(least, most)
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        if meets(goals, engine, load, middle):
            high = middle
        else:
            low = middle
    return high


def bearable(goals: Goals, engine: Engine, load: Load, replicas: int) -> float:
    """How many times `load`, which must not be nothing, so many replicas can bear."""
    high = math.inf
    if load.under_way > 0:
        high = replicas * goals.concurrency / load.under_way
    work = engine.prompt_s(load.prompt_tokens) + engine.itl_per_running_s * load.output_tokens
    if load.rate > 0 and goals.is_of_times:
        high = min(high, FULL * replicas / (load.rate * engine.correction * work))
    if math.isinf(high) or meets(goals, engine, load.times(high), replicas):
        return high
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if meets(goals, engine, load.times(middle), replicas):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class _Wait:
    """A wait that is nothing, or else exponential."""

    mean: float
    variance: float


_NONE = _Wait(0.0, 0.0)
_ENDLESS = _Wait(math.inf, math.inf)


def _wait(used: float, servers: float, service: float, cv2: float) -> _Wait:
    """For one of `servers` (1 or more) that are in use for the share `used` of their time.

    Args:
        used: see there.
        servers: see there.
        service: mean seconds for which a request has one.
        cv2: variance of these seconds, by the square of their mean.
    """
    if used <= 0:
        return _NONE
    if used >= FULL:
        return _ENDLESS
    probability = used ** (math.sqrt(2 * (max(1.0, servers) + 1)) - 1)
    mean = probability * service * (1 + cv2) / (2 * max(1.0, servers) * (1 - used))
    # With probability q exponential with mean m / q: 2 (m / q)^2 q - m^2.
    return _Wait(mean, mean**2 * (2 - probability) / probability) if mean > 0 else _NONE


def _nearest(objective: float | None, best: float) -> float:
    return math.inf if objective is None else max(objective, NEAR * best)


def _gamma_quantile(mean: float, variance: float, z: float) -> float:
    if variance <= 0 or math.isinf(mean):
        return mean
    shape = mean**2 / variance
    root = 1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))
    return mean * max(root, 0.0) ** 3


@lru_cache(maxsize=64)
def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)
