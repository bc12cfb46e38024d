"""The passes over logits between the matrix products of `linear_logprob`.

A row's logits are read once for its statistics, and once more to become, in place, their own
gradient. Both kernels compute in float32 whatever the logits are, and with powers of 2, for which
the GPU has an instruction: `slope` in the arguments is log2(e) / temperature.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def statistics(
    logits,  # [R, V], rows `stride` apart; what lies between V and stride is never used
    targets,  # [R] int64
    log_probs,  # [R] float32, out
    sums,  # [R] float32, out
    entropies,  # [R] float32, out
    vocabulary,  # V
    stride,
    slope,
    BLOCK: tl.constexpr,
):
    """One program a row. Beside sum exp(x - top) it keeps sum exp(x - top) (x - top), from which
    the entropy follows without a difference of large numbers."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0, tl.float32)
    moment = tl.full((), 0, tl.float32)
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        # Whole rows are loaded, padding too: their length is a multiple of 16, so loads are wide.
        x = tl.load(logits + columns, mask=columns < stride, other=0.0).to(tl.float32) * slope
        x = tl.where(columns < vocabulary, x, -float("inf"))
        higher = tl.maximum(top, tl.max(x, 0))
        # Where all was -inf up to here, nothing is to be moved, and -inf - -inf would be NaN.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        moved = tl.where(top == -float("inf"), 0.0, top - base)
        kept = tl.exp2(moved)
        far = x - base
        # 2^-200 is 0, and 0 times it is 0, which 0 times -inf is not.
        far = tl.where(far < -200, -200.0, far)
        share = tl.exp2(far)
        moment = kept * (moment + total * moved) + tl.sum(share * far, 0)
        total = kept * total + tl.sum(share, 0)
        top = higher
    base = tl.where(top == -float("inf"), 0.0, top)
    spread = tl.log2(total)
    target = tl.load(targets + row)
    known = (target >= 0) & (target < vocabulary)
    chosen = tl.load(logits + target, mask=known, other=float("nan")).to(tl.float32) * slope
    tl.store(log_probs + row, ((chosen - base) - spread) * LN_2)
    tl.store(sums + row, (base + spread) * LN_2)
    tl.store(entropies + row, (spread - moment / total) * LN_2)


@triton.jit
def gradients(
    logits,  # [R, C], rows `stride` apart: in, logits of columns from `first` on; out, gradients
    targets,  # [R] int64
    sums,  # [R] float32
    entropies,  # [R] float32
    of_log_probs,  # [R] float32, or None
    of_sums,  # [R] float32, or None
    of_entropies,  # [R] float32, or None
    blocks,  # programs a row
    first,
    vocabulary,  # V
    stride,
    slope,
    inverse,  # 1 / temperature
    BLOCK: tl.constexpr,
):
    """d loss / d logits from d loss / d log_prob (a), d log_sum_exp (b) and d entropy (c):

    (a onehot + p (b - a - c (log p + entropy))) / temperature
    """
    # From the last row to the first: what `statistics` read last may still be in the cache.
    place = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (place // blocks).to(tl.int64)
    columns = place % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = columns < stride
    logits += row * stride
    x = tl.load(logits + columns, mask=inside, other=0.0).to(tl.float32) * slope
    log_p = x - tl.load(sums + row) * LOG2_E
    factor = tl.zeros((BLOCK,), tl.float32)
    chosen = tl.full((), 0, tl.float32)
    target = tl.load(targets + row)
    if of_log_probs is not None:
        known = (target >= 0) & (target < vocabulary)
        chosen = tl.where(known, tl.load(of_log_probs + row), 0.0)
        factor -= chosen
    if of_sums is not None:
        factor += tl.load(of_sums + row)
    if of_entropies is not None:
        factor -= tl.load(of_entropies + row) * (log_p * LN_2 + tl.load(entropies + row))
    found = tl.exp2(log_p) * factor + tl.where(columns + first == target, chosen, 0.0)
    tl.store(logits + columns, (found * inverse).to(logits.dtype.element_ty), mask=inside)


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
