"""What is there of a run's checkpoints, and whether it is whole. Reads only; no lock, no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from assay_trainer.manifest import NAME, Manifest, ManifestError, decode, differences
from assay_trainer.storage import CheckpointError, hashed, plain_files

CHECKPOINTS = "checkpoints"
PINS = "pins"
PINS_VARIABLE = "ASSAY_PINS"
"""The environment variable that names a further folder of pins, such as a mounted ConfigMap."""
_FOLDER = re.compile(r"step-(\d{6,})(?:\.\d+)?")


class Skipped(NamedTuple):
    """A checkpoint that was passed over, and what is wrong with it."""

    path: Path
    why: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there, whole and durable."""

    path: Path
    manifest: Manifest


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint: every byte is read. Empty: it is as it was written."""
    try:
        manifest = manifest_of(folder)
    except ManifestError as reason:
        return [str(reason)]
    paths, odd = plain_files(folder)
    paths.pop(NAME, None)
    there, unreadable = hashed(paths)
    expected = {name: file for name, file in manifest.files.items() if name not in unreadable}
    problems = [f"{name} cannot be read: {why}" for name, why in unreadable.items()]
    return [*problems, *odd, *differences(expected, there)]


def table(folder: Path) -> tuple[list[str], list[str]]:
    """A run's checkpoints, for people: a line each under a heading, and what is wrong with which.

    Every byte is read. The run may go on meanwhile.

    Raises:
        CheckpointError: there are none.
    """
    readable, unreadable = found(folder)
    served = pins(folder)
    rows = [("CHECKPOINT", "STEP", "VERSION", "SCORE", "VERIFIED", "DIGEST", "SERVED", "WHOLE")]
    problems = []
    for path, manifest in [(saved.path, saved.manifest) for saved in reversed(readable)]:
        wrong = verify(path)
        if wrong and not path.exists():
            continue  # Deleted by the trainer since it was found.
        problems += [f"{path}: {problem}" for problem in wrong]
        rows.append(
            (
                path.name,
                str(manifest.step),
                manifest.version,
                "-" if manifest.score is None else f"{manifest.score:.3f}",
                "yes" if manifest.verified else "no",
                manifest.digest[:12],
                "yes" if manifest.digest in served else "no",
                "no" if wrong else "yes",
            )
        )
    for path, why in unreadable:
        rows.append((path.name, "?", "?", "?", "?", "?", "?", "no"))
        problems.append(f"{path}: {why}")
    if len(rows) == 1:
        raise CheckpointError(f"{folder} holds no checkpoints")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return lines, problems


def manifest_of(folder: Path) -> Manifest:
    """What a checkpoint's manifest says.

    Raises:
        ManifestError: it is missing, damaged or unreadable.
    """
    try:
        return decode((folder / NAME).read_bytes())
    except FileNotFoundError as reason:
        raise ManifestError(f"{NAME} is missing") from reason
    except OSError as reason:
        raise ManifestError(f"{NAME} cannot be read: {reason.strerror}") from reason


def found(folder: Path) -> tuple[list[Saved], list[Skipped]]:
    """All checkpoints of a run by their manifests, the newest first, and those without one."""
    readable: list[Saved] = []
    unreadable: list[Skipped] = []
    for path in sorted((folder / CHECKPOINTS).glob("step-*")):
        if not _FOLDER.fullmatch(path.name):
            continue
        try:
            readable.append(Saved(path, manifest_of(path)))
        except ManifestError as reason:
            if path.exists():  # Else the trainer has deleted it in this moment.
                unreadable.append(Skipped(path, str(reason)))
    readable.sort(key=lambda saved: (saved.manifest.order, saved.path.name), reverse=True)
    return readable, unreadable


def as_json(saved: Saved) -> dict[str, Any]:
    """A checkpoint as /status and the last words tell of it."""
    manifest = saved.manifest
    return {
        "step": manifest.step,
        "path": str(saved.path),
        "digest": manifest.digest,
        "version": manifest.version,
        "parent": manifest.parent,
        "score": manifest.score,
        "verified": manifest.verified,
        "evaluation": manifest.evaluation,
        "time": manifest.time,
    }


def pins(folder: Path) -> frozenset[str]:
    """Digests of the models that are being served, as who serves them has left word: in the run's
    folder, and in one beside it for who cannot write there."""
    beside = os.environ.get(PINS_VARIABLE)
    places = [folder / PINS, *([Path(beside)] if beside else [])]
    return frozenset(name for place in places for name in _names(place))


def _names(folder: Path) -> list[str]:
    try:
        return [file.name for file in folder.iterdir()]
    except FileNotFoundError:
        return []


def has_sizes(saved: Saved) -> bool:
    """Whether all files are there with their sizes; to read them all may take minutes."""
    files = saved.manifest.files.items()
    return all(_size(saved.path / name) == file.bytes for name, file in files)


def _size(path: Path) -> int:
    """Of a file; -1 where it is missing or cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
