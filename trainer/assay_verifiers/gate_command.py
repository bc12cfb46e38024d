"""`assay-verify gate`: its options, and what it writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from assay_verifiers.answers import json_line, write_atomically
from assay_verifiers.config import GateLimits, Retry
from assay_verifiers.interrupts import run_until_interrupted
from assay_verifiers.jsonlines import Model, validated
from assay_verifiers.registry import Bench
from assay_verifiers.suites import load_suite
from assay_verifiers.termination import leave


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--suite", type=Path, required=True, metavar="FILE")
    add("--split", metavar="NAME", help="ask only this split of the suite")
    add("--candidate", required=True, metavar="URL")
    add("--incumbent", metavar="URL", help="what serves now; without it only the score counts")
    add("--out", type=Path, required=True, metavar="DIR", help="answers.jsonl and report.json")
    add("--restart", action="store_true", help="throw away what DIR holds")
    add("--summary", type=Path, metavar="FILE", help="under 4 KB of JSON: /dev/termination-log")
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    fields = GateLimits.model_fields
    for option, name, kind in (
        ("--min-score", "minScore", float),
        ("--max-regression", "maxRegression", float),
        ("--confidence", "confidence", float),
        ("--max-masked", "maxMasked", float),
        ("--min-items", "minItems", int),
        ("--looks", "looks", int),
    ):
        add(
            option,
            dest=name,
            type=kind,
            default=fields[name].default,
            metavar="N" if kind is int else "X",
            help=f"{(fields[name].description or '').replace('%', '%%')} "
            f"(default: {fields[name].default})",
        )
    add(
        "--items",
        type=bounded(int, 1),
        metavar="N",
        help="that the first look asks; where that decides nothing, each further look asks more, "
        "the last of several all (default: all at once)",
    )
    asking = parser.add_argument_group("asking")
    add = asking.add_argument
    add("--api", choices=("auto", "openai", "sglang"), default="auto")
    add("--candidate-model", metavar="NAME", help="default: the first that the endpoint lists")
    add("--incumbent-model", metavar="NAME", help="default: the first that the endpoint lists")
    add(
        "--candidate-kernels",
        choices=("any", "fused"),
        default="any",
        help="fused: the candidate must say that it runs Assay's kernels before it is asked "
        "anything (default: any)",
    )
    add("--token-env", metavar="NAME", help="environment variable with the bearer token, if any")
    add("--temperature", type=bounded(float, 0, 100), default=0.0)
    add("--top-p", type=bounded(float, 0, 1), default=1.0)
    add(
        "--max-tokens",
        type=bounded(int, 1),
        default=2048,
        help="where the item names none (default: 2048)",
    )
    add("--samples", type=bounded(int, 1, 1000), default=1, help="answers an item (default: 1)")
    add("--seed", type=int, default=0)
    add(
        "--timeout",
        type=bounded(float, 0.1),
        default=300.0,
        help="seconds for one answer (default: 300)",
    )
    add(
        "--attempts", type=bounded(int, 1, 20), default=4, help="tries of one question (default: 4)"
    )
    add(
        "--ask-again",
        type=bounded(int, 0, 100),
        default=1,
        help="of what could not be judged (default: once)",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Asks, decides, writes report and summary, and returns the exit code.

    Raises:
        ValueError: an option or the suite is wrong. The summary says so, as of all that is raised.
        Unavailable: a verifier cannot work here.
        StateError: the folder holds something else.
    """
    # Only this command needs scipy and an HTTP client: the others start in a fraction of the time.
    from assay_verifiers import report  # noqa: PLC0415

    try:
        found = run_until_interrupted(_asked(options))
    except Exception as reason:
        if options.summary:
            leave(options.summary, report.broken_summary(str(reason)))
        raise
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "report.json", json_line(found))
    if options.summary:
        leave(options.summary, report.summary(found))
    report.print_report(found, Console())
    return report.EXIT_CODES[found["verdict"]]


async def _asked(options: argparse.Namespace) -> dict[str, Any]:
    from assay_verifiers import gate  # noqa: PLC0415
    from assay_verifiers.endpoints import Endpoint, Sampling  # noqa: PLC0415

    suite = load_suite(options.suite)
    if options.split:
        suite = suite.split(options.split)
    limits = _checked(
        GateLimits, {name: getattr(options, name) for name in GateLimits.model_fields}
    )
    retry = _checked(Retry, {"attempts": options.attempts})
    sides = {"candidate": (options.candidate, options.candidate_model)}
    if options.incumbent:
        sides["incumbent"] = (options.incumbent, options.incumbent_model)
    asked = gate.Gate(
        suite,
        {
            side: Endpoint(
                url,
                api=options.api,
                model=model,
                token_env=options.token_env,
                seconds=options.timeout,
                retry=retry,
            )
            for side, (url, model) in sides.items()
        },
        options.out,
        limits,
        Sampling(
            options.temperature, options.top_p, options.max_tokens, options.samples, options.seed
        ),
        options.concurrency or 16,
        options.ask_again,
        options.restart,
        options.items,
        fused=options.candidate_kernels == "fused",
    )
    async with Bench(options.workers) as bench:
        return await gate.run_gate(asked, bench, Console(stderr=True))


def _checked(model: type[Model], values: dict[str, Any]) -> Model:
    found, wrong = validated(model, values)
    if found is None:
        raise ValueError("; ".join(wrong))
    return found


def bounded(kind: type[float], least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A type of option: a number from `least` to `most`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be at least {least:g}"
                + (f" and at most {most:g}" if most < float("inf") else "")
            )
        return value

    return number
