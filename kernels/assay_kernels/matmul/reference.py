"""What `matmul` computes, in plain PyTorch: x W^T + bias."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x W^T + bias, computed in float32 or finer and rounded once.

    Args:
        x: [M, K] of any float dtype.
        weight: [N, K] of x's dtype.
        bias: [N] of a float dtype.
        out_dtype: of the result; x's by default.

    Returns:
        [M, N].
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    found = x.to(kind) @ weight.to(kind).t()
    if bias is not None:
        found = found + bias.to(kind)
    return found.to(out_dtype or x.dtype)


def backward(of_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight, each in its dtype; factors are of their dtype too."""
    slope = of_out.to(x.dtype)
    return slope @ weight, slope.t() @ x
