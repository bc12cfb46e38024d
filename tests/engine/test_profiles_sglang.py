"""Every engine profile against SGLang itself, as far as a launch goes without weights and GPU.

SGLang parses each row's arguments, and resolves them against a config.json of the row's family
(model_configs.json: the published architectures, with fewer and narrower layers).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from assay_operator.api.reserved import RESERVED_ARGUMENTS, reserved_argument
from assay_operator.inference.profiles import UnsupportedProfile, resolve, rows
from tests.engine.conftest import EngineEnv

SCRIPT = Path(__file__).with_name("sglang_parser.py")
CONFIGS = Path(__file__).with_name("model_configs.json")
MODEL_OF = {
    "auto": "qwen3",
    "deepseek-v4-flash": "deepseek-v4",
    "deepseek-v4-pro": "deepseek-v4",
}
DETERMINISTIC = "--enable-deterministic-inference"
# The one answer that these rows get on a machine without a GPU: everything before was right.
NEEDS_GPU = {"--moe-a2a-backend=megamoe": "megamoe needs a CUDA SM90 GPU"}
CONTROLS = {
    "an unknown flag": (["--no-such-flag"], "--no-such-flag"),
    "an abbreviated flag": (["--context-len", "8"], "--context-len"),
    "a choice that is none": (["--moe-runner-backend=marlyn"], "marlyn"),
    "a word for a number": (["--tp-size=two"], "two"),
    "sizes that do not divide": (["--tp-size=4", "--attn-dp-size=3"], "AssertionError"),
}


@dataclass(frozen=True)
class Answers:
    """What the parser said to each row, alone and in the deterministic mode, and to each control;
    and the options that it knows."""

    rows: dict[tuple[str, str, str], str | None]
    deterministic: dict[tuple[str, str, str], str | None]
    controls: dict[str, str | None]
    options: dict[str, str]


@pytest.fixture(scope="module")
def answers(engine_env: EngineEnv, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    models = tmp_path_factory.mktemp("models")
    for name, config in json.loads(CONFIGS.read_text()).items():
        (models / name).mkdir()
        (models / name / "config.json").write_text(json.dumps(config))
    lines = [
        ["--model-path", str(models / MODEL_OF.get(row[0], row[0])), *resolve(*row, None).args]
        for row in rows()
    ]
    lines += [[*line, DETERMINISTIC] for line in lines]
    plain = ["--model-path", str(models / "qwen3"), "--device=cuda"]
    lines += [[*plain, *extra] for extra, _ in CONTROLS.values()]
    # Rows for GPUs are not asked whether the CPU engine could run them.
    run = engine_env.run([SCRIPT], stdin=json.dumps({"lines": lines}), SGLANG_USE_CPU_ENGINE="0")
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout.splitlines()[-1])
    count, refusals = len(rows()), answer["refusals"]
    return Answers(
        dict(zip(rows(), refusals[:count], strict=True)),
        dict(zip(rows(), refusals[count : 2 * count], strict=True)),
        dict(zip(CONTROLS, refusals[2 * count :], strict=True)),
        answer["options"],
    )


@pytest.mark.parametrize("row", rows(), ids="/".join)
def test_sglang_accepts_the_row(row: tuple[str, str, str], answers: Answers) -> None:
    expected = [NEEDS_GPU[arg] for arg in resolve(*row, None).args if arg in NEEDS_GPU]
    answer = answers.rows[row]
    assert (expected[0] in (answer or "")) if expected else (answer is None), answer


@pytest.mark.parametrize("row", rows(), ids="/".join)
def test_the_deterministic_mode_is_offered_where_sglang_has_it(
    row: tuple[str, str, str], answers: Answers
) -> None:
    answer = answers.deterministic[row]
    try:
        assert DETERMINISTIC in resolve(*row, None, deterministic=True).args
    except UnsupportedProfile:
        needs_gpu = any(words in (answer or "") for words in NEEDS_GPU.values())
        assert needs_gpu or "supported for deterministic inference" in (answer or "")
    else:
        assert answer is None, answer


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
