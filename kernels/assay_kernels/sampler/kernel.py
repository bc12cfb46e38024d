"""The first launch of `sample`, `survey`, which reads all logits once; and the second of `score`.

Of each chunk of a row it leaves the largest logit, the sum of the shares and the winner among all
its tokens, and of each group of 128 tokens the largest logit. `choose` puts them together.

A share is exp((logit - largest) / temperature), by which a token's probability is known before the
sum is. The token with the smallest E / share wins, E being exponential: the same as the largest of
logit + Gumbel noise. `slope` is log2(e) / temperature.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
STEEPEST: tl.constexpr = tl.constexpr(1e30)
"""The largest slope: above it the difference of two logits times it would not be finite."""
LARGEST: tl.constexpr = tl.constexpr(3.4028234663852886e38)
NOBODY: tl.constexpr = tl.constexpr(2147483647)

SIZE: tl.constexpr = tl.constexpr(128)
"""Tokens of a group."""


@triton.jit
def _mix(state, word):
    """One step of MurmurHash3 (32 bits; A. Appleby, public domain)."""
    word = word * 0xCC9E2D51
    word = (word << 15) | (word >> 17)
    state = state ^ (word * 0x1B873593)
    state = (state << 13) | (state >> 19)
    return state * 5 + 0xE6546B64


@triton.jit
def begun(seed, position):
    """MurmurHash3's state after a row's seed and position; SGLang hashes the same four words."""
    state = _mix(tl.full((), 0, tl.uint32), seed.to(tl.uint32))
    state = _mix(state, (seed >> 32).to(tl.uint32))
    return _mix(state, position.to(tl.uint32))


@triton.jit
def exponential(state, columns, INTERPRET: tl.constexpr):
    """Exponential noise of tokens over log(2): -log2(1 - v), v being (hash + 1/2) / 2^32."""
    h = _mix(state, columns.to(tl.uint32)) ^ 16
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    left = (h ^ 0xFFFFFFFF).to(tl.float32)
    v = tl.minimum(left * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.99999994)
    # Near 0, where winners are, 1 - v would lose v's digits.
    near = v * (LOG2_E + v * (LOG2_E / 2 + v * (LOG2_E / 3 + v * (LOG2_E / 4))))
    u = 1.0 - v
    if INTERPRET:
        far = -tl.log2(u)
    else:
        far = -tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.where(v < 0.03125, near, far)


@triton.jit
def clean(x):
    """Logits in float32: -inf for NaN, which nobody draws, and finite for +inf."""
    return tl.minimum(tl.maximum(x.to(tl.float32), -float("inf")), LARGEST)


@triton.jit
def slope_of(temperature):
    """A row's slope, and whether it is drawn: where the temperature is above 0 and finite."""
    drawn = (temperature > 0) & (temperature <= LARGEST)
    slope = tl.where(drawn, LOG2_E / tl.where(drawn, temperature, 1.0), LOG2_E)
    return tl.minimum(slope, STEEPEST), drawn


