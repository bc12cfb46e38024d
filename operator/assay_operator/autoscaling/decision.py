"""How many replicas there shall be: a pure function of policy, state and sample.

Up goes what the load needs, at once. Down goes what would not have been needed at any moment of a
window. What is wanted is always compared with what was wanted, never with what is ready: replicas
on their way are counted, however long they take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from assay_operator.autoscaling import capacity, queueing
from assay_operator.autoscaling.demand import absorb, demand
from assay_operator.autoscaling.model import Policy, Reason, Sample
from assay_operator.autoscaling.needs import Look, Needs, load_at, needs_of, window
from assay_operator.autoscaling.record import Findings, record, unreachable
from assay_operator.autoscaling.state import Learned, Pending, State
from assay_operator.plan import Json

_OBSERVED = 0.8
"""Share of a window of which the load must be known before something goes for it."""
_MOST_CAUTION = 4.0
_STUCK_S = 600.0
_STUCK_STARTUPS = 3.0
"""What has been starting for longer than both holds nothing up any more."""


@dataclass(frozen=True)
class Decision:
    """How many replicas, and all that has to be kept and told.

    Attributes:
        replicas: that shall be.
        state: for the next decision.
        reason: in one word.
        required: replicas that the load requires, whatever is wanted; None while it is not known.
        unreachable: why not even a single idle replica meets the objectives, with what was
            measured; None while that is not so.
        findings: what it was made from.
    """

    replicas: int
    state: State
    reason: Reason
    required: int | None
    unreachable: str | None
    findings: Findings

    @cached_property
    def record(self) -> Json:
        """What was decided and why, for `status.autoscaling`. Made when asked for: most decisions
        change nothing and are told to nobody."""
        return record(self.findings)


@dataclass(frozen=True)
class Verdict:
    """What becomes of the number, and why."""

    replicas: int
    reason: Reason


def decide(policy: Policy, state: State, sample: Sample) -> Decision:
    """How many replicas there shall be from now on.

    A sample with the same `now` as the one before brings nothing new: the same number comes out,
    within bounds that may have changed.
    """
    fresh = state.now != sample.now
    if fresh:
        state = absorb(policy, state, sample)
    engine = capacity.engine(state.learned.get(policy.profile, Learned()), policy.prior)
    seen = demand(policy, state, sample)
    load = load_at(seen, seen.level or 0.0)
    best = queueing.idle(engine, load, policy.attainment)
    existing = sample.ready + sample.starting + sample.failed + sample.away
    look = Look(
        policy=policy,
        state=state,
        sample=sample,
        demand=seen,
        engine=engine,
        goals=queueing.goals(policy, best),
        before=existing if state.replicas is None else state.replicas,
    )
    needs = needs_of(look)
    verdict = _verdict(look, needs) if fresh else _same(look)
    after = _moved(look, verdict, _noted(look, needs, verdict) if fresh else state)
    found = Findings(
        policy=policy,
        sample=sample,
        replicas=verdict.replicas,
        before=look.before,
        reason=verdict.reason,
        needed=needs.soon,
        keep=needs.later,
        window_s=window(policy, after),
        startup_s=look.startup_s,
        demand=seen,
        load=load_at(seen, needs.rate),
        engine=engine,
        goals=look.goals,
    )
    return Decision(
        replicas=verdict.replicas,
        state=after,
        reason=verdict.reason,
        required=None if seen.level is None else needs.soon,
        unreachable=unreachable(policy, engine, load, best),
        findings=found,
    )


def _verdict(look: Look, needs: Needs) -> Verdict:
    if look.bounded == 0:
        return _from_zero(look, needs)
    up = _up(look, needs)
    if up is not None:
        return up
    if look.bounded != look.before:
        return Verdict(look.bounded, "Bounds")
    if _silent(look):
        return Verdict(0, "Silence")
    return _down(look, needs)


def _same(look: Look) -> Verdict:
    least = 1 if _loading(look) else 0
    return Verdict(max(least, look.bounded), "NothingNew")


def _from_zero(look: Look, needs: Needs) -> Verdict:
    """From zero the first request that waits counts, and so does a replica that starts already."""
    sample = look.sample
    if sample.held or sample.arrivals or sample.queued or sample.running:
        most = max(1, min(look.policy.up_pods, look.policy.max))
        return Verdict(min(max(1, needs.now), most), "FirstRequest")
    if _loading(look):
        return Verdict(1, "Loading")
    return Verdict(0, "Steady")


def _loading(look: Look) -> bool:
    """Whether replicas are starting, and have not been for so long that they hold nothing up."""
    longest = max(_STUCK_S, _STUCK_STARTUPS * look.startup_s)
    return look.since(look.state.starting) < longest


def _up(look: Look, needs: Needs) -> Verdict | None:
    """More, if more is needed.

    A rollout does not stand in the way: a new replica starts with the weights that are served and
    takes its turn in the rollout like the others. Right after a scale-down only what is there
    counts, not what may come: else each fall of the load would end in going down and up.
    """
    if look.demand.level is None:
        return None
    wanted = needs.now if look.since(look.state.went_down) < look.window_s else needs.soon
    if not needs.burst:
        begin = look.step_begin
        most = max(math.floor(begin * look.policy.up_factor), begin + look.policy.up_pods)
        wanted = min(wanted, most)
    if wanted <= look.bounded:
        return None
    if needs.burst:
        return Verdict(wanted, "Burst")
    if needs.model <= look.bounded:
        return Verdict(wanted, "Measured")
    return Verdict(wanted, "Demand" if needs.now > look.bounded else "Forecast")


def _silent(look: Look) -> bool:
    """Whether nobody asked for long enough, and nothing is on its way that would be lost."""
    sample, state = look.sample, look.state
    if look.policy.min > 0 or not sample.known:
        return False
    if _loading(look) or sample.away or sample.rollout:
        return False
    silent = state.clock - state.active
    if sample.oldest_ready_s is not None:
        silent = min(silent, sample.oldest_ready_s)
    return silent >= look.policy.scale_to_zero_after


def _down(look: Look, needs: Needs) -> Verdict:
    """Fewer, if they would have done at every moment of the window and, where the load rises, will
    do for another one; at least one."""
    before, least = look.before, max(1, look.policy.min)
    if not look.sample.known:
        return Verdict(before, "MetricsUnknown")
    if needs.later >= before or before <= least:
        return Verdict(before, "Steady")
    if look.sample.rollout or look.sample.away:
        return Verdict(before, "RolloutUnderWay")
    if _loading(look):
        return Verdict(before, "Loading")
    peak = _peak(look)
    if peak is None:
        return Verdict(before, "Stabilising")
    begin = look.step_begin
    lowest = min(begin - 1, math.ceil(begin * look.policy.down_factor))
    wanted = max(peak, needs.later, least, lowest)
    return Verdict(wanted, "Quiet") if wanted < before else Verdict(before, "Stabilising")


def _peak(look: Look) -> int | None:
    """The most that had to stay at any moment of the window; None before it is over, or where too
    little of it is known."""
    if look.since(look.state.went_up) < look.window_s:
        return None
    begin = look.state.clock - look.window_s
    points = [point for point in look.state.history if point.start + point.seconds > begin]
    seconds = math.fsum(point.seconds for point in points)
    unknown = math.fsum(point.unknown for point in points)
    if not points or points[0].start > begin or unknown > (1 - _OBSERVED) * seconds:
        return None
    return max(point.need for point in points)


def _noted(look: Look, needs: Needs, verdict: Verdict) -> State:
    """The state with what this moment needed."""
    state = look.state
    burst = state.clock if needs.sudden else state.burst
    if not state.history:
        return replace(state, burst=burst)
    *before, last = state.history
    point = replace(last, need=max(last.need, needs.keep), replicas=verdict.replicas)
    return replace(state, burst=burst, history=(*before, point))


def _moved(look: Look, verdict: Verdict, state: State) -> State:
    """The state with what has to be remembered of a change."""
    wanted, clock = verdict.replicas, state.clock
    state = replace(state, replicas=wanted)
    if wanted == look.before:
        return state
    if state.step_from is None or look.step_is_over:
        state = replace(state, step_from=look.before, step_since=clock)
    regret = look.since(state.went_up) > look.since(state.went_down)
    if wanted > look.before:
        quick = look.since(state.went_down) < look.window_s
        asked = verdict.reason in {"Demand", "Burst", "Measured"}
        caution = min(_MOST_CAUTION, 2 * state.caution) if quick and regret and asked else None
        # What nobody carries out starts nothing.
        pending = (*state.pending, Pending(clock, wanted)) if look.policy.acts else ()
        return replace(state, went_up=clock, pending=pending, caution=caution or state.caution)
    pending = tuple(each for each in state.pending if each.replicas <= wanted)
    # A scale-down that no scale-up followed was none to be regretted.
    caution = max(1.0, state.caution / 2) if regret else state.caution
    return replace(state, went_down=clock, pending=pending, caution=caution)
