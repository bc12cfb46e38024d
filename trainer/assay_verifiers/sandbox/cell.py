"""The supervisor: forks, watches, kills, cleans up. It never reads a program, a test or an output.

Requests come over the socket at file descriptor 0: one byte for the kind of run, with file
descriptors attached. What has to be told apart from secrets is kept apart by who reads what: the
memory files are opened by the children that need them, output is moved by the kernel (splice), and
so a forked candidate finds nothing of its own tests, or of earlier items, in the memory it was
forked with.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from . import candidate, lockdown, tester
from .leftovers import Descendants, Reaper, clear, tasks_now, threads, usage
from .lockdown import Limits, Lockdown
from .seccomp import seccomp_program

# What programs commonly import is imported once, here.
for _name in ("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions",
              "functools", "hashlib", "heapq", "itertools", "math", "operator", "random", "re",
              "statistics", "string", "typing"):  # fmt: skip
    __import__(_name)

_LOOK_EVERY = 0.025  # seconds between looks at files and threads
_TESTER_MEMORY = 1 << 30  # on top of the candidate's: what answers of 8 MiB can grow to
_VERDICT = 1 << 16  # bytes
_CHUNK = 1 << 16
_HIGH = 64  # above every number that a child's files get
_TROUBLE = 97
_STARTED = b"L"  # said when a candidate is locked down, on a pipe that its program never has
_GRACE = 1.0  # seconds that the tester has left once the candidate has ended


class Cell:
    """One cell's state: what is prepared once, and the item that is running.

    Args:
        kind: landlock, bubblewrap or none.
        folder: the private folder, which every item finds empty.
        limits: of every run.

    Raises:
        LockdownError: this kind does not work here.
    """

    def __init__(self, kind: str, folder: str, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        # Not 0 itself, which is a child's standard input.
        self.control = socket.socket(fileno=os.dup(0))
        self.control_fd = self.control.fileno()
        lockdown.prctl(lockdown.PR_SET_CHILD_SUBREAPER, 1)
        own_user = kind != "none" and lockdown.drop_privileges(os.__file__, folder)
        # Nobody of the same user may look into this process or the tester.
        lockdown.prctl(lockdown.PR_SET_DUMPABLE, 0)
        self.descendants = Descendants(
            everything=own_user or (kind == "bubblewrap" and os.getppid() == 1),
            one=limits.processes == 1 and kind != "none",
        )
        # In bubblewrap everything but the private folder is read-only, and root's devices are
        # root's; the kernel counts a name space's processes apart.
        counted = own_user or (kind == "bubblewrap" and os.geteuid() != 0)
        self.candidate, self.tester = self._lockdowns(kind, owner=counted)
        # Where the user is shared and only one process is allowed, its threads are counted by
        # looking. Where more are, the user's tasks are counted anew for every item.
        self.count_tasks = kind != "none" and limits.processes > 1 and not counted
        if self.count_tasks and os.geteuid() == 0:
            raise lockdown.LockdownError(
                "more than one process needs a user whose processes the kernel counts: not root, "
                "or a Python that other users can read"
            )
        if counted:
            self.limit_tasks()
        os.chdir(folder)
        self.wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()

    def _lockdowns(self, kind: str, owner: bool) -> tuple[Lockdown, Lockdown]:
        limits = self.limits
        program = rules = tester_rules = None
        if kind != "none":
            version = lockdown.landlock_version()
            if kind == "landlock" and version < lockdown.OLDEST_LANDLOCK:
                found = f"ABI {version}" if version else "none"
                raise lockdown.LockdownError(
                    f"Landlock of ABI {lockdown.OLDEST_LANDLOCK} is needed, the kernel has {found}"
                )
            if version >= lockdown.OLDEST_LANDLOCK:
                readable = [sys.base_prefix]
                rules = lockdown.landlock_rules(readable, self.folder if limits.files else None)
                tester_rules = lockdown.landlock_rules(readable, None)
            signals = rules is not None and version >= lockdown.SCOPES_SINCE
            program = seccomp_program(
                platform.machine(), limits.processes, signals and limits.processes > 1, owner
            )
        bounds = replace(
            limits, memory=limits.memory + _TESTER_MEMORY, open_files=64, files=_VERDICT
        )
        return (
            Lockdown(limits, None, rules, program),
            Lockdown(bounds, None, tester_rules, program),
        )

    def limit_tasks(self) -> None:
        """Sets RLIMIT_NPROC for candidates: the user's tasks now, the tester, and their own."""
        own = lockdown.THREADS if self.limits.processes == 1 else self.limits.processes
        self.candidate = replace(self.candidate, tasks=tasks_now() + 1 + own)

    # --- one item -----------------------------------------------------------------------------

    def serve(self) -> None:
        """Serves requests until the host closes the socket."""
        host = os.getppid()
        while True:
            if not select.select([self.control], [], [], 2.0)[0]:
                if os.getppid() != host:  # it died, but a fork of it holds the socket open
                    return
                continue
            message, fds, _, _ = socket.recv_fds(self.control, 16, 8)
            if not message:
                return
            if self.count_tasks:
                self.limit_tasks()
            try:
                report = self.function(*fds) if message == b"F" else self.program(message, *fds)
            finally:
                for fd in fds:
                    os.close(fd)
            self.control.send(json.dumps(report).encode())

    def leave(self) -> NoReturn:
        """Ends the cell; its folder goes with it where it may."""
        with suppress(OSError):
            os.rmdir(self.folder)
        os._exit(0)

    def function(self, program: int, tests: int, verdict: int) -> dict[str, Any]:
        """Function tests: a candidate, and a tester that calls it."""
        calls_read, calls_write = os.pipe()
        answers_read, answers_write = os.pipe()
        sink_read, sink_write = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        run = Run(self, {sink_read: null})
        run.start_candidate(
            [null, sink_write, sink_write, calls_read, answers_write, program],
            lambda data: candidate.serve_function(data, 3, 4),
        )
        run.start_tester([null, null, null, calls_write, answers_read, tests, verdict])
        for fd in (calls_read, calls_write, answers_read, answers_write, sink_write):
            os.close(fd)
        report = run.finish()
        os.close(null)
        return report

    def program(self, kind: bytes, program: int, stdin: int, out: int, err: int) -> dict[str, Any]:
        """A whole program: Python in the forked process (P), or a command (C)."""
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        run = Run(self, {out_read: out, err_read: err})
        run.start_candidate(
            [stdin, out_write, err_write, program],
            candidate.run_command if kind == b"C" else candidate.run_python,
        )
        os.close(out_write)
        os.close(err_write)
        return run.finish()


