"""Programs that nobody has read: none passes that should not, and nothing of them stays."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from assay_verifiers.contract import Unavailable
from assay_verifiers.sandbox import check as checking
from assay_verifiers.sandbox import syscalls
from assay_verifiers.sandbox.check import Result, judge
from assay_verifiers.sandbox.controls import CONTROLS, ORDINARY
from assay_verifiers.sandbox.host import (
    KINDS,
    Report,
    Sandbox,
    SandboxDiedError,
    Sandboxes,
    SandboxUnavailableError,
)
from assay_verifiers.sandbox.leftovers import below, clear
from assay_verifiers.sandbox.lockdown import OLDEST_LANDLOCK, Limits, landlock_version
from assay_verifiers.sandbox.seccomp import for_process, seccomp_program
from assay_verifiers.types import code

FOLDER = Path(checking.__file__).parent
RIGHT = "def f(n): return n * n + 1"


def not_to_be_had(kind: str, problem: str) -> NoReturn:
    """Skips where this machine lacks what a kind stands on; anything else is a defect of ours."""
    if kind == "bubblewrap":
        unshare = ["unshare", "--user", "true"]
        lacking = shutil.which("bwrap") is None or subprocess.run(unshare, check=False).returncode
    else:
        lacking = landlock_version() < OLDEST_LANDLOCK
    if lacking:
        pytest.skip(f"this machine lacks what {kind} needs: {problem}")
    pytest.fail(problem)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Result] | str]:
    """Every control's fate in every kind, or why the kind does not work here."""

    async def one(kind: str) -> dict[str, Result] | str:
        try:
            found = await checking.check(kind)
        except SandboxUnavailableError as reason:
            return str(reason)
        return {result.control.name: result for result in found}

    async def all_kinds() -> list[dict[str, Result] | str]:
        return await asyncio.gather(*map(one, KINDS))

    return dict(zip(KINDS, asyncio.run(all_kinds()), strict=True))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, results: dict[str, dict[str, Result] | str]) -> str:
    """Every kind that works here."""
    found = results[request.param]
    if isinstance(found, str):
        not_to_be_had(request.param, found)
    return str(request.param)


def descendants(pid: int) -> set[int]:
    """The processes below a process that are no zombies."""
    return {
        child
        for child in below(pid)
        if (stat := Path(f"/proc/{child}/stat")).exists()
        and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    }


def gone(pids: set[int]) -> bool:
    """Whether those processes end, and are reaped by whoever inherited them, soon."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def answer(sandbox: Sandbox, program: str, expected: str) -> tuple[str, str]:
    """Judges whether `f()` of a program returns an expression's value."""
    report = await sandbox.function(
        {"code": program, "entry": "f", "file": "main.py"},
        {"tests": f"assert f() == {expected}", "entry": "f", "prompt": ""},
    )
    return report.judged(sandbox.limits)


# --- hostile programs -------------------------------------------------------------------------


def test_some_sandbox_works_here(results: dict[str, dict[str, Result] | str]) -> None:
    assert any(isinstance(found, dict) for found in results.values()), results


def test_an_ordinary_program_may_use_files_threads_and_an_event_loop(
    kind: str, results: dict[str, dict[str, Result]]
) -> None:
    assert results[kind][ORDINARY.name].status == "ok", results[kind][ORDINARY.name].detail


@pytest.mark.parametrize("control", [control.name for control in CONTROLS])
def test_no_hostile_program_passes_and_the_next_item_is_judged_right(
    kind: str, control: str, results: dict[str, dict[str, Result]]
) -> None:
    result = results[kind][control]
    assert result.held, (result.status, result.detail)


