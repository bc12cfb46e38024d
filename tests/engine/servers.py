"""Real SGLang servers, started as an engine's container does, with the CPU profile's arguments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from assay_operator.inference.profiles import resolve
from tests.engine.conftest import ROOT, EngineEnv

LAUNCHER = ROOT / "images/engine/launch.py"
START_SECONDS = 240
VERSION = "sha256:0123456789abcdef"


@dataclass(frozen=True)
class Server:
    """A running engine."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def kill(self) -> None:
        """Ends it and its processes at once, as a machine that fails does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(
    engine_env: EngineEnv, model: Path, folder: Path, port: int, *arguments: str, **environment: str
) -> Iterator[Server]:
    """A server that is ready, until the block ends."""
    server = start(engine_env, model, folder, port, *arguments, **environment)
    try:
        wait_until_ready(server)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(60)
        server.kill()


def start(
    engine_env: EngineEnv, model: Path, folder: Path, port: int, *arguments: str, **environment: str
) -> Server:
    """A server that is not ready yet, with more arguments and environment than the profile's."""
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            launch_line(engine_env, port, *arguments),
            env={**launch_environment(engine_env, folder, model), **environment},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launch_line(engine_env: EngineEnv, port: int, *extra: str) -> list[str]:
    """What the engine's container runs, with the arguments of the CPU profile."""
    return [
        *(engine_env.python, str(LAUNCHER), "--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", "tiny", "--enable-metrics"),
        *resolve("auto", "cpu", "throughput", None).args,
        *extra,
    ]


def launch_environment(engine_env: EngineEnv, folder: Path, model: Path) -> dict[str, str]:
    pointer = folder / "pointer.json"
    pointer.write_text(json.dumps({"path": str(model), "version": VERSION}))
    # The profile's folder is for a pod, which has one engine.
    profile = {
        **resolve("auto", "cpu", "throughput", None).env,
        "ASSAY_KERNELS_DIR": str(folder / "kernels"),
    }
    return engine_env.environment(
        **profile,
        ASSAY_POINTER=str(pointer),
        ASSAY_TERMINATION_LOG=str(folder / "termination-log"),
        HOME=str(folder),
    )


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{server.log.read_text()[-4000:]}", pytrace=False)
