"""The filter for system calls: which are let through, which depend on their arguments.

Classic BPF over `struct seccomp_data` (number, architecture, instruction pointer, arguments).
Sources: seccomp(2), `linux/seccomp.h`, `linux/bpf_common.h`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

from .syscalls import ARCHITECTURES, LAST_KNOWN, allowed, checked, of_owners

_LOAD, _EQUAL, _GREATER, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _refuse(number: int) -> int:
    return 0x00050000 | number


_FORBIDDEN_CLONE = 0x7E020000 | 0x8000 | 0x2000  # new namespaces, a sibling, a traced child
_CLONE_THREAD = 0x10000
# Commands of fcntl that send signals to others (F_SETOWN, F_SETSIG) or hold up other processes
# (F_SETLEASE) are not among these.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 9, 36, 37, 38, 1030, 1031, 1032)
# Is it a terminal, its size, bytes waiting, non-blocking, close on exec. Not among these: typing
# into a terminal (TIOCSTI), signals (FIOSETOWN), attributes of files (FS_IOC_SETFLAGS).
_IOCTL = (0x5401, 0x5413, 0x540F, 0x541B, 0x5421, 0x5450, 0x5451)
# Names of threads and memory, and questions. Not: PR_SET_PDEATHSIG, PR_SET_DUMPABLE,
# PR_SET_SECCOMP (whose strict mode is a way to look killed from outside).
_PRCTL = (2, 3, 15, 16, 21, 23, 29, 30, 38, 39, 0x53564D41)

Instruction = tuple[int, int, int, int]
_OWN_PID = 0x7FFFFFF7  # stands in the program for the number of the process that loads it


def _argument(index: int) -> Instruction:
    return _LOAD, 0, 0, 16 + 8 * index  # the low word: all that the kernel reads of an int


def _one_of(index: int, values: Sequence[int], otherwise: int) -> list[Instruction]:
    tests = [(_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [_argument(index), *tests, (_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, _ALLOW)]


def _to_itself(signal_index: int) -> list[Instruction]:
    # Not SIGKILL: a program that dies of one was then killed from outside, and nobody can feign it.
    refuse = (_RETURN, 0, 0, _refuse(errno.EPERM))
    return [
        _argument(0), (_EQUAL, 1, 0, _OWN_PID), refuse,
        _argument(signal_index), (_EQUAL, 0, 1, 9), refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip


def _special(processes: int, signals: bool) -> dict[str, list[Instruction]]:
    """What becomes of the calls that depend on their arguments."""
    refuse, allow = (_RETURN, 0, 0, _refuse(errno.EPERM)), (_RETURN, 0, 0, _ALLOW)
    one = processes == 1
    clone = [_argument(0), (_ANY_BIT, 0, 1, _FORBIDDEN_CLONE), refuse]
    if one:
        clone += [(_ANY_BIT, 1, 0, _CLONE_THREAD), refuse]
    return {
        "clone": [*clone, allow],
        "clone3": [(_RETURN, 0, 0, _refuse(errno.ENOSYS))],  # its flags lie in memory: unreadable
        "fork": [refuse if one else allow],
        "vfork": [refuse if one else allow],
        "kill": [allow] if signals else _to_itself(1),
        "tgkill": [allow] if signals else _to_itself(2),
        "prctl": _one_of(0, _PRCTL, _refuse(errno.EINVAL)),
        "ioctl": _one_of(1, _IOCTL, _refuse(errno.ENOTTY)),
        "fcntl": _one_of(1, _FCNTL, _refuse(errno.EPERM)),
        # Stream pairs only: a datagram socket could send to any address.
        "socketpair": [
            _argument(0), (_EQUAL, 1, 0, socket.AF_UNIX), refuse,
            *_one_of(1, [1 | flags for flags in (0, 0o4000, 0o2000000, 0o2004000)],
                     _refuse(errno.EPERM)),
        ],
        # Asking for one's own limits; lowering RLIMIT_CPU would be a way to look out of time.
        "prlimit64": [
            _argument(0), (_EQUAL, 1, 0, 0), refuse,
            _argument(2), (_EQUAL, 1, 0, 0), refuse,
            (_LOAD, 0, 0, 16 + 8 * 2 + 4), (_EQUAL, 1, 0, 0), refuse, allow,
        ],
    }  # fmt: skip


def seccomp_program(machine: str, processes: int, signals: bool, owner: bool) -> bytes:
    """The filter, for any process; see `for_process`.

    Args:
        machine: as `platform.machine` says.
        processes: 1 refuses every fork.
        signals: whether Landlock already keeps signals among the program's own processes; they
            are otherwise limited to the process itself.

        owner: whether the program's user owns nothing beside the program's own files, so that it
            may change their modes and times.

    Raises:
        KeyError: there is no table of system calls for this machine.
    """
    kill = (_RETURN, 0, 0, _KILL)
    program: list[Instruction] = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, ARCHITECTURES[machine][1]), kill,
        (_LOAD, 0, 0, 0),
    ]  # fmt: skip
    if machine == "x86_64":  # the x32 calls: the same numbers with this bit
        program += [(_AT_LEAST, 0, 1, 0x40000000), kill]
    numbers = checked(machine)
    for name, block in _special(processes, signals).items():
        if name in numbers:
            program += [(_EQUAL, 0, len(block), numbers[name]), *block]
    for first, last in _ranges(sorted([*allowed(machine), *(of_owners(machine) if owner else ())])):
        program += [(_AT_LEAST, 0, 2, first), (_GREATER, 1, 0, last), (_RETURN, 0, 0, _ALLOW)]
    program += [
        (_GREATER, 0, 1, LAST_KNOWN), (_RETURN, 0, 0, _refuse(errno.ENOSYS)),
        (_RETURN, 0, 0, _refuse(errno.EPERM)),
    ]  # fmt: skip
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def for_process(program: bytes, pid: int) -> bytes:
    """The filter for the process with this number, which may signal itself."""
    return program.replace(struct.pack("I", _OWN_PID), struct.pack("I", pid))
