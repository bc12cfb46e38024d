"""reasoning-gym tasks are judged by their own scorers, which neither run answers nor give alms."""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from assay_verifiers.config import ReasoningGymVerifier
from assay_verifiers.contract import Task
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.types.reasoning_score import (
    EVALUATES_EXPRESSIONS,
    EVALUATES_LITERALS,
    answer_of,
    harmless,
    score,
)

TASKS = (
    "number_sorting",
    "chain_sum",
    "basic_arithmetic",
    "spell_backward",
    "word_sorting",
    "binary_matrix",
    "spiral_matrix",
    "knights_knaves",
    "leg_counting",
    "prime_factorization",
    "simple_integration",
    "polynomial_multiplication",
    "mini_sudoku",
    "caesar_cipher",
)
GARBAGE = (
    "banana",
    "0",
    "[]",
    "I cannot solve this.",
    " ".join(map(str, range(500))),
    "(" * 10_000,
    "\u0661\u0662\u0663",
)


def entry_of(dataset: str) -> dict[str, Any]:
    """A task as it comes out of a suite's file: it has been through JSON."""
    made = reasoning_gym.create_dataset(dataset, size=1, seed=3)[0]
    entry: dict[str, Any] = json.loads(json.dumps(made, default=str))
    return entry


def judge(dataset: str, entry: dict[str, Any], completion: str, **how: Any) -> Any:
    return score(dataset, entry, completion, how.get("threshold", 1.0), how.get("partial", False))


@pytest.mark.parametrize("dataset", TASKS)
def test_the_right_answer_is_ok_and_garbage_is_nothing(dataset: str) -> None:
    entry = entry_of(dataset)
    right = judge(dataset, entry, f"Let us see. <answer>{entry['answer']}</answer>")
    assert (right.score, right.status) == (1, "ok"), right.detail
    for text in GARBAGE:
        verdict = judge(dataset, entry, f"<answer>{text}</answer>")
        assert verdict.score == 0
        assert verdict.status in ("wrong", "unparsed"), (text[:40], verdict.detail)
    for text in ("", " \n ", "<answer></answer>", "<answer>  </answer>"):
        assert judge(dataset, entry, text).status == "unparsed"


async def test_a_suites_item_is_judged_in_a_worker(bench: Bench) -> None:
    verifier = bench.verifier(ReasoningGymVerifier())
    entry = entry_of("number_sorting")
    task = Task("a", reference={"dataset": "number_sorting", "entry": entry})
    right = await verify_one(verifier, task, f"<answer>{entry['answer']}</answer>")
    wrong = await verify_one(verifier, task, "<answer>['1']</answer>")
    assert (right.status, wrong.status) == ("ok", "wrong")


async def test_the_configuration_may_name_the_dataset(bench: Bench) -> None:
    verifier = bench.verifier(ReasoningGymVerifier(dataset="chain_sum"))
    entry = entry_of("chain_sum")
    verdict = await verify_one(verifier, Task("a", reference={"entry": entry}), entry["answer"])
    assert verdict.status == "ok"


@pytest.mark.parametrize(
    "reference",
    [
        None,
        {},
        {"dataset": "chain_sum"},
        {"dataset": "chain_sum", "entry": {}},
        {"dataset": "no_such_dataset", "entry": {"answer": "1"}},
        {"dataset": "countdown", "entry": {"answer": "1"}},
    ],
)
async def test_a_broken_reference_is_an_error(bench: Bench, reference: Any) -> None:
    verifier = bench.verifier(ReasoningGymVerifier())
    verdict = await verify_one(verifier, Task("a", reference=reference), "<answer>1</answer>")
    assert (verdict.score, verdict.status) == (0, "error")


def test_consolation_scores_are_kept_only_where_the_configuration_says_so() -> None:
    entry = entry_of("countdown")
    completion = "<answer>1 + 1</answer>"
    assert judge("countdown", entry, completion).score == 0
    kept = judge("countdown", entry, completion, partial=True)
    assert (kept.status, 0 < kept.score < 0.1) == ("wrong", True)


def test_garbage_that_breaks_a_scorer_is_unparsed_and_does_not_mask_itself() -> None:
    entry = entry_of("prime_factorization")
    verdict = judge("prime_factorization", entry, "<answer>banana</answer>")
    assert (verdict.status, "ValueError" in verdict.detail) == ("unparsed", True)
    broken = {**entry, "metadata": {}, "answer": "banana"}
    assert judge("prime_factorization", broken, "<answer>2 x 3</answer>").status == "error"


