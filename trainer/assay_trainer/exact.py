"""A forward pass of the operations that an engine in deterministic mode runs, for equal bits.

Log-probs of engine and trainer are equal to the last bit (true on-policy) where every operation

- is the same kernel on both sides, and
- sums in an order that depends on a token and what stands before it alone: not on what else is in
  the batch, nor on whether a token came in a prefill or was decoded.

So products, norms, SwiGLU, heads and log-probs are assay_kernels' on both sides: the engine's
plugin puts them into SGLang. Attention is FlashAttention 3 (arXiv:2407.08608) without splits of the
keys, which SGLang uses in that mode; with heads of 128 its decode and its prefill have the same
blocks of keys. Rotations come from a table that is computed as SGLang computes it. The residual
stream is rounded to bf16 after each addition, as the engine's is.

Only the forward pass must be equal. Gradients are those of the same functions, by whatever is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay_kernels.linear_logprob import op as _registered  # noqa: F401  torch.ops has it then
from assay_kernels.linear_logprob.passes import SCRATCH
from assay_kernels.matmul.op import matmul
from assay_kernels.qk_norm_rope.op import qk_norm_rope, rope
from assay_kernels.rms_norm.op import rms_norm
from assay_kernels.sampler.op import score
from assay_kernels.silu_mul.op import silu_mul
from assay_trainer.attention import padded, rows
from assay_trainer.kernels import KernelError
from assay_trainer.packing import Layout

ARCHITECTURES = ("llama", "qwen3")
HEAD = 128
"""The width of a head whose decode FlashAttention 3 cuts as it cuts a prefill."""
HOPPER = 9
"""Major compute capability of the GPUs on which it was seen to."""


def replace(model: PreTrainedModel) -> None:
    """Gives a model's modules the forward functions of this module; the parameters stay.

    Args:
        model: on the device where it computes; its attention gets a `layout`, as `attention` says.

    Raises:
        KernelError: the architecture is none of those whose operations are known here, or the GPU
            none on which bits are known to be equal.
    """
    config = model.config
    if wrong := _misfit(config) or _misfit_on(model.device, config):
        raise KernelError(f"trainer.deterministic: true, but {wrong}")
    width = config.head_dim
    base = config.rope_parameters["rope_theta"]
    table = angles(width, base, config.max_position_embeddings, model.device)
    attend = flash_3() if model.device.type == "cuda" else _padded
    head = model.get_output_embeddings()
    for module in model.modules():
        kind = type(module).__name__
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            module.forward = partial(_linear, module)
        elif kind.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
        elif kind.endswith("MLP"):
            module.forward = partial(_mlp, module)
        elif kind.endswith("Attention"):
            module.forward = partial(_attention, module, table, attend)


def _misfit(config: Any) -> str:
    """What of a model is not done here; empty where nothing."""
    if config.model_type not in ARCHITECTURES:
        return f"architecture {config.model_type} is none of {', '.join(ARCHITECTURES)}"
    if config.rope_parameters["rope_type"] != "default":
        return f"rotary positions of type {config.rope_parameters['rope_type']} are not done"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act} is not done"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "sliding windows are not done"
    return ""


def _misfit_on(device: torch.device, config: Any) -> str:
    """Why attention of a model is not exact on a device; empty where it is."""
    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    if major != HOPPER:
        return (
            f"the GPU has compute capability {major}.{minor}: that FlashAttention 3 decodes as it "
            f"prefills was seen on Hopper alone ({HOPPER}.x)"
        )
    if config.head_dim != HEAD:
        return (
            f"heads are {config.head_dim} wide: FlashAttention 3 decodes as it prefills only those "
            f"of {HEAD}"
        )
    return ""


def angles(width: int, base: float, positions: int, device: torch.device) -> Tensor:
    """[positions, width] fp32: cosines, then sines, of each position's width / 2 angles.

    The same steps, in the same order and on the same device, as SGLang's RotaryEmbedding takes.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    frequencies = 1.0 / base**steps
    places = torch.arange(positions, dtype=torch.float32, device=device)
    turned = places[:, None] * frequencies
    return torch.cat((turned.cos(), turned.sin()), -1)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return matmul(x, module.weight.to(x.dtype), module.bias)


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight.to(x.dtype), module.variance_epsilon)


def _mlp(module: Any, x: Tensor) -> Tensor:
    out: Tensor = module.down_proj(silu_mul(module.gate_proj(x), module.up_proj(x)))
    return out


