"""A model writes a program; its tests say whether it is right, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_verifiers.config import CodeVerifier, Limits
from assay_verifiers.contract import Task, Verdict, Verifier
from assay_verifiers.registry import Bench
from assay_verifiers.sandbox.extract import function_program, whole_program
from assay_verifiers.sandbox.plain import NotPlainError, decode, encode

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "humaneval_82.jsonl"

PROMPT = '''from typing import List

def helper(x):
    return x + 1

def total(numbers: List[int]) -> int:
    """ Add the numbers.
    >>> total([1, 2])
    3
    """
'''
TESTS = """
def check(candidate):
    assert candidate([1, 2]) == 3
    assert candidate([]) == 0, "empty"
    assert candidate([helper(1), -2]) == 0
"""
FUNCTION = "def total(numbers):\n    result = sum(numbers)\n    return result\n"
BODY = "    result = sum(numbers)\n    return result\n"


@pytest.fixture
def verifier(bench: Bench) -> Verifier:
    """The verifier as it is without any configuration."""
    return bench.verifier(CodeVerifier())


async def judge(
    verifier: Verifier, completion: str, tests: str = TESTS, prompt: str = PROMPT
) -> Verdict:
    """The verdict on a completion for the function `total`."""
    reference = {"tests": tests, "entry_point": "total"}
    return await verifier.verify(Task("item", prompt, reference), completion)


# --- HumanEval --------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.exists(), reason="needs the HumanEval problems in ../shared/data")
async def test_every_canonical_solution_of_humaneval_passes_in_every_form(
    verifier: Verifier,
) -> None:
    problems = [json.loads(line) for line in DATA.read_text().splitlines()]
    forms = (
        lambda prompt, solution: solution,
        lambda prompt, solution: prompt + solution,
        lambda prompt, solution: f"Here it is.\n```python\n{prompt}{solution}```\nDone.",
    )

    async def verdict(problem: dict[str, Any], number: int) -> Verdict:
        reference = {key: problem[key] for key in ("test", "entry_point")}
        task = Task(problem["task_id"], problem["prompt"], reference)
        completion = forms[number % 3](problem["prompt"], problem["canonical_solution"])
        return await verifier.verify(task, completion)

    # The body alone, as the set has it, for all; another form for each, by turns.
    verdicts = await asyncio.gather(
        *(verdict(problem, 0) for problem in problems),
        *(verdict(problem, 1 + number % 2) for number, problem in enumerate(problems)),
    )
    assert len(problems) == 82
    assert [v for v in verdicts if v.status != "ok"] == []


# --- what a completion may look like ----------------------------------------------------------


@pytest.mark.parametrize(
    "completion",
    [
        pytest.param(FUNCTION, id="a function"),
        pytest.param(BODY, id="the body that continues the prompt"),
        pytest.param("\n" + BODY, id="a body after an empty line"),
        pytest.param(PROMPT + BODY, id="prompt and body"),
        pytest.param(BODY + "\nprint(total([1]))\nThis adds them up.", id="a body, then talk"),
        pytest.param(f"Sure!\n```python\n{FUNCTION}```\nIt works.", id="a fenced block"),
        pytest.param(f"```\n{FUNCTION}```", id="a block without a language"),
        pytest.param(f"```python\n{BODY}```", id="a fenced body"),
        pytest.param(f"~~~~py\n{FUNCTION}~~~~", id="a block between tildes"),
        pytest.param(f"```python\n{FUNCTION}", id="a block that is not closed"),
        pytest.param(
            f"```python\n{FUNCTION}```\nTry it:\n```python\nprint(total([1]))\n```",
            id="a block with an example after it",
        ),
        pytest.param(
            f"```python\ndef total(numbers): return 0\n```\nNo:\n```python\n{FUNCTION}```",
            id="a second thought",
        ),
        pytest.param(
            f"<think>```python\ndef total(n): return 0\n```</think>\n{FUNCTION}",
            id="reasoning before it",
        ),
        pytest.param(f"The function:\n\n{FUNCTION}\nIt uses sum.", id="talk without fences"),
        pytest.param("total = sum", id="a name"),
        pytest.param(
            "def total(numbers: List[int]) -> int:\n    return helper(sum(numbers)) - 1",
            id="a function that uses what the prompt gives",
        ),
        pytest.param(
            "from __future__ import annotations\n" + FUNCTION, id="an import from the future"
        ),
    ],
)
async def test_a_program_is_found_in_what_the_model_wrote(
    verifier: Verifier, completion: str
) -> None:
    assert await judge(verifier, completion) == Verdict(1.0, "ok", "passed, 3 calls")


@pytest.mark.parametrize(
    "completion", ["", "   \n", "I cannot do that.", "```python\n```", "The answer is 3."]
)
async def test_where_there_is_no_program_the_answer_is_unparsed(
    verifier: Verifier, completion: str
) -> None:
    assert (await judge(verifier, completion)).status == "unparsed"


@pytest.mark.parametrize("prompt", ["", "Sum", "Add the numbers.", "total", "1 + 2"])
async def test_a_prompt_in_words_is_no_code(verifier: Verifier, prompt: str) -> None:
    tests = "def check(candidate):\n    assert candidate([1, 2]) == 3"
    assert (await judge(verifier, FUNCTION, tests, prompt)).status == "ok"


async def test_a_prompt_in_words_may_hold_the_code_in_a_block(verifier: Verifier) -> None:
    prompt = f"Complete this function.\n```python\n{PROMPT}```\nAnswer with code only."
    assert (await judge(verifier, BODY, prompt=prompt)).status == "ok"
    assert (await judge(verifier, FUNCTION, prompt=prompt)).status == "ok"


@pytest.mark.parametrize(
    "prompt",
    ["def total(numbers):\n", "def total(numbers):", "Add.\n```python\ndef total(numbers):\n```"],
)
@pytest.mark.parametrize(
    "completion", [BODY, FUNCTION, "    return sum(numbers)", f"```\n{BODY}```"]
)
async def test_a_prompt_may_be_a_function_without_a_body(
    verifier: Verifier, prompt: str, completion: str
) -> None:
    tests = "def check(candidate):\n    assert candidate([1, 2]) == 3"
    assert (await judge(verifier, completion, tests, prompt)).status == "ok"


@given(st.text(), st.sampled_from([PROMPT, "", "words", "def total(n):"]))
def test_any_text_can_be_searched_for_a_program(text: str, prompt: str) -> None:
    for completion in (text, f"```\n{text}\n```", f"    {text}"):
        program = function_program(completion, prompt, "total")
        assert program is None or isinstance(program, str)
        whole_program(completion, python=True)


async def test_a_text_made_to_exhaust_the_parser_is_only_wrong(verifier: Verifier) -> None:
    for bomb in ("(" * 10**6, "-" * 10**5 + "1", "x" + ".a" * 10**5, "[" * 150 + "]" * 150):
        verdict = await judge(verifier, f"```python\ndef total(n): return 0\nx = {bomb}\n```")
        assert verdict.status == "wrong", bomb[:5]


# --- why it is wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "detail"),
    [
        ("def total(n): return 3", 'failed: empty at `assert candidate([]) == 0, "empty"`'),
        (
            "def total(n): return 4",
            "failed at `assert candidate([1, 2]) == 3`; total([1, 2]) retur",
        ),
        ("def total(n): return n[0] + sum(n[1:])", "IndexError"),
        ("def total(n): return None", "total([1, 2]) returned None"),
        ("def total(n) return 3", "SyntaxError"),
        ("```python\ndef other(n): return 3\n```", "it defines no function total"),
        ("def total(n): return (i for i in n)", "type generator, which is not plain data"),
        ("import nothing_of_the_kind\n" + FUNCTION, "ModuleNotFoundError"),
        ("def total(n): return total(n)", "RecursionError"),
    ],
)
async def test_a_wrong_program_gets_nothing_and_the_reason_is_told(
    verifier: Verifier, completion: str, detail: str
) -> None:
    prompt = "" if "other" in completion else PROMPT
    verdict = await judge(verifier, completion, TESTS.replace("helper(1)", "2"), prompt)
    assert (verdict.score, verdict.status) == (0.0, "wrong")
    assert detail in verdict.detail


async def test_a_deadline_is_a_timeout_and_not_a_wrong_answer(bench: Bench) -> None:
    verifier = bench.verifier(CodeVerifier(limits=Limits(wallSeconds=0.3)))
    verdict = await judge(verifier, "def total(n):\n    while True: pass")
    assert (verdict.status, verdict.score) == ("timeout", 0.0)


async def test_a_sandbox_that_is_killed_is_an_error_and_the_next_item_is_judged() -> None:
    async with Bench(1) as bench:
        verifier = bench.verifier(CodeVerifier())
        assert (await judge(verifier, FUNCTION)).status == "ok"
        (sandbox,) = cast(Any, verifier).sandboxes._idle
        asyncio.get_running_loop().call_later(0.2, os.kill, sandbox.pid, signal.SIGKILL)
        assert (await judge(verifier, "def total(n):\n    while True: pass")).status == "error"
        assert (await judge(verifier, FUNCTION)).status == "ok"


# --- tests that prove nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        ("def check(candidate):\n    assert True", "prove nothing"),
        ("def check(candidate):\n    return candidate", "prove nothing"),
        ("x = 1", "prove nothing"),
        ("def check(candidate:\n    pass", "SyntaxError"),
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("def check(candidate):\n    assert candidate([1]) == missing", "NameError"),
        ("def check(candidate):\n    assert False", "AssertionError at `assert False`"),
        ("def check(candidate):\n    candidate(lambda: 1)", "not plain data"),
    ],
)
async def test_broken_tests_are_an_error_and_not_the_candidates_fault(
    verifier: Verifier, tests: str, detail: str
) -> None:
    verdict = await judge(verifier, FUNCTION, tests)
    assert verdict.status == "error"
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("reference", "detail"),
    [
        (None, "tests"),
        ({}, "tests"),
        ({"tests": "x"}, "entry_point"),
        ({"tests": "x", "entry_point": "a b"}, "entry_point"),
        ({"cases": []}, "cases"),
        ({"cases": [{"stdin": "1"}]}, "cases.0.stdout"),
        ([1], "tests"),
    ],
)
async def test_a_reference_that_is_no_reference_is_an_error_that_names_the_field(
    verifier: Verifier, reference: Any, detail: str
) -> None:
    verdict = await verifier.verify(Task("item", PROMPT, reference), FUNCTION)
    assert verdict.status == "error"
    assert detail in verdict.detail


# --- plain data between the tests and the candidate ------------------------------------------


async def test_tests_may_expect_exceptions_of_builtin_types(verifier: Verifier) -> None:
    tests = """
