"""`assay-train inspect`: whether a model's folder may be loaded, before any engine is touched.

Every byte is read once. What cannot be read because the storage fails says nothing about the
folder, so that is told apart from damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from assay_trainer.inventory import manifest_of
from assay_trainer.likeness import CONFIG, Model, differences, essential, is_read_at_start
from assay_trainer.manifest import NAME, File, FileName, ManifestError, digest_of
from assay_trainer.manifest import differences as changes
from assay_trainer.storage import hashed, plain_files
from assay_trainer.tensorfiles import (
    INDEX,
    PREFIX,
    SUFFIX,
    Damaged,
    Tensors,
    header_length,
    loaded,
    tensors_of,
)
from assay_verifiers.jsonlines import canonical_digest, told
from assay_verifiers.jsontext import NoJson, parse
from assay_verifiers.termination import MOST_BYTES

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
CODE = frozenset({".py", ".pyc", ".pyd", ".so"})
_LARGEST_DOCUMENT = 256 << 20
_FILE_NAME: TypeAdapter[str] = TypeAdapter(FileName)
# By its words, since that is what is kept of an error: network storage that is away for a while.
_FAILING = frozenset(
    os.strerror(number)
    for number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)
)


@dataclass(frozen=True)
class Inspection:
    """What was found of a folder.

    Attributes:
        digest: `sha256:` and the digest of the model's files; None where not all could be read.
        files: how many there are, those of the trainer and the manifest included.
        size: of all of them, in bytes.
        problems: why it must not be loaded.
        reasons: why engines that run the other model cannot load it; None where none was given.
        failing: what could not be read because the storage fails: then nothing is known.
    """

    digest: str | None
    files: int
    size: int
    problems: tuple[str, ...]
    reasons: tuple[str, ...] | None = None
    failing: tuple[str, ...] = ()

    @property
    def intact(self) -> bool | None:
        """Whether it may be loaded; None where that could not be found out."""
        return None if self.failing else not self.problems

    @property
    def in_place(self) -> bool | None:
        """Whether running engines may load it; None where there is nothing to compare with."""
        if self.reasons is None:
            return None
        return not self.reasons and bool(self.intact)

    def summary(self) -> bytes:
        """It as JSON that fits a termination message, whatever the names in it are."""
        for most, longest in ((20, 300), (10, 200), (5, 150), (3, 100), (1, 60)):
            data = {
                "intact": self.intact,
                "digest": self.digest,
                "files": self.files,
                "bytes": self.size,
                "inPlace": self.in_place,
                "reasons": _cut(self.reasons or (), most, longest),
                "problems": _cut((*self.failing, *self.problems), most, longest),
            }
            text = json.dumps(data, separators=(",", ":")).encode()
            if len(text) <= MOST_BYTES:
                return text
        raise AssertionError("the shortest summary has a fixed size")


def _cut(sentences: Sequence[str], most: int, longest: int) -> list[str]:
    shown = [
        text if len(text) <= longest else f"{text[: longest - 3]}..." for text in sentences[:most]
    ]
    more = len(sentences) - most
    return [*shown, f"and {more} more"] if more > 0 else shown


@dataclass
class _Contents:
    """A folder as far as it could be read.

    Attributes:
        paths: all plain files, by name.
        tensors: of each sound safetensors file.
        damage: by name, why a file cannot be used; the sentence goes on after the name.
        documents: content of the JSON files that say what the model is.
        start: see `likeness.Model`.
    """

    paths: dict[str, Path]
    odd: list[str]
    tensors: dict[str, Tensors] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)

    def model(self, told: Set[str] = frozenset()) -> tuple[Model, list[str]]:
        """What counts of it, and what is wrong with that but for the files in `told`."""
        top = {name: found for name, found in self.tensors.items() if "/" not in name}
        tensors, problems = loaded(top, self.documents.get(INDEX), self.damage.keys())
        config = self.documents.get(CONFIG)
        if CONFIG not in self.paths:
            problems.append(f"{CONFIG} is missing")
        elif CONFIG not in self.damage and not isinstance(config, dict):
            problems.append(f"{CONFIG} is no JSON object")
        if not any(name.endswith(SUFFIX) and "/" not in name for name in self.paths):
            problems.append(f"there is no *{SUFFIX}: no weights that may be loaded")
        damage = [f"{name} {why}" for name, why in sorted(self.damage.items()) if name not in told]
        model = Model(config if isinstance(config, dict) else {}, self.start, tensors)
        return model, [*damage, *problems]


def inspect(
    folder: Path, *, digest: str | None = None, like: Path | None = None, code: bool = False
) -> Inspection:
    """Reads every byte of a folder, and of another one what they must have in common.

    Args:
        folder: a Hugging Face folder, with a manifest if a trainer wrote it.
        digest: that it must have: `sha256:` and 64 digits.
        like: what engines run now.
        code: whether Python files may lie in it.
    """
    if not folder.is_dir():
        kind = "is no folder" if folder.exists() else "does not exist"
        return Inspection(None, 0, 0, (f"{folder} {kind}",), None if like is None else ())
    contents = _read(folder)
    found, unreadable = hashed(contents.paths)
    model, damage = contents.model(unreadable.keys())
    whole = _digest(found) if not unreadable else None
    problems = [
        *(f"{name} cannot be read: {why}" for name, why in unreadable.items()),
        *contents.odd,
        *_unfit(contents.paths, code),
        *_against_manifest(folder, found, unreadable),
        *_against_digest(whole, digest),
        *damage,
    ]
    failing = [sentence for sentence in problems if sentence.rpartition(": ")[2] in _FAILING]
    return Inspection(
        whole,
        len(contents.paths),
        sum(file.bytes for file in found.values()),
        tuple(sentence for sentence in problems if sentence not in failing),
        None if like is None else tuple(_unlike(model, like)),
        tuple(failing),
    )


def _digest(files: Mapping[str, File]) -> str:
    return f"sha256:{digest_of({name: file for name, file in files.items() if name != NAME})}"


def _unfit(names: Iterable[str], code: bool) -> Iterator[str]:
    """Files that must not lie in a folder that engines load."""
    for name in sorted(names):
        kind = Path(name).suffix.lower()
        if kind in PICKLES:
            yield f"{name} may be a pickle, which can run any code when it is loaded: take it out"
        elif kind in CODE and not code:
            yield f"{name} is code: take it out, or serve the model with trustRemoteCode"
        if name != NAME:
            try:
                _FILE_NAME.validate_python(name)
            except ValidationError as reason:
                yield "; ".join(told(reason))


def _against_manifest(
    folder: Path, found: Mapping[str, File], unreadable: Mapping[str, str]
) -> list[str]:
    if not (folder / NAME).exists():
        return []  # A user's own folder has none; its digest is what it is known by.
    try:
        files = manifest_of(folder).files
    except ManifestError as reason:
        return [str(reason)]
    expected = {name: file for name, file in files.items() if name not in unreadable}
    return changes(expected, {name: file for name, file in found.items() if name != NAME})


def _against_digest(found: str | None, expected: str | None) -> list[str]:
    if found is None or expected is None or found == expected:
        return []
    return [f"the digest is {found}, not {expected}: these are other files"]


def _unlike(model: Model, like: Path) -> list[str]:
    if not like.is_dir():
        return [f"{like}, which is served, cannot be read"]
    other, damage = _read(like).model()
    if damage:
        return [f"{like}, which is served, cannot be compared with: {damage[0]}"]
    return differences(model, other)


def _read(folder: Path) -> _Contents:
    """What a folder says of itself: headers and documents, no tensor."""
    paths, odd = plain_files(folder)
    contents = _Contents(paths, odd)
    for name, path in paths.items():
        try:
            if name.endswith(SUFFIX):
                contents.tensors[name] = _tensors(path)
            elif name in (CONFIG, INDEX):
                contents.documents[name] = _document(path)
            elif is_read_at_start(name):
                contents.start[name] = _start_digest(path)
        except (Damaged, NoJson) as reason:
            contents.damage[name] = str(reason)
        except OSError as reason:
            contents.damage[name] = f"cannot be read: {reason.strerror or reason}"
    return contents


def _tensors(path: Path) -> Tensors:
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(header_length(size, file.read(PREFIX)))
    return tensors_of(size, header)


def _document(path: Path) -> Any:
    try:
        return parse(path.read_bytes().decode(), max_characters=_LARGEST_DOCUMENT)
    except UnicodeDecodeError as reason:
        raise NoJson(f"is not UTF-8 at byte {reason.start + 1}") from None
    except NoJson as reason:
        raise NoJson(f"cannot be used: {reason}") from None


def _start_digest(path: Path) -> str:
    """Of a JSON file's data, so that one that was written anew is the same; else of bytes."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            return canonical_digest(essential(json.loads(content)))
        except (ValueError, RecursionError):
            pass
    return hashlib.sha256(content).hexdigest()
