"""How samples become passes, and where their tokens lie. Nothing here knows a model."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from assay_trainer.batch import Batch, Sample
from assay_trainer.packing import Layout, Pass, layout, plan
from tests.trainer.models import batch, sequences


def _tokens(samples: tuple[Sample, ...], pass_: Pass) -> int:
    """What a pass has to hold, counted by laying it out."""
    chosen = [samples[i] for i in pass_.samples]
    return len(layout([(s.prompt, s.completion.ids) for s in chosen], padded=False).ids)


def _all(made: Batch) -> range:
    return range(len(made.samples))


def _seen(placed: Layout) -> list[list[int]]:
    """The ids that each token sees, itself included, in the order of their positions."""
    spread = range(len(placed.ids)) if placed.spread is None else placed.spread.tolist()
    seen: list[list[int]] = []
    rows = zip(
        itertools.pairwise(placed.queries.tolist()),
        itertools.pairwise(placed.keys.tolist()),
        strict=True,
    )
    for (begin, end), (first, last) in rows:
        for query in range(begin, end):
            keys = spread[first : last - (end - 1 - query)]
            assert [int(placed.positions[k]) for k in keys] == list(range(len(keys)))
            seen.append([int(placed.ids[k]) for k in keys])
    return seen


def _seen_in_blocks(placed: Layout) -> list[list[int]]:
    padded: list[list[int]] = []
    for block in placed.blocks:
        for row, (queries, keys) in enumerate(
            zip(block.queries.tolist(), block.keys.tolist(), strict=True)
        ):
            for column, _ in enumerate(queries):
                if block.mask is None:
                    chosen = keys[: column + 1]
                else:
                    mask = block.mask[row, 0, column].tolist()
                    chosen = [k for k, sees in zip(keys, mask, strict=True) if sees]
                padded.append([int(placed.ids[k]) for k in chosen])
    assert placed.unpadded is not None
    return [padded[place] for place in placed.unpadded.tolist()]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 4])
def test_each_completion_token_is_predicted_from_its_prompt_and_what_came_before(
    seed: int, size: int
) -> None:
    asked = sequences(seed, groups=5, size=size)
    placed = layout(asked, padded=True)
    seen = _seen(placed)
    wanted = [(p + c[:k], c[k], n) for n, (p, c) in enumerate(asked) for k in range(len(c))]
    got = [
        (seen[source], target, number)
        for source, target, number in zip(
            placed.sources.tolist(), placed.targets.tolist(), placed.sequence.tolist(), strict=True
        )
    ]
    assert got == wanted
    assert _seen_in_blocks(placed) == seen


def test_completions_of_one_prompt_share_its_tokens_and_their_last_token_is_no_input() -> None:
    placed = layout([([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([7], [8, 9])], padded=False)
    assert placed.ids.tolist() == [1, 2, 3, 4, 7, 8]
    assert placed.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert placed.sources.tolist() == [2, 3, 2, 4, 5]
    assert placed.targets.tolist() == [4, 5, 6, 8, 9]


def test_without_anything_shared_the_keys_are_the_tokens_themselves() -> None:
    placed = layout([([1, 2], [3, 4]), ([5], [6, 7])], padded=False)
    assert placed.spread is None
    assert placed.queries.tolist() == placed.keys.tolist() == [0, 3, 5]


@pytest.mark.parametrize("budget", [32, 50, 100, 1000])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_is_in_one_pass_and_no_pass_is_too_long(budget: int, processes: int) -> None:
    made = batch(seed=3, groups=9, size=4)
    passes = [p for mine in plan(made.samples, _all(made), budget, processes) for p in mine]
    placed = sorted(i for p in passes if p.counts for i in p.samples)
    assert placed == list(_all(made))
    assert max(_tokens(made.samples, p) for p in passes) <= budget


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_all_processes_have_the_same_number_of_passes_of_about_the_same_size(
    processes: int,
) -> None:
    made = batch(seed=4, groups=24, size=4)
    plans = plan(made.samples, _all(made), 200, processes)
    assert len({len(mine) for mine in plans}) == 1
    sizes = [_tokens(made.samples, p) for mine in plans for p in mine if p.counts]
    # A sample has up to 31 tokens here.
    assert max(sizes) - min(sizes) < 100


def test_a_process_without_a_sample_keeps_in_step_with_one_that_does_not_count() -> None:
    made = batch(groups=1, size=1)
    first, second = plan(made.samples, _all(made), 100, processes=2)
    assert [p.counts for p in first] == [True]
    assert second == [Pass((0,), counts=False)]


def test_nothing_to_do_is_no_pass_for_any_process() -> None:
    assert plan(batch().samples, [], 100, processes=2) == [[], []]


def test_one_pass_holds_all_that_fit_with_each_prompt_once() -> None:
    made = batch(groups=3, size=5)
    (only,) = plan(made.samples, _all(made), 1000)[0]
    prompts = {s.group: len(s.prompt) for s in made.samples}
    own = sum(len(s.completion.ids) - 1 for s in made.samples)
    assert _tokens(made.samples, only) == sum(prompts.values()) + own


def test_samples_of_a_prompt_that_do_not_stand_together_are_brought_together() -> None:
    made = batch(groups=2, size=2)
    a, b, c, d = made.samples
    (only,) = plan((a, c, b, d), range(4), 1000)[0]
    assert only.samples == (0, 2, 1, 3)


def test_the_same_samples_always_give_the_same_passes() -> None:
    made = batch(seed=9, groups=7)
    assert plan(made.samples, _all(made), 60, 2) == plan(made.samples, _all(made), 60, 2)


def test_a_sample_longer_than_a_pass_is_refused() -> None:
    made = batch()
    longest = max(s.length for s in made.samples) - 1
    with pytest.raises(ValueError, match=f"a sample has {longest} tokens, but a pass holds"):
        plan(made.samples, _all(made), longest - 1)


def test_a_sample_without_a_prompt_is_refused_by_its_item() -> None:
    broken = dataclasses.replace(batch().samples[0], prompt=())
    with pytest.raises(ValueError, match="item-0: a prompt has at least one token"):
        plan((broken,), [0], 100)
