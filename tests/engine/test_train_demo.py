"""`make train-demo` as a user has it: run, interrupted with Ctrl-C, run again, taken down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from assay_trainer import metrics
from tests.cluster.processes import capture
from tests.engine.conftest import EngineEnv
from tests.engine.test_real_run import make_task

STEPS = 6
LONGEST_SECONDS = 300


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "examples.train_demo", *map(str, words)]


def steps_of(run: Path) -> list[float]:
    """The finished steps, as far as they can be read."""
    try:
        return [line["step"] for line in metrics.read(run / "metrics.jsonl")]
    except (OSError, metrics.MetricsError):
        return []


def interrupt_in_mid_run(demo: subprocess.Popen[str], run: Path) -> str:
    """Ctrl-C once two steps are done; what the demo printed until it ended."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while max(steps_of(run), default=0) < 2:
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline, f"steps so far: {steps_of(run)}"
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    return demo.communicate(timeout=LONGEST_SECONDS)[0]


def processes_about(folder: Path) -> list[str]:
    """The commands that run and name the folder."""
    found = capture("pgrep", "-af", folder, check=False)
    return [line for line in found.stdout.splitlines() if str(os.getpid()) not in line.split()[:1]]


def test_a_demo_that_is_interrupted_goes_on_and_can_be_taken_down(
    engine_env: EngineEnv, tmp_path: Path
) -> None:
    folder = tmp_path / "train-demo"
    up = command("up", "--steps", str(STEPS), "--folder", folder)
    run = folder / "qwen3-1" / "run"
    make_task(engine_env, folder / "qwen3-1" / "task", "qwen3")

    first = subprocess.Popen(up, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = interrupt_in_mid_run(first, run)
    finally:
        first.kill()
    assert first.returncode == 130, said
    assert "run it again to go on where it was" in said
    assert not processes_about(folder), "engines and trainer end with it"
    assert max(steps_of(run)) < STEPS

    again = capture(*up, check=False, timeout=2 * LONGEST_SECONDS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Held-out items, sorted right" in again.stdout
    assert steps_of(run) == list(range(STEPS + 1)), "no step is missing, none was kept twice"
    assert (run / "curve.png").stat().st_size > 10_000

    down = capture(*command("down", "--folder", folder), check=False)
    assert down.returncode == 0
    assert not folder.exists()
