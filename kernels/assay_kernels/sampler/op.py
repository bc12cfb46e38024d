"""`sample` and `score` for any device: two launches where they fit, their reference elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay_kernels.registry import Op, dtype_misfit, interpreted, obstacle_of
from assay_kernels.sampler import reference
from assay_kernels.sampler.reference import Sampled, Scored

OP = Op("sampler")
_MOST = 2**30
"""Tokens are counted in 32 bits."""
_GROUP = 128
"""Tokens whose largest logit is kept: `kernel.SIZE`."""
_ROWS, _TILES, _WARPS = 8, 8, 4
"""Groups that `survey` reads together, how often, and with how many warps: a chunk. Fixed, since
sums must not depend on the batch."""


def sample(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
) -> Sampled:
    """`reference.sample`, to float32's rounding; a row's bits do not depend on other rows.

    Args:
        logits: [B, V] bfloat16, float16, float32 or float64; left as they are.
        temperatures: [B] of a float dtype. Where one is not above 0 and finite, the row's
            first-ranked token is taken and its log-prob is that at temperature 1.
        seeds: [B] int64, one a request.
        positions: [B] int32 or int64, of the token to be drawn in its sequence.
        top_ks: [B] int32 or int64; 0 and below, and V and above, leave out nothing.
        top_ps: [B] of a float dtype; 1 and above, and NaN, leave out nothing; 0 and below leave
            one token.
        min_ps: [B] of a float dtype; 0 and below, and NaN, leave out nothing; above 1 is as 1.

    Returns:
        [B] tokens, int64, and [B] their log-probs at the temperature, before any filter, float32
        (float64 where logits are). NaN and -inf are never drawn; a row of nothing else gives token
        0 with log-prob NaN.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(logits, temperatures, seeds, positions, top_ks, top_ps, min_ps)
    return Sampled(
        *torch.ops.assay_kernels.sample(
            logits, temperatures, seeds, positions, top_ks, top_ps, min_ps
        )
    )


