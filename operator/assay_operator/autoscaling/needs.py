"""How many replicas are needed, by what is taken into account."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from assay_operator.autoscaling import queueing
from assay_operator.autoscaling.demand import POINT_S, POINTS, Demand, startup, up_window
from assay_operator.autoscaling.model import Policy, Sample
from assay_operator.autoscaling.queueing import Engine, Goals, Load
from assay_operator.autoscaling.state import State

_LONGEST_WINDOW_S = POINTS * POINT_S - 2 * POINT_S
_SIGMAS = 3.0
"""A burst is what would come by chance less than once in a few hundred times."""


@dataclass(frozen=True)
class Needs:
    """How many replicas are needed, by what is taken into account.

    Attributes:
        now: for what comes now, and to have the queue gone.
        soon: also for what will or may come before a replica that is asked for is there.
        keep: for that and the margin: so many have to stay.
        later: likewise, for what the load rises to within a window.
        model: as `soon`, as if users had never waited longer than the model says.
        rate: that is planned for, requests/s.
        sudden: whether what came in the last seconds makes a burst.
        burst: whether there is or just was one; `now` answers it then.
    """

    now: int
    soon: int
    keep: int
    later: int
    model: int
    rate: float
    sudden: bool
    burst: bool


@dataclass(frozen=True)
class Look:
    """What a decision is made from.

    Attributes:
        policy: what the user wants.
        state: with what the sample tells.
        sample: see there.
        demand: what is asked for.
        engine: what a replica can do.
        goals: what is planned for.
        before: replicas that were wanted until now.
    """

    policy: Policy
    state: State
    sample: Sample
    demand: Demand
    engine: Engine
    goals: Goals
    before: int

    @property
    def startup_s(self) -> float:
        """From wanting a replica until it is routable."""
        return startup(self.policy, self.state)

    @property
    def window_s(self) -> float:
        """For how long fewer must have been enough."""
        return window(self.policy, self.state)

    @property
    def bounded(self) -> int:
        """What was wanted, within bounds that may have changed."""
        return min(self.policy.max, max(self.policy.min, self.before))

    @property
    def step_begin(self) -> int:
        """The number from which the bounds of the current step are taken."""
        if self.state.step_from is None or self.step_is_over:
            return self.bounded
        return self.state.step_from

    @property
    def step_is_over(self) -> bool:
        """Whether the next change begins another step."""
        return self.state.clock - self.state.step_since >= self.policy.step_s

    def since(self, moment: float | None) -> float:
        """Seconds since then, endless if it never was."""
        return math.inf if moment is None else self.state.clock - moment


def window(policy: Policy, state: State) -> float:
    """Of scale-downs, in seconds: at least as long as it takes to regret one."""
    seconds = max(policy.down_window_s, startup(policy, state)) * state.caution
    return min(seconds, _LONGEST_WINDOW_S)


def load_at(seen: Demand, rate: float) -> Load:
    """The load at another rate, with as many more or fewer requests under way."""
    more = max(0.0, rate - seen.backlog) / seen.level if seen.level else 1.0
    return Load(rate, seen.prompt_tokens, seen.output_tokens, seen.under_way * more)


def _soon(seen: Demand) -> float:
    """The rate that is planned for."""
    return max((seen.level or 0.0) + seen.surge, seen.forecast) + seen.backlog


def needs_of(look: Look) -> Needs:
    """See `Needs`."""
    policy, seen, engine = look.policy, look.demand, look.engine

    def needed(rate: float, least: int = 1, by: Engine = engine) -> int:
        return queueing.needed(look.goals, by, load_at(seen, rate), least, policy.max)

    level, fast, rate = seen.level or 0.0, seen.fast or 0.0, _soon(seen)
    now = needed(level + seen.backlog)
    quick = needed(fast + seen.backlog, now) if fast > level else now
    sudden = _is_burst(look, quick)
    burst = sudden or look.since(look.state.burst) < up_window(policy, look.state)
    if burst:
        now = quick
    soon = needed(rate, now)
    keep = needed(rate * (1 + policy.margin), soon)
    model = soon
    if engine.correction > 1:
        model = needed(rate, by=replace(engine, correction=1.0))
    return Needs(
        now=now,
        soon=soon,
        keep=keep,
        later=needed(max(rate, seen.later) * (1 + policy.margin), keep),
        model=model,
        rate=max(rate, fast + seen.backlog) if burst else rate,
        sudden=sudden,
        burst=burst,
    )


def _is_burst(look: Look, needed: int) -> bool:
    """Many times what is ready can bear, and more than chance would bring."""
    expected = (look.demand.level or 0.0) * look.demand.burst_window_s
    came = (look.demand.fast or 0.0) * look.demand.burst_window_s
    chance = came - expected <= _SIGMAS * math.sqrt(expected + 1)
    return not chance and needed >= look.policy.burst_factor * max(1, look.sample.ready)
