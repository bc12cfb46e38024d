"""`linear_logprob` for any device: fused where it fits, by its reference elsewhere.

The logits of some rows, or of some columns, are in memory at one time, never all of them.

Forward: cuBLAS makes the logits of a few rows, one kernel reads them once. Backward: cuBLAS makes
the logits of all rows and a few columns again, one kernel turns them into their gradient in place.
By columns, since then each row of the weight's gradient is one product over all tokens: summed in
float32 and rounded once, instead of read, added to and rounded again with each group of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from assay_kernels.linear_logprob import reference
from assay_kernels.linear_logprob.passes import (
    SCRATCH,
    add_product,
    dense,
    groups,
    room,
    survey,
    turn,
)
from assay_kernels.linear_logprob.reference import LogProbs
from assay_kernels.registry import Op, dtype_misfit, obstacle_of

OP = Op("linear_logprob")


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    scratch: int = SCRATCH,
) -> LogProbs:
    """Log-probs of targets, log-sum-exp and entropy, all three with gradients.

    Args:
        hidden: [R, H] bfloat16, float16, float32 or float64.
        weight: [V, H] the head's; rounded to hidden's dtype, its gradient stays in its own.
        targets: [R] int64. Where one is outside the vocabulary, the log-prob is NaN and has no
            gradient.
        temperature: divides the logits.
        scratch: bytes of logits in memory at one time.

    Returns:
        [R] each, float32 (float64 where hidden is).

    Raises:
        ValueError: shapes, devices, the temperature or the scratch do not fit.
        TypeError: a dtype does not fit.
    """
    check(hidden, weight, targets, temperature, scratch)
    return LogProbs(
        *torch.ops.assay_kernels.linear_logprob(
            hidden, weight, targets, float(temperature), scratch
        )
    )


def check(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, scratch: int
) -> None:
    """Raises what `linear_logprob` says it raises."""
    if hidden.dim() != 2 or weight.dim() != 2 or targets.dim() != 1:
        raise ValueError(
            "hidden must be [R, H], weight [V, H] and targets [R], not "
            f"{list(hidden.shape)}, {list(weight.shape)} and {list(targets.shape)}"
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden has {hidden.shape[1]} columns, but weight has {weight.shape[1]}")
    if len(targets) != len(hidden):
        raise ValueError(f"there are {len(hidden)} rows, but {len(targets)} targets")
    if not len(weight):
        raise ValueError("the vocabulary is empty")
    for name, tensor in (("hidden", hidden), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be of a float dtype, not {tensor.dtype}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, not {targets.dtype}")
    if not hidden.device == weight.device == targets.device:
        raise ValueError(
            "hidden, weight and targets must be on one device, not "
            f"{hidden.device}, {weight.device} and {targets.device}"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"the temperature must be above 0 and finite, not {temperature}")
    if scratch <= 0:
        raise ValueError(f"scratch must be above 0, not {scratch}")


def why_not(hidden: Tensor) -> str | None:
    """What keeps this call from the kernels."""
    return dtype_misfit(hidden, "hidden states are") or obstacle_of(hidden.device)


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, scratch: int
) -> tuple[Tensor, ...]:
    each = weight.shape[0] * hidden.element_size()
    kind = torch.promote_types(hidden.dtype, torch.float32)
    found: tuple[Tensor, ...] = tuple(
        torch.empty(len(hidden), dtype=kind, device=hidden.device) for _ in range(3)
    )
    fused = OP.fused(why_not(hidden))
    hidden, weight = dense(hidden), dense(weight.to(hidden.dtype))
    targets = targets.contiguous()
    logits = None
    for rows in groups(len(hidden), each, scratch):
        here = tuple(part[rows] for part in found)
        if not fused:
            said = reference.linear_logprob(
                hidden[rows], weight, targets[rows], temperature=temperature
            )
            for part, value in zip(here, said, strict=True):
                part.copy_(value)
            continue
        if logits is None:
            logits = room(hidden, rows.stop, len(weight))
        some = logits[: rows.stop - rows.start]
        torch.mm(hidden[rows], weight.t(), out=some)
        survey(some, targets[rows], temperature, here)
    return found


def _backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    sums: Tensor,
    entropies: Tensor,
    of_log_probs: Tensor | None,
    of_sums: Tensor | None,
    of_entropies: Tensor | None,
    temperature: float,
    scratch: int,
    for_hidden: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and weight; an empty tensor for one that is not asked for."""
    gradients = (of_log_probs, of_sums, of_entropies)
    if not OP.fused(why_not(hidden)):
        found = _plain_backward(hidden, weight, targets, gradients, temperature, scratch)
        return (
            found[0] if for_hidden else hidden.new_empty(0),
            found[1] if for_weight else weight.new_empty(0),
        )
    one, other, third = (g if g is None else g.float().contiguous() for g in gradients)
    own = weight.dtype
    kind = torch.promote_types(own, hidden.dtype)
    hidden, weight = dense(hidden), dense(weight.to(hidden.dtype))
    targets = targets.contiguous()
    of_hidden = torch.empty_like(hidden, dtype=torch.float32) if for_hidden else hidden.new_empty(0)
    of_weight = torch.empty_like(weight, dtype=kind) if for_weight else weight.new_empty(0)
    if not len(hidden):
        return of_hidden.to(hidden.dtype), of_weight.zero_().to(own)
    logits = None
    for columns in groups(len(weight), len(hidden) * hidden.element_size(), scratch):
        some = weight[columns]
        if logits is None:
            logits = room(hidden, len(hidden), len(some))
        slopes = logits[:, : len(some)]
        torch.mm(hidden, some.t(), out=slopes)
        turn(
            slopes,
            slopes,
            targets,
            (sums, entropies),
            (one, other, third),
            first=columns.start,
            vocabulary=len(weight),
            temperature=temperature,
        )
        if for_hidden:
            add_product(of_hidden, slopes, some, anew=columns.start == 0)
        if for_weight:
            add_product(of_weight[columns], slopes.t(), hidden, anew=True)
    return of_hidden.to(hidden.dtype), of_weight.to(own)


