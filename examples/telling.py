"""How `make demo` tells its story: chapters, commands as a user types them, live progress."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 15.0
"""How often progress is printed where nothing can be drawn over."""

Rows = Sequence[tuple[str, str]]
"""A word and what is to be said of it."""


def clock(seconds: float) -> str:
    """A time since the beginning: 4:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def can_draw(console: Console) -> bool:
    """Whether progress can be drawn over itself: not in logs and CI."""
    return console.is_terminal and os.environ.get("CI", "").lower() not in ("1", "true")


@dataclass
class Progress:
    """Rows that are shown while something goes on.

    Attributes:
        console: where they are shown.
        live: draws them over themselves; None: they are printed now and then.
    """

    console: Console
    live: Live | None
    _spoke: float = field(default_factory=time.monotonic)

    def show(self, rows: Rows) -> None:
        """What holds now."""
        if self.live is not None:
            table = Table.grid(padding=(0, 2))
            for word, told in rows:
                table.add_row(Text(word, "cyan"), Text(told, overflow="ellipsis", no_wrap=True))
            self.live.update(table)
        elif time.monotonic() - self._spoke >= PLAIN_SECONDS:
            self._spoke = time.monotonic()
            line = "; ".join(f"{word}: {told}" for word, told in rows)
            self.console.print(f"... {line}", markup=False, highlight=False, soft_wrap=True)


@dataclass
class Teller:
    """Prints the story, and knows how long each chapter took.

    Attributes:
        console: where it is told.
        began: when, by time.monotonic().
        chapters: title and seconds of those that are over.
    """

    console: Console
    began: float = field(default_factory=time.monotonic)
    chapters: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def chapter(self, title: str, why: str) -> Iterator[None]:
        """A part of the story, for the time of a `with` block.

        Args:
            title: a few words.
            why: what happens in it, and for what.
        """
        began = time.monotonic()
        self.console.print()
        self.console.rule(f"[bold]{len(self.chapters) + 1}. {title}", align="left")
        self.console.print(why, style="dim", highlight=False)
        yield
        self.chapters.append((title, time.monotonic() - began))

    def say(self, text: str) -> None:
        """A line, with the time since the beginning."""
        stamp = Text(f"[{clock(time.monotonic() - self.began):>5}] ", "cyan")
        self.console.print(stamp.append(text, "default"), soft_wrap=True, highlight=False)

    def command(self, text: str) -> None:
        """A command as a user would type it."""
        self.console.print(Text(f"$ {text}", "bold"), soft_wrap=True, highlight=False)

    def output(self, text: str) -> None:
        """What a command printed, as it is."""
        if text := text.rstrip("\n"):
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Shows how far something is, for the time of a `with` block."""
        live = Live(console=self.console, transient=True) if can_draw(self.console) else None
        with live or nullcontext():
            yield Progress(self.console, live)
