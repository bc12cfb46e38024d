"""Checkpoints that cannot be written: the reason is told, nothing is left, earlier ones stay."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.storage import CheckpointError
from tests.trainer.runs import assert_is_whole, model, opened, save, steps


@pytest.mark.parametrize(
    "wrong", [{"evaluation": {"score": float("nan")}}, {"state": {"loss": float("inf")}}]
)
def test_what_json_cannot_say_is_refused_before_anything_is_written(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    def write(folder: Path) -> None:
        raise AssertionError("too late")

    arguments = {"step": 20, "tensors": {}, "state": {}, **wrong}
    with opened(tmp_path) as run, pytest.raises(ValueError, match="JSON compliant"):
        run.save(write, **arguments)


def fails(reason: BaseException) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        model(40)(folder)
        raise reason

    return write


@pytest.mark.parametrize("reason", [RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(1)])
def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, reason: BaseException) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        with pytest.raises(type(reason)):
            save(run, 40, write=fails(reason))
        assert steps(tmp_path) == ["step-000020"]
        save(run, 40)
        assert_is_whole(run.newest(), 40)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room there, or lower checkpoint.keep"),
        (errno.EROFS, "writable for user"),
        (errno.EIO, "see to the storage that"),
    ],
)
def test_storage_that_fails_is_told_with_what_to_do(
    tmp_path: Path, number: int, remedy: str
) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        with pytest.raises(CheckpointError) as caught:
            save(run, 40, write=fails(OSError(number, os.strerror(number))))
        assert steps(tmp_path) == ["step-000020"]
    message = "step 40 could not be saved; earlier checkpoints are untouched: "
    assert str(caught.value).startswith(message + os.strerror(number))
    assert remedy in str(caught.value)


def test_storage_that_fails_when_it_is_asked_to_be_durable_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network storage says only then that it is full."""
    with opened(tmp_path) as run:
        save(run, 20)
        for which in itertools.count():
            calls = itertools.count()

            def fsync(handle: int, calls: Iterator[int] = calls, which: int = which) -> None:
                if next(calls) == which:
                    raise OSError(errno.EDQUOT, "quota")

            monkeypatch.setattr(os, "fsync", fsync)
            try:
                save(run, 40)
            except CheckpointError as reason:
                assert "quota" in str(reason).lower()
                if steps(tmp_path) != ["step-000020"]:
                    break  # It had its name already, and is whole; only the name may be lost.
        assert which > 10
        assert_is_whole(run.newest(), 40)


def test_a_model_that_is_not_of_plain_files_is_no_checkpoint(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        model(20)(folder)
        (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere")

    with opened(tmp_path) as run:
        with pytest.raises(CheckpointError, match=r"tokenizer\.json is no plain file"):
            save(run, 20, write=write)
        assert steps(tmp_path) == []


def test_the_same_step_is_not_saved_twice_over_itself(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        save(run, 20)
        with pytest.raises(CheckpointError, match="is there already"):
            save(run, 20)
