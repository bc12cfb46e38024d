"""The loss of packed sequences: the papers' formulas, their gradients, and what must not matter."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from assay_trainer.algorithms.advantage import ADVANTAGES
from assay_trainer.algorithms.loss import LOSSES, Packed, Totals, combine, policy_loss
from assay_trainer.algorithms.settings import Algorithm
from tests.trainer import reference
from tests.trainer.batches import CLIPS, CORRECTIONS, draw, moved, pack, settings
from tests.trainer.reference import Sequence, Wanted

quick = hypothesis_settings(max_examples=8, deadline=None)
STEP = 1e-6

FORMULAS = [
    Wanted(loss, CLIPS[loss], average, correction, kl, coef, entropy)
    for (loss, average, correction), (kl, coef, entropy) in zip(
        itertools.product(LOSSES, ("tokens", "sequences"), CORRECTIONS),
        itertools.cycle([("k3", 0.0, 0.0), ("k1", 0.1, 0.0), ("k2", 0.3, 0.02), ("k3", 0.2, 0.01)]),
        strict=False,
    )
]


def named(wanted: Wanted) -> str:
    return f"{wanted.loss}-{wanted.average}-{wanted.correction['type']}-{wanted.kl}"


every_formula = pytest.mark.parametrize("wanted", FORMULAS, ids=named)


def totals(packed: Packed) -> Totals:
    return Totals.of(packed.sequence, packed.mask)


def gradients(packed: Packed, algorithm: Algorithm, over: Totals | None = None) -> torch.Tensor:
    """Of the log-probs."""
    loss = policy_loss(packed, algorithm, over or totals(packed))
    (found,) = torch.autograd.grad(loss.value, packed.log_probs)
    return found


@every_formula
@pytest.mark.parametrize("seed", range(5))
def test_the_value_is_what_the_papers_say(wanted: Wanted, seed: int) -> None:
    batch = draw(seed)
    packed = pack(batch)
    found = policy_loss(packed, settings(wanted), totals(packed)).value.detach()
    assert float(found) == pytest.approx(reference.loss(batch, batch, wanted), rel=1e-9, abs=1e-12)


@every_formula
@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_what_differences_of_the_papers_formula_say(
    wanted: Wanted, seed: int
) -> None:
    batch = draw(seed, sequences=4)
    packed = pack(batch)
    found = gradients(packed, settings(wanted))
    for token in range(len(packed.log_probs)):
        above = reference.loss(moved(batch, "new", token, STEP), batch, wanted)
        below = reference.loss(moved(batch, "new", token, -STEP), batch, wanted)
        assert float(found[token]) == pytest.approx((above - below) / (2 * STEP), abs=1e-7), token


def test_the_bonus_pulls_at_the_entropies() -> None:
    wanted = Wanted("clip", CLIPS["clip"], "tokens", {"type": "none"}, entropy=0.5)
    packed = pack(draw(1))
    loss = policy_loss(packed, settings(wanted), totals(packed))
    (found,) = torch.autograd.grad(loss.value, packed.entropy)
    assert torch.equal(found, -0.5 * packed.mask / packed.mask.sum().double())


@pytest.mark.parametrize("seed", range(4))
def test_gspo_over_sequences_is_its_equation_5(seed: int) -> None:
    """Written with the gradient through the whole sequence's ratio, without stop-gradients."""
    batch = draw(seed, sequences=4, near=0.05)
    wanted = Wanted("gspo", (0.03, 0.04), "sequences", {"type": "none"})
    packed = pack(batch)
    loss = policy_loss(packed, settings(wanted), totals(packed)).value.detach()
    assert float(loss) == pytest.approx(reference.plain_gspo(batch, wanted.clip), rel=1e-9)
    found = gradients(packed, settings(wanted))
    for token in range(len(packed.log_probs)):
        above = reference.plain_gspo(moved(batch, "new", token, STEP), wanted.clip)
        below = reference.plain_gspo(moved(batch, "new", token, -STEP), wanted.clip)
        assert float(found[token]) == pytest.approx((above - below) / (2 * STEP), abs=1e-7), token


