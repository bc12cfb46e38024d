"""The host's side: starts cells, hands them items, replaces those that end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from .leftovers import below
from .lockdown import DEVICES, SYSTEM, Limits

Status = Literal["ok", "wrong", "unparsed", "timeout", "error"]

KINDS = ("bubblewrap", "landlock")
"""The kinds that protect, the stronger one first."""

_START_SECONDS = 60.0
_LATE_SECONDS = 15.0  # how long after an item's deadline a cell may take to say so
_SYS_ADMIN = 21
_FOLDER = os.path.dirname(os.path.abspath(__file__))
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class SandboxUnavailableError(Exception):
    """No sandbox of this kind works here; the message says why and what the remedy is."""


class SandboxDiedError(Exception):
    """A cell ended or did not answer, through no doing of the candidate's that is known."""


@dataclass(frozen=True)
class Report:
    """What the cell says of one run, and what the run left.

    Attributes:
        over: the limit that was passed (wall, cpu, output, files, threads, ended), else "".
        started: whether the candidate was locked down and its program, or the command, started.
        killed: whether something outside the sandbox killed the candidate.
        code: the candidate's exit code, negative for a signal. Meaningless where it was still
            running at the end.
        tester: the tester's exit code.
        seconds, cpu: what it took.
        verdict: the tester's word: status, detail, calls. None where it left none.
        stdout, stderr: of a whole program.
    """

    over: str
    started: bool
    killed: bool
    code: int
    tester: int
    seconds: float
    cpu: float
    verdict: dict[str, Any] | None = None
    stdout: bytes = b""
    stderr: bytes = b""

    def trouble(self, limits: Limits) -> tuple[Status, str] | None:
        """Status and detail where the run did not come to its own end."""
        if self.over == "wall":
            return "timeout", f"not done within {limits.wall:g} s"
        if self.over == "cpu":
            return "timeout", f"more than {limits.cpu} s of CPU"
        if not self.started:
            said = self.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return "error", " ".join(["the program could not be started in the sandbox", *said])
        if self.killed:
            return "error", "killed from outside: is there less memory here than limits.memoryMiB?"
        if self.over:
            return "wrong", _OVER[self.over].format(limits)
        return None

    def judged(self, limits: Limits) -> tuple[Status, str]:
        """Status and detail of function tests."""
        if trouble := self.trouble(limits):
            return trouble
        if self.tester != 0 or self.verdict is None:
            return "error", f"the tests' process ended with code {self.tester}"
        return self.verdict["status"], self.verdict["detail"]


_OVER = {
    "output": "it wrote more than {0.output} bytes",
    "files": "it wrote more than {0.files} bytes to files, or hid them",
    "threads": "it started too many threads",
    "ended": "its process ended and left others behind",
}


