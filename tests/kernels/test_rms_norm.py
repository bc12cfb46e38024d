"""RMSNorm, alone and after an addition: plain PyTorch's numbers, and the same in any batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.registry import Uses
from assay_kernels.rms_norm import reference
from assay_kernels.rms_norm.op import OP, add_rms_norm, rms_norm
from tests.kernels.heads import DEVICE, no_worse
from tests.kernels.steps import exact, normal, outcome, rows_alike

SHAPES = [(1, 1), (3, 8), (17, 100), (2, 2, 129)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_values_and_gradients_are_plain_pytorchs(shape: tuple[int, ...], eps: float) -> None:
    inputs = [3 * normal(*shape), normal(shape[-1], seed=1)]
    before = OP.uses().fused
    found = outcome(rms_norm, inputs, eps)
    assert OP.uses().fused == before + 2
    no_worse(
        found, outcome(reference.rms_norm, inputs, eps), exact(reference.rms_norm, inputs, eps)
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_after_an_addition_too_and_the_sum_has_its_own_gradient(shape: tuple[int, ...]) -> None:
    inputs = [normal(*shape), normal(*shape, seed=1), normal(shape[-1], seed=2)]
    plain = reference.add_rms_norm
    no_worse(outcome(add_rms_norm, inputs), outcome(plain, inputs), exact(plain, inputs))


def test_adding_and_normalising_in_one_step_gives_the_bits_of_two_steps() -> None:
    x, residual, weight = normal(5, 40), normal(5, 40, seed=1), normal(40, seed=2)
    normed, total = add_rms_norm(x, residual, weight)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight))


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    weight = normal(100, seed=2)
    inputs = [normal(20, 100), normal(20, 100, seed=1)]
    rows_alike(partial(_swapped, weight), inputs, [1, 7, 16, 17])


def _swapped(weight: Tensor, x: Tensor, residual: Tensor) -> Any:
    return add_rms_norm(x, residual, weight)


def test_only_the_sum_or_only_the_normalised_rows_may_be_used() -> None:
    inputs = [normal(4, 8), normal(4, 8, seed=1), normal(8, seed=2)]
    for place in (0, 1):
        leaves = [x.clone().requires_grad_() for x in inputs]
        others = [x.double().requires_grad_() for x in inputs]
        add_rms_norm(*leaves)[place].square().sum().backward()
        reference.add_rms_norm(*others)[place].square().sum().backward()
        for mine, theirs in zip(leaves, others, strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            if theirs.grad is not None:
                assert torch.allclose(mine.grad.double(), theirs.grad, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient_and_rows_the_same() -> None:
    x, weight = normal(3, 8), normal(8, seed=1)
    free = outcome(rms_norm, [x, weight])
    frozen = outcome(lambda rows: rms_norm(rows, weight), [x])
    assert torch.equal(frozen[1], free[1])


@pytest.mark.parametrize("view", ["transposed", "every other row", "every other column"])
def test_rows_may_lie_in_memory_as_they_like(view: str) -> None:
    x, weight = normal(6, 10), normal(10, seed=1)
    strange = {
        "transposed": x.t().contiguous().t(),
        "every other row": x.repeat_interleave(2, 0)[::2],
        "every other column": x.repeat_interleave(2, 1)[:, ::2],
    }[view]
    assert not strange.is_contiguous()
    for mine, theirs in zip(
        outcome(add_rms_norm, [strange, strange, weight]),
        outcome(add_rms_norm, [x, x, weight]),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_no_rows_give_none_and_a_weights_gradient_of_zeros() -> None:
    found = outcome(add_rms_norm, [normal(0, 8), normal(0, 8), normal(8)])
    assert [list(x.shape) for x in found] == [[0, 8]] * 4 + [[8]]
    assert not found[-1].any()


def test_a_row_with_nan_is_nan_and_no_other_one_is() -> None:
    x = normal(3, 8)
    x[1, 3] = torch.nan
    assert rms_norm(x, normal(8, seed=1)).isnan().all(-1).tolist() == [False, True, False]


def test_float64_runs_by_the_reference_and_is_counted() -> None:
    OP.forget()
    inputs = [normal(3, 8).double(), normal(3, 8, seed=1).double(), normal(8, seed=2).double()]
    no_worse(outcome(add_rms_norm, inputs), *[outcome(reference.add_rms_norm, inputs)] * 2)
    no_worse(outcome(rms_norm, inputs[1:]), *[outcome(reference.rms_norm, inputs[1:])] * 2)
    assert OP.uses() == Uses(fused=0, fallbacks={"x is torch.float64": 4})


@pytest.mark.parametrize(
    ("place", "value", "error", "says"),
    [
        (0, torch.zeros(()), ValueError, "x must be"),
        (0, torch.zeros(3, 8, dtype=torch.int32), TypeError, "x must be of a float"),
        (1, torch.zeros(3, 4), ValueError, r"residual must be \[3, 8\]"),
        (1, torch.zeros(3, 8, dtype=torch.float64), TypeError, "residual must be torch.float32"),
        (1, torch.zeros(3, 8, device="meta"), ValueError, "residual must be on"),
        (2, torch.zeros(4), ValueError, r"weight must be \[8\]"),
        (2, torch.zeros(8, dtype=torch.int64), TypeError, "weight must be of a float"),
        (2, torch.zeros(8, device="meta"), ValueError, "weight must be on"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    place: int, value: Tensor, error: type[Exception], says: str
) -> None:
    inputs = [normal(3, 8), normal(3, 8), normal(8)]
    inputs[place] = value if value.device.type == "meta" else value.to(DEVICE)
    with pytest.raises(error, match=says):
        add_rms_norm(*inputs)


def test_torch_knows_its_gradient_and_its_shapes() -> None:
    x, residual, weight = (normal(*s).requires_grad_() for s in ((3, 8), (3, 8), (8,)))
    op = torch.ops.assay_kernels.rms_norm.default
    torch.library.opcheck(op, (x, residual, weight, 1e-6))
    torch.library.opcheck(op, (x, None, weight, 1e-6))