def test_torch_agrees_with_its_own_gradient() -> None:
    """autograd.gradcheck, where the formula has no stop-gradient in it."""
    wanted = Wanted("clip", (0.2, 0.28), "tokens", CORRECTIONS[1], "k3", 0.1, 0.01)
    packed = pack(draw(11))

    def value(log_probs: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        batch = dataclasses.replace(packed, log_probs=log_probs, entropy=entropy)
        return policy_loss(batch, settings(wanted), totals(packed)).value

    assert torch.autograd.gradcheck(value, (packed.log_probs, packed.entropy))


@every_formula
@quick
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 6)))
def test_it_does_not_matter_how_a_batch_is_cut_into_micro_batches(
    wanted: Wanted, seed: int, cuts: set[int]
) -> None:
    batch = draw(seed)
    algorithm = settings(wanted)
    whole = pack(batch)
    over = totals(whole)
    edges = [0, *sorted(cuts), len(batch)]
    parts = [pack(batch[a:b]) for a, b in itertools.pairwise(edges)]
    assert sum((totals(part) for part in parts), Totals(0, 0)) == over

    loss = policy_loss(whole, algorithm, over)
    losses = [policy_loss(part, algorithm, over) for part in parts]
    together = torch.cat([gradients(part, algorithm, over) for part in parts])
    assert torch.allclose(together, gradients(whole, algorithm), rtol=1e-12, atol=1e-15)
    combined = combine(part.metrics for part in losses)
    assert combined.keys() == loss.metrics.keys()
    for name, value in loss.metrics.items():
        assert float(combined[name]) == pytest.approx(float(value), rel=1e-9, abs=1e-12), name


@every_formula
@quick
@given(seed=st.integers(0, 1000), order=st.permutations(range(7)))
def test_the_order_of_the_sequences_does_not_matter(
    wanted: Wanted, seed: int, order: list[int]
) -> None:
    batch = draw(seed)
    one, other = pack(batch), pack(batch[i] for i in order)
    loss, shuffled = (
        policy_loss(p, settings(wanted), totals(p)).value.detach() for p in (one, other)
    )
    assert float(loss) == pytest.approx(float(shuffled), rel=1e-9, abs=1e-12)


@every_formula
@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1e30])
def test_what_is_masked_has_no_influence_whatever_it_holds(wanted: Wanted, nonsense: float) -> None:
    batch = draw(5)

    def spoilt(values: list[float], mask: list[bool]) -> list[float]:
        return [v if counts else nonsense for v, counts in zip(values, mask, strict=True)]

    names = ("new", "old", "sampler", "reference", "entropy")
    other = [
        dataclasses.replace(
            s,
            advantage=s.advantage if any(s.mask) else nonsense,
            **{name: spoilt(getattr(s, name), s.mask) for name in names},
        )
        for s in batch
    ]
    clean, dirty = pack(batch), pack(other)
    algorithm = settings(wanted)
    assert torch.equal(gradients(clean, algorithm), gradients(dirty, algorithm))
    assert not gradients(dirty, algorithm)[~dirty.mask].any()
    one, two = (policy_loss(p, algorithm, totals(p)).metrics for p in (clean, dirty))
    assert one == two


@every_formula
def test_equal_rewards_give_no_gradient(wanted: Wanted) -> None:
    batch = draw(8)
    many = len(batch)
    rewards = torch.full((many,), 0.7, dtype=torch.float64)
    plain = dataclasses.replace(wanted, kl_coef=0.0, entropy=0.0)
    for function in ADVANTAGES.values():
        advantages = function(rewards, torch.arange(many) // 2, torch.ones(many, dtype=torch.bool))
        packed = dataclasses.replace(pack(batch), advantages=advantages)
        assert not gradients(packed, settings(plain)).any()


@pytest.mark.parametrize("loss", LOSSES)
def test_in_the_first_update_it_is_the_plain_policy_gradient(loss: str) -> None:
    """Without `old` the policy itself is what it is compared with: nothing is clipped."""
    wanted = Wanted(loss, CLIPS[loss], "tokens", {"type": "none"})
    packed = dataclasses.replace(pack(draw(2)), old=None)
    expected = -packed.advantages[packed.sequence] * packed.mask / packed.mask.sum()
    assert torch.allclose(gradients(packed, settings(wanted)), expected)
    metrics = policy_loss(packed, settings(wanted), totals(packed)).metrics
    assert float(metrics["clip/low"]) == float(metrics["clip/high"]) == 0
    assert float(metrics["ratio/min"]) == float(metrics["ratio/max"]) == 1


def one_token(ratio: float, advantage: float) -> list[Sequence]:
    new = -1.0
    old = new - math.log(ratio)
    return [Sequence([new], [old], [old], [new], [1.0], [True], advantage)]


@pytest.mark.parametrize("loss", ["clip", "gspo"])
@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [
        (1.25, 1.0, True),  # above 1.2: the upper bound is the wider one
        (1.30, 1.0, False),
        (1.30, -1.0, True),  # a bad token that has become likelier must come down again
        (0.75, -1.0, False),
        (0.75, 1.0, True),
    ],
)
def test_a_token_that_went_far_enough_is_not_pushed_farther(
    loss: str, ratio: float, advantage: float, learns: bool
) -> None:
    packed = pack(one_token(ratio, advantage))
    wanted = Wanted(loss, (0.2, 0.28), "tokens", {"type": "none"})
    assert bool(gradients(packed, settings(wanted)).any()) is learns
    metrics = policy_loss(packed, settings(wanted), totals(packed)).metrics
    assert float(metrics["clip/high"]) == (not learns and ratio > 1)
    assert float(metrics["clip/low"]) == (not learns and ratio < 1)


