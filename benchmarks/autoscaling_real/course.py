"""A real run and the same run simulated, both made alike and held against each other. Pure.

Times are seconds since the trace began unless it says otherwise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.autoscaling.model import Policy
from assay_operator.inference.profiles import resolve
from assay_operator.inference.scaling import policy_of
from benchmarks.autoscaling.ours import Ours
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.score import percentile
from benchmarks.autoscaling.simulate import Life, Run, World, simulate
from benchmarks.autoscaling.trace import Trace
from benchmarks.autoscaling_real.capacity import Capacity, felt_of
from benchmarks.common import Json


@dataclass(frozen=True)
class Felt:
    """What a user felt of a request.

    Attributes:
        at: when it was due.
        ttft: seconds from then to its first token; None where it failed. So is the next.
        itl: mean seconds between its tokens, 0 where there is only one.
    """

    at: float
    ttft: float | None
    itl: float | None

    def within(self, objective: Objective) -> bool:
        """Whether it is within both times."""
        if self.ttft is None or self.itl is None:
            return False
        return self.ttft <= objective.ttft_s and self.itl <= objective.itl_s


def felt(lines: Sequence[Json], begin: float, due: Sequence[float]) -> list[Felt]:
    """What the client noted, one for each request: one of which nothing was noted has failed.

    Args:
        lines: of the client.
        begin: when the trace began, in seconds since the epoch.
        due: when each request was.
    """
    noted = {line["number"]: line for line in lines}
    return [_felt(noted.get(number), begin, at) for number, at in enumerate(due)]


def _felt(line: Json | None, begin: float, at: float) -> Felt:
    if line is None or line["error"] is not None:
        return Felt(at, None, None)
    return Felt(at, line["first"] - begin - at, felt_of(line)[1])


def policy_for(spec: Mapping[str, object]) -> Policy:
    """The policy that the operator makes of an InferenceService's spec."""
    parsed = InferenceServiceSpec.model_validate(spec)
    engine = parsed.engine
    profile = resolve(engine.profile, engine.accelerator, engine.tuning, engine.parallelism)
    return policy_of(parsed, profile)


@dataclass(frozen=True)
class Moved:
    """A change of the number of replicas that are wanted."""

    at: float
    before: int
    after: int
    reason: str


Steps = Sequence[tuple[float, int]]
"""From each time on, so many; the first one from the beginning."""


@dataclass(frozen=True)
class Course:
    """What happened to a service, really or simulated.

    Attributes:
        wanted: replicas.
        ready: replicas that were routable.
        moves: in order.
        felt: each request.
        learned: what the operator in the end knew of a replica, as status.autoscaling has it.
    """

    wanted: Steps
    ready: Steps
    moves: Sequence[Moved]
    felt: Sequence[Felt]
    learned: Json


def simulated(
    piece: Trace, lead_s: float, found: Capacity, policy: Policy, objective: Objective
) -> Course:
    """The run as the simulator has it.

    Args:
        piece: the requests.
        lead_s: for how long the operator has watched the idle service when the trace begins.
        found: of a replica.
        policy: of the operator.
        objective: of the same service.
    """
    ours = Ours(policy)
    trace = [replace(one, at=one.at + lead_s) for one in piece]
    world = World(found.engine, found.start_s, policy.min, policy.max, 1, "round-robin")
    run = simulate(trace, ours, world)
    moves = [
        Moved(at - lead_s, decision.findings.before, decision.replicas, decision.reason)
        for at, decision in ours.decisions
    ]
    learned = ours.last.record["capacity"] if ours.last else {}
    return Course(
        wanted=[(-lead_s, 1), *((move.at, move.after) for move in moves)],
        ready=ready_steps(run.lives, found.start_s, lead_s),
        moves=moves,
        felt=[_served(run, index, lead_s, found.beside_s) for index in range(len(trace))],
        learned=learned,
    )


def _served(run: Run, index: int, lead_s: float, beside_s: float) -> Felt:
    one = run.served[index]
    if not one.times:
        return Felt(one.request.at - lead_s, None, None)
    return Felt(one.request.at - lead_s, one.ttft + beside_s, one.itl)


