"""The gate's decision: pass, fail or undecided, in words and figures. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from assay_verifiers.config import GateLimits
from assay_verifiers.contract import MASKED, Status
from assay_verifiers.statistics import Difference, Score, difference, score, tango, wilson

Outcome = Literal["pass", "fail", "undecided"]

_MOST_ITEMS = 10_000_000


@dataclass(frozen=True)
class ItemScores:
    """One item's mean score on each side; None where it was not asked or could not be judged."""

    id: str
    candidate: float | None
    incumbent: float | None = None


@dataclass(frozen=True)
class Decision:
    """The gate's verdict.

    Attributes:
        outcome: pass, fail or undecided.
        reason: in words and figures.
        more_items: about how many more items would decide, if they come out as those so far did;
            None where that is not what is missing.
        warnings: what a reader should know beside.
    """

    outcome: Outcome
    reason: str
    candidate: Score
    incumbent: Score | None
    difference: Difference | None
    more_items: int | None = None
    warnings: tuple[str, ...] = ()


def look_sizes(first: int | None, total: int, looks: int) -> tuple[int, ...]:
    """How many items each look asks, those of the looks before included.

    They grow by one factor from look to look, to all items in the last one. They do not depend on
    what was seen: with sizes chosen by what came out so far, a bound would hold less often than its
    confidence says.

    Args:
        first: of the first look; None: it asks all.
        total: of the suite.
        looks: how many there may be. A single one asks `first` and no more.
    """
    if first is None or first >= total:
        return (total,)
    if looks == 1:
        return (first,)
    sizes = [round(first * (total / first) ** (look / (looks - 1))) for look in range(looks)]
    return tuple(sorted({*sizes}))


def decide(
    items: Sequence[ItemScores],
    statuses: Mapping[str, Mapping[Status, int]],
    limits: GateLimits,
    *,
    seed: int = 0,
) -> Decision:
    """The gate's verdict from what both sides scored on the same items.

    It passes only where the one-sided lower bounds lie above the limits, fails only where an upper
    bound lies below one, and is undecided else.

    Args:
        items: every item of the suite once.
        statuses: how many samples had which status, by side: `candidate` and, where there is one,
            `incumbent`.
        limits: what is asked.
        seed: of the paired test, where it has to draw.

    Raises:
        ValueError: nothing is asked: neither a lowest score nor an incumbent to compare with.
    """
    compared = "incumbent" in statuses
    if limits.minScore is None and not compared:
        raise ValueError("nothing to decide: give a lowest score (minScore) or an incumbent")
    mine = score([i.candidate for i in items if i.candidate is not None], limits)
    others = _differences(items)
    theirs = (
        score([i.incumbent for i in items if i.incumbent is not None], limits) if compared else None
    )
    paired = difference(others, limits, seed=seed) if compared else None
    parts: list[_Part] = []
    if limits.minScore is not None:
        parts.append(_score_part(mine, limits.minScore, limits))
    if paired is not None:
        parts.append(_difference_part(others, paired, limits))

    def decision(outcome: Outcome, reason: str, more: int | None = None) -> Decision:
        warnings = _warnings(items, limits, mine, paired)
        return Decision(outcome, reason, mine, theirs, paired, more, tuple(warnings))

    if masked := _too_many_masked(statuses, limits.maxMasked):
        return decision("undecided", masked)
    fewest = min([mine.items] + ([paired.items] if paired else []))
    if fewest < limits.minItems:
        return decision(
            "undecided",
            f"{fewest} items could be judged, {limits.minItems} are asked for",
            limits.minItems - fewest,
        )
    for outcome in ("fail", "undecided"):
        found = [part for part in parts if part.outcome == outcome]
        if found:
            more = [part.more for part in found if part.more is not None]
            return decision(
                outcome,
                "; ".join(part.reason for part in found),
                max(more) if len(more) == len(found) and outcome == "undecided" else None,
            )
    return decision("pass", "; ".join(part.reason for part in parts))


@dataclass(frozen=True)
class _Part:
    outcome: Outcome
    reason: str
    more: int | None = None


