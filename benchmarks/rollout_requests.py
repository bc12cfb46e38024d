"""What a client's record says of a change of weights: failures, pauses, and who answered. Pure.

All times are seconds since the epoch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.common import Json


@dataclass(frozen=True)
class Answer:
    """One request.

    Attributes:
        began: when it was sent.
        ended: when it was answered, or failed.
        error: why it failed; None where it was answered.
        version: of the weights that answered, as the engine itself said in the answer; None where
            it did not say.
    """

    began: float
    ended: float
    error: str | None
    version: str | None


@dataclass(frozen=True)
class Change:
    """One change of the weights.

    Attributes:
        version: of the weights that came.
        began: when it was allowed or asked for.
        passed: when these weights had passed the gate; where there is none, `began`.
        ended: when all replicas served them.
        phases: when each phase of it was first seen.
    """

    version: str
    began: float
    passed: float
    ended: float
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began

    def durations(self) -> dict[str, float]:
        """Seconds in each phase, in their order."""
        order = sorted(self.phases, key=lambda name: self.phases[name])
        times = [*(self.phases[name] for name in order), self.ended]
        return {name: times[i + 1] - times[i] for i, name in enumerate(order)}


@dataclass(frozen=True)
class Seen:
    """What clients saw in a stretch of time.

    Attributes:
        seconds: how long it was.
        requests: under way in it.
        failed: of these.
        gap: the longest time in which no answer came, in seconds.
        slowest: the longest request, in seconds.
        median: of the requests, in seconds.
    """

    seconds: float
    requests: int
    failed: int
    gap: float
    slowest: float
    median: float


def answers(lines: Iterable[Json]) -> list[Answer]:
    """The record of `tests.e2e.clients.Load`, in the order of the ends."""
    found = [
        Answer(line["at"], line["at"] + line["s"], line["error"], line["version"]) for line in lines
    ]
    return sorted(found, key=lambda each: each.ended)


def seen(record: Sequence[Answer], begin: float, end: float) -> Seen:
    """What clients saw from `begin` to `end`.

    Raises:
        ValueError: no request was under way.
    """
    there = [each for each in record if each.ended >= begin and each.began <= end]
    if not there:
        raise ValueError(f"no request from {begin} to {end}")
    came = [each.ended for each in there if not each.error and each.ended <= end]
    times = [begin, *sorted(came), end]
    seconds = [each.ended - each.began for each in there]
    return Seen(
        seconds=end - begin,
        requests=len(there),
        failed=sum(each.error is not None for each in there),
        gap=max(after - before for before, after in pairwise(times)),
        slowest=max(seconds),
        median=statistics.median(seconds),
    )


def unpassed(record: Iterable[Answer], first: str, changes: Sequence[Change]) -> list[Answer]:
    """Answers by weights that might not answer a request that was sent when theirs was.

    Weights may from the moment that they passed until others are served by all. That they passed
    in an earlier change is no excuse: then they were taken away again. Answers that name no
    weights are not among these.

    Args:
        record: of all requests.
        first: the weights that were served before the first change.
        changes: all of them, one after the other.
    """
    ends = [*(change.ended for change in changes), math.inf]
    times = [(first, -math.inf, ends[0])]
    times += [
        (change.version, change.passed, end) for change, end in zip(changes, ends[1:], strict=True)
    ]
    return [
        each
        for each in record
        if each.version is not None
        and not any(
            each.version == version and begin <= each.began < end for version, begin, end in times
        )
    ]


def untraced(record: Iterable[Answer]) -> int:
    """How many answers do not say which weights made them."""
    return sum(each.error is None and each.version is None for each in record)


def last_of_others(record: Iterable[Answer], change: Change) -> float:
    """Seconds from a change's begin to the last answer in it by other weights; 0 without any."""
    ends = [
        each.ended - change.began
        for each in record
        if each.version not in {None, change.version} and change.began <= each.ended <= change.ended
    ]
    return max(ends, default=0.0)


def margin(record: Iterable[Answer], change: Change) -> float | None:
    """Seconds from the passed gate to the first request that the new weights answered; None where
    they answered none in the change. Below 0 it would have been before."""
    begins = [
        each.began - change.passed
        for each in record
        if each.version == change.version and change.began <= each.began <= change.ended
    ]
    return min(begins, default=None)
