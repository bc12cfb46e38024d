"""A piece of a trace scaled down, and what a real replica can do, as the simulator has it. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from assay_operator.autoscaling import queueing
from assay_operator.autoscaling.model import Policy
from benchmarks.autoscaling import fit
from benchmarks.autoscaling.engine import Engine
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.score import most_within
from benchmarks.autoscaling.trace import Request, Trace
from benchmarks.common import Json

SLOTS, KV_TOKENS, CHUNK = 4, 8192, 2048
"""Requests that an engine runs at once, tokens of its cache, prompt tokens of one batch."""
PROMPT_SCALE, LONGEST_PROMPT, LONGEST_OUTPUT = 1 / 32, 400, 200
PEAK_REPLICAS = 1.0
"""The piece's busiest minute comes at so many times what one replica bears."""
MINUTE_S = 60.0
ITL_FACTOR = 3.0
"""The objective for the time between tokens, as so many times that of one who is alone."""
_BISECTIONS = 30
_LONGEST_REQUEST_S = 3.0


def shortened(trace: Trace, begin: float, seconds: float) -> list[Request]:
    """A piece of a trace with its lengths scaled down, its first moment being 0.

    Raises:
        ValueError: it has no request.
    """
    found = [
        Request(
            one.at - begin,
            min(LONGEST_PROMPT, max(4, round(one.prompt * PROMPT_SCALE))),
            min(LONGEST_OUTPUT, max(2, one.output)),
        )
        for one in trace
        if begin <= one.at < begin + seconds
    ]
    if not found:
        raise ValueError(f"the trace has no request from {begin:g} s on for {seconds:g} s")
    return found


def thinned(trace: Trace, share: float, seed: int) -> list[Request]:
    """So many of the requests, drawn at random; the same seed draws the same."""
    draw = random.Random(seed)
    return [one for one in trace if draw.random() < share]


def busiest(trace: Trace, window: float = MINUTE_S) -> float:
    """The highest rate over a window, in requests a second."""
    return most_within([one.at for one in trace], window) / window


def felt_of(line: Json) -> tuple[float, float]:
    """Of a request that did not fail, seconds from its sending to its first token, and between
    its tokens on average."""
    gaps = line["tokens"] - 1
    itl = (line["last"] - line["first"]) / gaps if gaps else 0.0
    return line["first"] - line["sent"], itl


@dataclass(frozen=True)
class Rounds:
    """So many requests of one length at once, again and again.

    Attributes:
        clients: how many.
        prompt: tokens of each.
        output: likewise.
        lines: of the client, in the order of the requests.
    """

    clients: int
    prompt: int
    output: int
    lines: Sequence[Json]

    @property
    def ttft_s(self) -> float:
        """Median time to the first token."""
        return statistics.median(felt_of(line)[0] for line in self.lines)

    @property
    def itl_s(self) -> float:
        """Median over the rounds of the time between tokens of the request that began last: what
        it has are steps in which all ran and nothing else happened."""
        began = (max(group, key=lambda line: float(line["first"])) for group in self._groups())
        return statistics.median(felt_of(line)[1] for line in began)

    @property
    def tokens_s(self) -> float:
        """Output tokens a second, from the sending of a round to its end, all rounds together."""
        took: float = sum(
            max(line["last"] for line in group) - min(line["sent"] for line in group)
            for group in self._groups()
        )
        return len(self.lines) * self.output / took

    def _groups(self) -> Iterator[Sequence[Json]]:
        for begin in range(0, len(self.lines), self.clients):
            yield self.lines[begin : begin + self.clients]


@dataclass(frozen=True)
class Loop:
    """Clients that never pause, with requests of the trace's lengths.

    Attributes:
        clients: how many.
        lengths: of the requests, prompt and output in tokens.
        lines: of the client, in the order of the requests.
    """

    clients: int
    lengths: Sequence[tuple[int, int]]
    lines: Sequence[Json]

    @property
    def requests_s(self) -> float:
        """Requests a second, from the first one's sending to the last one's end."""
        begin: float = min(line["sent"] for line in self.lines)
        end: float = max(line["last"] for line in self.lines)
        return len(self.lines) / (end - begin)


