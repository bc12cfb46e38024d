"""silu(gate) * up, of two tensors or of one that holds both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.registry import Uses
from assay_kernels.silu_mul import reference
from assay_kernels.silu_mul.op import OP, silu_mul
from tests.kernels.heads import DEVICE, no_worse
from tests.kernels.steps import exact, normal, outcome, rows_alike


def halves(pair: Tensor) -> Any:
    return reference.silu_mul(*pair.chunk(2, -1))


@pytest.mark.parametrize("shape", [(1, 1), (3, 130), (2, 3, 7), (1, 2_049)], ids=str)
def test_values_and_gradients_are_plain_pytorchs(shape: tuple[int, ...]) -> None:
    inputs = [4 * normal(*shape), normal(*shape, seed=1)]
    before = OP.uses().fused
    found = outcome(silu_mul, inputs)
    assert OP.uses().fused == before + 2
    no_worse(found, outcome(reference.silu_mul, inputs), exact(reference.silu_mul, inputs))


@pytest.mark.parametrize("shape", [(1, 2), (3, 130), (2, 3, 14)], ids=str)
def test_gate_and_up_may_lie_side_by_side_and_so_do_their_gradients(shape: tuple[int, ...]) -> None:
    inputs = [normal(*shape)]
    no_worse(outcome(silu_mul, inputs), outcome(halves, inputs), exact(halves, inputs))


def test_both_ways_to_hold_gate_and_up_give_the_same_bits() -> None:
    pair = normal(4, 30)
    gate, up = pair.chunk(2, -1)
    packed, apart = outcome(silu_mul, [pair]), outcome(silu_mul, [gate, up])
    assert torch.equal(packed[0], apart[0])
    assert torch.equal(packed[1], torch.cat(apart[1:], -1))


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    rows_alike(silu_mul, [normal(9, 50), normal(9, 50, seed=1)], [1, 4, 8])


def test_large_gates_pass_or_vanish_and_nan_stays() -> None:
    gate = torch.tensor([[1e4, -1e4, 200.0, -200.0, float("nan"), float("inf")]], device=DEVICE)
    up = torch.full_like(gate, 2.0)
    found = outcome(silu_mul, [gate, up])
    wanted = outcome(reference.silu_mul, [gate, up])
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine[:, :5], theirs[:, :5], equal_nan=True)
    assert found[0][0, 5] == float("inf")


@pytest.mark.parametrize("view", ["transposed", "every other row", "every other column"])
def test_rows_may_lie_in_memory_as_they_like(view: str) -> None:
    x = normal(6, 10)
    strange = {
        "transposed": x.t().contiguous().t(),
        "every other row": x.repeat_interleave(2, 0)[::2],
        "every other column": x.repeat_interleave(2, 1)[:, ::2],
    }[view]
    assert torch.equal(silu_mul(strange, x), silu_mul(x, x))
    assert torch.equal(silu_mul(strange), silu_mul(x))


def test_nothing_gives_nothing() -> None:
    assert list(outcome(silu_mul, [normal(0, 8)])[1].shape) == [0, 8]


def test_float64_runs_by_the_reference_and_is_counted() -> None:
    OP.forget()
    inputs = [normal(3, 8).double(), normal(3, 8, seed=1).double()]
    no_worse(outcome(silu_mul, inputs), *[outcome(reference.silu_mul, inputs)] * 2)
    no_worse(outcome(silu_mul, inputs[:1]), *[outcome(halves, inputs[:1])] * 2)
    assert OP.uses() == Uses(fused=0, fallbacks={"gate is torch.float64": 4})


@pytest.mark.parametrize(
    ("gate", "up", "error", "says"),
    [
        (torch.zeros(3, 7), None, ValueError, "must be of one width"),
        (torch.zeros(()), None, ValueError, "gate must be"),
        (torch.zeros(3, 8, dtype=torch.int32), None, TypeError, "gate must be of a float"),
        (torch.zeros(3, 8), torch.zeros(3, 4), ValueError, r"up must be \[3, 8\]"),
        (torch.zeros(3, 8), torch.zeros(3, 8).half(), TypeError, "up must be torch.float32"),
        (torch.zeros(3, 8), torch.zeros(3, 8, device="meta"), ValueError, "up must be on"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    gate: Tensor, up: Tensor | None, error: type[Exception], says: str
) -> None:
    if up is not None and up.device.type != "meta":
        up = up.to(DEVICE)
    with pytest.raises(error, match=says):
        silu_mul(gate.to(DEVICE), up)


def test_torch_knows_its_gradient_and_its_shapes() -> None:
    gate, up = normal(3, 8).requires_grad_(), normal(3, 8, seed=1).requires_grad_()
    torch.library.opcheck(torch.ops.assay_kernels.silu_mul.default, (gate, up))
    torch.library.opcheck(torch.ops.assay_kernels.silu_mul_pair.default, (gate,))
