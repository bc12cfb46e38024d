"""Every policy with every setting: tuned on the first part of a trace, judged on the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from benchmarks.autoscaling.ours import Ours
from benchmarks.autoscaling.peers.aibrix import Apa
from benchmarks.autoscaling.peers.bounds import Foresight, Static
from benchmarks.autoscaling.peers.dynamo import TREND, Planner
from benchmarks.autoscaling.peers.knative import Kpa
from benchmarks.autoscaling.peers.kubernetes import Hpa, Keda
from benchmarks.autoscaling.policy import Objective, Policy
from benchmarks.autoscaling.score import Score, score
from benchmarks.autoscaling.simulate import Run, World, simulate
from benchmarks.autoscaling.trace import Trace

OURS, UNTUNED, STATIC, FORESIGHT = "Assay", "Assay untuned", "static", "foresight"
PEERS = ("HPA", "KEDA", "Knative KPA", "AIBrix APA", "Dynamo planner")
POLICIES = (OURS, UNTUNED, *PEERS, STATIC, FORESIGHT)
WINDOWS_S = (60.0, 300.0, 600.0, 900.0)
"""How long a policy may wait before it lets replicas go."""
GRID = 24
"""Settings of each policy that is tuned."""


@dataclass(frozen=True)
class Setup:
    """What policies are compared under.

    Attributes:
        trace: in order of time.
        world: engines, start-up time and bounds.
        settle: seconds; what comes before is not scored, since all begin with one replica.
        split: seconds; requests before it are for tuning, those from it on for judging.
        end: seconds; where GPU-hours cease to count.
    """

    trace: Trace
    world: World
    settle: float
    split: float
    end: float


@dataclass(frozen=True)
class Setting:
    """A policy with its parameters.

    Attributes:
        policy: its name.
        text: its parameters, in words.
        make: a fresh one.
        objective: that it was made for; None where it knows of none, and so serves all alike.
        first: replicas with which it begins.
    """

    policy: str
    text: str
    make: Callable[[], Policy]
    objective: Objective | None = None
    first: int = 1


@dataclass(frozen=True)
class Outcome:
    """How a setting did.

    Attributes:
        policy: its name.
        text: its parameters, in words.
        tuned: its score on the first part.
        judged: its score on the rest.
    """

    policy: str
    text: str
    tuned: Score
    judged: Score


def settings(setup: Setup, objectives: Sequence[Objective]) -> Iterator[Setting]:
    """All policies with all their settings, and those once for each objective that know of it.

    `GRID` settings of each, but of the fixed number as many as there may be replicas.
    """
    world = setup.world
    for window_s in WINDOWS_S:
        for load in (1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
            yield _setting("HPA", Hpa, target=load, down_s=window_s)
            yield _setting("AIBrix APA", Apa, target=load, cooldown_s=window_s)
        for waiting in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
            yield _setting("KEDA", Keda, target=waiting, down_s=window_s)
    for delay_s in (0.0, *WINDOWS_S[1:]):
        for concurrency in (1.0, 2.0, 4.0, 6.0, 8.0, 12.0):
            yield _setting("Knative KPA", Kpa, concurrency=concurrency, delay_s=delay_s)
    for objective in objectives:
        yield from _planners(world, objective)
    for replicas in range(world.least, world.most + 1):
        make = partial(Static, replicas)
        yield Setting(STATIC, f"replicas={replicas}", make, first=replicas)
    for utilisation, bin_s in product((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), (2.0, 5.0, 10.0, 30.0)):
        known = partial(Foresight, setup.trace, world.engine, world.start_s, bin_s, utilisation)
        yield Setting(FORESIGHT, f"utilisation={utilisation}, bin_s={bin_s:g}", known)
    for objective in objectives:
        yield from _ours(world, objective)


def _setting(name: str, make: Callable[..., Policy], **parameters: float) -> Setting:
    text = ", ".join(f"{key}={value:g}" for key, value in parameters.items())
    return Setting(name, text, partial(make, **parameters))


def _planners(world: World, objective: Objective) -> Iterator[Setting]:
    # Its one knob for safety is to be told of a tighter objective.
    for interval_s, load, aim in product((30.0, 60.0, 180.0), (False, True), (1.0, 0.4, 0.2, 0.1)):
        told = Objective(objective.name, aim * objective.ttft_s, aim * objective.itl_s)
        make = partial(Planner, world.engine, told, interval_s, TREND, load)
        text = f"interval_s={interval_s:g}, objective={aim:g}{', load' if load else ''}"
        yield Setting("Dynamo planner", text, make, objective)


def _ours(world: World, objective: Objective) -> Iterator[Setting]:
    make = partial(Ours.of, objective, world.least, world.most)
    grid = product((0.8, 0.9, 0.95, 0.98), (0.0, 0.5, 0.8), (300.0, 900.0))
    for attainment, surge, window_s in grid:
        one = _setting(
            OURS, make, attainment=attainment, surge_quantile=surge, down_window_s=window_s
        )
        yield replace(one, objective=objective)
    yield Setting(UNTUNED, "defaults", make, objective)


def compare(
    setup: Setup,
    objectives: Sequence[Objective],
    jobs: Sequence[Setting],
    processes: int = 1,
) -> Iterator[tuple[str, Outcome]]:
    """Runs every setting once, over the whole trace, and scores its two parts.

    Args:
        setup: the same for all.
        objectives: under each of which those are scored that serve all alike.
        jobs: the settings.
        processes: that share the work.

    Yields:
        The objective's name with an outcome, as it becomes known, in the order of the settings.
    """
    work = partial(_scored, setup, objectives)
    if processes == 1:
        for job in jobs:
            yield from work(job)
        return
    with ProcessPoolExecutor(processes) as pool:
        for found in pool.map(work, jobs, chunksize=4):
            yield from found


def _scored(
    setup: Setup, objectives: Sequence[Objective], setting: Setting
) -> list[tuple[str, Outcome]]:
    run = replay(setup, setting)
    found = []
    for objective in objectives:
        if setting.objective in {None, objective}:
            tuned = score(run, objective, setup.settle, setup.split, setting.first)
            judged = score(run, objective, setup.split, setup.end, setting.first)
            found.append((objective.name, Outcome(setting.policy, setting.text, tuned, judged)))
    return found


def replay(setup: Setup, setting: Setting) -> Run:
    """The whole trace under one setting."""
    return simulate(setup.trace, setting.make(), replace(setup.world, first=setting.first))


def choose(outcomes: Sequence[Outcome], target: float) -> Outcome:
    """What tuning chooses: the cheapest setting that attained the target on the first part.

    Where none did, the one that came nearest to it, and of equals the cheapest.

    Args:
        outcomes: of one policy, at least one.
        target: share of requests within the objective.
    """
    good = [one for one in outcomes if one.tuned.attained >= target]
    if good:
        return min(good, key=lambda one: (one.tuned.gpu_hours, -one.tuned.attained))
    return max(outcomes, key=lambda one: (one.tuned.attained, -one.tuned.gpu_hours))


def chosen(outcomes: Sequence[Outcome], target: float) -> dict[str, Outcome]:
    """What tuning chooses for each policy, by its name."""
    return {
        policy: choose([one for one in outcomes if one.policy == policy], target)
        for policy in POLICIES
    }


def front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Of these, those than which none is both better and cheaper on the judged part."""
    found: list[Outcome] = []
    for one in sorted(outcomes, key=lambda one: (one.judged.gpu_hours, -one.judged.attained)):
        if not found or one.judged.attained > found[-1].judged.attained:
            found.append(one)
    return found
