"""The small task of `make train-demo`, with real SGLang rollouts on this machine's CPU.

    python -m benchmarks.training        all seeds
    python -m benchmarks.training 2      one; the others stay in the table as they were

Every run begins with nothing: the model is made, the engine started. Needs no cluster.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from assay_trainer.metrics import Metrics
from benchmarks.common import RESULTS, Json, Row, environment_versions, say, spread, write
from examples.train_demo import Demo, train
from tests.assay import engine_environment
from tests.cluster.errors import ClusterError
from tests.cluster.settings import Cache

SEEDS = (1, 2, 3)
PACKAGES = ("torch", "transformers", "sglang")
HIGHEST_START, LOWEST_END = 0.15, 0.6
MOST_SECONDS = 600
MOST_UPDATE_SECONDS = 0.5
MOST_DIFFERENCE = 1e-5
SAMPLE = "evaluation/sample@1"
PARTS = {
    "rollout": "seconds/rollout",
    "verification": "seconds/verify",
    "training": "seconds/train",
    "weight update": "seconds/push",
    "evaluation": "seconds/evaluate",
}


def run(seed: int) -> Sequence[Metrics]:
    """One run from nothing; its steps."""
    folder = Path(tempfile.mkdtemp(prefix="assay-training-"))
    try:
        demo = Demo(folder, seed=seed)
        if code := train(demo):
            raise ClusterError(f"the trainer ended with exit code {code} for seed {seed}")
        return demo.lines()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def of_seed(seed: int, lines: Sequence[Metrics]) -> list[Row]:
    """What one run showed."""
    scores = [line for line in lines if SAMPLE in line]
    first, last = scores[0], scores[-1]
    reached = [line["time"] - lines[0]["time"] for line in scores if line[SAMPLE] >= LOWEST_END]
    whole = lines[-1]["time"] - lines[0]["time"]
    trained = [line for line in lines if line["step"] > 0]
    shares = {
        part: sum(line.get(name, 0.0) for line in trained) / whole for part, name in PARTS.items()
    }
    shares["the rest"] = 1 - sum(shares.values())
    return [
        Row(
            f"seed {seed}: held-out sample@1, before and after {last['step']:.0f} steps",
            f"{first[SAMPLE]:.3f}, {last[SAMPLE]:.3f} "
            f"(greedy {first['evaluation/score']:.3f}, {last['evaluation/score']:.3f})",
            f"below {HIGHEST_START:g}; at least {LOWEST_END:g}",
            first[SAMPLE] < HIGHEST_START and last[SAMPLE] >= LOWEST_END,
        ),
        Row(
            f"seed {seed}: training until {LOWEST_END:g} was seen; until the end",
            f"{f'{reached[0]:.0f} s' if reached else 'never'}; {whole:.0f} s",
            f"{LOWEST_END:g} within {MOST_SECONDS} s",
            bool(reached) and reached[0] <= MOST_SECONDS,
        ),
        Row(
            f"seed {seed}: shares of that time",
            ", ".join(f"{part} {share:.1%}" for part, share in shares.items()),
        ),
        Row(
            f"seed {seed}: weight update",
            spread([line["seconds/push"] for line in trained], "s", 3),
            f"below {MOST_UPDATE_SECONDS:g} s, each",
            max(line["seconds/push"] for line in trained) < MOST_UPDATE_SECONDS,
        ),
        Row(
            f"seed {seed}: mean difference between the log-probs of engine and trainer; its "
            "highest of a step",
            f"{statistics.mean(line['mismatch/mean'] for line in trained):.1e}; "
            f"{max(line['mismatch/mean'] for line in trained):.1e}",
            f"at most {MOST_DIFFERENCE:.0e}, each step",
            max(line["mismatch/mean"] for line in trained) <= MOST_DIFFERENCE,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="default: 1 2 3")
    path = RESULTS / "training.json"
    known: Json = json.loads(path.read_text()) if path.exists() else {}
    for seed in parser.parse_args().seeds or SEEDS:
        say(f"seed {seed}")
        try:
            known[str(seed)] = run(seed)
        except ClusterError as error:
            print(error, file=sys.stderr)
            return 1
    ordered = {seed: known[seed] for seed in sorted(known, key=int)}
    write(
        "training",
        "Training: the small task",
        [row for seed, lines in ordered.items() for row in of_seed(int(seed), lines)],
        notes=[
            "A Qwen3 of 0.4 million parameters sorts six numbers: examples/train-demo. Engine, "
            "trainer and verifiers share the machine's cores. Held out are 200 items; sample@1 is "
            "the mean over four samples of each at the temperature of training.",
            "Time counts from the end of the first evaluation, before the first step, with "
            "evaluations and checkpoints. Making the model and starting the engine come before.",
        ],
        about=environment_versions(engine_environment(Cache.default()), *PACKAGES),
        raw=ordered,
        command="python -m benchmarks.training",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
