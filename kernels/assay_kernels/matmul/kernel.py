"""A product whose every element is summed in one order: along K in splits of `SPLIT`, each in
steps of the tensor core's 16, and then over the splits.

Few rows give few tiles, so there each split of a tile has a program of its own, and the last one to
finish adds up what all left; else a program does its tile's splits one after the other. The order
is the same, and so is the instruction: tiles are held as [N, M], so that a tile of 16 rows and one
of 128 differ in how many columns the instruction has, but not in how it sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

BAND: tl.constexpr = tl.constexpr(8)
"""Tiles along M that are next to each other."""


@triton.jit
def _place(tile, across, down):
    """Where a tile lies. Tiles of `BAND` along M follow each other for each of N, then the next
    `BAND`: so x and weight are still in the cache when they are read again."""
    band = tile // (BAND * down) * BAND
    size = tl.minimum(across - band, BAND)
    inside = tile % (BAND * down)
    return band + inside % size, inside // size


@triton.jit
def _store(total, out, bias, row, column, rows, columns, split):
    """Writes a tile, [N, M], into [splits, M, N]."""
    if bias is not None:
        by = tl.load(bias + column, mask=column < columns, other=0.0)
        total += by.to(tl.float32)[:, None]
    place = out + (split * rows + row)[None, :].to(tl.int64) * columns + column[:, None]
    inside = (column[:, None] < columns) & (row[None, :] < rows)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def product(
    x,  # [M, K], rows `x_stride` apart
    weight,  # [N, K], rows `weight_stride` apart
    bias,  # [N], or None
    out,  # [M, N], out
    partials,  # [splits, M, N] float32, for use here where APART
    arrivals,  # [tiles] int32, 0 before and after: programs of a tile that have finished
    rows,  # M
    columns,  # N
    depth,  # K
    x_stride,
    weight_stride,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    APART: tl.constexpr,
    EVEN: tl.constexpr,  # whether K is a multiple of BLOCK_K
):
    """One tile, or one split of one."""
    tile = tl.program_id(0)
    across, down = _place(tile, tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N))
    row = across * BLOCK_M + tl.arange(0, BLOCK_M)
    column = down * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    # What lies outside is computed from the first row or column, and not stored.
    x += tl.where(row < rows, row, 0).to(tl.int64)[:, None] * x_stride + step[None, :]
    from_column = tl.where(column < columns, column, 0).to(tl.int64)
    weight += from_column[:, None] * weight_stride + step[None, :]
    splits = tl.cdiv(depth, SPLIT)
    first = 0
    last = splits
    if APART:
        first = tl.program_id(1)
        last = first + 1
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for split in range(first, last):
        part = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, depth), BLOCK_K):
            if EVEN:
                some = tl.load(x + k)
                others = tl.load(weight + k)
            else:
                inside = (step < depth - k)[None, :]
                some = tl.load(x + k, mask=inside, other=0.0)
                others = tl.load(weight + k, mask=inside, other=0.0)
            part = tl.dot(others, tl.trans(some), part, input_precision="ieee")
        total += part
    if APART:
        _store(total, partials, None, row, column, rows, columns, first)
        # Every thread's numbers are written before one of them says that this split is done.
        tl.debug_barrier()
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == splits - 1:
            tl.debug_barrier()
            inside = (column[:, None] < columns) & (row[None, :] < rows)
            total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for split in range(0, splits):
                place = (split * rows + row)[None, :].to(tl.int64) * columns + column[:, None]
                # Past the first cache, which need not know what other multiprocessors wrote.
                total += tl.load(partials + place, mask=inside, other=0.0, cache_modifier=".cg")
            _store(total, out, bias, row, column, rows, columns, 0)
            tl.store(arrivals + tile, 0)
    else:
        _store(total, out, bias, row, column, rows, columns, 0)
