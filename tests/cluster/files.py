"""Content keys, atomic writes and the lock that keeps two runs apart."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def content_key(*parts: str | bytes | Path) -> str:
    """A short name for content: the same parts give the same key on every machine.

    A path stands for its content: a file's bytes, or a folder's files with their relative names.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for name, content in _files(part):
                _add(digest.update, name.encode())
                _add(digest.update, content)
        else:
            _add(digest.update, part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _add(update: Callable[[bytes], None], content: bytes) -> None:
    # With its length, so that ("ab", "c") and ("a", "bc") differ.
    update(len(content).to_bytes(8, "big"))
    update(content)


def _files(path: Path) -> Iterable[tuple[str, bytes]]:
    if path.is_file():
        return [(path.name, path.read_bytes())]
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return ((file.relative_to(path).as_posix(), file.read_bytes()) for file in files)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that it is either the old or the new one, wherever we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.chmod(mode)
    aside.replace(path)


def link(source: Path, target: Path) -> None:
    """Put a big file somewhere else at no cost, or by copying where links aren't possible."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that the kernel takes back however this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
