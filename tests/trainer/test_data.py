"""What is asked: the order of items, and the prompts that are made of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.data import Prompts, decoder, held_out, load_tokenizer, training_prompts
from assay_trainer.items import DataError, Items, open_source, shuffled
from assay_trainer.job import Job, load
from tests.trainer.jobs import write, write_items
from tests.trainer.tokens import BEGIN, END, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def job_of(folder: Path, changes: dict[str, Any] | None = None) -> Job:
    return load(write(folder, {"verifiers": [{"type": "math"}], **(changes or {})}))


def asked(folder: Path, tokenizer: Any, *prompts: str, **changes: Any) -> Prompts:
    """The prompts of a suite with the texts given; changes are to the job's data."""
    write_items(folder / "items.jsonl", *prompts)
    job = job_of(folder, {f"data.{name}": value for name, value in changes.items()})
    return training_prompts(job, tokenizer, context=None)


def text(tokenizer: Any, prompts: Prompts, number: int = 0) -> str:
    shown: str = tokenizer.decode(prompts.prompt(number).ids)
    return shown


# The order of items.


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_each_time_round_has_every_item_once(count: int) -> None:
    for epoch in range(3):
        places = [shuffled(place, count, seed=5, epoch=epoch) for place in range(count)]
        assert sorted(places) == list(range(count))


def test_every_order_of_four_items_is_as_likely_as_another() -> None:
    orders = Counter(
        tuple(shuffled(place, 4, seed=seed, epoch=0) for place in range(4)) for seed in range(2400)
    )
    # 24 orders, 100 each: chi-squared with 23 degrees of freedom is below 60 but once in 40,000.
    assert len(orders) == 24
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 60


def test_a_billion_items_are_shuffled_without_a_list_of_them() -> None:
    places = {shuffled(place, 10**9, seed=1, epoch=2) for place in range(500)}
    assert len(places) == 500
    assert 0.45e9 < sum(places) / 500 < 0.55e9


def order(folder: Path, numbers: range, seed: int = 7, shuffle: bool = True) -> list[str]:
    source = open_source(str(folder / "items.jsonl"), None, None, seed=seed)
    items = Items(source, seed=seed, shuffle=shuffle)
    return [items.item(number).id for number in numbers]


