"""A suite is read whole or refused with the line of everything that is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_verifiers.jsonlines import SuiteError
from assay_verifiers.suites import assign_splits, load_judged, load_suite, shared_items

REGEX = {"type": "regex", "pattern": "yes"}


def item(id: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": id, "prompt": f"question {id}", "verifier": REGEX, **fields}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def problems(path: Path, *lines: Any) -> tuple[str, ...]:
    with pytest.raises(SuiteError) as caught:
        load_suite(write(path, *lines))
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "suite.jsonl"


def test_a_header_names_the_suite_and_gives_what_items_do_not_say(file: Path) -> None:
    own = {"type": "regex", "pattern": "no"}
    suite = load_suite(
        write(
            file,
            {"suite": "sums", "verifier": REGEX, "split": "heldout", "maxTokens": 9},
            {"id": "a", "prompt": "1 + 1"},
            {"id": "b", "prompt": "1 + 2", "verifier": own, "split": "train"},
        )
    )
    assert suite.name == "sums"
    first, second = suite.items
    assert (first.verifier.model_dump()["pattern"], first.split, first.maxTokens) == (
        "yes",
        "heldout",
        9,
    )
    assert (second.verifier.model_dump()["pattern"], second.split) == ("no", "train")
    assert suite.splits() == {"heldout": 1, "train": 1}


def test_every_wrong_line_is_told_by_its_number_and_the_fields_path(file: Path) -> None:
    told = problems(
        file,
        item("good"),
        "{not json",
        item("b", verifier={"type": "math", "timeout": -1}),
        item("c", verifier={"type": "maths"}),
        item("d", messages=[{"role": "user", "content": "both"}]),
        item("e", colour="red"),
        item(
            "f",
            verifier={
                "type": "weighted",
                "parts": [{"verifier": {"type": "regex", "patern": "x"}}],
            },
        ),
        item("good"),
        "[1, 2]",
        {"suite": "late"},
    )
    assert [text.partition(":")[0] for text in told] == [f"line {n}" for n in range(2, 11)]
    assert "verifier.timeout" in told[1]
    assert "unknown verifier type 'maths'" in told[2]
    assert "exactly one of prompt and messages" in told[3]
    assert "colour" in told[4]
    assert "verifier.parts.0.verifier.patern" in told[5]
    assert "line 1" in told[6]
    assert "not a JSON object" in told[7]
    assert "only the first line" in told[8]


def test_a_wrong_verifier_does_not_hide_what_else_is_wrong_in_a_line(file: Path) -> None:
    told = problems(file, {"id": "", "prompt": "x", "verifier": {"type": "maths"}})
    assert any("id" in text for text in told) and any("maths" in text for text in told)


def test_thousands_of_wrong_lines_are_told_in_a_few(file: Path) -> None:
    told = problems(file, *(["nonsense"] * 5000))
    assert len(told) == 21 and told[-1] == "and 4980 more"


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"suite": "x"}\n'])
def test_a_suite_without_items_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(SuiteError, match="empty"):
        load_suite(file)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"id": "a", "id": "b", "prompt": "x"}', "twice"),
        (b'{"id": "a", "prompt": "x", "reference": NaN}', "NaN"),
        (b'{"id": "a", "prompt": "x", "reference": 1e999}', "too large"),
        (b'{"id": "a", "prompt": "\xff"}', "UTF-8"),
        (b'{"id": "a", "reference": ' + b"[" * 100_000 + b"}", "deeply"),
        (b'{"id": "a", "reference": ' + b"[" * 300 + b"]" * 300 + b"}", "deeply"),
        (b'{"id": "a", "reference": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_json_that_can_be_read_in_two_ways_or_not_at_all_is_refused(
    file: Path, line: bytes, said: str
) -> None:
    file.write_bytes(line + b"\n")
    with pytest.raises(SuiteError, match=said):
        load_suite(file)


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_one_do_not_matter(
    file: Path,
) -> None:
    plain = load_suite(write(file, item("a"), item("b")))
    text = f"{json.dumps(item('a'))}\r\n\r\n{json.dumps(item('b'))}"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_suite(file) == plain


def test_the_digest_is_of_what_the_items_say_and_not_of_how_they_are_written(file: Path) -> None:
    digest = load_suite(write(file, item("a"), item("b"))).digest
    assert digest.startswith("sha256:") and len(digest) == 71
    respelt = json.dumps(dict(reversed(item("b").items())), indent=None, separators=(" , ", " : "))
    header = {"suite": "another name", "verifier": REGEX}
    assert load_suite(write(file, respelt, item("a"))).digest == digest
    inherited = {"id": "a", "prompt": "question a"}
    assert load_suite(write(file, header, inherited, item("b"))).digest == digest
    for other in (item("a", reference=1), item("a", tags=["x"]), item("a", prompt="question a.")):
        assert load_suite(write(file, other, item("b"))).digest != digest


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        min_size=1,
        max_size=6,
    ),
    st.randoms(),
)
def test_any_order_of_any_items_gives_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, references: dict[str, Any], random: Any
) -> None:
    file = tmp_path_factory.mktemp("s") / "suite.jsonl"
    lines = [item(id, reference=reference) for id, reference in references.items()]
    digest = load_suite(write(file, *lines)).digest
    random.shuffle(lines)
    assert load_suite(write(file, *lines)).digest == digest


def test_a_split_is_a_suite_with_a_digest_of_its_own(file: Path) -> None:
    suite = load_suite(write(file, item("a", split="train"), item("b", split="heldout")))
    held = suite.split("heldout")
    assert [i.id for i in held.items] == ["b"]
    assert held.digest == load_suite(write(file, item("b", split="heldout"))).digest
    with pytest.raises(ValueError, match="heldout, train"):
        suite.split("test")


def test_items_are_divided_by_what_they_ask_whatever_else_is_in_the_suite(file: Path) -> None:
    lines = [item(f"i{n}") for n in range(1000)]
    shares = {"train": 0.9, "heldout": 0.1}
    chosen = assign_splits(load_suite(write(file, *lines)), shares, "salt")
    assert 70 < sum(split == "heldout" for split in chosen.values()) < 130
    few = assign_splits(load_suite(write(file, *lines[500:])), shares, "salt")
    assert few == {id: chosen[id] for id in few}
    assert assign_splits(load_suite(write(file, *lines)), shares, "other") != chosen
    same = load_suite(write(file, item("x", prompt="Is it?"), item("y", prompt=" is  IT? ")))
    assert len(set(assign_splits(same, {"a": 1, "b": 1}).values())) == 1


def test_a_question_that_stands_in_two_suites_is_found_however_it_is_spelt(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2 = ?"}]
    one = load_suite(
        write(
            tmp_path / "one",
            {"id": "chat", "messages": chat, "verifier": REGEX},
            item("own"),
        )
    )
    other = load_suite(write(tmp_path / "other", item("plain", prompt="2 + 2  = \uff1f")))
    assert shared_items(one, other) == [("chat", "plain")]
    assert shared_items(one, load_suite(write(tmp_path / "third", item("z")))) == []


def test_items_that_only_opinions_judge_are_counted_as_weak(file: Path) -> None:
    judge = {"type": "http", "url": "http://judge/"}
    both = {"type": "all", "parts": [REGEX, judge]}
    suite = load_suite(write(file, item("a", verifier=judge), item("b", verifier=both)))
    assert suite.weak == 1


def test_a_task_holds_the_last_users_message(file: Path) -> None:
    chat = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": "second"},
    ]
    line = {"id": "a", "messages": chat, "verifier": REGEX, "reference": {"n": 1}}
    task = load_suite(write(file, line)).items[0].task()
    assert (task.id, task.prompt, task.reference) == ("a", "second", {"n": 1})


def test_lines_to_be_judged_may_have_an_id_several_times(file: Path) -> None:
    line = {"id": "a", "verifier": REGEX, "completion": "yes", "reference": None}
    found = load_judged(write(file, line, {**line, "completion": "no"}))
    assert [number for number, _, _ in found] == [1, 2]
    assert found[0][2] != found[1][2]
