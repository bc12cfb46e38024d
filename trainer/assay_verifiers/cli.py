"""The command line `assay-verify`: judge, explain, check suites, weigh a candidate."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assay_verifiers import catalogue, gate_command, judging, suites
from assay_verifiers.answers import StateError, json_line, write_atomically
from assay_verifiers.contract import Unavailable
from assay_verifiers.interrupts import Interrupted, run_until_interrupted
from assay_verifiers.registry import Bench

USAGE = 2
_EXIT_CODES = """exit codes:
  0    done (gate: the candidate passes)
  1    gate: the candidate fails; sandbox check, suite check --disjoint: it does not hold
  2    a wrong option, a broken suite or file, a verifier that cannot work here, a defect
  3    gate: undecided; the reason is in the report
  130  ended by SIGINT, 143 by SIGTERM: what is done is kept, the same command goes on
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `--help` lists them."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (ValueError, OSError, Unavailable, StateError) as reason:
        print(f"assay-verify: {reason}", file=sys.stderr)
        return USAGE
    except Interrupted as reason:
        print(f"assay-verify: {reason}: what is done is kept", file=sys.stderr)
        return reason.code
    except Exception:
        # Python's own exit code is 1, and of a gate that would say that the candidate fails.
        traceback.print_exc()
        return USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay-verify",
        description="Judges what language models answer.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("assay"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, told: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=told,
            description=told[0].upper() + told[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _run_options(
        command(
            "run",
            "judge the completions in a file",
            "  assay-verify run answers.jsonl --out verdicts.jsonl\n"
            "  assay-verify run answers.jsonl --out verdicts.jsonl --resume\n\n"
            "FILE has lines {id, verifier: {type, ...}, prompt, reference, completion}; an id may\n"
            "come several times. OUT gets lines {id, score, status, detail, seconds} in FILE's\n"
            "order, when all are judged. A wrong line stops it before anything is judged.",
        )
    )
    _explain_options(
        command(
            "explain",
            "say why one item was judged as it was",
            "  assay-verify explain answers.jsonl item-7\n"
            """  assay-verify explain --item '{"id": "a", "verifier": {"type": "math"}, """
            """"reference": "4", "completion": "2 + 2 = 4"}'""",
        )
    )
    suite = command(
        "suite", "check or divide a suite", "  assay-verify suite check suite.jsonl"
    ).add_subparsers(required=True, metavar="COMMAND")
    _suite_options(suite)
    gate = command(
        "gate",
        "ask a candidate a suite, beside an incumbent, and decide whether it may serve",
        "  assay-verify gate --suite s.jsonl --candidate http://new:30000 --out g \\\n"
        "      --min-score 0.7\n"
        "  assay-verify gate --suite s.jsonl --candidate http://new:30000 \\\n"
        "      --incumbent http://old:30000 --max-regression 0.02 --out g\n\n"
        "The same command goes on where it was ended; only what is missing is asked.\n\n"
        + _EXIT_CODES,
    )
    gate_command.add_options(gate)
    _work_options(gate, "questions at a time on each endpoint (default: 16)")
    types = command(
        "types", "list the types of verifiers, and whether each works here", "  assay-verify types"
    )
    types.set_defaults(command=_types)
    sandbox = command(
        "sandbox", "see whether code can be run safely here", "  assay-verify sandbox check"
    ).add_subparsers(required=True, metavar="COMMAND")
    check = sandbox.add_parser("check", help="run hostile programs in each kind of sandbox")
    check.add_argument("kinds", nargs="*", metavar="KIND", help="bubblewrap, landlock")
    check.add_argument("--quick", action="store_true", help="only a few programs")
    check.set_defaults(command=_sandbox)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    _work_options(parser, "items under way at a time (default: four a worker)")
    parser.set_defaults(command=_run)


def _explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("id", nargs="?", metavar="ID")
    parser.add_argument(
        "--item", metavar="JSON", help="one line of such a file, instead of FILE ID"
    )
    parser.set_defaults(command=_explain)


def _suite_options(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser("check", help="validate a suite and count what is in it")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument(
        "--disjoint",
        type=Path,
        action="append",
        default=[],
        metavar="OTHER",
        help="fail if another suite asks the same of anything; may be given several times",
    )
    check.set_defaults(command=_suite_check)
    split = commands.add_parser(
        "split", help="divide a suite by the hash of what its items ask, one file a split"
    )
    split.add_argument("file", type=Path, metavar="FILE")
    split.add_argument(
        "--share",
        action="append",
        required=True,
        metavar="NAME=SHARE",
        help="such as train=0.9; give one for each split",
    )
    split.add_argument("--salt", default="", help="another salt gives another division")
    split.add_argument("--out", type=Path, required=True, metavar="DIR")
    split.set_defaults(command=_suite_split)


def _work_options(parser: argparse.ArgumentParser, concurrency: str) -> None:
    parser.add_argument("--workers", type=_positive, metavar="N", help="default: one a core")
    parser.add_argument("--concurrency", type=_positive, metavar="N", help=concurrency)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _run(options: argparse.Namespace) -> int:
    lines = [judging.Line(item, digest) for _, item, digest in suites.load_judged(options.file)]
    console = Console(stderr=True)
    workers = options.workers or len(os.sched_getaffinity(0))

    async def work() -> None:
        began = time.monotonic()
        async with Bench(workers) as bench:
            verdicts = await judging.judge_file(
                lines,
                options.out,
                bench,
                console,
                concurrency=options.concurrency or 4 * workers,
                resume=options.resume,
            )
        judging.print_counts(verdicts, time.monotonic() - began, console)

    try:
        run_until_interrupted(work())
    except Interrupted:
        print("assay-verify: the same command with --resume goes on", file=sys.stderr)
        raise
    return 0


def _explain(options: argparse.Namespace) -> int:
    if (options.item is None) == (options.file is None or options.id is None):
        raise ValueError("explain wants either FILE and ID, or --item")
    if options.item is not None:
        found = [suites.parse_judged(options.item)]
    else:
        found = suites.find_judged(options.file, options.id)

    async def work() -> None:
        async with Bench(1) as bench:
            for item in found:
                await judging.explain(item, bench, Console())

    run_until_interrupted(work())
    return 0


def _suite_check(options: argparse.Namespace) -> int:
    suite = suites.load_suite(options.file)
    console = Console()
    table = Table(show_header=False)
    table.add_row("suite", escape(suite.name))
    table.add_row("items", str(len(suite.items)))
    table.add_row("types", escape(judging.counts_line(suite.types())))
    table.add_row("splits", escape(judging.counts_line(suite.splits())))
    console.print(table)
    print(f"digest {suite.digest}")
    if suite.weak:
        print(f"weak: {suite.weak} items are judged by opinions only (http, reward-model, human)")
    wrong, absent = _unmade(suite)
    for reason in absent:
        print(f"not here: {reason}")
    if wrong:
        raise ValueError("\n".join(wrong))
    shared = 0
    for other in options.disjoint:
        for mine, theirs in suites.shared_items(suite, suites.load_suite(other)):
            shared += 1
            print(f"shared: {mine} asks what {theirs} in {other} asks", file=sys.stderr)
    return 1 if shared else 0


def _unmade(suite: suites.Suite) -> tuple[list[str], list[str]]:
    """What is wrong with verifiers (a pattern, a schema), and what cannot work on this machine."""
    wrong: list[str] = []
    absent: set[str] = set()

    async def work() -> None:
        async with Bench(1) as bench:
            for item in suite.items:
                try:
                    bench.verifier(item.verifier)
                except Unavailable as reason:
                    absent.add(str(reason))
                except ValueError as reason:
                    wrong.append(f"item {item.id}: verifier: {reason}")

    run_until_interrupted(work())
    return wrong[:20], sorted(absent)


def _suite_split(options: argparse.Namespace) -> int:
    shares: dict[str, float] = {}
    for text in options.share:
        name, _, share = text.partition("=")
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{text!r} is not NAME=SHARE")
        shares[name] = float(share)
    suite = suites.load_suite(options.file)
    chosen = suites.assign_splits(suite, shares, options.salt)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in sorted(set(chosen.values()) | set(shares)):
        items = [item for item in suite.items if chosen[item.id] == name]
        lines = (
            json_line(
                {**item.model_dump(mode="json", exclude_unset=True, by_alias=True), "split": name}
            )
            for item in items
        )
        write_atomically(options.out / f"{name}.jsonl", b"".join(lines))
        print(f"{name}: {len(items)} items")
    return 0


def _types(_: argparse.Namespace) -> int:
    async def work() -> list[catalogue.Entry]:
        async with Bench(1) as bench:
            return catalogue.entries(bench)

    table = Table("type", "from", "soft", "works here")
    for entry in run_until_interrupted(work()):
        table.add_row(
            escape(entry.type),
            escape(entry.source),
            "soft" if entry.soft else "",
            escape(entry.problem) or "yes",
        )
    Console().print(table)
    return 0


def _sandbox(options: argparse.Namespace) -> int:
    from assay_verifiers.sandbox import check  # noqa: PLC0415

    return check.main([*options.kinds, *(["--quick"] if options.quick else [])])
