"""What a number of scores says, and how surely: intervals and a paired test.

Pure functions. Throughout, the unit is an item: several samples of one item are averaged first,
since they are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import bisect
from scipy.stats import binomtest, norm, permutation_test

from assay_verifiers.config import GateLimits

_RESAMPLES = 1 << 16
_EDGE = 1e-9


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """The mean score of the items that could be judged.

    Attributes:
        mean: of the items' scores; 0 where none was judged.
        items: how many were judged.
        interval: two-sided, at the limits' confidence.
        bound: lower and upper one-sided bound, each at the confidence that the decision uses.
    """

    mean: float
    items: int
    interval: Interval
    bound: Interval


@dataclass(frozen=True)
class Difference:
    """Candidate minus incumbent, over the items that both could be judged on.

    Attributes:
        mean: of the items' differences.
        items: how many there are.
        better: items on which the candidate has the higher score.
        worse: items on which it has the lower one.
        interval: two-sided, at the limits' confidence.
        bound: lower and upper one-sided bound, each at the confidence that the decision uses.
        p_value: of the exact paired test that there is no difference, two-sided.
    """

    mean: float
    items: int
    better: int
    worse: int
    interval: Interval
    bound: Interval
    p_value: float


def wilson(total: float, items: int, confidence: float, *, sides: Literal[1, 2] = 2) -> Interval:
    """Wilson's score interval of a proportion.

    Args:
        total: the sum of the scores, each in [0, 1]. A graded score varies less than a 0/1 score of
            the same mean, p (1 - p) being the largest variance there is in [0, 1]: so the interval
            is conservative for it.
        items: how many scores.
        confidence: of the interval; with `sides` 1, of each of its two ends by itself.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if items == 0:
        return Interval(0.0, 1.0)
    z = _z(confidence, sides)
    mean, z2 = total / items, z * z
    middle = (mean + z2 / (2 * items)) / (1 + z2 / items)
    half = z / (1 + z2 / items) * math.sqrt(mean * (1 - mean) / items + z2 / (4 * items * items))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def tango(
    better: float, worse: float, items: int, confidence: float, *, sides: Literal[1, 2] = 2
) -> Interval:
    """Tango's score interval of the difference of two paired proportions, (better - worse) / items.

    It stays honest where no pair differs: its ends then are -z^2 / (n + z^2) and z^2 / (n + z^2).

    Args:
        better: the number of pairs in which only the first is right; with graded scores the sum of
            the positive differences. The variance of a difference d in [-1, 1] is at most that of
            -1, 0 and 1 with the same sums, since d^2 <= |d|: so the interval is conservative then.
        worse: likewise of the pairs in which only the second is right (negative differences).
        items: all pairs.
        confidence: as in `wilson`.

    Source: Tango, Statistics in Medicine 17 (1998), 891-908.
    """
    if items == 0:
        return Interval(-1.0, 1.0)
    z = _z(confidence, sides)

    def statistic(delta: float) -> float:
        # The discordant share that is the most likely if `delta` were true: a quadratic's root.
        a = 2.0 * items
        b = (2 * items - better + worse) * delta - better - worse
        c = -worse * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = items * (2 * share + delta * (1 - delta))
        return (better - worse - items * delta) / math.sqrt(max(variance, 1e-300))

    return Interval(
        _root(lambda delta: statistic(delta) - z), _root(lambda delta: statistic(delta) + z)
    )


def paired_p_value(differences: Sequence[float], *, seed: int = 0) -> float:
    """The exact paired test of no difference, two-sided.

    Where all differences are -1, 0 or 1, it is McNemar's exact test, a binomial test on the pairs
    that differ. Else it is the sign-flip permutation test: all flips where there are at most 2^16,
    else as many random ones, seeded, and never a p of 0.

    Source: McNemar, Psychometrika 12 (1947), 153-157; Fisher, The Design of Experiments (1935), 21.
    """
    found = [difference for difference in differences if difference != 0]
    if not found:
        return 1.0
    if all(abs(difference) == 1 for difference in found):
        return float(binomtest(found.count(1), len(found), 0.5).pvalue)
    if len(found) == 1:
        return 1.0
    result = permutation_test(
        (np.asarray(found),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=1 << 12,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(result.pvalue))


def score(scores: Sequence[float], limits: GateLimits) -> Score:
    """The mean of the judged items with its interval and bounds."""
    items, total = len(scores), math.fsum(scores)
    return Score(
        total / items if items else 0.0,
        items,
        wilson(total, items, limits.confidence),
        wilson(total, items, limits.look_confidence, sides=1),
    )


def difference(differences: Sequence[float], limits: GateLimits, *, seed: int = 0) -> Difference:
    """The mean difference of the paired items with its interval, bounds and test."""
    items = len(differences)
    better = math.fsum(d for d in differences if d > 0)
    worse = -math.fsum(d for d in differences if d < 0)
    return Difference(
        (better - worse) / items if items else 0.0,
        items,
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        tango(better, worse, items, limits.confidence),
        tango(better, worse, items, limits.look_confidence, sides=1),
        paired_p_value(differences, seed=seed),
    )


def _z(confidence: float, sides: Literal[1, 2]) -> float:
    return float(norm.ppf(1 - (1 - confidence) / sides))


def _root(function: Callable[[float], float]) -> float:
    """Where a falling function of a difference is 0, or the end of [-1, 1] beyond which it is."""
    low, high = -1 + _EDGE, 1 - _EDGE
    if function(low) <= 0:
        return -1.0
    if function(high) >= 0:
        return 1.0
    return float(bisect(function, low, high, xtol=1e-10))
