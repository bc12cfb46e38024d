"""Rewards become advantages as the papers say, and what could not be judged says nothing."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from assay_trainer.algorithms.advantage import ADVANTAGES, statistics
from tests.trainer import reference

NAMES = tuple(ADVANTAGES)
quick = hypothesis_settings(max_examples=30, deadline=None)

Drawn = tuple[list[float], list[int], list[bool]]


@st.composite
def batches(draw: st.DrawFn) -> Drawn:
    """Up to six groups of up to six samples, in any order; rewards in sixteenths."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    group = draw(st.permutations([g for g, size in enumerate(sizes) for _ in range(size)]))
    many = len(group)
    rewards = draw(st.lists(st.integers(0, 16), min_size=many, max_size=many))
    judged = draw(st.lists(st.booleans(), min_size=many, max_size=many))
    return [reward / 16 for reward in rewards], list(group), judged


def computed(name: str, rewards: list[float], group: list[int], judged: list[bool]) -> list[float]:
    found = ADVANTAGES[name](
        torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), torch.tensor(judged)
    )
    return list(found.tolist())


@pytest.mark.parametrize("name", NAMES)
@quick
@given(batches())
def test_each_is_what_its_paper_says(name: str, batch: Drawn) -> None:
    assert computed(name, *batch) == pytest.approx(reference.advantages(name, *batch), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_enough(name: str) -> None:
    source = random.Random(3)
    rewards = [source.random() for _ in range(256)]
    group = [i // 16 for i in range(256)]
    judged = [source.random() < 0.9 for _ in range(256)]
    found = ADVANTAGES[name](
        torch.tensor(rewards, dtype=torch.float32), torch.tensor(group), torch.tensor(judged)
    )
    assert found.dtype == torch.float32
    expected = reference.advantages(name, rewards, group, judged)
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo"])
@quick
@given(batches(), st.integers(0, 5), st.integers(-3, 3))
def test_a_constant_added_to_a_groups_rewards_changes_nothing(
    name: str, batch: Drawn, which: int, constant: int
) -> None:
    rewards, group, judged = batch
    more = [r + constant * (g == which) for r, g in zip(rewards, group, strict=True)]
    changed = computed(name, more, group, judged)
    assert changed == pytest.approx(computed(name, *batch), abs=1e-9)


@quick
@given(batches(), st.integers(-3, 3))
def test_a_constant_added_to_all_rewards_changes_nothing(batch: Drawn, constant: int) -> None:
    rewards, group, judged = batch
    changed = computed("reinforce++", [r + constant for r in rewards], group, judged)
    assert changed == pytest.approx(computed("reinforce++", *batch), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@quick
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(
    name: str, batch: Drawn, source: random.Random
) -> None:
    order = list(range(len(batch[0])))
    source.shuffle(order)
    rewards, group, judged = ([column[i] for i in order] for column in batch)
    found = computed(name, *batch)
    shuffled = computed(name, rewards, group, judged)
    assert shuffled == pytest.approx([found[i] for i in order], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1e30])
@quick
@given(batch=batches())
def test_what_was_not_judged_gets_nothing_and_changes_nothing(
    name: str, nonsense: float, batch: Drawn
) -> None:
    rewards, group, judged = batch
    other = [r if known else nonsense for r, known in zip(rewards, judged, strict=True)]
    found = computed(name, other, group, judged)
    assert found == computed(name, *batch)
    assert all(a == 0 for a, known in zip(found, judged, strict=True) if not known)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 + 0.2, 1 / 3])
def test_equal_rewards_teach_nothing(name: str, reward: float) -> None:
    """Exactly nothing: a deviation that is only rounding must not be divided by."""
    wobble = [reward, reward * (1 + 1e-15), reward, reward]
    assert computed(name, wobble, [0] * 4, [True] * 4) == [0.0] * 4


@pytest.mark.parametrize("name", ["grpo", "dr-grpo", "rloo"])
def test_a_group_of_which_one_was_judged_teaches_nothing(name: str) -> None:
    found = computed(name, [1, 0, 0, 1, 0], [0, 0, 0, 1, 1], [True, False, False, True, True])
    assert found[:3] == [0, 0, 0] and found[3] > 0 > found[4]


def test_reinforce_plus_plus_needs_no_groups() -> None:
    found = computed("reinforce++", [1.0, 0.0, 0.0, 1.0], [0, 1, 2, 3], [True] * 4)
    high = math.sqrt(3) / 2
    assert found == pytest.approx([high, -high, -high, high])


def test_rloo_is_unbiased_where_the_groups_mean_is_not() -> None:
    """One right answer in two: against the other one's 0, not against the mean of one half."""
    assert computed("rloo", [1.0, 0.0], [0, 0], [True, True]) == [1.0, -1.0]
    assert computed("dr-grpo", [1.0, 0.0], [0, 0], [True, True]) == [0.5, -0.5]


def test_what_teaches_nothing_is_counted() -> None:
    """Four groups: one to learn from, one uniform, one with a single judged sample, one with none.
    Group 3 does not exist."""
    group = torch.tensor([0, 0, 1, 1, 2, 2, 4, 4])
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, math.nan, 0.0, 0.0])
    judged = torch.tensor([True, True, True, True, True, False, False, False])
    found = {name: float(value) for name, value in statistics(rewards, group, judged).items()}
    assert found == pytest.approx(
        {"reward/mean": 0.8, "samples/masked": 3 / 8, "groups/few": 0.5, "groups/uniform": 0.25}
    )


def test_an_empty_batch_has_no_advantages() -> None:
    nothing = torch.zeros(0)
    none = torch.zeros(0, dtype=torch.int64)
    for function in ADVANTAGES.values():
        assert function(nothing, none, none.bool()).shape == (0,)


def test_rewards_that_are_no_floats_or_of_another_length_are_refused() -> None:
    group = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="float"):
        ADVANTAGES["grpo"](torch.tensor([0, 1]), group, group.bool())
    with pytest.raises(ValueError, match="one length"):
        ADVANTAGES["grpo"](torch.tensor([0.0, 1.0, 1.0]), group, group.bool())
