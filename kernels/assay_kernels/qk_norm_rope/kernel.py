"""RMSNorm and rotation of heads, forward and backward. No bits depend on another token's.

A head is two halves of `HALF` numbers; number i of one is rotated with number i of the other.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _halves(x, place, inside, HALF: tl.constexpr):
    """Both halves of some heads."""
    columns = tl.arange(0, HALF)[None, :]
    one = tl.load(x + place + columns, mask=inside, other=0.0).to(tl.float32)
    two = tl.load(x + place + HALF + columns, mask=inside, other=0.0).to(tl.float32)
    return one, two


@triton.jit
def _unit(x, place, inside, eps, HALF: tl.constexpr):
    """Both halves of some heads over their root mean square, and one over that."""
    one, two = _halves(x, place, inside, HALF)
    square = (tl.sum(one * one, 1) + tl.sum(two * two, 1)) / (2 * HALF)
    by = tl.rsqrt(square + eps)[:, None]
    return one * by, two * by, by


@triton.jit
def _angles(cos_sin, position, limit, HALF: tl.constexpr):
    """Cosines and sines of a position; NaN where the table has none."""
    known = (position >= 0) & (position < limit)
    row = cos_sin + tl.where(known, position, 0).to(tl.int64) * (2 * HALF)
    columns = tl.arange(0, HALF)
    cosine = tl.load(row + columns).to(tl.float32)
    sine = tl.load(row + HALF + columns).to(tl.float32)
    nothing = float("nan")
    return tl.where(known, cosine, nothing)[None, :], tl.where(known, sine, nothing)[None, :]


@triton.jit
def _turn(
    x,
    out,
    weight,
    cosine,
    sine,
    token,
    heads,
    first,
    stride,
    head_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Some heads of a token."""
    head = first + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, HALF)
    inside = (head < heads) & (columns[None, :] < HALF)
    place = token * stride + head * head_stride
    if weight is not None:
        one, two, _ = _unit(x, place, inside, eps, HALF)
        one *= tl.load(weight + columns).to(tl.float32)[None, :]
        two *= tl.load(weight + HALF + columns).to(tl.float32)[None, :]
    else:
        one, two = _halves(x, place, inside, HALF)
    place = out + (token * heads + head) * (2 * HALF) + columns[None, :]
    kind = out.dtype.element_ty
    tl.store(place, (one * cosine - two * sine).to(kind), mask=inside)
    tl.store(place + HALF, (two * cosine + one * sine).to(kind), mask=inside)


