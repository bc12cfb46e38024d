"""A small service for tests of autoscaling: engines, a router and pods, without randomness.

Its engines do what their numbers say, in the mean: it is a fluid, not a simulation of single
requests, which is benchmarks/autoscaling. What it shows of itself is what would be scraped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from assay_operator.autoscaling.decision import Decision, decide
from assay_operator.autoscaling.model import Histogram, Measured, Policy, Prior, Sample
from assay_operator.autoscaling.state import State

TTFT_BOUNDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0)
ITL_BOUNDS = (0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 1.0)
PROMPT_BOUNDS = (100.0, 300.0, 500.0, 700.0, 1000.0, 1500.0, 2000.0, 3000.0)
Rate = Callable[[float], float]
"""Requests/s at a time."""


@dataclass(frozen=True)
class Truth:
    """What an engine really does.

    Attributes:
        itl_s: between the tokens of a request that is alone.
        per_running_s: that each other request adds.
        prompt_s: that each prompt takes.
        prompt_tokens, output_tokens: of each request.
        kv_per_request: share of the cache that a running request takes.
    """

    itl_s: float = 0.02
    per_running_s: float = 0.0005
    prompt_s: float = 0.08
    prompt_tokens: float = 600.0
    output_tokens: float = 100.0
    kv_per_request: float = 0.01

    @property
    def work_s(self) -> float:
        """Of a request, for an engine that is always busy."""
        return self.prompt_s + self.per_running_s * self.output_tokens

    def most(self, ttft_s: float) -> float:
        """Requests/s for a replica at which the mean time to the first token is so long."""
        return (ttft_s / self.prompt_s - 1) / ttft_s


PRIOR = Prior(startup_s=60.0)
"""The rest of it is far off what `Truth` is, and has to be learned."""


@dataclass
class Plant:
    """A service under a policy, tick by tick.

    Attributes:
        policy: what the user wants.
        rate: of the arrivals.
        truth: of the engines.
        startup_s: of a replica.
        step_s: between two looks.
        alive: for each replica, when it is routable.
        queue: requests that wait in engines.
        held: requests that wait at the activator.
        change: what a test does to samples before they are seen.
    """

    policy: Policy
    rate: Rate
    truth: Truth = Truth()
    startup_s: float = 60.0
    step_s: float = 10.0
    alive: list[float] = field(default_factory=lambda: [-3600.0])
    queue: float = 0.0
    held: float = 0.0
    now: float = 0.0
    state: State = field(default_factory=State)
    change: Callable[[Sample], Sample] = lambda sample: sample
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    late: float = 0.0
    """Requests that had to wait for longer than the objective."""
    came: float = 0.0

    def run(self, until: float) -> Plant:
        """Goes on until then."""
        while self.now < until:
            self.tick()
        return self

    def tick(self) -> Decision:
        """One look, one decision, and what it does to the pods."""
        came = self.rate(self.now + self.step_s / 2) * self.step_s
        self.now += self.step_s
        ready = sum(at <= self.now for at in self.alive)
        sample = self.change(self._serve(came, ready))
        decision = decide(self.policy, self.state, sample)
        self.decisions.append((self.now, decision))
        self.state = decision.state
        self._scale(decision.replicas)
        return decision

    def _serve(self, came: float, ready: int) -> Sample:
        truth, step = self.truth, self.step_s
        warm = sum(at + self.policy.warmup_s <= self.now for at in self.alive)
        sample = Sample(
            now=1.7e9 + self.now,
            seconds=step,
            arrivals=came,
            ready=ready,
            warm=warm,
            starting=len(self.alive) - ready,
            oldest_ready_s=self.now - min(self.alive) if ready else None,
        )
        self.came += came
        if not ready:
            self.held += came
            self.late += came
            return replace(sample, held=math.ceil(self.held), running=0.0, queued=0.0)
        waiting = came + self.queue + self.held
        served = min(waiting, 0.9 / truth.work_s * step * ready)
        self.queue, self.held = waiting - served, 0.0
        rate = served / step / ready
        busy, prompts = rate * truth.work_s, rate * truth.prompt_s
        itl = truth.itl_s / (1 - busy)
        first = truth.prompt_s / (1 - prompts) + self.queue * truth.work_s / ready
        if self.policy.ttft_s is not None:
            self.late += served * math.exp(-self.policy.ttft_s / first)
        running = rate * truth.output_tokens * itl
        part = warm / ready
        measured = Measured(
            engines=warm,
            running=running * warm,
            queued=self.queue * part,
            prompt_tokens=served * truth.prompt_tokens * part,
            output_tokens=served * truth.output_tokens * part,
            kv_use=min(1.0, running * truth.kv_per_request),
            ttft=exponential(first, served * part, TTFT_BOUNDS),
            itl=exponential(itl, served * truth.output_tokens * part, ITL_BOUNDS),
            prompts=exponential(truth.prompt_tokens, served * part, PROMPT_BOUNDS),
        )
        return replace(
            sample,
            running=running * ready,
            queued=self.queue,
            prompt_tokens=served * truth.prompt_tokens,
            output_tokens=served * truth.output_tokens,
            measured=measured if warm and served else None,
        )

    def _scale(self, wanted: int) -> None:
        """As a Deployment does: those that start go first, then the youngest."""
        self.alive.sort()
        while len(self.alive) < wanted:
            self.alive.append(self.now + self.startup_s)
        del self.alive[wanted:]

    @property
    def replicas(self) -> int:
        """Wanted now."""
        return self.decisions[-1][1].replicas

    def wanted(self) -> list[tuple[float, int]]:
        """Each change of the number: when, and to what."""
        return list(self._changes())

    def _changes(self) -> Iterator[tuple[float, int]]:
        before = None
        for now, decision in self.decisions:
            if decision.replicas != before:
                yield now, decision.replicas
            before = decision.replicas

    def reasons(self) -> list[str]:
        """Why the number changed, each time."""
        return [
            decision.reason
            for _, decision in self.decisions
            if decision.replicas != decision.findings.before
        ]

    def reversals(self) -> list[float]:
        """When the direction changed."""
        changes = self.wanted()
        found, way = [], 0
        for (_, before), (now, after) in pairwise(changes):
            new = 1 if after > before else -1
            if way and new != way:
                found.append(now)
            way = new
        return found

    def most_reversals(self, window_s: float) -> int:
        """Within any window of that length."""
        found = self.reversals()
        return max((sum(at <= each < at + window_s for each in found) for at in found), default=0)

    def steady(self, rate: float) -> int:
        """Replicas that the same policy ends up with under a constant rate."""
        return Plant(self.policy, lambda _: rate, self.truth).run(1800).replicas


def exponential(mean: float, count: float, bounds: tuple[float, ...]) -> Histogram:
    """The histogram of so many exponential values, without chance."""
    below = [1 - math.exp(-bound / mean) for bound in bounds]
    shares = [high - low for low, high in zip((0.0, *below), (*below, 1.0), strict=True)]
    return Histogram(bounds, tuple(count * share for share in shares), mean * count)
