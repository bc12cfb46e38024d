"""An answer to a logic item is values; they satisfy the item's constraints or they do not."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_verifiers.config import LogicVerifier
from assay_verifiers.contract import Task, Verdict
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.types.logic_answer import NoAnswer, read_answer
from assay_verifiers.types.logic_check import check

PAIR = """
(set-logic QF_LIA)
(declare-const x Int)
(declare-const y Int)
(assert (= (+ x y) 10)) ; a comment (with parentheses
(assert (= (- x y) 2))
(check-sat)
(get-model)
"""
SEVERAL = "(declare-const x Int) (assert (> x 3))"
SORTS = """
(declare-datatypes ((Color 0)) (((red) (green) (blue))))
(declare-fun n () Int)
(declare-const r Real)
(declare-const b Bool)
(declare-const v (_ BitVec 8))
(declare-const s String)
(declare-const |my color| Color)
(assert (and (= n (- 7)) (= r (/ 1 3)) (not b) (= v #xff) (= s "a\\u{5c}u{41}\\u{e9}")
             (= |my color| blue)))
"""


def judge(script: str, completion: str, unique: bool = False, seconds: float = 5) -> Verdict:
    return check(script, completion, unique, seconds)


async def test_an_answer_that_satisfies_every_assertion_is_ok(bench: Bench) -> None:
    verifier = bench.verifier(LogicVerifier())
    verdict = await verify_one(verifier, Task("a", reference=PAIR), '{"x": 6, "y": 4}')
    assert (verdict.score, verdict.status) == (1, "ok")
    assert verdict.seconds > 0


async def test_the_reference_may_ask_for_the_only_model(bench: Bench) -> None:
    verifier = bench.verifier(LogicVerifier())
    reference = {"smt2": SEVERAL, "unique": True}
    verdict = await verify_one(verifier, Task("a", reference=reference), '{"x": 6}')
    assert verdict.status == "error"
    assert "ambiguous" in verdict.detail


@pytest.mark.parametrize("reference", [None, 3, {}, {"smt2": 1}, []])
async def test_a_reference_that_is_no_script_is_an_error(bench: Bench, reference: Any) -> None:
    verifier = bench.verifier(LogicVerifier())
    verdict = await verify_one(verifier, Task("a", reference=reference), '{"x": 6}')
    assert verdict.status == "error"


async def test_what_z3_cannot_decide_is_a_timeout_and_the_worker_lives_on(bench: Bench) -> None:
    hard = """(declare-const n Int)
        (assert (exists ((x Int) (y Int) (z Int))
          (and (> x 2) (> y 2) (> z 2) (= (+ (* x x x n) (* y y y)) (* z z z)))))"""
    verifier = bench.verifier(LogicVerifier(timeout=1))
    verdict = await verify_one(verifier, Task("a", reference=hard), '{"n": 1}')
    assert verdict.status == "timeout"
    again = await verify_one(verifier, Task("a", reference=PAIR), '{"x": 6, "y": 4}')
    assert again.status == "ok"


@pytest.mark.parametrize(
    "completion",
    [
        '{"x": 6, "y": 4}',
        'We add both. ```json\n{"x": 6, "y": 4}\n```',
        '<think>{"x": 1, "y": 1}</think> So {"x": 6.0, "y": "4"}.',
        "(define-fun x () Int 6)\n(define-fun y () Int 4)",
        "(model (define-fun x () Int 6) (define-const y Int 4))",
        "Thus (= x 6) and (= y 4).",
        "x = 6\ny = 4",
        "First x = 1, but that fails.\n**x** = 6, `y`: 4",
        "- x := 6\n- y := 4.",
    ],
)
def test_values_may_be_given_as_json_as_smt_lib_or_as_lines(completion: str) -> None:
    assert judge(PAIR, completion, unique=True).status == "ok"


@pytest.mark.parametrize(
    "completion",
    [
        json.dumps(
            {"n": -7, "r": "1/3", "b": False, "v": 255, "s": "a\\u{41}\u00e9", "my color": "blue"}
        ),
        json.dumps(
            {"n": "(- 7)", "r": "(/ 1 3)", "b": "false", "v": "#b11111111", "s": "a\\u{41}\u00e9",
             "my color": "blue"}
        ),
        """(define-fun n () Int (- 7)) (define-fun r () Real (/ 1.0 3.0))
           (define-fun b () Bool false) (define-fun v () (_ BitVec 8) (_ bv255 8))
           (define-fun s () String "a\\u{5c}u{41}\\u{e9}")
           (define-fun |my color| () Color (as blue Color))""",
        json.dumps(
            {"n": -7, "r": "1/3", "b": False, "v": -1, "s": "a\\u{41}\u00e9", "my color": "blue"}
        ),
    ],
)  # fmt: skip
def test_every_sort_has_its_literals(completion: str) -> None:
    assert judge(SORTS, completion).detail == "satisfies every assertion"


def test_a_wrong_answer_is_told_which_assertion_fails() -> None:
    verdict = judge(PAIR, '{"x": 7, "y": 3}')
    assert (verdict.score, verdict.status) == (0, "wrong")
    assert "(= (- x y) 2)" in verdict.detail


def test_a_missing_constant_is_wrong_and_named() -> None:
    verdict = judge(PAIR, '{"x": 6}')
    assert (verdict.status, verdict.detail) == ("wrong", "no value for y")


def test_a_constant_that_no_assertion_mentions_needs_a_value_too() -> None:
    script = SEVERAL + "(declare-const free Bool)"
    assert judge(script, '{"x": 6}').detail == "no value for free"


def test_a_division_by_zero_wins_nothing() -> None:
    # In SMT-LIB 10/0 may be any number, so "satisfiable" would hold of x = 0.
    script = "(declare-const x Int) (assert (= (div 10 x) 5))"
    assert judge(script, '{"x": 2}').status == "ok"
    assert judge(script, '{"x": 0}').status == "wrong"


def test_the_only_model_is_ok_where_it_is_asked_for() -> None:
    assert judge(PAIR, '{"x": 6, "y": 4}', unique=True).status == "ok"
    assert judge(SEVERAL, '{"x": 6}', unique=True).status == "error"
    assert judge(SEVERAL, '{"x": 1}', unique=True).status == "wrong"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("", "declares no constant"),
        ("(assert true)", "declares no constant"),
        ("(declare-const x Int)", "asserts nothing"),
        ("(declare-const x Int) (assert (> x y))", "unknown constant y"),
        ("(declare-const x Int) (assert (> x 1)", "not closed"),
        ("(declare-const x Int) (asert (> x 1))", "may not stand"),
        ("(declare-const x Int) (push 1) (assert (> x 1))", "may not stand"),
        ("(declare-const x Int) (assert (and (> x 1) (< x 1)))", "nothing satisfies"),
        ("(declare-fun f (Int) Int) (assert (= (f 1) 1))", "function"),
        ("(declare-const a (Array Int Int)) (assert (= (select a 1) 1))", "sort"),
    ],
)
def test_a_broken_item_is_an_error_and_no_fault_of_the_answer(script: str, says: str) -> None:
    verdict = judge(script, '{"x": 1}')
    assert verdict.status == "error"
    assert says in verdict.detail


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "   ",
        "I do not know.",
        "(" * 1_000_000,
        "(= " * 300_000,
        "[" * 100_000,
        '{"x":' * 100_000,
        '"' * 100_001,
        "```json\n" * 50_000,
        '{"x": 6, "x": 7, "y": 4}',
        '{"x": NaN, "y": 4}',
        '{"x": 1e999, "y": 4}',
        '{"x": ' + "9" * 5000 + ', "y": 4}',
        '{"x": null, "y": [4]}',
        '{"x": true, "y": 4}',
        '{"x": 6.5, "y": 4}',
        '{"x": "9**9**9**9", "y": 4}',
        '{"x": "\u0666", "y": "\uff14"}',
        '{"x": "(/ 1 0)", "y": 4}',
        "x = (+ 3 3)\ny = 4",
    ],
)
def test_what_is_no_answer_is_unparsed(completion: str) -> None:
    verdict = judge(PAIR, completion)
    assert (verdict.score, verdict.status) == (0, "unparsed"), verdict.detail


@pytest.mark.parametrize(
    "completion",
    [
        '{"x": "6) (assert false", "y": 4}',
        '{"x": "6))(declare-const z Int)(assert (= 1 1", "y": 4}',
        '{"x": "x", "y": "y"}',
        '{"x": "(ite true 6 7)", "y": 4}',
        "(define-fun x () Int (- y (- 2)))\n(define-fun y () Int 4)",
        "(define-fun x () Int 6) (define-fun y () Int (let ((z 4)) z))",
        "(assert true) x = y\ny = x",
        "x = 6) (assert (= 1 1\ny = 4",
    ],
)
def test_a_completion_cannot_bring_in_smt_lib(completion: str) -> None:
    assert judge(PAIR, completion).status in ("unparsed", "wrong")


def test_all_numbers_sprayed_over_the_answer_win_nothing() -> None:
    spray = "\n".join(f"x = {n}\ny = {n}" for n in range(20))
    assert judge(PAIR, spray).score == 0


def test_a_string_cannot_smuggle_in_an_escape() -> None:
    script = '(declare-const s String) (assert (= s "A"))'
    assert judge(script, json.dumps({"s": "A"})).status == "ok"
    assert judge(script, json.dumps({"s": "\\u{41}"})).status == "wrong"
    assert judge(script, '(= s "\\u{41}")').status == "ok"


TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet='(){}[]|";=:, \n\\xy0123456789.-/#bu`', max_size=200),
    st.builds(
        lambda value, form: form.replace("VALUE", value),
        st.text(alphabet='()|";=xy01 -/.asertdfunl', max_size=40),
        st.sampled_from(["(= x VALUE)", "x = VALUE\ny = 4", "(define-fun x () Int VALUE)"]),
    ),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_reading_an_answer_never_fails_otherwise_than_by_saying_so(text: str) -> None:
    with suppress(NoAnswer):
        assert set(read_answer(text, ["x", "y"])) <= {"x", "y"}


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.one_of(st.text(max_size=60), st.integers(), st.floats(), st.booleans()))
def test_no_text_at_all_gets_past_a_constraint_that_nothing_satisfies_but_six(
    text: str, value: Any
) -> None:
    script = "(declare-const x Int) (assert (= x 600673))"
    for completion in (text, json.dumps({"x": value})):
        verdict = judge(script, completion)
        assert verdict.score == (1 if "600673" in completion and verdict.status == "ok" else 0)
        assert verdict.status in ("wrong", "unparsed") or "600673" in completion
