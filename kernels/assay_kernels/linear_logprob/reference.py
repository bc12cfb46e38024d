"""What `linear_logprob` computes, in plain PyTorch, with all logits in memory.

With x = h W^T / temperature and p = softmax(x):

    log_sum_exp = log sum exp(x)                d / dx = p
    log_prob    = x[target] - log_sum_exp       d / dx = onehot(target) - p
    entropy     = log_sum_exp - sum(p x)        d / dx = -p (log p + entropy)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LogProbs(NamedTuple):
    """What a head says of R tokens.

    Attributes:
        log_prob: [R] of the targets; NaN, without a gradient, where a target is outside the
            vocabulary.
        log_sum_exp: [R] of the logits over the temperature.
        entropy: [R] of the distribution, in nats.
    """

    log_prob: Tensor
    log_sum_exp: Tensor
    entropy: Tensor


def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0
) -> LogProbs:
    """Log-probs of targets, with gradients by autograd.

    Args:
        hidden: [R, H] of any float dtype.
        weight: [V, H]; rounded to hidden's dtype.
        targets: [R] int64.
        temperature: divides the logits.

    Returns:
        [R] each: float32, or float64 where hidden is.
    """
    logits = hidden @ weight.to(hidden.dtype).t()
    logits = logits.to(torch.promote_types(hidden.dtype, torch.float32)) / temperature
    sums = logits.logsumexp(-1)
    inside = (targets >= 0) & (targets < weight.shape[0])
    chosen = logits.gather(-1, torch.where(inside, targets, 0)[:, None]).squeeze(-1)
    log_prob = torch.where(inside, chosen - sums, torch.nan)
    entropy = sums - (torch.softmax(logits, -1) * logits).sum(-1)
    return LogProbs(log_prob, sums, entropy)


def backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The gradients that autograd finds through `linear_logprob`, for where it cannot be used.

    Args:
        hidden: as in `linear_logprob`; so are weight, targets and temperature.
        gradients: [R] of log_prob, log_sum_exp and entropy; None where there is none.

    Returns:
        Of hidden, in its dtype, and of weight, in the finer one of float32 and its dtype.
    """
    of_log_prob, of_sums, of_entropy = gradients
    narrow = weight.to(hidden.dtype)
    fine = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden @ narrow.t()).to(fine) / temperature
    logs = logits.log_softmax(-1)
    probabilities = logs.exp()
    slopes = torch.zeros_like(logits)
    if of_log_prob is not None:
        inside = (targets >= 0) & (targets < weight.shape[0])
        chosen = torch.where(inside, of_log_prob.to(fine), 0)[:, None]
        slopes -= chosen * probabilities
        slopes.scatter_add_(1, torch.where(inside, targets, 0)[:, None], chosen)
    if of_sums is not None:
        slopes += of_sums.to(fine)[:, None] * probabilities
    if of_entropy is not None:
        entropy = -(probabilities * logs).sum(-1, keepdim=True)
        slopes -= of_entropy.to(fine)[:, None] * probabilities * (logs + entropy)
    slopes = (slopes / temperature).to(hidden.dtype)
    kept = torch.promote_types(weight.dtype, torch.float32)
    return slopes @ narrow, slopes.t().to(kept) @ hidden.to(kept)
