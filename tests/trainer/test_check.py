"""`assay-train check`: a job is looked at before anything runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.cli import main
from tests.trainer.jobs import write, write_items, write_model

MATH: dict[str, Any] = {"verifier": {"type": "math"}}
HELD: dict[str, Any] = {"evaluation.suite": "held.jsonl"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Everything that the shortest job names, and a held-out suite."""
    write_model(tmp_path / "model")
    write_items(tmp_path / "items.jsonl", *(f"{i} + 1?" for i in range(64)), **MATH)
    write_items(tmp_path / "held.jsonl", "2 + 2?", "3 + 1?!", **MATH)
    return tmp_path


def checked(
    capsys: pytest.CaptureFixture[str], folder: Path, changes: dict[str, Any]
) -> tuple[int, str, list[str], list[str]]:
    """Exit code, summary, warnings, and what is wrong."""
    path = write(folder, changes)
    code = main(["check", str(path)])
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    doubts = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
    wrong = [line.removeprefix(f"{path}: ") for line in shown.err.splitlines()]
    return code, shown.out, doubts, wrong


def test_a_job_that_can_run_says_what_will_happen_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    code, summary, doubts, wrong = checked(
        capsys, folder, {**HELD, "evaluation.samples": 4, "trainer.promptsPerStep": 32}
    )
    assert (code, doubts, wrong) == (0, [], [])
    for said in (
        "32 prompts x 16 completions = 512 samples of up to 512 tokens",
        "100 steps, 1 update each, rate 1e-06, at most 78,643,200 tokens in all",
        "grpo; loss clip, ratio in [0.8, 1.28], every token alike",
        "64 items of items",
        "2 items of held",
        "greedily and 4 samples an item",
        "the verifier that each item names",
    ):
        assert said in summary
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "job.json"])


def test_a_wrong_job_file_ends_with_2_and_nothing_else_is_looked_at(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, summary, _, wrong = checked(capsys, folder, {"trainer.steps": -1})
    assert code == 2 and not summary
    assert wrong == ["trainer.steps: Input should be greater than or equal to 1"]


def test_everything_that_is_missing_here_is_told_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run").touch()
    code, _, _, wrong = checked(capsys, tmp_path, HELD)
    assert code == 1
    assert wrong == [
        f"model.path: {tmp_path}/model is not a folder",
        f"data.source: [Errno 2] No such file or directory: '{tmp_path}/items.jsonl'",
        f"evaluation.suite: [Errno 2] No such file or directory: '{tmp_path}/held.jsonl'",
        f"checkpoint.directory: {tmp_path}/run is not a folder",
    ]


def test_a_model_folder_without_its_parts_is_told_part_by_part(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    model = folder / "model"
    (model / "tokenizer_config.json").unlink()
    _, _, _, wrong = checked(capsys, folder, HELD)
    assert wrong == [
        f"model.path: the tokenizer in {model} has no chat template: add one, or set "
        "data.chatTemplate to false"
    ]
    assert checked(capsys, folder, {**HELD, "data.chatTemplate": False})[0] == 0
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert checked(capsys, folder, HELD)[0] == 0
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).unlink()
    _, _, _, wrong = checked(capsys, folder, HELD)
    assert [line.split(" ")[-1] for line in wrong] == ["*.safetensors", "vocab.json)", "JSON"]


def test_a_sequence_longer_than_the_models_context_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "model" / "config.json").write_text('{"max_position_embeddings": 1024}')
    code, _, _, wrong = checked(capsys, folder, HELD)
    assert code == 1 and len(wrong) == 1
    assert wrong[0].startswith("model.path: the model's context is 1024 tokens")
    assert "make 1536" in wrong[0]
    short = {**HELD, "data.maxPromptTokens": 512}
    assert checked(capsys, folder, short)[0] == 0
    assert checked(capsys, folder, {**short, "model.contextLength": 2048})[3] == [
        "model.contextLength: 2048, but the model's context is 1024 tokens"
    ]


def test_wrong_items_are_told_by_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with (folder / "items.jsonl").open("a") as file:
        file.write('{"id": "x", "prompt": "a", "verifier": {"type": "math", "timeout": 0}}\n{\n')
    (folder / "held.jsonl").write_text("")
    code, _, _, wrong = checked(capsys, folder, HELD)
    assert code == 1
    assert wrong[0] == "data.source: line 65: verifier.timeout: Input should be greater than 0"
    assert wrong[1].startswith("data.source: line 66: not JSON")
    assert wrong[2] == "evaluation.suite: the suite is empty"


