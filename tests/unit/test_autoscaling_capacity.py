"""What a replica can do: the queueing model beside exact answers, and what is learned of it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from assay_operator.autoscaling.capacity import engine, learn, teaches
from assay_operator.autoscaling.model import Histogram, Measured, Policy, Prior, Sample
from assay_operator.autoscaling.queueing import (
    Engine,
    Load,
    bearable,
    goals,
    idle,
    meets,
    needed,
    outlook,
)
from assay_operator.autoscaling.state import Learned
from tests.unit.autoscaling_plant import ITL_BOUNDS, PROMPT_BOUNDS, TTFT_BOUNDS, exponential

POLICY = Policy(max=100, ttft_s=0.5, itl_s=0.06)
ENGINE = Engine(itl_s=0.02, itl_per_running_s=0.0005, first_token_s=0.02, prompt_token_s=1e-4)
LOAD = Load(rate=3.0, prompt_tokens=600, output_tokens=100)


def crowd(made: Engine, load: Load) -> tuple[float, float]:
    """Mean and variance of the requests that run in one engine, from its birth-death chain.

    With n of them, one ends every n-th part of the time for all its tokens; prompts take their
    share of the engine first.
    """
    free = 1 - load.rate * made.prompt_s(load.prompt_tokens)
    weights = [1.0]
    for n in range(1, 400):
        step = (made.itl_s + made.itl_per_running_s * (n - 1)) / free
        weights.append(weights[-1] * load.rate * load.output_tokens * step / n)
    total = math.fsum(weights)
    mean = math.fsum(n * weight for n, weight in enumerate(weights)) / total
    square = math.fsum(n * n * weight for n, weight in enumerate(weights)) / total
    return mean, square - mean**2


@pytest.mark.parametrize("rate", [0.3, 1.0, 3.0, 5.0])
def test_as_many_requests_run_as_in_the_exact_chain(rate: float) -> None:
    load = replace(LOAD, rate=rate)
    mean, _ = crowd(ENGINE, load)
    assert outlook(ENGINE, load, 1, 0.5).running == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("rate", [1.0, 5.0])
def test_the_time_between_tokens_spreads_as_in_the_exact_chain(rate: float) -> None:
    """Where prompts cost nothing, the only reason for it is how many requests run."""
    made = replace(ENGINE, first_token_s=1e-9, prompt_token_s=0.0)
    load = replace(LOAD, rate=rate)
    mean, variance = crowd(made, load)
    step, spread = made.itl_s + made.itl_per_running_s * mean, math.sqrt(variance)
    expected = step + 1.2816 * made.itl_per_running_s * spread
    assert outlook(made, load, 1, 0.9).itl_s == pytest.approx(expected, rel=0.03)


def test_prompts_that_come_in_between_delay_an_answer_as_in_a_simulation() -> None:
    made = replace(ENGINE, itl_per_running_s=0.0)
    load = Load(rate=3.0, prompt_tokens=1500, output_tokens=40)
    draw, prompt = random.Random(7), made.prompt_s(1500)

    def delayed(work: float) -> float:
        """Seconds until so much work is done that prompts interrupt."""
        total, left = 0.0, work
        while left > 0:
            gap = draw.expovariate(load.rate)
            total, left = total + min(gap, left), left - gap
            if left > 0:
                prompts = [made.first_token_s + draw.expovariate(1 / 0.15)]
                while prompts:
                    took = prompts.pop()
                    total += took
                    came = draw.expovariate(load.rate)
                    while came < took:
                        prompts.append(made.first_token_s + draw.expovariate(1 / 0.15))
                        came += draw.expovariate(load.rate)
        return total

    # The shortest answers count: those of half the mean length.
    tokens = int(load.output_tokens / 2)
    seen = sorted(delayed(tokens * made.itl_s) / tokens for _ in range(4000))
    assert made.prompt_s(1500) == pytest.approx(prompt)
    said = outlook(made, load, 1, 0.9).itl_s
    assert said == pytest.approx(seen[int(0.9 * len(seen))], rel=0.1)


@pytest.mark.parametrize(("share", "times"), [(0.5, 0.693), (0.9, 2.303), (0.95, 2.996)])
def test_first_tokens_wait_as_in_an_exponential_queue(share: float, times: float) -> None:
    """One engine and prompts of exponential length are M/M/1, where the answer is known."""
    made = replace(ENGINE, first_token_s=1e-9, itl_per_running_s=0.0)
    load = Load(rate=8.0, prompt_tokens=600, output_tokens=1)
    mean = 0.06 / (1 - 8 * 0.06)
    assert outlook(made, load, 1, share).ttft_s == pytest.approx(times * mean, rel=0.05)


def test_prompts_of_one_length_are_all_alike_when_they_come_alone() -> None:
    made = replace(ENGINE, prompt_cv2=0.0)
    assert idle(made, LOAD, 0.99).ttft_s == pytest.approx(0.08)


def test_more_replicas_are_never_worse() -> None:
    for made in (ENGINE, replace(ENGINE, slots=8.0)):
        seen = [outlook(made, replace(LOAD, rate=40.0), number, 0.95) for number in range(1, 60)]
        for fewer, more in pairwise(seen):
            assert more.ttft_s <= fewer.ttft_s
            assert more.itl_s <= fewer.itl_s


def test_a_large_service_needs_less_in_proportion_than_a_small_one() -> None:
    planned = goals(POLICY, idle(ENGINE, LOAD, POLICY.attainment))
    small = needed(planned, ENGINE, replace(LOAD, rate=6.0), 1, 100)
    large = needed(planned, ENGINE, replace(LOAD, rate=120.0), 1, 100)
    assert large < 20 * small


def test_the_number_needed_is_the_least_that_is_enough() -> None:
    planned = goals(POLICY, idle(ENGINE, LOAD, POLICY.attainment))
    for rate in (0.0, 1.0, 7.0, 33.0, 150.0):
        load = replace(LOAD, rate=rate)
        number = needed(planned, ENGINE, load, 1, 100)
        assert meets(planned, ENGINE, load, number)
        assert number == 1 or not meets(planned, ENGINE, load, number - 1)
    assert needed(planned, ENGINE, replace(LOAD, rate=1e6), 1, 100) == 100


def test_what_can_be_borne_is_where_the_number_changes() -> None:
    planned = goals(POLICY, idle(ENGINE, LOAD, POLICY.attainment))
    most = LOAD.rate * bearable(planned, ENGINE, LOAD, 4)
    assert needed(planned, ENGINE, replace(LOAD, rate=0.98 * most), 1, 100) <= 4
    assert needed(planned, ENGINE, replace(LOAD, rate=1.03 * most), 1, 100) == 5


def test_places_that_run_out_make_requests_wait() -> None:
    """The engine has time left, but its memory is full."""
    full = replace(ENGINE, slots=12.0)
    load = replace(LOAD, rate=4.0)
    assert outlook(full, load, 1, 0.9).ttft_s > 1.5 * outlook(ENGINE, load, 1, 0.9).ttft_s
    assert math.isinf(outlook(full, replace(LOAD, rate=5.5), 1, 0.9).ttft_s)


# What is learned


def sample(
    made: Engine, rate: float, warm: int = 2, seconds: float = 15.0, **changes: object
) -> Sample:
    """What warm replicas with these numbers show at so many requests/s each."""
    load = Load(rate, 600, 100)
    seen = outlook(made, load, 1, 0.5)
    count = rate * seconds * warm
    first = made.prompt_s(600) / (1 - rate * made.prompt_s(600))
    measured = Measured(
        engines=warm,
        running=seen.running * warm,
        prompt_tokens=600 * count,
        output_tokens=100 * count,
        ttft=exponential(first, count, TTFT_BOUNDS),
        itl=exponential(made.itl_s / (1 - seen.busy), 100 * count, ITL_BOUNDS),
        prompts=exponential(600.0, count, PROMPT_BOUNDS),
    )
    given = Sample(
        now=0.0,
        seconds=seconds,
        arrivals=count,
        running=seen.running * warm,
        ready=warm,
        warm=warm,
        measured=measured,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def taught(samples: Iterator[Sample], policy: Policy = POLICY) -> Engine:
    learned = Learned()
    for each in samples:
        learned = learn(learned, policy, each)
    return engine(learned, policy.prior)


RATES = (0.5, 2.0, 4.0, 1.0, 3.0, 5.0)


def test_an_engine_is_known_after_a_few_samples() -> None:
    known = taught(sample(ENGINE, rate) for rate in RATES * 3)
    assert known.samples == 18
    assert known.itl_s == pytest.approx(ENGINE.itl_s, rel=0.1)
    assert known.itl_per_running_s == pytest.approx(ENGINE.itl_per_running_s, rel=0.2)
    assert known.prompt_s(600) == pytest.approx(ENGINE.prompt_s(600), rel=0.1)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_an_engine_far_from_what_was_assumed_is_known_as_soon(factor: float) -> None:
    far = Engine(0.03 * factor, 0.0005 * factor, 0.02 * factor, 1e-4 * factor)
    known = taught(sample(far, rate / factor / 4) for rate in RATES * 4)
    assert known.itl_s == pytest.approx(far.itl_s, rel=0.3)
    assert known.prompt_s(600) == pytest.approx(far.prompt_s(600), rel=0.3)


def test_one_that_was_never_busy_is_taken_to_slow_down_as_others_do() -> None:
    prior = Prior(itl_s=0.2, itl_per_running_s=0.002)
    known = taught((sample(ENGINE, 0.05) for _ in range(12)), replace(POLICY, prior=prior))
    assert known.itl_per_running_s / known.itl_s == pytest.approx(0.01, rel=0.3)


def test_a_single_sample_far_off_changes_little() -> None:
    samples = [sample(ENGINE, rate) for rate in RATES * 4]
    slow = replace(ENGINE, itl_s=0.4, first_token_s=2.0)
    before, after = taught(iter(samples)), taught(iter([*samples, sample(slow, 0.2)]))
    assert after.itl_s == pytest.approx(before.itl_s, rel=0.15)
    assert after.prompt_s(600) == pytest.approx(before.prompt_s(600), rel=0.25)


def test_what_has_changed_for_good_is_believed_in_time() -> None:
    """Other weights, that take twice as long."""
    slow = Engine(0.04, 0.001, 0.04, 2e-4)
    samples = [sample(ENGINE, rate) for rate in RATES * 10]
    later = [sample(slow, rate / 2) for rate in RATES * 40]
    known = taught(iter([*samples, *later]))
    assert known.itl_s == pytest.approx(slow.itl_s, rel=0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {"starting": 1},
        {"rollout": True},
        {"away": 1},
        {"silent": 1},
        {"seconds": 0.0},
        {"measured": None},
        {"measured": Measured(engines=0)},
    ],
)
def test_nothing_is_learned_from_what_is_not_usual(changes: dict[str, object]) -> None:
    slow = replace(ENGINE, itl_s=1.0)
    odd = replace(sample(slow, 0.1), **changes)  # type: ignore[arg-type]
    assert not teaches(odd)
    known = learn(Learned(), POLICY, sample(ENGINE, 2.0))
    assert learn(known, POLICY, odd) is known


def test_beside_a_replica_that_failed_the_others_teach() -> None:
    assert teaches(sample(ENGINE, 2.0, failed=1))


def test_idle_engines_teach_nothing_and_forget_nothing() -> None:
    known = learn(Learned(), POLICY, sample(ENGINE, 2.0))
    quiet = replace(sample(ENGINE, 2.0), arrivals=0.0, measured=Measured(engines=2))
    assert learn(known, POLICY, quiet) is known


def test_memory_for_keys_and_values_bounds_what_runs_at_once() -> None:
    learned = Learned()
    for rate in RATES:
        seen = sample(ENGINE, rate)
        assert seen.measured
        use = 0.02 * seen.measured.running / 2
        learned = learn(learned, POLICY, replace(seen, measured=replace(seen.measured, kv_use=use)))
    assert engine(learned, POLICY.prior).slots == pytest.approx(0.95 / 0.02, rel=0.05)
    few = replace(POLICY.prior, slots=8.0)
    assert engine(learned, few).slots == 8.0


def spoilt(share: float) -> Sample:
    """As `sample` says, but for the share of first tokens that come late."""
    seen = sample(ENGINE, 2.0)
    assert seen.measured
    count = seen.measured.ttft.count
    bounds = seen.measured.ttft.bounds
    early = tuple(count * (1 - share) if bound == 0.1 else 0.0 for bound in bounds)
    ttft = Histogram(bounds, (*early, count * share), seen.measured.ttft.sum)
    return replace(seen, measured=replace(seen.measured, ttft=ttft))


def test_the_load_counts_for_more_where_users_wait_longer_than_the_model_says() -> None:
    fine, late = taught(spoilt(0.0) for _ in range(10)), taught(spoilt(0.3) for _ in range(10))
    assert fine.correction == 1.0
    assert 1.5 < late.correction <= 3.0


def test_that_is_noticed_in_a_service_that_few_ask_too() -> None:
    """Three requests for every two looks."""
    few = [sample(ENGINE, 0.3, warm=1, seconds=5.0) for _ in range(120)]
    late = [
        replace(each, measured=replace(each.measured, ttft=Histogram((0.5,), (0.9, 0.6), 0.2)))
        for each in few
        if each.measured
    ]
    assert taught(iter(few)).correction == 1.0
    assert taught(iter(late)).correction > 1.5


def test_that_is_forgotten_when_they_do_not_wait_any_more() -> None:
    late = [spoilt(0.3) for _ in range(10)]
    fine = [spoilt(0.0) for _ in range(400)]
    assert taught(iter(late + fine)).correction < 1.1


def test_a_few_late_ones_are_chance() -> None:
    assert taught(spoilt(0.06) for _ in range(20)).correction == 1.0


def test_a_queue_says_nothing_against_the_model() -> None:
    late = spoilt(0.5)
    assert late.measured
    queue = replace(late, measured=replace(late.measured, queued=40.0))
    assert taught(iter([queue] * 10)).correction == 1.0