@dataclass(frozen=True)
class Measured:
    """What was measured before the run.

    Attributes:
        rounds: with prompts of one length.
        long: one client, with a longer prompt.
        loop: at full load.
        start_s: from asking for a second replica until it was routable.
    """

    rounds: Sequence[Rounds]
    long: Rounds
    loop: Loop
    start_s: float


@dataclass(frozen=True)
class Capacity:
    """The simulator's engine, and what a client feels beside it.

    Attributes:
        engine: one replica.
        beside_s: seconds of a time to the first token in which no engine is busy.
        start_s: from asking for a replica until it is routable.
    """

    engine: Engine
    beside_s: float
    start_s: float


def capacity(measured: Measured) -> Capacity:
    """Fits the simulator's engine.

    The time of a step comes from rounds of no more requests than run at once, that of a prompt's
    token from two lengths. What a request costs beyond that is what makes the simulated engine
    answer as many a second as the real one at full load; what is left of a lone request's time to
    the first token is none of the engine's.
    """
    base, each = fit.straight(
        [
            fit.Point(one.clients, 0, one.clients / one.itl_s)
            for one in measured.rounds
            if one.clients <= SLOTS
        ]
    )
    alone = next(one for one in measured.rounds if one.clients == 1)
    longer = measured.long.prompt - alone.prompt
    engine = Engine(
        base_s=max(base, 1e-4),
        prompt_s=max(0.0, (measured.long.ttft_s - alone.ttft_s) / longer),
        sequence_s=max(each, 0.0),
        context_s=0.0,
        chunk=CHUNK,
        most_running=SLOTS,
        kv_tokens=KV_TOKENS,
    )
    low, high = 0.0, _LONGEST_REQUEST_S
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if full_speed(replace(engine, request_s=middle), measured.loop) > measured.loop.requests_s:
            low = middle
        else:
            high = middle
    engine = replace(engine, request_s=low)
    beside_s = max(0.0, alone.ttft_s - engine.prefill(alone.prompt))
    return Capacity(engine, beside_s, measured.start_s)


def full_speed(engine: Engine, loop: Loop) -> float:
    """Requests a second of the simulated engine in the measured loop."""
    served = fit.closed_loop(engine, loop.lengths, loop.clients)
    return len(served) / max(one.finished for one in served)


def tokens_s(engine: Engine, rounds: Rounds, beside_s: float) -> float:
    """Output tokens a second of the simulated engine in measured rounds."""
    lengths = [(rounds.prompt, rounds.output)] * rounds.clients
    served = fit.closed_loop(engine, lengths, rounds.clients)
    return rounds.clients * rounds.output / (beside_s + max(one.finished for one in served))


def itl_objective_ms(found: Capacity) -> int:
    """The objective for the time between tokens, in whole tens of milliseconds."""
    return max(10, 10 * round(ITL_FACTOR * found.engine.decode(1, 0.0) * 100))


def share_kept(found: Capacity, piece: Trace, objective: Objective) -> float:
    """Which share of the piece's requests makes its busiest minute what it is to be; at most 1."""
    engine, share = found.engine, Policy.attainment
    load = queueing.Load(
        1.0,
        statistics.fmean(one.prompt for one in piece),
        statistics.fmean(one.output for one in piece),
    )
    bears = queueing.bearable(
        queueing.Goals(share, objective.ttft_s, objective.itl_s, math.inf),
        queueing.Engine(
            itl_s=engine.decode(1, 0.0),
            itl_per_running_s=engine.sequence_s,
            first_token_s=engine.prefill(0),
            prompt_token_s=engine.prompt_s,
            slots=engine.most_running,
        ),
        load,
        1,
    )
    return min(1.0, PEAK_REPLICAS * bears / busiest(piece))
