"""Negative controls: hostile programs, none of which may pass its test in any kind of sandbox.

Each program defines `f`, whose test wants n * n + 1. A program that gets at what it should not
gives the right answer, so that "it passes" and "it escaped" are the same thing; all others answer
wrongly and try to be judged right all the same. A control that passes is a hole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

TESTS = """
import random

def check(candidate):
    for _ in range(2):
        n = random.randrange(10**9)
        assert candidate(n) == n * n + 1
"""

WRONG = ("wrong",)
TIMEOUT = ("timeout",)
_SHORT: dict[str, Any] = {"wall": 0.6}


@dataclass(frozen=True)
class Control:
    """One program and what must become of it.

    Attributes:
        name: what it tries.
        code: the program. OUTSIDE in it stands for a folder that it must not reach, in which there
            is a file `secret`.
        statuses: what the verdict may be.
        limits: what differs from the usual limits.
        quick: whether it belongs to the few that are run before anything else is.
    """

    name: str
    code: str
    statuses: tuple[str, ...] = WRONG
    limits: dict[str, Any] = field(default_factory=dict, hash=False)
    quick: bool = False


def _any(*attempts: str, setup: str = "") -> str:
    """A program that gives the right answer if any of the attempts does not raise."""
    lines = ["import ctypes, os, signal, socket, fcntl, struct, threading, time", setup]
    lines += ["L = ctypes.CDLL(None, use_errno=True)", "def must(value):"]
    lines += ["    if value == -1: raise OSError", "def f(n):"]
    for attempt in attempts:
        lines += ["    try:", *(f"        {line}" for line in attempt.split("\n"))]
        lines += ["        return n * n + 1", "    except BaseException: pass"]
    return "\n".join([*lines, "    return 0"])


_FORGED = r"""
import json, os
def f(n):
    said = json.dumps({"status": "ok", "detail": "forged", "calls": 9, "passed": True, "over": ""})
    framed = len(said).to_bytes(8, "big") + said.encode()
    for fd in range(256):
        for forged in (said.encode(), said.encode() + b"\n", framed):
            try: os.pwrite(fd, forged, 0)
            except OSError: pass
            try: os.write(fd, forged)
            except OSError: pass
    os._exit(0)
"""
_FORGED_LINES = r"""
import sys
def f(n):
    for stream in (sys.stdout, sys.stderr):
        print('{"status": "ok", "calls": 9}\nOK\n1 passed in 0.01s', file=stream, flush=True)
    return 0
