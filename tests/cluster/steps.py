"""A small step runner: steps that need one another form a graph, independent ones run side by
side, each has its own log, and a display says what runs and what is left.

    run_steps([
        Step("download", fetch, expected_seconds=20),
        Step("build", build, needs=("download",), expected_seconds=60),
    ], logs=cache.logs)

A step's function gets a `StepRun`, by which it runs commands and tells how far it is.
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Protocol

from tests.cluster.errors import ClusterError
from tests.cluster.files import write_text
from tests.cluster.processes import Processes

LOG_TAIL_LINES = 15
REFRESH_SECONDS = 0.25


@dataclass(frozen=True)
class Step:
    """One unit of work. `needs` names the steps that must be done before it starts."""

    name: str
    run: Callable[[StepRun], None]
    needs: tuple[str, ...] = ()
    # A first guess for the display; replaced by what the last run on this machine took.
    expected_seconds: float = 1.0


@dataclass
class StepRun:
    """A running step: its log, its commands, and what it tells the display."""

    name: str
    log_path: Path
    processes: Processes
    started: float = field(default_factory=time.monotonic)
    note_text: str = ""
    reused: bool = False
    seconds: float = 0.0

    def log(self, text: str) -> None:
        with self.log_path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text.rstrip("\n") + "\n")

    def note(self, text: str) -> None:
        """Say in a few words how far the step is."""
        self.note_text = text

    def reuse(self, text: str = "cached") -> None:
        """Say that there was nothing to do, so that the time taken isn't taken for an estimate."""
        self.reused = True
        self.note(text)

    def command(
        self,
        *argv: str | Path,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Path | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Run a command with its output in the step's log; `on_line` sees every line."""
        words = [str(word) for word in argv]
        self.log("$ " + " ".join(words))

        def each(line: str) -> None:
            self.log(line)
            if on_line:
                on_line(line)

        code = self.processes.stream(words, each, env=env, cwd=cwd, stdin=stdin)
        if code:
            raise ClusterError(f"{' '.join(words[:3])} ... ended with exit code {code}")


class Display(Protocol):
    """What the runner tells its display."""

    def begin(self, state: RunState) -> None: ...
    def started(self, run: StepRun) -> None: ...
    def finished(self, run: StepRun) -> None: ...
    def tick(self) -> None: ...
    def end(self) -> None: ...


@dataclass
class RunState:
    """Everything a display may want to know about a run of steps."""

    steps: dict[str, Step]
    expected: dict[str, float]
    began: float = field(default_factory=time.monotonic)
    running: dict[str, StepRun] = field(default_factory=dict)
    done: dict[str, StepRun] = field(default_factory=dict)

    def waiting(self) -> list[str]:
        return [name for name in self.steps if name not in self.running and name not in self.done]

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def seconds_left(self) -> float:
        """The longest chain of steps that are not done yet."""
        now = time.monotonic()
        left: dict[str, float] = {}
        for name in order(list(self.steps.values())):
            own = 0.0 if name in self.done else self.expected[name]
            if name in self.running:
                own = max(own - (now - self.running[name].started), 1.0)
            before = (left[need] for need in self.steps[name].needs)
            left[name] = own + max(before, default=0.0)
        return max(left.values(), default=0.0)


def order(steps: Sequence[Step]) -> list[str]:
    """Names in an order in which every step comes after those it needs; raises on nonsense."""
    names = [step.name for step in steps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ClusterError(f"more than one step is named {', '.join(twice)}")
    for step in steps:
        if unknown := sorted(set(step.needs) - set(names)):
            raise ClusterError(f'step "{step.name}" needs {", ".join(unknown)}: no such step')
    try:
        return list(TopologicalSorter({step.name: step.needs for step in steps}).static_order())
    except CycleError as error:
        raise ClusterError(f"steps need one another: {' -> '.join(error.args[1])}") from None


def run_steps(steps: Sequence[Step], *, logs: Path, display: Display) -> None:
    """Run all steps, as many side by side as their needs allow. Stops at the first failure."""
    order(steps)
    logs.mkdir(parents=True, exist_ok=True)
    durations = _Durations(logs / "durations.json")
    state = RunState(
        {step.name: step for step in steps},
        {step.name: durations.expected(step) for step in steps},
    )
    display.begin(state)
    try:
        _Runner(state, logs, display).run()
    finally:
        display.end()
        durations.store(run for run in state.done.values() if not run.reused)


class _Runner:
    def __init__(self, state: RunState, logs: Path, display: Display) -> None:
        self._state = state
        self._logs = logs
        self._display = display
        self._processes = Processes()
        self._ended: queue.Queue[tuple[StepRun, BaseException | None]] = queue.Queue()

    def run(self) -> None:
        graph = TopologicalSorter({s.name: s.needs for s in self._state.steps.values()})
        graph.prepare()
        try:
            while graph.is_active():
                for name in graph.get_ready():
                    self._start(self._state.steps[name])
                graph.done(*self._wait())
        except BaseException:
            self._processes.stop_all()
            raise

    def _start(self, step: Step) -> None:
        log = self._logs / (re.sub(r"[^\w.-]+", "-", step.name).lower() + ".log")
        log.write_text("")
        run = StepRun(step.name, log, self._processes)
        self._state.running[step.name] = run
        self._display.started(run)
        # A thread a step, not a pool: its children are tied to the life of the thread.
        threading.Thread(target=self._work, args=(step, run), daemon=True).start()

    def _work(self, step: Step, run: StepRun) -> None:
        try:
            step.run(run)
        except BaseException as error:
            self._ended.put((run, error))
        else:
            self._ended.put((run, None))

    def _wait(self) -> list[str]:
        """Wait a moment for steps to end; returns the names of those that did."""
        try:
            run, error = self._ended.get(timeout=REFRESH_SECONDS)
        except queue.Empty:
            self._display.tick()
            return []
        run.seconds = time.monotonic() - run.started
        if error:
            raise _failure(run, error) from (None if isinstance(error, ClusterError) else error)
        del self._state.running[run.name]
        self._state.done[run.name] = run
        self._display.finished(run)
        return [run.name]


def _failure(run: StepRun, error: BaseException) -> ClusterError:
    lines = run.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "".join(f"    {line}\n" for line in lines[-LOG_TAIL_LINES:])
    text = str(error) if isinstance(error, ClusterError) else f"{type(error).__name__}: {error}"
    return ClusterError(
        f'step "{run.name}" failed after {run.seconds:.0f} s: {text}\n'
        + (f"  the end of its log:\n{tail}" if tail else "")
        + f"  the whole log: {run.log_path}"
    )


class _Durations:
    """What each step took the last time that it had something to do, on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seconds: dict[str, float] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._seconds = {}

    def expected(self, step: Step) -> float:
        return float(self._seconds.get(step.name, step.expected_seconds))

    def store(self, runs: Iterable[StepRun]) -> None:
        self._seconds.update({run.name: round(run.seconds, 1) for run in runs})
        write_text(self._path, json.dumps(self._seconds, indent=2, sort_keys=True) + "\n")
