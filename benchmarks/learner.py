"""One update of the learner on one GPU, beside TRL's: speed, memory, longest sequence.

    python -m benchmarks.learner                          on a GPU, about eight minutes
    python -m benchmarks.learner --arms ours ours-stock trl-liger --warmups 2 --rounds 8 \
        --tries 0 --seconds 90 --timing 0.95              the time of an update, in two
    python -m benchmarks.learner --shape tiny --rounds 2  tries everything out on a CPU

A Qwen3-0.6B shape with random weights makes one optimiser update after another on a recorded
batch: forward, backward, clipping, AdamW. Each arm runs in a process of its own (`learner_arms`);
they take turns, another one first in each round. Needs torch, transformers, trl and liger-kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Row, python_versions, say, write
from benchmarks.learner_batch import PEAK, QWEN3_06B, TINY, Setting, operations, record
from benchmarks.learner_table import line, notes, rows

ARMS = ("ours", "ours-stock", "trl", "trl-liger", "trl-liger-loss")
MORE = ("ours-512", "ours-exact", "trl-compiled")
"""Run only when they are asked for."""
ON_CPU = ("ours", "trl", "trl-liger-loss")
SETTINGS = (
    Setting("mixed", 4, 8, prompt=(128, 512), completion=(16, 1024), median=320),
    Setting("equal", 4, 8, prompt=(512, 512), completion=(1024, 1024), shared=False),
)
SMALL = (
    Setting("mixed", 2, 4, prompt=(8, 20), completion=(4, 40), median=12, per_pass=4),
    Setting("equal", 2, 4, prompt=(20, 20), completion=(40, 40), shared=False, per_pass=4),
)
PROBES = (8192, 16384)
"""Lengths that every arm takes; from there the search goes on."""
FIRST = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
"""The one GPU that an arm sees: TRL would spread its model over all that it finds."""
GIB = 2**30
SERVER = (sys.executable, "-m", "benchmarks.learner_arms")

Json = dict[str, Any]


class ArmError(RuntimeError):
    """An arm's process ended; its log says why."""


