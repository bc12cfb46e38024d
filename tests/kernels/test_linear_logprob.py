"""Log-probs straight from hidden states: the numbers that all logits at once would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.linear_logprob import passes, reference
from assay_kernels.linear_logprob.op import OP, linear_logprob
from assay_kernels.linear_logprob.passes import SCRATCH, groups
from assay_trainer import head
from tests.kernels.heads import DEVICE, Batch, draw, exact, no_worse, outcome

SHAPES = [(1, 8, 5), (5, 16, 37), (2, 8, 4096), (3, 8, 4097), (2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_all_logits_at_once(shape: tuple[int, int, int]) -> None:
    batch = draw(*shape)
    before = OP.uses().fused
    found = outcome(linear_logprob, batch)
    assert OP.uses().fused == before + 2
    no_worse(found, outcome(reference.linear_logprob, batch), exact(batch))


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_the_temperature_divides_the_logits(temperature: float) -> None:
    batch = draw(3, 16, 37)
    found = outcome(linear_logprob, batch, temperature=temperature)
    plain = outcome(reference.linear_logprob, batch, temperature=temperature)
    no_worse(found, plain, exact(batch, temperature=temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_does_not_matter_how_little_fits_into_memory_at_one_time(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows are three groups, eleven columns six; a row is read in three splits."""
    monkeypatch.setattr(passes, "_TILE", 2)
    monkeypatch.setattr(passes, "_EACH", {True: 4, False: 4})
    batch = draw(5, 4, 11).to(dtype)
    found = outcome(linear_logprob, batch, scratch=1)
    no_worse(found, outcome(reference.linear_logprob, batch), exact(batch))


def test_groups_are_even_whole_tiles_and_cover_everything() -> None:
    found = list(groups(8192, 2 * 151_936, SCRATCH))
    assert [part.stop - part.start for part in found] == [768] * 10 + [512]
    assert [part.start for part in found] == list(range(0, 8192, 768))
    assert [(p.start, p.stop) for p in groups(800, 1, 1)] == [(0, 384), (384, 768), (768, 800)]
    assert [(p.start, p.stop) for p in groups(1600, 1, 1500)] == [(0, 1152), (1152, 1600)]
    assert list(groups(0, 1, 1)) == []


def test_no_tokens_give_no_log_probs_and_a_gradient_of_zeros() -> None:
    said = outcome(linear_logprob, draw(0, 8, 5))
    assert [list(part.shape) for part in said] == [[0], [0], [0], [0, 8], [5, 8]]
    assert not said[-1].any()


@pytest.mark.parametrize("layout", ["transposed", "every other row", "every other column"])
def test_tensors_may_lie_in_memory_as_they_like(layout: str) -> None:
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "transposed": lambda x: x.t().contiguous().t(),
        "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
        "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    }
    batch = draw(5, 16, 37)
    view = views[layout]
    targets = batch.targets.repeat_interleave(3)[::3]
    strange = Batch(view(batch.hidden), view(batch.weight), targets, batch.weights)
    assert not strange.weight.is_contiguous()
    no_worse(
        outcome(linear_logprob, strange), outcome(reference.linear_logprob, batch), exact(batch)
    )


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient_and_the_other_one_the_same(frozen: str) -> None:
    batch = draw(3, 8, 5)
    leaves = {"hidden": batch.hidden.clone(), "weight": batch.weight.clone()}
    (free,) = leaves.keys() - {frozen}
    leaves[free].requires_grad_()
    linear_logprob(**leaves, targets=batch.targets).log_prob.sum().backward()
    assert leaves[frozen].grad is None
    whole = reference.backward(
        batch.hidden, batch.weight, batch.targets, (torch.ones_like(batch.weights[0]), None, None)
    )
    assert torch.allclose(leaves[free].grad, whole[free == "weight"], atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("only", range(3), ids=["log_prob", "log_sum_exp", "entropy"])
def test_a_loss_of_one_output_alone_has_that_ones_gradient(only: int) -> None:
    batch = draw(4, 8, 11)

    def alone(*arguments: Any, **options: Any) -> reference.LogProbs:
        said = linear_logprob(*arguments, **options)
        return reference.LogProbs(*(p if i == only else p.detach() for i, p in enumerate(said)))

    weights = batch.weights * torch.eye(3, device=DEVICE)[only][:, None]
    no_worse(
        outcome(alone, batch)[3:],
        outcome(reference.linear_logprob, replace(batch, weights=weights))[3:],
        exact(replace(batch, weights=weights))[3:],
    )


@pytest.mark.parametrize("target", [-100, -1, 5, 2**40])
def test_a_token_outside_the_vocabulary_has_no_log_prob_and_pulls_at_nothing(target: int) -> None:
    batch = draw(3, 8, 5)
    batch.targets[1] = target
    found = outcome(linear_logprob, batch)
    assert found[0].isnan().tolist() == [False, True, False]
    assert not found[1].isnan().any() and not found[2].isnan().any()
    no_worse(found, outcome(reference.linear_logprob, batch), exact(batch))


def test_nan_in_a_tokens_hidden_state_is_in_all_that_is_said_of_it_and_of_no_other() -> None:
    batch = draw(3, 8, 5)
    batch.hidden[1, 2] = torch.nan
    found = outcome(linear_logprob, batch)
    for said in found[:3]:
        assert said.isnan().tolist() == [False, True, False]
    assert found[3].isnan().any(1).tolist() == [False, True, False]
    assert found[4].isnan().any()


def test_logits_of_minus_infinity_have_no_probability() -> None:
    """A head may forbid tokens by a row whose product with every state is -inf."""
    batch = draw(2, 4, 6)
    batch.hidden[:] = batch.hidden.abs()
    batch.weight[3:5] = -torch.inf
    batch.targets[:] = torch.tensor([0, 5])
    allowed = torch.tensor([0, 1, 2, 5], device=DEVICE)
    said = linear_logprob(batch.hidden, batch.weight, batch.targets)
    smaller = Batch(
        batch.hidden, batch.weight[allowed], torch.tensor([0, 3], device=DEVICE), batch.weights
    )
    no_worse(said, exact(smaller)[:3], exact(smaller)[:3])


def test_confident_and_even_distributions_keep_their_entropy() -> None:
    hidden = torch.tensor([[100.0], [0.0], [1e-3]], device=DEVICE)
    weight = torch.linspace(-1, 1, 64, device=DEVICE)[:, None]
    said = linear_logprob(hidden, weight, torch.tensor([63, 0, 0], device=DEVICE))
    true = reference.linear_logprob(
        hidden.double(), weight.double(), torch.tensor([63, 0, 0], device=DEVICE)
    )
    assert torch.allclose(said.entropy.double(), true.entropy, atol=2e-6)
    assert float(said.entropy[1]) == pytest.approx(math.log(64), abs=1e-6)


def test_the_trainers_own_head_says_the_same() -> None:
    batch = draw(5, 16, 37)
    theirs = head.log_probs(batch.hidden, batch.weight, batch.targets, temperature=0.7, chunk=2)
    ours = linear_logprob(batch.hidden, batch.weight, batch.targets, temperature=0.7)
    assert torch.allclose(ours.log_prob, theirs[0], atol=1e-5)
    assert torch.allclose(ours.entropy, theirs[1], atol=1e-5)


def test_the_references_written_gradient_is_the_one_that_autograd_finds() -> None:
    batch = draw(5, 16, 37).to(torch.float64)
    batch.targets[2] = -100
    true = exact(batch, temperature=0.7)[3:]
    gradients = tuple(batch.weights.double())
    found = reference.backward(
        batch.hidden, batch.weight, batch.targets, gradients, temperature=0.7
    )
    for mine, theirs in zip(found, true, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


def test_a_weight_coarser_than_the_hidden_states_keeps_a_gradient_as_coarse() -> None:
    batch = draw(3, 16, 7)
    weight = batch.weight.bfloat16().requires_grad_()
    found = outcome(linear_logprob, replace(batch, weight=weight))
    assert found[4].dtype == torch.bfloat16
    true = exact(replace(batch, weight=weight.detach().double(), hidden=batch.hidden.double()))
    no_worse(found[:4], true[:4], true[:4])
    assert torch.allclose(found[4].double(), true[4], rtol=2**-8, atol=1e-4)


def test_a_weight_finer_than_the_hidden_states_keeps_a_gradient_as_fine() -> None:
    """Masters in float32 and activations in bfloat16, as the trainer has them."""
    batch = draw(3, 16, 7)
    hidden = batch.hidden.bfloat16()
    weight = batch.weight.clone().requires_grad_()
    linear_logprob(hidden, weight, batch.targets).log_prob.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    rounded = Batch(hidden, weight.detach().bfloat16(), batch.targets, batch.weights)
    true = reference.backward(
        rounded.hidden.double(),
        rounded.weight.double(),
        batch.targets,
        (torch.ones(3, device=DEVICE), None, None),
    )
    assert float((weight.grad - true[1]).abs().max()) < 0.05


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a vector of states": ({"hidden": torch.ones(4)}, ValueError, "hidden must be"),
    "another width": ({"hidden": torch.ones(2, 3)}, ValueError, "3 columns, but weight has 4"),
    "too few targets": ({"targets": torch.zeros(1).long()}, ValueError, "2 rows, but 1 targets"),
    "no vocabulary": ({"weight": torch.ones(0, 4)}, ValueError, "vocabulary is empty"),
    "whole numbers": ({"hidden": torch.ones(2, 4).long()}, TypeError, "hidden must be of a float"),
    "short targets": ({"targets": torch.zeros(2).int()}, TypeError, "targets must be int64"),
    "another device": ({"weight": torch.ones(5, 4, device="meta")}, ValueError, "on one device"),
    "no heat": ({"temperature": 0.0}, ValueError, "temperature must be above 0"),
    "endless heat": ({"temperature": math.inf}, ValueError, "temperature must be above 0"),
    "no memory": ({"scratch": 0}, ValueError, "scratch must be above 0"),
}


@pytest.mark.parametrize("change", BAD)
def test_what_cannot_be_meant_is_refused_by_name(change: str) -> None:
    arguments = {
        "hidden": torch.ones(2, 4),
        "weight": torch.ones(5, 4),
        "targets": torch.zeros(2).long(),
    }
    changed, kind, message = BAD[change]
    with pytest.raises(kind, match=message):
        linear_logprob(**{**arguments, **changed})
