"""Head and loss in one pass: what the two give one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.linear_logprob import passes, reference
from assay_kernels.linear_logprob.folded import OP, Drawn, Folded, linear_policy_loss
from assay_trainer.algorithms.loss import Totals, policy_loss
from assay_trainer.algorithms.settings import Algorithm
from tests.kernels.heads import DEVICE, Batch, draw

ALGORITHMS: dict[str, dict[str, Any]] = {
    "clip": {"loss": "clip", "kl": {"coef": 0.2}, "entropy": 0.05},
    "clip over sequences": {"loss": "clip", "average": "sequences"},
    "gspo": {"loss": "gspo", "importanceCorrection": "icepop"},
    "cispo": {"loss": "cispo", "kl": {"coef": 0.2, "estimator": "k2"}},
}


@dataclass(frozen=True)
class Case:
    """A head and what was drawn from it."""

    batch: Batch
    drawn: Drawn
    totals: Totals


def case(tokens: int = 6, *, old: bool = False, width: int = 16) -> Case:
    batch = draw(tokens, width, 37)
    with torch.no_grad():
        said = reference.linear_logprob(batch.hidden, batch.weight, batch.targets).log_prob
    near = said + 0.2 * batch.weights
    sequence = torch.arange(tokens, device=DEVICE) // 3
    mask = torch.arange(tokens, device=DEVICE) % 4 != 1
    advantages = torch.tensor([1.0, -0.5, 0.7], device=DEVICE)
    drawn = Drawn(near[0], advantages, sequence, mask, near[1] if old else None, near[2])
    return Case(batch, drawn, Totals.of(sequence, mask))


def doubled(drawn: Drawn) -> Drawn:
    fields = {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in vars(drawn).items()
    }
    return Drawn(**fields)


def exact(made: Case, algorithm: Algorithm) -> tuple[Tensor, Tensor, Tensor]:
    """The loss by the plain functions in float64, and its gradients."""
    hidden, weight = (x.double().requires_grad_() for x in (made.batch.hidden, made.batch.weight))
    said = reference.linear_logprob(hidden, weight, made.batch.targets)
    packed = doubled(made.drawn).packed(said.log_prob, said.entropy)
    loss = policy_loss(packed, algorithm, made.totals)
    return loss.value.detach(), *torch.autograd.grad(loss.value, (hidden, weight))


def run(made: Case, algorithm: Algorithm, **options: Any) -> tuple[Folded, Tensor, Tensor]:
    hidden, weight = (x.clone().requires_grad_() for x in (made.batch.hidden, made.batch.weight))
    folded = linear_policy_loss(
        hidden, weight, made.batch.targets, made.drawn, algorithm, made.totals, **options
    )
    return folded, hidden, weight


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("old", [False, True], ids=["first update", "later update"])
def test_loss_and_gradients_are_those_of_head_and_loss_one_after_the_other(
    name: str, old: bool
) -> None:
    made, algorithm = case(old=old), Algorithm.model_validate(ALGORITHMS[name])
    value, *slopes = exact(made, algorithm)
    folded, hidden, weight = run(made, algorithm)
    folded.loss.value.backward()
    assert float(folded.loss.value.detach()) == pytest.approx(float(value), abs=1e-5)
    for leaf, slope in zip((hidden, weight), slopes, strict=True):
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad.double(), slope, atol=1e-5)


def test_it_also_says_log_probs_entropies_and_all_metrics() -> None:
    made = case()
    algorithm = Algorithm(loss="clip")
    folded, hidden, weight = run(made, algorithm)
    said = reference.linear_logprob(hidden.detach(), weight.detach(), made.batch.targets)
    assert torch.allclose(folded.log_prob, said.log_prob, atol=1e-5)
    assert torch.allclose(folded.entropy, said.entropy, atol=1e-5)
    expected = policy_loss(made.drawn.packed(said.log_prob, said.entropy), algorithm, made.totals)
    assert folded.loss.metrics.keys() == expected.metrics.keys()
    for metric, value in expected.metrics.items():
        assert float(folded.loss.metrics[metric]) == pytest.approx(float(value), abs=1e-5), metric


@pytest.mark.parametrize("width", [16, 6, 4, 1])
def test_where_scratch_memory_is_short_logits_lie_in_the_gradients_place(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `width` tokens; the rest goes by groups of two rows."""
    monkeypatch.setattr(passes, "_TILE", 2)
    monkeypatch.setattr(passes, "_EACH", {True: 8, False: 8})
    made, algorithm = case(width=width), Algorithm(loss="clip", entropy=0.1)
    value, *slopes = exact(made, algorithm)
    folded, hidden, weight = run(made, algorithm, scratch=1)
    folded.loss.value.backward()
    assert float(folded.loss.value.detach()) == pytest.approx(float(value), abs=1e-5)
    for leaf, slope in zip((hidden, weight), slopes, strict=True):
        assert torch.allclose(leaf.grad.double(), slope, atol=1e-5)  # type: ignore[union-attr]


def test_the_gradient_that_comes_from_above_scales_ours() -> None:
    made = case()
    found = []
    for factor in (1, -2.5):
        folded, hidden, weight = run(made, Algorithm())
        (folded.loss.value * factor).backward()
        found.append((hidden.grad, weight.grad))
    for once, scaled in zip(*found, strict=True):
        assert torch.allclose(scaled, -2.5 * once, rtol=1e-5)  # type: ignore[operator]


def test_a_gradient_is_there_once_and_a_second_one_is_refused() -> None:
    folded, *_ = run(case(), Algorithm())
    folded.loss.value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        folded.loss.value.backward()


def test_a_frozen_head_takes_no_memory_for_a_gradient() -> None:
    made = case()
    hidden = made.batch.hidden.clone().requires_grad_()
    folded = linear_policy_loss(
        hidden, made.batch.weight, made.batch.targets, made.drawn, Algorithm(), made.totals
    )
    folded.loss.value.backward()
    _, slope, _ = exact(made, Algorithm())
    assert hidden.grad is not None and torch.allclose(hidden.grad.double(), slope, atol=1e-5)


def test_without_a_gradient_to_take_only_the_forward_pass_runs() -> None:
    made = case()
    before = dict(OP.uses().fallbacks)
    with torch.no_grad():
        folded, *_ = run(made, Algorithm())
    value, *_ = exact(made, Algorithm())
    assert float(folded.loss.value.detach()) == pytest.approx(float(value), abs=1e-5)
    reason = "no gradient is wanted"
    assert OP.uses().fallbacks[reason] == before.get(reason, 0) + 1


def test_gspo_with_old_log_probs_goes_in_two_steps_and_says_why() -> None:
    before = dict(OP.uses().fallbacks)
    run(case(old=True), Algorithm(loss="gspo"))
    reason = "GSPO with old log-probs needs whole sequences first"
    assert OP.uses().fallbacks[reason] == before.get(reason, 0) + 1


def test_a_token_outside_the_vocabulary_is_harmless_where_it_is_masked() -> None:
    made = case()
    made.batch.targets[1] = -100
    folded, hidden, weight = run(made, Algorithm())
    folded.loss.value.backward()
    assert folded.loss.value.isfinite()
    assert hidden.grad is not None and not hidden.grad[1].any()
    assert weight.grad is not None and weight.grad.isfinite().all()
