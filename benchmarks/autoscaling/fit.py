"""The engine's constants, fitted to what a real SGLang showed, and scaled to a bigger model.

Measured: 596 M parameters (the shape of Qwen3-0.6B, bf16) on one H200, SGLang with FA3, prompts of
512 tokens, completions of 128, a fixed number of clients. Two figures fix two constants: base and
the part of each sequence. The other two are calculated beforehand: a prompt token costs two
operations a parameter at 40% of the card's dense bf16 rate, and a token of context is read once a
step at the card's memory bandwidth.

A model of 0.6 B would serve the Azure trace with a tenth of one card. The comparison needs several
replicas, so the constants are scaled to the shape of Qwen3-32B:

- base: the measured base less reading the weights, by the number of layers, plus reading them;
- prompt token: by the number of parameters;
- sequence: as measured, plus the added arithmetic of one token;
- context: by the bytes of a token in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.autoscaling.engine import Engine, Replica, Served
from benchmarks.autoscaling.trace import Request

FLOPS = 0.4 * 989e12
"""Operations a second that prefill reaches: 40% of the data sheet's dense bf16 rate of an H200."""
BANDWIDTH = 4.8e12
"""Bytes a second, the data sheet's."""
MEMORY = 141e9 * 0.88
"""Bytes of the card that weights and cache may fill: SGLang's usual share."""
BYTES = 2
"""Of a number in bf16."""
DEFAULT_CHUNK = 8192
"""SGLang's chunked-prefill-size on a card of this size, with which the figures were measured."""
SHORT_CHUNK = 2048
"""What this project's profiles for low latency set."""
MOST_RUNNING = 256
WARM_S, WARM_FACTOR = 15.0, 1.5


@dataclass(frozen=True)
class Shape:
    """What of a model decides how long it takes.

    Attributes:
        name: of the model.
        parameters: how many.
        layers: how many.
        kv_heads: of a layer.
        head_dim: numbers of a key or value.
    """

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def weights_s(self) -> float:
        """Seconds to read the weights once."""
        return self.parameters * BYTES / BANDWIDTH

    @property
    def token_s(self) -> float:
        """Seconds of arithmetic for one token, without attention."""
        return 2 * self.parameters / FLOPS

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in the cache."""
        return 2 * BYTES * self.layers * self.kv_heads * self.head_dim

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that fit beside the weights."""
        return int((MEMORY - self.parameters * BYTES) / self.token_bytes)


SMALL = Shape("Qwen3-0.6B", 596e6, 28, 8, 128)
LARGE = Shape("Qwen3-32B", 32.8e9, 64, 8, 128)


@dataclass(frozen=True)
class Point:
    """Output tokens a second that a real engine gave.

    Attributes:
        clients: that each send a request, wait for its end, and send the next.
        requests: in all.
        tokens_s: output tokens a second.
    """

    clients: int
    requests: int
    tokens_s: float


PROMPT, OUTPUT = 512, 128
MEASURED = (Point(64, 256, 15_900), Point(256, 1024, 23_200))
TINY = (Point(1, 0, 142), Point(8, 0, 974), Point(32, 0, 1883), Point(128, 0, 2342))
"""Another real SGLang: 2.8 M parameters on two CPU cores. Only the form is taken from it: that a
step takes a constant and something for each sequence."""


def fitted() -> Engine:
    """The engine of the small model, whose two free constants come from the two measured points.

    All clients of the measurement send requests of one length, so they go in step: a round of c
    clients is ceil(512 c / chunk) prefill batches and 127 decode steps of c sequences.
    """
    context_s = SMALL.token_bytes / BANDWIDTH
    contexts = sum(PROMPT + step for step in range(1, OUTPUT))
    rows = []
    for point in MEASURED:
        clients = point.clients
        batches = math.ceil(clients * PROMPT / DEFAULT_CHUNK)
        known = clients * (PROMPT * SMALL.token_s + contexts * context_s)
        rest = clients * OUTPUT / point.tokens_s - known
        rows.append((batches + OUTPUT - 1, clients * (OUTPUT - 1), rest))
    (a, b, x), (c, d, y) = rows
    determinant = a * d - b * c
    return Engine(
        base_s=(x * d - b * y) / determinant,
        sequence_s=(a * y - x * c) / determinant,
        prompt_s=SMALL.token_s,
        context_s=context_s,
        chunk=DEFAULT_CHUNK,
        most_running=MOST_RUNNING,
        kv_tokens=SMALL.kv_tokens,
    )


def scaled(engine: Engine, shape: Shape = LARGE) -> Engine:
    """The engine of a bigger model on the same card, as the module describes; it has to warm up."""
    overhead = (engine.base_s - SMALL.weights_s) * shape.layers / SMALL.layers
    return replace(
        engine,
        base_s=overhead + shape.weights_s,
        prompt_s=shape.token_s,
        sequence_s=engine.sequence_s + shape.token_s - SMALL.token_s,
        context_s=shape.token_bytes / BANDWIDTH,
        chunk=SHORT_CHUNK,
        kv_tokens=shape.kv_tokens,
        warm_s=WARM_S,
        warm_factor=WARM_FACTOR,
    )


def throughput(engine: Engine, point: Point) -> float:
    """Output tokens a second of the simulated engine in the measurement of `point`."""
    served = closed_loop(engine, [(PROMPT, OUTPUT)] * point.requests, point.clients)
    return point.requests * OUTPUT / max(one.finished for one in served)


def closed_loop(engine: Engine, lengths: Sequence[tuple[int, int]], clients: int) -> list[Served]:
    """Requests of so many clients, each of which sends its next one when its last one has ended.

    Args:
        engine: a warm one.
        lengths: of each request, prompt and output in tokens.
        clients: how many.
    """
    replica = Replica(engine, 0, -engine.warm_s)
    served: list[Served] = []
    at = 0.0
    for prompt, output in lengths:
        while replica.load >= clients:
            at = _until_one_ends(replica)
        served.append(Served(Request(at, prompt, output)))
        replica.take(served[-1], at)
    while replica.load:
        _until_one_ends(replica)
    return served


def _until_one_ends(replica: Replica) -> float:
    replica.news.finished.clear()
    while not replica.news.finished:
        replica.advance(replica.next_end)
    return replica.done_at


def straight(points: Sequence[Point]) -> tuple[float, float]:
    """The step time a + b * clients that fits best, by least squares of the relative errors.

    Returns:
        a and b, in seconds.
    """
    # Each point's step takes clients / tokens_s; dividing by it makes all errors relative.
    rows = [(p.tokens_s / p.clients, p.tokens_s) for p in points]
    aa = sum(u * u for u, _ in rows)
    ab = sum(u * v for u, v in rows)
    bb = sum(v * v for _, v in rows)
    sa = sum(u for u, _ in rows)
    sb = sum(v for _, v in rows)
    determinant = aa * bb - ab * ab
    return (sa * bb - sb * ab) / determinant, (aa * sb - ab * sa) / determinant
