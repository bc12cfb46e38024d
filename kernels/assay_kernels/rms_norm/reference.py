"""What `rms_norm` and `add_rms_norm` compute, in plain PyTorch.

    normed = value / sqrt(mean(value^2) + eps) * weight

with the mean over the last dimension (Zhang and Sennrich, 2019). In bfloat16 and float16 all of it
is computed in float32 and rounded once; the sum of `add_rms_norm` is rounded before that, so that
it equals `rms_norm` of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalised rows.

    Args:
        x: [..., H] of any float dtype.
        weight: [H].
        eps: added to the mean square.

    Returns:
        [..., H] of x's dtype.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    value = x.to(kind)
    square = value.pow(2).mean(-1, keepdim=True)
    return (value * torch.rsqrt(square + eps) * weight.to(kind)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalised rows of x + residual, and that sum."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def backward(
    of_normed: Tensor,
    of_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    inverse: Tensor,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients that autograd finds through `rms_norm`, for where it cannot be used.

    Args:
        of_normed: [R, H] gradient of the normalised rows.
        of_total: [R, H] gradient of the rows themselves, from where else they go; None for 0.
        total: [R, H] what was normalised.
        weight: [H].
        inverse: [R] 1 / root mean square.
        for_weight: whether the weight's gradient is asked for.

    Returns:
        Of total, in its dtype, and of the weight, in its own; an empty one where not asked for.
    """
    kind = inverse.dtype
    unit = total.to(kind) * inverse[:, None]
    slope = of_normed.to(kind)
    scaled = slope * weight.to(kind)
    found = (scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * inverse[:, None]
    if of_total is not None:
        found = found + of_total.to(kind)
    of_weight = (slope * unit).sum(0) if for_weight else weight.new_empty(0)
    return found.to(total.dtype), of_weight.to(weight.dtype)