async def test_without_a_sandbox_the_same_programs_get_out() -> None:
    # Else a control would hold for a reason that has nothing to do with the sandbox.
    sandbox = await Sandbox.start("none", Limits())
    outside = Path(checking.tempfile.mkdtemp())
    try:
        for control in CONTROLS:
            if control.name in {
                "a fork",
                "reading outside",
                "writing outside",
                "changing what it does not own",
                "symbolic and hard links",
                "the network",
            }:
                (outside / "secret").write_text("secret")
                got = await judge(sandbox, control.code.replace("OUTSIDE", str(outside)))
                assert got[0] == "ok", (control.name, got)
    finally:
        await sandbox.end()
        shutil.rmtree(outside)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None or not os.access("/usr/bin/python3", 1),
    reason="needs root, setpriv and a Python that everybody can read",
)
def test_it_holds_for_a_user_without_any_capability_and_with_the_standard_library_alone(
    tmp_path: Path,
) -> None:
    # As in a pod under the restricted Pod Security level: the folder is mounted, nothing installed.
    folder = Path(checking.tempfile.mkdtemp())
    folder.chmod(0o755)
    shutil.copytree(FOLDER, folder / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    words = "setpriv --reuid 65532 --regid 65532 --clear-groups --bounding-set -all --inh-caps -all"
    words += f" --no-new-privs /usr/bin/python3 {folder}/sandbox check --quick landlock"
    try:
        done = subprocess.run(
            words.split(), capture_output=True, text=True, timeout=60, cwd="/", check=False
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" holds ") > 5


# --- nothing stays ----------------------------------------------------------------------------


async def test_files_environment_modules_and_builtins_of_one_item_are_gone_for_the_next(
    kind: str,
) -> None:
    spoil = """
import builtins, json, os, sys
os.makedirs("a/" * 50)
open("left", "w").write("x"); os.symlink("left", "link")
os.environ["LEFT"] = "x"; json.load = None; builtins.left = 1; sys.modules["left"] = os
os.umask(0); os.chdir("a"); sys.path.insert(0, "."); sys.setrecursionlimit(900)
def f(): return 1
"""
    look = """
import builtins, json, os, sys
def f():
    return [os.listdir("."), os.environ.get("LEFT"), callable(json.load), hasattr(builtins, "left"),
            "left" in sys.modules, os.umask(0), "." in sys.path, sys.getrecursionlimit()]
"""
    sandbox = await Sandbox.start(kind, Limits())
    try:
        assert await answer(sandbox, spoil, "1") == ("ok", "passed, 1 calls")
        expected = "[[], None, True, False, False, 0o77, False, 1000]"
        assert await answer(sandbox, look, expected) == ("ok", "passed, 1 calls")
    finally:
        await sandbox.end()


SEARCH = """
def f(*reversed_words):
    found = []
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            area, rights = line.split()[:2]
            if rights[0] != "r" or "[v" in line:
                continue
            first, last = (int(end, 16) for end in area.split("-"))
            try:
                memory.seek(first)
                content = memory.read(last - first)
            except (OSError, ValueError, OverflowError):
                continue
            found += [w for w in reversed_words if w[::-1].encode() in content]
    return sorted(set(found))
"""


async def test_neither_the_tests_nor_an_earlier_item_can_be_found_in_a_candidates_memory() -> None:
    # Without the sandbox, where a program may read all of its own memory; the processes are the
    # same ones.
    sandbox = await Sandbox.start("none", Limits(memory=4 << 30))

    async def item(program: str, tests: str) -> Report:
        return await sandbox.function(
            {"code": program, "entry": "f", "file": "main.py"},
            {"tests": tests, "entry": "f", "prompt": ""},
        )

    try:
        first = await item(
            "def f(): print('earlieroutput'); return 'earliercode'",
            "assert f() == 'earliertests'",
        )
        assert first.judged(sandbox.limits)[0] == "wrong"
        words = ["earliercode", "earlieroutput", "earliertests", "currenttests", "currentcode"]
        backwards = [word[::-1] for word in words]
        second = await item(
            SEARCH + "\nmine = 'currentcode'",
            f"'currenttests'\nfound = f(*{backwards})\nassert found == ['edoctnerruc'], found",
        )
        assert second.judged(sandbox.limits) == ("ok", "passed, 1 calls")
    finally:
        await sandbox.end()


DAEMON = """
import os, time
def f(n):
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(3600)
            os._exit(0)
    return n * n + 1
"""


@pytest.mark.parametrize("protection", [*KINDS, "none"])
async def test_no_daemon_of_an_item_lives_on(
    protection: str, results: dict[str, dict[str, Result] | str]
) -> None:
    if isinstance(results.get(protection, {}), str):
        not_to_be_had(protection, str(results[protection]))
    try:
        sandbox = await Sandbox.start(protection, Limits(processes=16))
    except SandboxUnavailableError as reason:
        # Refused where the kernel would not count the processes of root.
        assert os.geteuid() == 0 and "processes" in str(reason)
        return
    try:
        before = descendants(sandbox.pid)
        assert await judge(sandbox, DAEMON) == ("ok", "passed, 2 calls")
        assert descendants(sandbox.pid) == before
    finally:
        await sandbox.end()


async def test_a_cancelled_item_ends_at_once_with_all_its_processes(kind: str) -> None:
    sandboxes = Sandboxes(kind, Limits(wall=60), 1)
    seen: list[Sandbox] = []

    async def endless() -> None:
        async with sandboxes.lease() as sandbox:
            seen.append(sandbox)
            await judge(sandbox, "def f(n):\n    while True: pass")

    task = asyncio.create_task(endless())
    while not seen or len(descendants(seen[0].pid)) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    processes = {seen[0].pid} | descendants(seen[0].pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(processes)
    async with sandboxes.lease() as fresh:
        assert fresh is not seen[0]
        assert (await judge(fresh, RIGHT))[0] == "ok"
    await sandboxes.close()
    assert gone({fresh.pid})


async def test_a_cell_that_dies_is_an_error_and_is_replaced(kind: str) -> None:
    sandboxes = Sandboxes(kind, Limits(wall=60), 1)
    try:
        with pytest.raises(SandboxDiedError):
            async with sandboxes.lease() as sandbox:
                asyncio.get_running_loop().call_later(0.2, os.kill, sandbox.pid, signal.SIGKILL)
                await judge(sandbox, "def f(n):\n    while True: pass")
        async with sandboxes.lease() as fresh:
            assert (await judge(fresh, RIGHT))[0] == "ok"
    finally:
        await sandboxes.close()


def test_the_cells_of_a_host_that_is_killed_end_too() -> None:
    script = """
import asyncio
from assay_verifiers.sandbox.host import Sandbox
from assay_verifiers.sandbox.lockdown import OLDEST_LANDLOCK, Limits, landlock_version
from assay_verifiers.sandbox.check import judge
async def main():
    sandbox = await Sandbox.start("none", Limits(wall=60))
    print(sandbox.pid, sandbox._folder, flush=True)
    await judge(sandbox, "def f(n):\\n    while True: pass")
asyncio.run(main())
"""
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    cell, folder = host.stdout.readline().split()
    while not descendants(int(cell)):
        time.sleep(0.01)
    left = {int(cell)} | descendants(int(cell))
    host.kill()
    host.wait()
    host.stdout.close()
    assert gone(left)
    assert not Path(folder).exists()


def test_a_tree_that_is_too_deep_for_any_path_is_removed(tmp_path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            Path("deep").mkdir()
            os.chdir("deep")
        Path("file").write_text("x")
    finally:
        os.fchdir(here)
        os.close(here)
    (tmp_path / "link").symlink_to("/usr")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").write_text("x")
    (tmp_path / "closed").chmod(0)
    clear(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert Path("/usr/bin").is_dir()


# --- limits -----------------------------------------------------------------------------------


async def test_what_is_over_a_limit_is_said(kind: str) -> None:
    sandbox = await Sandbox.start(kind, Limits(wall=0.4, output=1000, files=1 << 16))
    try:
        assert await judge(sandbox, "def f(n):\n    while True: pass") == (
            "timeout",
            "not done within 0.4 s",
        )
        assert await judge(
            sandbox, "print('x' * 1001, flush=True)\ndef f(n): return n * n + 1"
        ) == (
            "wrong",
            "it wrote more than 1000 bytes",
        )
        assert (await judge(sandbox, "print('x' * 900)\n" + RIGHT))[0] == "ok"
    finally:
        await sandbox.end()


async def test_no_files_at_all_may_be_written_where_the_limit_is_zero(kind: str) -> None:
    sandbox = await Sandbox.start(kind, Limits(files=0))
    try:
        program = "def f():\n    try: open('x', 'w')\n    except OSError as e: return e.errno"
        assert (await answer(sandbox, program, str(errno.EACCES)))[0] == "ok"
    finally:
        await sandbox.end()


async def test_a_program_may_be_built_and_run_where_several_processes_are_allowed(
    kind: str,
) -> None:
    build = "printf '#!/bin/sh\\necho built' > made; chmod +x made; ./made | tr a-z A-Z"
    try:
        sandbox = await Sandbox.start(kind, Limits(processes=8))
    except SandboxUnavailableError as reason:
        # Refused where the kernel would not count the processes of root.
        assert os.geteuid() == 0 and "processes" in str(reason)
        return
    try:
        program = {"code": build, "file": "main.sh", "command": ["/bin/sh", "{file}"]}
        report = await sandbox.run(program, b"")
        assert (report.code, report.stdout, report.stderr) == (0, b"BUILT\n", b"")
    finally:
        await sandbox.end()


# --- choice -----------------------------------------------------------------------------------


def test_a_missing_bubblewrap_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code._probe.cache_clear()
    with pytest.raises(Unavailable, match="install the package bubblewrap"):
        code.choose("bubblewrap", Limits())


def test_where_no_kind_works_nothing_is_run_unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_problem", lambda kind, limits: f"{kind}: broken")
    with pytest.raises(Unavailable, match="bubblewrap: broken; landlock: broken"):
        code.choose("auto", Limits())
    assert code.choose("none", Limits()) == "none"


def test_auto_takes_the_first_kind_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_problem", lambda kind, limits: "" if kind == "landlock" else "no")
    assert code.choose("auto", Limits()) == "landlock"


def test_limits_under_which_no_program_works_are_refused_before_anything_is_judged(
    kind: str,
) -> None:
    with pytest.raises(Unavailable, match="simple program does not work: not done within"):
        code.choose(kind, Limits(wall=1e-4))


# --- the filter, on both architectures --------------------------------------------------------

ALLOW, KILL = 0x7FFF0000, 0x80000000
PID = 4711


def decide(machine: str, number: int, *arguments: int, audit: int | None = None, **how: int) -> int:
    """What the kernel would make of a call: an interpreter for the filter's instructions."""
    processes, signals = how.get("processes", 1), bool(how.get("signals"))
    program = for_process(
        seccomp_program(machine, processes, signals, owner=bool(how.get("owner"))), PID
    )
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    arch = syscalls.ARCHITECTURES[machine][1] if audit is None else audit
    data = struct.pack("IIQ6Q", number, arch, 0, *(a & (1 << 64) - 1 for a in padded))
    accumulator, position = 0, 0
    while True:
        operation, true, false, value = struct.unpack_from("HBBI", program, position * 8)
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: accumulator & value != 0,
            }[operation]
            position += true if holds else false


def refused(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_through_what_programs_need_and_nothing_else(machine: str) -> None:
    call = syscalls.checked(machine)
    names = {"x86_64": ("socket", 41), "aarch64": ("socket", 198)}
    for number in syscalls.allowed(machine):
        assert decide(machine, number) == ALLOW
    for number in set(range(463)) - {*syscalls.allowed(machine), *call.values()}:
        assert decide(machine, number) == refused(errno.EPERM), number
    for number in syscalls.of_owners(machine):
        assert decide(machine, number, owner=1) == ALLOW
    assert decide(machine, names[machine][1], 2, 1, 0) == refused(errno.EPERM)
    assert decide(machine, 463) == refused(errno.ENOSYS)
    assert decide(machine, call["clone3"]) == refused(errno.ENOSYS)
    assert decide(machine, 0, audit=0x40000003) == KILL
    # A thread, a process, a new user name space.
    assert decide(machine, call["clone"], 0x3D0F00) == ALLOW
    assert decide(machine, call["clone"], 17) == refused(errno.EPERM)
    assert decide(machine, call["clone"], 17, processes=2) == ALLOW
    assert decide(machine, call["clone"], 0x10000000 | 17, processes=2) == refused(errno.EPERM)
    assert decide(machine, call["kill"], PID, 15) == ALLOW
    assert decide(machine, call["kill"], PID, 9) == refused(errno.EPERM)
    for other in (PID + 1, 0, 1, -1, -PID):
        assert decide(machine, call["kill"], other, 15) == refused(errno.EPERM)
        assert decide(machine, call["tgkill"], other, PID, 15) == refused(errno.EPERM)
    assert decide(machine, call["kill"], PID + 1, 9, processes=2, signals=1) == ALLOW
    assert decide(machine, call["socketpair"], 1, 1 | 0o2000000) == ALLOW
    assert decide(machine, call["socketpair"], 1, 2) == refused(errno.EPERM)
    assert decide(machine, call["socketpair"], 2, 1) == refused(errno.EPERM)
    assert decide(machine, call["prlimit64"], 0, 7, 0, 1) == ALLOW
    assert decide(machine, call["prlimit64"], 0, 7, 1 << 40, 0) == refused(errno.EPERM)
    assert decide(machine, call["prlimit64"], 1, 7, 0, 1) == refused(errno.EPERM)
    assert decide(machine, call["fcntl"], 3, 3) == ALLOW
    assert decide(machine, call["fcntl"], 3, 8) == refused(errno.EPERM)
    assert decide(machine, call["ioctl"], 0, 0x5401) == ALLOW
    assert decide(machine, call["ioctl"], 0, 0x5412) == refused(errno.ENOTTY)
    assert decide(machine, call["prctl"], 15) == ALLOW
    assert decide(machine, call["prctl"], 22) == refused(errno.EINVAL)


def test_the_calls_of_the_x32_abi_kill() -> None:
    assert decide("x86_64", 0x40000000 + 1) == KILL
