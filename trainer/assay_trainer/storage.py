"""What checkpoints need of a file system: durable writes, hashes, a lock, and plain reasons."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from assay_trainer.manifest import File

_HASHERS = min(8, os.cpu_count() or 1)
_NUMBER = re.compile(r"os error (\d+)")

In = TypeVar("In")
Out = TypeVar("Out")


class CheckpointError(Exception):
    """A run's folder or a checkpoint cannot be used; the message says why and what to do."""


class Lock:
    """A file that one process at a time holds, until it closes it or ends, however it ends.

    Args:
        path: made where it is not there, and left there: its being there means nothing.

    Raises:
        CheckpointError: another process holds it, or the storage has no locks.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            owner = self._file.read(200).decode(errors="replace").strip()
            self._file.close()
            raise CheckpointError(
                f"another trainer works in {path.parent}"
                f"{f' ({owner})' if owner else ''}: end it first, or give this job another "
                "checkpoint.directory"
            ) from reason
        except OSError as reason:
            self._file.close()
            raise CheckpointError(
                f"{path} cannot be locked ({reason.strerror}): put the run on storage with file "
                "locks, else two trainers could spoil each other's work unseen"
            ) from reason
        # A forked child shares the lock; one that outlives this process would hold it on.
        os.register_at_fork(after_in_child=self._file.close)
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:
            self._file.close()
            raise

    def close(self) -> None:
        """Lets go of it."""
        self._file.close()


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def settle(folder: Path) -> dict[str, Path]:
    """Makes all that was written under a folder durable, and readable for everybody; returns it.

    Readable, since the engine may run as another user, and safetensors gives its files to their
    owner only.

    Raises:
        CheckpointError: something in it is no plain file.
        OSError: the storage is full (which it may say only now) or failing.
    """
    files, odd = plain_files(folder)
    if odd:
        raise CheckpointError(f"{folder}: {'; '.join(odd)}")
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in (*files.values(), *folders, folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
    _each(sync, (*files.values(), *folders, folder))
    return files


def plain_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """All files under a folder by their path within it, and what is there and is no plain file."""
    found: dict[str, Path] = {}
    odd = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            odd.append(f"{name} is no plain file")
        elif path.is_file():
            found[name] = path
    return found, odd


def hashed(files: Mapping[str, Path]) -> tuple[dict[str, File], dict[str, str]]:
    """Each file's size and SHA-256, and why others cannot be read. Several are read at once."""
    found: dict[str, File] = {}
    unreadable: dict[str, str] = {}
    for name, result in zip(files, _each(_hash, files.values()), strict=True):
        if isinstance(result, File):
            found[name] = result
        else:
            unreadable[name] = result.strerror or str(result)
    return found, unreadable


def _hash(path: Path) -> File | OSError:
    try:
        with path.open("rb") as file:
            return File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=file.tell())
    except OSError as reason:
        return reason


def _each(work: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    with ThreadPoolExecutor(_HASHERS) as pool:
        return list(pool.map(work, items))


def explain(reason: Exception, folder: Path) -> str:
    """Why something could not be written, and what to do about it.

    Args:
        reason: an OSError, or safetensors' own error, which has the number in its text only.
        folder: where it was to be written.
    """
    number = reason.errno if isinstance(reason, OSError) else None
    if number is None and (match := _NUMBER.search(str(reason))):
        number = int(match.group(1))
    if number is None:
        return str(reason)
    return f"{os.strerror(number)}: {_remedy(number, folder)}"


def _remedy(number: int, folder: Path) -> str:
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            try:
                free = f"{shutil.disk_usage(folder).free / 1e9:.3f} GB are free in {folder}; "
            except OSError:
                free = ""
            return f"{free}make room there, or lower checkpoint.keep"
        case errno.EFBIG:
            return "the storage or the process's limit (ulimit -f) allows no file as large as that"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"make {folder} writable for user {os.geteuid()}"
        case _:
            return f"see to the storage that {folder} is on"
