"""Whether verifiers are right, how fast they are, and what hanging items cost. Needs no cluster.

    python -m benchmarks.verifiers              all sections
    python -m benchmarks.verifiers hangs code   some; the others stay in the table as they were

Data: ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from assay_verifiers import Bench, Job, Task, Verdict, verify_batch
from assay_verifiers.config import MathVerifier
from assay_verifiers.types.math_answer import judge
from assay_verifiers.types.math_extract import extract, reference_text
from benchmarks import verifiers_code
from benchmarks.common import RESULTS, Json, Row, python_versions, say, spread, write
from benchmarks.labelled import Labelled, expressions, gsm8k

PACKAGES = ("math-verify", "latex2sympy2-extended", "sympy", "antlr4-python3-runtime")
ROUNDS = 5
HANG_ITEMS, HANG_EVERY, HANG_DEADLINE = 10_000, 100, 0.5

Figures = tuple[list[Row], list[str], Json]


def jobs(items: Sequence[Labelled], model: MathVerifier) -> list[Job]:
    """What the batch runner takes."""
    return [Job(model, Task(one.name, reference=one.reference), one.completion) for one in items]


def agreement() -> Figures:
    """All labelled solutions against their labels."""
    items = gsm8k()

    async def judge() -> list[Verdict]:
        async with Bench() as bench:
            return await verify_batch(bench, jobs(items, MathVerifier()))

    verdicts = asyncio.run(judge())
    differing = [
        (one, verdict)
        for one, verdict in zip(items, verdicts, strict=True)
        if (verdict.status == "ok") != one.correct
    ]
    share = 1 - len(differing) / len(items)
    direct = sum(_direct(one) == one.correct for one in items)
    statuses = Counter(verdict.status for verdict in verdicts)
    rows = [
        Row(
            f"{len(items):,} labelled GSM8K solutions: agreement with the labels",
            f"{share:.2%} ({len(differing)} differ)",
            "at least 99.5%",
            share >= 0.995,
        ),
        *(
            Row(f"differs: {one.name}", f"label {one.correct}, {verdict.status}: {verdict.detail}")
            for one, verdict in differing
        ),
        Row("of these, by status", ", ".join(f"{n} {s}" for s, n in statuses.most_common())),
        Row(
            "math-verify called directly: agreement with the same labels",
            f"{direct / len(items):.2%} ({len(items) - direct} differ)",
        ),
    ]
    notes = [
        "The labels were made by comparing the last number's text; every solution that has an "
        'answer ends in "A: N". Every disagreement would be listed above.'
    ]
    return rows, notes, {"differing": [one.name for one, _ in differing], "statuses": statuses}


def _direct(one: Labelled) -> bool:
    """math-verify as its own documentation calls it, with its own time limits."""
    from math_verify import parse, verify  # noqa: PLC0415

    return bool(verify(parse(reference_text(one.reference)), parse(one.completion)))


def _direct_latex(one: Labelled) -> bool:
    from math_verify import parse, verify  # noqa: PLC0415

    return bool(verify(parse(one.reference), parse(one.completion)))


@contextmanager
def one_core() -> Iterator[None]:
    """This process and all that it starts share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _here(one: Labelled) -> bool:
    """The verifier's own comparison, in process."""
    answer, reference = extract(one.completion), reference_text(one.reference)
    return judge(answer, [reference], 1e-6, "ignore")[0] == "ok"


