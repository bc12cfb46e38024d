"""How the kernel benchmarks take time and memory, on one CUDA device.

Arms take turns, in another order each round: a device that slows down slows all of them, and what
ran before, which heats it, is another arm each time. Time is between two events on the device;
memory is the allocator's peak above what lay there before.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import Json, Row, quantile, say

WARM = 3
"""Runs before the first one that is timed."""


@dataclass(frozen=True)
class Arm:
    """One way to compute the same.

    Attributes:
        name: in tables.
        make: gives the function that is timed; it may fail where its library is missing, or its
            first run may.
        ours: whether it is ours.
        counts: whether a goal compares with it (or, where ours, is about it).
    """

    name: str
    make: Callable[[], Callable[[], object]]
    ours: bool = False
    counts: bool = True


@dataclass(frozen=True)
class Timing:
    """What was measured of an arm.

    Attributes:
        milliseconds: of each run.
        peak: bytes above what lay in memory before.
    """

    milliseconds: tuple[float, ...]
    peak: int

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    def as_json(self) -> Json:
        return {"milliseconds": self.milliseconds, "peak": self.peak}


@dataclass(frozen=True)
class Ceilings:
    """What the device was seen to do in this run.

    Attributes:
        flops: bf16 operations a second, of a large product.
        bandwidth: bytes a second, read and written, of a large copy.
    """

    flops: float
    bandwidth: float

    def floor(self, flops: float, moved: float) -> float:
        """The least milliseconds that so many operations and bytes can take."""
        return 1e3 * max(flops / self.flops, moved / self.bandwidth)


def measure(
    arms: Sequence[Arm], rounds: int, reset: Callable[[], None]
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Runs arms by turns.

    Args:
        arms: what to run.
        rounds: how often each is timed.
        reset: drops what a run left (gradients); not timed.

    Returns:
        The timings by name, and of those that could not run the reason.
    """
    ready: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for arm in arms:
        say(f"{arm.name}: first runs")
        try:
            run = arm.make()
            peaks[arm.name] = _warm(run, reset)
            ready[arm.name] = run
        except Exception as error:  # a peer may fail in any way; the table says how
            failed[arm.name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
            say(f"{arm.name}: {failed[arm.name]}")
        reset()
        gc.collect()
        torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        names = list(ready)
        random.Random(turn).shuffle(names)
        for name in names:
            # The allocator's pieces are another arm's; one run makes them this one's.
            ready[name]()
            reset()
            times[name] += _timed(ready[name], reset)
    return {n: Timing(tuple(times[n]), peaks[n]) for n in ready}, failed


def _warm(run: Callable[[], object], reset: Callable[[], None]) -> int:
    for _ in range(WARM):
        run()
        reset()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    peak: int = torch.cuda.max_memory_allocated() - before
    reset()
    return peak


def _timed(run: Callable[[], object], reset: Callable[[], None], each: int = 3) -> list[float]:
    found = []
    for _ in range(each):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end))
        reset()
    return found


def ceilings() -> Ceilings:
    """Measures the device: a bf16 product of 8,192 cubed on random numbers, and a copy of 2 GiB."""
    size, tries = 8192, 10
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(one)
    source, target = (torch.empty(2**31, device="cuda", dtype=torch.uint8) for _ in range(2))

    def least(run: Callable[[], object]) -> float:
        run()
        return statistics.median(_timed(run, lambda: None, tries)) / 1e3

    return Ceilings(
        flops=2 * size**3 / least(lambda: torch.mm(one, other, out=out)),
        bandwidth=2 * 2**31 / least(lambda: target.copy_(source)),
    )


def rows(
    what: str,
    arms: Sequence[Arm],
    timings: Mapping[str, Timing],
    *,
    flops: float,
    moved: float,
    ceiling: Ceilings,
) -> list[Row]:
    """One line an arm: median with p20 and p80, rate, share of the roofline, memory.

    Args:
        what: was computed.
        arms: in the order of the table.
        timings: of those that ran.
        flops: operations that the task needs, whoever does it.
        moved: bytes that it has to move.
        ceiling: of the device.
    """
    found = []
    floor = ceiling.floor(flops, moved)
    for arm in arms:
        if arm.name not in timings:
            continue
        timing = timings[arm.name]
        low, high = (quantile(timing.milliseconds, share) for share in (0.2, 0.8))
        bound = flops / ceiling.flops >= moved / ceiling.bandwidth
        rate = (
            f"{flops / timing.median / 1e9:.0f} TFLOP/s"
            if bound
            else f"{moved / timing.median / 1e6:.0f} GB/s"
        )
        found.append(
            Row(
                f"{what}: {arm.name}",
                f"{timing.median:.3g} ms (p20 {low:.3g}, p80 {high:.3g}), {rate}, "
                f"{floor / timing.median:.2g} of the roofline, {_bytes(timing.peak)}",
            )
        )
    return found


def _bytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def goals(
    what: str,
    arms: Sequence[Arm],
    timings: Mapping[str, Timing],
    *,
    faster: float,
    memory: float,
    held: int,
) -> list[Row]:
    """Our arms that count beside the best and the smallest of the peers that count.

    Args:
        what: was computed.
        arms: all of them.
        timings: of those that ran.
        faster: how many times as fast as the best peer ours should be.
        memory: how many times the memory of the smallest peer it may take.
        held: bytes of the inputs, which every arm has in memory.
    """
    peers = {a.name: timings[a.name] for a in arms if a.counts and not a.ours and a.name in timings}
    found = []
    for arm in arms:
        if not (arm.ours and arm.counts and arm.name in timings and peers):
            continue
        mine = timings[arm.name]
        best = min(peers, key=lambda name: peers[name].median)
        least = min(peers, key=lambda name: peers[name].peak)
        speed = peers[best].median / mine.median
        space = mine.peak / max(1, peers[least].peak)
        whole = (mine.peak + held) / (peers[least].peak + held)
        found += [
            Row(
                f"{what}: {arm.name} against the best peer ({best})",
                f"{speed:.2f}x as fast",
                f">= {faster}x",
                speed >= faster,
            ),
            Row(
                f"{what}: {arm.name}, memory against the smallest peer ({least})",
                f"{space:.2f}x above the inputs, {whole:.2f}x with them",
                f"<= {memory}x",
                space <= memory,
            ),
        ]
    return found


def about(device: Any = None) -> str:
    """The device in one line."""
    seen = torch.cuda.get_device_properties(device or 0)
    return (
        f"{seen.name}, {seen.multi_processor_count} multiprocessors, "
        f"{seen.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )
