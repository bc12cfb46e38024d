"""Bounds on the grammars that a request may bring: what would take an engine's memory or minutes.

The engine compiles regular expressions, JSON schemas and EBNF into automata, in the process that
serves all other requests. A repetition becomes as many states as it has repeats, and nested ones
multiply; schemas are compiled recursively. These checks bound size, depth and repeats before that.
They read braces and parentheses only, so they take every dialect, and may refuse a harmless one.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from re import _parser  # type: ignore[attr-defined]
from typing import Any

LONGEST = 65_536
"""Characters of a schema, an EBNF or a structural tag."""
LONGEST_REGEX = 4_096
DEEPEST = 64
"""Levels of a schema, and of parentheses in an expression."""
MOST_REPEATS = 10_000
"""Repeats of one part of an expression, nested ones multiplied; items or characters of a schema."""

SOME_REPEATS = 16
"""Repeats up to which a part of a stop expression counts as not repeated."""

_COUNT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_BOUNDS = (
    *("minLength", "maxLength", "minItems", "maxItems"),
    *("minProperties", "maxProperties", "minContains", "maxContains"),
)


def regex_fault(pattern: str, name: str = "regex") -> str:
    """What speaks against compiling a regular expression; empty where nothing does."""
    if len(pattern) > LONGEST_REGEX:
        return f"{name} has {len(pattern)} characters, more than {LONGEST_REGEX}"
    return _repeats_fault(pattern, name)


def ebnf_fault(grammar: str) -> str:
    """The same of a grammar in EBNF."""
    if len(grammar) > LONGEST:
        return f"ebnf has {len(grammar)} characters, more than {LONGEST}"
    return _repeats_fault(grammar, "ebnf")


def schema_fault(text: str, name: str = "json_schema") -> str:
    """The same of a JSON schema, or of another JSON text that holds some."""
    if len(text) > LONGEST:
        return f"{name} has {len(text)} characters, more than {LONGEST}"
    if _deepest(text) > DEEPEST:
        return f"{name} has more than {DEEPEST} levels"
    try:
        content = json.loads(text)
    except ValueError as error:
        # SGLang's own name for a schema that allows any JSON.
        return "" if text == "$$ANY$$" else f"{name} is not JSON: {error}"
    return next((fault for part in _objects(content) if (fault := _part_fault(part, name))), "")


def stop_regex_fault(pattern: str) -> str:
    """What speaks against matching an expression against the text after every token.

    Python matches it, by backtracking: a repeated part that repeats something itself, or has
    alternatives, or that is repeated twice in a row, can take longer than anyone waits. That is
    what is looked for; it is not all that can be slow.
    """
    fault = regex_fault(pattern, "stop_regex")
    if fault:
        return fault
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
            parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"stop_regex cannot be compiled: {error}"
    return "" if _prompt(parsed) else "stop_regex can take too long: it repeats what repeats"


def _prompt(parsed: Any, inside: bool = False) -> bool:
    """Whether no part of an expression backtracks into another.

    Args:
        parsed: what Python's own parser made of it.
        inside: whether the part is repeated.
    """
    before = ""
    for kind, value in parsed:
        repeats = str(kind) in {"MAX_REPEAT", "MIN_REPEAT"} and value[1] > SOME_REPEATS
        repeated = str(value[2]) if repeats else ""
        again = repeats and repeated == before
        if again or (inside and (repeats or str(kind) == "BRANCH")):
            return False
        if not all(_prompt(part, inside or repeats) for part in _parts(value)):
            return False
        before = repeated
    return True


def _parts(value: Any) -> Iterator[Any]:
    """The expressions in an argument of Python's parser."""
    if isinstance(value, _parser.SubPattern):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)


def _part_fault(part: dict[str, Any], name: str) -> str:
    for bound in _BOUNDS:
        value = part.get(bound)
        if isinstance(value, int | float) and not 0 <= value <= MOST_REPEATS:
            return f"{bound} in {name} must be in [0, {MOST_REPEATS}], not {value}"
    pattern = part.get("pattern")
    patterns = part.get("patternProperties")
    found = [pattern] if isinstance(pattern, str) else []
    found += list(patterns) if isinstance(patterns, dict) else []
    faults = (regex_fault(each, f"pattern in {name}") for each in found)
    reference = part.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        return f"$ref in {name} must stay in it, not lead to {reference[:100]}"
    return next((fault for fault in faults if fault), "")


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects in some content."""
    todo = [content]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            yield part
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)


def _deepest(text: str) -> int:
    """Levels of braces and brackets outside of strings."""
    depth = deepest = 0
    for sign in re.sub(r'"(?:[^"\\]|\\.)*"', "", text):
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _repeats_fault(text: str, name: str) -> str:
    """Whether parentheses nest too deep, or counts multiply to too many repeats."""
    # The largest product of counts in each open group.
    open_groups = [1]
    last = 1
    place = 0
    while place < len(text):
        sign = text[place]
        count = _COUNT.match(text, place) if sign == "{" else None
        if sign == "\\":
            place += 2
            last = 1
            continue
        if sign == "(":
            open_groups.append(1)
            last = 1
        elif sign == ")" and len(open_groups) > 1:
            last = open_groups.pop()
            open_groups[-1] = max(open_groups[-1], last)
        elif count:
            bounds = [int(bound) for bound in count.groups() if bound]
            last *= max([1, *bounds])
            open_groups[-1] = max(open_groups[-1], last)
            place = count.end()
        elif sign not in "*+?":
            last = 1
        if len(open_groups) > DEEPEST:
            return f"{name} has more than {DEEPEST} levels of parentheses"
        if max(last, open_groups[-1]) > MOST_REPEATS:
            return f"{name} repeats a part more than {MOST_REPEATS} times"
        place += 0 if count else 1
    return ""