class Run:
    """One item's processes.

    Args:
        cell: whose item it is.
        outputs: pipes to read from, and where the kernel moves what they hold.
    """

    def __init__(self, cell: Cell, outputs: dict[int, int]) -> None:
        self.cell, self.outputs = cell, outputs
        self.open = set(outputs)
        self.written = 0
        self.candidate = self.tester = 0
        self.reap = Reaper()
        self.started_read, self.started_write = os.pipe()
        self.began = time.monotonic()

    def start_candidate(self, fds: list[int], body: Callable[[dict[str, Any]], None]) -> None:
        """Forks the candidate: fds become 0 and up, the last of which is the program's file."""

        def main() -> None:
            data = _take(len(fds) - 1)
            os.umask(0o077)
            lockdown.prctl(lockdown.PR_SET_DUMPABLE, 1)  # so that the cell may count its files
            self.cell.candidate.apply()
            os.write(len(fds), _STARTED)
            if body is candidate.run_command:
                try:
                    body(data)  # closes the pipe by becoming the command
                finally:
                    os.write(len(fds), b"not")
            os.close(len(fds))
            body(data)

        self.candidate = _fork([*fds, self.started_write], self.cell.candidate.rules, main)
        os.close(self.started_write)

    def start_tester(self, fds: list[int]) -> None:
        """Forks the tester: fds become 0 to 6; 5 is the tests' file, 6 takes the verdict."""

        def main() -> None:
            data = _take(5)
            self.cell.tester.apply()
            os.write(6, json.dumps(tester.run_tests(data, 3, 4)).encode())

        self.tester = _fork(fds, self.cell.tester.rules, main)

    def finish(self) -> dict[str, Any]:
        """Watches until the item ends, ends whatever is left of it, and reports."""
        for fd in self.outputs:
            os.set_blocking(fd, False)
        over = self._watch()
        # Nothing of a single process's own can look like this, see lockdown.
        killed = self.reap.ends.get(self.candidate, (0, 0.0))[0] == signal.SIGKILL
        self.end()
        seconds = time.monotonic() - self.began
        for fd in list(self.open):
            if not self._move(fd) and not over:
                over = "output"
        started = os.read(self.started_read, 8) == _STARTED
        for fd in (*self.outputs, self.started_read):
            os.close(fd)
        if not over and any(self._out_of_time(pid) for pid in (self.candidate, self.tester)):
            over = "cpu"
        return {
            "over": over,
            "started": started,
            "killed": killed and not over and self.cell.limits.processes == 1,
            "code": os.waitstatus_to_exitcode(self.reap.ends[self.candidate][0]),
            "tester": os.waitstatus_to_exitcode(self.reap.ends.get(self.tester, (0, 0.0))[0]),
            "seconds": seconds,
            "cpu": self.reap.ends[self.candidate][1],
        }

    def end(self) -> None:
        """Kills and reaps every process of the item, and removes its files."""
        pids = [pid for pid in (self.candidate, self.tester) if pid and pid not in self.reap.ends]
        self.cell.descendants.end(pids, self.reap)
        clear(self.cell.folder)

    def _out_of_time(self, pid: int) -> bool:
        status, cpu = self.reap.ends.get(pid, (0, 0.0))
        return os.WIFSIGNALED(status) and cpu >= self.cell.limits.cpu - 0.2

    def _watch(self) -> str:
        """Waits for the end; says which limit was passed, "" for none."""
        cell = self.cell
        last = self.tester or self.candidate
        deadline, verdict = self.began + cell.limits.wall, "wall"
        look = self.began + _LOOK_EVERY
        while last not in self.reap.ends:
            now = time.monotonic()
            if now >= deadline:
                return verdict
            if now >= look:
                if over := self._look():
                    return over
                look = time.monotonic() + _LOOK_EVERY
            wait = max(0.0, min(deadline, look) - now)
            ready, _, _ = select.select([cell.control_fd, cell.wake, *self.open], [], [], wait)
            if cell.control_fd in ready:  # the host has nothing to say now but that it gives up
                self.end()
                cell.leave()
            if cell.wake in ready:
                with suppress(BlockingIOError):
                    os.read(cell.wake, 4096)
                while self.reap(os.WNOHANG):
                    pass
                if self.candidate in self.reap.ends and verdict == "wall":
                    # The tester notices at its next call, unless children of the candidate hold
                    # the pipe open; that is no reason to wait for them.
                    deadline, verdict = min(deadline, time.monotonic() + _GRACE), "ended"
            for fd in ready:
                if fd in self.open and not self._move(fd):
                    return "output"
        return ""

    def _look(self) -> str:
        limits = self.cell.limits
        if self.candidate in self.reap.ends:
            return ""
        if usage(self.cell.folder, self.candidate, limits.files) > limits.files:
            return "files"
        # Where more processes are allowed, or the user is this cell's own, the kernel counts.
        if limits.processes == 1 and threads(self.candidate) > lockdown.THREADS:
            return "threads"
        return ""

    def _move(self, fd: int) -> bool:
        """Moves what a pipe holds to where it goes, unread; whether the limit still holds."""
        while True:
            try:
                count = os.splice(fd, self.outputs[fd], _CHUNK)
            except BlockingIOError:
                return True
            if not count:
                self.open.discard(fd)
                return True
            self.written += count
            if self.written > self.cell.limits.output:
                return False


