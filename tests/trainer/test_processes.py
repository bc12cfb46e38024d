"""Two processes train as one does, and one that fails ends both with its reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_trainer.processes import World, joined

ROOT = Path(__file__).parents[2]
SUMS = ("tokens/passed", "seconds/train")
"""What differs between one process and two."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    found = subprocess.run(
        [sys.executable, "-m", "tests.trainer.two", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return folder


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[n].float() - other[n].float()).abs().max()) for n in one)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(request: pytest.FixtureRequest, made: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(made / "same_as_one" / f"{request.param}.pt")
    return {"precision": request.param, **found}


def test_two_processes_end_with_the_weights_of_one(trained: dict[str, Any]) -> None:
    near = 1e-5 if trained["precision"] == "fp32" else 2e-2
    assert apart(trained["weights"], trained["alone"]) < near
    assert apart(trained["weights"], trained["before"]) > 1e-3


def test_the_metrics_are_those_of_the_whole_batch(trained: dict[str, Any]) -> None:
    near = 1e-4 if trained["precision"] == "fp32" else 0.2
    for told, wanted in zip(trained["told"], trained["wanted"], strict=False):
        assert told.keys() == wanted.keys()
        for name in told.keys() - set(SUMS):
            assert told[name] == pytest.approx(wanted[name], rel=near, abs=near), name


def test_the_state_is_whole_and_has_the_names_that_one_process_gives(
    trained: dict[str, Any],
) -> None:
    mine, its = trained["state"], trained["alone state"]
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in its.items()}


def test_processes_that_go_on_from_a_state_end_with_the_same_bytes(trained: dict[str, Any]) -> None:
    ended, resumed = trained["ended"], trained["resumed"]
    assert ended.keys() == resumed.keys()
    assert all(torch.equal(ended[name], resumed[name]) for name in ended)


def test_a_process_that_fails_ends_the_others_with_its_reason(made: Path) -> None:
    reason = (made / "one_fails" / "reason").read_text()
    assert reason == "process 1 of 2: the GPU fell off the bus"


def test_what_all_find_is_told_as_it_is(made: Path) -> None:
    for rank in (0, 1):
        assert "step 1: the loss is nan" in (made / "all_fail" / f"reason{rank}").read_text()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"), None)
