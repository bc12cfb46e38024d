"""New weights to the engines through storage that both see.

Each version is a folder of its own: written aside, synced, renamed, loaded by every engine, and
looked for in every engine's own report. Older ones are removed once no engine reports them.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safetensors import safe_open

from assay_trainer.engine import Engine, EngineFailure
from assay_trainer.engines import Engines
from assay_trainer.storage import settle, sync
from assay_trainer.versions import Loaded, Update, Weights, age

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = re.compile(r"\d+\.\d+")
_PART = re.compile(r"\.\d+\.\d+\.part")


class WeightsError(Exception):
    """Weights could not be put where engines find them; the message says what to do."""


class Source(Protocol):
    """Who has the weights: the learner."""

    def write(self, folder: Path) -> None:
        """Writes a folder that an engine can load."""

    def weights(self) -> Mapping[str, Tensor]:
        """All weights on the CPU, by Hugging Face's names. Later steps do not change them."""


@dataclass(frozen=True)
class Pushed:
    """How new weights came to the engines.

    Attributes:
        version: theirs.
        seconds: of it all.
        prepared: seconds of that before the first engine was asked: gathering, writing.
        loaded: which engines have them.
        fallback: why a broadcast was given up and the engines read files instead.
    """

    version: str
    seconds: float
    prepared: float
    loaded: Loaded
    fallback: str = ""


class Transfer(Protocol):
    """A way from the learner to the engines."""

    async def push(self, source: Source, version: str) -> Pushed:
        """Gives all usable engines the weights; those that are out get them when they are back.

        Raises:
            WeightsError: they could not be written.
            EngineError: no engine took them, or the version does not grow.
        """

    async def close(self) -> None:
        """Ends what only this transfer needs."""


class DiskTransfer:
    """Through a folder.

    Args:
        engines: who gets them.
        directory: where they lie, best on memory. The engines see it by the same path.
        keep: how many of the newest stay.
    """

    def __init__(self, engines: Engines, directory: Path, keep: int = 1) -> None:
        self._engines, self._directory, self._keep = engines, directory.absolute(), keep

    async def push(self, source: Source, version: str) -> Pushed:
        """See Transfer."""
        began = time.monotonic()
        folder = await asyncio.to_thread(publish, source.write, self._directory, version)
        prepared = time.monotonic() - began

        async def place() -> Path:
            return folder

        loaded = await self._engines.renew(Weights(version, place), load_from(folder, version))
        used = self._engines.versions_in_use
        await asyncio.to_thread(tidy, self._directory, self._keep, used)
        return Pushed(version, time.monotonic() - began, prepared, loaded)

    async def close(self) -> None:
        """Does nothing: engines that are restarted later may still want the files."""


def load_from(folder: Path, version: str) -> Update:
    """An update that has all engines read a folder at the same time."""

    async def one(engine: Engine) -> str | None:
        try:
            await engine.load(folder, version)
        except EngineFailure as reason:
            return str(reason)
        return None

    async def update(engines: Sequence[Engine]) -> dict[Engine, str]:
        reasons = await asyncio.gather(*(one(engine) for engine in engines))
        return {
            engine: reason
            for engine, reason in zip(engines, reasons, strict=True)
            if reason is not None
        }

    return update


def publish(write: Callable[[Path], None], directory: Path, version: str) -> Path:
    """Has a version's folder written: aside, looked at, synced, then renamed.

    SGLang 0.5.23 dies of a safetensors file that was cut short, since it goes back to the old
    weights by reading the new path again; so one such file would end all engines.

    Raises:
        WeightsError: it could not be; nothing of it is left.
    """
    part, folder = directory / f".{version}.part", directory / version
    if folder.exists():
        raise WeightsError(f"{folder} is there already: weights of one version are written once")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        _look(part)
        settle(part)
        part.rename(folder)
        sync(directory)
    # Whoever writes has errors of its own: safetensors reports a full disk in one of its own.
    except Exception as reason:
        shutil.rmtree(part, ignore_errors=True)
        raise WeightsError(
            f"weights {version} could not be written to {directory}: {reason} "
            f"({_room(directory)}). The engines keep the weights that they have; make room, or "
            "name another place in rollout.weights.directory"
        ) from reason
    return folder


def _look(folder: Path) -> None:
    """Raises where a folder has no weights, or a file of them is not whole."""
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise ValueError("no *.safetensors was written")
    for path in files:
        # Opening it compares its length with what its header says.
        with safe_open(path, framework="np"):
            pass


def tidy(directory: Path, keep: int, used: AbstractSet[str]) -> None:
    """Removes versions that are neither among the newest nor used, and what was never finished."""
    versions = sorted(
        (path for path in directory.iterdir() if _VERSION.fullmatch(path.name)),
        key=lambda path: age(path.name),
    )
    old = [path for path in versions[: max(0, len(versions) - keep)] if path.name not in used]
    unfinished = [path for path in directory.iterdir() if _PART.fullmatch(path.name)]
    for path in (*old, *unfinished):
        shutil.rmtree(path, ignore_errors=True)


def _room(directory: Path) -> str:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        usage = shutil.disk_usage(there)
    except OSError as reason:
        return f"its room is unknown: {reason}"
    return f"{usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB free"
