"""The loss of packed sequences: what is bounded, how it is averaged, and what there is to watch.

Sequences of any length lie end to end in flat tensors, so nothing is padded. A batch may be cut
into micro-batches between sequences, over passes and over processes: each one's loss is divided by
the whole batch's `Totals`, so that losses and gradients add up to those of the whole batch,
whatever the cut. (Where processes average gradients instead of adding them, multiply by their
number.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay_trainer.algorithms.correction import weigh
from assay_trainer.algorithms.kl import ESTIMATORS, FARTHEST
from assay_trainer.algorithms.settings import Algorithm

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Packed:
    """Some whole sequences, end to end: T tokens of S sequences.

    Floats are float32 or float64, of one dtype. Where `mask` is False, they may hold anything.

    Attributes:
        log_probs: [T] of the tokens under the policy that learns; the only one with a gradient,
            beside `entropy`.
        sampler: [T] the engine's log-probs, as it gave them when it drew the tokens.
        advantages: [S] of each sequence; see `advantage`.
        sequence: [T] int64, each token's sequence, from 0 to S - 1.
        mask: [T] bool, whether a token counts: it is part of a completion, and its sample is not
            masked.
        old: [T] the trainer's log-probs before the first update on this batch. None: this is the
            first update, so they are `log_probs` without the gradient.
        reference: [T] log-probs under the reference model; needed where kl.coef is above 0.
        entropy: [T] of the policy's distribution at each token; needed where the bonus is above 0.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """

    log_probs: Tensor
    sampler: Tensor
    advantages: Tensor
    sequence: Tensor
    mask: Tensor
    old: Tensor | None = None
    reference: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        if self.log_probs.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"log-probs must be float32 or float64, not {self.log_probs.dtype}")
        if self.mask.dtype != torch.bool or self.sequence.dtype != torch.int64:
            raise ValueError("mask must be bool and sequence int64")
        if self.log_probs.dim() != 1 or self.advantages.dim() != 1:
            raise ValueError("log_probs and advantages must be vectors")
        for name in ("sampler", "sequence", "mask", "old", "reference", "entropy"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != self.log_probs.shape:
                raise ValueError(
                    f"{name} is {list(tensor.shape)}, not {list(self.log_probs.shape)}"
                )


@dataclass(frozen=True)
class Totals:
    """What averages are over: counts of the whole batch, all micro-batches and processes together.

    Attributes:
        tokens: those that count.
        sequences: those of which at least one token counts.
    """

    tokens: int
    sequences: int

    @classmethod
    def of(cls, sequence: Tensor, mask: Tensor) -> Totals:
        """The counts of one batch; those of micro-batches may be added."""
        return cls(int(mask.sum()), int(torch.bincount(sequence[mask]).count_nonzero()))

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.tokens + other.tokens, self.sequences + other.sequences)


@dataclass(frozen=True)
class Tokens:
    """What a loss function sees; masked tokens are 0 everywhere.

    Attributes:
        log_probs: [T] with the gradient.
        log_ratio: [T] log_probs - old, with the gradient, cut at +-`FARTHEST`.
        advantages: [T] of each token's sequence.
        sequence: [T] each token's sequence.
        lengths: [S] float, how many tokens of a sequence count; 1 where none does.
    """

    log_probs: Tensor
    log_ratio: Tensor
    advantages: Tensor
    sequence: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Objective:
    """What is to be made large, token by token; each tensor is [T].

    Attributes:
        value: with the gradient, before weights and averages.
        ratio: what the bounds were put on.
        low: where the lower bound acted.
        high: where the upper bound acted.
    """

    value: Tensor
    ratio: Tensor
    low: Tensor
    high: Tensor


def clip(tokens: Tokens, bounds: Bounds) -> Objective:
    """min(r A, clip(r, 1 - low, 1 + high) A), r each token's ratio: DAPO, arXiv:2503.14476, eq. 8.

    With low = high it is GRPO's, arXiv:2402.03300, eq. 3, and PPO's, arXiv:1707.06347, eq. 7.
    """
    return _clipped(tokens.log_ratio.exp(), tokens.advantages, bounds)


def gspo(tokens: Tokens, bounds: Bounds) -> Objective:
    """The same with the sequence's s = exp(mean of log r): GSPO, arXiv:2507.18071, eq. 5 and 7.

    Written token by token (GSPO-token, section 4.3: the value of s, the gradient of r), so that
    weights of single tokens act on those tokens. Averaged over sequences and without weights, value
    and gradient are those of eq. 5.
    """
    sums = torch.zeros_like(tokens.lengths).index_add(0, tokens.sequence, tokens.log_ratio.detach())
    value = (sums / tokens.lengths)[tokens.sequence]
    # The difference is 0, and first: the bounds are narrower than what rounding would add else.
    ratio = (value + (tokens.log_ratio - tokens.log_ratio.detach())).exp()
    return _clipped(ratio, tokens.advantages, bounds)


def cispo(tokens: Tokens, bounds: Bounds) -> Objective:
    """sg(clip(r, 1 - low, 1 + high)) A log p: CISPO, MiniMax-M1, arXiv:2506.13585, eq. 4 and 5.

    The bounds are on the weight (sg: no gradient), so every token keeps a gradient. The authors set
    no lower one, which is low = 1 here.
    """
    low, high = bounds
    ratio = tokens.log_ratio.detach().exp()
    weight = ratio.clamp(1 - low, 1 + high)
    value = weight * tokens.advantages * tokens.log_probs
    return Objective(value, ratio, ratio < 1 - low, ratio > 1 + high)


