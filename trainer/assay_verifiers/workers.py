"""Worker processes that can be killed: every judgement that may hang runs in one, with a deadline.

A thread cannot be killed and SIGALRM works in a main thread only, which is how verifiers come to
hang or to answer silent zeros. A process can: when an item's time is over, its worker is killed and
replaced, and nobody else waits.

Each worker has a socket of its own, so that no lock and no pipe is shared: one that is killed in
the middle of anything harms no other. See `worker_host` for where workers come from.
"""

from __future__ import annotations

import asyncio
import builtins
import io
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from assay_verifiers.worker_host import ENDED, HEADER, RAISED, READY, VALUE, frame

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_MEMORY_MIB = 4096
_START_SECONDS = 120
_HOST = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); \
from assay_verifiers.worker_host import main; main()"


class WorkerTimeout(Exception):
    """The call took longer than it may; its worker was killed."""


class WorkerDied(Exception):
    """The worker ended in mid-call: killed by the system, or by what it was asked to do."""


class WorkerRaised(Exception):
    """The function raised an exception that is none of Python's own."""


class _PlainData(pickle.Unpickler):
    """Results are data: a worker that was taken over cannot have its parent import or call."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a result must be plain data, not {module}.{name}")


class _Worker:
    """The parent's end of one worker."""

    def __init__(self, name: int, connection: socket.socket) -> None:
        self.name = name
        self.calls = 0
        self.idle = False
        self.ended: str | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        connection.setblocking(False)
        self.connection = connection
        self._loop.add_reader(connection, self._read)

    async def answer(self) -> tuple[bytes, bytes]:
        """The next frame's kind and payload.

        Raises:
            WorkerDied: there will be none.
        """
        while (found := self.take()) is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        return found

    def take(self) -> tuple[bytes, bytes] | None:
        """The next frame, if it has come. Raises `WorkerDied` where none can."""
        self._read()
        if len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) >= end:
                payload = bytes(self._buffer[HEADER.size : end])
                del self._buffer[:end]
                if kind != ENDED:
                    return kind, payload
                self.ended = payload.decode(errors="replace")
        if self.ended is not None:
            raise WorkerDied(f"the worker ended: {_exit_text(self.ended)}")
        return None

    def _read(self) -> None:
        try:
            while part := self.connection.recv(1 << 18):
                self._buffer += part
            self.end("")
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as reason:
            self.end(str(reason))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, why: str) -> None:
        """Closes this end; a worker that waits for a call ends by that."""
        if self.ended is None:
            self.ended = why
        if self.connection.fileno() >= 0:
            self._loop.remove_reader(self.connection)
            self.connection.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _exit_text(code: str) -> str:
    try:
        number = int(code)
    except ValueError:
        return code or "its connection broke"
    return f"killed by signal {-number}" if number < 0 else f"exit code {number}"