@pytest.mark.parametrize(
    ("dataset", "answers"),
    [
        ("game_of_life_halting", ["banana", "{other}", "True or False"]),
        ("coin_flip", ["0", "0.2", "-{own}", "0.9"]),
        ("gsm_symbolic", ["-{own}", "{own} 7", "7 {own}", "{own}0"]),
        ("puzzle24", ["6*4*1*1", "24*1*1*1", "{own} + 1 - 1"]),
        ("letter_jumble", ["{own} or not", "{own} {own}"]),
    ],
)
def test_wrong_answers_that_a_scorer_accepts_are_wrong_here(
    dataset: str, answers: list[str]
) -> None:
    entry = entry_of(dataset)
    own = entry["answer"]
    assert judge(dataset, entry, f"<answer>{own}</answer>").status == "ok"
    for answer in answers:
        text = answer.format(own=own, other="False" if own == "True" else "True")
        verdict = judge(dataset, entry, f"<answer>{text}</answer>")
        assert (verdict.score, verdict.status) == (0, "wrong"), (text, verdict.detail)


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [("coin_flip", "15/64"), ("puzzle24", "(4 * 8) - (6 + 2)"), ("gsm_symbolic", "$20.00")],
)
def test_other_forms_of_a_right_answer_are_ok(dataset: str, answer: str) -> None:
    assert judge(dataset, entry_of(dataset), f"<answer>{answer}</answer>").status == "ok"


def test_a_task_whose_scorer_rejects_its_own_answer_is_broken() -> None:
    entry = {**entry_of("chain_sum"), "answer": "1"}
    assert judge("chain_sum", entry, "<answer>2</answer>").status == "wrong"
    sorting = {**entry_of("number_sorting"), "answer": "nothing sorted"}
    assert judge("number_sorting", sorting, "<answer>['1']</answer>").status == "error"


def test_a_task_that_compares_tuples_survives_its_way_through_json() -> None:
    grid = [[1, 2], [3, 4]]
    entry = {"question": "", "answer": "1 2\n3 4", "metadata": {"output": grid}}
    assert judge("arc_agi", entry, "<answer>1 2\n3 4</answer>").status == "ok"
    assert judge("arc_agi", entry, "<answer>1 2\n3 5</answer>").status == "wrong"


def test_a_right_answer_hidden_in_many_is_wrong() -> None:
    entry = entry_of("leg_counting")
    spray = " ".join(map(str, range(int(entry["answer"]) + 5)))
    assert judge("leg_counting", entry, f"<answer>{spray}</answer>").score == 0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>1</answer> no, <answer> 2 </answer>", "2"),
        ("It is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{3} <answer>4</answer>", "4"),
        ("Think.\nThe end:\n5\n", "5"),
        ("</answer><answer>6", "</answer><answer>6"),
        ("\\boxed{7", "\\boxed{7"),
        ("", ""),
    ],
)
def test_the_answer_is_the_last_tagged_or_boxed_one_or_the_last_line(
    completion: str, answer: str
) -> None:
    assert answer_of(completion) == answer


@pytest.mark.parametrize("dataset", sorted(EVALUATES_LITERALS | EVALUATES_EXPRESSIONS))
@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {path}')",
        "open('{path}', 'w').write('x')",
        "[open('{path}', 'w') for i in [1]]",
        "(lambda: exec(chr(0)))()",
        "[eval := list for i in (1,)]",
        "Symbol('x').__class__.__init__.__globals__",
        "(1).__class__",
        "x.evalf",
        "exec",
    ],
)
def test_no_answer_is_run_as_code(dataset: str, code: str, tmp_path: Any) -> None:
    """Scorers of these datasets hand answers to eval(): only plain values get there."""
    path = tmp_path / "ran"
    answer = code.format(path=path)
    verdict = judge(dataset, entry_of(dataset), f"<answer>{answer}</answer>")
    assert verdict.score == 0
    assert not path.exists()
    assert not harmless(dataset, answer) or answer == "exec"


def test_no_other_scorer_evaluates_text() -> None:
    """The lists of scorers that evaluate hold for the version that is installed."""
    evaluates = re.compile(r"(?<![\w.])(?:eval|exec)\(|parse_expr\(|sympify\(|parse_latex\(")
    found = set()
    for name, (dataset, _) in DATASETS.items():
        scorer = inspect.getsource(dataset.score_answer)
        module = sys.modules[dataset.__module__]
        # With the functions and methods of its module that a scorer calls.
        for called in re.findall(r"(\w+)\(", scorer):
            function = getattr(dataset, called, None) or getattr(module, called, None)
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                scorer += inspect.getsource(function)
        if evaluates.search(scorer):
            found.add(name)
    own_parser = {"propositional_logic"}  # its parse_expr() is a parser of its own
    own_values = {"number_sorting", "bitwise_arithmetic"}  # what they evaluate is not the answer
    assert found - own_parser - own_values == EVALUATES_LITERALS | EVALUATES_EXPRESSIONS