def _fork(fds: list[int], rules: int | None, main: Callable[[], None]) -> int:
    """Forks a child whose only open files are `fds` as 0 and up (and its Landlock rules)."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        lockdown.prctl(lockdown.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in fds]):
            os.dup2(fd, number, inheritable=number <= 2)
        kept = rules if rules is not None else _HIGH
        os.closerange(len(fds), kept)
        os.closerange(kept + (rules is not None), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        gc.enable()
        main()
        os._exit(0)
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(_TROUBLE)


def _take(fd: int) -> dict[str, Any]:
    """Reads a memory file whole and closes it."""
    size = os.fstat(fd).st_size
    data = bytearray(size)
    os.preadv(fd, [data], 0)
    os.close(fd)
    return json.loads(data)  # type: ignore[no-any-return]


def main(arguments: list[str]) -> None:
    """Runs a cell. Arguments: its kind, its private folder, the limits as JSON."""
    kind, folder, limits = arguments
    gc.disable()
    control = socket.socket(fileno=0)
    try:
        cell = Cell(kind, folder, Limits(**json.loads(limits)))
    except KeyError:
        control.send(json.dumps({"problem": f"not made for {platform.machine()}"}).encode())
        return
    except (lockdown.LockdownError, OSError) as reason:
        control.send(json.dumps({"problem": str(reason)}).encode())
        return
    control.send(json.dumps({"ready": os.getpid()}).encode())
    control.detach()
    cell.serve()
    cell.leave()
