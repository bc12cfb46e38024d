"""`silu_mul` for any device: one launch where it fits, its reference elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from assay_kernels.registry import Op, dtype_misfit, obstacle_of
from assay_kernels.rows import rows_of
from assay_kernels.silu_mul import reference

OP = Op("silu_mul")
_BLOCK, _WARPS = 4096, 8


def silu_mul(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up; an element's bits, and those of its gradients, depend on it alone.

    Args:
        gate: [..., H] bfloat16, float16, float32 or float64; or [..., 2 H], gate and up side by
            side, without `up`.
        up: as gate.

    Returns:
        [..., H] of gate's dtype.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(gate, up)
    shape = gate.shape
    if up is None:
        return torch.ops.assay_kernels.silu_mul_pair(rows_of(gate)).view(
            *shape[:-1], shape[-1] // 2
        )
    return torch.ops.assay_kernels.silu_mul(rows_of(gate), rows_of(up)).view(shape)


def check(gate: Tensor, up: Tensor | None) -> None:
    """Raises what `silu_mul` says it raises."""
    if not gate.is_floating_point():
        raise TypeError(f"gate must be of a float dtype, not {gate.dtype}")
    if not gate.dim() or not gate.shape[-1]:
        raise ValueError(f"gate must be [..., H] with H above 0, not {list(gate.shape)}")
    if up is None:
        if gate.shape[-1] % 2:
            raise ValueError(f"gate and up must be of one width, but have {gate.shape[-1]} columns")
        return
    if up.shape != gate.shape:
        raise ValueError(f"up must be {list(gate.shape)}, not {list(up.shape)}")
    if up.dtype != gate.dtype:
        raise TypeError(f"up must be {gate.dtype}, not {up.dtype}")
    if up.device != gate.device:
        raise ValueError(f"up must be on {gate.device}, not {up.device}")


def why_not(gate: Tensor) -> str | None:
    """What keeps this call from the kernels."""
    return dtype_misfit(gate, "gate is") or obstacle_of(gate.device)


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    if not OP.fused(why_not(gate)):
        return reference.silu_mul(gate, up)
    out = gate.new_empty(gate.shape)
    if not out.numel():
        return out
    from assay_kernels.silu_mul import kernel  # noqa: PLC0415 (needs Triton)

    rows, width = gate.shape
    kernel.forward[(rows, math.ceil(width / _BLOCK))](
        gate,
        up,
        out,
        width,
        gate.stride(0),
        up.stride(0),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return out


def _backward(of_out: Tensor, gate: Tensor, up: Tensor, packed: bool) -> Tensor:
    """Both gradients: side by side, [R, 2 H], where packed, else one after the other, [2, R, H]."""
    rows, width = gate.shape
    found = gate.new_empty((rows, 2 * width) if packed else (2, rows, width))
    of_gate, of_up = found.chunk(2, -1) if packed else found
    if not OP.fused(why_not(gate)):
        for part, value in zip((of_gate, of_up), reference.backward(of_out, gate, up), strict=True):
            part.copy_(value)
        return found
    if not found.numel():
        return found
    from assay_kernels.silu_mul import kernel  # noqa: PLC0415 (needs Triton)

    kernel.backward[(rows, math.ceil(width / _BLOCK))](
        of_out.contiguous(),
        gate,
        up,
        of_gate,
        of_up,
        width,
        gate.stride(0),
        up.stride(0),
        of_gate.stride(0),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return found


def _forward_pair(pair: Tensor) -> Tensor:
    return _forward(*pair.chunk(2, -1))


def _shape(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _pair_shape(pair: Tensor) -> Tensor:
    return pair.new_empty((len(pair), pair.shape[1] // 2))


def _gradient_shape(of_out: Tensor, gate: Tensor, up: Tensor, packed: bool) -> Tensor:
    rows, width = gate.shape
    return gate.new_empty((rows, 2 * width) if packed else (2, rows, width))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor]:
    of_gate, of_up = torch.ops.assay_kernels.silu_mul_backward(of_out, *ctx.saved_tensors, False)
    return of_gate, of_up


def _differentiate_pair(ctx: Any, of_out: Tensor) -> Tensor:
    halves = ctx.saved_tensors[0].chunk(2, -1)
    found: Tensor = torch.ops.assay_kernels.silu_mul_backward(of_out, *halves, True)
    return found


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define("silu_mul(Tensor gate, Tensor up) -> Tensor")
_library.define("silu_mul_pair(Tensor pair) -> Tensor")
_library.define("silu_mul_backward(Tensor of_out, Tensor gate, Tensor up, bool packed) -> Tensor")
_library.impl("silu_mul", _forward, "CompositeExplicitAutograd")
_library.impl("silu_mul_pair", _forward_pair, "CompositeExplicitAutograd")
_library.impl("silu_mul_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::silu_mul", _shape, lib=_library)
torch.library.register_fake("assay_kernels::silu_mul_pair", _pair_shape, lib=_library)
torch.library.register_fake("assay_kernels::silu_mul_backward", _gradient_shape, lib=_library)
for _name, _slope in (("silu_mul", _differentiate), ("silu_mul_pair", _differentiate_pair)):
    torch.library.register_autograd(
        f"assay_kernels::{_name}", _slope, setup_context=_remember, lib=_library
    )
