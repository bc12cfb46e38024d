"""Tests and times the kernels on one GPU, and writes their tables.

    python -m benchmarks.kernels [--only NAME...] [--rounds N] [--no-tests]

Needs a CUDA GPU, torch, triton and pytest; liger-kernel and cut-cross-entropy for their rows. The
tests come first: a table of wrong results would be worth nothing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence

import torch

from benchmarks.common import python_versions, say, write
from benchmarks.kernels.measure import about, ceilings
from tests.cluster.settings import REPOSITORY

CASES = ("linear_logprob", "policy_loss", "sampler", "norms", "matmul")
TESTS = REPOSITORY / "tests" / "kernels"


def main(arguments: Sequence[str]) -> int:
    """Returns 0, or what pytest does where a test fails."""
    options = _options(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.kernels needs a CUDA GPU", file=sys.stderr)
        return 1
    if options.tests:
        files = "python_files=test_*.py gpu_*.py"
        # Tests of clusters have their own needs; they are not looked at.
        where = ["--confcutdir", str(TESTS), str(TESTS)]
        command = [sys.executable, "-m", "pytest", "-q", "-o", files, *where]
        code = subprocess.run(command, cwd=REPOSITORY, check=False).returncode
        if code:
            return code
    ceiling = ceilings()
    say(f"{ceiling.flops / 1e12:.0f} TFLOP/s, {ceiling.bandwidth / 1e9:.0f} GB/s")
    for name in options.only:
        case = importlib.import_module(f"benchmarks.kernels.{name}")
        rows, notes, raw = case.run(options.rounds, ceiling)
        seen = (
            "The roofline is what the device was seen to do in this run: "
            f"{ceiling.flops / 1e12:.0f} TFLOP/s (bf16, 8,192 cubed), "
            f"{ceiling.bandwidth / 1e9:.0f} GB/s (copy of 2 GiB)."
        )
        write(
            f"kernels_{name}",
            case.TITLE,
            rows,
            notes=[*notes, seen],
            about=f"{about()}, {python_versions(*_installed(case.PACKAGES))}",
            raw=raw,
            command=f"python -m benchmarks.kernels --only {name}",
        )
    return 0


def _installed(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name)]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, help="which tables")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm (3 runs a turn)")
    parser.add_argument("--no-tests", dest="tests", action="store_false")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
