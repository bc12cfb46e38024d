"""How far a long command is: a bar on a terminal, else a plain line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Counted:
    """Counts what is done of a total, as a context manager.

    Args:
        what: named before the count.
        total: how many there are.
        console: where it is shown.
        done: how many were done before.
        seconds: between two lines, where it is no terminal.
    """

    def __init__(
        self, what: str, total: int, console: Console, *, done: int = 0, seconds: float = 5.0
    ) -> None:
        self._what, self._total, self._done = what, total, done
        self._console, self._seconds = console, seconds
        self._notes: dict[str, int] = {}
        self._told = time.monotonic()
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[notes]}"),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                self._what, total=self._total, completed=self._done, notes=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, note: str = "") -> None:
        """One more is done; notes are counted and shown beside."""
        self._done += 1
        if note:
            self._notes[note] = self._notes.get(note, 0) + 1
        if self._bar:
            self._bar.update(self._task, completed=self._done, notes=self._summary())
        elif time.monotonic() - self._told >= self._seconds:
            self._told = time.monotonic()
            self._console.print(
                f"{self._what}: {self._done} of {self._total} {self._summary()}".rstrip(),
                highlight=False,
            )

    def _summary(self) -> str:
        return " ".join(f"{note} {count}" for note, count in sorted(self._notes.items()))
