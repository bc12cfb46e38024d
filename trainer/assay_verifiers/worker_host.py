"""The process that worker processes are forked from, and what a worker does.

It is started as a program of its own (by `workers.Workers`), imports what workers need once and
then forks one whenever it is told to, which takes milliseconds. Being no copy of the user's process
it has none of its threads, files and locks, and never runs the user's `__main__`.

Nothing survives: a closed control socket, also that of a user's process that was killed, ends the
host, and so does being adopted by another process; the host kills its workers when it ends, and the
kernel does where the host was killed itself.

Control messages (SOCK_SEQPACKET): `I <module>` imports a module and calls its `warm_up`, if it has
one; `F <id> <address space>` with a socket's descriptor forks a worker on that socket; `K <id>`
kills it. On a worker's socket go frames, see `frame`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

HEADER = struct.Struct("!cI")
READY, VALUE, RAISED, ENDED = b"R", b"V", b"E", b"X"
_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0
_LONGEST_FRAME = 2**32 - 1


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """A message: its kind, its length, its payload, pickled.

    READY: the worker waits for calls. VALUE: a call (function, args, kwargs) or its result.
    RAISED: the name and text of an exception. ENDED: the worker's exit status in ASCII,
    written by the host.
    """
    if len(payload) > _LONGEST_FRAME:
        raise ValueError("a message of more than 4 GiB")
    return HEADER.pack(kind, len(payload)) + payload


def main() -> None:
    """Runs the host on the control socket until it is closed."""
    settings = json.loads(sys.argv[1])
    Host(socket.socket(fileno=settings["control"]), settings["parent"]).run()


class Host:
    """Forks, kills and reaps workers.

    Args:
        control: the socket on which it is told to.
        parent: the user's process. It may have forked others that still hold the control socket
            when it is gone.
    """

    def __init__(self, control: socket.socket, parent: int) -> None:
        self._control = control
        self._parent = parent
        self._pids: dict[int, int] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._prctl = ctypes.CDLL(None).prctl
        self._wake, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    def run(self) -> None:
        """Serves until the control socket is closed."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            while os.getppid() == self._parent:
                ready, _, _ = select.select([self._control, self._wake], [], [], _LOOK_SECONDS)
                if self._wake in ready:
                    self._wake.recv(4096)
                    self._reap()
                if self._control in ready and not self._obey():
                    return
        finally:
            for worker in list(self._pids):
                self._kill(worker)
            for pid in list(self._pids.values()):
                os.waitpid(pid, 0)

    def _obey(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, 256, 1)
        if not message:
            return False
        order, subject, *rest = message.split()
        if order == b"K":
            self._kill(int(subject))
        elif order == b"I":
            _load(subject.decode())
            # What is imported is never garbage: workers share these pages with the host for long.
            gc.collect()
            gc.freeze()
        else:
            self._fork(int(subject), socket.socket(fileno=descriptors[0]), int(rest[0]))
        return True

    def _fork(self, worker: int, connection: socket.socket, memory: int) -> None:
        host = os.getpid()
        try:
            pid = os.fork()
        except OSError as reason:
            connection.sendall(frame(ENDED, f"not started: {reason}".encode()))
            connection.close()
            return
        if pid == 0:
            try:
                self._become_worker(connection, host, memory)
            finally:
                os._exit(0)
        self._pids[worker] = pid
        self._sockets[worker] = connection

    def _become_worker(self, connection: socket.socket, host: int, memory: int) -> None:
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != host:
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in (self._control, self._wake, self._waker, *self._sockets.values()):
            other.close()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        serve(connection)

    def _kill(self, worker: int) -> None:
        # A worker stays in the table until it is reaped, so its pid cannot be another's.
        if pid := self._pids.get(worker):
            os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        names = {pid: worker for worker, pid in self._pids.items()}
        while names:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = names.pop(pid)
            del self._pids[worker]
            connection = self._sockets.pop(worker)
            # Nobody may listen any more, and a full buffer is no reason to wait.
            with suppress(OSError):
                connection.send(
                    frame(ENDED, str(os.waitstatus_to_exitcode(status)).encode()),
                    socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
                )
            connection.close()


def _load(module: str) -> None:
    # What is not installed or does not work is told by the call that needs it.
    with suppress(Exception):
        getattr(importlib.import_module(module), "warm_up", lambda: None)()


def serve(connection: socket.socket) -> None:
    """A worker's life: calls in, results out, until the other end is closed."""
    connection.sendall(frame(READY))
    while call := _receive(connection):
        connection.sendall(_answer(call))


def _answer(call: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(call)
        return frame(VALUE, pickle.dumps(function(*args, **kwargs)))
    except BaseException as raised:
        try:
            return frame(RAISED, pickle.dumps((type(raised).__name__, str(raised)[:10_000])))
        except BaseException:  # no memory left, or an exception that has no text
            return frame(RAISED, pickle.dumps((type(raised).__name__, "")))


def _receive(connection: socket.socket) -> bytes:
    """A frame's payload; empty at the end."""
    header = connection.recv(HEADER.size, socket.MSG_WAITALL)
    if len(header) < HEADER.size:
        return b""
    _, length = HEADER.unpack(header)
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            return b""
        parts += part
    return bytes(parts)