@triton.jit
def forward(
    q,  # [T, Q, 2 HALF], tokens q_stride and heads q_head_stride apart
    k,  # [T, K, 2 HALF], tokens k_stride and heads k_head_stride apart
    q_weight,  # [2 HALF], or None where heads are only rotated
    k_weight,  # likewise
    cos_sin,  # [P, 2 HALF]
    positions,  # [T]
    q_out,  # [T, Q, 2 HALF]
    k_out,  # [T, K, 2 HALF]
    limit,  # P
    q_heads,
    k_heads,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One token, and some heads of its queries or of its keys."""
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.cdiv(q_heads, HEADS)
    cosine, sine = _angles(cos_sin, tl.load(positions + token), limit, HALF)
    if part < parts:
        _turn(
            q,
            q_out,
            q_weight,
            cosine,
            sine,
            token,
            q_heads,
            part * HEADS,
            q_stride,
            q_head_stride,
            eps,
            HEADS,
            HALF,
        )
    else:
        _turn(
            k,
            k_out,
            k_weight,
            cosine,
            sine,
            token,
            k_heads,
            (part - parts) * HEADS,
            k_stride,
            k_head_stride,
            eps,
            HEADS,
            HALF,
        )


@triton.jit
def _turn_back(
    of_out,
    x,
    of_x,
    weight,
    cosine,
    sine,
    token,
    heads,
    first,
    stride,
    head_stride,
    eps,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Gradients of some heads of a token, and their terms of the weight's gradient (0 without)."""
    head = first + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, HALF)
    inside = (head < heads) & (columns[None, :] < HALF)
    place = (token * heads + head) * (2 * HALF) + columns[None, :]
    out_one = tl.load(of_out + place, mask=inside, other=0.0).to(tl.float32)
    out_two = tl.load(of_out + place + HALF, mask=inside, other=0.0).to(tl.float32)
    # The rotation is undone, then RMSNorm's gradient is as in rms_norm.
    slope_one = out_one * cosine + out_two * sine
    slope_two = out_two * cosine - out_one * sine
    of_one = slope_one
    of_two = slope_two
    by_one = tl.zeros_like(slope_one)
    by_two = tl.zeros_like(slope_two)
    if weight is not None:
        one, two, by = _unit(x, token * stride + head * head_stride, inside, eps, HALF)
        scaled_one = slope_one * tl.load(weight + columns).to(tl.float32)[None, :]
        scaled_two = slope_two * tl.load(weight + HALF + columns).to(tl.float32)[None, :]
        shared = (tl.sum(scaled_one * one, 1) + tl.sum(scaled_two * two, 1))[:, None] / (2 * HALF)
        of_one = (scaled_one - one * shared) * by
        of_two = (scaled_two - two * shared) * by
        # Heads that do not exist must not add NaN where the position is unknown.
        by_one = tl.where(inside, slope_one * one, 0.0)
        by_two = tl.where(inside, slope_two * two, 0.0)
    kind = of_x.dtype.element_ty
    tl.store(of_x + place, of_one.to(kind), mask=inside)
    tl.store(of_x + place + HALF, of_two.to(kind), mask=inside)
    return by_one, by_two


@triton.jit
def backward(
    of_q_out,  # [T, Q, 2 HALF]
    of_k_out,  # [T, K, 2 HALF]
    q,  # as in forward
    k,
    q_weight,
    k_weight,
    cos_sin,
    positions,
    of_q,  # [T, Q, 2 HALF], out
    of_k,  # [T, K, 2 HALF], out
    of_weights,  # [programs, 2, 2 HALF] float32, out: sums over a program's tokens; or None
    tokens,  # T
    limit,
    q_heads,
    k_heads,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    eps,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """`TOKENS` tokens one after the other."""
    program = tl.program_id(0)
    q_one = tl.zeros((HEADS, HALF), tl.float32)
    q_two = tl.zeros((HEADS, HALF), tl.float32)
    k_one = tl.zeros((HEADS, HALF), tl.float32)
    k_two = tl.zeros((HEADS, HALF), tl.float32)
    first = program.to(tl.int64) * TOKENS
    for step in range(0, tl.minimum(TOKENS, tokens - program * TOKENS)):
        token = first + step
        cosine, sine = _angles(cos_sin, tl.load(positions + token), limit, HALF)
        for head in range(0, q_heads, HEADS):
            one, two = _turn_back(
                of_q_out,
                q,
                of_q,
                q_weight,
                cosine,
                sine,
                token,
                q_heads,
                head,
                q_stride,
                q_head_stride,
                eps,
                HEADS,
                HALF,
            )
            q_one += one
            q_two += two
        for head in range(0, k_heads, HEADS):
            one, two = _turn_back(
                of_k_out,
                k,
                of_k,
                k_weight,
                cosine,
                sine,
                token,
                k_heads,
                head,
                k_stride,
                k_head_stride,
                eps,
                HEADS,
                HALF,
            )
            k_one += one
            k_two += two
    if of_weights is not None:
        columns = tl.arange(0, HALF)
        place = of_weights + program.to(tl.int64) * (4 * HALF) + columns
        tl.store(place, tl.sum(q_one, 0))
        tl.store(place + HALF, tl.sum(q_two, 0))
        tl.store(place + 2 * HALF, tl.sum(k_one, 0))
        tl.store(place + 3 * HALF, tl.sum(k_two, 0))
