"""The gate: asks candidate and incumbent the same items with the same seeds, and decides.

Nothing is concluded from what could not be judged, and nothing from answers of mixed weights: an
endpoint whose weights change while it is asked makes the whole undecided.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from assay_verifiers.answers import Answers, Record
from assay_verifiers.config import GateLimits
from assay_verifiers.contract import error
from assay_verifiers.decision import Decision, decide, look_sizes
from assay_verifiers.endpoints import Endpoint, EndpointError, Identity, Sampling
from assay_verifiers.progress import Counted
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.report import Facts, build_report
from assay_verifiers.statistics import score
from assay_verifiers.suites import Suite, SuiteItem

_FAILURES_IN_A_ROW = 24
"""After so many answers in a row without a text, a side counts as gone and is asked no more."""


@dataclass(frozen=True)
class Gate:
    """What is asked of whom.

    Attributes:
        suite: the items.
        endpoints: by side: `candidate` and, where there is one, `incumbent`.
        out: the folder that keeps the answers and the report.
        limits: what the candidate has to reach.
        sampling: how it is asked.
        concurrency: questions at a time, on each side.
        ask_again: how often an answer that could not be judged is asked for again.
        restart: throws away what the folder holds.
        first: how many items the first look asks; None: all.
        fused: whether the candidate must say first that it runs Assay's fused kernels. Scores of
            other kernels would say nothing of what is to be served.
    """

    suite: Suite
    endpoints: Mapping[str, Endpoint]
    out: Path
    limits: GateLimits
    sampling: Sampling = field(default_factory=Sampling)
    concurrency: int = 16
    ask_again: int = 1
    restart: bool = False
    first: int | None = None
    fused: bool = False


@dataclass
class _Side:
    """What is known of one side while it is asked."""

    name: str
    endpoint: Endpoint
    identity: Identity
    versions: set[str] = field(default_factory=set)
    failures: int = 0
    stopped: str = ""

    def saw(self, *versions: str | None) -> None:
        """Notes weight versions; two of them end the asking."""
        self.versions |= {version for version in versions if version is not None}
        if len(self.versions) > 1:
            told = ", ".join(sorted(self.versions))
            self.stopped = f"{self.name}: the weights changed while it was asked ({told})"

    def answered(self, failure: str) -> None:
        """Notes whether there was an answer; many failures in a row end the asking."""
        self.failures = self.failures + 1 if failure else 0
        if self.failures >= _FAILURES_IN_A_ROW and not self.stopped:
            self.stopped = f"{self.name}: {self.failures} failures in a row, the last: {failure}"


async def run_gate(gate: Gate, bench: Bench, console: Console) -> dict[str, Any]:
    """Asks what is missing, decides, and returns the report.

    Raises:
        Unavailable: a verifier of the suite cannot work here.
        StateError: the folder holds something else.
        ValueError: the limits ask for nothing, or the candidate does not run the kernels that it
            must run.
    """
    if gate.limits.minScore is None and "incumbent" not in gate.endpoints:
        raise ValueError("nothing to decide: give --min-score or --incumbent")
    bench.check(item.verifier for item in gate.suite.items)
    began = time.time()
    async with AsyncExitStack() as stack:
        for endpoint in gate.endpoints.values():
            await stack.enter_async_context(endpoint)
        sides: dict[str, _Side] = {}
        for name, endpoint in gate.endpoints.items():
            try:
                sides[name] = _Side(name, endpoint, await endpoint.identity())
                asked = gate.fused and name == "candidate"
                lacks = await endpoint.lacks_kernels() if asked else None
            except EndpointError as reason:
                return _unreached(gate, name, str(reason), began)
            if lacks:
                raise ValueError(
                    f"nothing was asked: {name} does not run the fused kernels that it would be "
                    f"served with: {lacks}"
                )
        for side in sides.values():
            side.saw(side.identity.weight_version)
        with Answers(gate.out, _settings(gate, sides), restart=gate.restart) as answers:
            for record in answers.records.values():
                sides[record.side].saw(*record.weightVersions)
            facts, decision = await _look(gate, bench, sides, answers, console)
        for side in sides.values():
            try:
                side.saw((await side.endpoint.identity()).weight_version)
            except EndpointError as reason:
                side.stopped = side.stopped or f"{side.name}: gone at the end: {reason}"
    stopped = {side.name: side.stopped for side in sides.values() if side.stopped}
    facts = replace(facts, versions=_versions(sides), stopped=stopped, began=began)
    return build_report(facts, decision)


async def _look(
    gate: Gate, bench: Bench, sides: Mapping[str, _Side], answers: Answers, console: Console
) -> tuple[Facts, Decision]:
    """Asks, and asks more while that decides nothing. The confidence is shared among the looks."""
    total = len(gate.suite.items)
    sizes = look_sizes(gate.first, total, gate.limits.looks)
    # All at once are asked in the suite's order, as who reads the answers knows it.
    items = gate.suite.items if sizes == (total,) else gate.suite.shuffled(gate.sampling.seed)
    for taken, size in enumerate(sizes, 1):
        what = f"asking {' and '.join(sides)}"
        if len(sizes) > 1:
            what += f", look {taken} of {len(sizes)}"
        asked = items[:size]
        await _ask_all(gate, asked, bench, sides, answers=answers, console=console, what=what)
        facts = Facts(
            gate.suite,
            asked,
            sizes[:taken],
            gate.limits,
            gate.sampling,
            {name: side.endpoint.shown for name, side in sides.items()},
            {name: side.identity for name, side in sides.items()},
            _versions(sides),
            answers.records,
            {},
            0.0,
        )
        decision = decide(
            facts.item_scores(),
            {name: facts.statuses(name) for name in gate.endpoints},
            gate.limits,
            seed=gate.sampling.seed,
        )
        if decision.outcome != "undecided" or any(side.stopped for side in sides.values()):
            break
    if decision.outcome == "undecided" and gate.first is not None:
        looks = f"{taken} look{'s' if taken > 1 else ''}"
        told = f"{decision.reason}; {size} of {total} items were asked, in {looks}"
        decision = replace(decision, reason=told)
    return facts, decision


def _versions(sides: Mapping[str, _Side]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(sorted(side.versions)) for name, side in sides.items()}


def _unreached(gate: Gate, side: str, reason: str, began: float) -> dict[str, Any]:
    """The report where a side did not answer at all."""
    facts = Facts(
        gate.suite,
        (),
        (),
        gate.limits,
        gate.sampling,
        {name: endpoint.shown for name, endpoint in gate.endpoints.items()},
        {},
        {},
        {},
        {side: f"{side}: {reason}"},
        began,
    )
    return build_report(facts, Decision("undecided", reason, score([], gate.limits), None, None))


def _settings(gate: Gate, sides: Mapping[str, _Side]) -> dict[str, Any]:
    """What must not change between two starts, if their answers are to be put together."""
    return {
        "assay": version("assay"),
        "suite": gate.suite.digest,
        "sampling": asdict(gate.sampling),
        "sides": {
            name: {
                **asdict(side.identity),
                # Where the endpoint tells no version, its address is all that tells the weights.
                **({} if side.identity.weight_version else {"url": side.endpoint.shown}),
            }
            for name, side in sides.items()
        },
    }


def item_seed(base: int, item: str, sample: int) -> int:
    """The seed of one sample: the same for both sides, of 31 bits, as servers accept it."""
    digest = hashlib.sha256(f"{base}\0{item}\0{sample}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1


async def _ask_all(
    gate: Gate,
    items: Sequence[SuiteItem],
    bench: Bench,
    sides: Mapping[str, _Side],
    *,
    answers: Answers,
    console: Console,
    what: str,
) -> None:
    """Asks both sides at once, each with its own bound, until nothing is missing that may come."""
    for asked in range(1 + gate.ask_again):
        # In the same order on both sides, so that a run cut short has pairs.
        missing = {name: _missing(gate, items, name, answers) for name in sides}
        left = sum(len(questions) for questions in missing.values())
        if left == 0 or any(side.stopped for side in sides.values()):
            return
        total = len(sides) * len(items) * gate.sampling.samples
        told = what + (" again" if asked else "")
        with Counted(told, total, console, done=total - left) as counted:
            async with asyncio.TaskGroup() as group:
                for name, side in sides.items():
                    questions = iter(missing[name])
                    for _ in range(gate.concurrency):
                        work = _ask(
                            gate,
                            bench,
                            side,
                            sides=sides,
                            questions=questions,
                            answers=answers,
                            counted=counted,
                        )
                        group.create_task(work)


def _missing(
    gate: Gate, items: Sequence[SuiteItem], side: str, answers: Answers
) -> list[tuple[SuiteItem, int]]:
    found = []
    for item in items:
        for sample in range(gate.sampling.samples):
            record = answers.records.get((side, item.id, sample))
            if record is None or record.masked:
                found.append((item, sample))
    return found


async def _ask(
    gate: Gate,
    bench: Bench,
    side: _Side,
    *,
    sides: Mapping[str, _Side],
    questions: Iterator[tuple[SuiteItem, int]],
    answers: Answers,
    counted: Counted,
) -> None:
    """One worker: takes the next question of its side until there is none or a side is stopped."""
    for item, sample in questions:
        if any(other.stopped for other in sides.values()):
            return
        seed = item_seed(gate.sampling.seed, item.id, sample)
        answer = await side.endpoint.ask(item, side.identity, gate.sampling, seed)
        if answer.text is None:
            verdict = error(f"no answer: {answer.failure}")
        else:
            verdict = await verify_one(bench.verifier(item.verifier), item.task(), answer.text)
        side.answered(answer.failure)
        side.saw(*answer.weight_versions)
        answers.add(
            Record(
                side=side.name,
                id=item.id,
                sample=sample,
                seed=seed,
                status=verdict.status,
                score=verdict.score,
                detail=verdict.detail,
                seconds=round(verdict.seconds, 4),
                text=answer.text,
                finish=answer.finish,
                tokens=answer.tokens,
                weightVersions=answer.weight_versions,
            )
        )
        counted.step(verdict.status)
