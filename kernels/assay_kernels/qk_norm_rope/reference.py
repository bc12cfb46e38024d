"""What `qk_norm_rope` computes, in plain PyTorch.

Each head h of queries and keys is normalised, n = h / sqrt(mean(h^2) + eps) * weight, and its
halves n1 and n2 are rotated by the angles of the token's position (Su et al., 2021; halves as in
GPT-NeoX):

    n1 cos - n2 sin,  n2 cos + n1 sin

In bfloat16 and float16 all of it is computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos_sin: Tensor,
    positions: Tensor,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalised and rotated queries and keys.

    Args:
        q: [T, Q, D] of any float dtype, D even.
        k: [T, K, D].
        q_weight: [D]; None where heads are only rotated.
        k_weight: likewise.
        cos_sin: [P, D] cosines, then sines, of D / 2 angles a position.
        positions: [T] integers; where one is outside the table, the token's heads are NaN.
        eps: added to the mean square.

    Returns:
        As q and k.
    """
    cosine, sine = _angles(cos_sin, positions)

    def turned(x: Tensor, weight: Tensor | None) -> Tensor:
        unit = x.to(torch.promote_types(x.dtype, torch.float32))
        if weight is not None:
            unit = _unit(x, eps)[0] * weight.to(unit.dtype)
        one, two = unit.chunk(2, -1)
        c, s = cosine.to(unit.dtype), sine.to(unit.dtype)
        return torch.cat((one * c - two * s, two * c + one * s), -1).to(x.dtype)

    return turned(q, q_weight), turned(k, k_weight)


def backward(
    of_q_out: Tensor,
    of_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos_sin: Tensor,
    positions: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients that autograd finds through `qk_norm_rope`, for where it cannot be used.

    Returns:
        Of q, k, q_weight and k_weight, each in its dtype; empty ones where there are no weights.
    """
    cosine, sine = _angles(cos_sin, positions)

    def turned_back(of_out: Tensor, x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        unit, by = _unit(x, eps)
        one, two = of_out.to(unit.dtype).chunk(2, -1)
        c, s = cosine.to(unit.dtype), sine.to(unit.dtype)
        slope = torch.cat((one * c + two * s, two * c - one * s), -1)
        if weight is None:
            return slope.to(x.dtype), x.new_empty(0)
        scaled = slope * weight.to(unit.dtype)
        of_x = (scaled - unit * (scaled * unit).mean(-1, keepdim=True)) * by
        return of_x.to(x.dtype), (slope * unit).sum((0, 1)).to(weight.dtype)

    of_q, of_q_weight = turned_back(of_q_out, q, q_weight)
    of_k, of_k_weight = turned_back(of_k_out, k, k_weight)
    return of_q, of_k, of_q_weight, of_k_weight


def _angles(cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """[T, 1, D / 2] cosines and sines."""
    known = (positions >= 0) & (positions < len(cos_sin))
    rows = cos_sin[torch.where(known, positions, 0).long()]
    cosine, sine = torch.where(known[:, None], rows, torch.nan)[:, None].chunk(2, -1)
    return cosine, sine


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Heads over their root mean square, and one over that."""
    fine = x.to(torch.promote_types(x.dtype, torch.float32))
    by = torch.rsqrt(fine.pow(2).mean(-1, keepdim=True) + eps)
    return fine * by, by
