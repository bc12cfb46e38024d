"""`policy_loss` for any device: two launches where it fits, the trainer's own loss elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay_kernels.policy_loss import reference
from assay_kernels.policy_loss.formula import Formula, needs_whole
from assay_kernels.policy_loss.launches import SLOTS, shapes, slopes, survey
from assay_kernels.policy_loss.reference import Loss, Packed, Totals
from assay_kernels.registry import Op, obstacle_of
from assay_trainer.algorithms.settings import Algorithm

OP = Op("policy_loss")
METRICS = {
    "policy": 0,
    "kl": 1,
    "entropy": 3,
    "ratio/mean": 5,
    "clip/low": 6,
    "clip/high": 7,
    "mismatch/mean": 8,
    "correction/mean": 9,
    "correction/outside": 10,
    "loss": 11,
    "ratio/max": 12,
    "ratio/min": 13,
    "mismatch/max": 14,
}
"""Where `kernel.survey` puts what."""
MOST = 2**24
"""float32 counts tokens exactly up to here."""


def policy_loss(batch: Packed, algorithm: Algorithm, totals: Totals) -> Loss:
    """`assay_trainer.algorithms.loss.policy_loss`, to float32's rounding.

    Beside that function it asks that sequences lie in the order of their numbers where the average
    is over sequences or the loss is GSPO; where they do not, the loss is NaN.

    Args:
        batch: some sequences of the batch.
        algorithm: the job's.
        totals: of the whole batch.

    Returns:
        The loss, with gradients for log_probs and entropy, and its metrics.

    Raises:
        ValueError: the reference's log-probs or the entropies are needed and not there, or tensors
            are on several devices.
    """
    check(batch, algorithm)
    if not OP.fused(why_not(batch)):
        return reference.policy_loss(batch, algorithm, totals)
    formula = Formula.of(algorithm, totals)
    # torch.library's way through autograd takes longer than the kernels; only a compiler needs it.
    run = torch.ops.assay_kernels.policy_loss if torch.compiler.is_compiling() else _Eager.apply
    value, state = run(*tensors(batch), *formula)
    return Loss(value, named(state, batch))


def check(batch: Packed, algorithm: Algorithm) -> None:
    """Raises what `policy_loss` says it raises."""
    if algorithm.kl.coef and batch.reference is None:
        raise ValueError("kl.coef is above 0, but there are no log-probs of the reference")
    if algorithm.entropy and batch.entropy is None:
        raise ValueError("the entropy bonus is above 0, but there are no entropies")
    for name in ("sampler", "advantages", "sequence", "mask", "old", "reference", "entropy"):
        tensor = getattr(batch, name)
        if tensor is not None and tensor.device != batch.log_probs.device:
            raise ValueError(f"{name} is on {tensor.device}, not on {batch.log_probs.device}")


def why_not(batch: Packed) -> str | None:
    """What keeps this call from the kernels."""
    if batch.log_probs.dtype != torch.float32:
        return f"log-probs are {batch.log_probs.dtype}"
    if len(batch.log_probs) > MOST:
        return f"there are more than {MOST} tokens"
    return obstacle_of(batch.log_probs.device)


def named(state: Tensor, batch: Packed) -> dict[str, Tensor]:
    """Metrics by name, without those for which there are no numbers."""
    missing = {
        name
        for name, tensor in (("kl", batch.reference), ("entropy", batch.entropy))
        if tensor is None
    }
    found = state[:SLOTS].unbind()
    return {name: found[i] for name, i in METRICS.items() if name not in missing}


def tensors(batch: Packed) -> tuple[Tensor | None, ...]:
    """What the kernels read, each of one dtype and without gaps."""

    def flat(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()):
            return tensor
        return tensor.float().contiguous()

    return (
        flat(batch.log_probs),
        flat(batch.entropy),
        flat(batch.sampler),
        flat(batch.advantages),
        batch.sequence.contiguous(),
        batch.mask.contiguous(),
        flat(batch.old),
        flat(batch.reference),
    )


def _shapes(log_probs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return shapes(log_probs, rest[2], needs_whole(rest[7], rest[10]))


def _slope_shapes(upstream: Tensor | None, log_probs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bonus = rest[-3]
    return torch.empty_like(log_probs), log_probs.new_empty(log_probs.shape if bonus else 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    log_probs, _, *others = inputs[:8]
    ctx.numbers = inputs[8:]
    _, state = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(state)
    ctx.save_for_backward(log_probs, *others, state)


def _differentiate(
    ctx: Any, upstream: Tensor | None, *_: Any, run: Callable[..., Any] = slopes
) -> tuple[Tensor | None, ...]:
    of_log_probs, of_entropy = None, None
    if upstream is not None:
        of_log_probs, of_entropy = run(upstream, *ctx.saved_tensors, *ctx.numbers)
    for_entropy = of_entropy if ctx.needs_input_grad[1] and ctx.numbers[9] else None
    return of_log_probs, for_entropy, *(None for _ in range(6)), *(None for _ in ctx.numbers)


class _Eager(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = survey(*inputs)
        _remember(ctx, inputs, output)
        return output

    backward = staticmethod(_differentiate)


NUMBERS = (
    "int loss, int correction, int estimator, bool by_sequence, float low, float high, "
    "float floor, float cap, float coefficient, float bonus, float per_token, float per_sequence"
)
_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(
    "policy_loss(Tensor log_probs, Tensor? entropy, Tensor sampler, Tensor advantages, "
    f"Tensor sequence, Tensor mask, Tensor? old, Tensor? reference, {NUMBERS}) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "policy_loss_backward(Tensor? upstream, Tensor log_probs, Tensor sampler, Tensor advantages, "
    "Tensor sequence, Tensor mask, Tensor? old, Tensor? reference, Tensor state, "
    f"{NUMBERS}) -> (Tensor, Tensor)"
)
_library.impl("policy_loss", survey, "CompositeExplicitAutograd")
_library.impl("policy_loss_backward", slopes, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::policy_loss", _shapes, lib=_library)
torch.library.register_fake("assay_kernels::policy_loss_backward", _slope_shapes, lib=_library)
torch.library.register_autograd(
    "assay_kernels::policy_loss",
    partial(_differentiate, run=torch.ops.assay_kernels.policy_loss_backward),
    setup_context=_remember,
    lib=_library,
)