class Workers:
    """A pool of killable worker processes. It belongs to the event loop that it is made in.

    Args:
        count: how many; the number of cores by default.
        preload: modules that the processes share from the start, so that a new one costs little.
            The list is looked at again before each new process, for what was added to it.
        memory_mib: address space of each.
        calls: after how many calls a worker is replaced, so that memory stays flat.
    """

    def __init__(
        self,
        count: int | None = None,
        *,
        preload: Sequence[str] = (),
        memory_mib: int = DEFAULT_MEMORY_MIB,
        calls: int = 2000,
    ) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._preload = preload
        self._loaded: list[str] = []
        self._memory = memory_mib << 20
        self._calls = calls
        self._slots = asyncio.Semaphore(self.count)
        self._names = itertools.count(1)
        self._workers: dict[int, _Worker] = {}
        self._host: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closed = False

    async def call(
        self, seconds: float, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Calls a module-level function with picklable arguments in a worker.

        Args:
            seconds: its deadline, from when a worker starts on it.

        Raises:
            WorkerTimeout: it was not done in time.
            WorkerDied: the worker ended.
            ValueError: the function stands in `__main__`, which workers do not import.
            WorkerRaised: the function raised something that is no exception of Python's own; those
                are raised as they are, with their text only.
            pickle.UnpicklingError: the result is more than None, numbers, text and containers.
        """
        if function.__module__ == "__main__":
            raise ValueError(f"{function.__qualname__} must stand in a module that can be imported")
        call = frame(VALUE, pickle.dumps((function, args, kwargs)))
        async with self._slots:
            worker = await self._free()
            try:
                kind, payload = await self._ask(worker, call, seconds)
            except BaseException:
                self._kill(worker)
                raise
            self._release(worker)
        if kind == RAISED:
            raise _exception(*_plain(payload))
        result: T = _plain(payload)
        return result

    async def _ask(self, worker: _Worker, call: bytes, seconds: float) -> tuple[bytes, bytes]:
        worker.calls += 1
        try:
            async with asyncio.timeout(seconds):
                with suppress(OSError):  # what it died of is the next answer
                    await asyncio.get_running_loop().sock_sendall(worker.connection, call)
                return await worker.answer()
        except TimeoutError as reason:
            # An event loop that was busy elsewhere sees the timer and the answer at once.
            if answer := worker.take():
                return answer
            raise WorkerTimeout(f"not done within {seconds:g} s") from reason

    async def _free(self) -> _Worker:
        """A worker that waits for a call."""
        for worker in list(self._workers.values()):
            if worker.idle and worker.ended is None:
                worker.idle = False
                return worker
            if worker.idle:
                del self._workers[worker.name]
        return await self._start()

    async def _start(self) -> _Worker:
        if self._closed:
            raise WorkerDied("the workers were closed")
        name = next(self._names)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._order_worker(name, theirs)
            except OSError:
                # The host was killed by somebody, and its workers with it.
                self._stop_host()
                self._order_worker(name, theirs)
        worker = self._workers[name] = _Worker(name, ours)
        try:
            async with asyncio.timeout(_START_SECONDS):
                kind, _ = await worker.answer()
                assert kind == READY
        except BaseException:
            self._kill(worker)
            raise
        return worker

    def _order_worker(self, name: int, connection: socket.socket) -> None:
        control = self._running_host()
        for module in set(self._preload).difference(self._loaded):
            control.send(f"I {module}".encode())
            self._loaded.append(module)
        socket.send_fds(control, [f"F {name} {self._memory}".encode()], [connection.fileno()])

    def _release(self, worker: _Worker) -> None:
        if worker.calls < self._calls and worker.ended is None:
            worker.idle = True
        else:
            worker.end("replaced")
            del self._workers[worker.name]

    def _kill(self, worker: _Worker) -> None:
        worker.end("killed")
        self._workers.pop(worker.name, None)
        if self._control is not None:
            with suppress(OSError):
                self._control.send(f"K {worker.name}".encode())

    def _running_host(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                settings = {"control": theirs.fileno(), "parent": os.getpid()}
                self._loaded = []
                self._host = subprocess.Popen(
                    [sys.executable, "-c", _HOST, json.dumps(settings), json.dumps(sys.path)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # Whatever a worker prints must not stand among the user's results.
                    stdout=subprocess.DEVNULL,
                    # Ctrl-C in a terminal is for the user's process, which then closes this one.
                    start_new_session=True,
                )
        return self._control

    def _stop_host(self) -> None:
        if self._control is None or self._host is None:
            return
        self._control.close()
        self._control = None
        try:
            self._host.wait(5)
        except subprocess.TimeoutExpired:
            self._host.kill()
            self._host.wait()

    def close(self) -> None:
        """Kills the workers and waits until they are gone; calls under way raise `WorkerDied`."""
        self._closed = True
        for worker in self._workers.values():
            worker.end("the workers were closed")
        self._workers.clear()
        self._stop_host()


def _plain(payload: bytes) -> Any:
    return _PlainData(io.BytesIO(payload)).load()


def _exception(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):  # some want more than a text
            return kind(text)
    return WorkerRaised(f"{name}: {text}")