def test_items_need_no_verifier_where_the_job_has_one(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_items(folder / "items.jsonl", *(f"{i}" for i in range(64)))
    code, _, _, wrong = checked(capsys, folder, HELD)
    assert code == 1 and wrong[0] == "data.source: line 1: verifier: Field required"
    assert checked(capsys, folder, {**HELD, "verifiers": [{"type": "math"}]})[0] == 0


def test_a_split_that_does_not_exist_is_told_with_those_that_do(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    _, _, _, wrong = checked(capsys, folder, {**HELD, "data.split": "train"})
    assert wrong == ["data.source: no item is in split 'train': there are (none)"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("reasoning-gym://no_such_task", "not registered"),
        ("reasoning-gym://number_sorting?colour=red", "colour"),
        ("reasoning-gym://number_sorting?min_numbers=-1", "min_numbers"),
    ],
)
def test_a_generator_is_tried(
    capsys: pytest.CaptureFixture[str], folder: Path, source: str, said: str
) -> None:
    code, _, _, wrong = checked(capsys, folder, {**HELD, "data.source": source})
    assert code == 1 and len(wrong) == 1
    assert (
        wrong[0].startswith(f"data.source: {source}: reasoning-gym refuses it") and said in wrong[0]
    )


def test_a_generator_that_works_is_shown_with_its_parameters(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    made = {
        "data.source": "reasoning-gym://number_sorting?seed=7",
        "evaluation.suite": "reasoning-gym://number_sorting?seed=8",
    }
    code, summary, doubts, _ = checked(capsys, folder, made)
    assert (code, doubts) == (0, [])
    assert "made by reasoning-gym: number_sorting (seed=7)" in summary


def test_a_verifier_that_cannot_work_here_is_told(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    broken = [{"type": "regex", "pattern": "(", "name": "form"}]
    code, _, _, wrong = checked(capsys, folder, {**HELD, "verifiers": broken})
    assert code == 1 and wrong[0].startswith("verifiers: regex: ")


JUDGE = {"type": "http", "url": "http://judge/"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**HELD, "verifiers": [JUDGE]}, "verifiers: all are soft"),
        ({}, "evaluation: there is none"),
        (
            {**HELD, "algorithm.importanceCorrection": "none"},
            "algorithm.importanceCorrection: none",
        ),
        ({**HELD, "algorithm.kl": {"coef": 0.1, "estimator": "k1"}}, "algorithm.kl.estimator"),
        ({**HELD, "algorithm.clip": [0.2, 0.2]}, "algorithm.clip: has no effect"),
        ({**HELD, "trainer.promptsPerStep": 65}, "data.source: 64 items are fewer"),
        ({"evaluation.suite": "items.jsonl"}, "evaluation.suite: 64 of its items are trained on"),
        (
            {
                "data.source": "reasoning-gym://number_sorting",
                "evaluation.suite": "reasoning-gym://number_sorting?size=9",
            },
            "evaluation.suite: it makes the items of data.source",
        ),
    ],
)
def test_what_is_seldom_meant_is_a_warning_and_no_error(
    capsys: pytest.CaptureFixture[str], folder: Path, changes: dict[str, Any], said: str
) -> None:
    code, _, doubts, wrong = checked(capsys, folder, changes)
    assert (code, wrong) == (0, [])
    assert len(doubts) == 1 and doubts[0].startswith(said)


def test_one_verifier_that_proves_is_enough_for_no_warning(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    both = {**HELD, "verifiers": [JUDGE, {"type": "math"}]}
    assert checked(capsys, folder, both)[2] == []


def test_held_out_items_that_are_trained_on_are_a_warning(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_items(folder / "held.jsonl", "2 + 2?", " 5 +  1?", **MATH)
    code, _, doubts, _ = checked(capsys, folder, HELD)
    assert code == 0
    assert doubts == [
        "evaluation.suite: 1 of its items are trained on too, such as held-1: the score will be "
        "too good"
    ]


def test_items_that_only_opinions_judge_are_a_warning(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_items(folder / "items.jsonl", *(f"{i}" for i in range(64)), verifier=JUDGE)
    assert checked(capsys, folder, HELD)[2] == [
        "data.source: all items are judged by soft verifiers (an opinion)"
    ]


def test_messages_cannot_do_without_a_chat_template(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    item = {"id": "a", "messages": [{"role": "user", "content": "Hi"}], **MATH}
    (folder / "items.jsonl").write_text(json.dumps(item))
    changes = {**HELD, "data.chatTemplate": False, "trainer.promptsPerStep": 1}
    assert checked(capsys, folder, changes)[3] == [
        "data.chatTemplate: false, but items have messages, which need it"
    ]


def test_the_command_says_what_there_is(folder: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "assay_trainer", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    assert "check" in command("--help").stdout
    assert command().returncode == 2
    done = command("check", str(write(folder, HELD)))
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_it_without_a_traceback(folder: Path) -> None:
    """A named pipe as suite: who opens it waits for what is never written."""
    (folder / "items.jsonl").unlink()
    os.mkfifo(folder / "items.jsonl")
    command = [sys.executable, "-m", "assay_trainer", "check", str(write(folder, HELD))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with (folder / "items.jsonl").open("wb"):  # returns when the other side reads
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (130, "assay-train: SIGINT\n")
    finally:
        process.kill()
        process.wait()


def test_a_token_that_is_not_in_the_environment_is_told(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {**HELD, "rollout.tokenEnv": "ENGINE_TOKEN"}
    said = "rollout.tokenEnv: the environment variable ENGINE_TOKEN is not set"
    code, _, _, wrong = checked(capsys, folder, wanted)
    assert (code, wrong) == (1, [said])
    monkeypatch.setenv("ENGINE_TOKEN", "s3cret")
    assert checked(capsys, folder, wanted)[0] == 0
