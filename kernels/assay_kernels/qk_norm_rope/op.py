"""`qk_norm_rope` and `rope` for any device: one launch where they fit, else their reference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from assay_kernels.qk_norm_rope import reference
from assay_kernels.registry import Op, dtype_misfit, obstacle_of

OP = Op("qk_norm_rope")
WIDEST = 512
"""Heads of more numbers than this do not fit into registers."""
_HEADS, _HEADS_BACKWARD = 4, 8
"""Heads that a program works on together."""
_TOKENS = 8
"""Tokens whose gradients of the weights are summed by one program."""


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of every head, then its rotation; no bits depend on other tokens.

    Args:
        q: [T, Q, D] bfloat16, float16, float32 or float64, D even; may be a view of a packed qkv.
        k: [T, K, D] of q's dtype.
        q_weight: [D] of a float dtype.
        k_weight: [D] of a float dtype.
        cos_sin: [P, D] of a float dtype: cosines, then sines, of D / 2 angles a position.
        positions: [T] int32 or int64; where one is outside the table, the token's heads are NaN.
        eps: added to the mean square.

    Returns:
        As q and k, without gaps; gradients flow to q, k and the weights.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: a dtype does not fit.
    """
    check(q, k, cos_sin, positions, q_weight=q_weight, k_weight=k_weight)
    found: tuple[Tensor, Tensor] = torch.ops.assay_kernels.qk_norm_rope(
        q, k, q_weight, k_weight, cos_sin, positions, float(eps)
    )
    return found


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation alone, for models whose heads are not normalised; arguments, result and errors
    as of `qk_norm_rope`."""
    check(q, k, cos_sin, positions)
    found: tuple[Tensor, Tensor] = torch.ops.assay_kernels.qk_norm_rope(
        q, k, None, None, cos_sin, positions, 0.0
    )
    return found


def check(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor, **weights: Tensor) -> None:
    """Raises what `qk_norm_rope` says it raises."""
    if q.dim() != 3 or k.dim() != 3 or q.shape[::2] != k.shape[::2]:
        raise ValueError(
            f"q must be [T, Q, D] and k [T, K, D], not {list(q.shape)} and {list(k.shape)}"
        )
    tokens, _, width = q.shape
    if not width or width % 2:
        raise ValueError(f"heads must have an even number of elements, not {width}")
    floats = {"q": q, "k": k, **weights, "cos_sin": cos_sin}
    for name, tensor in floats.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a float dtype, not {tensor.dtype}")
    if k.dtype != q.dtype:
        raise TypeError(f"k must be {q.dtype}, not {k.dtype}")
    if positions.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"positions must be int32 or int64, not {positions.dtype}")
    for name, tensor in weights.items():
        if tensor.shape != (width,):
            raise ValueError(f"{name} must be [{width}], not {list(tensor.shape)}")
    if cos_sin.dim() != 2 or cos_sin.shape[1] != width or not len(cos_sin):
        raise ValueError(f"cos_sin must be [P, {width}], not {list(cos_sin.shape)}")
    if positions.shape != (tokens,):
        raise ValueError(f"positions must be [{tokens}], not {list(positions.shape)}")
    for name, tensor in {**floats, "positions": positions}.items():
        if tensor.device != q.device:
            raise ValueError(f"{name} must be on {q.device}, not {tensor.device}")


def why_not(q: Tensor) -> str | None:
    """What keeps this call from the kernels."""
    if misfit := dtype_misfit(q, "heads are"):
        return misfit
    width = q.shape[2]
    if width & (width - 1) or width > WIDEST:
        return f"heads of {width} elements are not a power of 2 up to {WIDEST}"
    return obstacle_of(q.device)


def _dense(x: Tensor) -> Tensor:
    """A head's elements side by side; tokens and heads may lie anywhere."""
    return x if x.stride(2) == 1 else x.contiguous()


