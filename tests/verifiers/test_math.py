"""Mathematical answers: what counts as the answer, what equals the reference, what never scores."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay_verifiers.config import MathVerifier
from assay_verifiers.contract import Task, Verdict
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.types import math_answer
from assay_verifiers.types.math_extract import extract, reference_text
from assay_verifiers.types.math_text import (
    Quantity,
    Unreadable,
    plain,
    same_quantity,
    several,
    split_unit,
)
from tests.cluster.settings import REPOSITORY

GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k_labelled_solutions_660.jsonl"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


async def judged(bench: Bench, reference: Any, completion: str, **fields: Any) -> Verdict:
    verifier = bench.verifier(MathVerifier(**fields))
    return await verify_one(verifier, Task("item", reference=reference), completion)


def boxed(answer: str) -> str:
    return f"Therefore the answer is $\\boxed{{{answer}}}$."


EQUAL: list[tuple[Any, str]] = [
    # numbers
    ("18", "18.0"),
    (18, "18"),
    (18.0, "18"),
    (0.5, "1/2"),
    ("1234", "1,234"),
    ("1,234", "1234"),
    ("1{,}234{,}567", "1234567"),
    ("1234", "\\$1,234.00"),
    ("1234", "1\\,234"),
    ("-5", "\u22125"),
    ("1500", "1.5 \\times 10^3"),
    ("1500", "1.5e3"),
    ("5,000,000", "5 \\text{ million}"),
    # fractions and mixed numbers
    ("1/2", "\\frac12"),
    ("1/2", "\\dfrac{1}{2}"),
    ("-\\frac{1}{2}", "-0.5"),
    ("3/2", "1\\frac{1}{2}"),
    ("3/2", "1 1/2"),
    ("1/3", "0.333333"),
    # percent: the factor, or, where units are ignored, a unit
    ("50\\%", "50%"),
    ("0.5", "50\\%"),
    ("50%", "1/2"),
    ("50", "50\\%"),
    ("50\\%", "50"),
    # units
    ("18", "18\\text{ cm}"),
    ("18 \\text{ cm}^2", "18 cm²"),
    ("18^\\circ", "18"),
    ("$18", "18 dollars"),
    ("10 km/h", "10"),
    ("2\\sqrt{3}\\text{ cm}^2", "\\sqrt{12}"),
    # expressions
    ("\\sqrt{2}", "2^{1/2}"),
    ("\\sqrt{2}", "1.414214"),
    ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("\\frac{\\pi}{2}", "\\pi/2"),
    ("2\\pi", "2π"),
    ("x^2+2x+1", "(x+1)^2"),
    ("\\log_2 3", "\\frac{\\ln 3}{\\ln 2}"),
    ("3+4i", "4i+3"),
    ("0", "\\sqrt{2}\\sqrt{3} - \\sqrt{6}"),
    ("\\sqrt{5+2\\sqrt{6}}", "\\sqrt{2}+\\sqrt{3}"),
    ("|x| - 3!", "-6 + |x|"),
    ("18", "x = 18"),
    ("18", "3 + 15 = 18"),
    ("0.5", "\\frac{1}{2} = 50\\%"),
    ("x=5", "5"),
    ("y=2x+1", "y=1+2x"),
    ("2^{100}", "1267650600228229401496703205376"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    # pairs, intervals, sets, lists
    ("\\left(1, -2\\right)", "(1,-2)"),
    ("[1,2)", "[1, 2)"),
    ("(-\\infty,3)\\cup(5,\\infty)", "(5,\\infty) \\cup (-\\infty, 3)"),
    ("x<5", "(-\\infty,5)"),
    ("\\{1,2\\}", "\\{2, 1\\}"),
    ("1,2", "1 \\text{ and } 2"),
    ("\\{5\\}", "5"),
    ("(1,3),(2,4)", "(2,4),(1,3)"),
    # words
    ("\\text{Evelyn}", "Evelyn"),
    ("Tuesday", "tuesday"),
    ("C", "(C)"),
    ("6:30", "6:30"),
    ("\\text{Room 5}", "room 5"),
    ("11_2", "11_{2}"),
    # several acceptable answers
    (["17", "18"], "18"),
]

DIFFERENT: list[tuple[Any, str]] = [
    ("18", "17"),
    ("18", "-18"),
    ("50%", "0.05"),
    ("0.5", "0.5%"),
    ("0.5", "50"),
    ("5 million", "5"),
    ("\\sqrt{2}", "1.41421"),
    ("10^{-20}", "10^{-21}"),
    ("x^2+2x+1", "(x+2)^2"),
    ("5x", "5y"),
    ("5x", "5"),
    ("5 n", "5"),
    ("5c", "5d"),
    ("x=5", "y=5"),
    ("Evelyn", "velyEn"),
    ("C", "D"),
    ("6:30", "1/5"),
    ("\\text{Room 5}", "5"),
    ("11_2", "3"),
    ("18", "18_2"),
    ("(1,2)", "(2,1)"),
    ("[1,2)", "[1,2]"),
    ("(11/2, 3)", "(1 1/2, 3)"),
    ("x<5", "x<5 or x>7"),
    ("x<5", "x<5, x<6"),
    ("x<5", "x<6"),
    ("(3,-1)", "(5,2)"),
    ("1,2", "1,2,3"),
    ("1,2,3", "1,2"),
    ("1,1,2", "1,2,2"),
    ("18", "\\infty"),
    ("18", "0/0"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
    # candidates instead of an answer
    ("18", "18 or 26"),
    ("18", "18 \\text{ or } 26"),
    ("18", "18, 26"),
    ("18", "18; 26"),
    ("18", "18 and 26"),
    ("18", "\\{18, 26\\}"),
    ("18", "[18, 26]"),
    ("18", "18 \\pm 8"),
    ("18", "x = 18 \\text{ or } x = 26"),
    ("18", "x \\in \\{18, 26\\}"),
    ("18", "18 \\le x"),
    ("18", "17 = 18"),
    ("18", "x = 17 = 18"),
    ("18", "any of 1, 18"),
    ("18", ", ".join(map(str, range(50)))),
    ("5=2+4", "5=2+4=6"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
async def test_an_equal_answer_scores(bench: Bench, reference: Any, answer: str) -> None:
    verdict = await judged(bench, reference, boxed(answer))
    assert (verdict.status, verdict.score) == ("ok", 1.0), verdict.detail


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
async def test_another_answer_does_not(bench: Bench, reference: Any, answer: str) -> None:
    verdict = await judged(bench, reference, boxed(answer))
    assert (verdict.status, verdict.score) == ("wrong", 0.0), verdict.detail


@pytest.mark.parametrize(
    "completion",
    [
        "18",
        "A: 18",
        "Working.\nA: $18.00",
        "#### 18",
        "Some work.\n#### 18\n",
        "the answer is $18.",
        "The answer is $18$.",
        "The answer is \\(18\\).",
        "**Answer:** 18 dollars",
        "Answer:\n18",
        "The answer is 18 dollars per day for 3 days.",
        "The final answer is $\\boxed{18}$. I hope it is correct.",
        "First \\boxed{17}, no: \\boxed{18}",
        "\\boxed{\\boxed{18}}",
        "\\fbox{18}",
        "\\boxed 18",
        "#### 17\nso \\boxed{18}",
        "She has 16 - 3 - 4 = 9 eggs, so she makes 9 * 2 = <<9*2=18>>18 dollars a day.",
        "2 + 16 = 18",
        "It takes 18 and no more.",
        "It costs $5, hence $x = 18$.",
        "Hence\n\\[ x = \\frac{36}{2} \\]\nand we are done.",
        "She pays $16 and then $18.",
        "The answer is 18 or so, I think.",
    ],
)
async def test_the_answer_is_found_where_people_put_it(bench: Bench, completion: str) -> None:
    assert (await judged(bench, "18", completion)).status == "ok"


@pytest.mark.parametrize(
    ("convention", "completion", "status"),
    [
        ("boxed", "#### 18", "unparsed"),
        ("boxed", "\\boxed{18}", "ok"),
        ("hash", "\\boxed{18}", "unparsed"),
        ("hash", "#### 18", "ok"),
        ("hash", "#### 17\n#### 18", "ok"),
        ("last-number", "\\boxed{18} in 3 days", "wrong"),
        ("last-number", "in 3 days 18", "ok"),
        ("last-number", "so \\boxed{18}", "ok"),
        ("last-number", "so $\\frac{1}{18}$", "wrong"),
        ("auto", "\\boxed{18}\n#### Step 3: the end", "ok"),
    ],
)
async def test_a_configured_convention_is_kept_to(
    bench: Bench, convention: str, completion: str, status: str
) -> None:
    assert (await judged(bench, "18", completion, answer=convention)).status == status


@pytest.mark.parametrize(
    "reference",
    ["18", 18, "\\boxed{18}", "He works.\nShe has 5.\n#### 18", "5 + 13 = 18\nA: 18", ["18"]],
)
async def test_a_reference_may_be_a_worked_solution(bench: Bench, reference: Any) -> None:
    assert (await judged(bench, reference, "A: 18")).status == "ok"
    assert (await judged(bench, reference, "A: 5")).status == "wrong"


@pytest.mark.parametrize(
    "reference",
    [
        None,
        True,
        "",
        [],
        {"answer": 18},
        float("nan"),
        "\\frac{1",
        "He has 5 apples and buys 3 more, so that he has 8 apples in all at the end of the day.",
    ],
)
async def test_an_item_without_a_readable_reference_is_masked(bench: Bench, reference: Any) -> None:
    verdict = await judged(bench, reference, "\\boxed{x+1}")
    assert (verdict.status, verdict.score) == ("error", 0.0)
    assert "reference" in verdict.detail


@pytest.mark.parametrize(
    ("reference", "answer", "status"),
    [
        ("18 cm", "18 cm", "ok"),
        ("18 \\text{ meters}", "18 meter", "ok"),
        ("$18", "18 dollars", "ok"),
        ("18 cm", "18", "wrong"),
        ("18 cm", "18 m", "wrong"),
        ("2\\sqrt{3} \\text{ cm}", "\\sqrt{12} \\text{ cm}", "ok"),
        ("2\\sqrt{3} \\text{ cm}", "\\sqrt{12}", "wrong"),
        ("50%", "0.5", "ok"),
        ("50%", "50", "wrong"),
        ("18", "18 cm", "ok"),
    ],
)
async def test_a_required_unit_must_be_there(
    bench: Bench, reference: str, answer: str, status: str
) -> None:
    assert (await judged(bench, reference, boxed(answer), unit="require")).status == status


async def test_the_tolerance_is_for_decimals_only(bench: Bench) -> None:
    assert (await judged(bench, "0.5", boxed("0.51"), absoluteTolerance=0.02)).status == "ok"
    assert (await judged(bench, "2", boxed("3"), absoluteTolerance=2)).status == "wrong"
    assert (await judged(bench, "\\pi", boxed("3.14"), absoluteTolerance=0.01)).status == "ok"
    assert (await judged(bench, "\\pi", boxed("3.14"))).status == "wrong"


# --- bad input: nothing of it scores, hangs or is passed over in silence ---

UNREADABLE = {
    "nothing": "",
    "white space": " \n\t ",
    "no number": "I do not know.",
    "an empty box": "\\boxed{}",
    "a box that is cut off": "so \\boxed{18",
    "all numbers": " ".join(map(str, range(19))),
    "all numbers, by lines": "\n".join(map(str, range(19))),
    "all numbers, by commas": ", ".join(map(str, range(19))),
    "all numbers, by or": " or ".join(map(str, range(19))),
    "two, by or": "It is 17 or 18",
    "numbers side by side": boxed("9 9"),
    "an equation in a root": boxed("\\sqrt{17 = 18}"),
    "an equation in a fraction": boxed("\\frac{17 = 18}{1}"),
    "digits apart": boxed("1 8"),
    "digits with a space of LaTeX's": boxed("1\\quad 8"),
    "digits with a mark that is dropped": boxed("1'8"),
    "digits with a dollar sign": boxed("1\\$8"),
    "digits with an empty text": boxed("1\\text{ }8"),
    "numbers in brackets": boxed("(17)(1)"),
    "candidates between bars": boxed("18 | 26"),
    "words among numbers": boxed("18 because 3 plus 15"),
    "a word for a number": boxed("eighteen"),
    "Arabic-Indic digits": boxed("\u0661\u0668"),
    "fullwidth digits": boxed("\uff11\uff18"),
    "mathematical bold digits": boxed("\U0001d7cf\U0001d7d6"),
    "look-alikes after a number": "She has 18 eggs. The answer is \u0661\u0667.",
    "a look-alike last number": "18 eggs, in all \U0001d7cf\U0001d7d6",
    "a part of a fraction": "hence it is \\frac{1}{18}",
    "a part of a power": "hence it is 2^18",
    "a part of a power after a phrase": "the answer is the value of x^18 there",
    "a zero-width space": boxed("1\u200b8"),
    "1 MB of brackets": "(" * 10**6,
    "1 MB of brackets in a box": "\\boxed{" + "(" * 10**6,
    "a box of 1 MB": boxed("(" * 10**6 + "18" + ")" * 10**6),
    "deep brackets": boxed("(" * 200 + "18" + ")" * 200),
    "1 MB of boxes": "\\boxed{" * 150_000,
    "1 MB of digits": "1" * 10**6,
    "1 MB of marks": "#### " * 200_000,
    "1 MB of answers": "answer: " * 125_000,
    "a power tower": boxed("9^{9^{9^{9}}}"),
    "a factorial tower": boxed("9!!!!"),
    "a huge factorial": boxed("100000000!"),
    "a huge binomial": boxed("\\binom{10^9}{10^8}"),
    "a huge power": boxed("10^{10^8}"),
    "a NUL": boxed("1\x008"),
}


@pytest.mark.parametrize("completion", UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_what_cannot_be_read_is_unparsed_at_once(bench: Bench, completion: str) -> None:
    began = time.monotonic()
    verdict = await judged(bench, "18", completion)
    assert (verdict.status, verdict.score) == ("unparsed", 0.0), verdict.detail
    assert time.monotonic() - began < 3
    assert len(verdict.detail) < 2100


@pytest.mark.parametrize(
    "bomb",
    [
        "9**9**9**9",
        "e^{e^{e^{e^{e^{e}}}}}",
        "\\sum_{k=1}^{10^{12}} \\frac{1}{k^2+k}",
        "\\prod_{k=1}^{10^{9}} \\sin k",
        "\\int_0^{10^9} e^{x^x} \\sin x dx",
        "+".join(["1"] * 400),
        "x^" * 100 + "2",
        "-" * 500 + "18",
        "|" * 300,
    ],
)
async def test_a_bomb_never_scores_and_never_hangs(bench: Bench, bomb: str) -> None:
    began = time.monotonic()
    verdict = await judged(bench, "18", boxed(bomb), timeout=0.5)
    assert verdict.score == 0
    assert verdict.status in ("wrong", "unparsed", "timeout", "error")
    assert time.monotonic() - began < 5


async def test_a_comparison_without_end_is_a_masked_timeout(bench: Bench) -> None:
    verdict = await judged(bench, "(x+y+z+2)^{300}", boxed("(x+y+z+1)^{300}"), timeout=0.5)
    assert (verdict.status, verdict.masked) == ("timeout", True)
    assert 0.5 <= verdict.seconds < 2
    assert (await judged(bench, "\\sqrt{8}", boxed("2\\sqrt{2}"))).status == "ok"


@pytest.mark.parametrize("pair", math_answer._TYPICAL)
def test_what_workers_are_warmed_up_with_can_be_judged(pair: tuple[str, str]) -> None:
    reference, answer = pair
    assert math_answer.judge(answer, [reference], 1e-6, "ignore")[0] in ("ok", "wrong")


async def test_a_workers_first_items_take_no_longer_than_others(bench: Bench) -> None:
    await judged(bench, "\\frac{\\sqrt{5}}{3}", boxed("\\frac{1}{3}\\sqrt{5}"))
    for _ in range(3):
        await judged(bench, "(x+y+z+2)^{300}", boxed("(x+y+z+1)^{300}"), timeout=0.1)
        verdict = await judged(bench, "\\frac{\\sqrt{5}}{3}", boxed("\\frac{1}{3}\\sqrt{5}"))
        assert (verdict.status, verdict.seconds < 0.5) == ("ok", True), verdict


# --- properties ---

numbers = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=1000) | st.integers(
    -(10**12), 10**12
).map(Fraction)


@given(
    st.text(max_size=300)
    | st.text(alphabet="\\boxed{}#A:answer is 0123456789.,$%/-+ \n()[]", max_size=200)
)
@example("\\boxed")
@example("\\boxed{")
@example("#### ")
@example("A:")
@example("\\frac{1}{0}")
def test_reading_never_fails_otherwise_than_unreadable(text: str) -> None:
    for convention in ("auto", "boxed", "hash", "last-number"):
        try:
            answer = extract(text, convention)
        except Unreadable:
            continue
        assert answer.strip() == answer != ""
        plain(answer)
        several(answer)
        split_unit(answer)


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "${:,}", "{}.00", "{} apples"])
)
def test_a_formatted_integer_is_read_as_itself(number: int, form: str) -> None:
    text = form.format(number).replace("$-", "-$")
    for completion in (text, f"A: {text}", f"#### {text}", f"\\boxed{{{text}}}", f"It is {text}."):
        found = plain(extract(completion))
        assert found is not None, completion
        assert found.value == number


@given(numbers)
def test_a_formatted_fraction_is_read_as_itself(number: Fraction) -> None:
    sign, top, bottom = "-" * (number < 0), abs(number.numerator), number.denominator
    whole, rest = divmod(top, bottom)
    for text in (
        f"{sign}{top}/{bottom}",
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}",
        f"{sign}{whole} {rest}/{bottom}",
    ):
        found = plain(extract(f"\\boxed{{{text}}}"))
        assert found is not None, text
        assert found.value == number


@given(numbers, numbers)
def test_no_unrelated_number_is_the_same(one: Fraction, other: Fraction) -> None:
    for unit in ("ignore", "require"):
        assert same_quantity(Quantity(one), Quantity(other), 1e-6, unit) == (one == other)


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=30), st.sampled_from([", ", "; ", " or "])
)
def test_a_list_of_candidates_is_several_values(candidates: list[int], separator: str) -> None:
    answer = extract(boxed(separator.join(map(str, candidates))))
    found = several(answer)
    # "1, 234" is a list; "1,234" would be a number.
    assert found is not None
    assert [int(part) for part in found.parts] == candidates
    assert plain(answer) is None


@given(st.text(max_size=100))
def test_a_reference_is_read_or_refused(text: str) -> None:
    with suppress(Unreadable):
        assert reference_text(text).strip()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789x+-*/^(){}[]\\,.=<>| !_%$πfracsqt", min_size=1, max_size=25))
async def test_noise_never_equals_a_number_that_is_not_in_it(bench: Bench, noise: str) -> None:
    verdict = await judged(bench, "91827364.5", boxed(noise), timeout=2.0)
    assert verdict.score == 0, verdict.detail


# --- real solutions ---


@pytest.mark.skipif(not GSM8K.exists(), reason="../shared/data is not beside this repository")
async def test_labelled_gsm8k_solutions_are_judged_as_labelled(bench: Bench) -> None:
    problems = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    differing = []
    for number, problem in enumerate(problems):
        for model in MODELS:
            verdict = await judged(bench, problem["ground_truth"], problem[model]["solution"])
            if (verdict.status == "ok") != problem[model]["is_correct"]:
                differing.append((number, model, verdict))
    assert len(differing) <= len(problems) * len(MODELS) * 0.005, differing
