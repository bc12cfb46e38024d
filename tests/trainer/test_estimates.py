"""Estimates of the divergence, weights for the sampler: against sums over whole distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from assay_trainer.algorithms.correction import icepop, tis, weigh
from assay_trainer.algorithms.kl import ESTIMATORS, k1, k2, k3
from assay_trainer.algorithms.settings import IcePop, Tis, Uncorrected
from tests.trainer.reference import divergence


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy and of its reference over nine tokens."""
    source = torch.Generator().manual_seed(1)
    policy, reference = torch.randn(2, 9, generator=source, dtype=torch.float64)
    return policy.requires_grad_(), reference


def exact(policy: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (policy.softmax(0) * (policy.log_softmax(0) - other.log_softmax(0))).sum()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_is_schulmans_formula(name: str) -> None:
    policy, reference = (logits.detach().log_softmax(0) for logits in distributions())
    found = ESTIMATORS[name](policy, reference)
    expected = [divergence(p, r, name) for p, r in zip(policy, reference, strict=True)]
    assert found.tolist() == pytest.approx([float(e) for e in expected], abs=1e-14)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_mean_of_k1_and_k3_is_the_divergence(name: str) -> None:
    policy, reference = (logits.detach() for logits in distributions())
    probability = policy.softmax(0)
    mean = (probability * ESTIMATORS[name](policy.log_softmax(0), reference.log_softmax(0))).sum()
    assert float(mean) == pytest.approx(float(exact(policy, reference)))


def test_k2_and_k3_are_never_negative() -> None:
    policy, reference = (logits.log_softmax(0) for logits in distributions())
    assert (k2(policy, reference) >= 0).all() and (k3(policy, reference) >= 0).all()
    assert (k1(policy, reference) < 0).any()


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("k1", lambda policy, reference: 0 * policy.sum()),
        ("k2", exact),
        ("k3", lambda policy, reference: exact(reference, policy)),
    ],
)
def test_the_mean_gradient_of_an_estimate_is_not_always_the_divergences(
    name: str, of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    policy, reference = distributions()
    estimates = ESTIMATORS[name](policy.log_softmax(0), reference.log_softmax(0))
    drawn = policy.detach().softmax(0)
    (found,) = torch.autograd.grad((drawn * estimates).sum(), policy)
    (expected,) = torch.autograd.grad(of(policy, reference), policy)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_flow_through_the_policy_only(name: str) -> None:
    policy, reference = (logits.detach().requires_grad_() for logits in distributions())
    assert torch.autograd.gradcheck(lambda p: ESTIMATORS[name](p, reference.detach()), (policy,))
    ESTIMATORS[name](policy, reference).sum().backward()
    assert policy.grad is not None and reference.grad is None


RATIOS = torch.tensor([0.1, 0.5, 0.9, 1.0, 1.5, 2.0, 5.0, 7.0], dtype=torch.float64)


def test_tis_cuts_large_weights_and_leaves_small_ones() -> None:
    assert tis(RATIOS, 2.0).tolist() == [0.1, 0.5, 0.9, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_icepop_leaves_out_what_lies_outside_on_either_side() -> None:
    assert icepop(RATIOS, 0.5, 5.0).tolist() == [0, 0.5, 0.9, 1.0, 1.5, 2.0, 5.0, 0]


def test_untruncated_weights_would_have_a_mean_of_one() -> None:
    """What both start from is the weight that makes a mean over the sampler the policy's own."""
    policy, sampler = (logits.detach().log_softmax(0) for logits in distributions())
    weights = tis((policy - sampler).exp(), math.inf)
    assert float((sampler.exp() * weights).sum()) == pytest.approx(1)


def test_a_job_gets_the_weights_that_it_asks_for_and_where_bounds_acted() -> None:
    weights, outside = weigh(RATIOS, Tis(cap=2.0))
    assert weights.tolist() == tis(RATIOS, 2.0).tolist() and outside.tolist()[5:] == [
        False,
        True,
        True,
    ]
    weights, outside = weigh(RATIOS, IcePop(alpha=0.5, beta=5.0))
    assert weights[outside].tolist() == [0, 0] and int(outside.sum()) == 2
    weights, outside = weigh(RATIOS, Uncorrected())
    assert weights.tolist() == [1.0] * len(RATIOS) and not outside.any()


def test_weights_carry_no_gradient() -> None:
    ratio = RATIOS.clone().requires_grad_()
    for settings in (Tis(), IcePop(), Uncorrected()):
        assert not weigh(ratio, settings)[0].requires_grad
