"""What a gate was told so far, kept in its folder so that a run that was ended at any line goes on.

`run.json` holds what must stay the same, `answers.jsonl` one line for each answer. A line that was
torn by a crash is dropped; the last line of an answer counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from assay_verifiers.contract import MASKED, STATUSES, Status

_LINES_A_SYNC = 32
_SECONDS_A_SYNC = 1.0


class StateError(Exception):
    """The folder cannot be gone on with; the message says why and what to do."""


@dataclass(frozen=True)
class Record:
    """One answer and its verdict."""

    side: str
    id: str
    sample: int
    seed: int
    status: Status
    score: float
    detail: str
    seconds: float
    text: str | None
    finish: str = ""
    tokens: int | None = None
    weightVersions: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """Which question it answers."""
        return self.side, self.id, self.sample

    @property
    def masked(self) -> bool:
        """Whether nothing may be concluded from it."""
        return self.status in MASKED


class Answers:
    """The folder of one gate, locked while it is open.

    Args:
        folder: made where it is not there.
        settings: what must be as it was when the folder was begun.
        restart: throws away what is there.

    Raises:
        StateError: another process works in it, it was begun with other settings, or it is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "answers.jsonl"
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            self._file.close()
            raise StateError(f"another process works in {folder}") from reason
        try:
            self.records = self._begin(folder, dict(settings), restart)
        except BaseException:
            self._file.close()
            raise
        self._unsynced, self._synced = 0, time.monotonic()

    def _begin(
        self, folder: Path, settings: dict[str, Any], restart: bool
    ) -> dict[tuple[str, str, int], Record]:
        begun = folder / "run.json"
        if not restart and begun.exists():
            try:
                known = json.loads(begun.read_bytes())
            except ValueError as reason:
                raise StateError(f"{begun} is damaged: begin anew with --restart") from reason
            if other := _differences(known, settings):
                raise StateError(
                    f"{folder} holds a run with other settings ({'; '.join(other)}): "
                    "give the same ones, another --out, or --restart to throw it away"
                )
            return self._read()
        if not restart and os.fstat(self._file.fileno()).st_size:
            raise StateError(f"{self._path} is there but {begun} is not: another --out, please")
        self._file.truncate(0)
        write_atomically(begun, json.dumps(settings, indent=2).encode() + b"\n")
        return {}

    def _read(self) -> dict[tuple[str, str, int], Record]:
        records: dict[tuple[str, str, int], Record] = {}
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break  # Torn: the process ended in the middle of it.
            try:
                record = _record(json.loads(line))
            except (ValueError, TypeError) as reason:
                raise StateError(
                    f"{self._path}: line {number} is damaged ({reason}): begin anew with --restart"
                ) from reason
            records[record.key] = record
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        return records

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sync()
        self._file.close()

    def add(self, record: Record) -> None:
        """Keeps an answer: at once from this process's end, within a second from the machine's."""
        self.records[record.key] = record
        self._file.write(json_line(asdict(record)))
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= _LINES_A_SYNC or time.monotonic() - self._synced >= _SECONDS_A_SYNC:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced, self._synced = 0, time.monotonic()


def _record(data: dict[str, Any]) -> Record:
    record = Record(**{**data, "weightVersions": tuple(data.get("weightVersions", ()))})
    if record.status not in STATUSES:
        raise ValueError(f"unknown status {record.status!r}")
    return record


def _differences(known: Any, asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Which settings differ, each with both values."""
    if not isinstance(known, Mapping):
        return [f"{prefix or 'settings'} {known!r}, now {dict(asked)!r}"]
    told: list[str] = []
    for key in sorted({*known, *asked}):
        before, now = known.get(key), asked.get(key)
        if before == now:
            continue
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            told += _differences(before, now, f"{prefix}{key}.")
        else:
            told.append(f"{prefix}{key} {json.dumps(before)}, now {json.dumps(now)}")
    return told


def json_line(data: Any) -> bytes:
    """One line of JSON as people can read it; halves of surrogate pairs become their escapes."""
    return json.dumps(data, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader finds the old one or the new one, whole, whatever happens."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