def _clipped(ratio: Tensor, advantages: Tensor, bounds: Bounds) -> Objective:
    low, high = 1 - bounds[0], 1 + bounds[1]
    # The minimum takes the bound only on the side to which the advantage pulls.
    below = (advantages < 0) & (ratio < low)
    above = (advantages > 0) & (ratio > high)
    bounded = torch.where(below, low, torch.where(above, high, ratio))
    return Objective(bounded * advantages, ratio.detach(), below, above)


LOSSES: dict[str, Callable[[Tokens, Bounds], Objective]] = {
    "clip": clip,
    "gspo": gspo,
    "cispo": cispo,
}
"""By their names in the job file."""


@dataclass(frozen=True)
class Loss:
    """A micro-batch's share of the whole batch's loss.

    Attributes:
        value: scalar, with the gradient; shares add up.
        metrics: scalars without a gradient; `combine` puts those of micro-batches together.
    """

    value: Tensor
    metrics: dict[str, Tensor]


def policy_loss(batch: Packed, algorithm: Algorithm, totals: Totals) -> Loss:
    """-(objective, weighted for the sampler) + kl.coef * KL - entropy * bonus, each averaged alike.

    Averages over `tokens` divide the sum over all tokens by totals.tokens (DAPO, eq. 8); those over
    `sequences` take each sequence's mean and divide their sum by totals.sequences (GRPO, eq. 3).

    Args:
        batch: some sequences of the batch.
        algorithm: the job's.
        totals: of the whole batch.

    Returns:
        The loss and its metrics, all of them means over the tokens that count, except those named
        /max and /min: loss, policy, kl, entropy; ratio; clip/low and clip/high (the share of tokens
        at which a bound acted); mismatch/mean (of |old - sampler|); correction/mean (of the
        weights) and correction/outside (the share of tokens at which its bound acted).

    Raises:
        ValueError: the reference's log-probs or the entropies are needed and not there.
    """
    mask = batch.mask
    new = torch.where(mask, batch.log_probs, 0)
    old = new.detach() if batch.old is None else torch.where(mask, batch.old, 0).detach()
    sampler = torch.where(mask, batch.sampler, 0).detach()
    lengths = torch.zeros_like(batch.advantages, dtype=new.dtype)
    lengths = lengths.index_add(0, batch.sequence, mask.to(new.dtype)).clamp(min=1)
    advantages = torch.where(mask, batch.advantages[batch.sequence], 0).to(new.dtype).detach()
    log_ratio = (new - old).clamp(-FARTHEST, FARTHEST)

    objective = LOSSES[algorithm.loss](
        Tokens(new, log_ratio, advantages, batch.sequence, lengths), algorithm.clip
    )
    mismatch = old - sampler
    weights, outside = weigh(mismatch.exp(), algorithm.importanceCorrection)

    by_token = mask.to(new.dtype) / max(1, totals.tokens)
    share = _share(algorithm.average, by_token, mask, lengths[batch.sequence], totals)
    value = -(objective.value * weights * share).sum()
    metrics = {"policy": value.detach()}
    if batch.reference is not None:
        divergence = ESTIMATORS[algorithm.kl.estimator](new, torch.where(mask, batch.reference, 0))
        metrics["kl"] = (divergence.detach() * by_token).sum()
        if algorithm.kl.coef:
            value = value + algorithm.kl.coef * (divergence * share).sum()
    elif algorithm.kl.coef:
        raise ValueError("kl.coef is above 0, but there are no log-probs of the reference")
    if batch.entropy is not None:
        entropy = torch.where(mask, batch.entropy, 0)
        metrics["entropy"] = (entropy.detach() * by_token).sum()
        if algorithm.entropy:
            value = value - algorithm.entropy * (entropy * share).sum()
    elif algorithm.entropy:
        raise ValueError("the entropy bonus is above 0, but there are no entropies")

    metrics |= {
        "loss": value.detach(),
        "ratio/mean": (objective.ratio * by_token).sum(),
        "ratio/max": _largest(objective.ratio, mask),
        "ratio/min": -_largest(-objective.ratio, mask),
        "clip/low": (objective.low * by_token).sum(),
        "clip/high": (objective.high * by_token).sum(),
        "mismatch/mean": (mismatch.abs() * by_token).sum(),
        "mismatch/max": _largest(mismatch.abs(), mask),
        "correction/mean": (weights * by_token).sum(),
        "correction/outside": (outside * by_token).sum(),
    }
    return Loss(value, metrics)


def combine(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The whole batch's metrics from those of its micro-batches.

    Sums, except for names ending in /max and /min. Between processes the same holds.
    """
    whole: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in whole:
                whole[name] = value
            elif name.endswith("/max"):
                whole[name] = torch.maximum(whole[name], value)
            elif name.endswith("/min"):
                whole[name] = torch.minimum(whole[name], value)
            else:
                whole[name] = whole[name] + value
    return whole


def _share(
    average: Literal["tokens", "sequences"],
    by_token: Tensor,
    mask: Tensor,
    lengths: Tensor,
    totals: Totals,
) -> Tensor:
    """What each token has of the average: [T], summing to 1 over the whole batch."""
    if average == "tokens":
        return by_token
    return mask / (lengths * max(1, totals.sequences))


def _largest(values: Tensor, mask: Tensor) -> Tensor:
    """The largest that counts; -inf where none does, which `combine` drops."""
    lowest = values.new_full((1,), float("-inf"))
    return torch.cat((torch.where(mask, values, lowest), lowest)).max()