Attend = Callable[[Tensor, Tensor, Tensor, Layout, float], Tensor]
"""[T, heads, D] from queries, keys, values, where they lie, and what scores are multiplied by."""


def _attention(
    module: Any,
    table: Tensor,
    attend: Attend,
    hidden_states: Tensor,
    *_: Any,
    layout: Layout,
    **__: Any,
) -> tuple[Tensor, None]:
    heads = (-1, module.head_dim)
    q, k, v = (
        project(hidden_states)[0].unflatten(-1, heads)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    if hasattr(module, "q_norm"):
        q, k = qk_norm_rope(
            q,
            k,
            module.q_norm.weight.to(q.dtype),
            module.k_norm.weight.to(q.dtype),
            table,
            layout.positions,
            module.q_norm.variance_epsilon,
        )
    else:
        q, k = rope(q, k, table, layout.positions)
    out = attend(q, k, v, layout, module.scaling)
    return module.o_proj(out.flatten(1)[None]), None


def _padded(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
    return padded(q, k, v, layout, scale=scale, window=None)


def flash_3() -> Attend:
    """FlashAttention 3 as SGLang calls it in deterministic mode, with a gradient.

    Raises:
        KernelError: it is not installed.
    """
    try:
        from sgl_kernel.flash_attn import flash_attn_varlen_func  # noqa: PLC0415 (only with SGLang)
    except ImportError as reason:
        raise KernelError(
            "trainer.deterministic: true needs the FlashAttention 3 that SGLang computes with "
            f"(sgl_kernel), which cannot be imported: {reason}"
        ) from reason

    def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float) -> Tensor:
        if layout.spread is not None:
            k, v = rows(k, layout.spread), rows(v, layout.spread)
        return _Flash.apply(q, k, v, layout, scale, flash_attn_varlen_func)

    return attend


class _Flash(torch.autograd.Function):  # type: ignore[misc]
    """FlashAttention 3 forward; backward FlashAttention 2, which needs the same two outputs."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, run: Any
    ) -> Tensor:
        q, k, v = (part.contiguous() for part in (q, k, v))
        # Where no segment had more than one query, blocks of keys would be others.
        ctx.longest = max(2, layout.longest_query), layout.longest_keys
        out, sums, *_ = run(
            q,
            k,
            v,
            layout.queries,
            layout.keys,
            *ctx.longest,
            softmax_scale=scale,
            causal=True,
            num_splits=1,
            return_softmax_lse=True,
        )
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, out, sums, layout.queries, layout.keys)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums, queries, keys = ctx.saved_tensors
        found = torch.ops.aten._flash_attention_backward(
            gradients[0].contiguous(),
            q,
            k,
            v,
            out,
            sums,
            queries,
            keys,
            *ctx.longest,
            0.0,
            True,
            torch.zeros(2, dtype=torch.uint64, device=q.device),  # No dropout, so no random state.
            torch.empty(0, device=q.device),
            scale=ctx.scale,
        )
        return *found, None, None, None


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        narrow = weight.to(hidden.dtype)
        found = [hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3)]
        for begin in range(0, len(hidden), chunk):
            here = slice(begin, begin + chunk)
            # Rounded to the model's dtype and then taken to float32, as the engine does.
            logits = matmul(hidden[here], narrow).float()
            temperatures = logits.new_full((len(logits),), temperature)
            said = score(logits, temperatures, targets[here])
            found[0][here], found[1][here] = said
            shares = logits.div_(temperature).sub_(said.log_sum_exps[:, None]).exp_()
            found[2][here] = torch.special.entr(shares).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, *found[1:])
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature
        return found[0], found[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, sums, entropies = ctx.saved_tensors
        of_log_probs, of_entropies = gradients
        of_hidden, of_weight = torch.ops.assay_kernels.linear_logprob_backward(
            hidden,
            weight,
            targets,
            sums,
            entropies,
            of_log_probs,
            None,
            of_entropies,
            ctx.temperature,
            SCRATCH,
            True,
            True,
        )
        return of_hidden, of_weight, None, None, None


def log_probs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets, those of the engine's sampler, and entropies; both with gradients.

    Args:
        hidden: [R, H].
        weight: [V, H] the head's; rounded to hidden's dtype.
        targets: [R] int64.
        temperature: divides the logits.
        chunk: rows whose logits are in memory at one time.

    Returns:
        [R] fp32 each.
    """
    return _LogProbs.apply(hidden, weight, targets, temperature, chunk)  # type: ignore[no-any-return]
