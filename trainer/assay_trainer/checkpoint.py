"""Checkpoints of a run: written whole or not at all, verified byte by byte before they are used.

    RUN/lock, RUN/attempt                 who works here, and how often the run was begun
    RUN/pins/DIGEST                       models that are being served, put there by who serves them
                                          (and in the folder that ASSAY_PINS names)
    RUN/checkpoints/step-000020/          a Hugging Face folder that an engine can serve as it is
        trainer/{state.safetensors,state.json,buffer.safetensors}
        manifest.json

A checkpoint is written under a hidden name, made durable, hashed, given its manifest, and renamed:
at whatever line the process or the machine ends, what has a checkpoint's name is one.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safetensors import SafetensorError

from assay_trainer.inventory import (
    CHECKPOINTS,
    Saved,
    Skipped,
    as_json,
    found,
    has_sizes,
    manifest_of,
    pins,
    verify,
)
from assay_trainer.manifest import (
    NAME,
    TRAINER,
    Entry,
    File,
    Manifest,
    ManifestError,
    digest_of,
    encode,
    to_delete,
)
from assay_trainer.storage import CheckpointError, Lock, explain, hashed, settle, sync
from assay_verifiers.answers import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_TENSORS = f"{TRAINER}/state.safetensors"
_STATE = f"{TRAINER}/state.json"
_BUFFER = f"{TRAINER}/buffer.safetensors"


@dataclass(frozen=True)
class Loaded(Saved):
    """A checkpoint whose bytes were all verified, to go on from.

    Attributes:
        skipped: newer ones that are damaged, and all whose manifests cannot be read.
    """

    skipped: tuple[Skipped, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """The learner's state, as it was given to `save`: mapped from the file, read when used."""
        from safetensors.torch import load_file  # noqa: PLC0415

        tensors: dict[str, Tensor] = load_file(self.path / _TENSORS)
        return tensors

    def state(self) -> dict[str, Any]:
        """The rest of the state, as it was given to `save`."""
        state: dict[str, Any] = json.loads((self.path / _STATE).read_bytes())
        return state

    @property
    def buffer(self) -> Path | None:
        """The file of the batch that was drawn and not yet learned from; None where none was."""
        return self.path / _BUFFER if _BUFFER in self.manifest.files else None


