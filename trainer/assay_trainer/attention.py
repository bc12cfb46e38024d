"""Attention over a pass's segments, as transformers' models call it.

On GPUs in bf16 it is torch's varlen kernel (FlashAttention, arXiv:2307.08691), whose causal mask
lies at the lower right, as the segments want it. Elsewhere rows of about the same length are
padded, inside the attention only.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from assay_trainer.packing import Block, Layout

NAME = "assay_packed"
"""What transformers' registry knows it as."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias", "attention_bias")
"""What some architectures want of attention and neither kernel here does."""


class Rows(torch.autograd.Function):  # type: ignore[misc]
    """`index_select` of rows whose gradient is summed in fp32.

    A prompt's tokens get gradients from all its completions; in bf16 the later ones would be lost
    to rounding.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        """rows[index], along the first dimension."""
        ctx.save_for_backward(index)
        ctx.rows = rows.shape[0]
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Adds the gradients of a row's copies."""
        (index,) = ctx.saved_tensors
        (gradient,) = gradients
        total = gradient.new_zeros((ctx.rows, *gradient.shape[1:]), dtype=torch.float32)
        return total.index_add_(0, index, gradient.float()).to(gradient.dtype), None


def rows(tensor: Tensor, index: Tensor) -> Tensor:
    """tensor[index], with a gradient that is exact to fp32."""
    return Rows.apply(tensor, index)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment.

    Args:
        module: the layer, which is not asked anything.
        query: [1, heads, T, D].
        key: [1, key heads, T, D].
        value: likewise.
        attention_mask: none is expected: transformers makes none for attention that it does not
            know.
        scaling: of the scores; None is 1 / sqrt(D).
        dropout: ignored. A policy's log-probs are those that it samples with.
        sliding_window: how many keys a query sees, itself included.
        layout: the pass's.
        **more: what else a model passes.

    Returns:
        [1, T, heads, D], and no scores.

    Raises:
        ValueError: there is no layout, or the model wants what is not done here.
    """
    wanted = [name for name in UNSUPPORTED if more.get(name) is not None]
    if layout is None or attention_mask is not None or wanted:
        raise ValueError(f"attention of this kind cannot be packed ({', '.join(wanted) or 'mask'})")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if layout.blocks:
        out = padded(q, k, v, layout, scale=scaling, window=sliding_window)
    else:
        out = _flash(q, k, v, layout, scale=scaling, window=sliding_window)
    return out[None], None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float | None, window: int | None
) -> Tensor:
    if layout.spread is not None:
        k, v = rows(k, layout.spread), rows(v, layout.spread)
    return _VARLEN(
        q,
        k,
        v,
        layout.queries,
        layout.keys,
        layout.longest_query,
        layout.longest_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **_GROUPED,
    )


def padded(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, scale: float | None, window: int | None
) -> Tensor:
    """Attention of a layout with blocks: [T, heads, D] from q, and k and v of [T, key heads, D]."""
    repeats = q.shape[1] // k.shape[1]
    parts = []
    for block in layout.blocks:
        own = (_picked(q, block.queries), _picked(k, block.keys), _picked(v, block.keys))
        # Repeated here, since the fused kernel for CPUs knows no groups.
        grouped = [t.repeat_interleave(repeats, 1) if repeats > 1 else t for t in own[1:]]
        mask = _windowed(block, window)
        part = functional.scaled_dot_product_attention(
            own[0], *grouped, attn_mask=mask, is_causal=mask is None, scale=scale
        )
        parts.append(part.transpose(1, 2).flatten(0, 1))
    assert layout.unpadded is not None
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.index_select(0, layout.unpadded)


def _picked(tensor: Tensor, index: Tensor) -> Tensor:
    """[T, heads, D] -> [N, heads, L, D]."""
    return tensor.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _windowed(block: Block, window: int | None) -> Tensor | None:
    wide, long = block.queries.shape[1], block.keys.shape[1]
    if window is None or window >= long:
        return block.mask
    device = block.keys.device
    seen = torch.arange(long, device=device)
    if block.mask is None:
        last = torch.arange(wide, device=device)[None]
    else:
        # The last key that each query sees tells where it stands.
        last = block.mask[:, 0].sum(-1) - 1
    mask = (seen <= last[..., None]) & (seen > last[..., None] - window)
    return mask[:, None]


def varlen_attention() -> Any:
    """torch's kernel, or None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415
    except ImportError:
        return None
    return varlen_attn


_VARLEN = varlen_attention()
# Newer versions want to be told that there are fewer key heads; older ones need no telling.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True}
    if _VARLEN is not None and "enable_gqa" in inspect.signature(_VARLEN).parameters
    else {}
)


def needs_padding(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether layouts for a device and dtype need `blocks`."""
    return device.type != "cuda" or dtype != torch.bfloat16 or _VARLEN is None
