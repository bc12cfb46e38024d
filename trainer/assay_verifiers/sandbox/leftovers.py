"""What a program leaves behind: processes to kill, files to count and to remove.

Everything here may meet a program that works against it, so nothing recurses, follows a symbolic
link, or trusts a path to be the same twice while the program still lives.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from contextlib import suppress
from dataclasses import dataclass

_DEEPEST = 64  # of folders: deeper nesting counts as too much
_ENTRY = 4096  # bytes that every file and folder counts, so that empty ones are limited too


@dataclass(frozen=True)
class Descendants:
    """How to find every process below this one.

    Attributes:
        everything: all that this process may signal is below it, since its user or its PID
            namespace is its own. kill(-1) is atomic: no fork escapes it.
        one: candidates cannot fork, so there are only children.
    """

    everything: bool
    one: bool

    def end(self, children: list[int], reap: Reaper) -> None:
        """Kills and reaps until no process is left (this one is the subreaper of all).

        Args:
            children: those that have not been reaped.
            reap: waits for one child; False where there is none.
        """
        if self.everything or self.one:
            for pid in [-1] if self.everything else children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while reap(0) is not None:
                pass
            return
        while True:
            for pid in below(os.getpid()):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            while (found := reap(os.WNOHANG)) is True:
                pass
            if found is None:
                return
            time.sleep(0.001)


class Reaper:
    """Waits for children and remembers how they ended."""

    def __init__(self) -> None:
        self.ends: dict[int, tuple[int, float]] = {}

    def __call__(self, options: int) -> bool | None:
        """Reaps one child.

        Returns:
            True for one reaped, False where none has ended yet, None where there is no child.
        """
        try:
            pid, status, use = os.wait4(-1, options)
        except ChildProcessError:
            return None
        if pid:
            self.ends.setdefault(pid, (status, use.ru_utime + use.ru_stime))
        return pid != 0


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def below(root: int) -> list[int]:
    """Every process whose chain of parents leads to this one. Needs /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                parents[int(name)] = int(_stat(name)[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})


def threads(pid: int) -> int:
    """How many threads a process has; 1 where /proc does not tell."""
    try:
        return int(_stat(pid)[17])
    except (OSError, IndexError, ValueError):
        return 1


def _lowest_limit() -> int:
    """The lowest RLIMIT_NPROC under which this process can fork."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    low, high = 1, hard if hard != resource.RLIM_INFINITY else 1 << 22
    while low < high:
        middle = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_NPROC, (middle, hard))
        try:
            child = os.fork()
        except OSError:
            low = middle + 1
            continue
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        high = middle
    return low


def tasks_now() -> int:
    """Processes and threads of this user, as the kernel counts them for RLIMIT_NPROC.

    Those of other containers under the same user count too and cannot be seen from here, so the
    kernel is asked: the lowest limit under which a fork succeeds is the count with the child.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(_lowest_limit() - 2).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    count = os.read(read, 32)
    os.close(read)
    return int(count)


def usage(folder: str, pid: int, limit: int) -> int:
    """Bytes in files below a folder, and in deleted ones that a process still holds open.

    Counting ends above the limit. What cannot be looked into counts as above it.
    """
    total = 0
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    path = [(top, os.scandir(top))]
    try:
        while path and total <= limit:
            fd, entries = path[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(path.pop()[0])
                continue
            total += _ENTRY
            with suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    continue
                if len(path) == _DEEPEST:
                    return limit + 1
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(entry.name, flags, dir_fd=fd)
                path.append((inner, os.scandir(inner)))
    except OSError:  # a folder without permissions
        return limit + 1
    finally:
        for fd, _ in path:
            os.close(fd)
    with suppress(OSError):
        device = os.stat(folder).st_dev
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                held = os.stat(f"/proc/{pid}/fd/{name}")
                if held.st_nlink == 0 and held.st_dev == device and stat.S_ISREG(held.st_mode):
                    total += held.st_blocks * 512
    return total


def clear(folder: str) -> None:
    """Empties a folder in which no process works any more, however deeply it is nested.

    Every folder's content is moved up before it is removed, so no path grows long.
    """
    with suppress(PermissionError):  # somebody else's, who alone could have closed it
        os.chmod(folder, 0o700)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        moved, unused = 0, os.urandom(16).hex()
        while entries := list(os.scandir(top)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=top)
                    continue
                # Nobody is left who could exchange it for a link to another folder.
                os.chmod(entry.name, 0o700, dir_fd=top)
                inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
                for child in list(os.scandir(inner)):
                    if child.is_dir(follow_symlinks=False):
                        os.chmod(child.name, 0o700, dir_fd=inner)
                    moved += 1
                    os.rename(child.name, f"{unused}{moved}", src_dir_fd=inner, dst_dir_fd=top)
                os.close(inner)
                os.rmdir(entry.name, dir_fd=top)
    finally:
        os.close(top)