def _weight(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


def _forward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos_sin: Tensor,
    positions: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    if not OP.fused(why_not(q)):
        return reference.qk_norm_rope(q, k, q_weight, k_weight, cos_sin, positions, eps)
    q_out, k_out = _shapes(q, k)
    tokens, q_heads, width = q.shape
    k_heads = k.shape[1]
    parts = math.ceil(q_heads / _HEADS) + math.ceil(k_heads / _HEADS)
    if not tokens * parts:
        return q_out, k_out
    from assay_kernels.qk_norm_rope import kernel  # noqa: PLC0415 (needs Triton)

    q, k = _dense(q), _dense(k)
    kernel.forward[(tokens, parts)](
        q,
        k,
        _weight(q_weight),
        _weight(k_weight),
        cos_sin.contiguous(),
        positions.contiguous(),
        q_out,
        k_out,
        len(cos_sin),
        q_heads,
        k_heads,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        eps,
        HEADS=_HEADS,
        HALF=width // 2,
        num_warps=2,
    )
    return q_out, k_out


def _backward(
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
    """Gradients of q, k and both weights; empty ones where there are no weights."""
    if not OP.fused(why_not(q)):
        return reference.backward(
            of_q_out, of_k_out, q, k, q_weight, k_weight, cos_sin, positions, eps
        )
    of_q, of_k = _shapes(q, k)
    tokens, q_heads, width = q.shape
    if not tokens:
        return of_q, of_k, *(_nothing(w, q).zero_() for w in (q_weight, k_weight))
    from assay_kernels.qk_norm_rope import kernel  # noqa: PLC0415 (needs Triton)

    q, k = _dense(q), _dense(k)
    programs = math.ceil(tokens / _TOKENS)
    sums = torch.empty((programs, 2, width), dtype=torch.float32, device=q.device)
    kernel.backward[(programs,)](
        of_q_out.contiguous(),
        of_k_out.contiguous(),
        q,
        k,
        _weight(q_weight),
        _weight(k_weight),
        cos_sin.contiguous(),
        positions.contiguous(),
        of_q,
        of_k,
        None if q_weight is None else sums,
        tokens,
        len(cos_sin),
        q_heads,
        k.shape[1],
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        eps,
        TOKENS=_TOKENS,
        HEADS=_HEADS_BACKWARD,
        HALF=width // 2,
        num_warps=4,
    )
    if q_weight is None or k_weight is None:
        return of_q, of_k, _nothing(None, q), _nothing(None, q)
    of_q_weight, of_k_weight = sums.sum(0)
    return of_q, of_k, of_q_weight.to(q_weight.dtype), of_k_weight.to(k_weight.dtype)


def _nothing(weight: Tensor | None, like: Tensor) -> Tensor:
    """Memory for a weight's gradient; of no size where there is no weight."""
    return like.new_empty(0) if weight is None else weight.new_empty(weight.shape)


def _shapes(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _gradient_shapes(
    of_q_out: Tensor,
    of_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one, other = (x.new_empty(x.shape) for x in (q, k))
    return one, other, _nothing(q_weight, q), _nothing(k_weight, q)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, of_q_out: Tensor, of_k_out: Tensor) -> tuple[Tensor | None, ...]:
    of_q, of_k, *of_weights = torch.ops.assay_kernels.qk_norm_rope_backward(
        of_q_out, of_k_out, *ctx.saved_tensors, ctx.eps
    )
    weights = (
        found if wanted else None
        for found, wanted in zip(of_weights, ctx.needs_input_grad[2:4], strict=True)
    )
    return of_q, of_k, *weights, None, None, None


_INPUTS = (
    "Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor cos_sin, Tensor positions, "
    "float eps"
)
_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(f"qk_norm_rope({_INPUTS}) -> (Tensor, Tensor)")
_library.define(
    f"qk_norm_rope_backward(Tensor of_q_out, Tensor of_k_out, {_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("qk_norm_rope", _forward, "CompositeExplicitAutograd")
_library.impl("qk_norm_rope_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::qk_norm_rope", _shapes, lib=_library)
torch.library.register_fake("assay_kernels::qk_norm_rope_backward", _gradient_shapes, lib=_library)
torch.library.register_autograd(
    "assay_kernels::qk_norm_rope", _differentiate, setup_context=_remember, lib=_library
)
