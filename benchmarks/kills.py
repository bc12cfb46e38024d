"""`kill -9` at random moments of a training run: trainer and engines, with the small task.

    python -m benchmarks.kills            all of it, about a quarter of an hour; writes the table
    python -m benchmarks.kills --short    two kills of each in a short run; writes nothing

1. A run that nobody disturbs, with real SGLang, whose batches are recorded.
2. The same batches, and a trainer that is killed: the end has to be the same bytes.
3. A run with real SGLang whose trainer and engines are killed: it has to reach the same score.

Who is killed is started again at once, as Kubernetes does it. Needs no cluster.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from assay_trainer.batch import Batch
from benchmarks.common import Json, Row, environment_versions, say, write
from benchmarks.kills_parts import Fleet, Run, ended, kill
from examples.local_engine import free_port
from examples.train_demo import SOURCES, environment_python
from tests.assay import engine_environment
from tests.cluster.errors import ClusterError
from tests.cluster.settings import Cache

SEED = 11
PACKAGES = ("torch", "transformers", "sglang")
MOST_DIFFERENCE = 1e-5
SCORE = "evaluation/score"
MOST_SECONDS = 900
"""Of one trainer until it is killed or ends."""


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        kills: of each of trainer with records, trainer, engines.
        steps: of a run.
        every: checkpoints and evaluations, in steps; evaluations at four times that.
        moments: a trainer is killed up to so many seconds after it was started.
        replayed: the same where batches are recorded: a run that draws none is soon over.
    """

    kills: int
    steps: int
    every: int
    moments: float
    replayed: float


WHOLE = Size(kills=10, steps=40, every=5, moments=30, replayed=14)
SHORT = Size(kills=2, steps=8, every=2, moments=25, replayed=12)


@dataclass
class Kills:
    """What was killed, and at what.

    Attributes:
        trainer: the trainer's phase in the moment of its end.
        engine: the trainer's phase when an engine was killed.
    """

    trainer: list[str] = field(default_factory=list)
    engine: list[str] = field(default_factory=list)


def disturbed(
    run: Run,
    arguments: Sequence[str | Path],
    size: Size,
    source: random.Random,
    fleet: Fleet | None = None,
) -> Kills:
    """Runs to the end through all kills; those of engines come in between.

    Raises:
        ClusterError: a trainer that was not killed did not come to the end.
    """
    found, latest = Kills(), size.moments if fleet else size.replayed
    while True:
        began, at = time.monotonic(), source.uniform(1, latest)
        engine_at = [source.uniform(1, size.moments)]
        trainer = run.start(*arguments)
        with ended(trainer):
            while trainer.poll() is None:
                time.sleep(0.01)
                since = time.monotonic() - began
                if fleet and engine_at and since >= engine_at[0]:
                    victim = source.randrange(len(fleet.ports))
                    if len(found.engine) < size.kills and fleet.ready(victim):
                        found.engine.append(run.phase())
                        fleet.kill(victim)
                    engine_at = [since + source.uniform(5, size.moments)]
                if since >= at and len(found.trainer) < size.kills:
                    break
                if since > MOST_SECONDS:
                    raise run.failed(-1)
            code = trainer.poll()
            if code is None:
                found.trainer.append(run.phase())
                kill(trainer)
                say(f"{run.folder.name}: trainer killed at {found.trainer[-1]}")
                continue
        if code:
            raise run.failed(code)
        return found


def undisturbed(run: Run, *arguments: str | Path) -> None:
    """Runs to the end.

    Raises:
        ClusterError: it did not come to it.
    """
    trainer = run.start(*arguments)
    with ended(trainer):
        if code := trainer.wait(MOST_SECONDS):
            raise run.failed(code)


def recorded(folder: Path, steps: int, environment: Path) -> list[Batch]:
    """The batches of a run."""
    if importlib.util.find_spec("safetensors") is None:
        sys.path.append(str(environment))
    from assay_trainer.recording import Replay  # noqa: PLC0415

    replay = Replay(folder)
    return [replay.batch(step) for step in range(1, steps + 1)]


def items_used(batches: Sequence[Batch]) -> list[int]:
    """The numbers of all items that a run learned from, each as often as it did."""
    return [
        number
        for batch in batches
        for number in dict.fromkeys(sample.number for sample in batch.samples)
    ]


def versions_agree(batches: Sequence[Batch]) -> bool:
    """Whether each batch was drawn by weights of one version: those of the step before it."""
    for batch in batches:
        drawn = {v for one in batch.samples for v in one.completion.versions}
        if len(drawn) > 1 or drawn.pop().partition(".")[2] != str(batch.step - 1):
            return False
    return True


def counted(phases: Sequence[str]) -> str:
    """How often each: `train 4, rollout 3`."""
    return ", ".join(f"{phase} {count}" for phase, count in Counter(phases).most_common())


