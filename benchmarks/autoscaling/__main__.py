"""Autoscaling policies compared on a trace of requests, by simulation.

    python -m benchmarks.autoscaling --trace FILE --out cases.json
    python -m benchmarks.autoscaling --trace FILE --out cases.json --table autoscaling

FILE has the columns TIMESTAMP, ContextTokens and GeneratedTokens, as the Azure LLM inference
traces. Each policy's settings are tuned on the first half of it and judged on the second. What
cases.json holds already is not run again, so a comparison can be made in pieces and go on after an
interruption. --table writes what was found under benchmarks/results, with pictures and with what
the chosen settings do on synthetic traces.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.autoscaling import fit, picture, report, shapes
from benchmarks.autoscaling.compare import (
    POLICIES,
    STATIC,
    Outcome,
    Setup,
    chosen,
    compare,
    replay,
    settings,
)
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.report import Case
from benchmarks.autoscaling.score import Score, replicas_over_time
from benchmarks.autoscaling.simulate import World
from benchmarks.autoscaling.trace import multiplied, read, stretched
from benchmarks.common import RESULTS, Json, Row, python_versions, say, write
from tests.cluster.files import write_text

OBJECTIVES = ("2000:150", "4000:250", "8000:500")
STARTS = (10.0, 60.0, 300.0)
SAME = ("stretch", "rate", "most", "route", "objective", "settle")
"""Options whose outcomes are not to be mixed."""
USUAL = {"rate": 1, "most": 16, "stretch": 1.0}
SAVE_S = 30.0
Kept = dict[tuple[float, str], list[Outcome]]
"""Outcomes by start-up time and objective's name."""


def main() -> int:
    options = _options()
    same = {key: vars(options)[key] for key in SAME}
    same["trace"] = options.trace.name
    try:
        trace = stretched(read(options.trace), options.stretch)
        kept = _kept(options.out, same) if options.out.exists() else {}
        objectives = [_objective(text) for text in options.objective]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    end = trace[-1].at + 1.0
    trace = multiplied(trace, options.rate, end / 2, end)
    world = World(fit.scaled(fit.fitted()), start_s=0.0, most=options.most, route=options.route)
    setups = {
        start_s: Setup(trace, replace(world, start_s=start_s), options.settle, end / 2, end)
        for start_s in options.start
    }
    for setup in setups.values():
        _run(options, same, kept, setup, objectives)
    cases = [
        Case(start_s, objective, outcomes, chosen(outcomes, options.target))
        for start_s in options.start
        for objective in objectives
        for outcomes in [kept[start_s, objective.name]]
    ]
    verdicts = [report.verdict(case, options.target) for case in cases]
    for row in (*verdicts, *map(report.hindsight, cases)):
        print(f"{row.name}: {row.value}{'' if row.met else ' (missed)'}")
    if options.table:
        middle = cases[len(cases) // 2]
        _table(options, cases, middle, setups[middle.start_s], same)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoscaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, required=True, help="the requests")
    parser.add_argument("--out", type=Path, required=True, help="all figures, as JSON")
    parser.add_argument("--table", metavar="NAME", help="of the table that is written")
    parser.add_argument(
        "--start", type=float, nargs="+", default=list(STARTS), help="start-up times, in seconds"
    )
    parser.add_argument(
        "--objective",
        nargs="+",
        default=list(OBJECTIVES),
        metavar="TTFT:ITL",
        help="objectives, in milliseconds",
    )
    parser.add_argument(
        "--target", type=float, default=0.9, help="share within the objective that is tuned for"
    )
    parser.add_argument(
        "--settle", type=float, default=600.0, help="seconds at the beginning that are not scored"
    )
    parser.add_argument(
        "--stretch", type=float, default=USUAL["stretch"], help="times between requests"
    )
    parser.add_argument(
        "--rate", type=int, default=USUAL["rate"], help="so many such services at once"
    )
    parser.add_argument("--most", type=int, default=USUAL["most"], help="replicas")
    parser.add_argument(
        "--route", choices=["least-load", "round-robin"], default="least-load", help="the router's"
    )
    parser.add_argument("--processes", type=int, default=1, help="that share the work")
    return parser.parse_args()


