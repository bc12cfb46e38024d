"""silu(gate) * up, forward and backward; every element on its own."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    gate,  # [R, H], rows `gate_stride` apart
    up,  # [R, H], rows `up_stride` apart
    out,  # [R, H], rows side by side
    width,  # H
    gate_stride,
    up_stride,
    BLOCK: tl.constexpr,
):
    """Some columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    g = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    found = g / (1 + tl.exp(-g)) * u
    tl.store(out + row * width + columns, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward(
    of_out,  # [R, H], rows side by side
    gate,  # [R, H], rows `gate_stride` apart
    up,  # [R, H], rows `up_stride` apart
    of_gate,  # [R, H], rows `of_stride` apart, out
    of_up,  # [R, H], rows `of_stride` apart, out
    width,  # H
    gate_stride,
    up_stride,
    of_stride,
    BLOCK: tl.constexpr,
):
    """Some columns of a row, with s = sigmoid(gate):

    d gate = d out * up * s (1 + gate (1 - s)),  d up = d out * gate s
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    slope = tl.load(of_out + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    s = 1 / (1 + tl.exp(-g))
    steep = slope * u * s * (1 + g * (1 - s))
    plain = slope * g * s
    place = row * of_stride + columns
    tl.store(of_gate + place, steep.to(of_gate.dtype.element_ty), mask=inside)
    tl.store(of_up + place, plain.to(of_up.dtype.element_ty), mask=inside)
