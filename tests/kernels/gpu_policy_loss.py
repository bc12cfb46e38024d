"""`policy_loss` on a GPU: batches of 65,536 tokens, compile, graphs, streams."""

from __future__ import annotations

import pytest
import torch

from assay_kernels.policy_loss.formula import Formula
from assay_kernels.policy_loss.op import policy_loss, tensors
from assay_trainer.algorithms.loss import Packed, Totals
from assay_trainer.algorithms.settings import Algorithm
from tests.kernels.test_policy_loss import every_formula, gradients, same, totals
from tests.trainer.batches import settings
from tests.trainer.reference import Wanted


def large(sequences: int, tokens: int = 65_536, seed: int = 0) -> Packed:
    torch.manual_seed(seed)
    cuts = torch.randint(0, tokens + 1, (sequences - 1,)).sort().values
    edges = torch.cat((torch.tensor([0]), cuts, torch.tensor([tokens])))
    old = -torch.empty(tokens).exponential_(1.0)

    def near() -> torch.Tensor:
        return (old + 0.1 * torch.randn(tokens)).cuda()

    return Packed(
        log_probs=near().requires_grad_(),
        sampler=near(),
        advantages=torch.randn(sequences).cuda(),
        sequence=torch.repeat_interleave(torch.arange(sequences), edges.diff()).cuda(),
        mask=(torch.rand(tokens) < 0.9).cuda(),
        old=old.cuda(),
        reference=near(),
        entropy=torch.rand(tokens).cuda().requires_grad_(),
    )


@every_formula
def test_65536_tokens_give_the_trainers_values_and_gradients(wanted: Wanted) -> None:
    same(large(97), settings(wanted))


@pytest.mark.parametrize("sequences", [1, 2, 3_000, 65_536])
@pytest.mark.parametrize("loss", ["clip", "gspo"])
def test_one_long_sequence_and_very_many_short_ones_are_no_different(
    loss: str, sequences: int
) -> None:
    same(large(sequences), Algorithm(loss=loss, average="sequences"))


def test_a_hundred_runs_give_the_same_bits() -> None:
    """The last program to finish adds up what others wrote: a missing barrier would show here."""
    packed = large(500)
    algorithm = Algorithm(loss="gspo", kl={"coef": 0.1})
    first = policy_loss(packed, algorithm, totals(packed))
    slopes = gradients(first, packed)
    for _ in range(100):
        again = policy_loss(packed, algorithm, totals(packed))
        assert torch.equal(again.value, first.value)
        assert all(torch.equal(again.metrics[n], first.metrics[n]) for n in first.metrics)
        assert torch.equal(gradients(again, packed)[0], slopes[0])


def test_two_streams_do_not_count_each_others_programs() -> None:
    packed = large(500)
    algorithm, over = Algorithm(loss="gspo"), totals(packed)
    wanted = policy_loss(packed, algorithm, over).value
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(policy_loss(packed, algorithm, over).value)
    torch.cuda.synchronize()
    assert all(torch.equal(value, wanted) for value in found)


def test_it_runs_in_a_cuda_graph_with_its_gradient() -> None:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        packed = large(97)
        algorithm, over = Algorithm(loss="gspo"), totals(packed)
        wanted = policy_loss(packed, algorithm, over)
        slopes = gradients(wanted, packed)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            loss = policy_loss(packed, algorithm, over)
            found = gradients(loss, packed)
        for _ in range(2):
            graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(loss.value, wanted.value)
    assert torch.equal(found[0], slopes[0])


@pytest.mark.parametrize("loss", ["clip", "gspo"])
def test_torch_knows_its_gradient_and_its_shapes(loss: str) -> None:
    packed = large(5, tokens=600)
    formula = Formula.of(Algorithm(loss=loss, kl={"coef": 0.1}, entropy=0.01), totals(packed))
    torch.library.opcheck(torch.ops.assay_kernels.policy_loss.default, (*tensors(packed), *formula))


def test_it_may_be_part_of_what_is_compiled() -> None:
    packed = large(97)
    over = Totals.of(packed.sequence, packed.mask)
    compiled = torch.compile(policy_loss)
    mine, theirs = compiled(packed, Algorithm(), over), policy_loss(packed, Algorithm(), over)
    assert torch.equal(mine.value, theirs.value)
    assert torch.equal(gradients(mine, packed)[0], gradients(theirs, packed)[0])
