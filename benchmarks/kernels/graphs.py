"""Arms too short to be launched one by one: several calls in one CUDA graph, timed per call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.common import Row, say
from benchmarks.kernels.measure import Arm, Timing

Step = Callable[[], object]


def graphed(make: Callable[[], Step], times: int) -> Step:
    """A function that calls a step several times, from a graph where a graph can hold it.

    Args:
        make: gives the step.
        times: how many calls.
    """
    step = make()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(times):
                step()
    except Exception as error:  # a peer may ask the device for a number, or draw one on the host
        say(f"no graph: {type(error).__name__}: {str(error).strip().splitlines()[0]}")

        def plainly() -> None:
            for _ in range(times):
                step()

        return plainly
    replay: Step = graph.replay
    return replay


def each(timings: dict[str, Timing], times: int) -> dict[str, Timing]:
    """Timings of one call each."""
    return {
        name: replace(timing, milliseconds=tuple(ms / times for ms in timing.milliseconds))
        for name, timing in timings.items()
    }


def against(
    what: str, ours: str, peers: Sequence[str], timings: dict[str, Timing], faster: float
) -> list[Row]:
    """How many times as fast as each of some peers ours is, and whether that is the goal.

    Args:
        what: was computed.
        ours: the name of our arm.
        peers: names of theirs; those that did not run are left out.
        timings: of those that ran.
        faster: the goal.
    """
    found = []
    for name in peers:
        if name in timings and ours in timings:
            speed = timings[name].median / timings[ours].median
            found.append(
                Row(
                    f"{what}: {ours} against {name}",
                    f"{speed:.2f}x as fast",
                    f">= {faster:g}x",
                    speed >= faster,
                )
            )
    return found


def arms(made: dict[str, Callable[[], Step]], times: int, ours: Sequence[str]) -> list[Arm]:
    """One arm for each step, called `times` times a run."""

    def bound(make: Callable[[], Step]) -> Callable[[], Step]:
        return lambda: graphed(make, times)

    return [Arm(name, bound(make), ours=name in ours) for name, make in made.items()]