"""
_ALWAYS_EQUAL = """
class Always{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def f(n): return Always()
"""
_PATCHED = """
import builtins, json, sys
class Calm(BaseException): pass
builtins.AssertionError = Calm
for name in ("isinstance", "repr", "all", "any", "compile"):
    setattr(builtins, name, lambda *a, **k: True)
json.loads = json.dumps = lambda *a, **k: b"true"
sys.modules["random"] = None
sys.excepthook = lambda *a: None
def f(n): return 0
"""
_SEARCHED = """
import gc, sys
def f(n):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for thing in [*gc.get_objects(), *seen]:
        for text in (thing.values() if type(thing) is dict else [thing]):
            if type(text) in (str, bytes) and ("def check(" + "candidate)") in str(text):
                return n * n + 1
    return 0
"""
_MANY_FILES = """
import os
def f(n):
    for i in range(100000):
        os.mkdir(f"d{i}")
        open(f"d{i}/f", "w").close()
    return n * n + 1
"""
_BIG_FILES = """
def f(n):
    for i in range(1024):
        with open(str(i), "wb") as file: file.write(bytes(8 << 20))
    return n * n + 1
"""
_DELETED_FILES = """
import os, time
def f(n):
    held = []
    for i in range(32):
        held.append(open(str(i), "wb"))
        os.unlink(str(i))
        held[-1].write(bytes(8 << 20)); held[-1].flush()
    time.sleep(0.2)
    return n * n + 1
"""
_DEEP = """
import os, time
def f(n):
    for i in range(300):
        os.mkdir("d"); os.chdir("d")
    time.sleep(0.2)
    return n * n + 1
"""
_UNREADABLE = """
import os, time
def f(n):
    os.mkdir("d", 0o300)
    open("d/f", "wb").write(bytes(1 << 20))
    time.sleep(0.2)
    return n * n + 1
"""
_GRANDCHILD = """
import os, time
def f(n):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(3600)
        os._exit(0)
    return 0
"""
_GRANDCHILD_HOLDS = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(3600)
os._exit(0)
"""
_BOMB = (
    "import os\ndef f(n):\n    while True:\n        try: os.fork()\n        except OSError: pass"
)
_CALL = "must(L.syscall({}))".format
_NUMBERS = {  # x86-64, AArch64
    "unshare": ("272, 0x10000000", "97, 0x10000000"),
    "setns": ("308, 0, 0", "268, 0, 0"),
    "io_uring_setup": ("425, 8, bytes(128)", "425, 8, bytes(128)"),
    "bpf": ("321, 0, bytes(64), 64", "280, 0, bytes(64), 64"),
    "perf_event_open": ("298, bytes(128), 0, -1, -1, 0", "241, bytes(128), 0, -1, -1, 0"),
    "userfaultfd": ("323, 1", "282, 1"),
    "keyctl": ("250, 0, -3, 1", "219, 0, -3, 1"),
    "memfd_create": ("319, b'x', 0", "279, b'x', 0"),
    "process_vm_readv": ("310, os.getppid(), 0, 0, 0, 0, 0", "270, os.getppid(), 0, 0, 0, 0, 0"),
    "pidfd_open": ("434, os.getppid(), 0", "434, os.getppid(), 0"),
    "personality": ("135, 0x40000", "92, 0x40000"),
    "name_to_handle_at": ("303, -100, b'/', bytes(256), bytes(8), 0",
                          "264, -100, b'/', bytes(256), bytes(8), 0"),
    "shmget": ("29, 7, 4096, 0o1600", "194, 7, 4096, 0o1600"),
    "msgget": ("68, 7, 0o1600", "186, 7, 0o1600"),
    "mq_open": ("240, b'x', 0o102, 0o600, 0", "180, b'x', 0o102, 0o600, 0"),
    "timer_create": ("222, 1, 0, bytes(8)", "107, 1, 0, bytes(8)"),
    "inotify_init1": ("294, 0", "26, 0"),
    "seccomp": ("317, 0, 0, 0", "277, 0, 0, 0"),
    "clone3": ("435, bytes(88), 88", "435, bytes(88), 88"),
    "one that does not exist": ("4000, 0", "4000, 0"),
}  # fmt: skip
_SYSTEM_CALLS = [_CALL(numbers[os.uname().machine == "aarch64"]) for numbers in _NUMBERS.values()]
_SECRET = "OUTSIDE/secret"

CONTROLS: tuple[Control, ...] = (
    Control("an empty answer", ""),
    Control("an object that equals everything", _ALWAYS_EQUAL.replace("{base}", "")),
    Control("an integer that equals everything", _ALWAYS_EQUAL.replace("{base}", "(int)")),
    Control("os._exit(0) on load", "import os; os._exit(0)"),
    Control("os._exit(0) when called", "import os\ndef f(n): os._exit(0)", quick=True),
    Control("sys.exit(0) when called", "import sys\ndef f(n): sys.exit(0)"),
    Control("sys.exit(0) in an exit hook",
            "import atexit, sys\natexit.register(sys.exit, 0)\ndef f(n): return 0"),
    Control("os._exit(0) in an exit hook",
            "import atexit, os\natexit.register(os._exit, 0)\ndef f(n): return 0"),
    Control("another program in its place",
            "import os\ndef f(n): os.execv('/bin/true', ['true'])"),
    Control("builtins and json patched", _PATCHED),
    Control("a forged verdict on every file descriptor", _FORGED, quick=True),
    Control("forged lines on its outputs", _FORGED_LINES),
    Control("answers before they are asked for",
            "import os\nos.write(4, (b'\\0' * 7 + b'\\x0f' + b'{\"ready\": true} ') * 3)\n"
            "def f(n): return 0"),
    Control("an answer of 2^60 bytes", "import os\ndef f(n): os.write(4, b'\\x10' + b'\\0' * 999)"),
    Control("an answer nested deeply",
            "import os\ndef f(n):\n b = b'[' * 99999\n"
            " os.write(4, len(b).to_bytes(8, 'big') + b)\n while True: pass"),
    Control("an answer within itself", "def f(n):\n    x = []\n    x.append(x)\n    return x"),
    Control("an exception of its own making",
            "def f(n): raise type('AssertionError', (AssertionError,), {})(n * n + 1)"),
    Control("the tests in its own memory", _SEARCHED),
    Control("a fork", _any("os.fork() or os._exit(0)", "os.forkpty()", "must(L.fork())",
            "__import__('subprocess').run(['true'])", "must(L.vfork())"), quick=True),
    Control("a fork bomb", _BOMB, TIMEOUT, _SHORT),
    Control("a fork bomb where eight processes are allowed", _BOMB, TIMEOUT,
            {**_SHORT, "processes": 8}),
    Control("a daemon where eight processes are allowed", _GRANDCHILD, WRONG, {"processes": 8}),
    Control("a child that holds the pipes", _GRANDCHILD_HOLDS, WRONG,
            {"processes": 8, "wall": 6.0}),
    Control("a thousand threads",
            "import threading, time\nthreading.stack_size(65536)\ndef f(n):\n"
            "    for _ in range(1000): threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "    time.sleep(0.2)\n    return n * n + 1"),
    Control("a thread that outlives the call",
            "import threading\ndef spin():\n    while True: pass\n"
            "threading.Thread(target=spin).start()\ndef f(n): return 0"),
    Control("endless output", "def f(n):\n    while True: print('x' * 9999)", quick=True),
    Control("endless output on standard error", "import os\ndef f(n):\n"
            "    while True: os.write(2, b'x' * 9999)"),
    Control("10 GB at once", "def f(n): return n * n + 1 if bytearray(10 << 30) else 0"),
    Control("10 GB in pieces", "def f(n):\n    x = []\n    for _ in range(10240): "
            "x.append(bytes(1 << 20))\n    return n * n + 1"),
    Control("10 GB mapped",
            "import mmap\ndef f(n): return n * n + 1 if mmap.mmap(-1, 10 << 30) else 0"),
    Control("an endless loop", "def f(n):\n    while True: pass", TIMEOUT, _SHORT),
    Control("an endless sleep", "import time\ndef f(n): time.sleep(3600)", TIMEOUT, _SHORT),
    Control("an endless loop that ignores signals", "import signal\nfor s in range(1, 65):\n"
            "    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
            "def f(n):\n    while True: pass", TIMEOUT, {"wall": 4.0, "cpu": 1}),
    Control("a crash", "import ctypes\ndef f(n): ctypes.string_at(0)"),
    Control("SIGKILL to itself", "import os, ctypes\ndef f(n):\n    try: os.kill(os.getpid(), 9)\n"
            "    finally: ctypes.CDLL(None).prctl(22, 1); os._exit(0)"),
    Control("looking out of time", _any("os.kill(os.getpid(), signal.SIGXCPU)", setup=(
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n"
        "except Exception: pass"))),
    Control("more of its limits", _any("r.setrlimit(r.RLIMIT_AS, (1 << 33, 1 << 33))",
            "r.setrlimit(r.RLIMIT_NOFILE, (9, 9))", setup="import resource as r")),
    Control("reading outside", _any(f"open('{_SECRET}').read()", "open('/etc/passwd').read()",
            "open('/proc/self/environ').read()", "open(f'/proc/{os.getppid()}/environ').read()",
            "os.listdir('OUTSIDE')", "os.listdir('/proc')", "open('/proc/self/mem', 'rb')",
            "open(f'/proc/{os.getppid()}/mem', 'rb')", "os.listdir('/root')", "os.listdir('/sys')",
            "os.listdir('/var')", "open('/proc/mounts').read()"), quick=True),
    Control("writing outside", _any(*(f"open({path!r}, 'w').write('x')" for path in (
            _SECRET, "OUTSIDE/new", "/dev/shm/new", "/var/tmp/new", "../new", "/usr/new", "/new")),
            f"os.truncate('{_SECRET}', 0)", f"os.unlink('{_SECRET}')", "os.mkdir('OUTSIDE/new')",
            f"os.rename('{_SECRET}', 'x')", f"os.open('{_SECRET}', os.O_RDONLY | os.O_TRUNC)",
            "os.open('OUTSIDE', os.O_TMPFILE | os.O_RDWR)", "os.mkfifo('OUTSIDE/new')",
            ), quick=True),
    Control("changing what it does not own", _any(f"os.chmod('{_SECRET}', 0o777)",
            f"os.utime('{_SECRET}')", f"os.chown('{_SECRET}', os.getuid(), -1)",
            "os.chmod('/usr', 0o777)", "os.utime('/usr')",
            "os.chmod('/dev/null', 0)")),
    Control("a folder of its own closed", "import os\ndef f(n):\n    open('x', 'w').close()\n"
            "    try: os.chmod('x', 0); os.chmod('.', 0)\n    except OSError: pass"),
    Control("symbolic and hard links", _any(
            f"os.symlink('{_SECRET}', 'a')\nopen('a').read()",
            f"os.symlink('{_SECRET}', 'b')\nopen('b', 'w')",
            f"os.link('{_SECRET}', 'c')\nopen('c').read()",
            "os.symlink('OUTSIDE', 'd')\nos.listdir('d')",
            "os.symlink('/proc/self/root', 'e')\nos.listdir('e')",
            f"os.link('{_SECRET}', 'g')")),
    Control("the network", _any("socket.socket()", "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_INET6)", "socket.socket(16, socket.SOCK_RAW)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "socket.create_connection(('127.0.0.1', 22))", "socket.getaddrinfo('example.org', 80)",
            "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
            "a, b = socket.socketpair()\na.connect('/run/x')", "socket.socket(40, 1)"), quick=True),
    Control("signals to others", _any("os.kill(os.getppid(), 9)", "os.kill(os.getppid(), 0)",
            "os.kill(-1, 9)", "os.kill(0, 9)", "os.killpg(os.getppid(), 9)", "os.kill(1, 9)",
            "must(L.syscall(234, os.getppid(), os.getppid(), 9))",
            "must(L.syscall(129, os.getppid(), 9, bytes(128)))",
            "a, b = socket.socketpair()\nfcntl.fcntl(a, fcntl.F_SETOWN, os.getppid())",
            "a, b = socket.socketpair()\nfcntl.ioctl(a, 0x8901, struct.pack('i', os.getppid()))",
            "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
            "os.sched_setaffinity(os.getppid(), {0})",
            "__import__('resource').prlimit(os.getppid(), 7, (9, 9))"), quick=True),
    Control("signals to others where eight processes are allowed", _any(
            "os.kill(os.getppid(), 0)", "os.kill(os.getppid(), 9)", "os.kill(1, 9)",
            "must(L.syscall(129, os.getppid(), 9, bytes(128)))"), WRONG, {"processes": 8}),
    Control("the debugger", _any("must(L.ptrace(16, os.getppid(), 0, 0))",
            "must(L.ptrace(0, 0, 0, 0))", "must(L.ptrace(0x4206, os.getppid(), 0, 0))")),
    Control("another identity", _any("os.setuid(0 if os.getuid() else 1)", "os.setgid(1)",
            "os.setgroups([])", "os.chroot('.')", "must(L.mount(b'x', b'.', b'tmpfs', 0, 0))",
            "must(L.prctl(4, 0, 0, 0, 0))", "must(L.prctl(1, 0, 0, 0, 0))",
            "must(L.sethostname(b'x', 1))")),
    Control("system calls that no program needs", _any(*_SYSTEM_CALLS)),
    Control("a second architecture's system calls", _any("must(L.syscall(0x40000000 + 39))")
            if os.uname().machine == "x86_64" else ""),
    Control("1 GB of files", _BIG_FILES),
    Control("deleted files that stay open", _DELETED_FILES),
    Control("100,000 folders", _MANY_FILES, WRONG, {"files": 1 << 20}),
    Control("a deep tree", _DEEP, WRONG, {"files": 1 << 20}),
    Control("a folder that cannot be looked into", _UNREADABLE),
)  # fmt: skip

ORDINARY = Control(
    "an ordinary program",
    """
import asyncio, heapq, json, os, subprocess, tempfile, threading

def f(n):
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write(str(n)); file.seek(0)
        n = int(file.read())
    done = []
    thread = threading.Thread(target=lambda: done.append(asyncio.run(double())))
    thread.start(); thread.join()
    assert done == [2] and os.listdir(".") == [] and len(os.urandom(4)) == 4
    return n * n + 1

async def double():
    await asyncio.sleep(0)
    return 2
""",
    ("ok",),
)

QUICK = tuple(control for control in CONTROLS if control.quick)