def test_under_cispo_every_token_keeps_a_gradient_of_bounded_weight() -> None:
    wanted = Wanted("cispo", (1.0, 4.0), "tokens", {"type": "none"})
    for ratio, weight in ((9.0, 5.0), (0.01, 0.01)):
        found = gradients(pack(one_token(ratio, 1.0)), settings(wanted))
        assert float(found[0]) == pytest.approx(-weight)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("average", ["tokens", "sequences"])
def test_a_batch_of_which_all_is_masked_gives_zero_and_no_gradient(loss: str, average: str) -> None:
    batch = [dataclasses.replace(s, mask=[False] * len(s.mask)) for s in draw(3)]
    packed = pack(batch)
    assert totals(packed) == Totals(0, 0)
    wanted = Wanted(loss, CLIPS[loss], average, CORRECTIONS[1], "k3", 0.1, 0.1)
    found = policy_loss(packed, settings(wanted), totals(packed))
    assert float(found.value.detach()) == 0
    assert {float(v) for name, v in found.metrics.items() if "/m" not in name} == {0}
    assert not gradients(packed, settings(wanted)).any()


@every_formula
@pytest.mark.parametrize("far", [1e3, -1e3])
def test_log_probs_that_lie_absurdly_far_apart_give_no_infinity(wanted: Wanted, far: float) -> None:
    counts = int(pack(draw(4)).mask.nonzero()[0])
    for name in ("new", "sampler", "reference"):
        packed = pack(moved(draw(4), name, counts, far))
        loss = policy_loss(packed, settings(wanted), totals(packed))
        assert torch.isfinite(loss.value)
        assert torch.isfinite(gradients(packed, settings(wanted))).all()


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: str(c["type"]))
def test_what_is_watched_is_what_loops_count(correction: dict[str, float]) -> None:
    batch = draw(6, sequences=12)
    wanted = Wanted("clip", (0.2, 0.28), "tokens", correction, "k2")
    packed = pack(batch)
    found = policy_loss(packed, settings(wanted), totals(packed)).metrics
    kept = [(s, t) for s in batch for t in range(len(s.mask)) if s.mask[t]]
    ratios = [math.exp(s.new[t] - s.old[t]) for s, t in kept]
    apart = [abs(s.old[t] - s.sampler[t]) for s, t in kept]
    weights = [reference.importance(s, t, wanted) for s, t in kept]
    raw = [math.exp(s.old[t] - s.sampler[t]) for s, t in kept]
    signs = [s.advantage for s, _ in kept]
    mean = reference.mean
    expected = {
        "policy": reference.loss(batch, batch, wanted),
        "loss": reference.loss(batch, batch, wanted),
        "kl": mean([reference.divergence(s.new[t], s.reference[t], "k2") for s, t in kept]),
        "entropy": mean([s.entropy[t] for s, t in kept]),
        "ratio/mean": mean(ratios),
        "ratio/max": max(ratios),
        "ratio/min": min(ratios),
        "clip/low": mean([r < 0.8 and a < 0 for r, a in zip(ratios, signs, strict=True)]),
        "clip/high": mean([r > 1.28 and a > 0 for r, a in zip(ratios, signs, strict=True)]),
        "mismatch/mean": mean(apart),
        "mismatch/max": max(apart),
        "correction/mean": mean(weights),
        "correction/outside": mean(
            [correction["type"] != "none" and w != r for w, r in zip(weights, raw, strict=True)]
        ),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    assert expected["clip/low"] > 0 < expected["clip/high"]
    assert not any(value.requires_grad for value in found.values())


def test_largest_and_smallest_are_of_tokens_that_count() -> None:
    """A masked token's ratio is no 1 that hides that all others lie below."""
    (low,) = one_token(0.5, 1.0)
    masked = dataclasses.replace(low, mask=[False])
    packed = pack([low, masked])
    wanted = Wanted("clip", CLIPS["clip"], "tokens", {"type": "none"})
    metrics = policy_loss(packed, settings(wanted), totals(packed)).metrics
    assert float(metrics["ratio/max"]) == float(metrics["ratio/min"]) == pytest.approx(0.5)
    only = policy_loss(pack([masked]), settings(wanted), totals(packed)).metrics
    assert combine([only, metrics]) == metrics


def test_float32_is_near_float64() -> None:
    wanted = Wanted("gspo", CLIPS["gspo"], "sequences", CORRECTIONS[2], "k3", 0.1)
    one, other = pack(draw(9)), pack(draw(9), torch.float32)
    found = gradients(other, settings(wanted))
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), gradients(one, settings(wanted)), atol=1e-6)


