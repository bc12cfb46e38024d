"""Requests over time: read from a file, or made."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

PROMPT, OUTPUT = 2048, 28
"""Mean lengths of the Azure code trace, in tokens; synthetic requests are drawn around them."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        at: arrival, in seconds since the trace began.
        prompt: tokens, at least 1.
        output: tokens, at least 1.
    """

    at: float
    prompt: int
    output: int


Trace = Sequence[Request]
Rate = Callable[[float], float]
"""Requests a second at a time in seconds."""


def read(path: Path) -> list[Request]:
    """A trace in the format of the Azure LLM inference traces.

    Columns TIMESTAMP (ISO 8601, any number of digits of a second), ContextTokens, GeneratedTokens;
    see Patel et al., "Splitwise", ISCA 2024, and Azure/AzurePublicDataset. Lines need not be in
    order of time.

    Raises:
        OSError: it cannot be read.
        ValueError: it has other columns, no line, or a line that is not a request.
    """
    with path.open(newline="") as file:
        lines = csv.DictReader(file)
        wanted = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
        if missing := wanted - set(lines.fieldnames or ()):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}")
        found = [
            (_seconds(line["TIMESTAMP"]), int(line["ContextTokens"]), int(line["GeneratedTokens"]))
            for line in lines
        ]
    if not found:
        raise ValueError(f"{path}: no requests")
    found.sort()
    start = found[0][0]
    return [Request(at - start, max(1, prompt), max(1, output)) for at, prompt, output in found]


def _seconds(stamp: str) -> float:
    # Azure writes seven digits of a second, of which Python reads six.
    whole, _, digits = stamp.partition(".")
    return datetime.fromisoformat(whole).timestamp() + (float(f"0.{digits}") if digits else 0.0)


def stretched(trace: Trace, factor: float) -> list[Request]:
    """The same requests, `factor` times further apart."""
    return [replace(request, at=request.at * factor) for request in trace]


def multiplied(trace: Trace, copies: int, split: float, end: float) -> list[Request]:
    """As if `copies` services like this one, whose users know nothing of each other, were one.

    Copy k has each of the two parts of the trace rotated in itself by k / copies of its length. So
    no request changes parts, and what is learned from the first one stays unknown to the second.

    Args:
        trace: in order of time.
        copies: at least 1.
        split: where the second part begins, in seconds.
        end: where it ends.
    """

    def rotated(at: float, share: float) -> float:
        begin, length = (0.0, split) if at < split else (split, end - split)
        return begin + (at - begin + share * length) % length

    found = [
        replace(request, at=rotated(request.at, copy / copies))
        for copy in range(copies)
        for request in trace
    ]
    return sorted(found, key=lambda request: request.at)


def poisson(rate: Rate, peak: float, length_s: float, seed: int) -> list[Request]:
    """Random arrivals whose rate changes over time.

    Thinning, after Lewis and Shedler (1979). Lengths are exponential, cut at four times the mean.

    Args:
        rate: requests a second, never above `peak`.
        peak: the highest rate.
        length_s: of the trace.
        seed: of the randomness; the same seed makes the same trace.
    """

    def arrivals() -> Iterator[Request]:
        draw = random.Random(seed)
        at = 0.0
        while (at := at + draw.expovariate(peak)) < length_s:
            if draw.random() * peak < rate(at):
                prompt = min(4 * PROMPT, draw.expovariate(1 / PROMPT))
                output = min(4 * OUTPUT, draw.expovariate(1 / OUTPUT))
                yield Request(at, 1 + int(prompt), 1 + int(output))

    return list(arrivals())


def synthetic(name: str, seed: int = 1) -> list[Request]:
    """One of the traces of `SYNTHETIC`."""
    shape = SYNTHETIC[name]
    return poisson(shape.rate, shape.peak, shape.length_s, seed)


@dataclass(frozen=True)
class Shape:
    """How a synthetic trace's rate changes.

    Attributes:
        text: in words.
        rate: requests a second.
        peak: the highest rate.
        length_s: of the trace.
    """

    text: str
    rate: Rate
    peak: float
    length_s: float


LOW, HIGH = 2.0, 12.0
SYNTHETIC = {
    "step": Shape(
        "2 requests/s, from 20 min on 12",
        lambda at: LOW if at < 1200 else HIGH,
        HIGH,
        3600,
    ),
    "spike": Shape(
        "2 requests/s; 12 for two minutes after 20 min",
        lambda at: HIGH if 1200 <= at < 1320 else LOW,
        HIGH,
        3600,
    ),
    "sawtooth": Shape(
        "rises from 2 to 12 requests/s in 10 min, falls back at once; six times",
        lambda at: LOW + (HIGH - LOW) * (at % 600) / 600,
        HIGH,
        3600,
    ),
    "night": Shape(
        "a day in two hours: a sine between 0.2 and 12 requests/s",
        lambda at: 0.2 + (HIGH - 0.2) * (0.5 - 0.5 * math.cos(2 * math.pi * at / 7200)),
        HIGH,
        7200,
    ),
    "silence": Shape(
        "12 requests/s for 10 min, none for 30 min, 12 again",
        lambda at: 0.0 if 600 <= at < 2400 else HIGH,
        HIGH,
        3000,
    ),
}
