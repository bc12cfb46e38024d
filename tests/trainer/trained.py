"""`assay-train run` on recorded batches of a tiny model: in this process, and in ones to be killed.

A process that trains takes seconds to import torch and transformers. So one that has imported them
and done nothing else is forked for each run: see `Trainers`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from assay_trainer import cli
from assay_trainer.batch import Batch, Completion
from assay_trainer.manifest import NAME
from assay_trainer.metrics import read
from assay_trainer.model import random_policy
from assay_trainer.recording import Recorder
from tests.trainer import models

ROOT = Path(__file__).parents[2]
STEPS = 12


def write_model(folder: Path, kind: str = "qwen3") -> Path:
    """A model of 20,000 parameters as a Hugging Face folder, which knows nothing."""
    torch.manual_seed(1)
    made = random_policy(models.config(kind), temperature=1.0, chunk=7)
    made.model.save_pretrained(folder)
    return folder


def recorded(step: int, **more: Any) -> Batch:
    """The batch of a step, as that model might have drawn it."""
    batch = models.batch(seed=step, **more)
    samples = tuple(
        replace(sample, completion=_without_a_clue(sample.completion)) for sample in batch.samples
    )
    return Batch(step, samples, position=4 * step)


def _without_a_clue(completion: Completion) -> Completion:
    """Every token is as likely as any other."""
    return replace(completion, log_probs=(-math.log(models.VOCABULARY),) * len(completion.ids))


def record(folder: Path, steps: int = STEPS, batch: Callable[[int], Batch] = recorded) -> Path:
    """What a run with engines leaves with --record."""
    for step in range(1, steps + 1):
        Recorder(folder).keep(batch(step))
    return folder


def write_job(folder: Path, model: Path, **changes: Any) -> Path:
    """A job of 12 steps with a checkpoint after every second, its run in the same folder."""
    fields = {
        "trainer__steps": STEPS,
        "trainer__learningRate": 3e-3,
        "trainer__warmupSteps": 3,
        "trainer__decay": "cosine",
        "trainer__gradientClip": 1.0,
        "trainer__updatesPerStep": 2,
        "algorithm__kl__coef": 0.01,
        "checkpoint__every": 2,
        "checkpoint__directory": str(folder / "run"),
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    path.write_text(models.job(model, **fields).model_dump_json())
    return path


def run(job: Path, replay: Path) -> int:
    """Runs it here; the exit code."""
    return cli.main(["run", str(job), "--replay", str(replay)])


def checkpoints(job: Path) -> list[Path]:
    """The newest first."""

    def order(path: Path) -> tuple[int, int]:
        manifest = json.loads((path / NAME).read_bytes())
        return manifest["step"], int(manifest["version"].partition(".")[0])

    found = (job.parent / "run" / "checkpoints").glob("step-*")
    return sorted(found, key=order, reverse=True)


def contents(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of all files but the manifest, which tells attempt and time."""
    return {
        path.relative_to(checkpoint).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != NAME
    }


def steps_told(job: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock says."""
    lines = read(job.parent / "run" / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if not name.startswith(("seconds/", "time"))}
        for line in lines
    ]


def environment() -> dict[str, str]:
    """Of a process that can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Trainers:
    """Starts processes that train, without the seconds that their imports would take."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, job: Path, replay: Path, log: Path, **variables: str) -> int:
        """A process that runs a job; its id."""
        arguments = ["run", str(job), "--replay", str(replay)]
        return self._ask({"arguments": arguments, "log": str(log), "variables": variables})

    def ended(self, process: int) -> int:
        """Waits for it: its exit code, negative for the signal that ended it."""
        return self._ask({"wait": process})

    def _ask(self, what: Mapping[str, Any]) -> int:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def _fork(arguments: list[str], log: str, variables: dict[str, str]) -> int:
    child = os.fork()
    if not child:
        code = 99
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.environ.update(variables)
            code = cli.main(arguments)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def main() -> None:
    """What `Trainers` talks to."""
    import assay_trainer.run  # noqa: F401, PLC0415

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            print(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]), flush=True)
        else:
            print(_fork(**asked), flush=True)


if __name__ == "__main__":
    main()
