"""The parts that `linear_logprob` and `linear_policy_loss` are made of: groups, products, passes.

Logits are a matrix [rows, columns of the vocabulary] that lies in memory row by row or column by
column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

SCRATCH = 224 * 2**20
"""Bytes of logits in memory at one time: of 768 rows in bf16 at a vocabulary of 151,936."""
LOG2_E = math.log2(math.e)
_TILES = {True: (1, 4096), False: (64, 64)}
"""Rows and columns that a program has in hand: where rows have no gaps, and where columns have
none."""
_EACH = {True: 16_384, False: 4_096}
"""Columns that a program of `statistics` goes through; the same for any number of rows, so that
what is said of a row does not depend on others."""
_ROWS = 64
_WIDE = 16
"""Rows of logits begin at multiples of so many elements, for cuBLAS's fast kernels and ours."""
_TILE = 384
"""Groups are multiples of this. On an H100, products of 384, 768 and 1,152 rows ran at 750 to 790
TFLOP/s, those of 896 and 1,024 at 650 to 760: tiles then fill the multiprocessors evenly."""


def groups(count: int, each: int, size: int) -> Iterator[slice]:
    """Cuts `count` rows or columns into even groups of at most `size` bytes, in whole tiles.

    Args:
        count: how many there are.
        each: bytes that one takes.
        size: bytes that a group may take; at least one tile is in it.
    """
    most = max(1, size // each // _TILE) * _TILE
    step = math.ceil(count / math.ceil(count / most) / _TILE) * _TILE if count else most
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def room(like: Tensor, rows: int, columns: int) -> Tensor:
    """[rows, columns] of logits to be, or of their transpose; rows are padded to `_WIDE`."""
    return like.new_empty((rows, _wide(columns)))[:, :columns]


def dense(matrix: Tensor) -> Tensor:
    """The matrix, copied if its rows do not lie as cuBLAS needs them, or else each group would."""
    return (
        matrix
        if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
        else (matrix.contiguous())
    )


def survey(logits: Tensor, targets: Tensor, temperature: float, into: tuple[Tensor, ...]) -> None:
    """Statistics of rows of logits.

    Args:
        logits: [R, V], rows or columns without gaps, as `room` makes them.
        targets: [R].
        temperature: divides the logits.
        into: [R] log-probs, log-sum-exps and entropies, to be filled.
    """
    from assay_kernels.linear_logprob import kernel  # noqa: PLC0415 (needs Triton)

    rows, columns = logits.shape
    tile, width = _TILES[logits.stride(1) == 1]
    each = _EACH[logits.stride(1) == 1]
    splits = math.ceil(columns / each)
    partials = logits.new_empty((3, splits, rows), dtype=torch.float32)
    slope = LOG2_E / temperature
    kernel.statistics[(math.ceil(rows / tile), splits)](
        logits,
        partials,
        rows,
        columns,
        *_padded(logits),
        *logits.stride(),
        each,
        slope,
        ROWS=tile,
        COLUMNS=width,
        num_warps=4,
    )
    kernel.conclude[(math.ceil(rows / _ROWS),)](
        logits,
        targets,
        partials,
        *into,
        rows,
        columns,
        *logits.stride(),
        splits,
        slope,
        ROWS=_ROWS,
        num_warps=1,
    )


def turn(
    logits: Tensor,
    into: Tensor,
    targets: Tensor,
    stand: tuple[Tensor, ...],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    first: int,
    vocabulary: int,
    temperature: float,
) -> None:
    """Makes the gradient of logits.

    Args:
        logits: [R, C] the columns `first` to `first + C`, as in `survey`.
        into: [R, C] where the gradient goes; it may be the logits.
        targets: [R].
        stand: [R] log-sum-exps and entropies.
        gradients: [R] of log-probs, log-sum-exps and entropies; None where there is none.
        first: see logits.
        vocabulary: how many columns there are in all.
        temperature: divides the logits.
    """
    from assay_kernels.linear_logprob import kernel  # noqa: PLC0415 (needs Triton)

    rows, columns = logits.shape
    tile, width = _TILES[logits.stride(1) == 1]
    blocks = math.ceil(columns / width)
    kernel.gradients[(math.ceil(rows / tile) * blocks,)](
        logits,
        into,
        targets,
        *stand,
        *gradients,
        rows,
        first,
        vocabulary,
        *_padded(logits),
        *logits.stride(),
        *into.stride(),
        blocks,
        LOG2_E / temperature,
        1 / temperature,
        ROWS=tile,
        COLUMNS=width,
        num_warps=8,
    )


def _padded(logits: Tensor) -> tuple[int, int]:
    """How many rows and columns may be read and written, with the padding that `room` leaves."""
    rows, columns = logits.shape
    if logits.stride(1) == 1:
        return rows, max(columns, min(_wide(columns), logits.stride(0)))
    return max(rows, min(_wide(rows), logits.stride(1))), columns


def _wide(count: int) -> int:
    return math.ceil(count / _WIDE) * _WIDE


def add_product(total: Tensor, left: Tensor, right: Tensor, *, anew: bool) -> None:
    """total = left @ right, or total += left @ right; summed in total's dtype, or finer.

    Args:
        total: of the factors' dtype, or float32.
        left: a matrix.
        right: a matrix.
        anew: whether to forget what total holds.
    """
    same = left.dtype == total.dtype
    if left.device.type != "cuda" and not same:
        product = left.to(total.dtype) @ right.to(total.dtype)
        total.copy_(product) if anew else total.add_(product)
    elif anew:
        torch.mm(left, right, out=total) if same else torch.mm(
            left, right, out_dtype=total.dtype, out=total
        )
    elif same:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
