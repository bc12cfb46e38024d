"""The second launch of `sample`: `choose` has one program a row.

It puts the chunks together and asks whether the winner is among the tokens that may be drawn. If
not, the winner among those that rank above it is the next one to be asked about; noise belongs to a
token, so this ends with the winner among all that may be drawn. It reads only groups whose largest
logit is high enough, as a rule a few of a thousand.

A token ranks above another one if its logit is larger, or if it is as large and comes first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from assay_kernels.sampler.kernel import (
    NOBODY,
    SIZE,
    begun,
    clean,
    exponential,
    gathered,
    log_prob_of,
    slope_of,
)

FEW: tl.constexpr = tl.constexpr(8)
"""Groups that are read together."""
SPAN: tl.constexpr = tl.constexpr(1024)
"""Groups whose largest logits are looked at together."""
HALVINGS: tl.constexpr = tl.constexpr(12)


@triton.jit
def _first(logits, peaks, top, vocabulary, groups):
    """The first token with the largest logit."""
    group = tl.full((), NOBODY, tl.int32)
    for begin in range(0, groups, SPAN):
        these = begin + tl.arange(0, SPAN)
        peak = tl.load(peaks + these, mask=these < groups, other=-float("inf"))
        group = tl.minimum(group, tl.min(tl.where(peak == top, these, NOBODY), 0))
    columns = group * SIZE + tl.arange(0, SIZE)
    x = clean(tl.load(logits + columns, mask=columns < vocabulary, other=-float("inf")))
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
    x = clean(x)
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
        noise = exponential(state, columns, INTERPRET)
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
    slope, drawn = slope_of(tl.load(temperatures + row))
    chunk = tl.arange(0, CHUNKS)
    known = chunk < chunks
    places = row * chunks + chunk
    top, base, scale, total = gathered(parts, row, chunks, slope, CHUNKS)
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
            begun(tl.load(seeds + row), tl.load(positions + row)),
            vocabulary,
            groups,
            INTERPRET,
        )
    x = clean(tl.load(logits + token))
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(log_probs + row, log_prob_of(x, top, base, slope, total))


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
    pivot = clean(tl.load(logits + token))
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
                pivot = clean(tl.load(logits + following))
                standing = tl.full((), 1, tl.int1)
        # The list is about to be written anew.
        tl.debug_barrier()
    return token
