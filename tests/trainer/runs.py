"""Runs with small checkpoints, and processes that are ended at a moment of a test's choice."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file

from assay_trainer import checkpoint, storage
from assay_trainer.checkpoint import Checkpoints, Loaded, Saved
from assay_trainer.manifest import fingerprint
from assay_verifiers import answers

JOB = fingerprint({"seed": 7})
WRITERS = {module.__file__ for module in (checkpoint, storage, answers, shutil)}
"""Where the code stands that changes anything on disk."""


def opened(folder: Path, keep: int = 3, **more: Any) -> Checkpoints:
    """A run."""
    return Checkpoints(folder, keep, job=JOB, **more)


def model(step: int, floats: int = 300) -> Callable[[Path], None]:
    """Writes a model that tells by its weights after which step it was."""

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"hidden_size": floats}))
        save_file({"weight": torch.full((floats,), float(step))}, folder / "model.safetensors")

    return write


def save(checkpoints: Checkpoints, step: int, score: float | None = None, **more: Any) -> Saved:
    """A checkpoint whose every part tells the step; one with a score is verified."""
    return checkpoints.save(
        more.pop("write", model(step)),
        step=step,
        tensors=more.pop("tensors", {"masters": torch.full((500,), float(step))}),
        state={"position": step * 64},
        buffer=lambda path: save_file({"ids": torch.tensor([step])}, path),
        evaluation=None if score is None else {"score": score},
        verified=score is not None,
        **more,
    )


def steps(folder: Path) -> list[str]:
    """What stands under the run's checkpoints, hidden things too."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_is_whole(loaded: Loaded | None, step: int) -> None:
    """Whether all parts are there and are those of the step."""
    assert loaded is not None
    assert loaded.manifest.step == step
    assert loaded.tensors()["masters"].tolist() == [float(step)] * 500
    assert loaded.state() == {"position": step * 64}
    assert loaded.buffer is not None


def fork(work: Callable[[], object]) -> int:
    """Starts a process that does the work and ends, with 0 if it went well. Returns its id."""
    child = os.fork()
    if not child:
        _work_and_end(work)
    return child


def _work_and_end(work: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Waits for a process: its exit code, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def traced(work: Callable[[], object], before: Callable[[int], object]) -> None:
    """Works, and calls `before` with a number, from 1, before each line of the code that writes."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in WRITERS:
            return None
        if event == "line":
            lines += 1
            before(lines)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def what_is_on_disk(folder: Path) -> list[tuple[str, int, int]]:
    """Every file and folder under a folder, and when it changed."""
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