def throughput() -> Figures:
    """Everything on one core, by turns with the same items judged in process."""
    rows: list[Row] = []
    raw: Json = {}
    with one_core():
        for title, items, others in (
            ("GSM8K solutions (plain numbers)", gsm8k(), {"math-verify": _direct}),
            (
                "LaTeX expressions (in a worker)",
                expressions(420),
                {"math-verify": _direct_latex, "own comparison without a worker": _here},
            ),
        ):
            seconds = asyncio.run(_by_turns(title, items, others))
            raw[title] = {"seconds": seconds, "items": len(items)}
            for name, times in seconds.items():
                rates = [len(items) / each for each in times]
                rows.append(Row(f"{title}: {name}", spread(rates, "items a CPU second", 0)))
            for name in others:
                pairs = zip(seconds[_OURS], seconds[name], strict=True)
                ratios = sorted(mine / other for mine, other in pairs)
                ratio = ratios[len(ratios) // 2]
                rows.append(
                    Row(
                        f"{title}: CPU time beside {name}",
                        f"{ratio:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                        "at most 1.5x",
                        ratio <= 1.5,
                    )
                )
    notes = [
        "Throughput: one core for everything (event loop, host, one worker), whose CPU seconds are "
        "counted together, since the machine is not quiet; the others in process on the same core "
        "and items, by turns, after one unmeasured turn of each.",
        "Plain numbers are compared exactly and never reach sympy or a worker, and the number in a "
        "reference is kept for the items that share it: that is the difference, not the processes. "
        "On expressions this verifier compares lists part by part and numbers by their value where "
        "math-verify simplifies a difference; what a worker process costs is the last ratio.",
    ]
    return rows, notes, raw


_OURS = "this verifier"


async def _by_turns(
    title: str, items: Sequence[Labelled], others: Mapping[str, Callable[[Labelled], bool]]
) -> dict[str, list[float]]:
    """CPU seconds of every turn, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in (_OURS, *others)}
    async with Bench(workers=1) as bench:
        for turn in range(ROUNDS + 1):
            for name, times in seconds.items():
                began = cpu_seconds()
                if name == _OURS:
                    verdicts = await verify_batch(bench, jobs(items, MathVerifier()))
                    found = [verdict.status == "ok" for verdict in verdicts]
                else:
                    found = [others[name](one) for one in items]
                took = cpu_seconds() - began
                wrong = sum(a != one.correct for a, one in zip(found, items, strict=True))
                say(f"{title}, turn {turn} of {ROUNDS}: {name}: {took:.2f} s, {wrong} misjudged")
                if turn:
                    times.append(took)
    return seconds


def cpu_seconds() -> float:
    """What this process and all below it have used of a core."""
    ticks = sum(ticks for _, _, ticks in descendants(os.getpid()).values())
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """Memory and processes of a run, looked at twice a second."""

    parent: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    zombies: int = 0

    async def look(self) -> None:
        """Until it is cancelled."""
        while True:
            below = descendants(os.getpid())
            alive = [pid for pid, (state, _, _) in below.items() if state != "Z"]
            self.zombies = max(self.zombies, len(below) - len(alive))
            self.processes.append(len(alive))
            self.parent.append(resident(os.getpid()))
            self.workers.append(max((resident(pid) for pid in alive), default=0.0))
            await asyncio.sleep(0.5)


def descendants(root: int) -> dict[int, tuple[str, int, int]]:
    """State, parent and CPU ticks (its dead children's with it) of every process below one."""
    table: dict[int, tuple[str, int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        ticks = sum(map(int, fields[11:15]))
        table[int(stat.parent.name)] = (fields[0], int(fields[1]), ticks)
    found = {root}
    while more := {pid for pid, (_, up, _) in table.items() if up in found} - found:
        found |= more
    return {pid: table[pid] for pid in found - {root}}


def resident(pid: int) -> float:
    """Resident memory in MiB; 0 where the process is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def hangs() -> Figures:
    """10,000 items of which 1% never end."""
    # Cheap ones, so that the deadlines stand out from what else goes on on the machine.
    solutions = gsm8k()
    ordinary = [
        one if number % 4 == 0 else solutions[number % len(solutions)]
        for number, one in enumerate(expressions(HANG_ITEMS, kinds=(0, 5)))
    ]
    # Sympy takes far longer than any deadline to expand this.
    endless = Labelled("endless", "(x+y+z+2)^{300}", r"\boxed{(x+y+z+1)^{300}}", correct=False)
    mixed = [
        endless if number % HANG_EVERY == HANG_EVERY // 2 else one
        for number, one in enumerate(ordinary)
    ]
    quiet, _, _ = asyncio.run(_watched(ordinary))
    say(f"hangs: {quiet:.1f} s without")
    took, verdicts, watch = asyncio.run(_watched(mixed))
    say(f"hangs: {took:.1f} s with")
    workers = len(os.sched_getaffinity(0))
    count = HANG_ITEMS // HANG_EVERY
    share = count * HANG_DEADLINE / workers
    statuses = Counter(verdict.status for verdict in verdicts)
    wrong = sum(
        (verdict.status == "ok") != one.correct
        for one, verdict in zip(mixed, verdicts, strict=True)
    )
    left = descendants(os.getpid())
    half = len(watch.parent) // 2
    early, late = max(watch.parent[2:half]), max(watch.parent[half:])
    rows = [
        Row(f"{HANG_ITEMS:,} items, none hangs, {workers} workers", f"{quiet:.1f} s"),
        Row(
            f"the same, {count} of them hang, deadline {HANG_DEADLINE:g} s",
            f"{took:.1f} s (+{took - quiet:.1f} s)",
            f"at most +{share:.1f} s: {count} x {HANG_DEADLINE:g} s / {workers} workers",
            took - quiet <= share,
        ),
        Row(
            "verdicts",
            ", ".join(f"{n} {s}" for s, n in statuses.most_common()) + f"; {wrong} misjudged",
            f"{count} timeout, none misjudged",
            statuses["timeout"] == count and wrong == 0,
        ),
        Row(
            "processes below this one: most at a time; zombies at most; left afterwards",
            f"{max(watch.processes)}; {watch.zombies}; {len(left)}",
            f"at most {2 * workers + 1}; at most {workers}; 0",
            max(watch.processes) <= 2 * workers + 1 and watch.zombies <= workers and not left,
        ),
        Row(
            "memory of this process: highest in the first half, in the second",
            f"{early:.0f} MiB, {late:.0f} MiB",
            "flat: at most +5%",
            late <= early * 1.05,
        ),
        Row(
            "memory of the largest worker: highest in the first half, in the second",
            f"{max(watch.workers[2:half]):.0f} MiB, {max(watch.workers[half:]):.0f} MiB",
        ),
    ]
    notes = [
        "Hangs: one in four an expression as in the LaTeX rows, the others GSM8K solutions; one in "
        "100 replaced by the equality of two powers of sums that sympy does not finish. Below this "
        "process are the host, the workers, and for a moment each killed worker until its host has "
        "reaped it.",
    ]
    return rows, notes, {"quiet_seconds": quiet, "seconds": took, "watch": asdict(watch)}


async def _watched(items: Sequence[Labelled]) -> tuple[float, list[Verdict], Watch]:
    watch = Watch()
    async with Bench() as bench:
        # The first call starts the workers, which is not what is asked here.
        await verify_batch(bench, jobs(items[: 4 * len(os.sched_getaffinity(0))], MathVerifier()))
        looking = asyncio.create_task(watch.look())
        began = time.perf_counter()
        verdicts = await verify_batch(bench, jobs(items, MathVerifier(timeout=HANG_DEADLINE)))
        took = time.perf_counter() - began
        looking.cancel()
    return took, verdicts, watch


SECTIONS: dict[str, Callable[[], Figures]] = {
    "agreement": agreement,
    "throughput": throughput,
    "hangs": hangs,
    "code": verifiers_code.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.verifiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SECTIONS))
    names = parser.parse_args().names or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    path = RESULTS / "verifiers.json"
    known: Json = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        say(f"section {name}")
        rows, notes, raw = SECTIONS[name]()
        known[name] = {"rows": [asdict(row) for row in rows], "notes": notes, "raw": raw}
    ordered = {name: known[name] for name in SECTIONS if name in known}
    write(
        "verifiers",
        "Verifiers",
        [Row(**row) for section in ordered.values() for row in section["rows"]],
        notes=[note for section in ordered.values() for note in section["notes"]],
        about=python_versions(*PACKAGES),
        raw=ordered,
        command="python -m benchmarks.verifiers",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
