"""`metrics.jsonl`: what was measured, one line of JSON for each step."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay_verifiers.answers import json_line, write_atomically

Metrics = Mapping[str, float]
"""A step's numbers by name, and `step` itself."""


class MetricsError(Exception):
    """The file cannot be gone on with; the message says why and what to do."""


class MetricsLog:
    """`metrics.jsonl`: a line for each step, in order. What is not finite is null.

    Args:
        path: made where it is not there. A last line that was torn is cut off.
        resumed: the step that the run goes on from. Lines of later steps are of work that was
            lost, so they are dropped: the file tells of each step once. None: keep all.

    Raises:
        MetricsError: a line is damaged that is not the last one.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path, resumed: int | None = None) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        lines = [_line(path, number, text) for number, text in enumerate(whole.splitlines(), 1)]
        kept = [line for line in lines if resumed is None or line["step"] <= resumed]
        self.history: list[dict[str, float]] = kept
        """Of all steps in the file, from the first on."""
        if len(kept) < len(lines) or whole != content:
            write_atomically(path, b"".join(_written(line) for line in kept))
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing can be appended after that."""
        self._file.close()

    def append(self, step: int, metrics: Metrics) -> dict[str, float]:
        """Adds a step's line, safe from the machine's end too, and returns it.

        Raises:
            ValueError: the step is not after the last one.
            OSError: it cannot be written; the file is as it was before.
        """
        if self.history and step <= self.history[-1]["step"]:
            raise ValueError(f"step {step} comes after step {self.history[-1]['step']:.0f}")
        line = {"step": step, "time": round(time.time(), 3), **metrics}
        before, content = self._file.tell(), _written(line)
        try:
            if self._file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise
        self.history.append(line)
        return line


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a file that another process may be writing; what is not finite is NaN.

    Raises:
        MetricsError: a whole line is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    return [_line(path, number, text) for number, text in enumerate(lines, 1)]


def _written(line: Mapping[str, float]) -> bytes:
    plain = {name: value if math.isfinite(value) else None for name, value in line.items()}
    return json_line(plain)


def _line(path: Path, number: int, text: bytes) -> dict[str, float]:
    try:
        data: Any = json.loads(text)
        line = {name: math.nan if value is None else value for name, value in data.items()}
        if not isinstance(line["step"], int):
            raise TypeError("step is no integer")
    except (ValueError, AttributeError, KeyError, TypeError) as reason:
        raise MetricsError(
            f"{path}: line {number} is damaged ({reason}): move the file away to go on without it"
        ) from reason
    return line
