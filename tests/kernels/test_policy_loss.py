"""The policy loss in two launches: the trainer's values, gradients and metrics."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from assay_kernels.policy_loss import kernel
from assay_kernels.policy_loss.op import OP, policy_loss
from assay_trainer.algorithms import kl
from assay_trainer.algorithms.loss import LOSSES, Loss, Packed, Totals
from assay_trainer.algorithms.loss import policy_loss as plain
from assay_trainer.algorithms.settings import Algorithm
from tests.kernels.heads import DEVICE
from tests.trainer.batches import CLIPS, CORRECTIONS, draw, pack, settings
from tests.trainer.reference import Wanted

KLS = [("k3", 0.0, 0.0), ("k1", 0.1, 0.0), ("k2", 0.3, 0.02), ("k3", 0.2, 0.01)]
FORMULAS = [
    Wanted(loss, CLIPS[loss], average, correction, *rest)
    for (loss, average, correction), rest in zip(
        itertools.product(LOSSES, ("tokens", "sequences"), CORRECTIONS),
        itertools.cycle(KLS),
        strict=False,
    )
]
every_formula = pytest.mark.parametrize(
    "wanted", FORMULAS, ids=lambda w: f"{w.loss}-{w.average}-{w.correction['type']}-{w.kl}"
)


def here(packed: Packed, **changes: Any) -> Packed:
    """The batch on the device, with leaves of its own."""
    fields = {
        name: value.detach().to(DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in vars(packed).items()
    }
    made = replace(packed, **{**fields, **changes})
    for leaf in (made.log_probs, made.entropy):
        if leaf is not None:
            leaf.requires_grad_()
    return made


def random(seed: int, **changes: Any) -> Packed:
    return here(pack(draw(seed), torch.float32), **changes)


def totals(packed: Packed) -> Totals:
    return Totals.of(packed.sequence, packed.mask)


def gradients(loss: Loss, packed: Packed) -> list[torch.Tensor]:
    """Of the log-probs and, where there are any, of the entropies."""
    leaves = [leaf for leaf in (packed.log_probs, packed.entropy) if leaf is not None]
    found = torch.autograd.grad(loss.value, leaves, allow_unused=True, materialize_grads=True)
    return list(found)


def fine(packed: Packed) -> Packed:
    """The same numbers in float64."""
    doubled = {
        name: value.detach().double()
        for name, value in vars(packed).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    return here(packed, **doubled)


def same(packed: Packed, algorithm: Algorithm) -> Loss:
    """Holds the fused loss beside the trainer's in float64; returns the former."""
    over = totals(packed)
    true = plain(fine(packed), algorithm, over)
    before = OP.uses().fused
    found = policy_loss(packed, algorithm, over)
    assert OP.uses().fused == before + 1
    assert found.metrics.keys() == true.metrics.keys()
    for name, value in true.metrics.items():
        expected = pytest.approx(float(value), rel=2e-6, abs=1e-6, nan_ok=True)
        assert float(found.metrics[name]) == expected, name
    assert float(found.value.detach()) == pytest.approx(
        float(true.value.detach()), rel=2e-6, abs=1e-6, nan_ok=True
    )
    exactly = fine(packed)
    expected = gradients(plain(exactly, algorithm, over), exactly)
    for mine, theirs in zip(gradients(found, packed), expected, strict=True):
        near = 2e-6 * float(theirs.abs().nan_to_num().amax()) if len(theirs) else 0.0
        assert torch.allclose(mine.double(), theirs, rtol=1e-5, atol=near, equal_nan=True)
    return found


@every_formula
def test_values_gradients_and_metrics_are_the_trainers(wanted: Wanted) -> None:
    same(random(FORMULAS.index(wanted)), settings(wanted))


@every_formula
def test_on_the_first_update_the_policy_is_its_own_old_one(wanted: Wanted) -> None:
    same(random(FORMULAS.index(wanted), old=None), settings(wanted))


@pytest.mark.parametrize("loss", LOSSES)
def test_sequences_longer_than_a_block_are_one_sequence_all_the_same(loss: str) -> None:
    lengths = torch.tensor([700, 1, 0, 1300])
    count = int(lengths.sum())
    source = torch.Generator().manual_seed(3)
    old = -torch.rand(count, generator=source)
    near = [old + 0.1 * torch.randn(count, generator=source) for _ in range(2)]
    packed = Packed(
        log_probs=near[0],
        sampler=near[1],
        advantages=torch.randn(4, generator=source),
        sequence=torch.repeat_interleave(torch.arange(4), lengths),
        mask=torch.rand(count, generator=source) < 0.9,
        old=old,
    )
    same(here(packed), Algorithm(loss=loss, average="sequences"))


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_where_nothing_counts_the_loss_is_0_and_pulls_at_nothing(average: str) -> None:
    packed = random(1)
    none = replace(packed, mask=torch.zeros_like(packed.mask))
    assert float(same(none, Algorithm(average=average, entropy=0.1)).value.detach()) == 0
    again = policy_loss(none, Algorithm(average=average, entropy=0.1), totals(none))
    assert not any(slope.any() for slope in gradients(again, none))


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_a_batch_without_tokens_costs_nothing(average: str) -> None:
    packed = random(1)
    cut = {n: v[:0] for n, v in vars(packed).items() if n != "advantages" and v is not None}
    loss = same(here(packed, **cut), Algorithm(average=average))
    assert float(loss.value.detach()) == 0


