"""Arms too short to be launched one by one: several calls in one CUDA graph, timed per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.common import Row, say
from benchmarks.kernels.measure import Arm, Timing, measure

Step = Callable[[], object]


def timed(
    made: Mapping[str, Callable[[], Step]], ours: str, rounds: int, times: int, *, inside: int = 1
) -> tuple[list[Arm], dict[str, Timing], list[str]]:
    """Times steps by turns, each from a CUDA graph where a graph can hold it.

    Args:
        made: makes each arm's step.
        ours: the name of our arm.
        rounds: how often each is timed.
        times: how often a step is called in one run.
        inside: how many computations a step has.

    Returns:
        The arms, the timings of one computation each, and notes on arms that did not run, or not
        from a graph.
    """
    peaks: dict[str, int] = {}
    notes: list[str] = []

    def bound(name: str, make: Callable[[], Step]) -> Callable[[], Step]:
        def graphed() -> Step:
            step = make()
            peaks[name] = _warm(step)
            return _captured(name, step, times, notes)

        return graphed

    arms = [Arm(name, bound(name, make), ours=name == ours) for name, make in made.items()]
    timings, failed = measure(arms, rounds, lambda: None)
    calls = times * inside
    return (
        arms,
        {
            name: Timing(tuple(ms / calls for ms in timing.milliseconds), peaks[name])
            for name, timing in timings.items()
        },
        [*notes, *(f"not run: {name}: {why}" for name, why in failed.items())],
    )


def _warm(step: Step) -> int:
    """Bytes that a step takes above what lies in memory, once it has run a few times."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        peak: int = torch.cuda.max_memory_allocated() - before
    torch.cuda.current_stream().wait_stream(side)
    return peak


def _captured(name: str, step: Step, times: int, notes: list[str]) -> Step:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(times):
                step()
    except Exception as error:  # a peer may ask the device for a number, or draw one on the host
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        say(f"no graph: {why}")
        notes.append(f"launched one by one, not from a graph: {name}: {why}")

        def plainly() -> None:
            for _ in range(times):
                step()

        return plainly

    def replayed() -> None:
        # The step holds the tensors at the addresses that the graph knows.
        assert step is not None
        graph.replay()

    return replayed


def against(
    what: str, ours: str, peer: str, timings: Mapping[str, Timing], faster: float
) -> list[Row]:
    """How many times as fast as a peer ours is, and whether that is the goal; nothing where one did
    not run.

    Args:
        what: was computed.
        ours: the name of our arm.
        peer: the name of theirs.
        timings: of those that ran.
        faster: the goal.
    """
    if peer not in timings or ours not in timings:
        return []
    speed = timings[peer].median / timings[ours].median
    return [
        Row(
            f"{what}: {ours} against {peer}",
            f"{speed:.2f}x as fast",
            f">= {faster:g}x",
            speed >= faster,
        )
    ]


def installed(names: Sequence[str]) -> str:
    """Versions of distributions, of those that are there."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
