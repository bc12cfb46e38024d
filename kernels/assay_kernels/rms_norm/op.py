"""`rms_norm` and `add_rms_norm` for any device: fused where they fit, by reference elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from assay_kernels.registry import Op, dtype_misfit, obstacle_of
from assay_kernels.rms_norm import reference
from assay_kernels.rows import rows_of

OP = Op("rms_norm")
WIDEST = 32_768
"""A row is held in registers as a whole."""
_ROWS = 16
"""Rows whose gradient of the weight is summed by one program."""


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalised rows; a row's bits, and those of its gradient, do not depend on other rows.

    Args:
        x: [..., H] bfloat16, float16, float32 or float64.
        weight: [H] of a float dtype.
        eps: added to the mean square.

    Returns:
        [..., H] of x's dtype.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(x, None, weight)
    normed, _, _ = torch.ops.assay_kernels.rms_norm(rows_of(x), None, weight, float(eps))
    return normed.view(x.shape)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """`rms_norm` of x + residual, and that sum; the same bits as in two steps.

    Args:
        x: [..., H] bfloat16, float16, float32 or float64.
        residual: as x.
        weight: [H] of a float dtype.
        eps: added to the mean square.

    Returns:
        [..., H] normalised, and x + residual, both of x's dtype.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(x, residual, weight)
    normed, total, _ = torch.ops.assay_kernels.rms_norm(
        rows_of(x), rows_of(residual), weight, float(eps)
    )
    return normed.view(x.shape), total.view(x.shape)


def check(x: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    """Raises what `rms_norm` and `add_rms_norm` say they raise."""
    if not x.dim() or not x.shape[-1]:
        raise ValueError(f"x must be [..., H] with H above 0, not {list(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be [{x.shape[-1]}], not {list(weight.shape)}")
    for name, tensor in (("x", x), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a float dtype, not {tensor.dtype}")
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device}, not {weight.device}")
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(f"residual must be {list(x.shape)}, not {list(residual.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual must be {x.dtype}, not {residual.dtype}")
    if residual.device != x.device:
        raise ValueError(f"residual must be on {x.device}, not {residual.device}")


def why_not(x: Tensor) -> str | None:
    """What keeps this call from the kernels."""
    if misfit := dtype_misfit(x, "x is"):
        return misfit
    if x.shape[-1] > WIDEST:
        return f"rows are wider than {WIDEST}"
    return obstacle_of(x.device)


def block_of(width: int) -> tuple[int, int]:
    """The block that holds a row, and the warps that work on it; of the width alone."""
    block = 1 << (width - 1).bit_length()
    return block, min(32, max(1, block // 512))


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    normed, total, inverse = _shapes(x, residual)
    if not OP.fused(why_not(x)):
        value = x if residual is None else x + residual
        fine = value.to(inverse.dtype)
        inverse = torch.rsqrt(fine.pow(2).mean(-1) + eps)
        total = total if residual is None else value
        return reference.rms_norm(value, weight, eps), total, inverse
    from assay_kernels.rms_norm import kernel  # noqa: PLC0415 (needs Triton)

    if not len(x):
        return normed, total, inverse
    block, warps = block_of(x.shape[1])
    kernel.forward[(len(x),)](
        x,
        residual,
        weight.contiguous(),
        normed,
        total,
        inverse,
        x.shape[1],
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        BLOCK=block,
        num_warps=warps,
    )
    return normed, total, inverse


def _backward(
    of_normed: Tensor,
    of_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    inverse: Tensor,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of what was normalised, and of the weight; an empty one where not asked for."""
    of_x, of_weight = _gradient_shapes(of_normed, of_total, total, weight, inverse, for_weight)
    if not OP.fused(why_not(total)):
        return reference.backward(of_normed, of_total, total, weight, inverse, for_weight)
    from assay_kernels.rms_norm import kernel  # noqa: PLC0415 (needs Triton)

    rows, width = total.shape
    if not rows:
        return of_x, of_weight.zero_()
    programs = math.ceil(rows / _ROWS)
    sums = inverse.new_empty((programs, width)) if for_weight else None
    block, warps = block_of(width)
    warps = min(32, 2 * warps)
    kernel.backward[(programs,)](
        of_normed.contiguous(),
        of_total if of_total is None else of_total.contiguous(),
        total,
        weight.contiguous(),
        inverse,
        of_x,
        sums,
        rows,
        width,
        total.stride(0),
        ROWS=_ROWS,
        BLOCK=block,
        num_warps=warps,
    )
    return of_x, of_weight if sums is None else sums.sum(0).to(weight.dtype)


def _shapes(x: Tensor, residual: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(x.dtype, torch.float32)
    total = x.new_empty(0 if residual is None else x.shape)
    return x.new_empty(x.shape), total, x.new_empty(len(x), dtype=kind)


def _gradient_shapes(
    of_normed: Tensor,
    of_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    inverse: Tensor,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape if for_weight else 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, _ = inputs
    _, total, inverse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(inverse)
    ctx.save_for_backward(x if residual is None else total, weight, inverse)
    ctx.added = residual is not None


def _differentiate(
    ctx: Any, of_normed: Tensor | None, of_total: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    if of_normed is None:
        return of_total, of_total if ctx.added else None, None, None
    for_weight = ctx.needs_input_grad[2]
    of_x, of_weight = torch.ops.assay_kernels.rms_norm_backward(
        of_normed, of_total if ctx.added else None, *ctx.saved_tensors, for_weight
    )
    return of_x, of_x if ctx.added else None, of_weight if for_weight else None, None


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(
    "rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "rms_norm_backward(Tensor of_normed, Tensor? of_total, Tensor total, Tensor weight, "
    "Tensor inverse, bool for_weight) -> (Tensor, Tensor)"
)
_library.impl("rms_norm", _forward, "CompositeExplicitAutograd")
_library.impl("rms_norm_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::rms_norm", _shapes, lib=_library)
torch.library.register_fake("assay_kernels::rms_norm_backward", _gradient_shapes, lib=_library)
torch.library.register_autograd(
    "assay_kernels::rms_norm", _differentiate, setup_context=_remember, lib=_library
)
