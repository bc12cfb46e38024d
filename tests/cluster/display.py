"""Two ways to follow a run of steps: a live table on a terminal, a line per event elsewhere."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tests.cluster.steps import Display, RunState, StepRun

HEARTBEAT_SECONDS = 30.0


def choose_display() -> Display:
    """The live display on a terminal, plain lines for logs and CI. Both write to stderr, so that
    stdout stays for what a command prints."""
    if sys.stderr.isatty() and os.environ.get("CI", "").lower() not in ("1", "true"):
        return LiveDisplay(Console(stderr=True))
    return PlainDisplay()


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 2 min 05 s."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def note_of(run: StepRun) -> str:
    return f" - {run.note_text}" if run.note_text else ""


class PlainDisplay:
    """A line when a step starts and ends, and one now and then while a long one runs."""

    def begin(self, state: RunState) -> None:
        self._state = state
        self._spoke = time.monotonic()
        left = duration(state.seconds_left())
        self._say(f"{len(state.steps)} steps, about {left} if nothing is cached")

    def started(self, run: StepRun) -> None:
        self._say(f"start: {run.name}")

    def finished(self, run: StepRun) -> None:
        count = f"{len(self._state.done)} of {len(self._state.steps)}"
        self._say(f"done {count}: {run.name} ({duration(run.seconds)}){note_of(run)}")

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._spoke < HEARTBEAT_SECONDS:
            return
        runs = self._state.running.values()
        what = "; ".join(f"{r.name} ({duration(now - r.started)}){note_of(r)}" for r in runs)
        self._say(f"running: {what}; about {duration(self._state.seconds_left())} left")

    def end(self) -> None:
        self._say(f"{len(self._state.done)} of {len(self._state.steps)} steps done")

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        print(f"[{self._state.elapsed():6.1f} s] {text}", file=sys.stderr, flush=True)


class LiveDisplay:
    """What runs, for how long, what is left, and about how long that will take."""

    def __init__(self, console: Console) -> None:
        self._spinners: dict[str, Spinner] = {}
        self._state: RunState | None = None
        self._live = Live(console=console, refresh_per_second=5, get_renderable=self.render)

    def begin(self, state: RunState) -> None:
        self._state = state
        self._live.start()

    def started(self, run: StepRun) -> None:
        self._spinners[run.name] = Spinner("dots")

    def finished(self, run: StepRun) -> None:
        mark = Text.assemble(("✓ ", "green"), run.name, (f"  {duration(run.seconds)}", "cyan"))
        self._live.console.print(mark.append(note_of(run), "dim"))

    def tick(self) -> None:
        """The live display refreshes by itself."""

    def end(self) -> None:
        self._state = None
        self._live.stop()

    def render(self) -> Group:
        """What the terminal shows now."""
        state = self._state
        if state is None:
            return Group()
        running = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for run in list(state.running.values()):
            spent = f"{duration(now - run.started)} of ~{duration(state.expected[run.name])}"
            running.add_row(
                self._spinners[run.name],
                Text(run.name),
                Text(spent, "cyan"),
                Text(run.note_text, "dim"),
            )
        summary = Table.grid(padding=(0, 2))
        summary.add_row(
            ProgressBar(total=len(state.steps), completed=len(state.done), width=30),
            f"{len(state.done)} of {len(state.steps)} steps",
            f"{duration(state.elapsed())} elapsed, about {duration(state.seconds_left())} left",
        )
        waiting = state.waiting()
        then = Text("then: " + ", ".join(waiting), "dim") if waiting else Text("")
        return Group(running, then, summary)
