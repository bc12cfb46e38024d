"""A gate that asks more while it is undecided: how much, of which items, and how surely."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_verifiers.config import GateLimits
from assay_verifiers.decision import ItemScores, decide, look_sizes
from assay_verifiers.report import summary
from assay_verifiers.suites import load_suite
from tests.verifiers.endpoint import FakeModel
from tests.verifiers.test_gate import RIGHT, WRONG, Gate, right_below, suite


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeModel]]:
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(FakeModel(*args, **named))


# How much


@pytest.mark.parametrize(
    ("first", "total", "looks", "sizes"),
    [
        (None, 1000, 1, (1000,)),
        (None, 1000, 5, (1000,)),
        (100, 1000, 1, (100,)),
        (100, 1000, 2, (100, 1000)),
        (100, 1000, 3, (100, 316, 1000)),
        (1000, 1000, 3, (1000,)),
        (2000, 1000, 3, (1000,)),
        (999, 1000, 9, (999, 1000)),
        (1, 2, 1000, (1, 2)),
    ],
)
def test_looks_grow_by_one_factor_up_to_the_whole_suite(
    first: int | None, total: int, looks: int, sizes: tuple[int, ...]
) -> None:
    assert look_sizes(first, total, looks) == sizes


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 1000))
def test_looks_only_grow_and_are_never_more_than_planned(
    first: int, total: int, looks: int
) -> None:
    sizes = look_sizes(first, total, looks)
    assert 1 <= len(sizes) <= looks
    assert sizes[0] == min(first, total)
    assert list(sizes) == sorted({*sizes})
    assert sizes[-1] == total or looks == 1


# Which


def test_the_order_is_fair_and_follows_from_what_the_suite_says_alone(tmp_path: Path) -> None:
    path = suite(tmp_path / "suite.jsonl", 200)
    drawn = [item.id for item in load_suite(path).shuffled(0)]
    assert sorted(drawn) == sorted(f"i{n}" for n in range(200))
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *reversed(lines)]))
    assert [item.id for item in load_suite(path).shuffled(0)] == drawn
    assert [item.id for item in load_suite(path).shuffled(1)] != drawn
    early = sum(int(id[1:]) < 100 for id in drawn[:100])
    assert 35 <= early <= 65
    path.write_text("".join([header, *lines, json.dumps({"id": "new", "prompt": "one more"})]))
    assert [item.id for item in load_suite(path).shuffled(0) if item.id != "new"] != drawn


# Until


def test_what_the_first_look_decides_asks_no_more(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=200)
    model = serve(right_below(100))
    assert gate(model, None, "--min-score", "0.5", "--items", "20", "--looks", "3") == 0
    drawn = [item.prompt for item in load_suite(gate.suite).shuffled(0)[:20]]
    assert sorted(model.asked) == sorted(filter(None, drawn))
    report = gate.report
    assert report["looks"] == {"taken": 1, "of": 3, "items": [20]}
    assert report["score"]["candidate"]["items"] == 20
    assert report["suite"]["items"] == 200
    assert report["breakdown"][0]["items"] == 20


def test_an_undecided_look_asks_more_and_never_again_what_was_answered(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=200)
    candidate, incumbent = serve(right_below(70)), serve(right_below(70))
    limits = ("--max-regression", "0.03", "--items", "10", "--looks", "3")
    assert gate(candidate, incumbent, *limits) == 0
    for side in (candidate, incumbent):
        assert side.asked.total() == len(side.asked) == 200
    assert gate.report["looks"] == {"taken": 3, "of": 3, "items": [10, 45, 200]}
    assert len(gate.lines) == 400
    found = json.loads(summary(gate.report))
    assert found["looks"] == {"taken": 3, "of": 3, "items": [10, 45, 200]}


def test_what_is_undecided_at_the_end_stays_so_and_says_how_much_was_asked(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=100)
    told = tmp_path / "summary"
    more = ("--min-score", "0.5", "--items", "10", "--looks", "2", "--summary", str(told))
    assert gate(serve(right_below(50)), None, *more) == 3
    found = json.loads(told.read_text())
    assert found["verdict"] == "undecided"
    assert found["reason"].endswith("; 100 of 100 items were asked, in 2 looks")


def test_a_single_look_at_some_items_asks_no_others(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=100)
    model = serve(right_below(50))
    assert gate(model, None, "--min-score", "0.5", "--items", "10") == 3
    assert model.asked.total() == 10
    assert "10 of 100 items were asked, in 1 look" in gate.report["reason"]


def test_without_items_the_suite_is_asked_in_its_own_order(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=30)
    model = serve(right_below(100))
    assert gate(model, None, "--min-score", "0.5", "--looks", "3", "--concurrency", "1") == 0
    assert [line["id"] for line in gate.lines] == [f"i{n}" for n in range(30)]
    assert gate.report["looks"] == {"taken": 1, "of": 3, "items": [30]}


def test_a_look_that_was_cut_short_is_gone_on_with(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=200)
    model = serve(right_below(50))
    more = ("--min-score", "0.5", "--items", "20", "--looks", "3")
    assert gate(model, None, *more) == 3
    path = gate.out / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:50]))
    first = gate.report
    assert gate(model, None, *more) == 3
    assert model.asked.total() == 200 + 150
    assert {**gate.report, "startedAt": "", "seconds": 0} == {
        **first,
        "startedAt": "",
        "seconds": 0,
    }


def test_no_further_look_follows_where_the_weights_changed(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=200)
    model = serve(lambda question, _: RIGHT if int(question[9:]) % 2 else WRONG)

    def change(count: int) -> None:
        model.weights = "w1" if count < 15 else "w2"

    model.after = change
    assert gate(model, None, "--min-score", "0.5", "--items", "20", "--looks", "3") == 3
    assert "the weights changed" in gate.report["reason"]
    assert gate.report["looks"]["taken"] == 1 and model.asked.total() <= 20


@pytest.mark.parametrize("items", ["0", "-1", "many"])
def test_a_first_look_without_items_is_a_usage_error(
    tmp_path: Path, serve: Callable[..., FakeModel], items: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        Gate(tmp_path)(serve(right_below(1)), None, "--min-score", "0.5", "--items", items)


# How surely


def test_who_looks_several_times_does_not_err_more_often() -> None:
    """A candidate exactly at the limit passes as seldom with three looks as with one."""
    limits = GateLimits(minScore=0.7, confidence=0.9, looks=3)
    sizes = look_sizes(25, 225, 3)
    drawn = np.random.default_rng(5).random((500, 225)) < limits.minScore
    passed = 0
    for right in drawn:
        items = [ItemScores(str(n), float(score)) for n, score in enumerate(right)]
        for size in sizes:
            statuses = {"candidate": {"ok": size}}
            outcome = decide(items[:size], statuses, limits).outcome  # type: ignore[arg-type]
            if outcome != "undecided":
                break
        passed += outcome == "pass"
    assert passed / len(drawn) <= 1 - limits.confidence
