"""The two launches of `sample`.

`survey` reads all logits once: of each chunk of a row the largest logit, the sum of the shares and
the winner among all its tokens, and of each group of 128 tokens the largest logit. `choose` has one
program a row: it puts the chunks together and asks whether the winner is among the tokens that may
be drawn. If not, the winner among those that rank above it is the next one to be asked about; noise
belongs to a token, so this ends with the winner among all that may be drawn. It reads only groups
whose largest logit is high enough, as a rule a few of a thousand.

A share is exp((logit - largest) / temperature), by which a token's probability is known before the
sum is. A token ranks above another one if its logit is larger, or if it is as large and comes
first. The token with the smallest E / share wins, E being exponential: the same as the largest of
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
FEW: tl.constexpr = tl.constexpr(8)
"""Groups that `choose` reads together."""
SPAN: tl.constexpr = tl.constexpr(1024)
"""Groups whose largest logits `choose` looks at together."""
HALVINGS: tl.constexpr = tl.constexpr(12)


@triton.jit
def _mix(state, word):
    """One step of MurmurHash3 (32 bits; A. Appleby, public domain)."""
    word = word * 0xCC9E2D51
    word = (word << 15) | (word >> 17)
    state = state ^ (word * 0x1B873593)
    state = (state << 13) | (state >> 19)
    return state * 5 + 0xE6546B64


@triton.jit
def _begun(seed, position):
    """MurmurHash3's state after a row's seed and position; SGLang hashes the same four words."""
    state = _mix(tl.full((), 0, tl.uint32), seed.to(tl.uint32))
    state = _mix(state, (seed >> 32).to(tl.uint32))
    return _mix(state, position.to(tl.uint32))


@triton.jit
def _exponential(state, columns, INTERPRET: tl.constexpr):
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
def _clean(x):
    """Logits in float32: -inf for NaN, which nobody draws, and finite for +inf."""
    return tl.minimum(tl.maximum(x.to(tl.float32), -float("inf")), LARGEST)


@triton.jit
def _slope(temperature):
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
    slope, drawn = _slope(tl.load(temperatures + row))
    state = _begun(tl.load(seeds + row), tl.load(positions + row))
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
        x = _clean(loaded)
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
            noise = _exponential(state, columns, INTERPRET)
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
def _first(logits, peaks, top, vocabulary, groups):
    """The first token with the largest logit."""
    group = tl.full((), NOBODY, tl.int32)
    for begin in range(0, groups, SPAN):
        these = begin + tl.arange(0, SPAN)
        peak = tl.load(peaks + these, mask=these < groups, other=-float("inf"))
        group = tl.minimum(group, tl.min(tl.where(peak == top, these, NOBODY), 0))
    columns = group * SIZE + tl.arange(0, SIZE)
    x = _clean(tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")))
    return tl.min(tl.where(x == top, columns, NOBODY), 0)


@triton.jit
def _above(peaks, level, groups):
    """How many groups have a token above a level."""
    count = tl.full((), 0, tl.int32)
    for begin in range(0, groups, SPAN):
        these = begin + tl.arange(0, SPAN)
        peak = tl.load(peaks + these, mask=these < groups, other=-float("inf"))
        count += tl.sum((peak > level).to(tl.int32), 0)
    return count


@triton.jit
def _listed(peaks, members, pivot, base, slope, least, groups):
    """Lists the groups that may have tokens which rank above the pivot, and counts them."""
    count = tl.full((), 0, tl.int32)
    for begin in range(0, groups, SPAN):
        these = begin + tl.arange(0, SPAN)
        inside = these < groups
        peak = tl.load(peaks + these, mask=inside, other=-float("inf"))
        share = tl.exp2((peak - base) * slope)
        listed = (inside & (peak >= pivot) & (share >= least)).to(tl.int32)
        tl.store(members + count + tl.cumsum(listed, 0) - 1, these, mask=listed == 1)
        count += tl.sum(listed, 0)
    return count


@triton.jit
def _groups(members, begin, count):
    """Some listed groups, as a column; -1 where the list is at its end."""
    places = begin + tl.arange(0, FEW)
    return tl.load(members + places, mask=places < count, other=-1)[:, None]


@triton.jit
def _columns(group, vocabulary):
    """The tokens of groups, and which of them there are."""
    columns = group * SIZE + tl.arange(0, SIZE)[None, :]
    return columns, (group >= 0) & (columns < vocabulary)


@triton.jit
def _shares(x, columns, inside, pivot, place, base, slope):
    """Whether tokens rank above the pivot, and the shares of those that do."""
    x = _clean(x)
    above = inside & ((x > pivot) | ((x == pivot) & (columns < place)))
    return above, tl.where(above, tl.exp2((x - base) * slope), 0.0)


@triton.jit
def _weighed(logits, members, count, pivot, place, base, slope, vocabulary):
    """How many tokens rank above the pivot, and the sum of their shares."""
    seen = tl.zeros((FEW, SIZE), tl.int32)
    mass = tl.zeros((FEW, SIZE), tl.float32)
    columns, inside = _columns(_groups(members, 0, count), vocabulary)
    loaded = tl.load(logits + columns, mask=inside, other=-float("inf"))
    following = _groups(members, FEW, count)
    for begin in range(0, count, FEW):
        # The next logits, and the groups after them, are on their way while these are weighed.
        next_columns, next_inside = _columns(following, vocabulary)
        next_loaded = tl.load(logits + next_columns, mask=next_inside, other=-float("inf"))
        following = _groups(members, begin + 2 * FEW, count)
        above, share = _shares(loaded, columns, inside, pivot, place, base, slope)
        seen += above.to(tl.int32)
        mass += share
        columns = next_columns
        inside = next_inside
        loaded = next_loaded
    return tl.sum(tl.sum(seen, 1), 0), tl.sum(tl.sum(mass, 1), 0)


@triton.jit
def _winner(
    logits,
    members,
    count,
    pivot,
    place,
    least,
    base,
    slope,
    state,
    vocabulary,
    INTERPRET: tl.constexpr,
):
    """The winner among the tokens that rank above the pivot and have a share of `least`."""
    best = tl.full((FEW, SIZE), 1.0, tl.float32)
    share_of_best = tl.zeros((FEW, SIZE), tl.float32)
    winner = tl.full((FEW, SIZE), NOBODY, tl.int32)
    for begin in range(0, count, FEW):
        columns, inside = _columns(_groups(members, begin, count), vocabulary)
        x = tl.load(logits + columns, mask=inside, other=-float("inf"))
        above, share = _shares(x, columns, inside, pivot, place, base, slope)
        noise = _exponential(state, columns, INTERPRET)
        better = above & (share >= least) & (noise * share_of_best < best * share)
        best = tl.where(better, noise, best)
        share_of_best = tl.where(better, share, share_of_best)
        winner = tl.where(better, columns, winner)
    ratio = tl.where(share_of_best > 0, best / share_of_best, float("inf"))
    lowest = tl.min(tl.min(ratio, 1), 0)
    return tl.min(tl.min(tl.where(ratio == lowest, winner, NOBODY), 1), 0)


@triton.jit
def choose(
    logits,  # [B, V], rows `stride` apart
    temperatures,  # [B] float32
    top_ks,  # [B] int32, or None
    top_ps,  # [B] float32, or None
    min_ps,  # [B] float32, or None
    seeds,  # [B] int64
    positions,  # [B] int64
    peaks,  # [B, groups] float32
    parts,  # [B, chunks, 3] float32
    winners,  # [B, chunks] int32
    members,  # [B, groups] int32, for use here
    tokens,  # [B] int64, out
    log_probs,  # [B] float32, out
    vocabulary,  # V
    stride,
    chunks,
    groups,
    CHUNKS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One row's token, and its log-prob before anything was left out."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    peaks += row * groups
    members += row * groups
    slope, drawn = _slope(tl.load(temperatures + row))
    chunk = tl.arange(0, CHUNKS)
    known = chunk < chunks
    places = row * chunks + chunk
    tops = tl.load(parts + places * 3, mask=known, other=-float("inf"))
    top = tl.max(tops, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    scale = tl.exp2((tops - base) * slope)
    total = tl.sum(scale * tl.load(parts + places * 3 + 1, mask=known, other=0.0), 0)
    ratio = tl.load(parts + places * 3 + 2, mask=known, other=float("inf"))
    ratio = tl.where(scale > 0, ratio / scale, float("inf"))
    token = tl.load(winners + places, mask=known, other=NOBODY)
    token = tl.min(tl.where(ratio == tl.min(ratio, 0), token, NOBODY), 0)

    most = tl.full((), 0, tl.int32) + vocabulary
    if top_ks is not None:
        most = tl.load(top_ks + row)
        most = tl.where((most <= 0) | (most > vocabulary), vocabulary, most)
    limit = tl.full((), float("inf"), tl.float32)
    if top_ps is not None:
        share = tl.load(top_ps + row)
        limit = tl.where(share < 1, tl.maximum(share, 0.0) * total, limit)
    least = tl.full((), 0.0, tl.float32)
    if min_ps is not None:
        share = tl.load(min_ps + row)
        least = tl.where(share > 0, tl.minimum(share, 1.0), least)

    if top == -float("inf"):
        token = tl.full((), 0, tl.int32)
    elif (drawn == 0) | (most == 1) | (limit < 1):
        # The first token's share alone is 1.
        token = _first(logits, peaks, top, vocabulary, groups)
    elif (most < vocabulary) | (limit < total) | (least > 0):
        token = _search(
            logits,
            peaks,
            members,
            token,
            most,
            limit,
            least,
            base,
            slope,
            _begun(tl.load(seeds + row), tl.load(positions + row)),
            vocabulary,
            groups,
            INTERPRET,
        )
    x = _clean(tl.load(logits + token))
    log_prob = ((x - base) * slope - tl.log2(total)) * LN_2
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(log_probs + row, tl.where(top == -float("inf"), float("nan"), log_prob))


@triton.jit
def _search(
    logits,
    peaks,
    members,
    token,  # the winner of the whole row
    most,
    limit,
    least,
    base,
    slope,
    state,
    vocabulary,
    groups,
    INTERPRET: tl.constexpr,
):
    """The winner among the tokens with less than `most` tokens above them, whose shares sum up to
    `limit` at most, and a share of `least` at least."""
    pivot = _clean(tl.load(logits + token))
    place = token
    standing = tl.exp2((pivot - base) * slope) >= least
    if _above(peaks, pivot, groups) >= most:
        # It is out. So is all that lies so low that `most` groups have a token above it.
        standing = tl.full((), 0, tl.int1)
        high = base
        for _ in range(HALVINGS):
            middle = pivot + (high - pivot) * 0.5
            if _above(peaks, middle, groups) >= most:
                pivot = middle
            else:
                high = middle
        place = tl.full((), 0, tl.int32)
    searching = tl.full((), 1, tl.int1)
    while searching:
        count = _listed(peaks, members, pivot, base, slope, least, groups)
        # What one thread listed, another one reads.
        tl.debug_barrier()
        if standing:
            above, weight = _weighed(logits, members, count, pivot, place, base, slope, vocabulary)
            standing = (above < most) & (weight <= limit)
        searching = standing == 0
        if searching:
            following = _winner(
                logits,
                members,
                count,
                pivot,
                place,
                least,
                base,
                slope,
                state,
                vocabulary,
                INTERPRET,
            )
            # There always is one: the first-ranked token is among those that may be drawn.
            searching = following < NOBODY
            if searching:
                token = following
                place = following
                pivot = _clean(tl.load(logits + following))
                standing = tl.full((), 1, tl.int1)
        # The list is about to be written anew.
        tl.debug_barrier()
    return token
