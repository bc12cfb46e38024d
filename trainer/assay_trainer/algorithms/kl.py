"""Estimates of KL(policy || reference), token by token, from samples of the policy.

John Schulman, "Approximating KL Divergence" (2020), joschu.net/blog/kl-approx.html. With
d = log reference - log policy of the token that was drawn:

    k1 = -d                 no bias, large variance; negative where the reference likes a token more
    k2 = d^2 / 2            biased, small variance
    k3 = exp(d) - 1 - d     no bias, small variance, never negative: GRPO's, arXiv:2402.03300, eq. 4

These are estimates of the value. As a term of a loss, what counts is the gradient's mean over
samples of the present policy: that of k1 is 0, that of k2 the gradient of KL(policy || reference),
that of k3 the gradient of KL(reference || policy). To hold a policy to the reference, use k2 or k3.

Shapes: log_probs and reference are [T] of one float dtype; so is the result. Gradients flow through
log_probs only.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

FARTHEST = 20.0
"""Differences of log-probs are cut here, on either side, before exp(): they say no more beyond it,
and infinity would make the whole batch NaN."""


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """log policy - log reference."""
    return log_probs - reference.detach()


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """(log policy - log reference)^2 / 2."""
    return (log_probs - reference.detach()) ** 2 / 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - 1 - d with d = log reference - log policy."""
    difference = (reference.detach() - log_probs).clamp(-FARTHEST, FARTHEST)
    return difference.expm1() - difference


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By their names in the job file."""
