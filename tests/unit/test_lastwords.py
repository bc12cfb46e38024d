"""What a run leaves at its end: whether it is done, with which checkpoint, or why it is not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from assay_operator.training.progress import farewell
from assay_trainer import check, cli
from assay_trainer.lastwords import words
from assay_trainer.manifest import NAME, decode
from assay_verifiers.interrupts import Interrupted
from tests.trainer.jobs import write
from tests.unit.folders import write_checkpoint


class Run:
    """A job of 20 steps whose training is not done, but ends as it is told to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "termination-log"
        self.job = write(folder, {"trainer.steps": 20})
        self.folder = folder / "run" / "checkpoints"
        self._patch = monkeypatch
        monkeypatch.setenv("ASSAY_TERMINATION_LOG", str(self.log))
        monkeypatch.setattr(check, "here", lambda job: ([], [], []))

    def ends(self, *how: Any) -> int:
        def trained(*_: Any) -> Any:
            if isinstance(how[0], BaseException):
                raise how[0]
            return how

        self._patch.setattr(cli, "_trained", trained)
        return cli.main(["run", str(self.job)])

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.log.read_bytes())
        return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def test_a_run_that_is_done_names_its_last_checkpoint(run: Run) -> None:
    path = write_checkpoint(run.folder / "step-000020")
    manifest = decode((path / NAME).read_bytes())
    assert run.ends(0, "") == 0
    told = run.told
    assert {**told, "checkpoints": [entry["path"] for entry in told["checkpoints"]]} == {
        "finished": True,
        "step": 20,
        "of": 20,
        "version": "1.20",
        "digest": manifest.digest,
        "code": 0,
        "message": "",
        "checkpoints": [str(path)],
    }


def test_a_run_without_its_last_checkpoint_is_not_done_whatever_its_exit_code_is(run: Run) -> None:
    run.job = write(run.log.parent, {"trainer.steps": 40})
    write_checkpoint(run.folder / "step-000020")
    assert run.ends(0, "") == 0
    assert (run.told["finished"], run.told["step"], run.told["of"]) == (False, 20, 40)


def test_a_run_that_kept_nothing_says_so(run: Run) -> None:
    assert run.ends(1, "the loss is nan") == 1
    assert run.told == {
        "finished": False,
        "step": 0,
        "of": 20,
        "version": None,
        "digest": None,
        "code": 1,
        "message": "the loss is nan",
        "checkpoints": [],
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_asked_to_end_is_not_done(run: Run, number: int) -> None:
    assert run.ends(Interrupted(number)) == 128 + number
    assert (run.told["finished"], run.told["code"]) == (False, 128 + number)
    assert "the same command goes on" in run.told["message"]


def test_a_defect_is_told_too(run: Run) -> None:
    with pytest.raises(KeyError):
        run.ends(KeyError("weights"))
    assert (run.told["code"], run.told["message"]) == (1, "KeyError: 'weights'")


def test_a_wrong_job_file_and_a_missing_model_are_told(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "here", lambda job: ([], [], ["model.path: it is missing"]))
    assert run.ends(0, "") == 1
    assert run.told["message"] == "model.path: it is missing"
    run.job.write_text("{}")
    assert run.ends(0, "") == 2
    assert (run.told["of"], run.told["code"]) == (None, 2)
    assert "Field required" in run.told["message"]


def test_of_several_processes_one_speaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run.ends(0, "") == 0
    assert not run.log.exists()


def test_nothing_is_written_where_nobody_asks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_TERMINATION_LOG")
    before = sorted(run.log.parent.iterdir())
    assert run.ends(0, "") == 0
    assert sorted(run.log.parent.iterdir()) == before


def test_who_cannot_be_told_changes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASSAY_TERMINATION_LOG", str(run.log.parent / "none" / "log"))
    assert run.ends(0, "") == 0
    assert "no last words: No such file or directory" in capsys.readouterr().err


def test_what_stood_there_before_is_gone(run: Run) -> None:
    run.log.write_text("x" * 9000)
    run.ends(0, "")
    assert run.told["of"] == 20


@pytest.mark.parametrize(
    "letter", ["a", '"', "\x01", "\U0001f4a9", "\ud800"], ids=["a", "quote", "1", "pile", "half"]
)
@pytest.mark.parametrize("count", [0, 3, 200])
def test_the_last_words_fit_and_leave_out_the_oldest_first(letter: str, count: int) -> None:
    kept = [
        {"step": step, "path": letter * 200, "digest": "a" * 64, "version": f"1.{step}"}
        for step in range(count, 0, -1)
    ]
    content = words(kept, count, 1, letter * 100_000)
    assert len(content) < 4096
    told = json.loads(content)
    assert [entry["step"] for entry in told["checkpoints"]] == [
        entry["step"] for entry in kept[: len(told["checkpoints"])]
    ]
    assert told["step"] == count and told["message"].startswith("...")


def test_the_operator_understands_them(run: Run) -> None:
    write_checkpoint(run.folder / "step-000020")
    run.ends(0, "")
    heard = farewell(run.log.read_text())
    assert heard is not None and heard.finished
    assert (heard.step, heard.digest) == (20, run.told["digest"])
    assert [saved.version for saved in heard.checkpoints] == ["1.20"]
    run.ends(1, "the disk is full")
    heard = farewell(run.log.read_text())
    assert heard is not None
    assert (heard.finished, heard.code, heard.message) == (False, 1, "the disk is full")