def check(candidate):
    for kind, text in ((ValueError, "x"), (KeyError, "k"), (OSError, "no file")):
        try:
            candidate(kind.__name__, text)
        except kind as reason:
            assert reason.args[-1] == text
        else:
            assert False
    try:
        candidate("json", "{")  # JSONDecodeError is a ValueError
        assert False
    except ValueError:
        pass
"""
    program = """
import builtins, json
def total(name, text):
    if name == "json":
        json.loads(text)
    raise getattr(builtins, name)(*([2, text] if name == "OSError" else [text]))
"""
    assert await judge(verifier, program, tests) == Verdict(1.0, "ok", "passed, 4 calls")
    assert (await judge(verifier, "def total(a, b): pass", tests)).status == "wrong"


async def test_values_keep_their_types_and_arguments_are_copies(verifier: Verifier) -> None:
    tests = """
def check(candidate):
    for value in (None, True, 1, 2**70, 1.0, "\\ud800", b"x", bytearray(b"y"), 1j, [1], (1,), {1},
                  frozenset([1]), {(1, 2): [3]}):
        answer = candidate(value)
        assert answer == value and type(answer) is type(value), value
    assert candidate(float("inf")) == float("inf")
    assert candidate(float("nan")) != candidate(float("nan"))
    numbers = [1]
    assert candidate(numbers) == [1] and numbers == [1]
