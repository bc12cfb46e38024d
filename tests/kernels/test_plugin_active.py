"""The record of active kernels: what readiness is told, and what the processes write for it."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from assay_kernels.integrations import active
from assay_kernels.integrations.active import Engine, OpRecord, ProcessRecord
from assay_kernels.integrations.sglang_plugin import place_of_caller, shared_folder, wanted

ENGINE = Engine(plugin="0.1.0", sglang="0.5.23", kernels="fused", schedulers=1)
HTTP = ProcessRecord(1, "http", None, {})
RUNS = OpRecord(True, "", 7, {"tensors are on the CPU": 1})
FIRST = ProcessRecord(11, "scheduler", {"tp": 0, "pp": 0, "dp": 0}, {"sampler": RUNS})
SECOND = ProcessRecord(12, "scheduler", {"tp": 1, "pp": 0, "dp": 0}, {"sampler": RUNS})


def test_an_engine_whose_scheduler_has_every_op_is_active() -> None:
    assert active.report(ENGINE, [FIRST, HTTP]) == {
        "plugin": "0.1.0",
        "sglang": "0.5.23",
        "kernels": "fused",
        "hardened": True,
        "processes": [
            {"pid": 1, "role": "http", "rank": None, "ops": {}, "hardened": True},
            {
                "pid": 11,
                "role": "scheduler",
                "rank": {"tp": 0, "pp": 0, "dp": 0},
                "ops": {
                    "sampler": {
                        "installed": True,
                        "why_not": "",
                        "fused": 7,
                        "fallbacks": {"tensors are on the CPU": 1},
                    }
                },
                "hardened": True,
            },
        ],
        "active": True,
        "why_not": "",
    }


@pytest.mark.parametrize(
    ("engine", "processes", "why_not"),
    [
        (
            replace(ENGINE, kernels="stock"),
            [FIRST],
            "the engine was started with ASSAY_KERNELS=stock",
        ),
        (
            ENGINE,
            [HTTP],
            "0 of 1 scheduler processes have published what they installed",
        ),
        (
            replace(ENGINE, schedulers=2),
            [FIRST],
            "1 of 2 scheduler processes have published what they installed",
        ),
        (
            replace(ENGINE, schedulers=2),
            [FIRST, replace(SECOND, ops={"sampler": OpRecord(False, "SGLang 9 is unknown")})],
            "sampler is not installed in process 12: SGLang 9 is unknown",
        ),
        (
            replace(ENGINE, schedulers=2),
            [FIRST, replace(SECOND, ops={})],
            "process 12 has published no op",
        ),
    ],
)
def test_anything_less_is_not_active_and_says_why(
    engine: Engine, processes: list[ProcessRecord], why_not: str
) -> None:
    report = active.report(engine, processes)
    assert (report["active"], report["why_not"]) == (False, why_not)


def test_an_engine_is_hardened_where_all_its_processes_are() -> None:
    assert active.report(ENGINE, [FIRST, HTTP])["hardened"]
    assert not active.report(ENGINE, [FIRST, replace(HTTP, hardened=False)])["hardened"]
    assert not active.report(ENGINE, [replace(FIRST, hardened=False), HTTP])["hardened"]


def test_two_schedulers_of_two_are_active() -> None:
    assert active.report(replace(ENGINE, schedulers=2), [FIRST, SECOND])["active"]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    own = replace(FIRST, pid=os.getpid())
    active.write(tmp_path, own)
    active.write(tmp_path, replace(own, ops={}))
    active.write(tmp_path, own)
    assert active.read(tmp_path) == [own]


@pytest.fixture
def ended() -> int:
    """The id of a process that is no longer there."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_record_of_a_process_that_has_ended_does_not_count(tmp_path: Path, ended: int) -> None:
    active.write(tmp_path, replace(FIRST, pid=ended))
    assert active.read(tmp_path) == []


def test_an_engine_that_starts_deletes_records_of_ended_schedulers_and_no_other(
    tmp_path: Path, ended: int
) -> None:
    """Those of an engine that a container ran before; not of another one that has this folder."""
    for pid in (ended, os.getpid(), os.getppid()):
        active.write(tmp_path, replace(FIRST, pid=pid))
    active.forget_ended(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"scheduler-{os.getppid()}.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1, "ops": {"a": {"x": 1}}}'])
def test_what_is_no_record_does_not_count(tmp_path: Path, content: str) -> None:
    (tmp_path / "scheduler-1.json").write_text(content)
    assert active.read(tmp_path) == []


def test_a_record_that_changes_is_published_again(tmp_path: Path) -> None:
    first = replace(FIRST, pid=os.getpid())
    later = replace(first, ops={"sampler": replace(RUNS, fused=8)})
    last = active.publish(tmp_path, first, None)
    assert active.read(tmp_path) == [first]
    assert active.publish(tmp_path, later, last) == later
    assert active.read(tmp_path) == [later]


def test_a_record_that_somebody_deleted_is_published_again(tmp_path: Path) -> None:
    own = replace(FIRST, pid=os.getpid())
    last = active.publish(tmp_path, own, None)
    for path in tmp_path.iterdir():
        path.unlink()
    active.publish(tmp_path, own, last)
    assert active.read(tmp_path) == [own]


def test_a_record_that_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    own, folder = replace(FIRST, pid=os.getpid()), tmp_path / "later"
    last = active.publish(folder, own, None)
    folder.mkdir()
    active.publish(folder, own, last)
    assert active.read(folder) == [own]


def test_kernels_are_stock_unless_they_are_asked_for() -> None:
    assert wanted({}) == "stock"
    assert wanted({"ASSAY_KERNELS": "fused"}) == "fused"
    assert wanted({"ASSAY_KERNELS": "fuesd"}) == "stock"


def test_processes_of_one_engine_find_the_folder_that_the_first_of_them_made(
    tmp_path: Path,
) -> None:
    environment: dict[str, str] = {}
    first = shared_folder(environment)
    assert first.is_dir()
    assert shared_folder(environment) == first
    assert shared_folder({"ASSAY_KERNELS_DIR": str(tmp_path / "a/b")}) == tmp_path / "a/b"


def test_the_folder_goes_when_the_process_that_made_it_ends_and_not_with_one_forked_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[tuple[Any, ...]] = []
    monkeypatch.setattr(atexit, "register", lambda *call: ends.append(call))
    folder = shared_folder({})
    [(end, *arguments)] = ends
    child = os.fork()
    if child == 0:
        try:
            end(*arguments)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert folder.is_dir()
    end(*arguments)
    assert not folder.exists()


def run_scheduler_process(tp_rank: int, pp_rank: int, dp_rank: int | None) -> Any:
    """Called as SGLang's: its name and its ranks are what tells."""
    return place_of_caller()


def test_a_scheduler_is_told_by_the_function_that_it_begins_with() -> None:
    place = run_scheduler_process(1, 0, None)
    assert (place.role, place.rank) == ("scheduler", {"tp": 1, "pp": 0, "dp": 0})
    assert place_of_caller().role == "http"
