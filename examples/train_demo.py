"""`make train-demo`: reinforcement learning on verified rewards, small and real, in some minutes.

python -m examples.train_demo up      make the task, start SGLang, train, show the curve
python -m examples.train_demo down    remove what it made (not the engine environment)

A model of 0.4 million parameters learns to sort six numbers. What is trained, how and on what
stands in examples/train-demo/job.json; the model is made by examples/train-demo/make_task.py. A run
that was interrupted goes on at its newest checkpoint; one that came to its end starts over.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from assay_trainer import metrics
from examples.local_engine import LocalEngine, local_engine
from tests.assay import ENVIRONMENT, build_env_module, engine_environment, environment_step
from tests.cluster.display import choose_display
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY, Cache
from tests.cluster.steps import Step, StepRun, run_steps

SOURCES = Path(__file__).parent / "train-demo"
DEFAULT_FOLDER = REPOSITORY / "train-demo"
FAMILIES = ("qwen3", "llama")
TASK = "a tiny model and items"
# One for each of two cores: an engine's scheduler keeps one busy. The trainer works by turns with
# them.
ENGINES = 2
# All samples of a step at the same time; the CPU profile's bounds are for services.
ENGINE_ARGUMENTS = ("--max-running-requests=512", "--max-total-tokens=32768")
TRAINER_THREADS = "2"
STOP_SECONDS = 60

Json = dict[str, Any]

console = Console()


@dataclass(frozen=True)
class Demo:
    """One run of the demo.

    Attributes:
        folder: of everything that it writes.
        family: of the model.
        seed: of model, items and training.
        steps: of training; None: the job's.
    """

    folder: Path
    family: str = "qwen3"
    seed: int = 1
    steps: int | None = None

    @property
    def job_file(self) -> Path:
        return self.folder / "job.json"

    @property
    def run(self) -> Path:
        """The folder that the trainer writes."""
        return self.folder / "run"

    def job(self, engines: Sequence[str]) -> Json:
        """The job: examples/train-demo/job.json with this run's seed, steps and engines."""
        job: Json = json.loads((SOURCES / "job.json").read_text())
        job["rollout"]["engines"] = list(engines)
        job["seed"] = self.seed
        if self.steps is not None:
            job["trainer"]["steps"] = self.steps
            for part, name in (
                ("trainer", "warmupSteps"),
                ("checkpoint", "every"),
                ("evaluation", "every"),
            ):
                job[part][name] = min(job[part][name], self.steps)
        return job

    def lines(self) -> list[dict[str, float]]:
        """The finished steps of the run in this folder, as far as they can be read."""
        try:
            return metrics.read(self.run / "metrics.jsonl")
        except (OSError, metrics.MetricsError):
            return []

    def goes_on(self) -> bool:
        """Whether there is a run of this very job that has not come to its end."""
        try:
            known = json.loads(self.job_file.read_text())
        except (OSError, ValueError):
            return False
        if known != self.job(known["rollout"]["engines"]):
            return False
        last = max((line["step"] for line in self.lines()), default=0)
        return bool(last < known["trainer"]["steps"])


def train(demo: Demo) -> int:
    """Everything from nothing to a trained model; returns the trainer's exit code.

    Raises:
        ClusterError: a step failed; says which and why.
        KeyboardInterrupt: a signal came. Everything that was started has ended.
    """
    cache = Cache.default()
    logs = cache.logs / "train-demo"
    environment = engine_environment(cache)

    def make(run: StepRun) -> None:
        script = SOURCES / "make_task.py"
        run.command(
            *(environment_python(), script, "--out", demo.folder / "task"),
            *("--seed", str(demo.seed), "--family", demo.family),
            env={"PYTHONPATH": str(environment), "OMP_NUM_THREADS": "1"},
            on_line=lambda line: run.note(line[:60]),
        )

    steps = [environment_step(cache), Step(TASK, make, (ENVIRONMENT,), 25)]
    run_steps(steps, logs=logs, display=choose_display())
    if not demo.goes_on():
        shutil.rmtree(demo.run, ignore_errors=True)
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                local_engine(
                    environment,
                    demo.folder / "task" / "model",
                    demo.folder / f"engine-{number}",
                    *ENGINE_ARGUMENTS,
                )
            )
            for number in range(1, ENGINES + 1)
        ]
        waiting = [
            Step(f"SGLang engine {number}", ready(engine), (), 45)
            for number, engine in enumerate(engines, 1)
        ]
        run_steps(waiting, logs=logs, display=choose_display())
        job = demo.job([engine.url for engine in engines])
        demo.job_file.write_text(json.dumps(job, indent=2) + "\n")
        return run_trainer(demo.job_file, environment)