def _plain_backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    temperature: float,
    scratch: int,
) -> tuple[Tensor, Tensor]:
    """The reference's, some rows at a time."""
    of_hidden = torch.empty_like(hidden)
    fine = torch.promote_types(weight.dtype, torch.float32)
    of_weight = torch.zeros_like(weight, dtype=fine)
    for rows in groups(len(hidden), weight.shape[0] * hidden.element_size(), scratch):
        one, other, third = (g if g is None else g[rows] for g in gradients)
        of_hidden[rows], found = reference.backward(
            hidden[rows], weight, targets[rows], (one, other, third), temperature=temperature
        )
        of_weight += found
    return of_hidden, of_weight.to(weight.dtype)


def _shapes(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, scratch: int
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.promote_types(hidden.dtype, torch.float32)
    one, other, third = (hidden.new_empty(hidden.shape[0], dtype=kind) for _ in range(3))
    return one, other, third


def _gradient_shapes(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    for_hidden, for_weight = rest[-2:]
    return (
        hidden.new_empty(hidden.shape if for_hidden else 0),
        weight.new_empty(weight.shape if for_weight else 0),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.temperature, ctx.scratch = inputs
    _, sums, entropies = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, sums, entropies)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    for_hidden, for_weight = ctx.needs_input_grad[:2]
    if all(g is None for g in gradients) or not (for_hidden or for_weight):
        return None, None, None, None, None
    of_hidden, of_weight = torch.ops.assay_kernels.linear_logprob_backward(
        *ctx.saved_tensors,
        *gradients,
        ctx.temperature,
        ctx.scratch,
        for_hidden,
        for_weight,
    )
    found = (of_hidden if for_hidden else None, of_weight if for_weight else None)
    return *found, None, None, None


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, float temperature, int scratch) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "linear_logprob_backward(Tensor hidden, Tensor weight, Tensor targets, Tensor sums, "
    "Tensor entropies, Tensor? of_log_probs, Tensor? of_sums, Tensor? of_entropies, "
    "float temperature, int scratch, bool for_hidden, bool for_weight) -> (Tensor, Tensor)"
)
_library.impl("linear_logprob", _forward, "CompositeExplicitAutograd")
_library.impl("linear_logprob_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::linear_logprob", _shapes, lib=_library)
torch.library.register_fake(
    "assay_kernels::linear_logprob_backward", _gradient_shapes, lib=_library
)
torch.library.register_autograd(
    "assay_kernels::linear_logprob", _differentiate, setup_context=_remember, lib=_library
)
