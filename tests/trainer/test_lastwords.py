"""A real run's last words: what tests/unit says of them, with a trainer that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.inspection import inspect
from assay_trainer.inventory import manifest_of
from tests.trainer.trained import STEPS, checkpoints, record, run, write_job, write_model


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    monkeypatch.setenv("ASSAY_TERMINATION_LOG", str(path))
    return path


def told(log: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log.read_bytes())
    return found


def test_a_run_says_with_which_checkpoint_it_is_done_and_that_one_can_be_served_in_place(
    tmp_path: Path, log: Path
) -> None:
    model = write_model(tmp_path / "model")
    job = write_job(tmp_path, model)
    batches = record(tmp_path / "batches")
    assert run(job, batches) == 0
    newest = checkpoints(job)[0]
    manifest = manifest_of(newest)
    last = told(log)
    assert (last["finished"], last["step"], last["of"]) == (True, STEPS, STEPS)
    assert (last["version"], last["digest"]) == (manifest.version, manifest.digest)
    assert [entry["step"] for entry in last["checkpoints"]] == [12, 10, 8]
    found = inspect(newest, digest=f"sha256:{manifest.digest}", like=model)
    assert (found.problems, found.reasons) == ((), ())


def test_a_run_that_cannot_go_on_says_why_and_how_far_it_came(tmp_path: Path, log: Path) -> None:
    job = write_job(tmp_path, write_model(tmp_path / "model"), trainer__steps=14)
    assert run(job, record(tmp_path / "batches", 5)) == 1
    last = told(log)
    assert (last["finished"], last["step"], last["of"], last["code"]) == (False, 4, 14, 1)
    assert "step-000006.safetensors: was not recorded" in last["message"]