def _score_part(mine: Score, least: float, limits: GateLimits) -> _Part:
    said = f"score {mine.mean:.4f} on {mine.items} items"
    if mine.bound.low >= least:
        return _Part("pass", f"{said}, at least {mine.bound.low:.4f}, limit {least:g}")
    if mine.bound.high < least:
        return _Part("fail", f"{said}, at most {mine.bound.high:.4f}, below the limit {least:g}")
    total = mine.mean * mine.items

    def decided(items: int) -> bool:
        bound = wilson(total / mine.items * items, items, limits.look_confidence, sides=1)
        return bound.low >= least or bound.high < least

    return _undecided(
        f"{said}, between {mine.bound.low:.4f} and {mine.bound.high:.4f}, limit {least:g}",
        mine.items,
        decided,
    )


def _difference_part(differences: Sequence[float], paired: Difference, limits: GateLimits) -> _Part:
    most = limits.maxRegression
    said = f"difference {paired.mean:+.4f} on {paired.items} items"
    low, high = paired.bound.low, paired.bound.high
    if low > -most:
        return _Part("pass", f"{said}, at least {low:+.4f}, limit {-most:+g}")
    if high < -most:
        return _Part("fail", f"{said}, at most {high:+.4f}, below the limit {-most:+g}")
    better = math.fsum(d for d in differences if d > 0)
    worse = -math.fsum(d for d in differences if d < 0)

    def decided(items: int) -> bool:
        scale = items / paired.items
        bound = tango(better * scale, worse * scale, items, limits.look_confidence, sides=1)
        return bound.low > -most or bound.high < -most

    return _undecided(
        f"{said}, between {low:+.4f} and {high:+.4f}, limit {-most:+g}", paired.items, decided
    )


def _undecided(said: str, items: int, decided: Callable[[int], bool]) -> _Part:
    """Adds how many items would decide: bounds narrow with them, so a search by halves finds it."""
    if items == 0:
        return _Part("undecided", said)
    high = items
    while not decided(high):
        high *= 2
        if high > _MOST_ITEMS:
            return _Part("undecided", f"{said}: no number of items would decide")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    more = max(1, high - items)
    return _Part("undecided", f"{said}: about {more} more items would decide", more)


def _too_many_masked(statuses: Mapping[str, Mapping[Status, int]], most: float) -> str:
    told = []
    for side, counts in statuses.items():
        total, masked = sum(counts.values()), sum(counts.get(status, 0) for status in MASKED)
        if total == 0 or masked / total > most:
            named = ", ".join(
                f"{counts[status]} {status}" for status in sorted(MASKED) if counts.get(status)
            )
            told.append(
                f"{side}: {masked} of {total} answers could not be judged ({named}), "
                f"at most {most:.1%} may be"
                if total
                else f"{side}: no answer at all"
            )
    return "; ".join(told)


def _warnings(
    items: Sequence[ItemScores], limits: GateLimits, mine: Score, paired: Difference | None
) -> list[str]:
    """Says where the items that could not be judged might turn the verdict."""
    hidden = [i for i in items if i.candidate is None]
    if not hidden:
        return []
    told = []
    worst = mine.mean * mine.items / (mine.items + len(hidden))
    if limits.minScore is not None and worst < limits.minScore <= mine.mean:
        told.append(
            f"if the {len(hidden)} items that could not be judged were wrong, "
            f"the score were {worst:.4f}, below the limit {limits.minScore:g}"
        )
    if paired is not None:
        lost = [i.incumbent for i in hidden if i.incumbent is not None]
        count = paired.items + len(lost)
        worst = (paired.mean * paired.items - math.fsum(lost)) / count if count else 0.0
        if worst < -limits.maxRegression <= paired.mean:
            told.append(
                f"if the candidate's {len(hidden)} items that could not be judged were wrong, "
                f"the difference were {worst:+.4f}, below the limit {-limits.maxRegression:+g}"
            )
    return told


def _differences(items: Sequence[ItemScores]) -> list[float]:
    # Means of equal samples in another order may differ by a rounding: that is no difference.
    return [
        round(item.candidate - item.incumbent, 12)
        for item in items
        if item.candidate is not None and item.incumbent is not None
    ]