def test_the_order_goes_on_from_a_position_alone_and_differs_each_time_round(
    tmp_path: Path,
) -> None:
    write_items(tmp_path / "items.jsonl", *map(str, range(20)), verifier={"type": "math"})
    whole = order(tmp_path, range(60))
    assert order(tmp_path, range(33, 60)) == whole[33:]
    rounds = [whole[:20], whole[20:40], whole[40:]]
    assert all(len(set(one)) == 20 for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert order(tmp_path, range(20), seed=8) != rounds[0]


def test_without_shuffle_items_come_in_the_suites_order(tmp_path: Path) -> None:
    write_items(tmp_path / "items.jsonl", "a", "b", "c", verifier={"type": "math"})
    found = order(tmp_path, range(7), shuffle=False)
    assert found == [f"items-{place}" for place in (0, 1, 2, 0, 1, 2, 0)]


# Items that are made.


def test_made_items_carry_what_their_scorer_wants() -> None:
    source = open_source("reasoning-gym://number_sorting?size=3", None, None, seed=1)
    item = source[1]
    assert len(source) == 3
    assert (item.id, item.verifier.type) == ("number_sorting-1", "reasoning-gym")
    assert item.reference["dataset"] == "number_sorting"
    assert item.prompt == item.reference["entry"]["question"]


def test_the_next_seed_makes_other_items() -> None:
    def questions(seed: int) -> set[str]:
        source = open_source(f"reasoning-gym://number_sorting?seed={seed}", None, None, seed=0)
        return {source[place].prompt or "" for place in range(100)}

    assert questions(7) == questions(7)
    assert not questions(7) & questions(8)


def test_made_items_without_a_seed_take_the_jobs() -> None:
    def first(source: str, seed: int) -> str | None:
        return open_source(source, None, None, seed=seed)[0].prompt

    bare = "reasoning-gym://number_sorting"
    assert first(bare, 3) == first(f"{bare}?seed=3", 99) != first(bare, 4)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("reasoning-gym://number_sorting?size=0", "there are no items"),
        ("reasoning-gym://number_sorting?size=-1", "reasoning-gym refuses it"),
        ("reasoning-gym://number_sorting?min_numbers=9&max_numbers=2", "reasoning-gym refuses it"),
        ("reasoning-gym://number_sorting?colour=red", "reasoning-gym refuses it"),
        ("reasoning-gym://sorting_hats", "reasoning-gym refuses it"),
    ],
)
def test_a_generator_that_cannot_work_is_an_error_before_the_run(
    tmp_path: Path, tokenizer: Any, source: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as refused:
        training_prompts(job_of(tmp_path, {"data.source": source}), tokenizer, None)
    assert str(refused.value).startswith("data.source: ")


# Prompts.


def test_a_prompt_goes_through_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    prompts = asked(tmp_path, tokenizer, "2 + 2?")
    prompt = prompts.prompt(0)
    assert text(tokenizer, prompts) == "<s>u:2 + 2?</s><s>a:"
    assert prompt.ids.count(BEGIN) == 2
    assert prompt.ids.count(END) == 1
    assert (prompt.number, prompt.task.id, prompt.task.reference) == (0, "items-0", "4")


def test_messages_go_through_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    line = {"id": "one", "messages": said, "reference": "4"}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    prompts = training_prompts(job_of(tmp_path), tokenizer, None)
    assert text(tokenizer, prompts) == "<s>s:Be brief.</s><s>u:2 + 2?</s><s>a:"


def test_without_a_template_the_text_is_the_prompt(tmp_path: Path, tokenizer: Any) -> None:
    prompts = asked(tmp_path, tokenizer, "2 + 2 =", chatTemplate=False)
    assert text(tokenizer, prompts) == "<s>2 + 2 ="


def test_the_jobs_verifier_judges_every_item_and_else_the_items_own(
    tmp_path: Path, tokenizer: Any
) -> None:
    write_items(tmp_path / "items.jsonl", "a", verifier={"type": "regex", "pattern": "4"})
    own = training_prompts(load(write(tmp_path)), tokenizer, None)
    assert [judge.type for judge in own.verifiers()] == ["regex"]
    jobs = training_prompts(job_of(tmp_path), tokenizer, None)
    assert jobs.prompt(0).verifier.type == "math"


def test_a_completion_is_read_without_special_tokens_and_nothing_is_tidied(tokenizer: Any) -> None:
    ids = tokenizer(" a , b <s>ü", add_special_tokens=False)["input_ids"]
    assert decoder(tokenizer)((*ids, END)) == " a , b ü"


# Prompts that cannot be used.


def test_a_prompt_that_is_too_long_is_refused_with_its_items_id(
    tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(DataError) as refused:
        asked(tmp_path, tokenizer, "short", "x" * 30, "y" * 31, maxPromptTokens=37)
    assert str(refused.value) == (
        "data.source: item items-2: the prompt has 38 tokens, more than data.maxPromptTokens 37: "
        "raise it, or take the item out"
    )


def test_a_prompt_and_a_completion_must_fit_into_the_context(
    tmp_path: Path, tokenizer: Any
) -> None:
    write_items(tmp_path / "items.jsonl", "x" * 30)
    job = job_of(tmp_path, {"rollout.maxTokens": 10})
    assert len(training_prompts(job, tokenizer, 47).prompt(0).ids) == 37
    with pytest.raises(DataError, match=r"37 tokens of prompt and rollout\.maxTokens 10 are"):
        training_prompts(job, tokenizer, 46)


def test_a_made_prompt_that_is_too_long_is_refused_when_it_is_asked_for(
    tmp_path: Path, tokenizer: Any
) -> None:
    source = "reasoning-gym://number_sorting?max_numbers=40"
    changes: dict[str, Any] = {"data.source": source, "data.shuffle": False}
    prompts = training_prompts(job_of(tmp_path, changes), tokenizer, None)
    lengths = [len(prompts.prompt(number).ids) for number in range(50)]
    # Only the first is made before the run.
    changes["data.maxPromptTokens"] = lengths[0]
    prompts = training_prompts(job_of(tmp_path, changes), tokenizer, None)
    for number, length in enumerate(lengths):
        if length > lengths[0]:
            with pytest.raises(DataError, match=f"item number_sorting-{number}: .* has {length} "):
                prompts.prompt(number)
        else:
            assert len(prompts.prompt(number).ids) == length
    assert max(lengths) > lengths[0]


def test_twenty_items_that_cannot_be_used_are_told_and_the_others_counted(
    tmp_path: Path, tokenizer: Any
) -> None:
    with pytest.raises(DataError) as refused:
        asked(tmp_path, tokenizer, *["x" * 50] * 1010, maxPromptTokens=20)
    lines = str(refused.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "data.source: and 990 more"


def test_a_tokenizer_without_a_chat_template_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    bare = load_tokenizer(write_tokenizer(tmp_path / "model", template=None))
    with pytest.raises(DataError, match=r"put chat_template\.jinja into .*chatTemplate to false"):
        asked(tmp_path, bare, "2 + 2?")
    assert text(bare, asked(tmp_path, bare, "2", chatTemplate=False)) == "<s>2"


def test_an_item_that_the_template_refuses_is_named(tmp_path: Path, tokenizer: Any) -> None:
    line = {"id": "one", "messages": [{"role": "tool", "content": "4"}], "reference": "4"}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="item one: the chat template refuses it: no tools here"):
        training_prompts(job_of(tmp_path), tokenizer, None)


def test_messages_without_a_template_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    line = {"id": "one", "messages": [{"role": "user", "content": "4"}], "reference": "4"}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="item one: it has messages, which need"):
        training_prompts(job_of(tmp_path, {"data.chatTemplate": False}), tokenizer, None)


def test_a_prompt_without_a_token_is_refused(tmp_path: Path) -> None:
    empty = load_tokenizer(write_tokenizer(tmp_path / "model", "{{ '' }}"))
    with pytest.raises(DataError, match="item items-0: the prompt has no token"):
        asked(tmp_path, empty, "2 + 2?")


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        ("", {}, "the suite is empty"),
        ("{", {}, "line 1: "),
        ('{"id": "a", "prompt": "b"}', {"data.split": "train"}, "no item is in split 'train'"),
        (None, {}, "No such file"),
    ],
)
def test_a_suite_that_cannot_be_used_is_told_with_the_field(
    tmp_path: Path, tokenizer: Any, content: str | None, changes: dict[str, Any], said: str
) -> None:
    if content is not None:
        (tmp_path / "items.jsonl").write_text(content)
    with pytest.raises(DataError, match=said) as refused:
        training_prompts(job_of(tmp_path, changes), tokenizer, None)
    assert str(refused.value).startswith("data.source: ")