def ready(engine: LocalEngine) -> Callable[[StepRun], None]:
    """A step that waits for an engine."""
    return lambda run: engine.wait(run.note)


def environment_python() -> str:
    """The Python that the engine environment is for.

    Raises:
        ClusterError: there is none here.
    """
    build_env = build_env_module()
    python: str | None = build_env.matching_python()
    if python is None:
        raise ClusterError(
            f"this needs Python {build_env.PYTHON}, for which the engine environment is built.",
            f"Install it (Debian: python3) so that python{build_env.PYTHON} is found.",
        )
    return python


def trainer_variables(environment: Path) -> dict[str, str]:
    """The environment of a trainer, with torch from the engine's where there is no other.

    Raises:
        ClusterError: this Python can use neither.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": TRAINER_THREADS, "HF_HUB_OFFLINE": "1"}
    if importlib.util.find_spec("torch") is None:
        wanted = build_env_module().PYTHON
        if f"{sys.version_info.major}.{sys.version_info.minor}" != wanted:
            raise ClusterError(
                f"the trainer needs torch. The engine environment has it for Python {wanted}; "
                f"this is Python {sys.version.split()[0]}.",
                f"make clean, then make PYTHON=python{wanted} train-demo; "
                "or install 'assay[trainer]'.",
            )
        variables["PYTHONPATH"] = str(environment)
    return variables


def run_trainer(job: Path, environment: Path) -> int:
    """`assay-train run`; its exit code.

    Raises:
        ClusterError: see `trainer_variables`.
        KeyboardInterrupt: a signal came; the trainer was told and has ended.
    """
    setpriv = shutil.which("setpriv")
    trainer = subprocess.Popen(
        [
            *((setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()),
            *(sys.executable, "-m", "assay_trainer", "run", str(job)),
        ],
        env=trainer_variables(environment),
        # So that a Ctrl-C reaches it once, from here, also where it was sent to this process only.
        start_new_session=True,
    )
    try:
        return trainer.wait()
    except KeyboardInterrupt:
        trainer.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            trainer.wait(STOP_SECONDS)
        raise
    finally:
        if trainer.poll() is None:
            os.killpg(trainer.pid, signal.SIGKILL)
            trainer.wait()


def show(demo: Demo) -> None:
    """The held-out curve, and what to try next."""
    table = Table(title="Held-out items, sorted right", title_justify="left")
    for column in ("step", "greedy", "sampled once", ""):
        table.add_column(column, justify="left" if column == "" else "right")
    for line in demo.lines():
        if "evaluation/score" not in line:
            continue
        sampled = line["evaluation/sample@1"]
        table.add_row(
            f"{line['step']:.0f}",
            f"{line['evaluation/score']:.3f}",
            f"{sampled:.3f}",
            "█" * round(40 * sampled),
        )
    console.print(table)
    console.print(f"The whole run as a picture: {demo.run / 'curve.png'}", soft_wrap=True)
    other = next(family for family in FAMILIES if family != demo.family)
    name = demo.folder.name
    console.rule("Three things to try next")
    print(
        f"""
1. The same job on another architecture:
     .venv/bin/python -m examples.train_demo up --family {other}
2. Another algorithm: set "name" to "rloo", or "loss" to "cispo", in examples/train-demo/job.json
   (docs/algorithms.md says what they do), and run this again.
3. Stop it half-way with Ctrl-C, or kill it, and run this again: it goes on at its last checkpoint.

What was trained lies in {demo.run}/checkpoints, each a folder that SGLang serves.
`.venv/bin/python -m examples.train_demo down` removes {name} and all others."""
    )


def remove(root: Path) -> None:
    """Removes what `up` made below a folder, and the folder if nothing else is in it."""
    made = [path.parent for path in root.glob("*/task")]
    for folder in made:
        shutil.rmtree(folder)
        print(f"removed {folder}")
    with contextlib.suppress(OSError):
        root.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("up", "down"))
    parser.add_argument("--family", choices=FAMILIES, default="qwen3", help="of the model")
    parser.add_argument("--seed", type=int, default=1, help="another one is another task and run")
    parser.add_argument("--steps", type=int, help="of training (default: as in job.json)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of everything")
    options = parser.parse_args()
    root = options.folder.absolute()
    if options.what == "down":
        remove(root)
        return 0
    demo = Demo(
        root / f"{options.family}-{options.seed}", options.family, options.seed, options.steps
    )
    # As a Ctrl-C: what was started ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = train(demo)
    except ClusterError as error:
        console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("[yellow]stopped; run it again to go on where it was[/]")
        return 130
    if code == 0:
        show(demo)
    return code


if __name__ == "__main__":
    sys.exit(main())
