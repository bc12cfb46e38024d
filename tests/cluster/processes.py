"""Commands: run to the end with their output kept, or streamed line by line."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.errors import ClusterError


def capture(
    *argv: str | Path,
    input: str | None = None,  # named as subprocess names it
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it printed; a failure tells the command and its stderr."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=input,
            # Without input a command must not read the caller's terminal.
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            env=None if env is None else {**os.environ, **env},
            check=False,
            timeout=timeout,
        )
    except FileNotFoundError:
        done = subprocess.CompletedProcess(words, 127, "", f"{words[0]}: not found\n")
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(words, 124, "", f"no answer within {timeout} s\n")
    if check and done.returncode:
        output = (done.stderr or done.stdout).strip()
        raise ClusterError(f"{' '.join(words)} ended with exit code {done.returncode}: {output}")
    return done


class Processes:
    """The children of a run: all end when it fails, is interrupted, or is killed itself."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        # Ends a child with the thread that started it, so that nothing goes on building (or,
        # worse, cleaning up a cluster that a new run just made) after this process is killed.
        setpriv = shutil.which("setpriv")
        self._prefix = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []

    def stream(
        self,
        argv: list[str],
        on_line: Callable[[str], None],
        *,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Path | None = None,
    ) -> int:
        """Run a command, handing on each line of its output; returns its exit code."""
        if not shutil.which(argv[0]):
            raise ClusterError(f"{argv[0]}: not found")
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            with self._lock:
                if self._stopped:
                    raise ClusterError("stopped")
                process = subprocess.Popen(
                    [*self._prefix, *argv],
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env={**os.environ, **(env or {})},
                    cwd=cwd,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    on_line(line.rstrip("\n"))
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop_all(self, patience: float = 10.0) -> None:
        """End all children with what they started."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
