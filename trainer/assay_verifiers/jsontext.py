"""Strict JSON: a parser that lets nothing slip, and which part of a model's text is the answer.

Python's `json` takes NaN, keeps the last of two equal keys and recurses as deep as the text says.
Each of those lets a completion say two things at once or end the process, so here each is refused.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 64
_MAX_DIGITS = 1000

# A backslash takes the next character with it, so that one pass tells strings from structure.
_STRUCTURE = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[ \t]*$", re.MULTILINE)
_THOUGHT_ENDS = "</think>"


class NoJson(ValueError):
    """There is no JSON in a text that could be read, and why."""


def answer_json(text: str, max_depth: int = MAX_DEPTH) -> Any:
    """The JSON value that a completion gives as its answer.

    Exactly one place counts, so that a completion cannot offer several answers: the last fenced
    block marked as JSON (or not marked, and holding an object or an array); else the whole text,
    where it is an array; else the last object that stands in no other. What stands before
    `</think>` is no answer.

    Args:
        text: the completion.
        max_depth: of nesting.

    Raises:
        NoJson: there is none, it is cut off, or the one that counts is not strict JSON.
    """
    if len(text) > MAX_CHARACTERS:
        raise NoJson(f"the text has {len(text)} characters, more than {MAX_CHARACTERS}")
    text = text.rpartition(_THOUGHT_ENDS)[2]
    block = _last_block(text)
    if block is not None:
        return parse(block, max_depth)
    whole = text.strip()
    if not whole:
        raise NoJson("the text is empty")
    if whole[0] == "[" and whole[-1] == "]":
        return parse(whole, max_depth)
    last = _last_object(text)
    if last is None:
        raise NoJson("no JSON object in it")
    return parse(last, max_depth)


def parse(text: str, max_depth: int = MAX_DEPTH, max_characters: int = MAX_CHARACTERS) -> Any:
    """One JSON value, strictly: RFC 8259 with unique keys, finite numbers and whole characters.

    Raises:
        NoJson: it is anything else, nested deeper than `max_depth`, or too long.
    """
    if len(text) > max_characters:
        raise NoJson(f"the text has {len(text)} characters, more than {max_characters}")
    # Before the parser runs: it recurses with the text's depth.
    if (deep := _depth(text)) > max_depth:
        raise NoJson(f"nested too deeply: {deep} levels, {max_depth} at most")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
        # A lone surrogate is no character: it can be neither stored nor compared safely.
        json.dumps(value, ensure_ascii=False).encode()
    except NoJson:
        raise
    except UnicodeEncodeError:
        raise NoJson("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as reason:
        row = f"line {reason.lineno} " if "\n" in text.rstrip() else ""
        raise NoJson(f"not JSON: {reason.msg} at {row}column {reason.colno}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NoJson(f"not JSON: the key {key[:80]!r} stands twice in an object")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise NoJson(f"not JSON: {name} is not a JSON number")


def _integer(digits: str) -> int:
    # int() is quadratic, and above 4,300 digits it is refused by Python anyhow.
    if len(digits) > _MAX_DIGITS:
        raise NoJson(f"not JSON: a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise NoJson(f"not JSON: the number {digits[:40]} is too large")
    return value


def _depth(text: str) -> int:
    deepest = now = 0
    in_string = False
    for match in _STRUCTURE.finditer(text):
        mark = match.group()
        if mark == '"':
            in_string = not in_string
        elif in_string or mark[0] == "\\":
            continue
        elif mark in "{[":
            now += 1
            deepest = max(deepest, now)
        else:
            now -= 1
    return deepest


def _last_block(text: str) -> str | None:
    """The last closed fenced block that is meant as JSON."""
    found: str | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
            continue
        language = opening.group(1).lower()
        content = text[opening.end() : fence.start()].strip()
        if language == "json" or (not language and content[:1] in ("{", "[")):
            found = content
        opening = None
    return found


def _last_object(text: str) -> str | None:
    """The last object in a text that stands in no other: one pass, whatever the nesting.

    Quotes count only within braces: in prose around them they are apostrophes and inches.

    Raises:
        NoJson: a brace stays open. What stands in it is part of something that was cut off, so an
            inner object must not be taken for the answer.
    """
    start = depth = 0
    found: str | None = None
    in_string = False
    for match in _STRUCTURE.finditer(text):
        mark = match.group()
        if mark == '"':
            in_string = depth > 0 and not in_string
        elif in_string or mark[0] == "\\":
            continue
        elif mark == "{":
            if depth == 0:
                start = match.start()
            depth += 1
        elif mark == "}" and depth > 0:
            depth -= 1
            if depth == 0:
                found = text[start : match.end()]
    if depth > 0:
        raise NoJson("the last object is not closed")
    return found