def ready_steps(lives: Sequence[Life], start_s: float, lead_s: float) -> Steps:
    """How many simulated replicas were routable; the first one has been so from the beginning."""
    changes = [(-lead_s, 1)]
    for number, life in enumerate(lives):
        ready_at = life.asked + start_s if number else 0.0
        if life.left <= ready_at:
            continue
        if number:
            changes.append((ready_at - lead_s, 1))
        if life.left != math.inf:
            changes.append((life.left - lead_s, -1))
    steps, number = [], 0
    for at, change in sorted(changes):
        number += change
        steps.append((at, number))
    return steps


def told_steps(told: Iterable[Json], name: str) -> Steps:
    """A number of the recorded statuses over time."""
    steps: list[tuple[float, int]] = []
    for each in told:
        value = each[name]
        if value is not None and (not steps or steps[-1][1] != value):
            steps.append((each["at"], value))
    return steps


def told_moves(told: Sequence[Json]) -> list[Moved]:
    """Where recorded statuses have another number of wanted replicas than those before."""
    known = [each for each in told if each["wanted"] is not None]
    return [
        Moved(after["at"], before["wanted"], after["wanted"], after["reason"])
        for before, after in pairwise(known)
        if before["wanted"] != after["wanted"]
    ]


def at_time(steps: Steps, at: float) -> int:
    """The number at a time."""
    return next(number for since, number in reversed(steps) if since <= at)


def each_second(steps: Steps, end: float) -> list[int]:
    """The number in the middle of each second from the beginning of the trace on."""
    values, index = [], 0
    for second in range(int(end)):
        while index + 1 < len(steps) and steps[index + 1][0] <= second + 0.5:
            index += 1
        values.append(steps[index][1])
    return values


@dataclass(frozen=True)
class Agreement:
    """How two courses of one number agree, second by second.

    Attributes:
        same: share of the time in which they are the same.
        close: in which they differ by one at most.
        difference: mean of the absolute difference.
    """

    same: float
    close: float
    difference: float


def agreement(one: Sequence[int], other: Sequence[int]) -> Agreement:
    """See `Agreement`; both have a number for each second of the same time."""
    apart = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return Agreement(
        same=sum(not each for each in apart) / len(apart),
        close=sum(each <= 1 for each in apart) / len(apart),
        difference=statistics.fmean(apart),
    )


def inside(one: Sequence[int], others: Sequence[Sequence[int]]) -> float:
    """The share of the time in which it is neither below nor above all of the others."""
    spans = [(min(each), max(each)) for each in zip(*others, strict=True)]
    pairs = zip(one, spans, strict=True)
    return statistics.fmean(low <= number <= high for number, (low, high) in pairs)


@dataclass(frozen=True)
class Figures:
    """A course in numbers, from the beginning of the trace to the end of the record.

    Attributes:
        replica_seconds: from being asked for until let go, of all replicas.
        most: replicas wanted at a time.
        scalings: changes of the wanted number.
        attained: share of the requests within both objectives, failed ones not.
        ttft, itl: share of them within either.
        failed: requests.
        ttft_p50, ttft_p95, itl_p50, itl_p95: seconds, of those that did not fail.
    """

    replica_seconds: float
    most: int
    scalings: int
    attained: float
    ttft: float
    itl: float
    failed: int
    ttft_p50: float
    ttft_p95: float
    itl_p50: float
    itl_p95: float


def figures(course: Course, objective: Objective, end: float) -> Figures:
    """See `Figures`."""
    wanted, number = each_second(course.wanted, end), len(course.felt)
    first = [one.ttft for one in course.felt if one.ttft is not None]
    gaps = [one.itl for one in course.felt if one.itl is not None]
    return Figures(
        replica_seconds=sum(wanted),
        most=max(wanted),
        scalings=sum(0 <= move.at < end for move in course.moves),
        attained=sum(one.within(objective) for one in course.felt) / number,
        ttft=sum(each <= objective.ttft_s for each in first) / number,
        itl=sum(each <= objective.itl_s for each in gaps) / number,
        failed=number - len(first),
        ttft_p50=percentile(first, 0.5),
        ttft_p95=percentile(first, 0.95),
        itl_p50=percentile(gaps, 0.5),
        itl_p95=percentile(gaps, 0.95),
    )
