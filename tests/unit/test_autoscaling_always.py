"""What holds of every decision about replicas, whatever is seen."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from assay_operator.autoscaling.decision import Decision, decide
from assay_operator.autoscaling.model import Histogram, Measured, Policy, Prior, Sample
from assay_operator.autoscaling.state import State, read, write
from tests.unit.autoscaling_plant import ITL_BOUNDS, PROMPT_BOUNDS, TTFT_BOUNDS, exponential

counts = st.sampled_from([0.0, 0.3, 1.0, 7.0, 80.0, 3000.0])
tokens = st.sampled_from([0.0, 1.0, 500.0, 2e4, 1e7])
times = st.sampled_from([0.0, 1e-4, 0.03, 0.2, 3.0, 1e3])
shares = st.floats(0, 1)


def histograms(bounds: tuple[float, ...]) -> st.SearchStrategy[Histogram]:
    return st.builds(
        lambda mean, count: exponential(mean + 1e-9, count, bounds), times, counts
    ) | st.just(Histogram())


measured = st.builds(
    Measured,
    engines=st.integers(0, 20),
    running=counts,
    queued=counts,
    prompt_tokens=tokens,
    output_tokens=tokens,
    kv_use=st.none() | shares,
    ttft=histograms(TTFT_BOUNDS),
    itl=histograms(ITL_BOUNDS),
    answers=histograms(ITL_BOUNDS),
    prompts=histograms(PROMPT_BOUNDS),
)
samples = st.builds(
    Sample,
    now=st.floats(0, 2e9),
    seconds=st.sampled_from([0.0, 0.1, 5.0, 15.0, 60.0, 4000.0]),
    arrivals=st.none() | counts,
    running=st.none() | counts,
    queued=st.none() | counts,
    held=st.sampled_from([0, 0, 1, 1000]),
    prompt_tokens=st.none() | tokens,
    output_tokens=st.none() | tokens,
    ready=st.integers(0, 20),
    warm=st.integers(0, 20),
    starting=st.integers(0, 3),
    failed=st.integers(0, 3),
    away=st.integers(0, 2),
    silent=st.sampled_from([0, 0, 0, 1]),
    oldest_ready_s=st.none() | st.floats(0, 1e5),
    rollout=st.booleans(),
    measured=st.none() | measured,
)
objectives = st.fixed_dictionaries(
    {},
    optional={
        "ttft_s": st.floats(0.001, 100),
        "itl_s": st.floats(0.001, 10),
        "concurrency": st.floats(0.5, 1000),
    },
).filter(bool)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    low = draw(st.integers(0, 5))
    return Policy(
        min=low,
        max=max(1, low + draw(st.integers(0, 50))),
        margin=draw(shares),
        attainment=draw(st.floats(0.5, 0.99)),
        surge_quantile=draw(st.sampled_from([0.0, 0.5, 0.9])),
        down_window_s=draw(st.sampled_from([0.0, 30.0, 300.0])),
        scale_to_zero_after=draw(st.sampled_from([0.0, 30.0, 600.0])),
        prior=Prior(
            startup_s=draw(st.sampled_from([1.0, 60.0, 3000.0])),
            slots=draw(st.none() | st.floats(1, 500)),
        ),
        **draw(objectives),
    )


def decisions(policy: Policy, seen: list[Sample]) -> list[Decision]:
    """One after the other. Each sample has a time of its own, not in order: clocks are set."""
    fresh = [replace(sample, now=sample.now + number) for number, sample in enumerate(seen)]
    first = decide(policy, State(), fresh[0])
    return [
        *accumulate(fresh[1:], lambda last, one: decide(policy, last.state, one), initial=first)
    ]


many = st.lists(samples, min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_the_number_is_within_its_bounds_and_is_told(policy: Policy, seen: list[Sample]) -> None:
    for decision in decisions(policy, seen):
        assert policy.min <= decision.replicas <= policy.max
        told = decision.record
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        assert told["replicas"] == decision.replicas
        assert not any(re.search(r"\b(nan|inf)\b", said) for said in told["changes"])
        assert not re.search(r"\b(nan|inf)\b", told["message"] + told["formula"])


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_nothing_goes_while_the_load_is_not_known(policy: Policy, seen: list[Sample]) -> None:
    made = decisions(policy, seen)
    for before, after, sample in zip(made, made[1:], seen[1:], strict=False):
        if not sample.known:
            assert after.replicas >= before.replicas


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_none_is_never_zero_while_one_starts_that_is_not_stuck(
    policy: Policy, seen: list[Sample]
) -> None:
    for decision, sample in zip(decisions(policy, seen), seen, strict=True):
        since = decision.state.starting
        assert (since is not None) == bool(sample.starting)
        if since is not None and decision.state.clock - since < 600:
            assert decision.replicas >= 1


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_whoever_waits_gets_a_replica(policy: Policy, seen: list[Sample]) -> None:
    for decision, sample in zip(decisions(policy, seen), seen, strict=True):
        if sample.held or sample.arrivals:
            assert decision.replicas >= 1


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_nothing_goes_during_a_rollout(policy: Policy, seen: list[Sample]) -> None:
    made = decisions(policy, seen)
    for before, after, sample in zip(made, made[1:], seen[1:], strict=False):
        if sample.rollout:
            assert after.replicas >= before.replicas


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_a_sample_that_comes_twice_changes_nothing(policy: Policy, seen: list[Sample]) -> None:
    last = decisions(policy, seen)[-1]
    again = decide(policy, last.state, replace(seen[-1], now=seen[-1].now + (len(seen) - 1)))
    assert (again.replicas, again.state) == (last.replicas, last.state)


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_a_scale_down_never_follows_a_scale_up_within_the_window(
    policy: Policy, seen: list[Sample]
) -> None:
    made = decisions(policy, seen)
    up = -math.inf
    for before, after in pairwise(made):
        if after.replicas > before.replicas:
            up = after.state.clock
        if after.reason == "Quiet":
            assert after.state.clock - up >= policy.down_window_s


@settings(max_examples=40, deadline=None)
@given(policies(), many)
def test_memory_survives_being_written_and_stays_small(policy: Policy, seen: list[Sample]) -> None:
    state = decisions(policy, seen)[-1].state
    text = json.dumps(write(state), allow_nan=False)
    kept = read(json.loads(text))
    assert json.dumps(write(kept)) == text
    assert (kept.replicas, len(kept.history)) == (state.replicas, len(state.history))
    assert len(text) < 16_000
