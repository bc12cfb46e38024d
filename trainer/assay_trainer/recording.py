"""Batches on disk, for checkpoints and for runs that learn from recorded completions.

One safetensors file each: numbers as tensors, the rest as JSON in its header. What is read is what
was written, to the last bit; a digest over everything finds any byte that has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from assay_trainer.batch import Batch, Completion, Finish, Sample
from assay_trainer.storage import sync
from assay_verifiers.answers import write_atomically
from assay_verifiers.contract import STATUSES

_FORMAT = 1
_FINISHES: tuple[Finish, ...] = get_args(Finish)

Array = npt.NDArray[Any]
Key = TypeVar("Key", bound=Hashable)


class RecordingError(Exception):
    """A batch cannot be written or read; the message names the file and says why."""


def save(batch: Batch, path: Path) -> None:
    """Writes a batch aside, onto the disk, and then to its name.

    Raises:
        RecordingError: it cannot be written. What stood there before still does.
    """
    samples = batch.samples
    completions = [sample.completion for sample in samples]
    items, item = _coded(sample.item for sample in samples)
    versions, version = _coded(chain.from_iterable(c.versions for c in completions))
    tensors = {
        "item": item,
        "number": _integers(sample.number for sample in samples),
        "group": _integers(sample.group for sample in samples),
        "reward": np.array([sample.reward for sample in samples], np.float64),
        "status": _integers(STATUSES.index(sample.status) for sample in samples),
        "judged": np.array([sample.judged for sample in samples], np.bool_),
        "finish": _integers(_FINISHES.index(c.finish) for c in completions),
        "prompt.length": _integers(len(sample.prompt) for sample in samples),
        "prompt.ids": _integers(chain.from_iterable(sample.prompt for sample in samples)),
        "length": _integers(len(c.ids) for c in completions),
        "ids": _integers(chain.from_iterable(c.ids for c in completions)),
        "version": version,
        "log_probs": _floats(chain.from_iterable(c.log_probs for c in completions)),
    }
    content = json.dumps(
        {
            "format": _FORMAT,
            "step": batch.step,
            "position": batch.position,
            "metrics": dict(batch.metrics),
            "items": items,
            "versions": versions,
        }
    )
    header = {"batch": content, "sha256": _digest(content, tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save_tensors(tensors, metadata=header))
        sync(path.parent)
    except OSError as reason:
        raise RecordingError(f"{path}: cannot be written: {reason.strerror or reason}") from reason


def load(path: Path) -> Batch:
    """Reads a batch.

    Raises:
        RecordingError: it cannot be read, is no recorded batch, or is not as it was written.
    """
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise RecordingError(f"{path}: cannot be read: {reason.strerror or reason}") from reason
    try:
        # safetensors' function gives the tensors only, and no header.
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])["__metadata__"]
        content, digest = header["batch"], header["sha256"]
        tensors = load_tensors(raw)
    except Exception as reason:  # of safetensors' own kind, or of the header's
        raise RecordingError(
            f"{path}: no recorded batch, or torn: {type(reason).__name__}: {reason}"
        ) from reason
    if digest != _digest(content, tensors):
        raise RecordingError(f"{path}: damaged: it is not what was written (SHA-256 differs)")
    told = json.loads(content)
    if told["format"] != _FORMAT:
        raise RecordingError(
            f"{path}: of format {told['format']}, but this version reads {_FORMAT}"
        )
    return Batch(told["step"], tuple(_samples(told, tensors)), told["position"], told["metrics"])


def _samples(told: Mapping[str, Any], tensors: Mapping[str, Array]) -> Iterable[Sample]:
    columns = {name: tensor.tolist() for name, tensor in tensors.items()}
    versions = [told["versions"][code] for code in columns["version"]]
    tokens = _cut(columns["length"], columns["ids"], columns["log_probs"], versions)
    prompts = (ids for (ids,) in _cut(columns["prompt.length"], columns["prompt.ids"]))
    # Samples of a group have the same prompt, so it is kept once.
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for place, (prompt, (ids, log_probs, drawn_by)) in enumerate(zip(prompts, tokens, strict=True)):
        yield Sample(
            item=told["items"][columns["item"][place]],
            number=columns["number"][place],
            group=columns["group"][place],
            prompt=seen.setdefault(prompt, prompt),
            completion=Completion(ids, log_probs, drawn_by, _FINISHES[columns["finish"][place]]),
            reward=columns["reward"][place],
            status=STATUSES[columns["status"][place]],
            judged=columns["judged"][place],
        )


def _cut(lengths: Sequence[int], *flat: Sequence[Any]) -> Iterable[tuple[tuple[Any, ...], ...]]:
    """The parts of flat columns, side by side."""
    for start, end in pairwise(accumulate(lengths, initial=0)):
        yield tuple(tuple(column[start:end]) for column in flat)


def _coded(values: Iterable[Key]) -> tuple[list[Key], Array]:
    """Different values in order, and each value's place among them."""
    known: dict[Key, int] = {}
    codes = _integers(known.setdefault(value, len(known)) for value in values)
    return list(known), codes


def _integers(values: Iterable[int]) -> Array:
    wide = np.fromiter(values, np.int64)
    narrow = wide.astype(np.int32)
    return narrow if np.array_equal(wide, narrow) else wide


def _floats(values: Iterable[float]) -> Array:
    """Engines give float32, which half the bytes hold exactly; anything else keeps all of them."""
    wide = np.fromiter(values, np.float64)
    narrow = wide.astype(np.float32)
    return narrow if np.array_equal(wide, narrow, equal_nan=True) else wide


def _digest(content: str, tensors: Mapping[str, Array]) -> str:
    found = hashlib.sha256(content.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        found.update(np.ascontiguousarray(tensor).data)
    return found.hexdigest()


def _name(step: int) -> str:
    return f"step-{step:06}.safetensors"


class Recorder:
    """Keeps every batch of a run in a folder.

    Args:
        folder: made with the first batch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, batch: Batch) -> None:
        """Writes the batch of its step, over an earlier one.

        Raises:
            RecordingError: see `save`.
        """
        save(batch, self._folder / _name(batch.step))


class Replay:
    """The batches that a `Recorder` kept.

    Args:
        folder: its folder.

    Raises:
        RecordingError: there is no such folder, or no batch in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = sorted(path.name for path in folder.glob("step-*.safetensors"))
        if not names:
            raise RecordingError(f"{folder}: holds no recorded batch")
        self._held = f"{names[0]} to {names[-1]}"

    def batch(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            RecordingError: it was not recorded, or it cannot be used.
        """
        path = self._folder / _name(step)
        if not path.exists():
            raise RecordingError(f"{path}: was not recorded: there are {self._held}")
        batch = load(path)
        if batch.step != step:
            raise RecordingError(f"{path}: holds the batch of step {batch.step}")
        return batch
