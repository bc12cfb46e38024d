"""The command line `assay-train`: check a job, run it, list what it kept, inspect a folder."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from assay_trainer import check, inspection, inventory, lastwords
from assay_trainer.job import Job, JobError, load
from assay_trainer.lastwords import LastWords
from assay_trainer.storage import CheckpointError
from assay_verifiers.interrupts import Interrupted
from assay_verifiers.termination import leave

FAILED = 1
WRONG = 2
STOPPED = UNKNOWN = 3
_EXIT_CODES = """exit codes:
  0         check: the job can run here; run: all steps are done; checkpoints: all are whole;
            inspect: the folder may be loaded
  1         something that the job names is missing or wrong on this machine, or the run failed;
            checkpoints: one is damaged; inspect: the folder must not be loaded
  2         the job file is wrong, or an option is
  3         run: stopped by an alarm, since it would harm the model or learns nothing; inspect: the
            storage fails, so nothing is known
  130, 143  ended by SIGINT, SIGTERM: a checkpoint was written, the same command goes on
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
    ran = commands.add_parser(
        "run",
        help="train, from the newest checkpoint on if there is one",
        description="Trains to the job's last step. It may be killed at any time: the same command "
        "goes on from the newest whole checkpoint. Ctrl-C ends it with one, a second Ctrl-C at "
        "once. For several processes: torchrun --nproc-per-node N -m assay_trainer run JOB.",
        epilog="example:\n  assay-train run job.json\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ran.add_argument("job", type=Path, metavar="JOB")
    batches = ran.add_mutually_exclusive_group()
    batches.add_argument(
        "--record", type=Path, metavar="FOLDER", help="keep every batch of completions there"
    )
    batches.add_argument(
        "--replay",
        type=Path,
        metavar="FOLDER",
        help="learn from the batches that were kept there: asks no engine, weighs nothing",
    )
    ran.set_defaults(command=_run)
    listed = commands.add_parser(
        "checkpoints",
        help="list a run's checkpoints, and whether they are whole",
        description="Reads every byte of a run's checkpoints. Changes nothing, and may be used "
        "while the run goes on.",
        epilog="example:\n  assay-train checkpoints solver-rl\n\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    listed.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the job's checkpoint.directory"
    )
    listed.set_defaults(command=_checkpoints)
    inspected = commands.add_parser(
        "inspect",
        help="say whether a model's folder may be loaded, and by engines that run another",
        description="Reads every byte of a folder: as its manifest says, where it has one; its "
        "digest; no pickles, no code; weights whole. Changes nothing and loads nothing.",
        epilog="examples:\n  assay-train inspect solver-rl/checkpoints/step-000020\n"
        "  assay-train inspect step-000020 --like solver-base --digest sha256:5f1c...\n\n"
        + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = inspected.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--digest", type=_digest, metavar="sha256:...", help="that the folder must have")
    add(
        "--like",
        type=Path,
        metavar="FOLDER",
        help="what engines run: say whether they could load the other one as they run",
    )
    add("--code", action="store_true", help="Python files may be there: it is trusted")
    add("--summary", type=Path, metavar="FILE", help="under 4 KB of JSON: /dev/termination-log")
    inspected.set_defaults(command=_inspect)
    return parser


def _digest(text: str) -> str:
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError("must be sha256: and 64 digits of 0 to 9 and a to f")
    return text


def _check(options: argparse.Namespace) -> int:
    job = load(options.job)
    lines, doubts, wrong = check.here(job)
    summary = [*check.summary(job), *lines]
    width = max(len(word) for word, _ in summary)
    for word, sentence in summary:
        print(f"{word:<{width}}  {sentence}")
    for doubt in (*check.warnings(job), *doubts):
        print(f"warning: {doubt}")
    return _told(options.job, wrong)


def _told(path: Path, problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    return FAILED if problems else 0


def _run(options: argparse.Namespace) -> int:
    # torchrun starts several of us; one is enough to say what is wrong.
    first = os.environ.get("RANK", "0") == "0"
    path = os.environ.get(lastwords.VARIABLE) if first else None
    with LastWords(Path(path) if path else None) as last:
        last.job = load(options.job)
        doubts, wrong = _checked(last.job) if first and not options.replay else ([], [])
        if wrong:
            last.message = "; ".join(wrong)
            last.code = _told(options.job, wrong)
        else:
            last.code, last.message = _trained(last.job, options, Console(), doubts)
        return last.code


def _checked(job: Job) -> tuple[list[str], list[str]]:
    """What is doubtful about a job, and what is wrong here."""
    _, doubts, wrong = check.here(job)
    return [*check.warnings(job), *doubts], wrong


def _trained(
    job: Job, options: argparse.Namespace, console: Console, doubts: Sequence[str]
) -> tuple[int, str]:
    """Exit code, and why it is another one than 0."""
    # Seconds of imports (torch, transformers), so only once the job is known to be right.
    from assay_trainer.loop import TrainingStopped  # noqa: PLC0415
    from assay_trainer.run import FAILURES, run  # noqa: PLC0415

    try:
        run(job, record=options.record, replay=options.replay, console=console, doubts=doubts)
    except TrainingStopped as reason:
        print(f"assay-train: stopped: {reason}", file=sys.stderr)
        return STOPPED, str(reason)
    except FAILURES as reason:
        print(f"assay-train: {reason}", file=sys.stderr)
        return FAILED, str(reason)
    return 0, ""


def _checkpoints(options: argparse.Namespace) -> int:
    try:
        lines, problems = inventory.table(options.folder)
    except CheckpointError as reason:
        print(f"assay-train: {reason}", file=sys.stderr)
        return FAILED
    print("\n".join(lines))
    for problem in problems:
        print(problem, file=sys.stderr)
    return FAILED if problems else 0


def _inspect(options: argparse.Namespace) -> int:
    found = inspection.inspect(
        options.folder, digest=options.digest, like=options.like, code=options.code
    )
    if options.summary:
        leave(options.summary, found.summary())
    print(f"{found.files} files, {found.size:,} bytes, {found.digest or 'no digest'}")
    for problem in (*found.failing, *found.problems):
        print(f"{options.folder}: {problem}", file=sys.stderr)
    for reason in found.reasons or ():
        print(f"not for engines that run {options.like}: {reason}")
    if found.in_place:
        print(f"engines that run {options.like} can load it as they run")
    return {True: 0, False: FAILED, None: UNKNOWN}[found.intact]
