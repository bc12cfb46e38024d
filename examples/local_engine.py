"""One SGLang engine on this machine's CPU, without a cluster: what the engine's container runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from assay_operator.inference.profiles import resolve
from tests.assay import build_env_module
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY

LAUNCHER = REPOSITORY / "images/engine/launch.py"
START_SECONDS = 240
STOP_SECONDS = 10
LOG_TAIL = 3000


@dataclass(frozen=True)
class LocalEngine:
    """A running engine.

    Attributes:
        process: its first process.
        url: where it answers.
        log: what it printed.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait(self, note: Callable[[str], None]) -> None:
        """Until it serves; says now and then how long that has taken.

        Raises:
            ClusterError: it ended, or takes too long.
        """
        began = time.monotonic()
        while (waited := time.monotonic() - began) < START_SECONDS:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            note(f"loading, {waited:.0f} s")
            time.sleep(0.5)
        tail = self.log.read_text(errors="replace")[-LOG_TAIL:]
        raise ClusterError(f"SGLang did not start:\n{tail}", f"Its whole log: {self.log}")


@contextlib.contextmanager
def local_engine(
    environment: Path, model: Path, folder: Path, *arguments: str, port: int | None = None
) -> Iterator[LocalEngine]:
    """Starts an engine with the arguments of the CPU profile, and stops it whatever happens.

    It is not ready yet: see `LocalEngine.wait`. Also a caller that is killed takes it along, where
    the machine has setpriv and this is called in the caller's main thread.

    Args:
        environment: the folder of its packages, as images/engine/cpu/build_env.py makes it.
        model: what it serves.
        folder: of its log, and its home.
        arguments: SGLang's, which go before the profile's.
        port: where it listens; None: on one that is free.

    Raises:
        ClusterError: there is no Python of the version that the environment is for.
    """
    build_env = build_env_module()
    python = build_env.matching_python()
    if python is None:
        raise ClusterError(
            f"the engine needs Python {build_env.PYTHON}.",
            f"Install it (Debian: python3) so that python{build_env.PYTHON} is found.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    pointer = folder / "pointer.json"
    pointer.write_text(json.dumps({"path": str(model), "version": "start"}))
    log = folder / "engine.log"
    port = port or free_port()
    profile = resolve("auto", "cpu", "throughput", None)
    setpriv = shutil.which("setpriv")
    command = [
        *((setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()),
        *(python, str(LAUNCHER), "--host", "127.0.0.1", "--port", str(port)),
        *(*profile.args, *arguments),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            # Nothing of the caller's: what is set there must not reach torch or SGLang.
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "PYTHONPATH": str(environment),
                "HF_HUB_OFFLINE": "1",
                **profile.env,
                "ASSAY_POINTER": str(pointer),
                "ASSAY_TERMINATION_LOG": str(folder / "termination-log"),
            },
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is for the caller, which then stops the engine last.
            start_new_session=True,
        )
    try:
        yield LocalEngine(process, f"http://127.0.0.1:{port}", log)
    finally:
        _stop(process)


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    # Its scheduler and detokenizer are processes of their own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