class Checkpoints:
    """The checkpoints of one run, which is locked while this is open. For one process of a run.

    Opening counts an attempt and removes what processes that were killed have left half done.

    Args:
        folder: of the run; made where it is not there.
        keep: how many of the newest `prune` leaves.
        job: SHA-256 of the job's settings (`manifest.fingerprint`).
        now: the clock; it is told in manifests and decides nothing.

    Raises:
        CheckpointError: another trainer works in the folder, or it cannot be written to.
    """

    def __init__(
        self, folder: Path, keep: int, *, job: str, now: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._checkpoints = folder, folder / CHECKPOINTS
        self._keep, self.job, self._now = keep, job, now
        self._parent: str | None = None
        self._damaged: set[Path] = set()
        with self._told(f"{folder} cannot be used"):
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(folder / "lock")
        try:
            with self._told(f"{folder} cannot be used"):
                self._remove_leftovers()
                self.attempt = self._count_attempt()
        except BaseException:
            self._lock.close()
            raise

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
        """Lets another trainer work here."""
        self._lock.close()

    def version(self, step: int) -> str:
        """Of the weights after a step. No other attempt has the same."""
        return f"{self.attempt}.{step}"

    def save(
        self,
        write: Callable[[Path], None],
        *,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        buffer: Callable[[Path], None] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        verified: bool = False,
    ) -> Saved:
        """Writes a checkpoint. When this returns, it outlives a power cut.

        Args:
            write: writes the model into a folder, as Hugging Face has it.
            step: that is done.
            tensors: the learner's state: masters, optimiser, RNG.
            state: all else that is needed to go on, as JSON: position, schedule.
            buffer: writes the batch that was drawn and not yet learned from to a file; None where
                there is none.
            evaluation: what was found for these weights.
            verified: whether that was enough.

        Raises:
            CheckpointError: it could not be written. Nothing of it is left, and earlier ones are as
                they were.
            ValueError: the evaluation or the state is nothing that JSON can say.
        """
        # Torch takes seconds to import, and to list checkpoints needs none.
        from safetensors.torch import save_file  # noqa: PLC0415

        weighed = None
        if evaluation is not None:
            weighed = json.loads(json.dumps(dict(evaluation), allow_nan=False))

        def manifest(files: dict[str, File]) -> Manifest:
            return Manifest(
                step=step,
                version=self.version(step),
                job=self.job,
                parent=self._parent,
                digest=digest_of(files),
                files=files,
                evaluation=weighed,
                verified=verified,
                time=datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds"),
            )

        encode(manifest({}))  # What the caller got wrong is said before gigabytes are written.
        notes = json.dumps(state, allow_nan=False).encode()
        part = self._checkpoints / f".step-{step:06d}.{self.attempt}.part"
        with self._told(f"step {step} could not be saved; earlier checkpoints are untouched", part):
            path = self._unused_name(step)
            part.mkdir()
            write(part)
            (part / TRAINER).mkdir()
            save_file(dict(tensors), part / _TENSORS)
            (part / _STATE).write_bytes(notes)
            if buffer is not None:
                buffer(part / _BUFFER)
            files, unreadable = hashed(settle(part))
            if unreadable:
                raise CheckpointError(f"{part}: cannot be read again: {unreadable}")
            saved = Saved(path, manifest(files))
            write_atomically(part / NAME, encode(saved.manifest))
            settle(part)
            self._still_ours()
            part.rename(path)
            sync(self._checkpoints)
        self._parent = saved.manifest.digest
        return saved

    def newest(self) -> Loaded | None:
        """The newest checkpoint of which every byte is as it was written; None where none exists.

        Raises:
            CheckpointError: there are checkpoints, and none is whole. To begin anew from the base
                model would throw the run away, so that is for its owner to say.
        """
        readable, unreadable = found(self._folder)
        skipped = list(unreadable)
        for saved in readable:
            if not (problems := verify(saved.path)):
                self._parent = saved.manifest.digest
                return Loaded(saved.path, saved.manifest, tuple(skipped))
            self._damaged.add(saved.path)
            skipped.append(Skipped(saved.path, "; ".join(problems)))
        if skipped:
            lines = "".join(f"\n{path}: {why}" for path, why in skipped)
            raise CheckpointError(
                f"no checkpoint under {self._checkpoints} is whole: repair or restore one; or, to "
                f"begin again from the base model, move that folder away{lines}"
            )
        return None

    def kept(self) -> tuple[dict[str, Any], ...]:
        """What there is, the newest first, as JSON data for who watches."""
        return tuple(as_json(saved) for saved in found(self._folder)[0])

    def prune(self) -> list[Path]:
        """Deletes what the keep-policy (`to_delete`) gives up, and returns it.

        A checkpoint whose manifest cannot be read is left: it may be the best, or be served.

        Raises:
            CheckpointError: one could not be deleted, or the pins cannot be read.
        """
        readable, _ = found(self._folder)
        paths = {saved.path.name: saved.path for saved in readable}
        entries = [self._entry(saved) for saved in readable]
        gone = []
        with self._told("checkpoints could not be deleted"):
            self._still_ours()
            for entry in to_delete(entries, self._keep, pins(self._folder)):
                path = paths[entry.name]
                away = path.with_name(f".{path.name}.gone")
                # Renamed first, so that a half deleted one never looks like a damaged one.
                path.rename(away)
                sync(self._checkpoints)
                if entry.digest in pins(self._folder):  # Pinned in this moment.
                    away.rename(path)
                    continue
                shutil.rmtree(away)
                gone.append(path)
        return gone

    def _entry(self, saved: Saved) -> Entry:
        manifest = saved.manifest
        return Entry(
            name=saved.path.name,
            order=manifest.order,
            digest=manifest.digest,
            score=manifest.score if manifest.verified else None,
            # By its sizes: to hash all of them again after every step that is saved takes minutes.
            whole=saved.path not in self._damaged and has_sizes(saved),
        )

    def _unused_name(self, step: int) -> Path:
        """A folder of that step may be there: damaged and passed over, or even served."""
        plain = self._checkpoints / f"step-{step:06d}"
        path = plain.with_name(f"{plain.name}.{self.attempt}") if plain.exists() else plain
        if path.exists():
            raise CheckpointError(f"{path} is there already")
        return path

    def _remove_leftovers(self) -> None:
        # Whose they were is dead, whatever runs under its number now: the lock is ours.
        for path in self._checkpoints.glob(".step-*.gone"):
            if self._was_pinned_then(path):
                path.rename(path.with_name(path.name[1:].removesuffix(".gone")))
            else:
                shutil.rmtree(path)
        for path in self._checkpoints.glob(".step-*.part"):
            shutil.rmtree(path)
        for path in self._folder.glob(".attempt.*.part"):
            path.unlink()

    def _was_pinned_then(self, path: Path) -> bool:
        """Whether a pin came in the moment of deletion, and the trainer ended before it saw."""
        try:
            saved = Saved(path, manifest_of(path))
        except ManifestError:
            return False
        return saved.manifest.digest in pins(self._folder) and has_sizes(saved)

    def _count_attempt(self) -> int:
        readable, _ = found(self._folder)
        # From the checkpoints too: the file may have been left behind when the run was moved.
        known = [saved.manifest.order[0] for saved in readable]
        attempt = max((self._last_attempt(), *known)) + 1
        write_atomically(self._folder / "attempt", f"{attempt}\n".encode())
        sync(self._folder)
        return attempt

    def _last_attempt(self) -> int:
        path = self._folder / "attempt"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return 0
        if not re.fullmatch(rb"[0-9]{1,18}\n?", text):
            raise CheckpointError(
                f"{path} is damaged: write a number into it that is higher than that of any "
                "attempt before (the first number of the version that the engines report)"
            )
        return int(text)

    def _still_ours(self) -> None:
        """A lock on network storage is lost with the connection, and nobody is told."""
        if (last := self._last_attempt()) > self.attempt:
            raise CheckpointError(
                f"another trainer has taken {self._folder} over: this is attempt {self.attempt}, "
                f"that is attempt {last}. This one must end"
            )

    @contextmanager
    def _told(self, what: str, part: Path | None = None) -> Iterator[None]:
        """Says what could not be done and why, and leaves no part of it."""
        try:
            yield
        except (OSError, SafetensorError) as reason:
            remedy = explain(reason, self._folder)
            raise CheckpointError(f"{what}: {remedy}") from reason
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
