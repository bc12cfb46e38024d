"""What `assay-train run` leaves at its end for who watches its container.

Its status endpoint ends with it, and somebody may have looked too late. So the same is written to
the file that ASSAY_TERMINATION_LOG names: a pod's termination message, which the kubelet keeps.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from assay_trainer.inventory import as_json, found
from assay_trainer.job import Job, JobError
from assay_verifiers.interrupts import Interrupted
from assay_verifiers.termination import MOST_BYTES, leave

VARIABLE: Final = "ASSAY_TERMINATION_LOG"
_LONGEST = 1000
"""Of a message, in bytes of JSON."""


@dataclass
class LastWords:
    """Writes them when a `with` block ends, however it ends.

    Args:
        path: where; None: nowhere.
        job: once it is read.
        code: the exit code, where the block ends by itself.
        message: why it ended before its end, for people.
    """

    path: Path | None
    job: Job | None = None
    code: int = 0
    message: str = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is not None:
            self.code, self.message = _end(value)
        if self.path is None:
            return
        try:
            leave(self.path, self._content())
        except OSError as reason:
            # How the run ended is not changed by who cannot be told of it.
            print(f"assay-train: {self.path}: no last words: {reason.strerror}", file=sys.stderr)

    def _content(self) -> bytes:
        if self.job is None:
            return words([], None, self.code, self.message)
        kept = [as_json(saved) for saved in found(self.job.checkpoint.directory)[0]]
        return words(kept, self.job.trainer.steps, self.code, self.message)


def words(kept: list[dict[str, Any]], steps: int | None, code: int, message: str) -> bytes:
    """The last words as JSON that fits a termination message.

    Args:
        kept: checkpoints as /status tells them, the newest first. The oldest are left out first.
        steps: how many the job has.
        code: the exit code.
        message: why it ended before its end.
    """
    newest: Mapping[str, Any] = kept[0] if kept else {}
    step = newest.get("step", 0)
    told = {
        # That all steps are done is not enough: what they taught must be there.
        "finished": code == 0 and step == steps,
        "step": step,
        "of": steps,
        "version": newest.get("version"),
        "digest": newest.get("digest"),
        "code": code,
        "message": _cut(message),
    }
    for count in range(len(kept), -1, -1):
        text = _encoded({**told, "checkpoints": kept[:count]})
        if len(text) <= MOST_BYTES:
            return text
    raise AssertionError("without checkpoints they are short")


def _end(value: BaseException) -> tuple[int, str]:
    """Exit code and reason of an exception that ends the command."""
    match value:
        case JobError():
            return 2, str(value)
        case Interrupted():
            return value.code, f"{value}: the same command goes on"
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "SIGINT: the same command goes on"
        case _:
            return 1, f"{type(value).__name__}: {value}"


def _cut(text: str) -> str:
    if len(_encoded(text)) <= _LONGEST:
        return text
    # Its end says what went wrong and what to do.
    while len(_encoded(f"...{text}")) > _LONGEST:
        text = text[max(1, len(text) // 8) :]
    return f"...{text}"


def _encoded(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
