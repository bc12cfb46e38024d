"""`assay-train run`: what it leaves, what it says and with which exit code, and two processes."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from assay_trainer.batch import Batch
from assay_trainer.checkpoint import Checkpoints
from assay_trainer.learner import Learner
from tests.trainer.trained import (
    STEPS,
    Trainers,
    checkpoints,
    record,
    recorded,
    run,
    steps_told,
    write_job,
    write_model,
)

LONGER = {"trainer__steps": 14, "trainer__decay": "constant", "rollout__maxStaleness": 0}
"""Than what was recorded."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("batches"))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_trains_to_the_last_step_and_leaves_checkpoints_metrics_and_a_picture(
    batches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    job = write_job(tmp_path, write_model(tmp_path / "model", kind))
    assert run(job, batches) == 0
    assert [path.name for path in checkpoints(job)] == ["step-000012", "step-000010", "step-000008"]
    assert [line["step"] for line in steps_told(job)] == list(range(1, STEPS + 1))
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "begins with " in told and "step 12 of 12  finished" in told


def test_a_batch_that_was_not_recorded_is_named(
    model: Path, batches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, model, trainer__steps=14)
    assert run(job, batches) == 1
    told = capsys.readouterr().err
    assert told.endswith(
        f"assay-train: {batches}/step-000013.safetensors: was not recorded: there are "
        "step-000001.safetensors to step-000012.safetensors\n"
    )
    assert checkpoints(job)[0].name == "step-000010"


def test_a_folder_without_batches_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, model)
    assert run(job, tmp_path / "nothing") == 1
    assert "nothing: holds no recorded batch" in capsys.readouterr().err


def test_a_model_without_weights_is_named(
    model: Path, batches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    assert run(write_job(tmp_path, tmp_path / "model"), batches) == 1
    told = capsys.readouterr().err
    assert "assay-train: " in told and str(tmp_path / "model") in told


def test_a_folder_that_another_trainer_works_in_is_left_alone(
    model: Path, batches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, model)
    with Checkpoints(tmp_path / "run", 3, job=""):
        assert run(job, batches) == 1
    assert "another trainer works in" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_run_and_the_last_checkpoint_stays(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def poisoned(step: int) -> Batch:
        batch = recorded(step)
        if step < 5:
            return batch
        first, *others = batch.samples
        log_probs = (float("nan"),) * len(first.completion.ids)
        completion = replace(first.completion, log_probs=log_probs)
        return replace(batch, samples=(replace(first, completion=completion), *others))

    job = write_job(tmp_path, model)
    assert run(job, record(tmp_path / "batches", batch=poisoned)) == 1
    assert "assay-train: step 5: the loss is nan" in capsys.readouterr().err
    assert checkpoints(job)[0].name == "step-000004"


def test_an_alarm_that_stops_the_run_gives_exit_code_3_and_the_remedy(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = record(tmp_path / "batches", 25, lambda step: recorded(step, same=4))
    job = write_job(tmp_path, model, trainer__steps=25)
    assert run(job, same) == 3
    told = capsys.readouterr().err
    assert "assay-train: stopped: for 20 steps the reward was the same" in told
    assert "Take easier items" in told
    assert steps_told(job)[-1]["step"] == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_its_exit_code_and_the_same_command_goes_on(
    model: Path,
    batches: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    job = write_job(tmp_path, model)
    learn = Learner.learn

    def signalled(self: Learner, batch: Batch) -> dict[str, float]:
        if batch.step == 3:
            os.kill(os.getpid(), number)
        return learn(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "learn", signalled)
        assert run(job, batches) == code
    told = capsys.readouterr()
    assert "ended by a signal; the same command goes on" in told.out
    assert told.err.endswith(f"assay-train: {signal.Signals(number).name}\n")
    assert checkpoints(job)[0].name == "step-000003"
    assert run(job, batches) == 0
    assert "goes on after step 3" in capsys.readouterr().out
    assert [line["step"] for line in steps_told(job)] == list(range(1, STEPS + 1))


def test_another_job_in_the_same_folder_is_told_of(
    model: Path, batches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_job(tmp_path, model, trainer__steps=4), batches) == 0
    assert "another one" not in capsys.readouterr().out
    assert run(write_job(tmp_path, model, trainer__steps=6), batches) == 0
    assert "the job file is another one than this checkpoint's" in capsys.readouterr().out


@dataclass(frozen=True)
class Pair:
    """A run of two processes, as torchrun starts them, that fails in step 13."""

    job: Path
    codes: list[int]
    told: list[str]


@pytest.fixture(scope="module")
def pair(
    model: Path, batches: Path, trainers: Trainers, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    job = write_job(folder, model, **LONGER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    logs = [folder / f"log-{rank}" for rank in (0, 1)]
    processes = [
        trainers.start(
            *(job, batches, log),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank, log in enumerate(logs)
    ]
    codes = [trainers.ended(process) for process in processes]
    return Pair(job, codes, [log.read_text() for log in logs])


def test_two_processes_have_the_weights_of_one(
    model: Path, batches: Path, tmp_path: Path, pair: Pair
) -> None:
    alone = write_job(tmp_path, model, **LONGER)
    assert run(alone, batches) == 1
    newest = [checkpoints(job)[0] for job in (alone, pair.job)]
    assert [path.name for path in newest] == ["step-000012"] * 2
    one, two = (load_file(path / "model.safetensors") for path in newest)
    base = load_file(model / "model.safetensors")
    assert apart(one, two) < 1e-5
    assert apart(one, base) > 1e-2
    assert [line["step"] for line in steps_told(pair.job)] == list(range(1, STEPS + 1))


def test_what_fails_in_the_process_that_drives_ends_the_other_one_too(pair: Pair) -> None:
    assert pair.codes == [1, 0]
    assert "assay-train: " in pair.told[0]
    assert "step-000013.safetensors: was not recorded" in pair.told[0]
    assert not [told for told in pair.told if "Traceback" in told]


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
