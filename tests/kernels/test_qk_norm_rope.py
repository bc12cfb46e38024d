"""RMSNorm of heads and rotary positions in one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.qk_norm_rope import reference
from assay_kernels.qk_norm_rope.op import OP, qk_norm_rope, rope
from assay_kernels.registry import Uses
from tests.kernels.heads import DEVICE, no_worse
from tests.kernels.steps import exact, normal, outcome, rows_alike


def table(positions: int, width: int) -> Tensor:
    """Cosines and sines as models have them."""
    frequencies = 1e4 ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1).to(DEVICE)


def draw(
    tokens: int, q_heads: int, k_heads: int, width: int, *, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """q, k and the weights."""
    return [
        2 * normal(tokens, q_heads, width, dtype=dtype),
        2 * normal(tokens, k_heads, width, dtype=dtype, seed=1),
        normal(width, dtype=dtype, seed=2),
        normal(width, dtype=dtype, seed=3),
    ]


def places(tokens: int, limit: int) -> Tensor:
    return (torch.arange(tokens, device=DEVICE) * 7 + 3) % limit


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (3, 4, 2, 16), (18, 9, 1, 8), (2, 3, 3, 64)], ids=str
)
def test_values_and_gradients_are_plain_pytorchs(shape: tuple[int, int, int, int]) -> None:
    inputs = draw(*shape)
    rest = (table(50, shape[-1]), places(shape[0], 50))
    before = OP.uses().fused
    found = outcome(qk_norm_rope, inputs, *rest)
    assert OP.uses().fused == before + 2
    plain = reference.qk_norm_rope
    no_worse(found, outcome(plain, inputs, *rest), exact(plain, inputs, *rest))


@pytest.mark.parametrize("shape", [(3, 4, 2, 16), (18, 9, 1, 8)], ids=str)
def test_the_rotation_alone_is_plain_pytorchs_and_keeps_lengths(
    shape: tuple[int, int, int, int],
) -> None:
    q, k = draw(*shape)[:2]
    rest = (table(50, shape[-1]), places(shape[0], 50))
    before = OP.uses().fused

    def plain(q: Tensor, k: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        return reference.qk_norm_rope(q, k, None, None, *more)

    found = outcome(rope, [q, k], *rest)
    assert OP.uses().fused == before + 2
    no_worse(found, outcome(plain, [q, k], *rest), exact(plain, [q, k], *rest))
    assert torch.allclose(found[0].norm(dim=-1), q.norm(dim=-1))
    double = outcome(rope, [q.double(), k.double()], *rest)
    for mine, theirs in zip(found, double, strict=True):
        assert torch.allclose(mine.double(), theirs, atol=1e-5)
    assert rope(q[:0], k[:0], rest[0], rest[1][:0])[0].shape == (0, *shape[1::2])


def test_position_0_turns_nothing_and_lengths_stay_as_they_are() -> None:
    q, k, _, _ = draw(4, 2, 2, 16)
    ones = torch.ones(16, device=DEVICE)
    still, _ = qk_norm_rope(q, k, ones, ones, table(50, 16), torch.zeros_like(places(4, 50)))
    turned, _ = qk_norm_rope(q, k, ones, ones, table(50, 16), places(4, 50))
    assert torch.allclose(still, q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6))
    assert torch.allclose(still.norm(dim=-1), turned.norm(dim=-1))
    assert not torch.allclose(still, turned)


def test_queries_and_keys_may_be_views_of_a_packed_qkv() -> None:
    packed = normal(5, (4 + 2 + 2) * 16)
    q, k, _ = (x.unflatten(-1, (-1, 16)) for x in packed.split((64, 32, 32), -1))
    assert not q.is_contiguous()
    weights = draw(1, 1, 1, 16)[2:]
    rest = (table(50, 16), places(5, 50))
    for mine, theirs in zip(
        outcome(qk_norm_rope, [q, k, *weights], *rest),
        outcome(qk_norm_rope, [q.contiguous(), k.contiguous(), *weights], *rest),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_token_has_the_same_bits_in_every_batch() -> None:
    q, k, q_weight, k_weight = draw(20, 3, 1, 16)
    where = places(20, 50)

    def turned(q: Tensor, k: Tensor) -> Any:
        return qk_norm_rope(q, k, q_weight, k_weight, table(50, 16), where[: len(q)])

    rows_alike(turned, [q, k], [1, 5, 16, 17])


def test_positions_outside_the_table_give_nan_for_their_token_only() -> None:
    inputs = draw(4, 2, 1, 8)
    positions = torch.tensor([-1, 0, 49, 50], device=DEVICE)
    for function in (qk_norm_rope, reference.qk_norm_rope):
        for heads in function(*inputs, table(50, 8), positions):
            assert heads.isnan().flatten(1).all(1).tolist() == [True, False, False, True]


def test_no_tokens_give_none_and_gradients_of_zeros() -> None:
    found = outcome(qk_norm_rope, draw(0, 2, 1, 8), table(50, 8), places(0, 50))
    assert [list(x.shape) for x in found[:2]] == [[0, 2, 8], [0, 1, 8]]
    assert not found[-1].any()
    assert not found[-2].any()


@pytest.mark.parametrize("width", [6, 1024])
def test_heads_of_other_widths_run_by_the_reference_and_are_counted(width: int) -> None:
    OP.forget()
    inputs, rest = draw(3, 2, 1, width), (table(50, width), places(3, 50))
    plain = reference.qk_norm_rope
    no_worse(
        outcome(qk_norm_rope, inputs, *rest),
        outcome(plain, inputs, *rest),
        exact(plain, inputs, *rest),
    )
    assert OP.uses() == Uses(
        fused=0, fallbacks={f"heads of {width} elements are not a power of 2 up to 512": 2}
    )


@pytest.mark.parametrize(
    ("place", "value", "error", "says"),
    [
        (0, torch.zeros(3, 16), ValueError, r"q must be \[T, Q, D\]"),
        (1, torch.zeros(3, 1, 8), ValueError, r"k \[T, K, D\]"),
        (1, torch.zeros(3, 1, 16).half(), TypeError, "k must be torch.float32"),
        (2, torch.zeros(8), ValueError, r"q_weight must be \[16\]"),
        (3, torch.zeros(16, dtype=torch.int32), TypeError, "k_weight must be of a float"),
        (3, torch.zeros(16, device="meta"), ValueError, "k_weight must be on"),
        (4, torch.zeros(50, 8), ValueError, r"cos_sin must be \[P, 16\]"),
        (5, torch.zeros(3), TypeError, "positions must be int32 or int64"),
        (5, torch.zeros(4, dtype=torch.int64), ValueError, r"positions must be \[3\]"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    place: int, value: Tensor, error: type[Exception], says: str
) -> None:
    inputs = [*draw(3, 2, 1, 16), table(50, 16), places(3, 50)]
    inputs[place] = value if value.device.type == "meta" else value.to(DEVICE)
    with pytest.raises(error, match=says):
        qk_norm_rope(*inputs)


def test_odd_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of elements, not 5"):
        qk_norm_rope(*draw(3, 2, 1, 5), normal(50, 5), places(3, 50))


def test_torch_knows_its_gradient_and_its_shapes() -> None:
    inputs = [x.requires_grad_() for x in draw(3, 2, 1, 8)]
    torch.library.opcheck(
        torch.ops.assay_kernels.qk_norm_rope.default, (*inputs, table(9, 8), places(3, 9), 1e-6)
    )
