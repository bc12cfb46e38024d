"""x W^T with the same bits for a row whatever the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from assay_kernels.matmul import op as module
from assay_kernels.matmul import reference
from assay_kernels.matmul.op import OP, SPLIT, Plan, matmul
from assay_kernels.registry import Uses
from tests.kernels.heads import DEVICE, no_worse
from tests.kernels.steps import exact, normal, outcome


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 70, 40), (300, 130, 4), (2, 3, SPLIT + 1), (1, 65, 2 * SPLIT)],
    ids=str,
)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "with bias"])
def test_values_and_gradients_are_plain_pytorchs(shape: tuple[int, int, int], biased: bool) -> None:
    """300 rows are 10 tiles along M: more than are next to each other."""
    rows, columns, depth = shape
    inputs = [normal(rows, depth), normal(columns, depth, seed=1) / depth**0.5]
    inputs += [normal(columns, seed=2)] if biased else []
    before = OP.uses().fused
    found = outcome(matmul, inputs)
    assert OP.uses().fused == before + 1
    no_worse(found, outcome(reference.matmul, inputs), exact(reference.matmul, inputs))


def test_rows_have_the_same_bits_alone_and_together_whoever_adds_the_splits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight = normal(40, 2 * SPLIT + 33), normal(7, 2 * SPLIT + 33, seed=1)
    whole = matmul(x, weight)
    assert Plan.of(40, 7, SPLIT + 1, 4, 1).apart
    for rows in (1, 8, 33):
        assert torch.equal(matmul(x[:rows], weight), whole[:rows])
    of = Plan.of
    monkeypatch.setattr(module.Plan, "of", lambda *shape: replace(of(*shape), apart=False))
    assert torch.equal(matmul(x, weight), whole)


def test_few_tiles_are_split_and_many_are_not() -> None:
    assert Plan.of(1, 4096, 4096, 2, 132).apart
    assert Plan.of(64, 4096, 4096, 2, 132).apart
    assert not Plan.of(64, 151_936, 4096, 2, 132).apart
    assert not Plan.of(8_192, 4096, 4096, 2, 132).apart
    assert not Plan.of(1, 4096, SPLIT, 2, 132).apart


def test_leading_dimensions_stay_and_rows_may_lie_as_they_like() -> None:
    x, weight = normal(2, 3, 40), normal(6, 40, seed=1)
    found = matmul(x, weight)
    assert list(found.shape) == [2, 3, 6]
    strange = x.repeat_interleave(2, -1)[..., ::2]
    assert torch.equal(matmul(strange, weight.t().contiguous().t()), found)
    assert torch.equal(matmul(x[:, 1:], weight), found[:, 1:])


def test_no_rows_give_none() -> None:
    found = outcome(matmul, [normal(0, 8), normal(5, 8)])
    assert [list(x.shape) for x in found] == [[0, 5], [0, 8], [5, 8]]
    assert not found[-1].any()


def test_a_row_with_nan_is_nan_and_no_other_one_is() -> None:
    x = normal(3, 40)
    x[1, 3] = torch.nan
    assert matmul(x, normal(5, 40)).isnan().all(-1).tolist() == [False, True, False]


def test_other_dtypes_run_by_the_reference_and_are_counted() -> None:
    OP.forget()
    inputs = [normal(3, 8).double(), normal(5, 8, seed=1).double()]
    no_worse(outcome(matmul, inputs), *[outcome(reference.matmul, inputs)] * 2)
    assert matmul(*inputs, out_dtype=torch.float32).dtype == torch.float32
    assert OP.uses() == Uses(fused=0, fallbacks={"x is torch.float64": 2})


@pytest.mark.parametrize(
    ("x", "weight", "bias", "kind", "error", "says"),
    [
        (torch.zeros(3, 8), torch.zeros(5, 7), None, None, ValueError, "x must be"),
        (torch.zeros(3, 8), torch.zeros(0, 8), None, None, ValueError, "above 0"),
        (torch.zeros(3, 8).int(), torch.zeros(5, 8), None, None, TypeError, "x must be of a float"),
        (torch.zeros(3, 8), torch.zeros(5, 8).half(), None, None, TypeError, "weight must be"),
        (torch.zeros(3, 8), torch.zeros(5, 8, device="meta"), None, None, ValueError, "be on"),
        (torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(4), None, ValueError, r"must be \[5\]"),
        (torch.zeros(3, 8), torch.zeros(5, 8), torch.zeros(5).int(), None, TypeError, "bias must"),
        (torch.zeros(3, 8), torch.zeros(5, 8), None, torch.float16, TypeError, "out_dtype must"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kind: torch.dtype | None,
    error: type[Exception],
    says: str,
) -> None:
    def here(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.device.type == "meta" else tensor.to(DEVICE)

    with pytest.raises(error, match=says):
        matmul(here(x), here(weight), here(bias), kind)  # type: ignore[arg-type]


def test_torch_knows_its_gradient_and_its_shapes() -> None:
    x, weight, bias = (normal(*s).requires_grad_() for s in ((3, 8), (5, 8), (5,)))
    torch.library.opcheck(torch.ops.assay_kernels.matmul.default, (x, weight, bias, None))
