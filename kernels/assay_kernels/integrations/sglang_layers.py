"""SGLang's layers on our ops: norms, SwiGLU, heads with rotary positions, batch-invariant products.

In deterministic mode all of them run, so that an engine computes with the very kernels that the
trainer uses. In normal mode SGLang's own CUDA kernels for norms and SwiGLU are as fast, and stay;
only normalised heads run on ours, one launch where SGLang has three. On a CPU the references run
in any mode.

What torch.compile traces is not counted, since tracing would count instead of running.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay_kernels.integrations.gates import Calls, Patch, Signature

NORMAL = "normal mode: SGLang's own kernel is as fast"

_LAYERS = "sglang.srt.layers"
_INVARIANT = "sglang.srt.batch_invariant_ops.batch_invariant_ops"
Original = Callable[..., Any]


def deterministic() -> bool:
    """Whether this process runs in SGLang's deterministic mode."""
    from sglang.srt.batch_invariant_ops import is_batch_invariant_mode_enabled  # noqa: PLC0415

    return bool(is_batch_invariant_mode_enabled())


def _pass(calls: Calls, why_not: str, original: Original, *arguments: Any, **more: Any) -> Any:
    if not torch.compiler.is_compiling():
        calls.passed(why_not)
    return original(*arguments, **more)


def _mode(x: Tensor) -> str:
    return NORMAL if x.is_cuda and not deterministic() else ""


def norm_misfit(norm: Any, x: Tensor) -> str:
    """What of an RMSNorm of SGLang, or of its input, the op does not do; empty where nothing."""
    gates = (
        (norm.variance_size_override is not None, "the mean is over a part of the row"),
        (norm.cast_x_before_out_mul, "the row is rounded before the weight multiplies it"),
        (norm.fp32_residual, "the sum is kept in float32"),
        (
            norm.override_orig_dtype not in (None, x.dtype),
            "the result has another dtype than the row",
        ),
        (x.shape[-1] != norm.hidden_size, "rows are of another width than the weight"),
        (not x.numel(), "there are no rows"),
    )
    return next((why_not for shut, why_not in gates if shut), "")


def rms_norm(calls: Calls, forward: str) -> Patch:
    """RMSNorm, alone or after an addition.

    Args:
        calls: where gates count.
        forward: the method that this device's calls come to: forward_cuda, or forward_native.
    """
    from assay_kernels.rms_norm import op  # noqa: PLC0415 (where it is used)

    def around(
        original: Original,
        self: Any,
        x: Tensor,
        residual: Tensor | None = None,
        post_residual_addition: Tensor | None = None,
        *more: Any,
        **named: Any,
    ) -> Any:
        why_not = _mode(x) or norm_misfit(self, x)
        if not why_not and post_residual_addition is not None:
            why_not = "three rows are added up"
        if not why_not and residual is not None and residual.dtype != x.dtype:
            why_not = "the residual is of another dtype"
        if why_not:
            return _pass(
                calls, why_not, original, self, x, residual, post_residual_addition, *more, **named
            )
        weight = self.weight.detach()
        if residual is None:
            return op.rms_norm(x, weight, self.variance_epsilon)
        return op.add_rms_norm(x, residual, weight, self.variance_epsilon)

    signature = Signature(("self", "x", "residual", "post_residual_addition"), ("quant_linear",))
    return Patch(f"{_LAYERS}.layernorm.RMSNorm.{forward}", signature, around)


def silu_mul(calls: Calls, forward: str) -> Patch:
    """SwiGLU of a gate and an up side by side. Arguments as for `rms_norm`."""
    from assay_kernels.silu_mul import op  # noqa: PLC0415 (where it is used)

    def around(original: Original, self: Any, x: Tensor) -> Any:
        why_not = _mode(x) or ("" if x.numel() else "there are no rows")
        if why_not:
            return _pass(calls, why_not, original, self, x)
        return op.silu_mul(x)

    return Patch(f"{_LAYERS}.activation.SiluAndMul.{forward}", Signature(("self", "x")), around)


