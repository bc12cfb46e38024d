"""Head and policy loss in one pass: each logit is made once, and becomes its gradient at once.

Backward through `linear_logprob` has to make the logits again, since a token's gradient is known
only when the loss is. But what the policy loss wants of a token follows from the token's own
log-prob and from numbers that were there before, so that its gradient can be taken while its logits
are still in memory: 3 matrix products in place of 4.

GSPO with the log-probs of an earlier pass is the exception: its bounds need a whole sequence's
log-probs first. That goes through `linear_logprob` and `policy_loss`, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assay_kernels.linear_logprob.op import check, linear_logprob, why_not
from assay_kernels.linear_logprob.passes import SCRATCH, dense, groups
from assay_kernels.linear_logprob.work import Wanted, Work
from assay_kernels.policy_loss import launches
from assay_kernels.policy_loss import op as policy
from assay_kernels.policy_loss.formula import Formula, needs_whole
from assay_kernels.policy_loss.reference import Loss, Packed, Totals
from assay_kernels.registry import Op
from assay_trainer.algorithms.settings import Algorithm

OP = Op("linear_policy_loss")
_BLOCK = 4096


@dataclass(frozen=True)
class Drawn:
    """What is known of packed tokens before the head has run; see `Packed` for each field."""

    sampler: Tensor
    advantages: Tensor
    sequence: Tensor
    mask: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None

    def packed(self, log_probs: Tensor, entropy: Tensor | None) -> Packed:
        """The same with what the head says."""
        return Packed(
            log_probs,
            self.sampler,
            self.advantages,
            self.sequence,
            self.mask,
            self.old,
            self.reference,
            entropy,
        )


class Folded(NamedTuple):
    """A pass's share of the loss, and what the head said.

    Attributes:
        loss: as `policy_loss` gives it; its value has gradients for hidden and weight.
        log_prob: [T] of the targets, without a gradient.
        entropy: [T] likewise.
    """

    loss: Loss
    log_prob: Tensor
    entropy: Tensor


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    drawn: Drawn,
    algorithm: Algorithm,
    totals: Totals,
    *,
    temperature: float = 1.0,
    scratch: int = SCRATCH,
) -> Folded:
    """`policy_loss` of the log-probs and entropies that `linear_logprob` gives.

    The gradients lie in memory from the forward pass on, in the dtypes of hidden and weight; they
    can be taken once. The gradient of a weight in bfloat16 is rounded once for each group of rows
    that `scratch` holds.

    Args:
        hidden: [T, H]; see `linear_logprob`, also for weight, targets, temperature and scratch.
        weight: [V, H].
        targets: [T] int64.
        drawn: the same T tokens.
        algorithm: the job's.
        totals: of the whole batch.
        temperature: divides the logits.
        scratch: bytes of logits in memory at one time.

    Raises:
        ValueError: what `linear_logprob` and `policy_loss` say.
        TypeError: a dtype does not fit.
    """
    check(hidden, weight, targets, temperature, scratch)
    # In place of log-probs and entropies that are not there yet: their shapes and dtypes matter.
    shape = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    stand = drawn.packed(shape, shape)
    policy.check(stand, algorithm)
    if not OP.fused(_why_not(hidden, weight, stand, algorithm)):
        said = linear_logprob(hidden, weight, targets, temperature=temperature, scratch=scratch)
        entropy = said.entropy if algorithm.entropy else said.entropy.detach()
        loss = policy.policy_loss(drawn.packed(said.log_prob, entropy), algorithm, totals)
        return Folded(loss, said.log_prob.detach(), said.entropy.detach())
    formula = Formula.of(algorithm, totals)
    value, metrics, log_prob, entropy, _, _ = torch.ops.assay_kernels.linear_policy_loss(
        hidden,
        weight,
        targets,
        *policy.tensors(stand)[2:],
        float(temperature),
        scratch,
        hidden.requires_grad,
        weight.requires_grad,
        *formula,
    )
    return Folded(Loss(value, policy.named(metrics, stand)), log_prob, entropy)


def _why_not(hidden: Tensor, weight: Tensor, stand: Packed, algorithm: Algorithm) -> str | None:
    """What keeps this call from one pass."""
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return "no gradient is wanted"
    if hidden.dtype == torch.float16:
        return "in float16 gradients must know the loss's scale before they are rounded"
    if algorithm.loss == "gspo" and stand.old is not None:
        return "GSPO with old log-probs needs whole sequences first"
    return why_not(hidden) or policy.why_not(stand)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    sampler: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    mask: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    temperature: float,
    scratch: int,
    for_hidden: bool,
    for_weight: bool,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    """Loss, metrics, log-probs, entropies, and gradients of hidden and weight."""
    own = weight.dtype
    kind = torch.promote_types(own, hidden.dtype)
    hidden, weight = dense(hidden), dense(weight.to(hidden.dtype))
    tokens = len(hidden)
    log_probs, sums, entropies = (
        torch.empty(tokens, dtype=torch.float32, device=hidden.device) for _ in range(3)
    )
    of_hidden = hidden.new_empty(hidden.shape) if for_hidden else None
    of_weight = weight.new_empty(weight.shape, dtype=kind) if for_weight else None
    state = _lengths(sequence, mask, len(advantages))

    def slopes(rows: slice) -> Wanted:
        of_log_probs, of_entropies = launches.slopes(
            None,
            log_probs[rows],
            sampler[rows],
            advantages,
            sequence[rows],
            mask[rows],
            None if old is None else old[rows],
            None if reference is None else reference[rows],
            state,
            *numbers,
        )
        return of_log_probs, None, of_entropies if len(of_entropies) else None

    said = (log_probs, sums, entropies)
    work = Work(hidden, weight, targets.contiguous(), temperature, scratch, said, slopes)
    each = len(weight) * hidden.element_size()
    done = 0
    # Where one group is not enough, and more tokens than one group fit there.
    if of_weight is not None and scratch < min(each * tokens, of_weight.nbytes):
        done = work.in_place(of_hidden, of_weight)
    for rows in groups(tokens - done, each, scratch):
        work.by_rows(
            slice(rows.start + done, rows.stop + done),
            of_hidden,
            of_weight,
            anew=rows.start + done == 0,
        )
    if of_weight is not None and not tokens:
        of_weight.zero_()
    value, metrics = launches.survey(
        log_probs, entropies, sampler, advantages, sequence, mask, old, reference, *numbers
    )
    for_none = hidden.new_empty(0)
    found = (
        for_none if of_hidden is None else of_hidden,
        for_none if of_weight is None else of_weight.to(own),
    )
    return value, metrics, log_probs, entropies, *found


def _lengths(sequence: Tensor, mask: Tensor, sequences: int) -> Tensor:
    """A state as `launches.survey` leaves it, without mean log-ratios: none folded needs them."""
    state = torch.zeros(launches.SLOTS + max(1, sequences), dtype=torch.float32, device=mask.device)
    found = state[launches.SLOTS :]
    # A number that is no sequence's makes the loss NaN in `policy_loss`; it must not fail here.
    found.index_add_(0, sequence.clamp(0, len(found) - 1), mask.float()).clamp_(min=1)
    return state


def _shapes(hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    for_hidden, for_weight = rest[9:11]
    one, other = (hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(2))
    return (
        *launches.shapes(one, rest[2], needs_whole(rest[11], rest[14])),
        one,
        other,
        hidden.new_empty(hidden.shape if for_hidden else 0),
        weight.new_empty(weight.shape if for_weight else 0),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.inputs = len(inputs)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[4:])


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = [None, None]
    if upstream is not None:
        # In place: a second weight-sized tensor would be the largest thing in memory.
        for i, gradient in enumerate(ctx.saved_tensors):
            if ctx.needs_input_grad[i]:
                torch.ops.assay_kernels.scale_(gradient, upstream)
                torch.autograd.graph.increment_version(gradient)
                found[i] = gradient
    return *found, *(None for _ in range(ctx.inputs - 2))


def _scale(values: Tensor, factor: Tensor) -> None:
    from assay_kernels.linear_logprob import kernel  # noqa: PLC0415 (needs Triton)

    count = values.numel()
    if count:
        kernel.scale[(-(-count // _BLOCK),)](values, factor, count, BLOCK=_BLOCK, num_warps=8)


_library = torch.library.Library("assay_kernels", "FRAGMENT")
_library.define(
    "linear_policy_loss(Tensor hidden, Tensor weight, Tensor targets, Tensor sampler, "
    "Tensor advantages, Tensor sequence, Tensor mask, Tensor? old, Tensor? reference, "
    "float temperature, int scratch, bool for_hidden, bool for_weight, "
    f"{policy.NUMBERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define("scale_(Tensor(a!) values, Tensor factor) -> ()")
_library.impl("linear_policy_loss", _forward, "CompositeExplicitAutograd")
_library.impl("scale_", _scale, "CompositeExplicitAutograd")
torch.library.register_fake("assay_kernels::linear_policy_loss", _shapes, lib=_library)
torch.library.register_fake("assay_kernels::scale_", lambda *_: None, lib=_library)
torch.library.register_autograd(
    "assay_kernels::linear_policy_loss", _differentiate, setup_context=_remember, lib=_library
)