def _objective(text: str) -> Objective:
    ttft_ms, _, itl_ms = text.partition(":")
    return Objective(
        f"TTFT {float(ttft_ms):g} ms, ITL {float(itl_ms):g} ms",
        float(ttft_ms) / 1000,
        float(itl_ms) / 1000,
    )


def _run(
    options: argparse.Namespace,
    same: Json,
    kept: Kept,
    setup: Setup,
    objectives: Sequence[Objective],
) -> None:
    """Runs what is missing for one start-up time, and writes what was found every now and then."""
    start_s = setup.world.start_s
    lists = {
        objective.name: kept.setdefault((start_s, objective.name), []) for objective in objectives
    }
    done = {(name, one.policy, one.text) for name, outcomes in lists.items() for one in outcomes}
    jobs = [
        job
        for job in settings(setup, objectives)
        if any(
            (objective.name, job.policy, job.text) not in done
            for objective in objectives
            if job.objective in {None, objective}
        )
    ]
    if not jobs:
        return
    say(f"replicas start in {start_s:g} s, {len(setup.trace):,} requests: {len(jobs)} settings")
    written = time.monotonic()
    for name, outcome in compare(setup, objectives, jobs, options.processes):
        lists[name].append(outcome)
        if time.monotonic() - written > SAVE_S:
            _keep(options.out, same, kept)
            written = time.monotonic()
    _keep(options.out, same, kept)
    say("done")


def _keep(path: Path, same: Json, kept: Kept) -> None:
    """Writes all that was found so far."""
    plain = [
        {"startS": start_s, "objective": name, "outcomes": list(map(report.outcome, outcomes))}
        for (start_s, name), outcomes in kept.items()
    ]
    write_text(path, json.dumps({"same": same, "kept": plain}) + "\n")


def _kept(path: Path, same: Json) -> Kept:
    """What was found before.

    Raises:
        ValueError: with other arguments.
    """
    data = json.loads(path.read_text())
    if data["same"] != same:
        raise ValueError(f"{path} was made with other arguments: {data['same']}")
    return {
        (case["startS"], case["objective"]): [
            Outcome(one["policy"], one["setting"], Score(**one["tuned"]), Score(**one["judged"]))
            for one in case["outcomes"]
        ]
        for case in data["kept"]
    }


def _table(
    options: argparse.Namespace,
    cases: Sequence[Case],
    middle: Case,
    setup: Setup,
    same: Json,
) -> None:
    """Writes the table, its pictures and the raw figures."""
    name = options.table
    say("synthetic traces")
    shaped = list(shapes.run(middle.chosen, setup.world, middle.objective, options.target))
    rows: list[Row] = [
        *report.calibration(fit.fitted()),
        *(report.verdict(case, options.target) for case in cases),
        *map(report.hindsight, cases),
        *(row for case in cases for row in report.policies(case)),
        *report.shapes(shaped),
    ]
    say("pictures")
    picture.fronts(
        {(case.start_s, case.objective.name): (case.outcomes, case.chosen) for case in cases},
        RESULTS / f"{name}-fronts.png",
    )
    lines = {}
    wanted = {(one.policy, one.text) for one in middle.chosen.values()}
    found = {
        setting.policy: setting
        for setting in settings(setup, [middle.objective])
        if (setting.policy, setting.text) in wanted
    }
    for policy in POLICIES:
        if policy != STATIC:
            run = replay(setup, found[policy])
            lines[policy] = replicas_over_time(run, found[policy].first, setup.end)
    picture.timeline(
        setup,
        lines,
        f"Wanted replicas; {middle.title}",
        RESULTS / f"{name}-replicas.png",
    )
    parts = [f"--trace {options.trace.name} --out {options.out.name} --table {name}"]
    parts += [f"--{key} {same[key]}" for key, usual in USUAL.items() if same[key] != usual]
    write(
        name,
        "Autoscaling policies on a trace of requests, simulated",
        rows,
        notes=[
            *report.summary(cases, shaped, options.target),
            *report.notes(setup, options.target, name),
        ],
        about=python_versions("matplotlib"),
        raw=report.raw(cases, shaped, same, setup.world.engine),
        command=f"python -m benchmarks.autoscaling {' '.join(parts)}",
    )


if __name__ == "__main__":
    sys.exit(main())