def heads_misfit(attention: Any, positions: Tensor) -> str:
    """What of an attention layer of SGLang the op does not do; empty where nothing."""
    rotary = attention.rotary_emb
    norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None))]
    kind = type(rotary).__name__
    if kind != "RotaryEmbedding":
        return f"positions are rotated by {kind}"
    gates = (
        (
            not rotary.is_neox_style or rotary.rotary_dim != attention.head_dim,
            "not whole heads are rotated, half by half",
        ),
        (positions.dim() != 1, "a token has several positions"),
        (not len(positions), "there are no tokens"),
        (
            len({norm.variance_epsilon for norm in norms}) > 1,
            "queries and keys are normalised differently",
        ),
        (
            any(n.cast_x_before_out_mul or n.variance_size_override is not None for n in norms),
            "heads are normalised in another way",
        ),
    )
    return next((why_not for shut, why_not in gates if shut), "")


def qk_norm_rope(calls: Calls) -> list[Patch]:
    """Queries' and keys' norms and rotation in Qwen3's dense models; in Llama's the rotation."""
    from assay_kernels.qk_norm_rope import op  # noqa: PLC0415 (where it is used)

    def normed(original: Original, self: Any, positions: Tensor, hidden_states: Tensor) -> Any:
        why_not = heads_misfit(self, positions)
        if why_not:
            return _pass(calls, why_not, original, self, positions, hidden_states)
        q, k, v = _packed_heads(self, hidden_states)
        weights = self.q_norm.weight.detach(), self.k_norm.weight.detach()
        table, eps = self.rotary_emb.cos_sin_cache, self.q_norm.variance_epsilon
        q, k = op.qk_norm_rope(q, k, *weights, table, positions, eps)
        return q.flatten(1), k.flatten(1), v

    def rotated(original: Original, self: Any, positions: Tensor, hidden_states: Tensor) -> Any:
        why_not = _mode(hidden_states) or heads_misfit(self, positions)
        if why_not:
            return _pass(calls, why_not, original, self, positions, hidden_states)
        q, k, v = _packed_heads(self, hidden_states)
        q, k = op.rope(q, k, self.rotary_emb.cos_sin_cache, positions)
        return q.flatten(1), k.flatten(1), v

    signature = Signature(("self", "positions", "hidden_states"))
    models = "sglang.srt.models"
    return [
        Patch(f"{models}.qwen3.Qwen3Attention.forward_prepare_native", signature, normed),
        Patch(f"{models}.llama.LlamaAttention.forward_prepare_native", signature, rotated),
    ]


def _packed_heads(attention: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, heads, D] queries and keys, and [T, K D] values, all views of one product."""
    packed, _ = attention.qkv_proj(hidden_states)
    q, k, v = packed.split([attention.q_size, attention.kv_size, attention.kv_size], dim=-1)
    shape = (-1, attention.head_dim)
    return q.unflatten(-1, shape), k.unflatten(-1, shape), v


def matmul(calls: Calls) -> list[Patch]:
    """The product that SGLang's deterministic mode puts in the place of every torch.mm."""
    from assay_kernels.matmul import op  # noqa: PLC0415 (where it is used)

    def misfit(a: Tensor, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype | None) -> str:
        if a.dim() != 2 or b.dim() != 2 or b.dtype != a.dtype:
            return "not two matrices of one dtype"
        if not a.numel() or not b.numel():
            return "the product is empty"
        if out_dtype not in (None, a.dtype, torch.float32):
            return f"the result is {out_dtype}"
        if bias is not None and (bias.dim() != 1 or not bias.is_floating_point()):
            return "the bias is no row"
        # The reference is a torch.mm, which would come here again.
        return op.why_not(a) or ""

    def persistent(
        original: Original,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Any:
        why_not = misfit(a, b, bias, out_dtype)
        if not why_not:
            return op.matmul(a, b.t(), bias, out_dtype)
        # 0.5.17's takes no out_dtype.
        named = {} if out_dtype is None else {"out_dtype": out_dtype}
        return _pass(calls, why_not, original, a, b, bias, **named)

    def to_dtype(original: Original, self: Tensor, mat2: Tensor, out_dtype: torch.dtype) -> Any:
        why_not = misfit(self, mat2, None, out_dtype)
        if not why_not:
            return op.matmul(self, mat2.t(), None, out_dtype)
        return _pass(calls, why_not, original, self, mat2, out_dtype)

    return [
        Patch(
            f"{_INVARIANT}.matmul_persistent",
            Signature(("a", "b", "bias"), ("out_dtype",)),
            persistent,
        ),
        # SGLang's own copies the transposed head, a gigabyte, at each call.
        Patch(f"{_INVARIANT}._mm_dtype_compat", Signature(("self", "mat2", "out_dtype")), to_dtype),
    ]
