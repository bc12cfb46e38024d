"""`matmul` for any device: one launch where it fits, its reference elsewhere."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay_kernels.matmul import reference
from assay_kernels.registry import Op, dtype_misfit, obstacle_of
from assay_kernels.rows import rows_of

OP = Op("matmul")
SPLIT = 2048
"""Elements along K that are summed before another such sum is added. What bits depend on."""
_TILES = 2**16
"""Tiles whose splits can be counted."""


@dataclass(frozen=True)
class Plan:
    """How the product is cut. Bits depend on none of it.

    Attributes:
        rows: of a tile.
        columns: of a tile.
        depth: elements along K of one step.
        apart: whether each split has a program of its own.
        warps: of a program.
        stages: steps that are loaded ahead.
    """

    rows: int
    columns: int
    depth: int
    apart: bool
    warps: int
    stages: int

    @classmethod
    def of(cls, rows: int, columns: int, depth: int, size: int, processors: int) -> Plan:
        """The plan for a shape.

        Args:
            rows: M.
            columns: N.
            depth: K.
            size: bytes of an element.
            processors: multiprocessors of the device.
        """
        narrow = size > 2  # float32 takes twice the memory, and no tensor cores
        block = next(b for b in (16, 32, 64, 128) if rows <= b or b == (32 if narrow else 128))
        tiles = math.ceil(rows / block) * math.ceil(columns / 64)
        apart = depth > SPLIT and tiles <= 2 * processors
        if narrow:
            return cls(block, 64, 32, apart, 4, 2)
        if apart:
            return cls(block, 64, 128 if block < 128 else 64, True, 4, 4)
        if block < 128:
            return cls(block, 128, 128, False, 8, 3)
        return cls(128, 128, 64, False, 8, 4)


def matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x W^T + bias; a row's bits do not depend on other rows, nor on how many there are.

    Gradients are PyTorch's products: right, but not of the same bits in every batch.

    Args:
        x: [..., K] bfloat16, float16, float32 or float64.
        weight: [N, K] of x's dtype.
        bias: [N] of a float dtype.
        out_dtype: x's by default; or float32, unrounded, as for the logits of a head.

    Returns:
        [..., N].

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(x, weight, bias, out_dtype)
    out = torch.ops.assay_kernels.matmul(rows_of(x), weight, bias, out_dtype)
    return out.view(*x.shape[:-1], weight.shape[0])


def check(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> None:
    """Raises what `matmul` says it raises."""
    if not x.dim() or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not weight.numel():
        raise ValueError(
            "x must be [..., K] and weight [N, K], N and K above 0, not "
            f"{list(x.shape)} and {list(weight.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"x must be of a float dtype, not {x.dtype}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must be {x.dtype}, not {weight.dtype}")
    if out_dtype not in (None, x.dtype, torch.float32):
        raise TypeError(f"out_dtype must be {x.dtype} or {torch.float32}, not {out_dtype}")
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must be [{len(weight)}], not {list(bias.shape)}")
        if not bias.is_floating_point():
            raise TypeError(f"bias must be of a float dtype, not {bias.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, not {tensor.device}")


def why_not(x: Tensor) -> str | None:
    """What keeps this call from the kernel."""
    return dtype_misfit(x, "x is") or obstacle_of(x.device)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


_done: dict[tuple[torch.device, int], Tensor] = {}


def _counters(device: torch.device) -> Tensor:
    """[_TILES] int32, all 0 whenever no launch of this stream is under way."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if (device, stream) not in _done:
        _done[device, stream] = torch.zeros(_TILES, dtype=torch.int32, device=device)
    return _done[device, stream]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    if not OP.fused(why_not(x)):
        return reference.matmul(x, weight, bias, out_dtype)
    out = _shape(x, weight, bias, out_dtype)
    (rows, depth), columns = x.shape, len(weight)
    if not rows:
        return out
    from assay_kernels.matmul import kernel  # noqa: PLC0415 (needs Triton)

    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    plan = Plan.of(rows, columns, depth, x.element_size(), _processors(x.device))
    splits = math.ceil(depth / SPLIT) if plan.apart else 1
    tiles = math.ceil(rows / plan.rows) * math.ceil(columns / plan.columns)
    kernel.product[(tiles, splits)](
        x,
        weight,
        bias if bias is None else bias.contiguous(),
        out,
        out.new_empty((splits, rows, columns), dtype=torch.float32) if plan.apart else None,
        _counters(x.device) if plan.apart else None,
        rows,
        columns,
        depth,
        x.stride(0),
        weight.stride(0),
        SPLIT=SPLIT,
        BLOCK_M=plan.rows,
        BLOCK_N=plan.columns,
        BLOCK_K=plan.depth,
        APART=plan.apart,
        EVEN=depth % plan.depth == 0,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    return out


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
    return x.new_empty((len(x), len(weight)), dtype=out_dtype or x.dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _differentiate(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_weight = reference.backward(of_out, *ctx.saved_tensors)
    of_bias = None if ctx.bias is None else of_out.float().sum(0).to(ctx.bias)
    return of_x, of_weight, of_bias, None


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define("matmul(Tensor x, Tensor weight, Tensor? bias, ScalarType? out_dtype) -> Tensor")
_library.impl("matmul", _forward, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::matmul", _shape, lib=_library)
torch.library.register_autograd(
    "assay_kernels::matmul", _differentiate, setup_context=_remember, lib=_library
)
