"""`matmul` on a GPU: dtypes, odd sizes, strides, bits of a row in every batch, graphs."""

from __future__ import annotations

import pytest
import torch

from assay_kernels.matmul import reference
from assay_kernels.matmul.op import OP, matmul
from tests.kernels.heads import no_worse
from tests.kernels.steps import exact, normal, outcome

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [
    (1, 1, 1),
    (1, 4_096, 4_096),
    (7, 129, 1_000),
    (64, 4_096, 4_096),
    (65, 300, 2_049),
    (200, 4_096, 1_032),
    (300, 17, 4_096),
    (1_000, 2_000, 1_500),
    (3_000, 1_000, 300),
]

pytestmark = pytest.mark.usefixtures("true_float32")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_at_most_twice_pytorchs(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """PyTorch's here: its own product in that dtype, with its bias added to the rounded result."""
    rows, columns, depth = shape
    inputs = [
        normal(rows, depth, dtype=dtype),
        (normal(columns, depth, seed=1) / depth**0.5).to(dtype),
        normal(columns, dtype=dtype, seed=2),
    ]
    before = OP.uses().fused
    found = outcome(matmul, inputs)
    assert OP.uses().fused == before + 1
    plain = outcome(lambda x, weight, bias: x @ weight.t() + bias, inputs)
    no_worse(found, plain, exact(reference.matmul, inputs))


@every_dtype
@pytest.mark.parametrize(
    "shape", [(4_096, 4_096), (1_000, 2_049), (151_936, 1_024), (64, 1_032)], ids=str
)
def test_a_row_has_the_same_bits_in_batches_of_1_to_2048(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    columns, depth = shape
    x = normal(2_048, depth, dtype=dtype)
    weight = (normal(columns, depth, seed=1) / depth**0.5).to(dtype)
    whole = matmul(x, weight, out_dtype=torch.float32)
    for rows in (1, 8, 16, 17, 33, 64, 65, 130, 700):
        assert torch.equal(matmul(x[-rows:], weight, out_dtype=torch.float32), whole[-rows:]), rows
        assert torch.equal(matmul(x[:rows], weight), whole[:rows].to(dtype)), rows


def test_a_float32_head_is_not_rounded_to_bfloat16() -> None:
    x, weight = (normal(8, 4_096, dtype=torch.bfloat16, seed=n) for n in range(2))
    found = matmul(x, weight, out_dtype=torch.float32)
    true = x.double() @ weight.double().t()
    assert float((found - true).abs().max()) < 1e-3
    assert torch.equal(matmul(x, weight), found.bfloat16())


@pytest.mark.parametrize("rows", [3, 300])
def test_factors_may_lie_in_memory_as_they_like(rows: int) -> None:
    x = normal(rows, 2 * 1_100, dtype=torch.bfloat16)[:, ::2]
    weight = normal(1_100, 200, dtype=torch.bfloat16, seed=1).t()
    offset = normal(rows, 1_101, dtype=torch.bfloat16, seed=2)[:, 1:]
    for some in (x, offset):
        assert torch.equal(matmul(some, weight), matmul(some.contiguous(), weight.contiguous()))


def test_it_compiles_runs_in_a_cuda_graph_and_leaves_its_counters_clean() -> None:
    x, weight = (normal(n, 4_096, dtype=torch.bfloat16, seed=n) for n in (5, 640))
    wanted = [matmul(x, weight) for _ in range(3)]
    assert torch.equal(wanted[0], wanted[2])
    compiled = torch.compile(matmul, fullgraph=True)(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = matmul(x, weight)
    for _ in range(2):
        graph.replay()
        assert torch.equal(captured, wanted[0])
    assert torch.equal(compiled, wanted[0])
    assert torch.equal(matmul(x, weight), wanted[0])
