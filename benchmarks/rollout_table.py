"""The table of benchmarks/rollout.py, from what was recorded. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.common import Json, Row, quantile, spread
from benchmarks.rollout_plain import Restarts
from benchmarks.rollout_requests import (
    Answer,
    Change,
    Seen,
    last_of_others,
    margin,
    seen,
    unpassed,
    untraced,
)

LISTED = 20
"""Failed requests and answers by weights that had not passed that the raw figures name."""


@dataclass(frozen=True)
class InPlace:
    """Rollouts into running engines.

    Attributes:
        record: of all requests from before the first to after the last.
        first: the version that was served before the first.
        changes: the rollouts.
        still: stretches between them in which nothing was rolled out: begin and end.
        new_pods: engine pods that were not there before.
    """

    record: Sequence[Answer]
    first: str
    changes: Sequence[Change]
    still: Sequence[tuple[float, float]]
    new_pods: int


@dataclass(frozen=True)
class Plain:
    """Rolling restarts of a plain Deployment.

    Attributes:
        restarts: how its pods were replaced.
        record: of all requests from before the first to after the last.
        changes: the restarts.
    """

    restarts: Restarts
    record: Sequence[Answer]
    changes: Sequence[Change]


def rows(rolled: InPlace, plains: Sequence[Plain]) -> list[Row]:
    """The figures."""
    times = [change.seconds for change in rolled.changes]
    during = [seen(rolled.record, change.began, change.ended) for change in rolled.changes]
    still = [seen(rolled.record, *stretch) for stretch in rolled.still]
    last = [last_of_others(rolled.record, change) for change in rolled.changes]
    strangers = len(unpassed(rolled.record, rolled.first, rolled.changes))
    answered = sum(not each.error for each in rolled.record)
    traced = answered - untraced(rolled.record)
    return [
        _failed(f"{len(times)} rollouts in place", rolled.record, "0 failed"),
        Row(
            f"Verified until all replicas serve, p50 / p99 of {len(times)}",
            f"{quantile(times, 0.5):.1f} s / {quantile(times, 0.99):.1f} s",
        ),
        Row("of which, medians", _phases(rolled.changes)),
        Row(
            "Verified until the last answer by the old weights, p50 / p99",
            f"{quantile(last, 0.5):.1f} s / {quantile(last, 0.99):.1f} s",
        ),
        *_pauses("rollouts in place", during),
        *_pauses("equal stretches without a rollout", still),
        Row(
            "answers that name the digest that made them",
            f"{traced} of {answered}",
            "all",
            traced == answered,
        ),
        Row("answers by a digest that had not passed then", str(strangers), "0", strangers == 0),
        Row("engine pods made anew", str(rolled.new_pods), "0", rolled.new_pods == 0),
        *(row for plain in plains for row in _plain(plain, times)),
    ]


def _plain(plain: Plain, times: Sequence[float]) -> list[Row]:
    own = [change.seconds for change in plain.changes]
    during = [seen(plain.record, change.began, change.ended) for change in plain.changes]
    ratio = statistics.median(own) / statistics.median(times)
    return [
        Row(f"{plain.restarts.name}: until all pods serve", spread(own, "s")),
        _failed(plain.restarts.name, plain.record),
        *_pauses(plain.restarts.name, during),
        Row(
            f"{plain.restarts.name} / rollout in place, medians",
            f"{ratio:.1f}x",
            "above 1x",
            ratio > 1,
        ),
    ]


def _failed(name: str, record: Sequence[Answer], goal: str = "") -> Row:
    failed = sum(each.error is not None for each in record)
    return Row(f"{name}: requests", f"{len(record)}, {failed} failed", goal, failed == 0)


def _pauses(name: str, stretches: Sequence[Seen]) -> tuple[Row, Row]:
    return (
        Row(f"{name}: longest time without an answer", _worst([each.gap for each in stretches])),
        Row(f"{name}: slowest request", _worst([each.slowest for each in stretches])),
    )


def _worst(values: Sequence[float]) -> str:
    """The median of the stretches, and the worst of them."""
    return f"{statistics.median(values):.2f} s, worst {max(values):.2f} s"


def _phases(changes: Sequence[Change]) -> str:
    durations = [change.durations() for change in changes]
    names = dict.fromkeys(name for each in durations for name in each)
    medians = {
        name: statistics.median(each[name] for each in durations if name in each) for name in names
    }
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items())


def least_margin(rolled: InPlace) -> float | None:
    """The shortest time from a passed gate to a request that the new weights answered."""
    found = [margin(rolled.record, change) for change in rolled.changes]
    return min((each for each in found if each is not None), default=None)


def raw(rolled: InPlace, plains: Sequence[Plain]) -> Json:
    """Everything measured, summarised for each change; single requests only where they failed or
    were answered by weights that had not passed."""
    strangers = unpassed(rolled.record, rolled.first, rolled.changes)
    return {
        "rollouts": [_change(rolled.record, change) for change in rolled.changes],
        "still": [asdict(seen(rolled.record, *stretch)) for stretch in rolled.still],
        "failed": _failures(rolled.record),
        "unpassed": [asdict(each) for each in strangers[:LISTED]],
        "plain": [
            {
                "name": plain.restarts.name,
                "restarts": [_change(plain.record, change) for change in plain.changes],
                "failed": _failures(plain.record),
            }
            for plain in plains
        ],
    }


def _change(record: Sequence[Answer], change: Change) -> Json:
    return {
        "version": change.version,
        "seconds": change.seconds,
        "phases": change.durations(),
        "seen": asdict(seen(record, change.began, change.ended)),
        "last_of_others": last_of_others(record, change),
        "margin": margin(record, change),
    }


def _failures(record: Sequence[Answer]) -> list[Json]:
    return [asdict(each) for each in record if each.error][:LISTED]