"""
    program = """
def total(x):
    answer = x.copy() if isinstance(x, (list, dict, set)) else x
    if isinstance(x, list):
        x.append(2)
    return answer
"""
    assert (await judge(verifier, program, tests)).status == "ok"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
    | st.frozensets(st.integers() | st.text()) | st.sets(st.integers()),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_plain_data_survives_the_pipe(value: Any) -> None:
    sent = decode(json.loads(json.dumps(encode(value))))
    assert sent == value
    assert type(sent) is type(value)


def test_an_object_that_is_not_plain_does_not_pass() -> None:
    class Yes(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Yes(3)))) is int
    assert math.isnan(decode(encode(float("nan"))))
    with pytest.raises(NotPlainError, match="object"):
        encode([object()])


# --- programs with standard input and output -------------------------------------------------


async def run_cases(
    bench: Bench, completion: str, cases: list[dict[str, str]], **settings: Any
) -> Verdict:
    """The verdict on a whole program."""
    verifier = bench.verifier(CodeVerifier(**settings))
    return await verifier.verify(Task("item", "", {"cases": cases}), completion)


DOUBLE = [{"stdin": "2\n", "stdout": "4\n"}, {"stdin": "5\n", "stdout": "10\n"}]


@pytest.mark.parametrize(
    "program",
    [
        "print(int(input()) * 2)",
        "```python\nimport sys\nfor line in sys.stdin:\n    print(2 * int(line))\n```",
        "if __name__ == '__main__':\n    print(2 * int(open(0).read()), end='')",
        "import atexit\natexit.register(lambda: print(2 * n))\nn = int(input())",
        "import threading\nn = int(input())\nthreading.Timer(0.05, lambda: print(2 * n)).start()",
        "import sys\nprint(2 * int(input()))\nsys.exit(0)",
        "import io, sys\nprint(2 * int(input()))\nsys.stdout = io.StringIO()",
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer)\nprint(2 * int(input()))",
    ],
)
async def test_a_program_that_writes_what_each_case_wants_passes(
    bench: Bench, program: str
) -> None:
    assert await run_cases(bench, program, DOUBLE) == Verdict(1.0, "ok", "passed, 2 cases")


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("print(4)", "case 2 of 2: it wrote '4\\n' instead of '10\\n'"),
        ("print(int(input()) * 2)\nraise SystemExit(3)", "case 1 of 2: exit code 3"),
        ("print(int(input()) * 2)\n1 / 0", "exit code 1: ZeroDivisionError: division by zero"),
        ("print(int(input()) * 2)\nimport os; os.abort()", "signal 6"),
        ("print(int(input()) * 2", "exit code 1: SyntaxError"),
        ("print('x' * 2_000_000)", "it wrote more than 1048576 bytes"),
        ("x = bytearray(10 << 30)", "exit code 1: MemoryError"),
    ],
)
async def test_the_first_case_that_fails_is_told(bench: Bench, program: str, detail: str) -> None:
    verdict = await run_cases(bench, program, DOUBLE)
    assert (verdict.status, verdict.score) == ("wrong", 0.0)
    assert detail in verdict.detail


async def test_partial_credit_is_the_share_of_cases_if_it_is_wanted(bench: Bench) -> None:
    assert (await run_cases(bench, "print(4)", DOUBLE, partial=True)).score == 0.5
    assert (await run_cases(bench, "print(4)", DOUBLE)).score == 0.0


async def test_a_case_over_its_time_masks_the_whole_item(bench: Bench) -> None:
    program = "n = int(input())\nprint(2 * n)\nwhile n == 5: pass"
    limits = Limits(wallSeconds=0.4)
    verdict = await run_cases(bench, program, DOUBLE, partial=True, limits=limits)
    assert (verdict.status, verdict.score) == ("timeout", 0.0)
    assert "case 2" in verdict.detail


@pytest.mark.parametrize(
    ("compare", "written", "same"),
    [
        ("exact", "a b\n", True),
        ("exact", "a b", False),
        ("trimmed", "a b  \n\n", True),
        ("trimmed", "a  b", False),
        ("tokens", " a\nb ", True),
        ("tokens", "ab", False),
    ],
)
async def test_output_is_compared_as_configured(
    bench: Bench, compare: str, written: str, same: bool
) -> None:
    cases = [{"stdin": "", "stdout": "a b\n"}]
    verdict = await run_cases(bench, f"print({written!r}, end='')", cases, compare=compare)
    assert verdict.status == ("ok" if same else "wrong")


async def test_any_command_can_run_the_program(bench: Bench) -> None:
    how = {"command": ("/bin/sh", "{file}"), "fileName": "main.sh"}
    assert (await run_cases(bench, "read n; echo $((2 * n))", DOUBLE, **how)).status == "ok"
    assert (await run_cases(bench, "read n; echo $n", DOUBLE, **how)).status == "wrong"
    assert (await run_cases(bench, "cat /etc/passwd", DOUBLE, **how)).status == "wrong"


async def test_a_command_that_is_not_there_is_not_the_candidates_fault(bench: Bench) -> None:
    verdict = await run_cases(bench, "x", DOUBLE, command=("no-such-program", "{file}"))
    assert verdict.status == "error"


@pytest.mark.parametrize("completion", ["", "\n", "```python\n```", "I would not know."])
async def test_a_completion_without_a_program_is_unparsed(bench: Bench, completion: str) -> None:
    assert (await run_cases(bench, completion, DOUBLE)).status == "unparsed"
