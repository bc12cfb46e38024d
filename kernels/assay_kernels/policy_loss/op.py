"""`policy_loss` for any device: two launches where it fits, the trainer's own loss elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assay_kernels.policy_loss import reference
from assay_kernels.policy_loss.reference import Loss, Packed, Totals
from assay_kernels.registry import Op, obstacle_of
from assay_trainer.algorithms.settings import Algorithm, IcePop, Tis

OP = Op("policy_loss")
LOSSES = ("clip", "gspo", "cispo")
CORRECTIONS = ("none", "tis", "icepop")
ESTIMATORS = ("", "k1", "k2", "k3")
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
SLOTS = 16
_MOST = 2**24
"""float32 counts tokens exactly up to here."""
_BLOCK = 512
_WIDTH = 256


class Formula(NamedTuple):
    """The numbers of an `Algorithm` and `Totals`, as kernels take them.

    Attributes:
        loss: its place in `LOSSES`.
        correction: its place in `CORRECTIONS`.
        estimator: its place in `ESTIMATORS`.
        by_sequence: whether averages are over sequences.
        low: the lowest ratio that is not bounded.
        high: the highest.
        floor: the smallest weight that IcePop keeps.
        cap: the largest weight.
        coefficient: of the divergence.
        bonus: of the entropy.
        per_token: 1 / tokens of the whole batch.
        per_sequence: 1 / sequences of the whole batch.
    """

    loss: int
    correction: int
    estimator: int
    by_sequence: bool
    low: float
    high: float
    floor: float
    cap: float
    coefficient: float
    bonus: float
    per_token: float
    per_sequence: float

    @classmethod
    def of(cls, algorithm: Algorithm, totals: Totals) -> Formula:
        """The formula that a job asks for."""
        floor, cap = 0.0, math.inf
        match algorithm.importanceCorrection:
            case Tis(cap=cap):
                pass
            case IcePop(alpha=floor, beta=cap):
                pass
        return cls(
            loss=LOSSES.index(algorithm.loss),
            correction=CORRECTIONS.index(algorithm.importanceCorrection.type),
            estimator=ESTIMATORS.index(algorithm.kl.estimator),
            by_sequence=algorithm.average == "sequences",
            low=1 - algorithm.clip[0],
            high=1 + algorithm.clip[1],
            floor=floor,
            cap=cap,
            coefficient=algorithm.kl.coef,
            bonus=algorithm.entropy,
            per_token=1 / max(1, totals.tokens),
            per_sequence=1 / max(1, totals.sequences),
        )

    @property
    def whole(self) -> bool:
        """Whether a token's part needs its whole sequence."""
        return self.by_sequence or LOSSES[self.loss] == "gspo"


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
    value, metrics, _, _ = run(*tensors(batch), *formula)
    return Loss(value, named(metrics, batch))


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
    if len(batch.log_probs) > _MOST:
        return f"there are more than {_MOST} tokens"
    return obstacle_of(batch.log_probs.device)


def named(metrics: Tensor, batch: Packed) -> dict[str, Tensor]:
    """Metrics by name, without those for which there are no numbers."""
    missing = {
        name
        for name, tensor in (("kl", batch.reference), ("entropy", batch.entropy))
        if tensor is None
    }
    found = metrics.unbind()
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