def score(logits: Tensor, temperatures: Tensor, tokens: Tensor) -> Scored:
    """The log-probs that `sample` gives where it draws these tokens, to the last bit.

    Logits are to be of the same dtype, and rows as far apart in memory, as those that `sample`
    gets: how a kernel reads a row decides in which order it sums. No gradients.

    Args:
        logits: [B, V] bfloat16, float16, float32 or float64; left as they are.
        temperatures: [B] of a float dtype, as in `sample`.
        tokens: [B] int64; where one is outside the vocabulary, its log-prob is NaN.

    Returns:
        [B] log-probs and log-sum-exps at the temperature, float32 (float64 where logits are).

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(logits, temperatures, tokens, tokens, None, None, None)
    return Scored(*torch.ops.assay_kernels.score(logits, temperatures, tokens))


def check(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    top_ks: Tensor | None,
    top_ps: Tensor | None,
    min_ps: Tensor | None,
) -> None:
    """Raises what `sample` says it raises."""
    if logits.dim() != 2:
        raise ValueError(f"logits must be [B, V], not {list(logits.shape)}")
    if not logits.shape[1]:
        raise ValueError("the vocabulary is empty")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be of a float dtype, not {logits.dtype}")
    whole = {"seeds": seeds, "positions": positions, "top_ks": top_ks}
    broken = {"temperatures": temperatures, "top_ps": top_ps, "min_ps": min_ps}
    for name, tensor in (whole | broken).items():
        if tensor is None:
            continue
        if tensor.shape != logits.shape[:1]:
            raise ValueError(f"{name} must be [{len(logits)}], not {list(tensor.shape)}")
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on {logits.device}, not {tensor.device}")
        if name in broken and not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a float dtype, not {tensor.dtype}")
        if name in whole and tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, not {tensor.dtype}")
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must be int64, not {seeds.dtype}")


def why_not(logits: Tensor) -> str | None:
    """What keeps this call from the kernels."""
    if misfit := dtype_misfit(logits, "logits are"):
        return misfit
    if logits.shape[1] > _MOST:
        return f"the vocabulary is larger than {_MOST}"
    return obstacle_of(logits.device)


def _sample(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    top_ks: Tensor | None,
    top_ps: Tensor | None,
    min_ps: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if not OP.fused(why_not(logits)):
        if not len(logits):
            return _shapes(logits)
        return reference.sample(logits, temperatures, seeds, positions, top_ks, top_ps, min_ps)
    from assay_kernels.sampler import choose  # noqa: PLC0415 (needs Triton)

    tokens, log_probs = _shapes(logits)
    rows, vocabulary = logits.shape
    if not rows:
        return tokens, log_probs
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    temperatures = temperatures.float().contiguous()
    seeds, positions = seeds.contiguous(), positions.contiguous()
    peaks, parts, winners = _surveyed(logits, temperatures, seeds, positions)
    groups, chunks = peaks.shape[1], winners.shape[1]
    choose.choose[(rows,)](
        logits,
        temperatures,
        None if top_ks is None else top_ks.contiguous(),
        None if top_ps is None else top_ps.float().contiguous(),
        None if min_ps is None else min_ps.float().contiguous(),
        seeds,
        positions,
        peaks,
        parts,
        winners,
        torch.empty_like(peaks, dtype=torch.int32),
        tokens,
        log_probs,
        vocabulary,
        logits.stride(0),
        chunks,
        groups,
        CHUNKS=1 << (chunks - 1).bit_length(),
        INTERPRET=interpreted(),
        num_warps=8,
    )
    return tokens, log_probs


def _surveyed(
    logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The first launch: peaks, parts and winners, as `kernel.survey` has them."""
    from assay_kernels.sampler import kernel  # noqa: PLC0415 (needs Triton)

    rows, vocabulary = logits.shape
    groups = math.ceil(vocabulary / _GROUP)
    chunks = math.ceil(groups / (_ROWS * _TILES))
    peaks = torch.empty((rows, groups), dtype=torch.float32, device=logits.device)
    parts = peaks.new_empty((rows, chunks, 3))
    winners = peaks.new_empty((rows, chunks), dtype=torch.int32)
    kernel.survey[(rows * chunks,)](
        logits,
        temperatures,
        seeds,
        positions,
        peaks,
        parts,
        winners,
        vocabulary,
        logits.stride(0),
        chunks,
        groups,
        ROWS=_ROWS,
        TILES=_TILES,
        INTERPRET=interpreted(),
        num_warps=_WARPS,
    )
    return peaks, parts, winners


def _score(logits: Tensor, temperatures: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    _, log_probs = _shapes(logits)
    if not OP.fused(why_not(logits)):
        return reference.score(logits, temperatures, tokens)
    from assay_kernels.sampler import kernel  # noqa: PLC0415 (needs Triton)

    rows, vocabulary = logits.shape
    sums = torch.empty_like(log_probs)
    if not rows:
        return log_probs, sums
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    temperatures = temperatures.float().contiguous()
    # What is drawn is of no account, but `sample`'s own first launch must do the sums.
    nothing = torch.zeros_like(tokens)
    _, parts, _ = _surveyed(logits, temperatures, nothing, nothing)
    chunks = parts.shape[1]
    kernel.score[(rows,)](
        logits,
        temperatures,
        parts,
        tokens.contiguous(),
        log_probs,
        sums,
        vocabulary,
        logits.stride(0),
        chunks,
        CHUNKS=1 << (chunks - 1).bit_length(),
        num_warps=8,
    )
    return log_probs, sums


def _shapes(logits: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(logits.dtype, torch.float32)
    return (
        logits.new_empty(len(logits), dtype=torch.int64),
        logits.new_empty(len(logits), dtype=kind),
    )


def _score_shapes(logits: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _shapes(logits)[1], _shapes(logits)[1]


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(
    "sample(Tensor logits, Tensor temperatures, Tensor seeds, Tensor positions, Tensor? top_ks, "
    "Tensor? top_ps, Tensor? min_ps) -> (Tensor, Tensor)"
)
_library.define("score(Tensor logits, Tensor temperatures, Tensor tokens) -> (Tensor, Tensor)")
_library.impl("sample", _sample, "CompositeExplicitAutograd")
_library.impl("score", _score, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::sample", _shapes, lib=_library)
torch.library.register_fake("assay_kernels::score", _score_shapes, lib=_library)
