"""How much is asked of a service now and soon: from samples to rates, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from assay_operator.autoscaling import capacity
from assay_operator.autoscaling.model import Policy, Sample
from assay_operator.autoscaling.state import Learned, Mix, Point, State

POINT_S = 30.0
POINTS = 120
"""An hour of history."""
LONGEST_STARTUP_S = 900.0
"""What takes longer has another reason than starting: it is neither learned nor planned for."""
_MIX_S = 600.0
_MIX_PRIOR = 2.0
_PARTS = 32
"""Samples are joined where a window holds more."""
_PROFILES = 4
_TREND_S = (120.0, 600.0)
_TREND_POINTS = 4
_BACKLOG_AT_MOST = 0.5
"""Times what comes now: a queue is gone later rather than with many replicas too many."""
_SIGMAS = 2.0


@dataclass(frozen=True)
class Demand:
    """What is asked of all replicas together.

    Attributes:
        level: requests/s over the usual window, None where none of it is known.
        fast: over the short window in which bursts show, likewise.
        forecast: when a replica that is asked for now would be there, if the rate goes on rising.
        later: after a window of scale-downs, if it does.
        surge: what may come on top before that, as it did in the last hour, but no more than what
            came then at all.
        backlog: requests/s that it takes to have the queue gone in time.
        waiting: requests in queues.
        under_way: requests that run or wait.
        prompt_tokens: to be computed for each request.
        output_tokens: to be generated for each.
        burst_window_s: of `fast`.
    """

    level: float | None
    fast: float | None
    forecast: float
    later: float
    surge: float
    backlog: float
    waiting: float
    under_way: float
    prompt_tokens: float
    output_tokens: float
    burst_window_s: float


def startup(policy: Policy, state: State) -> float:
    """Seconds from wanting a replica until it is routable, as learned or assumed."""
    seconds = policy.prior.startup_s if state.startup_s is None else state.startup_s
    return min(seconds, LONGEST_STARTUP_S)


def up_window(policy: Policy, state: State) -> float:
    """Over which the rate is taken: what takes long to answer is looked at for longer."""
    return max(policy.up_window_s, startup(policy, state) / 2)


def burst_window(policy: Policy, state: State) -> float:
    """Over which the rate is taken to notice a burst, likewise."""
    return max(policy.burst_window_s, startup(policy, state) / 4)


def absorb(policy: Policy, state: State, sample: Sample) -> State:
    """The state with what a sample tells, before anything is decided from it."""
    clock = state.clock + sample.seconds
    load = (sample.running, sample.queued)
    waiting = state.waiting if sample.queued is None else sample.queued + sample.held
    under_way = None if None in load else sum(each or 0.0 for each in load) + sample.held
    state = _started(replace(state, now=sample.now, clock=clock), sample)
    recent = _recent(policy, state, (sample.seconds, sample.arrivals, under_way))
    state = replace(state, recent=recent)
    history = _history(policy, state, sample)
    state = replace(
        state,
        history=history,
        learned=_learned(policy, state, sample),
        mix=_mix(state, sample),
        waiting=waiting,
        queue=clock if waiting > sample.ready else state.queue,
        active=_active(state, sample, under_way),
    )
    if len(history) > 1 and history[-1].seconds <= sample.seconds:
        rise, most = usual(policy, state)
        state = replace(state, rise=rise, most=most)
    return state


def demand(policy: Policy, state: State, sample: Sample) -> Demand:
    """What is asked for, from what is known."""
    level, under_way = _rates(state, up_window(policy, state))
    short = burst_window(policy, state)
    fast, _ = _rates(state, short)
    waiting = (sample.queued or 0.0) + sample.held
    known = max(level or 0.0, fast or 0.0)
    ahead = startup(policy, state)
    # The level is that of the middle of its window.
    lag, window = up_window(policy, state) / 2, max(ahead, policy.down_window_s)
    # One that waits for its turn in an engine is no queue yet.
    queue = max(0.0, waiting - sample.ready)
    backlog = min(queue / max(policy.drain_s, ahead), _BACKLOG_AT_MOST * known)
    mix, prior = state.mix, policy.prior
    requests = mix.requests + _MIX_PRIOR
    return Demand(
        level=level,
        fast=fast,
        forecast=_risen(level or 0.0, _slope(state, 2 * ahead, doubting=True), ahead + lag),
        later=_risen(level or 0.0, _slope(state, window, doubting=False), window + lag),
        surge=max(0.0, min(state.rise, state.most - (level or 0.0))),
        backlog=backlog,
        waiting=waiting,
        under_way=under_way or 0.0,
        prompt_tokens=(mix.prompt_tokens + _MIX_PRIOR * prior.prompt_tokens) / requests,
        output_tokens=(mix.output_tokens + _MIX_PRIOR * prior.output_tokens) / requests,
        burst_window_s=short,
    )


def usual(policy: Policy, state: State) -> tuple[float, float]:
    """By how much the rate rises within a start-up, and how high it gets; both in requests/s.

    It is what a warehouse keeps in stock: the demand until new goods arrive. Looked at are the
    last hour's moments, each with the highest rate within a start-up after it: how much it was
    above the level, less what comes and goes by chance. The quantile is one of requests: it is
    the share of them that would have found replicas enough.
    """
    if not policy.surge_quantile:
        return 0.0, 0.0
    ahead = max(1, math.ceil(startup(policy, state) / POINT_S))
    points = [point for point in state.history[:-1] if point.unknown < point.seconds / 2]
    if len(points) < ahead + _TREND_POINTS:
        return 0.0, 0.0
    peaks = [point.peak for point in points]
    came = [0.0, *accumulate(point.arrivals for point in points)]
    rises = [
        (
            max(peaks[at : at + ahead])
            - before.level
            - _SIGMAS * math.sqrt(before.level / policy.peak_window_s),
            came[at + ahead] - came[at],
        )
        for at, before in enumerate(points[: len(points) - ahead], start=1)
    ]
    high = [(point.peak, point.arrivals) for point in points]
    return _quantile(policy.surge_quantile, rises), _quantile(policy.surge_quantile, high)


def _quantile(share: float, weighted: list[tuple[float, float]]) -> float:
    """The least value that `share` of the weight does not exceed; 0 without weight."""
    left = share * math.fsum(weight for _, weight in weighted)
    for value, weight in sorted(weighted):
        left -= weight
        if left <= 0:
            return value
    return 0.0


def _started(state: State, sample: Sample) -> State:
    """What is known of replicas that start: since when, and how long it took."""
    if not state.pending and not sample.starting and state.starting is None:
        return state
    took = [state.clock - each.since for each in state.pending if each.replicas <= sample.ready]
    seconds = state.startup_s
    for each in (each for each in took if each <= LONGEST_STARTUP_S):
        # A start that took long counts more: it costs more to be wrong about it.
        old = each if seconds is None else seconds
        seconds = old + (0.5 if each > old else 0.2) * (each - old)
    since = state.clock if state.starting is None else state.starting
    left = tuple(each for each in state.pending if each.replicas > sample.ready)
    return replace(
        state, pending=left, startup_s=seconds, starting=since if sample.starting else None
    )


def _recent(
    policy: Policy, state: State, new: tuple[float, float | None, float | None]
) -> tuple[tuple[float, float | None, float | None], ...]:
    """With the newest sample, and without those that no window reaches."""
    window, kept = up_window(policy, state), [*state.recent]
    if new[0] <= 0:
        return state.recent
    last = kept[-1] if kept else None
    known = (new[1] is None, new[2] is None)
    if last and last[0] < window / _PARTS and (last[1] is None, last[2] is None) == known:
        spans = last[0] + new[0]
        arrivals = None if last[1] is None or new[1] is None else last[1] + new[1]
        mean = (
            None
            if last[2] is None or new[2] is None
            else (last[2] * last[0] + new[2] * new[0]) / spans
        )
        kept[-1] = (spans, arrivals, mean)
    else:
        kept.append(new)
    total, at = 0.0, len(kept)
    while at and total < window:
        at -= 1
        total += kept[at][0]
    return tuple(kept[at:])


def _rates(state: State, window: float) -> tuple[float | None, float | None]:
    """Requests/s and requests under way in the last `window` seconds, as far as they are known."""
    total = came = spans = under_way = under_way_spans = 0.0
    for seconds, arrivals, running in reversed(state.recent):
        if total >= window:
            break
        total += seconds
        if arrivals is not None:
            came, spans = came + arrivals, spans + seconds
        if running is not None:
            under_way += running * seconds
            under_way_spans += seconds
    return (
        came / spans if spans else None,
        under_way / under_way_spans if under_way_spans else None,
    )


def _history(policy: Policy, state: State, sample: Sample) -> tuple[Point, ...]:
    """With the sample in its point, at most an hour."""
    start = state.clock - sample.seconds
    points = state.history
    if points and start < points[-1].start + POINT_S:
        last, points = points[-1], points[:-1]
    else:
        last = Point(start=round(start, 1))
    unknown = 0.0 if sample.known else sample.seconds
    level, _ = _rates(state, up_window(policy, state))
    peak, _ = _rates(state, policy.peak_window_s)
    point = replace(
        last,
        seconds=last.seconds + sample.seconds,
        unknown=last.unknown + unknown,
        arrivals=last.arrivals + ((sample.arrivals or 0.0) if sample.known else 0.0),
        level=level or 0.0,
        peak=max(last.peak, peak or 0.0),
        waiting=max(last.waiting, (sample.queued or 0.0) + sample.held),
        ready=sample.ready,
        within=last.within if (share := _within(policy, sample)) is None else share,
    )
    return (*points, point)[-POINTS:]


def _within(policy: Policy, sample: Sample) -> float | None:
    """The share of warm replicas' requests within the objectives; the lesser one where there are
    two, None where none is measured."""
    if sample.measured is None:
        return None
    felt = (
        (sample.measured.ttft, policy.ttft_s),
        (sample.measured.answers, policy.itl_s),
    )
    shares = [each.share_within(objective) for each, objective in felt if objective is not None]
    return min((share for share in shares if share is not None), default=None)


def _learned(policy: Policy, state: State, sample: Sample) -> dict[str, Learned]:
    """With what the sample tells of this kind of engine, which comes last; few are kept.

    After a queue engines are left alone for as long as after a start: what waited in it counts in
    times that are told later.
    """
    old = state.learned.get(policy.profile, Learned())
    if state.queue is not None and state.clock - state.queue < policy.warmup_s:
        return state.learned
    new = capacity.learn(old, policy, sample)
    if new is old:
        return state.learned
    others = [(name, each) for name, each in state.learned.items() if name != policy.profile]
    return dict([*others, (policy.profile, new)][-_PROFILES:])


def _mix(state: State, sample: Sample) -> Mix:
    """With the tokens of a sample and the requests that came to their turn in it."""
    mix = state.mix
    if sample.arrivals is None or sample.queued is None:
        return mix
    if sample.silent or sample.prompt_tokens is None or sample.output_tokens is None:
        return mix
    begun = max(0.0, sample.arrivals + state.waiting - sample.queued - sample.held)
    if not (begun or sample.prompt_tokens or sample.output_tokens):
        # Silence says nothing of what requests are like, and a status is not written for it.
        return mix
    fade = math.exp(-sample.seconds / _MIX_S)
    return Mix(
        requests=mix.requests * fade + begun,
        prompt_tokens=mix.prompt_tokens * fade + sample.prompt_tokens,
        output_tokens=mix.output_tokens * fade + sample.output_tokens,
    )


def _active(state: State, sample: Sample, under_way: float | None) -> float:
    """When there was a request last; a time of which nothing is known is not silent."""
    if sample.arrivals or under_way or sample.held:
        return state.clock
    return state.active if sample.known else state.active + sample.seconds


def _rate(point: Point) -> float | None:
    known = point.seconds - point.unknown
    return point.arrivals / known if known > 0 and known >= point.seconds / 2 else None


def _risen(level: float, slope: float, ahead: float) -> float:
    """The rate after `ahead` seconds; nothing is believed to more than double meanwhile."""
    return min(level + slope * ahead, 2 * level)


def _slope(state: State, reach: float, *, doubting: bool) -> float:
    """By how much the rate rose in the last `reach` seconds, in requests/s a second; 0 where it did
    not, or no more than by chance.

    It is that of a line through the points. Whoever doubts takes no more than that of their second
    half or of those before the last: a step is no trend.
    """
    reach = min(max(reach, _TREND_S[0]), _TREND_S[1])
    points = [
        (point.start + point.seconds / 2, rate)
        for point in state.history
        if point.start >= state.clock - reach and point.seconds >= POINT_S / 2
        if (rate := _rate(point)) is not None
    ]
    if len(points) < _TREND_POINTS:
        return 0.0
    slope, chance = _line(points)
    if slope <= chance:
        return 0.0
    if doubting:
        slope = min(slope, _line(points[len(points) // 2 :])[0], _line(points[:-1])[0])
    return max(0.0, slope)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope of the line through the points, and what it would be by chance at most."""
    middle = math.fsum(at for at, _ in points) / len(points)
    mean = math.fsum(rate for _, rate in points) / len(points)
    spread = math.fsum((at - middle) ** 2 for at, _ in points)
    slope = math.fsum((at - middle) * (rate - mean) for at, rate in points) / spread
    return slope, _SIGMAS * math.sqrt(max(mean, 1 / POINT_S) / POINT_S / spread)
