"""Type `human`: what people said of completions. Soft; what nobody has looked at is masked."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from assay_verifiers.config import HumanVerifier
from assay_verifiers.contract import Task, Unavailable, Verdict, Verifier, error, ok, wrong
from assay_verifiers.jsontext import NoJson, parse
from assay_verifiers.registry import Bench
from assay_verifiers.types.remote import number

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
Key = tuple[str, str | None]
"""An item's id and the digest of a completion; None where a label holds for any completion."""


@dataclass(frozen=True)
class Label:
    """One person's word."""

    score: float
    by: str


def digest(completion: str) -> str:
    """The SHA-256 of a completion, by which labels and the queue know it."""
    return hashlib.sha256(completion.encode(errors="surrogatepass")).hexdigest()


def read_labels(text: str, name: str) -> dict[Key, Label]:
    """The labels in JSON lines {id, completion?, sha256?, score, by?}; of several the last.

    `completion` is a completion's exact text and `sha256` its digest, which goes before: lines of
    the queue become labels by a score. A label with neither holds for every completion of the item
    that has none of its own.

    Args:
        text: of the labels' file.
        name: the file's, for errors.

    Raises:
        ValueError: a line is no label; names the line.
    """
    labels: dict[Key, Label] = {}
    for count, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            key, label = _label(parse(line))
        except (NoJson, ValueError) as reason:
            raise ValueError(f"{name}, line {count}: {reason}") from None
        labels[key] = label
    return labels


def _label(value: Any) -> tuple[Key, Label]:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise ValueError("a label is an object with an id and a score")
    if unknown := sorted(value.keys() - {"id", "completion", "score", "by", "prompt", "sha256"}):
        raise ValueError(f"unknown key {unknown[0]!r}")
    score = number(value.get("score"))
    if score is None or not 0 <= score <= 1:
        raise ValueError("the score must be a number in [0, 1]")
    completion, hashed = value.get("completion"), value.get("sha256")
    if completion is not None and not isinstance(completion, str):
        raise ValueError("the completion is no text")
    if hashed is not None and not (isinstance(hashed, str) and _DIGEST.fullmatch(hashed)):
        raise ValueError("the sha256 is not 64 hexadecimal digits")
    if hashed is None and completion is not None:
        hashed = digest(completion)
    return (value["id"], hashed), Label(score, str(value.get("by") or "somebody"))


@dataclass
class _Labels:
    """A labels' file, read again when it has changed."""

    path: Path
    seen: tuple[int, int, int] | None = None
    labels: dict[Key, Label] = field(default_factory=dict)

    def current(self) -> dict[Key, Label]:
        state = self.path.stat()
        now = (state.st_mtime_ns, state.st_size, state.st_ino)
        if now != self.seen:
            self.labels = read_labels(self.path.read_text("utf-8"), str(self.path))
            self.seen = now
        return self.labels


@dataclass
class _Queue:
    """A file of completions that wait for a label, each once, whoever else appends to it."""

    path: Path
    read: int = 0
    keys: set[tuple[str, str]] = field(default_factory=set)

    def add(self, task: Task, completion: str) -> bool:
        """Appends a completion, and says whether it was new."""
        key = (task.id, digest(completion))
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            # Others may append too; under the lock, what they wrote since is known first.
            fcntl.flock(file, fcntl.LOCK_EX)
            ends_in_line = self._catch_up(file)
            if key in self.keys:
                return False
            # People read it: half of a surrogate pair, which no file can hold, becomes a "?".
            readable = completion.encode(errors="replace").decode()
            entry = {"id": task.id, "prompt": task.prompt, "completion": readable}
            line = json.dumps({**entry, "sha256": key[1]}).encode() + b"\n"
            file.write(line if ends_in_line else b"\n" + line)
            file.flush()
        return True

    def _catch_up(self, file: BinaryIO) -> bool:
        size = os.fstat(file.fileno()).st_size
        if size < self.read:
            # Somebody emptied it, having taken the work: what comes again is asked again.
            self.read, self.keys = 0, set()
        file.seek(self.read)
        new = file.read()
        for line in new.split(b"\n"):
            try:
                entry = json.loads(line)
                self.keys.add((entry["id"], entry["sha256"]))
            except (ValueError, KeyError, TypeError):
                continue  # A line of somebody else's making is theirs to understand.
        complete = new.rfind(b"\n") + 1
        self.read += complete
        return complete == len(new)


@dataclass(frozen=True)
class _Human:
    labels: _Labels
    queue: _Queue | None
    lock: asyncio.Lock

    async def verify(self, task: Task, completion: str) -> Verdict:
        async with self.lock:
            return await asyncio.to_thread(self._verdict, task, completion)

    def _verdict(self, task: Task, completion: str) -> Verdict:
        try:
            labels = self.labels.current()
        except (OSError, ValueError) as reason:
            return error(f"the labels cannot be read: {reason}")
        label = labels.get((task.id, digest(completion))) or labels.get((task.id, None))
        if label is not None:
            said = f"{label.by} gave {label.score:g}"
            return ok(said) if label.score == 1 else wrong(said, label.score)
        if self.queue is None:
            return error("nobody has labelled it")
        try:
            self.queue.add(task, completion)
        except OSError as reason:
            return error(f"nobody has labelled it, and the queue cannot be written: {reason}")
        return error("nobody has labelled it; it is in the queue")


def make(model: HumanVerifier, bench: Bench) -> Verifier:
    """The verifier of a `human` configuration.

    Raises:
        Unavailable: the labels cannot be read, or a line is none; names the line.
    """
    labels = _Labels(Path(model.labels))
    try:
        labels.current()
    except (OSError, ValueError) as reason:
        raise Unavailable(f"the labels cannot be read: {reason}") from None
    queue = None if model.queue is None else _Queue(Path(model.queue))
    return _Human(labels, queue, asyncio.Lock())
