"""A killed run ends with the same bytes as one that was not, and damage is never hidden."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from assay_trainer.manifest import NAME
from tests.trainer.trained import (
    ROOT,
    STEPS,
    Trainers,
    checkpoints,
    contents,
    environment,
    record,
    run,
    steps_told,
    write_job,
    write_model,
)

KILLS = 8


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed."""

    model: Path
    batches: Path
    job: Path

    def job_in(self, folder: Path) -> Path:
        """The same job with a run of its own."""
        return write_job(folder, self.model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    made = Whole(
        write_model(folder / "model"),
        record(folder / "batches"),
        write_job(folder, folder / "model"),
    )
    assert run(made.job, made.batches) == 0
    return made


def kill_at_random(trainers: Trainers, whole: Whole, job: Path, source: random.Random) -> None:
    """Starts the run, and kills it somewhere in one of its next steps."""
    path = job.parent / "run" / "metrics.jsonl"
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    target, further = min(STEPS, before + source.randint(0, 2)), source.uniform(0, 0.2)
    process = trainers.start(job, whole.batches, job.parent / "log")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= target:
            break
        time.sleep(0.002)
    time.sleep(further)
    os.kill(process, signal.SIGKILL)
    assert trainers.ended(process) in (-signal.SIGKILL, 0)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    whole: Whole, trainers: Trainers, tmp_path: Path
) -> None:
    job, source = whole.job_in(tmp_path), random.Random(5)
    for _ in range(KILLS):
        kill_at_random(trainers, whole, job, source)
    ended = subprocess.run(
        [sys.executable, "-m", "assay_trainer", "run", job, "--replay", whole.batches],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert contents(checkpoints(job)[0]) == contents(checkpoints(whole.job)[0])
    assert steps_told(job) == steps_told(whole.job)
    assert [line["step"] for line in steps_told(job)] == list(range(1, STEPS + 1))
    attempts = int((job.parent / "run" / "attempt").read_text())
    assert 2 < attempts <= KILLS + 1


def test_a_sigterm_ends_with_143_and_a_checkpoint_from_which_the_end_is_the_same(
    whole: Whole, trainers: Trainers, tmp_path: Path
) -> None:
    job = whole.job_in(tmp_path)
    process = trainers.start(job, whole.batches, tmp_path / "log")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_bytes():
        time.sleep(0.002)
    os.kill(process, signal.SIGTERM)
    assert trainers.ended(process) == 143
    log = (tmp_path / "log").read_text()
    assert "assay-train: SIGTERM" in log and "the same command goes on" in log
    last = steps_told(job)[-1]["step"]
    assert last < STEPS and checkpoints(job)[0].name == f"step-{last:06.0f}"
    assert run(job, whole.batches) == 0
    assert contents(checkpoints(job)[0]) == contents(checkpoints(whole.job)[0])
    assert steps_told(job) == steps_told(whole.job)


def flip(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(checkpoint: Path) -> None:
    path = checkpoint / "trainer" / "state.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / NAME).unlink()


def garble_the_manifest(checkpoint: Path) -> None:
    (checkpoint / NAME).write_text("{")


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "trainer" / "state.json").unlink()


DAMAGES = pytest.mark.parametrize(
    "damage", [flip, cut, lose_the_manifest, garble_the_manifest, lose_a_file]
)


@DAMAGES
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    job = whole.job_in(tmp_path)
    shutil.copytree(whole.job.parent / "run", tmp_path / "run")
    newest, before = checkpoints(job)[:2]
    damage(newest)
    assert run(job, whole.batches) == 0
    told = capsys.readouterr().out
    assert f"{newest} is damaged and was passed over: " in told
    assert re.search(rf"goes on after step 10, from {re.escape(str(before))}", told)
    # The damaged one stays, for whoever wants to know what happened to it.
    (again,) = (tmp_path / "run" / "checkpoints").glob("step-000012.*")
    assert contents(again) == contents(checkpoints(whole.job)[0])
    assert steps_told(job) == steps_told(whole.job)


@DAMAGES
def test_where_no_checkpoint_is_whole_it_ends_and_never_begins_with_the_base_model(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    job = whole.job_in(tmp_path)
    shutil.copytree(whole.job.parent / "run", tmp_path / "run")
    there = checkpoints(job)
    for checkpoint in there:
        damage(checkpoint)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert run(job, whole.batches) == 1
    told = capsys.readouterr().err
    assert "is whole: repair or restore one; or, to begin again from the base model" in told
    assert all(str(checkpoint) in told for checkpoint in there)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == lines
    assert sorted(there) == sorted((tmp_path / "run" / "checkpoints").iterdir())


def test_a_run_that_has_ended_does_nothing_when_it_is_started_again(
    whole: Whole, tmp_path: Path
) -> None:
    job = whole.job_in(tmp_path)
    shutil.copytree(whole.job.parent / "run", tmp_path / "run")
    assert run(job, whole.batches) == 0
    assert [path.name for path in checkpoints(job)] == [
        path.name for path in checkpoints(whole.job)
    ]
    assert steps_told(job) == steps_told(whole.job)
