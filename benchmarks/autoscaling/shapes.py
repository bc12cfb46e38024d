"""Synthetic traces: does a policy overshoot, does it swing?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.autoscaling.compare import STATIC, Outcome, Setup, replay, settings
from benchmarks.autoscaling.peers.bounds import Static
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.score import Score, score
from benchmarks.autoscaling.simulate import World, simulate
from benchmarks.autoscaling.trace import SYNTHETIC, Trace, synthetic


@dataclass(frozen=True)
class Shaped:
    """A policy on a synthetic trace.

    Attributes:
        trace: its name.
        policy: its name.
        text: its parameters.
        needed: replicas that, if they were always there, would do.
        score: of the whole trace.
    """

    trace: str
    policy: str
    text: str
    needed: int
    score: Score


def run(
    chosen: Mapping[str, Outcome], world: World, objective: Objective, target: float
) -> Iterator[Shaped]:
    """Every policy, with the setting that tuning chose on a trace, on every synthetic trace.

    Args:
        chosen: by the policy's name.
        world: of all.
        objective: by which requests are scored.
        target: share of requests that must be within it where replicas are said to do.
    """
    for name, shape in SYNTHETIC.items():
        setup = Setup(synthetic(name), world, settle=0.0, split=0.0, end=shape.length_s)
        wanted = {(one.policy, one.text) for one in chosen.values() if one.policy != STATIC}
        least = needed(setup.trace, world, objective, target)
        for setting in settings(setup, [objective]):
            if (setting.policy, setting.text) in wanted:
                found = score(replay(setup, setting), objective, 0.0, setup.end, setting.first)
                yield Shaped(name, setting.policy, setting.text, least, found)


def needed(trace: Trace, world: World, objective: Objective, target: float) -> int:
    """The fewest replicas that, always there, serve so many requests within the objective.

    The most that may be, where none do.
    """
    for replicas in range(world.least, world.most):
        done = simulate(trace, Static(replicas), replace(world, first=replicas))
        if sum(objective.met(one) for one in done.served) >= target * len(trace):
            return replicas
    return world.most
