"""The plugin in SGLang's processes: forked as on a CPU, and where a part cannot be put in."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from assay_kernels.integrations import active, sglang_plugin, sglang_requests
from assay_kernels.integrations.gates import Calls, Installed, Patch, Signature
from assay_kernels.registry import Uses

APP = "sglang.srt.entrypoints.http_server"
MODULES = ("sglang", "sglang.srt", "sglang.srt.plugins", "sglang.srt.entrypoints", APP)


class Routes:
    """The program's routes."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], Any]] = {}

    def add_api_route(self, path: str, answer: Callable[[], Any], methods: list[str]) -> None:
        self.answers[path] = answer


def load_plugins() -> None:
    """SGLang's, as far as it matters here: once in a process, as it believes."""
    plugins: Any = sys.modules["sglang.srt.plugins"]
    if not plugins._plugins_loaded:
        plugins._plugins_loaded = True
        sglang_plugin.install()


def run_scheduler_process(tp_rank: int, pp_rank: int, dp_rank: int | None) -> None:
    """SGLang's, by the name that tells."""
    load_plugins()


def run_detokenizer_process() -> None:
    """SGLang's, by the name that tells."""
    load_plugins()


def nothing(why_not: str = "") -> Installed:
    """An op, or hooks, of which only the record matters here."""
    made = Installed((), Calls(), lambda: Uses(0, {}))
    made.refuse(why_not)
    return made


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routes:
    """A process of SGLang that has loaded the plugin, and serves HTTP."""
    routes = Routes()
    for name in MODULES:
        made: Any = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, made, raising=False)
    modules: Any = sys.modules
    modules["sglang.srt.plugins"]._plugins_loaded = False
    modules[APP].app, modules[APP]._global_state = routes, None
    monkeypatch.setenv("ASSAY_KERNELS_DIR", str(tmp_path))
    monkeypatch.setenv("ASSAY_KERNELS", "fused")
    monkeypatch.setattr(active, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(sglang_requests, "patches", list)
    monkeypatch.setattr(sglang_requests, "scheduler_patches", list)
    monkeypatch.setattr(sglang_plugin, "install_ops", lambda kernels: {"sampler": nothing()})
    load_plugins()
    return routes


def forked(run: Callable[[], None]) -> tuple[int, int]:
    """A process that begins with a function and then waits.

    Returns:
        its id, and where one byte has to be written so that it ends.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run()
            os.read(read, 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(read)
    return child, write


def told(folder: Path, count: int) -> list[active.ProcessRecord]:
    """What processes have published, once it is so many of them."""
    deadline = time.monotonic() + 60
    while len(found := active.read(folder)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@pytest.fixture
def children(program: Routes, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The process that runs the model and the one that makes text of tokens, forked from it."""
    made = (
        forked(lambda: run_scheduler_process(1, 0, None)),
        forked(run_detokenizer_process),
    )
    yield made[0][0], made[1][0]
    for child, end in made:
        os.write(end, b".")
        os.close(end)
        os.waitpid(child, 0)


def test_a_forked_scheduler_installs_the_ops_and_publishes_them_as_its_own(
    children: tuple[int, int], tmp_path: Path
) -> None:
    [record] = told(tmp_path, 1)
    assert (record.pid, record.role) == (children[0], "scheduler")
    assert record.rank == {"tp": 1, "pp": 0, "dp": 0}
    assert record.ops["sampler"].installed and record.hardened


def test_the_process_that_serves_answers_for_itself_and_for_them(
    children: tuple[int, int], program: Routes, tmp_path: Path
) -> None:
    told(tmp_path, 1)
    answer = asyncio.run(program.answers["/assay/kernels"]())
    assert answer["active"] and answer["hardened"]
    assert {each["pid"]: each["role"] for each in answer["processes"]} == {
        os.getpid(): "http",
        children[0]: "scheduler",
    }


def fails(*_: Any) -> None:
    raise RuntimeError("the registry is broken")


@pytest.fixture
def scheduler(
    program: Routes, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], active.ProcessRecord]:
    """Installs the plugin as in the process that runs the model, and says what that publishes."""
    published: list[Callable[[], active.ProcessRecord]] = []
    monkeypatch.setattr(active, "keep_writing", lambda _, record: published.append(record))

    def install() -> active.ProcessRecord:
        place = sglang_plugin.Place("scheduler", None)
        sglang_plugin.install_in_scheduler(place, Path(), "fused")
        return published[-1]()

    return install


def test_where_requests_cannot_be_checked_the_record_still_says_which_ops_are_in(
    scheduler: Callable[[], active.ProcessRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Patch(f"{__name__}.nothing", Signature(("why_not",)), nothing)
    monkeypatch.setattr(sglang_requests, "scheduler_patches", lambda: [hook])
    monkeypatch.setattr(sglang_plugin, "_register", fails)
    record = scheduler()
    assert record.ops["sampler"].installed and not record.hardened


def test_where_ops_cannot_be_put_in_the_record_says_why_and_requests_are_checked(
    scheduler: Callable[[], active.ProcessRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang_plugin, "install_ops", fails)
    record = scheduler()
    assert record.ops["plugin"].why_not == "RuntimeError: the registry is broken"
    assert record.hardened
