"""Random heads, and what it means that a result is as good as plain PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay_kernels.linear_logprob import reference
from assay_kernels.linear_logprob.reference import LogProbs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SLACK = 1e-4
Head = Callable[..., LogProbs]


@dataclass(frozen=True)
class Batch:
    """Hidden states, a head and targets; and what the loss weighs each output with."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> Batch:
        """The same numbers in another dtype."""
        return Batch(self.hidden.to(dtype), self.weight.to(dtype), self.targets, self.weights)


def draw(
    rows: int,
    width: int,
    vocabulary: int,
    *,
    dtype: torch.dtype = torch.float32,
    spread: float = 2.0,
    seed: int = 0,
) -> Batch:
    """Logits have a standard deviation of `spread`."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(DEVICE)

    return Batch(
        normal(rows, width).to(dtype),
        (normal(vocabulary, width) * (spread / width**0.5)).to(dtype),
        torch.randint(vocabulary, (rows,), generator=source).to(DEVICE),
        normal(3, rows),
    )


def outcome(head: Head, batch: Batch, **options: Any) -> list[Tensor]:
    """What a head says, and the gradients of a loss of it all: of hidden, of weight."""
    hidden = batch.hidden.detach().requires_grad_()
    weight = batch.weight.detach().requires_grad_()
    said = head(hidden, weight, batch.targets, **options)
    weights = batch.weights.to(said.log_prob.dtype)
    loss = sum((w * part).nansum() for w, part in zip(weights, said, strict=True))
    return [*(part.detach() for part in said), *torch.autograd.grad(loss, (hidden, weight))]


def exact(batch: Batch, **options: Any) -> list[Tensor]:
    """The same by the reference in float64, on the numbers that the batch has after rounding."""
    return outcome(reference.linear_logprob, batch.to(torch.float64), **options)


def error(found: Tensor, true: Tensor) -> float:
    """The largest difference; NaN is to be where NaN is."""
    assert torch.equal(found.isnan(), true.isnan())
    return float((found.double() - true).nan_to_num().abs().max()) if found.numel() else 0.0


def no_worse(found: Sequence[Tensor], plain: Sequence[Tensor], true: Sequence[Tensor]) -> None:
    """Each error is at most twice that of plain PyTorch in the same dtype, plus `SLACK`."""
    for place, (mine, other, right) in enumerate(zip(found, plain, true, strict=True)):
        allowed = 2 * error(other, right) + SLACK
        assert error(mine, right) <= allowed, (place, error(mine, right), allowed)
