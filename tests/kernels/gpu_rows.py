"""`rms_norm`, `silu_mul` and `qk_norm_rope` on a GPU: dtypes, odd sizes, bits, graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.qk_norm_rope import reference as heads_plain
from assay_kernels.qk_norm_rope.op import qk_norm_rope
from assay_kernels.rms_norm import reference as norm_plain
from assay_kernels.rms_norm.op import add_rms_norm, rms_norm
from assay_kernels.silu_mul import reference as silu_plain
from assay_kernels.silu_mul.op import silu_mul
from tests.kernels.heads import no_worse
from tests.kernels.steps import exact, normal, outcome, rows_alike
from tests.kernels.test_qk_norm_rope import places, table

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [1, 8, 33, 500, 2_047]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dataclass(frozen=True)
class Case:
    """An op, what it is to compute, and its inputs of some rows, followed by its weights."""

    fused: Callable[..., Any]
    plain: Callable[..., Any]
    rows: Callable[[int, torch.dtype], list[Tensor]]
    weights: Callable[[torch.dtype], list[Tensor]]
    rest: Callable[[int], tuple[Any, ...]] = lambda rows: ()


def norm(width: int, *, added: bool) -> Case:
    return Case(
        add_rms_norm if added else rms_norm,
        norm_plain.add_rms_norm if added else norm_plain.rms_norm,
        lambda rows, dtype: [
            2 * normal(rows, width, dtype=dtype, seed=n) for n in range(1 + added)
        ],
        lambda dtype: [normal(width, dtype=dtype, seed=5)],
    )


def silu(width: int) -> Case:
    return Case(
        silu_mul,
        silu_plain.silu_mul,
        lambda rows, dtype: [3 * normal(rows, width, dtype=dtype, seed=n) for n in range(2)],
        lambda dtype: [],
    )


def pair(width: int) -> Case:
    return Case(
        silu_mul,
        lambda x: silu_plain.silu_mul(*x.chunk(2, -1)),
        lambda rows, dtype: [3 * normal(rows, 2 * width, dtype=dtype)],
        lambda dtype: [],
    )


def heads(q_heads: int, k_heads: int, width: int) -> Case:
    return Case(
        qk_norm_rope,
        heads_plain.qk_norm_rope,
        lambda rows, dtype: [
            2 * normal(rows, count, width, dtype=dtype, seed=count) for count in (q_heads, k_heads)
        ],
        lambda dtype: [normal(width, dtype=dtype, seed=n) for n in range(2)],
        lambda rows: (table(5_000, width), places(rows, 5_000)),
    )


CASES = {
    "norm 1": norm(1, added=False),
    "norm 4,096": norm(4_096, added=False),
    "norm 2,880": norm(2_880, added=True),
    "norm 151": norm(151, added=True),
    "norm 32,768": norm(32_768, added=True),
    "silu 1": silu(1),
    "silu 4,096": silu(4_096),
    "silu 12,291": silu(12_291),
    "pair 4,096": pair(4_096),
    "pair 1,001": pair(1_001),
    "heads 32, 8, 128": heads(32, 8, 128),
    "heads 5, 1, 64": heads(5, 1, 64),
    "heads 16, 16, 256": heads(16, 16, 256),
    "heads 2, 2, 2": heads(2, 2, 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_dtype
@every_case
@pytest.mark.parametrize("rows", [1, 37, 300])
def test_errors_are_at_most_twice_pytorchs(case: Case, rows: int, dtype: torch.dtype) -> None:
    inputs = [*case.rows(rows, dtype), *case.weights(dtype)]
    rest = case.rest(rows)
    no_worse(
        outcome(case.fused, inputs, *rest),
        outcome(case.plain, inputs, *rest),
        exact(case.plain, inputs, *rest),
    )


@every_dtype
@every_case
def test_a_row_has_the_same_bits_in_batches_of_1_to_2048(case: Case, dtype: torch.dtype) -> None:
    weights = case.weights(dtype)

    def alone(*inputs: Tensor) -> Any:
        return case.fused(*inputs, *weights, *case.rest(len(inputs[0])))

    rows_alike(alone, case.rows(2_048, dtype), SIZES)


@every_case
def test_it_compiles_as_a_whole_and_runs_in_a_cuda_graph(case: Case) -> None:
    inputs, rest = [*case.rows(40, torch.bfloat16), *case.weights(torch.bfloat16)], case.rest(40)
    wanted = outcome(case.fused, inputs, *rest)
    for mine, theirs in zip(
        outcome(torch.compile(case.fused, fullgraph=True), inputs, *rest), wanted, strict=True
    ):
        assert torch.equal(mine, theirs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = case.fused(*inputs, *rest)
    graph.replay()
    outputs = [captured] if isinstance(captured, Tensor) else captured
    assert all(torch.equal(x, y) for x, y in zip(outputs, wanted, strict=False))


def test_more_elements_than_32_bits_can_count_are_read_at_their_places() -> None:
    """600,000 rows of 4,096 are 2.5e9 elements."""
    x = torch.empty(600_000, 4_096, dtype=torch.bfloat16, device="cuda").normal_()
    weight = normal(4_096, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, weight)[-5:], rms_norm(x[-5:], weight))
    assert torch.equal(silu_mul(x)[-5:], silu_mul(x[-5:]))
