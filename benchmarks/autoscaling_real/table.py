"""The table of a recorded run beside the simulated one. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from assay_operator.autoscaling.model import Policy
from benchmarks.autoscaling import fit
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.score import percentile
from benchmarks.autoscaling.trace import Request, Trace
from benchmarks.autoscaling_real import capacity as cap
from benchmarks.autoscaling_real import course as runs
from benchmarks.autoscaling_real.capacity import Capacity, Loop, Measured, Rounds
from benchmarks.autoscaling_real.course import Course, Figures
from benchmarks.common import Json, Row

PHASES, PHASE_S = 10, 0.5
"""Simulated runs that differ in when the operator looks, by so many seconds each."""
LATEST_S = (PHASES - 1) * PHASE_S


@dataclass(frozen=True)
class Record:
    """What a run wrote down.

    Attributes:
        spec: of the InferenceService while the trace was replayed.
        measured: before that.
        piece: the requests.
        share: of the trace's requests that were kept.
        source: the trace's name, and from and to which of its seconds.
        lead_s: for how long the operator had watched when the trace began.
        end_s: when the record ends, in seconds since the trace began.
        course: what happened.
        late_s: how long after it was due each request was sent.
        loads: the machine's load average in each second.
        cpu: of an engine, as its limit says.
        about: when and on which machine.
    """

    spec: Json
    measured: Measured
    piece: Trace
    share: float
    source: str
    lead_s: float
    end_s: float
    course: Course
    late_s: Sequence[float]
    loads: Sequence[float]
    cpu: str
    about: str

    @property
    def objective(self) -> Objective:
        """That of the spec."""
        goals = self.spec["autoscaling"]["objectives"]
        return objective(goals["ttftMs"], goals["itlMs"])


def objective(ttft_ms: int, itl_ms: int) -> Objective:
    """Both times in milliseconds, as an objective of the simulator."""
    return Objective(f"TTFT {ttft_ms} ms, ITL {itl_ms} ms", ttft_ms / 1000, itl_ms / 1000)


def read(raw: Json) -> Record:
    """The record that the benchmark wrote as JSON."""
    measured, run = raw["measured"], raw["run"]
    begin = run["begin"]
    piece = [Request(*each) for each in raw["requests"]]
    told = run["told"]
    return Record(
        spec=raw["spec"],
        measured=Measured(
            rounds=[Rounds(**each) for each in measured["rounds"]],
            long=Rounds(**measured["long"]),
            loop=Loop(**measured["loop"]),
            start_s=measured["start_s"],
        ),
        piece=piece,
        share=raw["share"],
        source=raw["source"],
        lead_s=run["lead_s"],
        end_s=run["end_s"],
        course=Course(
            wanted=runs.told_steps(told, "wanted"),
            ready=runs.told_steps(told, "ready"),
            moves=runs.told_moves(told),
            felt=runs.felt(run["lines"], begin, [one.at for one in piece]),
            learned=run["learned"],
        ),
        late_s=[line["sent"] - line["at"] for line in run["lines"]],
        loads=run["loads"],
        cpu=raw["spec"]["engine"]["resources"]["limits"]["cpu"],
        about=raw["about"],
    )


@dataclass(frozen=True)
class Result:
    """A record and what the simulator makes of the same.

    Attributes:
        record: the real run.
        found: the capacity that was fitted to what was measured before it.
        policy: of the operator.
        courses: simulated ones, which differ in when the operator looks; the first is *the* one.
    """

    record: Record
    found: Capacity
    policy: Policy
    courses: Sequence[Course]


def simulate(record: Record) -> Result:
    """The same trace with the same spec and the measured capacity."""
    found, policy = cap.capacity(record.measured), runs.policy_for(record.spec)
    courses = [
        runs.simulated(
            record.piece, record.lead_s + PHASE_S * phase, found, policy, record.objective
        )
        for phase in range(PHASES)
    ]
    return Result(record, found, policy, courses)


def rows(result: Result) -> list[Row]:
    """The table."""
    return [*_engine(result), *_replicas(result), *_users(result), *_circumstances(result)]


def _engine(result: Result) -> Iterator[Row]:
    found, measured = result.found, result.record.measured
    for one in measured.rounds:
        said = cap.tokens_s(found.engine, one, found.beside_s)
        yield Row(
            f"engine: {one.clients} at once, {one.prompt} tokens in, {one.output} out",
            f"TTFT {_ms(one.ttft_s)}, ITL {_ms(one.itl_s)}, {one.tokens_s:.0f} output tokens/s; "
            f"simulated {said:.0f} tokens/s ({said / one.tokens_s - 1:+.0%})",
        )
    loop = measured.loop
    felt = [cap.felt_of(line) for line in loop.lines]
    served = fit.closed_loop(found.engine, loop.lengths, loop.clients)
    yield Row(
        f"engine: {loop.clients} clients without a pause, lengths of the trace",
        f"{loop.requests_s:.2f} requests/s, which fixes what a request costs; medians: TTFT "
        f"{_ms(statistics.median(ttft for ttft, _ in felt))}, simulated "
        f"{_ms(found.beside_s + statistics.median(one.ttft for one in served))}; ITL "
        f"{_ms(statistics.median(itl for _, itl in felt))}, simulated "
        f"{_ms(statistics.median(one.itl for one in served))}",
    )
    real = ", ".join(f"{each:.0f}" for each in starts(result.record.course)) or "none"
    yield Row(
        "a replica's start, from being asked for until routable",
        f"{measured.start_s:.0f} s before the run, which the simulator takes; {real} s in it",
    )


def starts(course: Course) -> list[float]:
    """How long it took from each scaling up until so many were ready, where that came to be."""
    found = []
    for move in course.moves:
        later = [one.at for one in course.moves if one.at > move.at]
        until = min(later, default=float("inf"))
        ready = [at for at, number in course.ready if move.at <= at < until]
        reached = [at for at in ready if runs.at_time(course.ready, at) >= move.after]
        if move.after > move.before and reached:
            found.append(reached[0] - move.at)
    return found


def _replicas(result: Result) -> Iterator[Row]:
    record, end = result.record, result.record.end_s
    for name in ("wanted", "ready"):
        seconds = [
            runs.each_second(getattr(course, name), end)
            for course in (record.course, *result.courses)
        ]
        real, first, *others = seconds
        beside = [runs.agreement(first, other) for other in others]
        every = [runs.agreement(real, other) for other in (first, *others)]
        said = every[0]
        yield Row(
            f"replicas {name}, real and simulated, each second",
            f"the same {said.same:.0%} of the time, within one {said.close:.0%}, mean difference "
            f"{said.difference:.2f}; where the simulated operator looks up to "
            f"{LATEST_S:g} s later: {_range([each.same for each in every], '.0%')}, "
            f"{_range([each.close for each in every], '.0%')}, "
            f"{_range([each.difference for each in every], '.2f')}",
        )
        yield Row(
            f"replicas {name}, the first simulated run and the others",
            f"the same {_range([each.same for each in beside], '.0%')} of the time, mean "
            f"difference {_range([each.difference for each in beside], '.2f')}",
        )
        yield Row(
            f"replicas {name}, real, in what the {PHASES} simulated runs span",
            f"{runs.inside(real, seconds[1:]):.0%} of the time",
        )
    yield Row("scalings, real", _moves(record.course, end))
    yield Row("scalings, simulated", _moves(result.courses[0], end))
    yield _pair(result, "number of scalings", lambda each: each.scalings, "d")
    yield _pair(result, "most replicas wanted", lambda each: each.most, "d")
    yield _pair(
        result,
        "GPU-seconds (here: engine-seconds), from being asked for until let go",
        lambda each: each.replica_seconds,
        ".0f",
    )


def _moves(course: Course, end: float) -> str:
    told = [
        f"{move.at:.0f} s: {move.before} -> {move.after} ({move.reason})"
        for move in course.moves
        if 0 <= move.at < end
    ]
    return "; ".join(told) or "none"


def _users(result: Result) -> Iterator[Row]:
    goal = result.record.objective
    yield _pair(result, f"requests within {goal.name}", lambda each: each.attained, ".1%")
    yield _pair(result, "within the one for TTFT", lambda each: each.ttft, ".1%")
    yield _pair(result, "within the one for ITL", lambda each: each.itl, ".1%")
    for name, share in (("median", "p50"), ("p95", "p95")):
        for what in ("ttft", "itl"):
            yield _pair(result, f"{what.upper()}, {name}", _in_ms(f"{what}_{share}"), ".0f", " ms")
    failed = _figures(result)[0].failed
    total = len(result.record.piece)
    yield Row("failed requests, real", f"{failed} of {total}", "0", failed == 0)


def _in_ms(name: str) -> Callable[[Figures], float]:
    return lambda each: float(getattr(each, name)) * 1000


def _figures(result: Result) -> list[Figures]:
    """Of the real run first, then of the simulated ones."""
    return [
        runs.figures(course, result.record.objective, result.record.end_s)
        for course in (result.record.course, *result.courses)
    ]


def _pair(
    result: Result, name: str, value: Callable[[Figures], float], form: str, unit: str = ""
) -> Row:
    real, first, *others = map(value, _figures(result))
    spread = _range([first, *others], form)
    return Row(
        name, f"{real:{form}}{unit} real, {first:{form}}{unit} simulated ({spread} by the looks)"
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _circumstances(result: Result) -> Iterator[Row]:
    record = result.record
    yield Row("what the operator had learned of a replica, real", _learned(record.course))
    yield Row("what it had learned, simulated", _learned(result.courses[0]))
    late, loads = record.late_s, record.loads
    if not late or not loads:
        return
    yield Row(
        "the machine: load average, and how late requests were sent",
        f"median {statistics.median(loads):.1f}, at most {max(loads):.1f}; median "
        f"{_ms(percentile(late, 0.5))}, p99 {_ms(percentile(late, 0.99))}, at most "
        f"{_ms(max(late))}",
    )


def _learned(course: Course) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in course.learned.items()) or "nothing"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def notes(result: Result, name: str) -> list[str]:
    """What a reader must know to judge the figures."""
    record, engine = result.record, result.found.engine
    kept = len(record.piece)
    return [
        f"{record.about}. {kept} requests in {record.piece[-1].at / 60:.1f} minutes: of "
        f"{record.source}, {record.share:.0%} of the requests, drawn at random with a fixed seed: "
        f"as many as bring the busiest minute to {cap.PEAK_REPLICAS:g} times what one replica "
        "bears by the operator's own model, or all of them. Prompts are "
        f"{1 / cap.PROMPT_SCALE:.0f} times shorter, answers as they are, up to "
        f"{cap.LONGEST_OUTPUT} tokens; the requests' times are not changed. "
        f"{record.end_s - record.piece[-1].at:.0f} s more are recorded. The piece and that factor "
        "were chosen before any real run, by the simulator with an assumed engine, so that there "
        "are scalings up and down.",
        f"The spec, in both: `{json.dumps(record.spec['autoscaling'])}`, the objective for ITL "
        f"being {cap.ITL_FACTOR:g} times what a lone request measured. The simulated operator is "
        "the operator's own decision, which begins knowing nothing, as the real one does, and has "
        f"watched for {record.lead_s:.0f} s when the trace begins.",
        f"Each engine has a CPU limit of {record.cpu} and runs {cap.SLOTS} requests at once: else "
        "engines that share the cores would slow each other down, and three would do no more than "
        "one. A model of 2.8 M parameters. What is left of the cores is for API server, operator, "
        "router and client.",
        f"The simulated engine, fitted before the run and not after it: {engine.base_s * 1e3:.1f} "
        f"ms an iteration, {engine.sequence_s * 1e3:.2f} ms a sequence, "
        f"{engine.prompt_s * 1e6:.0f} us a prompt token, {engine.request_s * 1e3:.0f} ms a "
        f"request; beside the engine {result.found.beside_s * 1e3:.0f} ms to the first token. It "
        "does not warm up, and context costs it nothing.",
        "Real numbers are those of every status of the InferenceService, by a watch; times of "
        "requests are the client's, from when they were due, through Service and router (round "
        "robin in both). None is sent twice.",
        "What the simulator has not: metrics that come late, are missed or are torn; looks that "
        "are not exactly 5 s apart; a CPU limit, which lets an idle engine run at full speed for "
        "some milliseconds; a replica that is let go and still gets requests until the router "
        "knows; engines, router and client that wait for a core. One run, so its figures have no "
        "spread; that of the simulated ones is the looks' alone.",
        f"Picture: [{name}.png]({name}.png).",
    ]


def raw(result: Result) -> Json:
    """What was computed from the record, for the JSON file."""
    real, *simulated = _figures(result)
    return {
        "capacity": asdict(result.found),
        "real": asdict(real),
        "simulated": [asdict(each) for each in simulated],
        "moves": [asdict(move) for move in result.courses[0].moves],
    }
