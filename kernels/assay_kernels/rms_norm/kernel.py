"""RMSNorm of rows, forward and backward. What happens to a row does not depend on other rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x,  # [R, H], rows `stride` apart
    residual,  # [R, H], rows `residual_stride` apart, or None
    weight,  # [H]
    normed,  # [R, H], out
    total,  # [R, H], out where there is residual: x + residual
    inverse,  # [R] float32, out: 1 / root mean square
    width,  # H
    stride,
    residual_stride,
    eps,
    BLOCK: tl.constexpr,
):
    """One program a row. The sum is rounded before it is normalised: it is what goes on."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    if residual is not None:
        other = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0)
        value = (value.to(tl.float32) + other.to(tl.float32)).to(value.dtype)
        tl.store(total + row * width + columns, value, mask=inside)
    value = value.to(tl.float32)
    by = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    tl.store(inverse + row, by)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    found = value * by * scale
    tl.store(normed + row * width + columns, found.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    of_normed,  # [R, H]
    of_total,  # [R, H], or None
    total,  # [R, H], rows `stride` apart: what was normalised
    weight,  # [H]
    inverse,  # [R] float32
    of_x,  # [R, H], out
    of_weight,  # [programs, H] float32, out: sums over a program's rows; or None
    rows,  # R
    width,  # H
    stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`ROWS` rows one after the other, with n = value / rms and g = d normed * weight:

    d value = (g - n mean(g n)) / rms + d total
    """
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK,), tl.float32)
    first = program.to(tl.int64) * ROWS
    for step in range(0, tl.minimum(ROWS, rows - program * ROWS)):
        place = first + step
        value = tl.load(total + place * stride + columns, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(of_normed + place * width + columns, mask=inside, other=0.0).to(tl.float32)
        by = tl.load(inverse + place)
        unit = value * by
        scaled = slope * scale
        shared = tl.sum(scaled * unit, 0) / width
        found = (scaled - unit * shared) * by
        if of_total is not None:
            found += tl.load(of_total + place * width + columns, mask=inside, other=0.0)
        tl.store(of_x + place * width + columns, found.to(of_x.dtype.element_ty), mask=inside)
        sums += slope * unit
    if of_weight is not None:
        tl.store(of_weight + program.to(tl.int64) * width + columns, sums, mask=inside)
