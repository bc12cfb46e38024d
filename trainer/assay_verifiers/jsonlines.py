"""Reads JSON lines and validates them: each thing that is wrong by its line and the field's path.

What could be read in two ways is refused: a key that stands twice, NaN, a number beyond a double.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from assay_verifiers.config import VerifierModel, parse_verifier
from assay_verifiers.jsontext import NoJson, parse

LONGEST_LINE = 16 << 20
LONGEST_FILE = 1 << 30
_MOST_PROBLEMS = 20
_DEEPEST = 200

Model = TypeVar("Model", bound=BaseModel)


class SuiteError(ValueError):
    """A file of items is wrong; `problems` holds a line for each thing, as far as they are told."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        told = list(problems[:_MOST_PROBLEMS])
        if len(problems) > len(told):
            told.append(f"and {len(problems) - len(told)} more")
        self.problems = tuple(told)
        super().__init__("\n".join(f"{path}: {problem}" for problem in told))


def validated(model: type[Model], data: Any) -> tuple[Model | None, list[str]]:
    """The model of plain data, or what is wrong with it: a field's path and a sentence each."""
    if not isinstance(data, dict):
        return None, ["not a JSON object"]
    wrong: list[str] = []
    if isinstance(data.get("verifier"), dict):
        # By itself first: inside another model, its errors would be one opaque sentence.
        try:
            data = {**data, "verifier": parse_verifier(data["verifier"])}
        except ValueError as reason:
            wrong = told(reason, ("verifier",))
            data = {**data, "verifier": VerifierModel(type="unknown")}
    try:
        found = model.model_validate(data)
    except ValidationError as reason:
        return None, told(reason) + wrong
    return (None, wrong) if wrong else (found, [])


def told(reason: ValueError, where: tuple[int | str, ...] = ()) -> list[str]:
    """An error's sentences with the fields' paths, those of composed verifiers included."""
    path = ".".join(str(step) for step in where)
    if not isinstance(reason, ValidationError):
        return [f"{path}: {reason}" if path else str(reason)]
    lines: list[str] = []
    errors = reason.errors(include_url=False, include_input=False)
    for error in errors:
        place = error["loc"]
        if error["type"] == "default_factory_not_called":
            continue  # A default that follows from another field, which is told itself.
        if error["type"] == "too_short" and any(
            len(other["loc"]) > len(place) and other["loc"][: len(place)] == place
            for other in errors
        ):
            continue  # pydantic counts the members that are right, not those that are there.
        inner = error.get("ctx", {}).get("error")
        if isinstance(inner, ValueError):
            lines += told(inner, (*where, *error["loc"]))
        else:
            here = ".".join(str(step) for step in (*where, *error["loc"]))
            lines.append(f"{here}: {error['msg']}" if here else error["msg"])
    return lines


def read_lines(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Number, data and, where there are no data, what is wrong, of each line that is not blank."""
    if path.is_file() and path.stat().st_size > LONGEST_FILE:
        raise SuiteError(path, [f"longer than {LONGEST_FILE >> 20} MiB"])
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                yield number, None, f"longer than {LONGEST_LINE >> 20} MiB"
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield (number, *parsed(line))


def parsed(line: bytes) -> tuple[Any, str]:
    """The data of a line (or of a whole file), and what is wrong with it, if anything."""
    try:
        return parse(line.decode(), _DEEPEST, LONGEST_LINE), ""
    except UnicodeDecodeError as reason:
        return None, f"not UTF-8 at byte {reason.start + 1}"
    except NoJson as reason:
        return None, str(reason)


def canonical_digest(data: Any) -> str:
    """SHA-256 of data as JSON with sorted keys, no white space, and ASCII only."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