def test_gspos_narrow_bounds_see_no_rounding_in_float32() -> None:
    """Two tokens whose ratios are e^16 and e^-16, and of the sequence only a millionth is left."""
    tiny = 2**-19
    old, new = [-20.0, -4.0], [-4.0, -20.0 + tiny]
    sequence = Sequence(new, old, old, new, [1.0, 1.0], [True, True], 1.0)
    packed = pack([sequence], torch.float32)
    metrics = policy_loss(packed, Algorithm(loss="gspo"), totals(packed)).metrics
    for name in ("ratio/max", "ratio/min"):
        assert float(metrics[name]) - 1 == pytest.approx(tiny / 2, abs=1.5e-7)


def test_tensors_that_do_not_fit_together_are_refused() -> None:
    packed = pack(draw(1))
    changes: list[tuple[str, Callable[[], Packed]]] = [
        ("sampler", lambda: dataclasses.replace(packed, sampler=packed.sampler[1:])),
        ("float32", lambda: dataclasses.replace(packed, log_probs=packed.log_probs.bfloat16())),
        ("mask", lambda: dataclasses.replace(packed, mask=packed.mask.long())),
        ("vectors", lambda: dataclasses.replace(packed, advantages=packed.advantages[None])),
    ]
    for said, change in changes:
        with pytest.raises(ValueError, match=said):
            change()


def test_a_term_without_its_input_is_an_error_and_not_left_out() -> None:
    packed = dataclasses.replace(pack(draw(1)), reference=None, entropy=None)
    with pytest.raises(ValueError, match="reference"):
        policy_loss(packed, Algorithm.model_validate({"kl": {"coef": 0.1}}), totals(packed))
    with pytest.raises(ValueError, match="entropies"):
        policy_loss(packed, Algorithm(entropy=0.1), totals(packed))
    metrics = policy_loss(packed, Algorithm(), totals(packed)).metrics
    assert not {"kl", "entropy"} & metrics.keys()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_a_policy_comes_to_prefer_what_it_is_paid_for(loss: str, advantage: str) -> None:
    """One state, five actions, sequences of three: the third action is right."""
    torch.manual_seed(0)
    source = random.Random(0)
    wanted = Wanted(loss, CLIPS[loss], "tokens", CORRECTIONS[1])
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(40):
        before = logits.detach().softmax(0)
        actions = torch.tensor(source.choices(range(5), before.tolist(), k=96))
        rewards = (actions.view(32, 3) == 2).double().mean(1)
        group = torch.arange(32) // 8
        found = ADVANTAGES[advantage](rewards, group, torch.ones(32, dtype=torch.bool))
        old = before.log()[actions]
        for _ in range(2):
            packed = Packed(
                log_probs=logits.log_softmax(0)[actions],
                sampler=old,
                advantages=found,
                sequence=torch.arange(32).repeat_interleave(3),
                mask=torch.ones(96, dtype=torch.bool),
                old=old,
            )
            optimiser.zero_grad()
            policy_loss(packed, settings(wanted), totals(packed)).value.backward()
            optimiser.step()
    assert float(logits.detach().softmax(0)[2]) > 0.8
