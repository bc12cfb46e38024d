"""The `code` verifier's figures: right programs pass, wrong ones do not, and how long it takes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from assay_verifiers.config import CodeVerifier, Limits
from assay_verifiers.contract import Task, Unavailable, Verdict
from assay_verifiers.registry import Bench, verify_one
from benchmarks.common import Json, Row, say, spread
from benchmarks.mutants import mutants
from tests.cluster.settings import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data" / "humaneval_82.jsonl"
PER_PROBLEM = 12
CAUGHT_GOAL = 0.95
ITEMS = 32
TURNS = 7
INPUTS = 400

# A survivor may be no error at all. This runs in the tests' place: the right function and the
# mutant get the inputs of the problem's own tests and variations of them, and must agree.
_DIFFERENCE = """
import copy, math, random

_names = dict(globals())
exec({solution!r}, _names)
_right = _names[{entry!r}]
_random = random.Random({entry!r})

def _varied(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + _random.choice((-1, 1, _random.randint(0, 9)))
    if isinstance(value, float):
        return value + _random.choice((-1.0, 0.5, 1.25))
    if isinstance(value, str):
        return "".join(_varied_sequence(list(value), str))
    if isinstance(value, list | tuple):
        return type(value)(_varied_sequence(list(value), _varied))
    return value

def _varied_sequence(items, vary):
    for _ in range(_random.randint(1, 2)):
        what = _random.randrange(4)
        place = _random.randrange(len(items) + 1)
        if what == 0 and items:
            items.insert(place, copy.deepcopy(_random.choice(items)))
        elif what == 1 and items:
            items.pop(place - 1)
        elif what == 2:
            _random.shuffle(items)
        elif items:
            items[place - 1] = vary(items[place - 1]) if vary is not str else items[0]
    return items

def _same(one, other):
    try:
        return one == other or math.isclose(float(one), float(other), rel_tol=1e-6)
    except ValueError:
        return False

def _value(function, arguments):
    try:
        return repr(function(*copy.deepcopy(arguments)))
    except Exception as reason:
        return type(reason).__name__

{tests}

_check, _inputs = check, []
def _recorder(*arguments):
    _inputs.append(copy.deepcopy(arguments))
    return _right(*arguments)
_check(_recorder)
_own = list(_inputs)

def check(candidate):
    inputs = list(_own)
    while len(inputs) < {inputs} and _own:
        inputs.append(tuple(_varied(copy.deepcopy(a)) for a in _random.choice(_own)))
    for arguments in inputs:
        expected = _value(_right, arguments)
        # Where the right function itself gives up, the input is outside its domain.
        if expected.isidentifier() and expected not in ("True", "False", "None"):
            continue
        got = _value(candidate, arguments)
        assert _same(got, expected), f"{{arguments}}: {{got}} instead of {{expected}}"
"""


@dataclass(frozen=True)
class Problem:
    """One HumanEval problem."""

    name: str
    prompt: str
    solution: str
    tests: str
    entry: str

    @property
    def task(self) -> Task:
        """The item that the verifier gets."""
        return Task(self.name, self.prompt, {"test": self.tests, "entry_point": self.entry})


def problems() -> list[Problem]:
    """The HumanEval problems of ../shared/data."""
    lines = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [
        Problem(
            line["task_id"],
            line["prompt"],
            line["canonical_solution"],
            line["test"],
            line["entry_point"],
        )
        for line in lines
    ]


def available() -> dict[str, str]:
    """The kinds of sandbox, with "" where one works here, else why not."""
    found = {}
    for kind in ("bubblewrap", "landlock"):
        try:
            Bench().check([CodeVerifier(sandbox=kind)])
            found[kind] = ""
        except Unavailable as reason:
            found[kind] = str(reason)
    return found


async def judge(
    items: Sequence[tuple[Task, str]], model: CodeVerifier
) -> tuple[list[Verdict], float]:
    """Verdicts on all items at once, and seconds. Sandboxes are started before."""
    async with Bench() as bench:
        verifier = bench.verifier(model)
        await asyncio.gather(*(verify_one(verifier, *items[0]) for _ in range(_cores())))
        began = time.monotonic()
        verdicts = await asyncio.gather(*(verify_one(verifier, *item) for item in items))
        return list(verdicts), time.monotonic() - began


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def rows() -> tuple[list[Row], list[str], Json]:
    """The rows, what must be known to judge them, and everything measured.

    Raises:
        Unavailable: no sandbox works here.
    """
    found = available()
    kinds = [kind for kind, problem in found.items() if not problem]
    if not kinds:
        raise Unavailable("; ".join(found.values()))
    table, notes, raw = [], [], {"not available": {k: p for k, p in found.items() if p}}
    notes += [f"Sandbox kind not measured: {problem}" for problem in found.values() if problem]
    everything = problems()
    for kind in kinds:
        say(f"code: canonical solutions, {kind}")
        table.append(_canonical(everything, kind, raw))
    say("code: mutants")
    row, more = _mutants(everything, kinds[0], raw)
    table.append(row)
    notes += more
    for kind in kinds:
        say(f"code: throughput, {kind}")
        table.append(_throughput(everything[:ITEMS], kind, raw))
    notes.append(
        f"Throughput of code: {ITEMS} HumanEval solutions, {_cores()} at a time; the sandbox keeps "
        "its cells and forks for each item, the other side is one `python -I FILE` a sample "
        "without any protection; by turns."
    )
    return table, notes, raw


def _canonical(everything: Sequence[Problem], kind: str, raw: Json) -> Row:
    items = [(problem.task, problem.solution) for problem in everything]
    verdicts, _ = asyncio.run(judge(items, CodeVerifier(sandbox=kind)))
    failed = [
        f"{problem.name}: {verdict.status} {verdict.detail}"
        for problem, verdict in zip(everything, verdicts, strict=True)
        if verdict.status != "ok"
    ]
    raw[f"canonical solutions that fail, {kind}"] = failed
    return Row(
        f"HumanEval: canonical solutions that pass ({kind})",
        f"{len(items) - len(failed)} of {len(items)}",
        "all",
        not failed,
    )


def _mutants(everything: Sequence[Problem], kind: str, raw: Json) -> tuple[Row, list[str]]:
    model = CodeVerifier(sandbox=kind, limits=Limits(wallSeconds=3, cpuSeconds=3))
    made = [
        (problem, mutant)
        for problem in everything
        for mutant in mutants(
            problem.prompt + problem.solution, problem.entry, PER_PROBLEM, problem.name
        )
    ]
    verdicts, _ = asyncio.run(judge([(p.task, m.source) for p, m in made], model))
    survivors = [pair for pair, v in zip(made, verdicts, strict=True) if v.status == "ok"]
    patient = CodeVerifier(sandbox=kind, limits=Limits(wallSeconds=20, cpuSeconds=20))
    differences, _ = asyncio.run(
        judge([(_difference(problem), mutant.source) for problem, mutant in survivors], patient)
    )
    equivalent: list[str] = []
    alive: dict[str, str] = {}
    for (problem, mutant), verdict in zip(survivors, differences, strict=True):
        line = f"{problem.name} {mutant.change}"
        if verdict.status == "ok":
            equivalent.append(line)
        else:
            alive[line] = f"{verdict.status}: {verdict.detail}"
    statuses = Counter(verdict.status for verdict in verdicts)
    caught = len(made) - len(survivors)
    share = caught / (caught + len(alive))
    raw["mutants"] = {
        "made": len(made),
        "statuses": dict(statuses),
        "set aside as equivalent": equivalent,
        "not caught": alive,
    }
    row = Row(
        "HumanEval: mutants caught",
        f"{share:.1%} ({caught} of {caught + len(alive)}; {len(equivalent)} equivalent set aside)",
        f">= {CAUGHT_GOAL:.0%}",
        share >= CAUGHT_GOAL,
    )
    notes = [
        f"Mutants: up to {PER_PROBLEM} a problem with one change each, {len(made)} in all "
        f"({', '.join(f'{n} {status}' for status, n in sorted(statuses.items()))}); a timeout "
        "counts as caught. A survivor is set aside as equivalent if it agrees with the canonical "
        f"solution on {INPUTS} inputs (those of the tests and variations of them). The tests are "
        "HumanEval's own: what they miss, no verifier can catch.",
        f"Mutants not caught, and not shown to be equivalent ({len(alive)}): "
        f"{'; '.join(alive) or 'none'}. How each differs stands in the JSON file.",
    ]
    return row, notes


def _difference(problem: Problem) -> Task:
    tests = _DIFFERENCE.format(
        solution=problem.prompt + problem.solution,
        entry=problem.entry,
        tests=problem.tests,
        inputs=INPUTS,
    )
    return Task(problem.name, problem.prompt, {"tests": tests, "entry_point": problem.entry})


def _throughput(some: Sequence[Problem], kind: str, raw: Json) -> Row:
    ours: list[float] = []
    theirs: list[float] = []
    items = [(problem.task, problem.solution) for problem in some]
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, problem in enumerate(some):
            files.append(Path(folder) / f"{number}.py")
            files[-1].write_text(
                f"{problem.prompt}{problem.solution}\n{problem.tests}\ncheck({problem.entry})\n",
                encoding="utf-8",
            )
        for _ in range(TURNS):
            theirs.append(len(some) / _subprocesses(files))
            verdicts, seconds = asyncio.run(judge(items, CodeVerifier(sandbox=kind)))
            ours.append(len(some) / seconds)
            if any(verdict.status != "ok" for verdict in verdicts):
                raise AssertionError("a canonical solution failed in the throughput run")
    raw[f"items a second, {kind}"] = {"sandbox": ours, "subprocess": theirs}
    ratio = sorted(ours)[TURNS // 2] / sorted(theirs)[TURNS // 2]
    return Row(
        f"code, {ITEMS} items: {kind} against one plain subprocess a sample",
        f"{ratio:.2f}x: {spread(ours, 'items/s')} against {spread(theirs, 'items/s')}",
        "faster",
        ratio > 1,
    )


def _subprocesses(files: Sequence[Path]) -> float:
    # The interpreter itself: a virtual environment's link to it would start more slowly.
    python = os.path.realpath(sys.executable)

    def one(file: Path) -> int:
        return subprocess.run([python, "-I", str(file)], capture_output=True, check=True).returncode

    began = time.monotonic()
    with ThreadPoolExecutor(_cores()) as executor:
        list(executor.map(one, files))
    return time.monotonic() - began