def measure(size: Size, folder: Path) -> tuple[list[Row], Json]:
    """All three runs."""
    environment = engine_environment(Cache.default())
    task, source = folder / "task", random.Random(SEED)
    subprocess.run(
        [environment_python(), SOURCES / "make_task.py", "--out", task],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(environment), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=sys.stderr,
    )
    steps = size.steps
    calm, replayed, live = (
        Run(folder / name, environment, free_port()) for name in ("calm", "replayed", "live")
    )
    with ExitStack() as stack:
        fleet = Fleet(stack, environment, task / "model", folder)
        for run in (calm, replayed, live):
            run.write_job(task, fleet.urls, steps, size.every)
        batches = calm.folder / "batches"
        say("a run that nobody disturbs")
        undisturbed(calm, "--record", batches)
        say("its batches, and a trainer that is killed")
        killed = disturbed(replayed, ("--replay", batches), size, source)
        say("live, and all are killed")
        began = time.monotonic()
        own = live.folder / "batches"
        all_killed = disturbed(live, ("--record", own), size, source, fleet)
        seconds = time.monotonic() - began
    same = replayed.digests(steps) == calm.digests(steps)
    ends = [run.lines()[-1] for run in (calm, live)]
    told = [[line["step"] for line in run.lines()] for run in (replayed, live)]
    once = told == [list(range(1, steps + 1)), list(range(steps + 1))]
    used = recorded(own, steps, environment)
    numbers = items_used(used)
    whole = numbers == list(range(len(numbers))) and versions_agree(used)
    far = max(line["mismatch/mean"] for line in live.lines()[1:])
    reached = ends[0]["evaluation/low"] <= ends[1][SCORE] <= ends[0]["evaluation/high"]
    rows = [
        Row(
            "recorded: trainer killed, and at what",
            f"{len(killed.trainer)} ({counted(killed.trainer)}); {replayed.starts()} starts",
            f"{size.kills}, every run resumes",
            len(killed.trainer) == size.kills,
        ),
        Row(
            f"recorded: the checkpoint of step {steps}, beside the run that nobody disturbed",
            "the same bytes" if same else "other bytes",
            "the same bytes",
            same,
        ),
        Row(
            "live: trainer killed, and at what",
            f"{len(all_killed.trainer)} ({counted(all_killed.trainer)}); {live.starts()} starts",
            f"{size.kills}, every run resumes",
            len(all_killed.trainer) == size.kills,
        ),
        Row(
            "live: engines killed, and what the trainer was at",
            f"{len(all_killed.engine)} ({counted(all_killed.engine)})",
            f"{size.kills}, every run goes on",
            len(all_killed.engine) == size.kills,
        ),
        Row(
            f"live: held-out score after {steps} steps, beside the run that nobody disturbed",
            f"{ends[1][SCORE]:.3f}, {ends[0][SCORE]:.3f} ({ends[0]['evaluation/low']:.3f} to "
            f"{ends[0]['evaluation/high']:.3f})",
            "within its interval",
            reached,
        ),
        Row(
            "live: items that were left out, or learned from twice",
            "none" if whole else "some",
            "none",
            whole,
        ),
        Row("metrics.jsonl tells of every step once", "yes" if once else "no", "yes", once),
        Row(
            "live: mean difference between the log-probs of engine and trainer; the highest of a "
            "step",
            f"{far:.1e}",
            f"at most {MOST_DIFFERENCE:.0e}",
            far <= MOST_DIFFERENCE,
        ),
        Row("live: the run with all kills", f"{seconds:.0f} s"),
    ]
    raw = {
        "recorded": {"trainer": killed.trainer, "lines": replayed.lines()},
        "calm": calm.lines(),
        "live": {
            "trainer": all_killed.trainer,
            "engine": all_killed.engine,
            "seconds": seconds,
            "lines": live.lines(),
        },
    }
    return rows, raw


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="writes nothing")
    short = parser.parse_args().short
    size = SHORT if short else WHOLE
    folder = Path(tempfile.mkdtemp(prefix="assay-kills-"))
    # As a Ctrl-C: engines and trainer end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rows, raw = measure(size, folder)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if short:
        for row in rows:
            print(f"{'met   ' if row.met else 'MISSED'} {row.name}: {row.value}  [{row.goal}]")
        return int(not all(row.met for row in rows))
    write(
        "kills",
        "Killed at random moments",
        rows,
        notes=[
            "SIGKILL to the trainer, or to an engine with all its processes; it is started again "
            f"at once. Moments are drawn with seed {SEED}, up to {size.moments:g} s after a start. "
            f"A checkpoint every {size.every} steps.",
            "Recorded: the batches of the run that nobody disturbed. Compared are all files of "
            "the last checkpoint (weights, optimiser, random state, place in the data) but its "
            "manifest, which tells attempt and time. fp32, one thread.",
            "Items: the numbers of the items in the batches that the final weights come from; "
            "every batch was drawn by the weights of the step before it.",
        ],
        about=environment_versions(engine_environment(Cache.default()), *PACKAGES),
        raw=raw,
        command="python -m benchmarks.kills",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