def test_what_masked_tokens_hold_is_never_looked_at() -> None:
    packed = random(2)
    hidden = ~packed.mask
    names = ("log_probs", "sampler", "old", "reference", "entropy")
    spoilt = {n: getattr(packed, n).detach().masked_fill(hidden, torch.nan) for n in names}
    algorithm = Algorithm(kl={"coef": 0.1}, entropy=0.1)
    clean = policy_loss(packed, algorithm, totals(packed))
    dirty = policy_loss(here(packed, **spoilt), algorithm, totals(packed))
    assert torch.equal(clean.value, dirty.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_log_prob_that_is_nan_makes_loss_and_metrics_nan_as_the_trainers(loss: str) -> None:
    packed = random(3)
    broken = packed.log_probs.detach().clone()
    broken[packed.mask.nonzero()[0]] = torch.nan
    found = same(here(packed, log_probs=broken), Algorithm(loss=loss))
    assert found.value.isnan() and found.metrics["ratio/max"].isnan()


@pytest.mark.parametrize("away", [30.0, -30.0])
def test_log_probs_far_apart_are_cut_before_they_become_infinite(away: float) -> None:
    packed = random(4)
    far = packed.old + away  # type: ignore[operator]
    same(here(packed, log_probs=far), Algorithm(kl={"coef": 0.1}))


@pytest.mark.parametrize("loss", ["gspo", "clip"])
def test_sequences_out_of_order_give_no_number_rather_than_a_wrong_one(loss: str) -> None:
    packed = random(5)
    turned = here(packed, sequence=packed.sequence.flip(0))
    found = policy_loss(turned, Algorithm(loss=loss, average="sequences"), totals(packed))
    assert found.value.isnan()


def test_where_only_tokens_count_their_order_does_not_matter() -> None:
    packed = random(6)
    same(here(packed, sequence=packed.sequence.flip(0)), Algorithm(loss="clip", average="tokens"))


@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_a_sequence_that_there_is_no_advantage_for_makes_the_loss_nan(average: str) -> None:
    packed = random(6)
    sequence = packed.sequence.clone()
    sequence[-1] = 10**6
    strange = here(packed, sequence=sequence, mask=torch.ones_like(packed.mask))
    over = Totals(len(sequence), 7)
    assert policy_loss(strange, Algorithm(average=average), over).value.isnan()


def test_the_gradient_that_comes_from_above_scales_ours() -> None:
    packed = random(7)
    loss = policy_loss(packed, Algorithm(), totals(packed))
    (once,) = torch.autograd.grad(loss.value, packed.log_probs, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss.value, packed.log_probs)
    assert torch.allclose(thrice, 3 * once, rtol=1e-6)


def test_the_same_batch_gives_the_same_bits() -> None:
    packed = random(8)
    one, other = (policy_loss(packed, Algorithm(loss="gspo"), totals(packed)) for _ in range(2))
    assert torch.equal(one.value, other.value)
    assert all(torch.equal(one.metrics[n], other.metrics[n]) for n in one.metrics)


def test_float64_is_the_trainers_own_function() -> None:
    packed = fine(random(9))
    before = dict(OP.uses().fallbacks)
    found = policy_loss(packed, Algorithm(), totals(packed))
    assert torch.equal(found.value, plain(packed, Algorithm(), totals(packed)).value)
    reason = "log-probs are torch.float64"
    assert OP.uses().fallbacks[reason] == before.get(reason, 0) + 1


def test_what_the_formula_needs_and_is_not_there_is_named() -> None:
    packed = random(9)
    with pytest.raises(ValueError, match="no log-probs of the reference"):
        policy_loss(here(packed, reference=None), Algorithm(kl={"coef": 0.1}), totals(packed))
    with pytest.raises(ValueError, match="there are no entropies"):
        policy_loss(here(packed, entropy=None), Algorithm(entropy=0.1), totals(packed))
    with pytest.raises(ValueError, match="sampler is on meta"):
        policy_loss(replace(packed, sampler=packed.sampler.to("meta")), Algorithm(), totals(packed))


def test_differences_are_cut_where_the_trainer_cuts_them() -> None:
    assert kernel.FARTHEST.value == kl.FARTHEST