def _memory(content: bytes | None = None) -> int:
    """A file in memory: sealed with a content, or empty to be written."""
    fd = os.memfd_create("item", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if content is not None:
        rest = memoryview(content)
        while rest:
            rest = rest[os.pwrite(fd, rest, len(content) - len(rest)) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _command(kind: str, limits: Limits, folder: str) -> list[str]:
    # The interpreter itself, not a virtual environment's link to it: only the standard library.
    python = os.path.realpath(sys.executable)
    # In bubblewrap this folder has another name, since it may lie in the /tmp that is hidden there.
    code = "/.cell" if kind == "bubblewrap" else _FOLDER
    cell = [python, "-sSPB", f"{code}/__main__.py", "cell", kind, folder]
    cell.append(json.dumps(asdict(limits)))
    if kind != "bubblewrap":
        return cell
    words = ["bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in _environment(folder).items():
        words += ["--setenv", name, value]
    if os.geteuid() == 0 and _capable(_SYS_ADMIN):
        # Without a user name space the cell can become a user of its own, whose processes count.
        words += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        words += ["--unshare-cgroup-try"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            words += ["--cap-add", capability]
    else:
        words += ["--unshare-all", "--unshare-user"]
    mounted = (*SYSTEM, *DEVICES, sys.base_prefix)
    for above in sorted({str(above) for path in mounted for above in PurePosixPath(path).parents}):
        words += ["--perms", "0755", "--dir", above]  # bubblewrap's own are the owner's only
    for path in (*SYSTEM, sys.base_prefix):
        words += ["--ro-bind-try", path, path]
    words += ["--ro-bind", _FOLDER, code]
    for path in DEVICES:
        words += ["--dev-bind-try", path, path]
    # No /proc: containers refuse to mount one, and nothing here needs it.
    size = max(limits.files, 1 << 16)
    words += ["--perms", "0777", "--size", str(size), "--tmpfs", folder, "--remount-ro", "/"]
    return [*words, "--chdir", folder, *cell]


def _environment(folder: str) -> dict[str, str]:
    # A fixed hash seed: the same program gets the same verdict every time.
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
    }


def _folder(kind: str) -> tuple[str, str]:
    """A cell's private folder, and what is to be removed in the end."""
    if kind == "bubblewrap":
        return "/tmp", ""
    made = os.path.realpath(tempfile.mkdtemp(prefix="assay-cell-"))
    return made, made


def _capable(capability: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


@dataclass
class Sandbox:
    """One cell, for one item at a time. Made by `start`.

    Attributes:
        kind: landlock, bubblewrap or none.
        limits: of every run.
        pid: of the process that was started.
    """

    kind: str
    limits: Limits
    _process: subprocess.Popen[bytes]
    _socket: socket.socket
    _errors: int
    _folder: str
    _ended: bool = field(default=False)

    @property
    def pid(self) -> int:
        """Of the process that was started: the cell, or bubblewrap around it."""
        return self._process.pid

    @classmethod
    async def start(cls, kind: str, limits: Limits) -> Sandbox:
        """Starts a cell.

        Raises:
            SandboxUnavailableError: this kind does not work here.
        """
        if kind == "bubblewrap" and shutil.which("bwrap") is None:
            raise SandboxUnavailableError(
                "bubblewrap: there is no `bwrap`; install the package bubblewrap"
            )
        folder, made = _folder(kind)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        errors = _memory()
        # Not asyncio's: its watchers of children want the event loop to outlive the process.
        process = subprocess.Popen(  # noqa: ASYNC220
            _command(kind, limits, folder),
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=_environment(folder),
            cwd="/",
            start_new_session=True,  # an interrupt from the terminal is for the host
        )
        theirs.close()
        self = cls(kind, limits, process, ours, errors, made)
        try:
            ready = await self._receive(_START_SECONDS)
        except SandboxDiedError as reason:
            raise SandboxUnavailableError(f"{kind}: {reason}") from reason
        if "problem" in ready:
            await self.end()
            raise SandboxUnavailableError(f"{kind}: {ready['problem']}")
        return self

    async def function(self, program: dict[str, Any], tests: dict[str, Any]) -> Report:
        """Runs function tests; see `candidate.serve_function` and `tester.run_tests`.

        Raises:
            SandboxDiedError: the cell ended; it is of no use any more.
        """
        fds = [
            _memory(json.dumps(program).encode()),
            _memory(json.dumps(tests).encode()),
            _memory(),
        ]
        try:
            facts = await self._ask(b"F", fds)
            said = _content(fds[2])
        finally:
            for fd in fds:
                os.close(fd)
        return Report(**facts, verdict=json.loads(said) if said else None)

    async def run(self, program: dict[str, Any], stdin: bytes) -> Report:
        """Runs a whole program: Python, or what `program["command"]` says.

        Raises:
            SandboxDiedError: the cell ended; it is of no use any more.
        """
        fds = [_memory(json.dumps(program).encode()), _memory(stdin), _memory(), _memory()]
        try:
            facts = await self._ask(b"C" if program["command"] else b"P", fds)
            return Report(**facts, stdout=_content(fds[2]), stderr=_content(fds[3]))
        finally:
            for fd in fds:
                os.close(fd)

    async def _ask(self, kind: bytes, fds: list[int]) -> dict[str, Any]:
        try:
            socket.send_fds(self._socket, [kind], fds)
        except OSError as reason:
            raise await self._died() from reason
        return await self._receive(self.limits.wall + _LATE_SECONDS)

    async def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds):
                answer = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 16)
        except (TimeoutError, ConnectionError):
            answer = b""
        except BaseException:
            await asyncio.shield(self.end())
            raise
        if not answer:
            raise await self._died()
        return json.loads(answer)  # type: ignore[no-any-return]

    async def _died(self) -> SandboxDiedError:
        said = os.pread(self._errors, 1 << 16, 0).decode(errors="replace").strip()
        await self.end()
        last = said.splitlines()[-1] if said else f"exit code {self._process.returncode}"
        return SandboxDiedError(f"the sandbox ended or did not answer: {last}")

    async def end(self) -> None:
        """Ends the cell with everything in it. May be called again."""
        if self._ended:
            return
        self._ended = True
        inner = below(self.pid) if self.kind == "bubblewrap" else []
        # Not only closed: a process that was forked meanwhile may hold the socket too.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for _ in range(400):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.005)
        self._process.kill()
        self._process.wait()
        # bubblewrap does not wait for its name space's first process; where this process is the
        # first of a container, that one is its orphan now.
        for pid in inner:
            with suppress(ChildProcessError):
                while os.waitpid(pid, os.WNOHANG)[0] == 0:  # noqa: ASYNC110, ASYNC222
                    await asyncio.sleep(0.005)
        os.close(self._errors)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


class Sandboxes:
    """A pool of cells, started when they are needed.

    Args:
        kind: landlock, bubblewrap or none.
        limits: of every run.
        count: cells at most; the number of cores by default.
    """

    def __init__(self, kind: str, limits: Limits, count: int | None = None) -> None:
        self.kind, self.limits = kind, limits
        self._slots = asyncio.Semaphore(count or len(os.sched_getaffinity(0)))
        self._idle: list[Sandbox] = []

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Sandbox]:
        """A cell for one item. If the block raises, or is cancelled, the cell ends.

        Raises:
            SandboxUnavailableError: none can be started.
        """
        async with self._slots:
            sandbox = (
                self._idle.pop() if self._idle else await Sandbox.start(self.kind, self.limits)
            )
            try:
                yield sandbox
            except BaseException:
                await asyncio.shield(sandbox.end())
                raise
            self._idle.append(sandbox)

    async def close(self) -> None:
        """Ends all idle cells."""
        while self._idle:
            await self._idle.pop().end()
