"""The passes over logits between the matrix products of `linear_logprob`.

Logits are read once for their statistics, and once more to become their own gradient. They may lie
row by row or column by column: strides tell, and Triton compiles for the one that is 1. Everything
is computed in float32 whatever the logits are, and with powers of 2, for which the GPU has an
instruction: `slope` in the arguments is log2(e) / temperature.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def statistics(
    logits,  # [R, V], read up to [padded_rows, padded_columns]; what lies beyond R or V is not used
    partials,  # [3, splits, R] float32, out: top, sum exp(x - top), sum exp(x - top) (x - top)
    rows,  # R
    vocabulary,  # V
    padded_rows,
    padded_columns,
    row_stride,
    column_stride,
    each,  # columns a split
    slope,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program for some rows and a split of their columns. Its third sum gives the entropy
    without a difference of large numbers."""
    here = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * each
    end = tl.minimum(begin + each, vocabulary)
    logits += here.to(tl.int64)[:, None] * row_stride
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    for start in range(begin, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        # Padding is loaded too: bounds that are multiples of 16 keep loads wide.
        inside = (here < padded_rows)[:, None] & (columns < padded_columns)[None, :]
        places = columns.to(tl.int64)[None, :] * column_stride
        x = tl.load(logits + places, mask=inside, other=0.0).to(tl.float32) * slope
        x = tl.where((columns < end)[None, :], x, -float("inf"))
        higher = tl.maximum(top, tl.max(x, 1))
        # Where all was -inf up to here, nothing is to be moved, and -inf - -inf would be NaN.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        moved = tl.where(top == -float("inf"), 0.0, top - base)
        kept = tl.exp2(moved)
        far = x - base[:, None]
        # 2^-200 is 0, and 0 times it is 0, which 0 times -inf is not.
        far = tl.where(far < -200, -200.0, far)
        share = tl.exp2(far)
        moment = kept * (moment + total * moved) + tl.sum(share * far, 1)
        total = kept * total + tl.sum(share, 1)
        top = higher
    partials += tl.program_id(1) * rows + here
    size = tl.num_programs(1) * rows
    tl.store(partials, top, mask=here < rows)
    tl.store(partials + size, total, mask=here < rows)
    tl.store(partials + 2 * size, moment, mask=here < rows)


@triton.jit
def conclude(
    logits,  # [R, V]
    targets,  # [R] int64
    partials,  # [3, splits, R] float32
    log_probs,  # [R] float32, out
    sums,  # [R] float32, out
    entropies,  # [R] float32, out
    rows,  # R
    vocabulary,  # V
    row_stride,
    column_stride,
    splits,
    slope,
    ROWS: tl.constexpr,
):
    """Puts the splits of rows together."""
    here = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = here < rows
    size = splits * rows
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    moment = tl.zeros((ROWS,), tl.float32)
    for split in range(splits):
        part = partials + split * rows + here
        other = tl.load(part, mask=inside, other=0.0)
        higher = tl.maximum(top, other)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        moved = tl.where(top == -float("inf"), -200.0, top - base)
        far = tl.where(other == -float("inf"), -200.0, other - base)
        kept, share = tl.exp2(moved), tl.exp2(far)
        more = tl.load(part + size, mask=inside, other=1.0)
        moment = kept * (moment + total * moved) + share * (
            tl.load(part + 2 * size, mask=inside, other=0.0) + more * far
        )
        total = kept * total + share * more
        top = higher
    base = tl.where(top == -float("inf"), 0.0, top)
    spread = tl.log2(total)
    target = tl.load(targets + here, mask=inside, other=0)
    known = inside & (target >= 0) & (target < vocabulary)
    places = here.to(tl.int64) * row_stride + target * column_stride
    chosen = tl.load(logits + places, mask=known, other=float("nan")).to(tl.float32) * slope
    tl.store(log_probs + here, ((chosen - base) - spread) * LN_2, mask=inside)
    tl.store(sums + here, (base + spread) * LN_2, mask=inside)
    tl.store(entropies + here, (spread - moment / total) * LN_2, mask=inside)


@triton.jit
def gradients(
    logits,  # [R, C], columns of the vocabulary from `first` on
    into,  # [R, C], out; may be the logits
    targets,  # [R] int64
    sums,  # [R] float32
    entropies,  # [R] float32
    of_log_probs,  # [R] float32, or None
    of_sums,  # [R] float32, or None
    of_entropies,  # [R] float32, or None
    rows,  # R
    first,
    vocabulary,  # V
    padded_rows,
    padded_columns,
    row_stride,
    column_stride,
    into_row_stride,
    into_column_stride,
    blocks,  # programs a row
    slope,
    inverse,  # 1 / temperature
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """d loss / d logits from d loss / d log_prob (a), d log_sum_exp (b) and d entropy (c):

    (a onehot + p (b - a - c (log p + entropy))) / temperature
    """
    # From the last row to the first: what `statistics` read last may still be in the cache.
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    here = place // blocks * ROWS + tl.arange(0, ROWS)
    columns = place % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = (here < padded_rows)[:, None] & (columns < padded_columns)[None, :]
    far, wide = here.to(tl.int64)[:, None], columns.to(tl.int64)[None, :]
    places = logits + far * row_stride + wide * column_stride
    x = tl.load(places, mask=inside, other=0.0).to(tl.float32) * slope
    mine = here < rows
    log_p = x - (tl.load(sums + here, mask=mine, other=0.0) * LOG2_E)[:, None]
    factor = tl.zeros((ROWS, COLUMNS), tl.float32)
    chosen = tl.zeros((ROWS,), tl.float32)
    target = tl.load(targets + here, mask=mine, other=-1)
    if of_log_probs is not None:
        known = (target >= 0) & (target < vocabulary)
        chosen = tl.load(of_log_probs + here, mask=mine & known, other=0.0)
        factor -= chosen[:, None]
    if of_sums is not None:
        factor += tl.load(of_sums + here, mask=mine, other=0.0)[:, None]
    if of_entropies is not None:
        spread = tl.load(entropies + here, mask=mine, other=0.0)[:, None]
        bonus = tl.load(of_entropies + here, mask=mine, other=0.0)[:, None]
        factor -= bonus * (log_p * LN_2 + spread)
    hit = (columns + first)[None, :] == target[:, None]
    found = tl.exp2(log_p) * factor + tl.where(hit, chosen[:, None], 0.0)
    places = into + far * into_row_stride + wide * into_column_stride
    tl.store(places, (found * inverse).to(into.dtype.element_ty), mask=inside)


@triton.jit
def scale(
    values,  # [N] of any float dtype, in and out
    factor,  # [1] float32
    count,  # N
    BLOCK: tl.constexpr,
):
    """values *= factor; memory is left alone where the factor is 1, as it is for a plain loss."""
    by = tl.load(factor)
    if by != 1.0:
        places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = places < count
        found = tl.load(values + places, mask=inside, other=0.0).to(tl.float32) * by
        tl.store(values + places, found.to(values.dtype.element_ty), mask=inside)
