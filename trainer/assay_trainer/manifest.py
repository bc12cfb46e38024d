"""What a checkpoint's `manifest.json` says, and which checkpoints are kept. Pure: plain data only.

A manifest names every file of its folder with its SHA-256, and carries a checksum of itself, so
that no bit of a checkpoint can change unseen. No torch: who serves a checkpoint reads it too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from assay_verifiers.jsonlines import told
from assay_verifiers.jsontext import NoJson, parse

FORMAT: Final = 1
NAME = "manifest.json"
TRAINER = "trainer"
"""The folder, within a checkpoint, of what only the trainer reads. All else is the model."""

_CHECKSUM = "checksum"
_MOST_CHARACTERS = 16 << 20


class ManifestError(ValueError):
    """A manifest cannot be used; the message says why."""


def _file_name(name: str) -> str:
    steps = name.split("/")
    if any(step in ("", ".", "..") for step in steps) or name == NAME:
        raise ValueError(f"{name!r} is no name of a file within the folder")
    # Neither can stand in a line of sha256sum as it is, which the digest is made of.
    if "\\" in name or not name.isprintable():
        raise ValueError(f"{name!r} has a character that no file here may have in its name")
    return name


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_file_name)]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class File(_Plain):
    """One file as it was written."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Plain):
    """A checkpoint.

    Attributes:
        format: of the manifest.
        step: after which it was taken; 0 is before the first.
        version: ATTEMPT.STEP of the weights; as a pair of numbers it only grows.
        job: SHA-256 of the job's settings (`fingerprint`).
        parent: the digest of the checkpoint that training went on from; None for the first.
        digest: of the model's files (`digest_of`).
        files: all files but the manifest, by their path within the folder.
        evaluation: what `evaluate` found, `score` among it; None where it was not weighed.
        verified: whether the score was enough.
        time: when, by the machine's clock. It is told and never compared: clocks go backwards.
    """

    format: Literal[1] = FORMAT
    step: Annotated[int, Field(ge=0)]
    version: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$")]
    job: Sha256
    parent: Sha256 | None
    digest: Sha256
    files: dict[FileName, File]
    evaluation: dict[str, JsonValue] | None
    verified: bool
    time: Annotated[str, AfterValidator(_time)]

    @property
    def order(self) -> tuple[int, int]:
        """By which one checkpoint is newer than another: attempt, step.

        Not the step alone: an attempt that went on from an older checkpoint, because newer ones
        were damaged, has left those newer ones behind for good.
        """
        attempt, step = self.version.split(".")
        return int(attempt), int(step)

    @property
    def score(self) -> float | None:
        """The evaluation's."""
        score = (self.evaluation or {}).get("score")
        return float(score) if isinstance(score, int | float) else None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        score = (self.evaluation or {}).get("score")
        if score is not None and (
            isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score)
        ):
            raise ValueError(f"evaluation.score: {score!r} is no number")
        if self.verified and score is None:
            raise ValueError("verified: nothing without a score is")
        if self.order[1] != self.step:
            raise ValueError(f"version: {self.version} is not of step {self.step}")
        if self.digest != digest_of(self.files):
            raise ValueError("digest: is not that of the files")
        return self


def _sha256(data: Any) -> str:
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(plain.encode()).hexdigest()


def fingerprint(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    return _sha256(data)


def digest_of(files: Mapping[str, File]) -> str:
    """What names the weights that are served: SHA-256 over the model's files.

    It is what `LC_ALL=C sha256sum FILES | sha256sum` prints, FILES sorted and without what is in
    `trainer`.
    """
    lines = (f"{files[name].sha256}  {name}\n" for name in sorted(files) if not is_of_trainer(name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_of_trainer(name: str) -> bool:
    """Whether a file is the trainer's and no part of the model."""
    return name.startswith(f"{TRAINER}/")


def encode(manifest: Manifest) -> bytes:
    """The file's content.

    Raises:
        ValueError: the evaluation holds NaN or an infinity, which JSON has not.
    """
    data = manifest.model_dump(mode="python")
    whole = {**data, _CHECKSUM: _sha256(data)}
    return json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n"


def decode(content: bytes) -> Manifest:
    """The manifest that a file holds.

    Raises:
        ManifestError: it is cut off, was changed by as little as a bit, or is of another format.
    """
    try:
        data = parse(content.decode(), max_characters=_MOST_CHARACTERS)
    except (NoJson, UnicodeDecodeError) as reason:
        raise ManifestError(f"{NAME} is cut off or damaged: {reason}") from reason
    if not isinstance(data, dict):
        raise ManifestError(f"{NAME} is no JSON object")
    if data.get("format") != FORMAT:
        raise ManifestError(
            f"{NAME} is of format {data.get('format')!r}; this version reads {FORMAT} only"
        )
    if data.pop(_CHECKSUM, None) != _sha256(data):
        raise ManifestError(f"{NAME} was changed or is damaged: its checksum is another")
    try:
        return Manifest.model_validate(data)
    except ValidationError as reason:
        raise ManifestError(f"{NAME} is wrong: {'; '.join(told(reason))}") from reason


def differences(files: Mapping[str, File], found: Mapping[str, File]) -> list[str]:
    """A sentence for each file that is missing, was changed, or does not belong there."""
    told_of = []
    for name, file in sorted(files.items()):
        there = found.get(name)
        if there is None:
            told_of.append(f"{name} is missing")
        elif there.bytes != file.bytes:
            told_of.append(f"{name} has {there.bytes} bytes, not {file.bytes}")
        elif there.sha256 != file.sha256:
            told_of.append(
                f"{name} is damaged: its SHA-256 is {there.sha256[:12]}..., not "
                f"{file.sha256[:12]}..."
            )
    # An extra file counts: an engine that loads the folder would load it too.
    told_of += [f"{name} is not in the manifest" for name in sorted(found.keys() - files.keys())]
    return told_of


@dataclass(frozen=True)
class Entry:
    """A checkpoint, as the keep-policy sees it.

    Attributes:
        name: its folder's.
        order: a newer one has a larger one (`Manifest.order`).
        digest: of its model.
        score: of its evaluation if that was enough, so if it is verified; else None.
        whole: False where files are known to be missing or damaged.
    """

    name: str
    order: tuple[int, int]
    digest: str
    score: float | None
    whole: bool


def to_delete(entries: Iterable[Entry], keep: int, pins: Set[str]) -> list[Entry]:
    """Which checkpoints to delete, the oldest first.

    One goes when at least `keep` whole ones are newer; never the best verified (of equal ones the
    newest), the best verified of those that are whole, or one whose digest is pinned. Damaged ones
    do not count as kept, so they never push a whole one out.

    Args:
        entries: all checkpoints whose manifests can be read. Others are not for a policy to judge.
        keep: how many of the newest stay.
        pins: digests of models that are being served.

    Raises:
        ValueError: keep is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: at least the newest checkpoint must stay")
    newest_first = sorted(entries, key=_age, reverse=True)
    stay: set[str] = set()
    for verified in (
        [entry for entry in newest_first if entry.score is not None],
        [entry for entry in newest_first if entry.score is not None and entry.whole],
    ):
        if verified:
            stay.add(max(verified, key=lambda entry: (entry.score, _age(entry))).name)
    newer, goes = 0, []
    for entry in newest_first:
        if newer >= keep and entry.name not in stay and entry.digest not in pins:
            goes.append(entry)
        newer += entry.whole
    return goes[::-1]


def _age(entry: Entry) -> tuple[tuple[int, int], str]:
    return entry.order, entry.name