@triton.jit
def survey(
    logits,  # [B, V], rows `stride` apart
    temperatures,  # [B] float32
    seeds,  # [B] int64
    positions,  # [B] int64
    peaks,  # [B, groups] float32, out: largest logits
    parts,  # [B, chunks, 3] float32, out: largest logit, sum of shares, winner's E / share
    winners,  # [B, chunks] int32, out
    vocabulary,  # V
    stride,
    chunks,
    groups,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One chunk of a row: `TILES` times `ROWS` groups, the last chunk less."""
    program = tl.program_id(0)
    row = (program // chunks).to(tl.int64)
    chunk = program % chunks
    logits += row * stride
    peaks += row * groups
    slope, drawn = slope_of(tl.load(temperatures + row))
    state = begun(tl.load(seeds + row), tl.load(positions + row))
    rows = tl.arange(0, ROWS)
    places = rows[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    first = chunk * TILES * ROWS
    tiles = tl.minimum(TILES, tl.cdiv(groups - first, ROWS))
    # Each row of the tile has its own base, so that warps need not wait for each other.
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS, SIZE), tl.float32)
    best = tl.full((ROWS, SIZE), 1.0, tl.float32)
    share_of_best = tl.zeros((ROWS, SIZE), tl.float32)
    winner = tl.full((ROWS, SIZE), NOBODY, tl.int32)
    columns = first * SIZE + places
    loaded = tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf"))
    for tile in range(0, tiles):
        x = clean(loaded)
        # The next ones are on their way while these are worked on.
        after = columns + ROWS * SIZE
        inside = (after < vocabulary) & (tile + 1 < tiles)
        loaded = tl.load(logits + after, mask=inside, other=-float("inf"))
        group = first + tile * ROWS
        peak = tl.max(x, 1)
        tl.store(peaks + group + rows, peak, mask=group + rows < groups)
        higher = tl.maximum(top, peak)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        kept = tl.exp2((top - base) * slope)[:, None]
        share = tl.exp2((x - base[:, None]) * slope)
        total = total * kept + share
        if drawn:
            noise = exponential(state, columns, INTERPRET)
            share_of_best *= kept
            better = noise * share_of_best < best * share
            best = tl.where(better, noise, best)
            share_of_best = tl.where(better, share, share_of_best)
            winner = tl.where(better, columns, winner)
        top = higher
        columns = after
    highest = tl.max(top, 0)
    base = tl.where(highest == -float("inf"), 0.0, highest)
    kept = tl.exp2((top - base) * slope)[:, None]
    share_of_best *= kept
    ratio = tl.where(share_of_best > 0, best / share_of_best, float("inf"))
    least = tl.min(tl.min(ratio, 1), 0)
    winner = tl.min(tl.min(tl.where(ratio == least, winner, NOBODY), 1), 0)
    place = row * chunks + chunk
    tl.store(parts + place * 3, highest)
    tl.store(parts + place * 3 + 1, tl.sum(tl.sum(total * kept, 1), 0))
    tl.store(parts + place * 3 + 2, least)
    tl.store(winners + place, winner)


@triton.jit
def gathered(parts, row, chunks, slope, CHUNKS: tl.constexpr):
    """A row from its chunks: its largest logit, what shares are relative to, what each chunk's are
    to be multiplied by, and their sum."""
    chunk = tl.arange(0, CHUNKS)
    known = chunk < chunks
    places = (row * chunks + chunk) * 3
    tops = tl.load(parts + places, mask=known, other=-float("inf"))
    top = tl.max(tops, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    scale = tl.exp2((tops - base) * slope)
    total = tl.sum(scale * tl.load(parts + places + 1, mask=known, other=0.0), 0)
    return top, base, scale, total


@triton.jit
def log_prob_of(x, top, base, slope, total):
    """The log-prob of a clean logit; NaN in a row of which nothing can be drawn."""
    found = ((x - base) * slope - tl.log2(total)) * LN_2
    return tl.where(top == -float("inf"), float("nan"), found)


@triton.jit
def score(
    logits,  # [B, V], rows `stride` apart
    temperatures,  # [B] float32
    parts,  # [B, chunks, 3] float32, as `survey` leaves them
    tokens,  # [B] int64
    log_probs,  # [B] float32, out
    sums,  # [B] float32, out: log-sum-exps
    vocabulary,  # V
    stride,
    chunks,
    CHUNKS: tl.constexpr,
):
    """The log-prob of one row's token, as `choose` has it of the token that it chooses."""
    row = tl.program_id(0).to(tl.int64)
    slope, _ = slope_of(tl.load(temperatures + row))
    top, base, _, total = gathered(parts, row, chunks, slope, CHUNKS)
    token = tl.load(tokens + row)
    inside = (token >= 0) & (token < vocabulary)
    x = clean(tl.load(logits + row * stride + token, mask=inside, other=0.0))
    log_prob = log_prob_of(x, top, base, slope, total)
    tl.store(log_probs + row, tl.where(inside, log_prob, float("nan")))
    tl.store(sums + row, (base * slope + tl.log2(total)) * LN_2)