def test_a_folder_without_a_tokenizer_is_an_error_that_says_what_is_missing(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot be loaded .* tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be loaded .* tokenizer\.json"):
        load_tokenizer(tmp_path)


# Held-out items.


def test_held_out_prompts_are_all_items_in_the_suites_order(tmp_path: Path, tokenizer: Any) -> None:
    write_items(tmp_path / "held.jsonl", "a", "b", "c")
    job = job_of(tmp_path, {"evaluation.suite": "held.jsonl"})
    prompts = held_out(job, tokenizer, None)
    assert [(prompt.number, prompt.task.prompt) for prompt in prompts] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert held_out(job_of(tmp_path), tokenizer, None) == ()


@pytest.mark.parametrize(("given", "count"), [("", 200), ("?size=12", 12)])
def test_held_out_items_that_are_made_are_200_or_what_their_source_says(
    tmp_path: Path, tokenizer: Any, given: str, count: int
) -> None:
    suite = f"reasoning-gym://number_sorting{given}"
    assert len(held_out(job_of(tmp_path, {"evaluation.suite": suite}), tokenizer, None)) == count


def test_a_held_out_prompt_that_is_too_long_is_told_with_its_field(
    tmp_path: Path, tokenizer: Any
) -> None:
    write_items(tmp_path / "held.jsonl", "x" * 100)
    job = job_of(tmp_path, {"evaluation.suite": "held.jsonl", "data.maxPromptTokens": 50})
    with pytest.raises(DataError, match=r"^evaluation\.suite: item held-0: the prompt has 107"):
        held_out(job, tokenizer, None)
