"""SGLang's layers on our ops: norms, SwiGLU, heads with rotary positions, batch-invariant products.

In deterministic mode all of them run, so that an engine computes with the very kernels that the
trainer uses. In normal mode SGLang's own CUDA kernels for norms and SwiGLU are as fast, and stay;
only heads run on ours, one launch where SGLang has three. On a CPU the references run in any mode.

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
    """What of a Qwen3Attention the op does not do; empty where nothing."""
    rotary, q_norm, k_norm = attention.rotary_emb, attention.q_norm, attention.k_norm
    if type(rotary).__name__ != "RotaryEmbedding":
        return f"positions are rotated by {type(rotary).__name__}"
    if not rotary.is_neox_style or rotary.rotary_dim != attention.head_dim:
        return "not whole heads are rotated, half by half"
    if positions.dim() != 1:
        return "a token has several positions"
    if q_norm.variance_epsilon != k_norm.variance_epsilon:
        return "queries and keys are normalised differently"
    for norm in (q_norm, k_norm):
        if norm.cast_x_before_out_mul or norm.variance_size_override is not None:
            return "heads are normalised in another way"
    return ""


def qk_norm_rope(calls: Calls) -> Patch:
    """Queries' and keys' norms and rotation, in Qwen3's dense models."""
    from assay_kernels.qk_norm_rope import op  # noqa: PLC0415 (where it is used)

    def around(original: Original, self: Any, positions: Tensor, hidden_states: Tensor) -> Any:
        why_not = heads_misfit(self, positions)
        if not why_not and not len(positions):
            why_not = "there are no tokens"
        if why_not:
            return _pass(calls, why_not, original, self, positions, hidden_states)
        packed, _ = self.qkv_proj(hidden_states)
        q, k, v = packed.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        tokens, width = len(packed), self.head_dim
        q, k = op.qk_norm_rope(
            q.view(tokens, -1, width),
            k.view(tokens, -1, width),
            self.q_norm.weight.detach(),
            self.k_norm.weight.detach(),
            self.rotary_emb.cos_sin_cache,
            positions,
            self.q_norm.variance_epsilon,
        )
        return q.view(tokens, -1), k.view(tokens, -1), v

    signature = Signature(("self", "positions", "hidden_states"))
    target = "sglang.srt.models.qwen3.Qwen3Attention.forward_prepare_native"
    return Patch(target, signature, around)


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
