"""The gate's figures: known values, coverage, and decisions that say why."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, multinomial

from assay_verifiers.config import GateLimits
from assay_verifiers.contract import Status
from assay_verifiers.decision import Decision, ItemScores, decide
from assay_verifiers.statistics import paired_p_value, tango, wilson

GRADES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def counts(ok: int, error: int = 0, timeout: int = 0) -> dict[Status, int]:
    return {"ok": ok, "error": error, "timeout": timeout}


def paired(better: int, worse: int, both: int, neither: int = 0) -> list[ItemScores]:
    """0/1 scores: how many items only the candidate, only the incumbent, both, none has right."""
    sides = [(1.0, 0.0)] * better + [(0.0, 1.0)] * worse + [(1.0, 1.0)] * both
    sides += [(0.0, 0.0)] * neither
    return [ItemScores(f"i{n}", *pair) for n, pair in enumerate(sides)]


def gate(items: list[ItemScores], **limits: float) -> Decision:
    return decide(
        items,
        {"candidate": counts(len(items)), "incumbent": counts(len(items))},
        GateLimits.model_validate(limits),
    )


def alone(right: int, wrong: int, **limits: float) -> Decision:
    items = [ItemScores(f"i{n}", float(n < right)) for n in range(right + wrong)]
    return decide(items, {"candidate": counts(len(items))}, GateLimits.model_validate(limits))


# Intervals


@pytest.mark.parametrize(("right", "items"), [(0, 10), (1, 30), (81, 263), (15, 148), (99, 100)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_wilson_interval_is_scipys(right: int, items: int, confidence: float) -> None:
    expected = binomtest(right, items).proportion_ci(confidence, method="wilson")
    found = wilson(right, items, confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    bound = binomtest(right, items, alternative="greater").proportion_ci(confidence, "wilson")
    assert wilson(right, items, confidence, sides=1).low == pytest.approx(bound.low, abs=1e-9)


def test_the_wilson_interval_has_the_published_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3."""
    for right, items, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = wilson(right, items, 0.95)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_tangos_interval_has_the_published_values() -> None:
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), 2850-2875: 1, 7 of 21."""
    found = tango(1, 7, 21, 0.95)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("items", [1, 20, 500])
def test_without_a_pair_that_differs_the_bounds_are_those_of_the_formula(items: int) -> None:
    z2 = 1.6448536269514722**2
    found = tango(0, 0, items, 0.95, sides=1)
    assert (found.low, found.high) == pytest.approx(
        (-z2 / (items + z2), z2 / (items + z2)), abs=1e-7
    )


def test_a_bound_ends_at_one_where_all_pairs_differ() -> None:
    assert tango(30, 0, 30, 0.95).high == 1 and tango(30, 0, 30, 0.95).low > 0.75
    assert tango(0, 30, 30, 0.95).low == -1


@pytest.mark.parametrize("items", [20, 50, 150])
@pytest.mark.parametrize("right", [0.3, 0.5, 0.8, 0.9, 0.95])
def test_the_scores_bounds_hold_as_often_as_they_say(items: int, right: float) -> None:
    """By summing over every possible outcome: no simulation is needed."""
    covered = sum(
        binom.pmf(k, items, right)
        for k in range(items + 1)
        if wilson(k, items, 0.95, sides=1).low <= right
    )
    assert covered > 0.93


@pytest.mark.parametrize("items", [30, 80])
@pytest.mark.parametrize(
    ("better", "worse"), [(0.0, 0.05), (0.05, 0.07), (0.02, 0.04), (0.1, 0.15), (0.2, 0.2)]
)
def test_the_differences_lower_bound_holds_as_often_as_it_says(
    items: int, better: float, worse: float
) -> None:
    """By summing over every possible table."""
    true = better - worse
    tables = [(b, c) for b in range(items + 1) for c in range(items + 1 - b)]
    chances = multinomial.pmf(
        [(b, c, items - b - c) for b, c in tables], items, [better, worse, 1 - better - worse]
    )
    covered = sum(
        chance
        for (b, c), chance in zip(tables, chances, strict=True)
        if chance < 1e-7 or tango(b, c, items, 0.95, sides=1).low <= true
    )
    assert covered > 0.93


def test_bounds_of_graded_scores_hold_at_least_as_often_as_they_say() -> None:
    random = np.random.default_rng(7)
    grades = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    covered_score = covered_difference = 0
    runs, items = 400, 60
    for _ in range(runs):
        mine = random.choice(grades, items, p=[0.1, 0.2, 0.3, 0.2, 0.2])
        theirs = np.where(
            random.random(items) < 0.6,
            mine,
            random.choice(grades, items, p=[0.1, 0.1, 0.3, 0.2, 0.3]),
        )
        d = mine - theirs
        true = 0.4 * (0.55 - 0.625)
        covered_score += wilson(mine.sum(), items, 0.95, sides=1).low <= 0.55
        low = tango(d[d > 0].sum(), -d[d < 0].sum(), items, 0.95, sides=1).low
        covered_difference += low <= true
    assert covered_score / runs > 0.95 and covered_difference / runs > 0.95


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))
def test_swapping_the_sides_turns_the_interval_round(better: int, worse: int, rest: int) -> None:
    items = better + worse + rest
    one, other = tango(better, worse, items, 0.9), tango(worse, better, items, 0.9)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-6)
    assert one.low <= (better - worse) / items <= one.high


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 60))
def test_more_items_of_the_same_kind_narrow_every_interval(b: int, c: int, rest: int) -> None:
    items = b + c + rest
    few, many = tango(b, c, items, 0.95), tango(4 * b, 4 * c, 4 * items, 0.95)
    assert many.high - many.low < few.high - few.low
    few, many = wilson(b, items, 0.95), wilson(4 * b, 4 * items, 0.95)
    assert many.high - many.low < few.high - few.low


# The paired test


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (1, 7, 0.0703125), (0, 5, 0.0625), (3, 3, 1.0)]
)
def test_the_paired_test_of_right_and_wrong_is_mcnemars_exact_one(
    better: int, worse: int, p: float
) -> None:
    differences = [1.0] * better + [-1.0] * worse + [0.0] * 100
    assert paired_p_value(differences) == pytest.approx(p)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(GRADES, GRADES), min_size=2, max_size=9))
def test_the_paired_test_of_graded_scores_counts_every_flip_of_signs(
    pairs: list[tuple[float, float]],
) -> None:
    differences = [a - b for a, b in pairs]
    seen = abs(sum(differences))
    moved = [d for d in differences if d]
    flips = [
        abs(sum(s * d for s, d in zip(signs, moved, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(moved))
    ]
    by_hand = sum(total >= seen - 1e-9 for total in flips) / len(flips)
    assert paired_p_value(differences) == pytest.approx(by_hand, abs=1e-9)


def test_with_many_graded_pairs_the_test_draws_and_repeats_itself() -> None:
    differences = [0.5, 0.25, -0.25] * 40
    p = paired_p_value(differences, seed=3)
    assert p == paired_p_value(differences, seed=3)
    assert 0 < p < 1e-3


# The decision


def test_a_candidate_that_is_good_enough_by_its_lower_bound_passes() -> None:
    found = alone(95, 5, minScore=0.9)
    assert found.outcome == "pass" and "0.9500" in found.reason and "0.9" in found.reason


def test_a_candidate_below_the_limit_by_its_upper_bound_fails() -> None:
    found = alone(70, 30, minScore=0.8)
    assert found.outcome == "fail" and "below the limit 0.8" in found.reason


def test_between_the_bounds_it_is_undecided_and_says_how_many_more_items_would_decide() -> None:
    found = alone(46, 4, minScore=0.9)
    assert found.outcome == "undecided" and found.more_items is not None
    items = 50 + found.more_items
    assert wilson(0.92 * items, items, 0.95, sides=1).low >= 0.9
    assert wilson(0.92 * (items - 2), items - 2, 0.95, sides=1).low < 0.9


def test_exactly_at_the_limit_no_number_of_items_decides() -> None:
    found = alone(90, 10, minScore=0.9)
    assert found.outcome == "undecided" and found.more_items is None
    assert "no number of items" in found.reason


def test_the_same_answers_pass_with_enough_items_and_never_fail() -> None:
    many = gate(paired(0, 0, 120, 80), maxRegression=0.02)
    assert many.outcome == "pass" and many.difference is not None
    assert (many.difference.mean, many.difference.p_value) == (0.0, 1.0)
    few = gate(paired(0, 0, 20, 10), maxRegression=0.02)
    assert few.outcome == "undecided" and few.more_items == 133 - 30


def test_a_worse_candidate_fails_and_a_better_one_passes() -> None:
    worse = gate(paired(2, 30, 100, 20), maxRegression=0.02)
    assert worse.outcome == "fail" and "difference" in worse.reason
    assert gate(paired(30, 2, 100, 20), maxRegression=0.02).outcome == "pass"


def test_both_limits_have_to_hold() -> None:
    found = gate(paired(0, 0, 100, 100), maxRegression=0.05, minScore=0.9)
    assert found.outcome == "fail" and "score" in found.reason
    assert "difference" not in found.reason


def test_too_many_answers_that_could_not_be_judged_decide_nothing() -> None:
    items = [ItemScores(f"i{n}", 1.0) for n in range(90)]
    items += [ItemScores(f"m{n}", None) for n in range(10)]
    found = decide(
        items,
        {"candidate": counts(90, error=7, timeout=3)},
        GateLimits(minScore=0.5),
    )
    assert found.outcome == "undecided"
    assert "7 error" in found.reason and "3 timeout" in found.reason and "10 of 100" in found.reason


def test_what_could_not_be_judged_is_left_out_and_never_counted_as_wrong() -> None:
    items = [ItemScores(f"i{n}", 1.0, 1.0) for n in range(300)]
    items += [ItemScores("m1", None, 1.0), ItemScores("m2", 1.0, None)]
    found = decide(
        items,
        {"candidate": counts(301, error=1), "incumbent": counts(301, error=1)},
        GateLimits(maxRegression=0.01),
    )
    assert found.outcome == "pass" and found.candidate.mean == 1
    assert found.difference is not None and found.difference.items == 300


def test_a_verdict_that_hangs_on_what_could_not_be_judged_says_so() -> None:
    items = [ItemScores(f"i{n}", float(n < 885)) for n in range(960)]
    items += [ItemScores(f"m{n}", None) for n in range(40)]
    found = decide(items, {"candidate": counts(960, timeout=40)}, GateLimits(minScore=0.9))
    assert found.outcome == "pass"
    assert "0.8850" in found.warnings[0]


def test_fewer_items_than_asked_for_decide_nothing() -> None:
    found = alone(30, 0, minScore=0.5, minItems=50)
    assert (found.outcome, found.more_items) == ("undecided", 20)


def test_each_of_several_looks_is_stricter() -> None:
    one, five = alone(96, 4, minScore=0.9), alone(96, 4, minScore=0.9, looks=5)
    assert five.candidate.bound.low < one.candidate.bound.low
    assert five.candidate.interval == one.candidate.interval


def test_five_looks_together_err_no_more_often_than_one_may() -> None:
    """A candidate just below the limit, asked about again and again with more items."""
    random = np.random.default_rng(11)
    limits = GateLimits(minScore=0.8, looks=5)
    passed = 0
    for _ in range(600):
        right = random.random(500) < 0.7999
        passed += any(
            wilson(right[:n].sum(), n, limits.look_confidence, sides=1).low >= 0.8
            for n in range(100, 501, 100)
        )
    assert passed / 600 < 0.05


def test_asking_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to decide"):
        alone(5, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(GRADES | st.none(), GRADES | st.none()), max_size=40),
    st.floats(0, 1),
    st.floats(0, 0.5),
)
def test_any_scores_give_a_decision_whose_figures_fit(
    scores: list[tuple[float | None, float | None]], least: float, most: float
) -> None:
    items = [ItemScores(f"i{n}", a, b) for n, (a, b) in enumerate(scores)]
    found = decide(
        items,
        {"candidate": counts(1), "incumbent": counts(1)},
        GateLimits(minScore=least, maxRegression=most),
    )
    assert found.candidate.bound.low <= found.candidate.mean + 1e-9 or not found.candidate.items
    assert found.difference is not None
    assert -1 <= found.difference.bound.low <= found.difference.bound.high <= 1
    assert 0 < found.difference.p_value <= 1
    if found.outcome == "pass":
        assert found.candidate.bound.low >= least and found.difference.bound.low > -most
    assert math.isfinite(found.candidate.mean)