_done: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """[1] int32, 0 whenever no launch of this stream is under way."""
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        # A graph has one of its own: it may run beside this stream, and its memory is its own.
        return torch.zeros(1, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
    if (device, stream) not in _done:
        _done[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _done[device, stream]


def survey(
    log_probs: Tensor,
    entropy: Tensor | None,
    sampler: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    mask: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    loss: int,
    correction: int,
    estimator: int,
    by_sequence: bool,
    low: float,
    high: float,
    floor: float,
    cap: float,
    coefficient: float,
    bonus: float,
    per_token: float,
    per_sequence: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, metrics, and of each sequence its length and its mean log-ratio."""
    from assay_kernels.policy_loss import kernel  # noqa: PLC0415 (needs Triton)

    whole = by_sequence or LOSSES[loss] == "gspo"
    count, sequences = len(log_probs), len(advantages)
    # One program at least: it says that the loss of nothing is 0.
    programs = max(1, sequences if whole else math.ceil(count / _BLOCK))
    value, metrics = log_probs.new_empty(()), log_probs.new_empty(SLOTS)
    lengths, means = (log_probs.new_empty(max(1, sequences) if whole else 0) for _ in range(2))
    kernel.survey[(programs,)](
        log_probs,
        entropy,
        sampler,
        advantages,
        sequence,
        mask,
        old,
        reference,
        lengths,
        means,
        log_probs.new_empty((programs, SLOTS)),
        _counter(log_probs.device),
        value,
        metrics,
        count,
        sequences,
        low,
        high,
        floor,
        cap,
        coefficient,
        bonus,
        per_token,
        per_sequence,
        LOSS=loss,
        CORRECTION=correction,
        ESTIMATOR=estimator if reference is not None else 0,
        BY_SEQUENCE=by_sequence,
        WHOLE=whole,
        BLOCK=_BLOCK,
        WIDTH=_WIDTH,
    )
    return value, metrics, lengths, means


def slopes(
    upstream: Tensor | None,
    log_probs: Tensor,
    sampler: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    mask: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    lengths: Tensor,
    means: Tensor,
    loss: int,
    correction: int,
    estimator: int,
    by_sequence: bool,
    low: float,
    high: float,
    floor: float,
    cap: float,
    coefficient: float,
    bonus: float,
    per_token: float,
    per_sequence: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of log_probs and entropy at some tokens; the latter empty where bonus is 0.

    Args:
        upstream: [] float32, the gradient of the loss; None for 1.
        log_probs: [T] float32; so are sampler, old and reference; sequence and mask are of [T].
        lengths: [S] how many tokens of each sequence count; read where by_sequence.
        means: [S] mean log-ratios; read for gspo with old.
        loss: this and all that follows: see `Formula`.
    """
    from assay_kernels.policy_loss import kernel  # noqa: PLC0415 (needs Triton)

    of_log_probs = torch.empty_like(log_probs)
    of_entropy = torch.empty_like(log_probs) if bonus else log_probs.new_empty(0)
    count = len(log_probs)
    if not count:
        return of_log_probs, of_entropy
    kernel.slope[(math.ceil(count / _BLOCK),)](
        log_probs,
        sampler,
        advantages,
        sequence,
        mask,
        old,
        reference if coefficient else None,
        lengths,
        means,
        upstream,
        of_log_probs,
        of_entropy if bonus else None,
        count,
        len(advantages),
        low,
        high,
        floor,
        cap,
        coefficient,
        bonus,
        per_token,
        per_sequence,
        LOSS=loss,
        CORRECTION=correction,
        ESTIMATOR=estimator if coefficient else 0,
        BY_SEQUENCE=by_sequence,
        BLOCK=_BLOCK,
    )
    return of_log_probs, of_entropy


def _shapes(log_probs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sequences = rest[2].shape[0]
    loss, by_sequence = rest[7], rest[10]
    whole = by_sequence or LOSSES[loss] == "gspo"
    size = max(1, sequences) if whole else 0
    return (
        log_probs.new_empty(()),
        log_probs.new_empty(SLOTS),
        log_probs.new_empty(size),
        log_probs.new_empty(size),
    )


def _slope_shapes(upstream: Tensor | None, log_probs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bonus = rest[-3]
    return torch.empty_like(log_probs), log_probs.new_empty(log_probs.shape if bonus else 0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    log_probs, _, *others = inputs[:8]
    ctx.numbers = inputs[8:]
    _, metrics, lengths, means = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(metrics, lengths, means)
    ctx.save_for_backward(log_probs, *others, lengths, means)


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
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "policy_loss_backward(Tensor? upstream, Tensor log_probs, Tensor sampler, Tensor advantages, "
    "Tensor sequence, Tensor mask, Tensor? old, Tensor? reference, Tensor lengths, Tensor means, "
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
