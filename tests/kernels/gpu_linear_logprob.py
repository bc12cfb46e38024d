"""`linear_logprob` on a GPU: every dtype, odd sizes, huge vocabularies, compile and graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.linear_logprob import reference
from assay_kernels.linear_logprob.folded import Drawn, linear_policy_loss
from assay_kernels.linear_logprob.op import OP, linear_logprob
from assay_trainer.algorithms.loss import Totals, policy_loss
from assay_trainer.algorithms.settings import Algorithm
from tests.kernels.heads import Batch, draw, exact, no_worse, outcome

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [
    (1, 64, 32_000),
    (7, 129, 50_257),
    (129, 64, 1_000),
    (300, 256, 151_936),
    (33, 96, 128_257),
    (1_000, 72, 511),
    (64, 64, 1),
]
TINY = 4 * 2**20
"""Bytes of logits that make many groups of most shapes."""

pytestmark = pytest.mark.usefixtures("true_float32")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"scratch": TINY, "temperature": 0.6}], ids=str)
def test_errors_are_at_most_twice_pytorchs(
    dtype: torch.dtype, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    batch = draw(*shape, dtype=dtype, spread=3.0)
    plain = {k: v for k, v in options.items() if k == "temperature"}
    before = OP.uses().fused
    found = outcome(linear_logprob, batch, **options)
    assert OP.uses().fused == before + 2
    no_worse(found, outcome(reference.linear_logprob, batch, **plain), exact(batch, **plain))


@every_dtype
@pytest.mark.parametrize("lay", ["transposed", "every other row", "every other column", "offset"])
def test_tensors_may_lie_in_memory_as_they_like(dtype: torch.dtype, lay: str) -> None:
    batch = draw(37, 65, 1_003, dtype=dtype)

    def view(x: Tensor) -> Tensor:
        match lay:
            case "transposed":
                return x.t().contiguous().t()
            case "every other row":
                return x.repeat_interleave(2, 0)[::2]
            case "every other column":
                return x.repeat_interleave(2, 1)[:, ::2]
            case _:
                return torch.cat((x[:, :1], x), 1)[:, 1:]

    targets = batch.targets.repeat_interleave(3)[::3]
    strange = Batch(view(batch.hidden), view(batch.weight), targets, batch.weights)
    plain = outcome(reference.linear_logprob, batch)
    no_worse(outcome(linear_logprob, strange), plain, exact(batch))


def test_more_logits_than_32_bits_can_count_are_read_at_their_places() -> None:
    """9,000 rows of 262,145 logits are 2.4e9 of them, in one group."""
    batch = draw(9_000, 8, 262_145, dtype=torch.bfloat16)
    with torch.no_grad():
        said = linear_logprob(batch.hidden, batch.weight, batch.targets, scratch=2**33)
        parts = [
            reference.linear_logprob(rows, batch.weight, targets)
            for rows, targets in zip(batch.hidden.split(500), batch.targets.split(500), strict=True)
        ]
    for mine, theirs in zip(said, zip(*parts, strict=True), strict=True):
        assert torch.allclose(mine, torch.cat(theirs), atol=1e-4)


@every_dtype
def test_out_of_range_and_nan_are_as_in_plain_pytorch(dtype: torch.dtype) -> None:
    batch = draw(6, 64, 5_000, dtype=dtype)
    batch.targets[:3] = torch.tensor([-100, 5_000, 2**40])
    batch.hidden[4, 7] = torch.nan
    found = outcome(linear_logprob, batch)
    no_worse(found, outcome(reference.linear_logprob, batch), exact(batch))


@every_dtype
def test_it_compiles_as_a_whole_with_its_gradients(dtype: torch.dtype) -> None:
    batch = draw(40, 64, 3_000, dtype=dtype)
    compiled = torch.compile(linear_logprob, fullgraph=True)
    for mine, theirs in zip(outcome(compiled, batch), outcome(linear_logprob, batch), strict=True):
        assert torch.equal(mine, theirs)


def test_it_runs_in_a_cuda_graph() -> None:
    batch = draw(40, 64, 3_000, dtype=torch.bfloat16)
    wanted = linear_logprob(batch.hidden, batch.weight, batch.targets)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = linear_logprob(batch.hidden, batch.weight, batch.targets)
    graph.replay()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(said, wanted, strict=True))


def test_torch_knows_its_gradient_and_its_shapes() -> None:
    batch = draw(5, 16, 70)
    for name in ("hidden", "weight"):
        getattr(batch, name).requires_grad_()
    torch.library.opcheck(
        torch.ops.assay_kernels.linear_logprob.default,
        (batch.hidden, batch.weight, batch.targets, 1.0, 1024),
    )


def folded(batch: Batch, drawn: Drawn, totals: Totals, **options: Any) -> list[Tensor]:
    hidden, weight = (x.detach().requires_grad_() for x in (batch.hidden, batch.weight))
    algorithm = Algorithm(loss="clip", entropy=0.01)
    said = linear_policy_loss(hidden, weight, batch.targets, drawn, algorithm, totals, **options)
    # As large as the other tests' gradients, or 1e-4 would be all of it.
    (said.loss.value * totals.tokens).backward()
    return [said.log_prob, said.entropy, hidden.grad, weight.grad]


def plainly(batch: Batch, drawn: Drawn, totals: Totals) -> list[Tensor]:
    hidden, weight = (x.detach().requires_grad_() for x in (batch.hidden, batch.weight))
    said = reference.linear_logprob(hidden, weight, batch.targets)
    like = said.log_prob
    moved = replace(drawn, sampler=drawn.sampler.to(like), advantages=drawn.advantages.to(like))
    packed = moved.packed(said.log_prob, said.entropy)
    loss = policy_loss(packed, Algorithm(loss="clip", entropy=0.01), totals)
    (loss.value * totals.tokens).backward()
    return [said.log_prob.detach(), said.entropy.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [128, 1_024])
@pytest.mark.parametrize("scratch", [2**30, TINY], ids=["one group", "16 groups"])
def test_the_folded_losss_errors_are_at_most_twice_pytorchs(
    dtype: torch.dtype, width: int, scratch: int
) -> None:
    """A weight's gradient in bfloat16 is rounded with each group of rows: with a width of 128,
    16 times; with 1,024 the first 1,024 tokens lie in its place, and 14 groups are left."""
    batch = draw(6_144, width, 16_000, dtype=dtype, spread=3.0)
    with torch.no_grad():
        said = reference.linear_logprob(batch.hidden, batch.weight, batch.targets).log_prob
    sequence = torch.arange(6_144, device="cuda") // 384
    mask = torch.ones_like(sequence, dtype=torch.bool)
    advantages = torch.randn(16, device="cuda")
    drawn = Drawn(said + 0.1 * batch.weights[0], advantages, sequence, mask)
    totals = Totals(6_144, 16)
    no_worse(
        folded(batch, drawn, totals, scratch=scratch),
        plainly(batch, drawn, totals),
        plainly(batch.to(torch.float64), drawn, totals),
    )


def test_masters_in_float32_get_gradients_as_fine_from_the_folded_loss() -> None:
    """All 1,024 tokens lie in the place of the gradient, which is twice as wide as logits."""
    batch = draw(1_024, 512, 16_000, spread=3.0)
    hidden = batch.hidden.bfloat16()
    sequence = torch.arange(1_024, device="cuda") // 128
    drawn = Drawn(batch.weights[0], batch.weights[1, :8], sequence, sequence >= 0)
    totals = Totals(1_024, 8)
    mixed = replace(batch, hidden=hidden)
    rounded = replace(mixed, weight=batch.weight.bfloat16())
    found = folded(mixed, drawn, totals, scratch=TINY)
    assert found[3].dtype == torch.float32
    true = plainly(rounded.to(torch.float64), drawn, totals)
    no_worse(found, plainly(rounded, drawn, totals), true)


@pytest.mark.parametrize("width", [512, 2_048])
def test_a_step_with_the_folded_loss_holds_no_more_than_it_says(width: int) -> None:
    """Gradients and `scratch`; nothing of the size of all logits."""
    batch = draw(4_096, width, 64_000, dtype=torch.bfloat16)
    sequence = torch.zeros(4_096, dtype=torch.int64, device="cuda")
    sampler = torch.zeros(4_096, device="cuda")
    drawn = Drawn(sampler, torch.ones(1, device="cuda"), sequence, sequence == 0)
    scratch = 768 * 64_000 * 2
    folded(batch, drawn, Totals(4_096, 1), scratch=scratch)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = folded(batch, drawn, Totals(4_096, 1), scratch=scratch)
    taken = torch.cuda.max_memory_allocated() - before
    gradients = sum(x.numel() * x.element_size() for x in found[2:])
    assert taken < 1.05 * (gradients + scratch) + 2**20
