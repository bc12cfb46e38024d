"""One step through an op, forward and backward, for tests that compare two ways to take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.kernels.heads import DEVICE

Function = Callable[..., Any]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source).to(DEVICE, dtype)


def outcome(function: Function, inputs: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    """What a function says of inputs and the rest, and the gradients of the inputs, for a loss that
    weighs every element of it differently. Inputs keep how they lie in memory."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    said = function(*leaves, *rest)
    outputs = [said] if isinstance(said, Tensor) else list(said)
    loss = sum((_slopes(out, place) * out).sum() for place, out in enumerate(outputs))
    return [*(out.detach() for out in outputs), *torch.autograd.grad(loss, leaves)]


def _slopes(out: Tensor, place: int) -> Tensor:
    """Numbers that differ, but of which those of the first rows are the same in every batch."""
    counted = torch.arange(out.numel(), dtype=torch.float64, device=out.device)
    return torch.cos(1.7 * counted + place).view(out.shape).to(out.dtype)


def exact(function: Function, inputs: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    """The same in float64, on the numbers that the inputs have after rounding."""
    return outcome(function, [x.double() for x in inputs], *rest)


def rows_alike(function: Function, inputs: Sequence[Tensor], rows: Sequence[int]) -> None:
    """The first rows of a batch give the same bits, forward and backward, in batches of any size.

    Args:
        function: takes `rows` inputs, and has one output a row of each.
        inputs: [R, ...] each.
        rows: sizes of batches.
    """
    whole = outcome(function, inputs)
    for size in rows:
        some = outcome(function, [x[:size] for x in inputs])
        for mine, theirs in zip(some, whole, strict=True):
            assert torch.equal(mine, theirs[:size]), size
