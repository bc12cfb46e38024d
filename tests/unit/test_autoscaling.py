"""Autoscaling under loads that users make: how many replicas, when, and what is said of it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from assay_operator.autoscaling.decision import decide
from assay_operator.autoscaling.model import Policy, Sample
from assay_operator.autoscaling.state import State, read, write
from tests.unit.autoscaling_plant import PRIOR, Plant, Rate, Truth

POLICY = Policy(max=30, ttft_s=0.5, itl_s=0.06, attainment=0.9, prior=PRIOR)
TO_ZERO = replace(POLICY, min=0, scale_to_zero_after=600.0)
WINDOW = POLICY.down_window_s


def constant(rate: float) -> Rate:
    return lambda _: rate


def step(low: float, high: float, begin: float, end: float = math.inf) -> Rate:
    return lambda now: high if begin <= now < end else low


def sawtooth(low: float, high: float, period: float) -> Rate:
    return lambda now: low + (high - low) * (now % period) / period


def night(now: float) -> float:
    """Ten times as much by day as by night; a day has four hours."""
    return 11 - 9 * math.cos(2 * math.pi * now / 14400)


def test_a_step_is_followed_at_once_and_without_overshoot() -> None:
    plant = Plant(POLICY, step(2, 20, 1200)).run(2700)
    steady = plant.steady(20)
    ups = [(now, number) for now, number in plant.wanted() if now > 1200]
    assert ups[0][0] <= 1200 + 2 * plant.step_s
    assert max(number for _, number in ups) <= 1.5 * steady
    assert max(number for now, number in ups if now <= 1320) >= steady
    assert abs(plant.replicas - steady) <= 1
    assert plant.most_reversals(WINDOW) <= 1


def test_pending_replicas_are_counted_however_long_they_take() -> None:
    """A start-up of five minutes brings no more replicas than one of ten seconds."""
    peaks = []
    for startup_s in (10.0, 300.0):
        prior = replace(PRIOR, startup_s=startup_s)
        policy = replace(POLICY, prior=prior)
        plant = Plant(policy, step(2, 12, 1200), startup_s=startup_s).run(3600)
        peaks.append(max(number for _, number in plant.wanted()))
    assert peaks[1] <= 2 * peaks[0]


def test_how_long_a_start_takes_is_learned_unless_something_else_kept_it_waiting() -> None:
    """Two hours are no start-up, but a cluster without a free node."""
    assert Plant(POLICY, step(2, 20, 600)).run(1200).state.startup_s == pytest.approx(60, abs=10)
    waited = Plant(POLICY, step(2, 20, 600), startup_s=7200.0).run(8400)
    assert (waited.state.startup_s, waited.state.pending) == (None, ())


def test_of_replicas_that_another_driver_brings_it_is_not_learned_how_long_a_start_takes() -> None:
    plant = Plant(replace(POLICY, acts=False), step(2, 20, 600))
    plant.change = lambda sample: replace(sample, ready=1 if plant.now < 900 else 30, starting=0)
    plant.run(1200)
    assert plant.replicas > 1 and plant.state.startup_s is None


def test_after_a_spike_replicas_stay_for_a_window_and_no_longer_than_two() -> None:
    plant = Plant(POLICY, step(3, 20, 1800, 1830)).run(4200)
    peak = max(plant.wanted(), key=lambda change: change[1])
    first_down = next(now for now, number in plant.wanted() if now > peak[0])
    assert 1830 + WINDOW - 60 <= first_down <= 1830 + 2 * WINDOW
    assert plant.replicas == 1
    assert plant.most_reversals(WINDOW) <= 1


@pytest.mark.parametrize("period", [120.0, 450.0, 600.0, 1800.0])
def test_a_sawtooth_of_any_period_is_not_chased(period: float) -> None:
    plant = Plant(POLICY, sawtooth(2, 18, period)).run(7200)
    assert plant.most_reversals(WINDOW) <= 1
    assert plant.late / plant.came < 0.05


def test_a_scale_down_that_was_regretted_makes_the_next_one_wait_longer() -> None:
    """Bursts come again a little after the window is over."""
    policy = replace(POLICY, surge_quantile=0.0)

    def rate(now: float) -> float:
        return 20.0 if now % 420 < 60 else 1.0

    plant = Plant(policy, rate).run(7200)
    early = [now for now in plant.reversals() if now < 3600]
    late = [now for now in plant.reversals() if now >= 3600]
    assert early
    assert len(late) < len(early)
    assert plant.state.caution > 1


def test_a_day_is_followed_up_and_down_without_users_waiting() -> None:
    plant = Plant(POLICY, night).run(21_600)
    by_day = max(number for _, number in plant.wanted())
    assert by_day > 1
    assert len(plant.reversals()) <= 3
    assert plant.late / plant.came < 0.05


def test_a_rise_is_answered_before_it_is_there() -> None:
    """Replicas that take two minutes are asked for while those that are there still do."""
    policy = replace(POLICY, prior=replace(PRIOR, startup_s=120.0))
    plant = Plant(policy, lambda now: 2 + now / 150, startup_s=120.0).run(3600)
    assert "Forecast" in plant.reasons()
    assert plant.late / plant.came < 0.05


def test_what_rises_again_and_again_is_provided_for() -> None:
    """A replica takes as long to start as a burst lasts: only who is there before can help."""

    def rate(now: float) -> float:
        return 14.0 if now % 300 < 40 else 0.2

    without = Plant(replace(POLICY, surge_quantile=0.0, down_window_s=60.0), rate).run(7200)
    ready = Plant(replace(POLICY, down_window_s=60.0), rate).run(7200)
    assert ready.late < 0.5 * without.late
    assert len(ready.reversals()) < len(without.reversals())


def test_silence_ends_in_zero_and_the_first_request_in_one() -> None:
    plant = Plant(TO_ZERO, lambda now: 1.0 if now < 900 or now >= 3000 else 0.0)
    plant.run(2900)
    assert plant.wanted()[-1] == (1500.0, 0)
    assert plant.decisions[-1][1].reason == "Steady"
    plant.run(3010)
    assert plant.replicas == 1
    assert plant.decisions[-1][1].reason == "FirstRequest"
    plant.run(3600)
    assert plant.replicas == 1


def test_a_replica_that_loads_is_never_taken_away_though_nobody_asks_any_more() -> None:
    """One request wakes the service, and its client goes away long before the model is loaded."""
    policy = replace(TO_ZERO, scale_to_zero_after=60.0)
    plant = Plant(policy, step(0, 0.2, 100, 110), startup_s=500.0, alive=[])
    plant.change = lambda sample: replace(sample, held=0) if plant.now > 110 else sample
    plant.run(600)
    assert plant.wanted() == [(10.0, 0), (110.0, 1)]
    plant.run(700)
    assert plant.replicas == 0


def test_what_never_comes_up_keeps_no_service_from_zero() -> None:
    """Its pods may not even be created: a quota forbids them."""
    policy = replace(TO_ZERO, scale_to_zero_after=60.0)
    plant = Plant(policy, step(0, 0.2, 100, 110), startup_s=1e9, alive=[])
    plant.change = lambda sample: replace(sample, held=plant.now == 110, starting=plant.now > 110)
    plant.run(700)
    assert plant.wanted() == [(10.0, 0), (110.0, 1)]
    plant.run(3600)
    assert plant.wanted() == [(10.0, 0), (110.0, 1), (720.0, 0)]


def test_a_replica_that_ends_again_and_again_keeps_no_service_from_zero() -> None:
    policy = replace(TO_ZERO, scale_to_zero_after=60.0)
    plant = Plant(policy, step(0, 0.2, 100, 110), startup_s=1e9, alive=[])
    plant.change = lambda sample: replace(
        sample, held=plant.now == 110, starting=0, failed=sample.starting
    )
    plant.run(400)
    assert plant.wanted() == [(10.0, 0), (110.0, 1), (170.0, 0)]


def test_an_operator_without_memory_counts_replicas_that_failed_as_wanted() -> None:
    plant = Plant(POLICY, constant(1)).run(100)
    plant.state = State()
    plant.change = lambda sample: replace(sample, failed=2)
    assert plant.tick().replicas == 3


def test_zero_and_one_do_not_alternate() -> None:
    """A request every eleven minutes, and ten of silence until zero: one start for each."""
    plant = Plant(TO_ZERO, lambda now: 0.2 if now % 1200 < 5 else 0.0).run(7200)
    assert len([number for _, number in plant.wanted() if number == 0]) <= 6


def test_more_than_one_is_started_from_zero_where_many_wait() -> None:
    plant = Plant(TO_ZERO, step(0, 20, 60), alive=[]).run(80)
    assert plant.replicas > 1


def test_bounds_hold_at_once_when_they_change() -> None:
    plant = Plant(POLICY, constant(2)).run(600)
    plant.policy = replace(POLICY, min=4)
    assert plant.tick().replicas == 4
    plant.policy = replace(POLICY, max=2)
    assert plant.tick().replicas == 2
    assert plant.decisions[-1][1].reason == "Bounds"


def test_steps_are_bounded_but_for_bursts() -> None:
    """A model that is far too slow for its load: what is needed is known at once."""
    slow = Truth(prompt_s=0.4)
    policy = replace(POLICY, max=100, up_pods=2, up_factor=1.0, burst_factor=1e9, ttft_s=2.0)
    plant = Plant(policy, step(1, 20, 600), slow).run(655)
    assert plant.replicas <= 1 + 2 + 2
    policy = replace(policy, burst_factor=2.0)
    plant = Plant(policy, step(1, 20, 600), slow).run(655)
    assert plant.replicas > 5
    assert "Burst" in plant.reasons()


def test_a_rollout_takes_no_replica_away_and_lets_new_ones_come() -> None:
    plant = Plant(POLICY, step(20, 2, 1200)).run(1200)
    before = plant.replicas
    plant.change = lambda sample: replace(sample, rollout=True, away=1, ready=sample.ready - 1)
    plant.run(2400)
    assert plant.replicas == before
    assert plant.decisions[-1][1].reason == "RolloutUnderWay"
    plant.rate = constant(40)
    plant.run(2500)
    assert plant.replicas > before
    told = next(each for now, each in plant.decisions if now > 2400 and each.replicas > before)
    assert "takes its turn" in told.record["message"]


def test_a_replica_that_a_rollout_has_in_its_hands_is_not_replaced() -> None:
    plant = Plant(POLICY, constant(20)).run(1200)
    before = plant.replicas
    plant.change = lambda sample: replace(sample, rollout=True, away=2, ready=sample.ready - 2)
    assert plant.tick().replicas == before


def test_engines_that_do_not_answer_are_not_taken_for_idle() -> None:
    plant = Plant(POLICY, step(20, 1, 1200)).run(1200)
    before = plant.replicas
    plant.change = lambda sample: replace(
        sample, silent=1, running=None, queued=None, measured=None
    )
    plant.run(3600)
    assert plant.replicas == before
    assert plant.decisions[-1][1].reason == "MetricsUnknown"


def test_a_look_that_fails_now_and_then_does_not_hold_replicas_for_ever() -> None:
    plant = Plant(POLICY, step(20, 1, 1200)).run(1200)
    plant.change = lambda sample: (
        replace(sample, silent=1, running=None, queued=None, measured=None)
        if plant.now % 50 == 0
        else sample
    )
    plant.run(3600)
    assert plant.replicas == 1


def test_routers_that_do_not_answer_hold_everything() -> None:
    plant = Plant(TO_ZERO, step(5, 0, 600)).run(600)
    before = plant.replicas
    plant.change = lambda sample: replace(sample, arrivals=None)
    plant.run(3600)
    assert plant.replicas == before


def test_a_clock_that_is_set_changes_nothing() -> None:
    plain = Plant(TO_ZERO, step(8, 0.5, 1200)).run(3600)
    jumps = Plant(TO_ZERO, step(8, 0.5, 1200))

    def jumping(sample: Sample) -> Sample:
        offset = 0.0 if jumps.now < 900 else -7200.0 if jumps.now < 1800 else 86400.0
        return replace(sample, now=sample.now + offset)

    jumps.change = jumping
    jumps.run(3600)
    assert jumps.wanted() == plain.wanted()


def test_an_operator_without_memory_takes_nothing_away_until_it_has_seen_a_window() -> None:
    plant = Plant(POLICY, constant(20)).run(1200)
    before = plant.replicas
    plant.state, plant.rate = State(), constant(1)
    plant.run(1200 + WINDOW - 10)
    assert plant.replicas == before
    plant.run(1200 + 3 * WINDOW)
    assert plant.replicas < before


def test_an_operator_that_comes_back_goes_on_where_the_other_one_was() -> None:
    plant = Plant(POLICY, step(20, 2, 1200)).run(1300)
    other = Plant(POLICY, step(20, 2, 1200)).run(1300)
    other.state = read(json.loads(json.dumps(write(other.state))))
    assert plant.run(2400).wanted() == other.run(2400).wanted()


def test_what_cannot_be_read_is_no_state() -> None:
    for bad in (None, {}, {"clock": "soon"}, {"history": [[1, 2]]}, {"history": 3}, []):
        assert read(bad) == State()  # type: ignore[arg-type]


def test_an_hour_of_memory_is_small() -> None:
    plant = Plant(POLICY, night).run(14_400)
    assert len(plant.state.history) <= 120
    assert len(plant.state.recent) <= 64
    assert len(json.dumps(write(plant.state))) < 12_000


def test_looks_that_come_every_second_need_no_more_memory() -> None:
    plant = Plant(POLICY, constant(5), step_s=1.0).run(600)
    assert len(plant.state.recent) <= 64


def test_concurrency_is_an_objective_of_its_own() -> None:
    policy = Policy(max=30, concurrency=16, prior=PRIOR)
    plant = Plant(policy, constant(20)).run(1800)
    under_way = plant.decisions[-1][1].record["inputs"]["running"]
    assert math.ceil(under_way / 16) <= plant.replicas <= math.ceil(1.15 * under_way / 16)


def test_the_number_does_not_follow_an_objective_out_of_reach() -> None:
    """A single request alone takes longer: more replicas would be paid for in vain."""
    plant = Plant(replace(POLICY, ttft_s=0.05), constant(4)).run(1800)
    unreachable = plant.decisions[-1][1].unreachable
    assert unreachable
    assert "the objective is 50 ms" in unreachable
    floor = re.search(r"90% of the requests comes within (\d+) ms", unreachable)
    assert floor
    assert 80 < int(floor[1]) < 200  # the mean is 80 ms, the times are exponential
    assert plant.replicas < 10


def test_an_objective_within_reach_is_never_said_to_be_out_of_it() -> None:
    plant = Plant(POLICY, night).run(7200)
    assert not any(decision.unreachable for _, decision in plant.decisions)


def test_users_who_wait_longer_than_the_model_says_get_more_replicas() -> None:
    """As behind a router that sends everything to one of the engines."""
    plant = Plant(POLICY, constant(8)).run(1200)
    before = plant.replicas

    def slow(sample: Sample) -> Sample:
        if sample.measured is None or plant.replicas > before:
            return sample
        first = sample.measured.ttft
        late = (*(0.6 * each for each in first.counts[:-1]), first.counts[-1] + 0.4 * first.count)
        return replace(sample, measured=replace(sample.measured, ttft=replace(first, counts=late)))

    plant.change = slow
    plant.run(2400)
    assert plant.replicas > before
    assert "Measured" in plant.reasons()


def test_max_that_is_not_enough_is_said() -> None:
    plant = Plant(replace(POLICY, max=2), constant(30)).run(900)
    assert plant.replicas == 2
    assert "does not reach the objectives" in plant.decisions[-1][1].record["message"]


def test_the_same_look_twice_decides_the_same() -> None:
    plant = Plant(POLICY, step(2, 20, 300)).run(300)
    seen: list[Sample] = []
    plant.change = lambda sample: seen.append(sample) or sample  # type: ignore[func-returns-value]
    first = plant.tick()
    again = decide(POLICY, first.state, seen[-1])
    assert (again.replicas, again.state) == (first.replicas, first.state)
    assert again.reason == "NothingNew"


def test_a_record_says_what_how_why_and_what_would_change_it() -> None:
    plant = Plant(POLICY, constant(20)).run(1800)
    told = plant.decisions[-1][1].record
    assert json.loads(json.dumps(told)) == told
    assert len(json.dumps(told)) < 2_500
    assert told["inputs"]["arrivalsPerSecond"] == 20
    assert told["inputs"]["ready"] == told["replicas"] == plant.replicas
    assert "20 requests/s need" in told["message"]
    assert told["capacity"]["promptMs"] == pytest.approx(80, rel=0.1)
    assert "goal 500 ms" in told["formula"]
    above, below = told["changes"]
    assert above.endswith("requests/s another replica")
    assert below.endswith(f"for {WINDOW:.0f} s one fewer")


@pytest.mark.parametrize("more", [True, False])
def test_what_a_record_says_would_change_it_does(more: bool) -> None:
    plant = Plant(replace(POLICY, surge_quantile=0.0), constant(20)).run(1800)
    before, told = plant.replicas, plant.decisions[-1][1].record["changes"]
    said = float(told[0 if more else 1].split()[1])
    plant.rate = constant(said * (1.05 if more else 0.93))
    plant.run(3600)
    assert (plant.replicas > before) if more else (plant.replicas < before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min": 3, "max": 2, "ttft_s": 1.0},
        {"max": 0, "ttft_s": 1.0},
        {"max": 2},
        {"max": 2, "itl_s": 0.0},
        {"max": 2, "itl_s": 1.0, "attainment": 1.0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Policy(**wrong)  # type: ignore[arg-type]
