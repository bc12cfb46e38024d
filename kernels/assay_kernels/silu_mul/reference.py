"""What `silu_mul` computes, in plain PyTorch: gate * sigmoid(gate) * up (Shazeer, 2020).

In bfloat16 and float16 it is computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate: [..., H] of any float dtype.
        up: as gate.

    Returns:
        As gate.
    """
    kind = torch.promote_types(gate.dtype, torch.float32)
    return (functional.silu(gate.to(kind)) * up.to(kind)).to(gate.dtype)


def backward(of_out: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients that autograd finds through `silu_mul`, for where it cannot be used."""
    kind = torch.promote_types(gate.dtype, torch.float32)
    slope, g, u = (x.to(kind) for x in (of_out, gate, up))
    s = g.sigmoid()
    return (slope * u * s * (1 + g * (1 - s))).to(gate.dtype), (slope * g * s).to(up.dtype)
