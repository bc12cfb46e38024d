"""Tensors of any shape as rows, for ops on the last dimension."""

from __future__ import annotations

from torch import Tensor


def rows_of(x: Tensor) -> Tensor:
    """[R, H] with elements of a row side by side; a view where it can be one."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
