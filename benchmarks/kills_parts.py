"""What benchmarks.kills kills: trainers of a run, and engines that stay on their ports."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from assay_trainer import metrics
from benchmarks.common import Json
from examples.local_engine import LocalEngine, free_port, local_engine
from examples.train_demo import ENGINE_ARGUMENTS, SOURCES, trainer_variables
from tests.cluster.errors import ClusterError


@dataclass(frozen=True)
class Run:
    """A run's folder, and how its trainer is started.

    Attributes:
        folder: of the job file, batches and everything that the trainer writes.
        environment: the engine environment.
        port: of its status.
    """

    folder: Path
    environment: Path
    port: int

    @property
    def job_file(self) -> Path:
        return self.folder / "job.json"

    def write_job(self, task: Path, urls: Sequence[str], steps: int, every: int) -> None:
        """The small task's job, with so many steps and a checkpoint so often."""
        job: Json = json.loads((SOURCES / "job.json").read_text())
        job["model"]["path"] = str(task / "model")
        job["data"]["source"] = str(task / "train.jsonl")
        job["rollout"]["engines"] = list(urls)
        job["trainer"]["steps"] = steps
        job["checkpoint"]["every"] = every
        job["evaluation"] |= {"suite": str(task / "heldout.jsonl"), "every": 4 * every}
        job["status"] = {"port": self.port}
        self.folder.mkdir()
        self.job_file.write_text(json.dumps(job, indent=2) + "\n")

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Starts its trainer."""
        setpriv = shutil.which("setpriv")
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [
                    *((setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()),
                    *(sys.executable, "-m", "assay_trainer", "run", self.job_file, *arguments),
                ],
                # One thread, so that sums are always added in one order.
                env={**trainer_variables(self.environment), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def phase(self) -> str:
        """What its trainer is at."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/status", timeout=2)
        except httpx.TransportError:
            return "imports"
        return str(answer.json()["phase"])

    def lines(self) -> list[dict[str, float]]:
        """Of metrics.jsonl."""
        return metrics.read(self.folder / "run" / "metrics.jsonl")

    def starts(self) -> int:
        """How often a trainer began with it."""
        return int((self.folder / "run" / "attempt").read_text())

    def digests(self, steps: int) -> dict[str, str]:
        """SHA-256 of the last checkpoint's files: model, optimiser, place in the data."""
        folder = self.folder / "run" / "checkpoints" / f"step-{steps:06d}"
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            # It tells attempt and time.
            if path.is_file() and path.name != "manifest.json"
        }

    def failed(self, code: int) -> ClusterError:
        """That its trainer did not come to the end."""
        tail = (self.folder / "log").read_text()[-3000:]
        return ClusterError(f"the trainer ended with exit code {code}:\n{tail}")


@contextlib.contextmanager
def ended(trainer: subprocess.Popen[bytes]) -> Iterator[None]:
    """Nothing of it goes on after the block."""
    try:
        yield
    finally:
        kill(trainer)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Fleet:
    """Engines, each on a port that stays its own."""

    def __init__(self, stack: ExitStack, environment: Path, model: Path, folder: Path) -> None:
        self._stack, self._environment = stack, environment
        self._model, self._folder = model, folder
        self.ports = [free_port() for _ in range(2)]
        self._running: list[LocalEngine] = [self._start(port) for port in self.ports]
        for engine in self._running:
            engine.wait(lambda words: None)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def kill(self, number: int) -> None:
        """Kills one; another is started in its place, which has the base model's weights."""
        kill(self._running[number].process)
        self._running[number] = self._start(self.ports[number])

    def ready(self, number: int) -> bool:
        """Whether it serves."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self.urls[number]}/ready", timeout=2)
            return answer.status_code == 200
        return False

    def _start(self, port: int) -> LocalEngine:
        folder = self._folder / f"engine-{port}"
        made = local_engine(self._environment, self._model, folder, *ENGINE_ARGUMENTS, port=port)
        return self._stack.enter_context(made)
