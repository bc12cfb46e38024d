"""The command line `assay-train`: check a job before anything runs."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from assay_trainer import check
from assay_trainer.job import JobError, load
from assay_verifiers.interrupts import Interrupted

ABSENT = 1
WRONG = 2
_EXIT_CODES = """exit codes:
  0    the job can run here
  1    the job is right, but something that it names is missing or wrong on this machine
  2    the job file is wrong
  130  ended by SIGINT
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `--help` lists them."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except JobError as reason:
        print(reason, file=sys.stderr)
        return WRONG
    except Interrupted as reason:
        print(f"assay-train: {reason}", file=sys.stderr)
        return reason.code
    except KeyboardInterrupt:
        print("assay-train: SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay-train",
        description="Trains language models on rewards that were verified.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("assay"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checked = commands.add_parser(
        "check",
        help="say what a job would do, and what is wrong or doubtful about it",
        description="Reads a job file and what it names (model, items, verifiers). Changes "
        "nothing, loads no weights, asks no engine.",
        epilog="example:\n  assay-train check job.json\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checked.add_argument("job", type=Path, metavar="JOB")
    checked.set_defaults(command=_check)
    return parser


def _check(options: argparse.Namespace) -> int:
    job = load(options.job)
    lines, doubts, wrong = check.here(job)
    summary = [*check.summary(job), *lines]
    width = max(len(word) for word, _ in summary)
    for word, sentence in summary:
        print(f"{word:<{width}}  {sentence}")
    for doubt in (*check.warnings(job), *doubts):
        print(f"warning: {doubt}")
    for problem in wrong:
        print(f"{options.job}: {problem}", file=sys.stderr)
    return ABSENT if wrong else 0
