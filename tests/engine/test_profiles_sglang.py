"""Every engine profile against SGLang's own parser: no argument is misspelt or unknown to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from assay_operator.api.reserved import RESERVED_ARGUMENTS, reserved_argument
from assay_operator.inference.profiles import resolve, rows
from tests.engine.conftest import EngineEnv

SCRIPT = Path(__file__).with_name("sglang_parser.py")
LAUNCH = ["--model-path", "/models/x", "--host", "0.0.0.0", "--port", "30000"]
CONTROLS = {
    "an unknown flag": (["--no-such-flag"], "--no-such-flag"),
    "an abbreviated flag": (["--context-len", "8"], "--context-len"),
    "a choice that is none": (["--moe-runner-backend=marlyn"], "marlyn"),
    "a word for a number": (["--tp-size=two"], "two"),
    "sizes that do not divide": (["--tp-size=4", "--ep-size=3"], "do not divide"),
}


@dataclass(frozen=True)
class Answers:
    """What the parser said to each row and control, and the options that it knows."""

    rows: dict[tuple[str, str, str], str | None]
    controls: dict[str, str | None]
    options: dict[str, str]


@pytest.fixture(scope="module")
def answers(engine_env: EngineEnv) -> Answers:
    lines = [[*LAUNCH, *resolve(*row, None).args] for row in rows()]
    lines += [[*LAUNCH, *extra] for extra, _ in CONTROLS.values()]
    run = engine_env.run([SCRIPT], stdin=json.dumps({"lines": lines}))
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout[run.stdout.index('{"refusals"') :])
    count = len(rows())
    return Answers(
        dict(zip(rows(), answer["refusals"][:count], strict=True)),
        dict(zip(CONTROLS, answer["refusals"][count:], strict=True)),
        answer["options"],
    )


@pytest.mark.parametrize("row", rows(), ids="/".join)
def test_sglang_accepts_the_row(row: tuple[str, str, str], answers: Answers) -> None:
    assert answers.rows[row] is None


@pytest.mark.parametrize("control", CONTROLS)
def test_sglang_refuses_the_control(control: str, answers: Answers) -> None:
    """What makes the test above worth something: the same parser does refuse."""
    assert CONTROLS[control][1] in (answers.controls[control] or "")


def test_every_reserved_argument_exists(answers: Answers) -> None:
    assert [flag for flag in RESERVED_ARGUMENTS if flag not in answers.options] == []


def test_all_spellings_of_a_reserved_argument_are_reserved(answers: Answers) -> None:
    reserved = {answers.options[flag] for flag in RESERVED_ARGUMENTS}
    spellings = {flag for flag, dest in answers.options.items() if dest in reserved}
    assert spellings == set(RESERVED_ARGUMENTS)


def test_no_other_argument_is_refused_by_mistake(answers: Answers) -> None:
    others = set(answers.options) - set(RESERVED_ARGUMENTS)
    assert {flag: reserved_argument(flag) for flag in others if reserved_argument(flag)} == {}