class Arm:
    """A process that makes updates when it is asked to.

    Args:
        name: see `ARMS`.
        folder: of the model and the logs.
        shape: of the model.
        setting: the first batch.
        gpu: the one that it sees.
    """

    def __init__(self, name: str, folder: Path, shape: str, setting: Setting, gpu: str) -> None:
        self.name = name
        self._log = folder / f"{name}-{setting.name}.log"
        words = [*SERVER, name, str(folder / "model"), shape]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*words, json.dumps(setting.as_json())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
                text=True,
            )

    def ready(self) -> None:
        """Waits until it can be asked."""
        self._answer()

    def load(self, setting: Setting) -> None:
        """Gives it another batch."""
        self._ask(do="load", setting=setting.as_json())

    def limit(self, memory: int) -> None:
        """Lets it have no more memory than this, in bytes."""
        self._ask(do="limit", bytes=memory)

    def step(self) -> Json:
        """One update."""
        return self._ask(do="step")

    def close(self) -> None:
        """Ends it; its memory is free then."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, **command: Any) -> Json:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> Json:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: Json = json.loads(line)
        return answer

    def _ended(self) -> ArmError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        print("\n".join(lines[-40:]), file=sys.stderr, flush=True)
        return ArmError(f"{self.name}: {' | '.join(lines[-2:])[-400:]}")


@dataclass
class Run:
    """What was asked for, and what was found so far.

    Attributes:
        options: the command line's.
        folder: of the model and the logs.
        ends: until when, by the monotonic clock.
        figures: for the JSON file.
    """

    options: argparse.Namespace
    folder: Path
    ends: float
    figures: Json = field(default_factory=dict)

    @property
    def shape(self) -> Any:
        return TINY if self.options.shape == "tiny" else QWEN3_06B

    def start(
        self, stack: ExitStack, names: Sequence[str], setting: Setting, gpu: str = FIRST
    ) -> dict[str, Arm]:
        """Starts all arms at the same time; those that cannot run are told and left out.

        Raises:
            ArmError: ours cannot: the others would be timed beside nothing.
        """
        shape = self.options.shape
        arms = {name: Arm(name, self.folder, shape, setting, gpu) for name in names}
        for arm in arms.values():
            stack.callback(arm.close)
        return {name: arm for name, arm in arms.items() if self._tried(arm, arm.ready)}

    def _tried(self, arm: Arm, what: Any) -> Any:
        try:
            return what() or True
        except ArmError as error:
            say(str(error))
            self.figures.setdefault("failed", {})[arm.name] = str(error)
            if arm.name == self.options.arms[0]:
                raise
            return None

    def updates(self, settings: Sequence[Setting]) -> None:
        """Times updates: warm-ups, then rounds in which every arm has its turn."""
        with ExitStack() as stack:
            arms = self.start(stack, self.options.arms, settings[0])
            begun = time.monotonic()
            for number, setting in enumerate(settings, 1):
                # Each setting gets its share, so that the last one is not the one without time.
                share = begun + (self.ends - begun) * self.options.timing * number / len(settings)
                batch = record(setting, self.shape)
                found: Json = {
                    "setting": setting.as_json(),
                    "tokens": batch.tokens,
                    "slots": batch.slots,
                    "operations": operations(batch, self.shape, shared=False),
                    "operations_shared": operations(batch, self.shape, shared=True),
                    "steps": {name: [] for name in arms},
                    "warmups": {name: [] for name in arms},
                }
                self.figures.setdefault("updates", {})[setting.name] = found
                for arm in arms.values():
                    arm.load(setting)
                for round_ in range(-self.options.warmups, self.options.rounds):
                    if round_ >= 5 and time.monotonic() > share:
                        say(f"{setting.name}: time is up after {round_} rounds")
                        break
                    names = list(arms)
                    turn = round_ % max(1, len(names))
                    for name in names[turn:] + names[:turn]:
                        step = self._tried(arms[name], arms[name].step)
                        if step is None or step["full"]:
                            say(f"{name} leaves: {step or 'ended'}")
                            arms.pop(name).close()
                            continue
                        found["warmups" if round_ < 0 else "steps"][name].append(step)
                    if round_ < 1 or round_ % 5 == 4:
                        say(f"{setting.name}, round {round_ + 1}: " + self._said(found))

    def _said(self, found: Json) -> str:
        steps = {name: (found["steps"][name] or found["warmups"][name]) for name in found["steps"]}
        return ", ".join(
            f"{name} {statistics.median(s['seconds'] for s in taken):.3f} s"
            for name, taken in steps.items()
            if taken
        )

    def longest(self) -> None:
        """Finds the longest single sequence that an update takes within the memory allowed."""
        memory = int(self.options.limit * GIB)
        found: Json = {"limit": memory, "arms": {}}
        self.figures["longest"] = found
        with ExitStack() as stack:
            names = [name for name in self.options.arms if name not in ("ours-512", "ours-exact")]
            arms = self.start(stack, names, _single(PROBES[0]), self.options.beside or FIRST)
            for left, (name, arm) in zip(range(len(arms), 0, -1), arms.items(), strict=True):
                tries: list[Json] = []
                found["arms"][name] = tries
                # What one arm does not use of its share is the others'.
                until = time.monotonic() + (self.ends - time.monotonic()) / left
                search = partial(self._search, arm, memory, tries, until)
                self._tried(arm, search)
                arm.close()

    def _search(self, arm: Arm, memory: int, tries: list[Json], until: float) -> None:
        def fits(length: int) -> bool:
            arm.load(_single(length))
            step = {"length": length, **arm.step()}
            tries.append(step)
            say(f"{arm.name}, one sequence of {length}: " + ("full" if step["full"] else "fits"))
            return not step["full"]

        for length in (PROBES[0], *PROBES):
            fits(length)  # The first makes the optimiser's tensors and compiles.
        arm.limit(memory)
        good, bad = PROBES[-1], 0
        for _ in range(self.options.tries):
            # Short of a few GiB the peak is the optimiser's, so no line is trusted beyond 2x.
            fixed, slope = line(tries)
            guess = (memory * 0.98 - fixed) / slope if slope > 0 else 2 * good
            length = int(min(guess, 2 * good)) // 256 * 256
            if not good * 1.01 < length < (bad or 3 * good) * 0.99:
                length = int(good + (bad or good * 1.06)) // 512 * 256
            if time.monotonic() > until or length <= good:
                break
            if fits(length):
                good = length
            else:
                bad = length
            if bad and bad / good < 1.03:
                break


def _single(length: int) -> Setting:
    prompt = min(512, length // 2)
    rest = length - prompt
    return Setting("long", 1, 1, prompt=(prompt, prompt), completion=(rest, rest), per_pass=1)


def report(run: Run, command: str) -> None:
    """Writes the table, also of a run that is not over."""
    table: list[Row] = rows(run.figures)
    if run.options.shape == "tiny":
        print("\n".join(f"{row.name}: {row.value} {row.goal}" for row in table))
        return
    packages = ("torch", "triton", "transformers", "accelerate", "trl", "liger-kernel")
    about = f"{run.figures['device']}. {python_versions(*packages)}"
    write(
        "learner",
        "One update of the learner on one GPU, beside TRL's",
        table,
        notes=notes(run.figures),
        about=about,
        raw=run.figures,
        command=command,
    )


def device() -> str:
    """What the arms run on."""
    words = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    name, memory, driver = told.splitlines()[0].split(", ")
    return f"{name}, {memory}, driver {driver}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learner",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=("qwen3-0.6b", "tiny"), default="qwen3-0.6b")
    parser.add_argument("--arms", nargs="+", choices=ARMS + MORE, default=None)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=float, default=16.0, help="GiB, for the longest sequence")
    parser.add_argument("--tries", type=int, default=9, help="for it; 0: not at all")
    parser.add_argument("--seconds", type=float, default=500.0, help="when to come to an end")
    parser.add_argument("--timing", type=float, default=0.62, help="the updates' share of that")
    parser.add_argument("--beside", default="", help="GPU for the longest sequence, meanwhile")
    parser.add_argument("--logs", type=Path, default=None, help="where the arms' logs are left")
    options = parser.parse_args()
    gpu = device()
    if options.beside:
        options.timing = 1.0
    options.arms = options.arms or (ARMS if gpu else ON_CPU)
    # Without where the logs went, which is nobody else's.
    words = [w for w in sys.argv[1:] if w not in ("--logs", str(options.logs))]
    command = " ".join(["python -m benchmarks.learner", *words])
    with tempfile.TemporaryDirectory(prefix="learner-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(options, folder, time.monotonic() + options.seconds)
        run.figures |= {"device": gpu or "no GPU", "peak": PEAK, "shape": dict(run.shape)}
        run.figures |= {"beside": bool(options.beside), "rounds": options.rounds}
        say("making the model")
        subprocess.run([*SERVER, "make", str(folder / "model"), options.shape], check=True)
        settings = SETTINGS if gpu else SMALL
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(run.longest) if options.beside else None
            try:
                run.updates(settings)
                timed = {k: v for k, v in run.figures.items() if k != "longest"}
                report(replace(run, figures=timed), command)
                if beside or (gpu and options.tries):
                    try:
                        beside.result() if beside else run.longest()
                    finally:
                        report(run, command)
            except ArmError:
                return 1
    return 1 if run.figures.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
