"""What takes a process its powers: identity, resource limits, Landlock, and a seccomp filter.

Nothing here needs a privilege, so it works in a pod under the restricted Pod Security level and the
RuntimeDefault profile. It is all for the process that calls it and its children, and for good.

Sources: Landlock (`linux/landlock.h`, docs.kernel.org/userspace-api/landlock.html),
capabilities(7), setrlimit(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from .seccomp import for_process

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

THREADS = 64
"""Threads that a program of one process may have."""


class LockdownError(Exception):
    """The process could not be locked down: nothing untrusted may run in it."""


@dataclass(frozen=True)
class Limits:
    """What one run may use; sizes in bytes, times in seconds."""

    wall: float = 10.0
    cpu: int = 10
    memory: int = 512 << 20
    processes: int = 1
    open_files: int = 64
    files: int = 16 << 20
    output: int = 1 << 20


def _call(what: str, number: int, *arguments: int | bytes | ctypes.Structure | None) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise LockdownError(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """prctl(2).

    Raises:
        LockdownError: it was refused.
    """
    padded = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _libc.prctl(ctypes.c_int(option), *padded)
    if result < 0:
        raise LockdownError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    return result


PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_SECUREBITS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 28, 36, 38


# --- identity ---------------------------------------------------------------------------------

_NOBODY = 65534
_OWN = 0x40000000  # and 24 random bits: no user of any other process
_SECURE = 0b101111  # NOROOT and NO_SETUID_FIXUP, locked; KEEP_CAPS locked off
_CAPSET = {"x86_64": 126, "aarch64": 91}


def drop_privileges(needed: str, folder: str) -> bool:
    """Root becomes a user that owns nothing, if Python still works then; capabilities go anyway.

    The user is one that nobody else is: processes of two cells cannot touch each other, and the
    limit of processes counts this cell's alone.

    Args:
        needed: a file that must stay readable; where it would not be, user 0 stays, without any
            capability.
        folder: a folder that goes over to the new user.

    Returns:
        Whether this process's user is now its own.
    """
    if os.geteuid() != 0:
        return False
    for capability in range(64):
        with suppress(LockdownError):  # no such capability, or no right to drop it
            prctl(PR_CAPBSET_DROP, capability)
    changed = _readable_by_others(needed) and any(
        _become(user, folder) for user in (_OWN + int.from_bytes(os.urandom(3), "big"), _NOBODY)
    )
    if not changed:
        with suppress(OSError):
            os.chown(folder, 0, 0)
        with suppress(LockdownError):  # no right to; no_new_privs stops a regain all the same
            prctl(PR_SET_SECUREBITS, _SECURE)
    header = struct.pack("Ii", 0x20080522, 0)
    _call("capset", _CAPSET[platform.machine()], header, bytes(24))
    return changed and os.geteuid() != _NOBODY


def _readable_by_others(path: str) -> bool:
    path = os.path.realpath(path)
    if not os.stat(path).st_mode & stat.S_IROTH:
        return False
    while (path := os.path.dirname(path)) != "/":
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
    return True


def _become(user: int, folder: str) -> bool:
    with suppress(OSError):  # in a name space, where the folder is open to everybody
        os.chown(folder, user, user)
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError:  # no CAP_SETUID, or a user namespace that does not map it
        return False
    return True


# --- Landlock ---------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = (
    1 << bit for bit in (0, 1, 2, 3, 6, 9, 11)
)
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_RIGHTS_SINCE = {1: 13, 2: 14, 3: 15, 4: 15}  # by ABI, how many rights on files it knows; then 16
OLDEST_LANDLOCK = 3  # before, truncate(2) on any file of the same user could not be refused
SCOPES_SINCE = 6

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache",
          "/etc/alternatives", "/etc/localtime", "/dev/urandom", "/dev/random")  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    try:
        return _call("landlock", _CREATE_RULESET, 0, 0, 1)
    except LockdownError:
        return 0


def landlock_rules(readable: Iterable[str], writable: str | None) -> int:
    """A ruleset: reading system paths and `readable`, writing the one folder, and nothing else.

    Args:
        readable: further folders to read from.
        writable: a folder in which files may be made, written and run.

    Returns:
        A file descriptor for `restrict`.

    Raises:
        LockdownError: the kernel refuses.
    """
    version = landlock_version()
    everything = (1 << _RIGHTS_SINCE.get(version, 16)) - 1
    handled = struct.pack("QQQ", everything, 0b11, 0b11)
    size = 8 if version < 4 else 16 if version < SCOPES_SINCE else 24
    created = _call("landlock_create_ruleset", _CREATE_RULESET, handled, size, 0)
    # Out of the way of the low numbers that children rearrange.
    rules = fcntl.fcntl(created, fcntl.F_DUPFD_CLOEXEC, 64)
    os.close(created)
    for path in (*SYSTEM, *readable):
        if path != "/":  # a Python whose prefix is the root finds its files in SYSTEM, or does not
            _allow(rules, path, _READ)
    for path in DEVICES:
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    if writable is not None:
        _allow(rules, writable, everything & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK))
    return rules


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there needs no leave
        return
    try:
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= _OF_FILES
        _call("landlock_add_rule", _ADD_RULE, rules, 1, struct.pack("=Qi", rights, target), 0)
    finally:
        os.close(target)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


# --- all together -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Lockdown:
    """Prepared once in the cell, applied in every child.

    Attributes:
        limits: what the child may use.
        tasks: RLIMIT_NPROC, None where it would count processes of others.
        rules: a Landlock ruleset, None where there is none.
        program: a seccomp filter, None for no protection at all.
    """

    limits: Limits
    tasks: int | None
    rules: int | None
    program: bytes | None

    def apply(self) -> None:
        """Locks this process down, for good.

        Raises:
            LockdownError: it failed; the process must end.
        """
        limits = self.limits
        values = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
            resource.RLIMIT_CPU: limits.cpu,
            resource.RLIMIT_FSIZE: limits.files,
            resource.RLIMIT_NOFILE: limits.open_files,
            resource.RLIMIT_AS: limits.memory,
        }
        if self.tasks is not None:
            values[resource.RLIMIT_NPROC] = self.tasks
        for kind, wanted in values.items():
            hard = resource.getrlimit(kind)[1]
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (value, value))
        if self.program is None:
            return
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self.rules is not None:
            _call("landlock_restrict_self", _RESTRICT_SELF, self.rules, 0)
            os.close(self.rules)
        code = for_process(self.program, os.getpid())
        program = _Program(len(code) // 8, code)
        if _libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) < 0:
            raise LockdownError(f"seccomp: {os.strerror(ctypes.get_errno())}")
