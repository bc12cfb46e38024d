"""How a run is shown to who started it: a bar on a terminal, else a plain line every few seconds.

Evaluations and alarms are told once, as lines that stay.
"""

from __future__ import annotations

import math
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from assay_trainer.status import State

_WIDTH_OF_WORDS = 92
"""What stands beside the bar, at its longest: the bar gets what is left."""
_SHORTEST_BAR, _LONGEST_BAR = 10, 40
_ENDED = ("finished", "stopped")


class Display:
    """Shows states, as a context manager; any thread may call it.

    Args:
        console: where.
        seconds: between two lines, where it is no terminal.
    """

    def __init__(self, console: Console, *, seconds: float = 5.0) -> None:
        self._console, self._seconds = console, seconds
        self._lock = threading.Lock()
        self._shown: State | None = None
        self._told = -seconds
        width = min(_LONGEST_BAR, console.width - _WIDTH_OF_WORDS)
        self._width = width if width >= _SHORTEST_BAR else 0
        self._bar = (
            Progress(
                TextColumn("{task.description:<10}", markup=False),
                *((BarColumn(self._width),) if self._width else ()),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}", markup=False),
                console=console,
                transient=True,
                refresh_per_second=2,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, words="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def tell(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def show(self, state: State) -> None:
        """The state as it is now; what is new in it is told."""
        with self._lock:
            before, self._shown = self._shown, state
            self._tell_news(before, state)
            if self._bar:
                self._bar.update(
                    self._task,
                    description=state.phase,
                    completed=state.step,
                    total=state.of,
                    words=self._fitting(state),
                )
                if state.phase not in _ENDED:
                    return
            ended = state.phase in _ENDED and (before is None or before.phase != state.phase)
            now = time.monotonic()
            if ended or (state.phase not in _ENDED and now - self._told >= self._seconds):
                self._told = now
                self.tell(line(state))

    def _fitting(self, state: State) -> str:
        """On a narrow terminal the end of the words is cut off, and no second line begins."""
        counts = 2 * len(str(state.of)) + 1
        room = self._console.width - (10 + 1 + self._width + bool(self._width) + counts + 1)
        told = words(state)
        return told if len(told) <= room else f"{told[: max(0, room - 1)]}…"

    def _tell_news(self, before: State | None, state: State) -> None:
        if state.weighed is not None and (before is None or before.weighed != state.weighed):
            self.tell(evaluation(state), "green" if state.verified else "")
        known = {alarm.kind: alarm.stop for alarm in before.alarms} if before else {}
        for alarm in state.alarms:
            if known.get(alarm.kind) != alarm.stop:
                word = "stopping" if alarm.stop else "warning"
                self.tell(f"{word}: {alarm}", "bold red" if alarm.stop else "yellow")


def words(state: State) -> str:
    """Reward, score, speed and the time that is left: short, for beside a bar."""
    parts = []
    if state.reward is not None:
        parts.append(f"reward {state.reward:.3f}")
    if state.score is not None:
        parts.append(f"score {state.score:.3f}")
    if state.eta_seconds is not None and state.phase not in _ENDED:
        parts.append(f"ETA {duration(state.eta_seconds)}")
    if state.tokens_per_second is not None:
        parts.append(f"{state.tokens_per_second:,.0f} tokens/s")
    if state.total:
        parts.append(f"({state.done} of {state.total})")
    return "  ".join(parts)


def line(state: State) -> str:
    """The same as a line by itself."""
    told = f"step {state.step} of {state.of}  {state.phase}  {words(state)}".rstrip()
    return f"{told}  {state.message}" if state.message else told


def evaluation(state: State) -> str:
    """The last evaluation in a line."""
    if state.score is None or math.isnan(state.score):
        return f"step {state.weighed}: no held-out item could be judged"
    told = f"step {state.weighed}: held-out score {state.score:.4f}"
    told += f" ({state.low:.3f} to {state.high:.3f})"
    if state.sample_at_1 is not None:
        told += f", sample@1 {state.sample_at_1:.4f}"
    return f"{told}, {'verified' if state.verified else 'not verified'}"


def duration(seconds: float) -> str:
    """As people say it, in the two largest units: `45 s`, `12 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
