"""A model's answer to a logic item: values by constant's name, read as plain data, and no z3 here.

Nothing of a completion is ever handed to an SMT-LIB parser: what is read here are trees of tokens,
and `logic_check` makes a literal of the constant's sort of each, or refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from assay_verifiers.jsontext import MAX_CHARACTERS, NoJson, answer_json

Tree = str | list["Tree"]
"""An S-expression: a token as it stands in the text, or a list of trees."""

_TOKEN = re.compile(
    r';[^\n]*|\(|\)|\|[^|]*\||"(?:[^"]|"")*"|[^\s()|";]+|["|]',
)
_FORM = re.compile(r"\(\s*(?:define-fun|define-const|=)(?=[\s|])")
_MAX_FORMS = 1000
_MAX_FORM_TOKENS = 200
_LINE_VALUE = re.compile(
    r"\s*(?:[-*]\s+)?[`*$]*(?P<name>\|[^|\n]*\||[^\s=:`*$,;|]+)[`*$]*\s*(?::=|=|:)\s*(?P<value>.+)"
)


class NoAnswer(ValueError):
    """A completion gives no values, and why."""


def trees(text: str, start: int = 0, limit: int | None = None) -> Iterator[tuple[Tree, str]]:
    """The top-level S-expressions of a text, each with its own piece of text, without recursion.

    Args:
        text: SMT-LIB, or what looks like it.
        start: where to begin.
        limit: of tokens; what is longer is not closed.

    Raises:
        ValueError: a parenthesis, a string or a quoted symbol is not closed, or closed too often.
    """
    stack: list[list[Tree]] = []
    began = start
    for count, match in enumerate(_TOKEN.finditer(text, start)):
        token = match.group()
        if limit is not None and count >= limit:
            break
        if token[0] == ";":
            continue
        if token in ('"', "|"):
            raise ValueError(f"{token} is not closed")
        if token == "(":
            if not stack:
                began = match.start()
            stack.append([])
            continue
        tree: Tree = token
        if token == ")":
            if not stack:
                raise ValueError("a parenthesis too many is closed")
            tree = stack.pop()
        if stack:
            stack[-1].append(tree)
        else:
            yield tree, text[began if token == ")" else match.start() : match.end()]
    if stack:
        raise ValueError("a parenthesis is not closed")


def symbol(token: Tree) -> str:
    """A symbol's name: `|a b|` and `a` are written differently and named the same way.

    Raises:
        ValueError: it is a list, or empty.
    """
    if isinstance(token, list):
        raise ValueError("a list where a name should be")
    return token[1:-1] if len(token) >= 2 and token[0] == token[-1] == "|" else token


def read_answer(completion: str, names: Collection[str]) -> dict[str, Any]:
    """The values that a completion gives, by constant's name.

    The first of these that names at least one of the constants is the answer: the JSON object that
    counts by `jsontext.answer_json`; the forms `(define-fun x () Int 1)` and `(= x 1)`; lines or
    parts of lines `x = 1` (or `x: 1`). Of several forms or lines for one name the last counts.

    Args:
        completion: the model's text.
        names: of the declared constants.

    Returns:
        JSON values (of a JSON object) or trees wrapped in a `Text`, for the names only.

    Raises:
        NoAnswer: there are no values in it.
    """
    if len(completion) > MAX_CHARACTERS:
        raise NoAnswer(f"the text has {len(completion)} characters, more than {MAX_CHARACTERS}")
    try:
        value = answer_json(completion)
        reason = "its JSON names none of the constants"
    except NoJson as problem:
        value, reason = None, str(problem)
    if isinstance(value, dict) and (found := {k: v for k, v in value.items() if k in names}):
        return found
    if found := dict(_forms(completion, names)) or dict(_lines(completion, names)):
        return found
    raise NoAnswer(f"no value for any constant: {reason}")


class Text:
    """A value that stood in the text as SMT-LIB, not as JSON."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree


def _forms(text: str, names: Collection[str]) -> Iterator[tuple[str, Text]]:
    starts = [match.start() for match in _FORM.finditer(text)]
    for start in starts[-_MAX_FORMS:]:
        try:
            tree, _ = next(trees(text, start, _MAX_FORM_TOKENS))
        except (ValueError, StopIteration):
            continue
        if isinstance(tree, list) and len(tree) >= 3 and isinstance(tree[1], str):
            name = symbol(tree[1])
            equation = tree[0] == "=" and len(tree) == 3
            definition = tree[0] == "define-fun" and len(tree) == 5 and tree[2] == []
            constant = tree[0] == "define-const" and len(tree) == 4
            if name in names and (equation or definition or constant):
                yield name, Text(tree[-1])


def _lines(text: str, names: Collection[str]) -> Iterator[tuple[str, Text]]:
    for part in re.split(r"[\n,;]", text):
        match = _LINE_VALUE.fullmatch(part.rstrip(" \t\r.`*$"))
        if match is None or (name := symbol(match["name"])) not in names:
            continue
        try:
            found = [tree for tree, _ in trees(match["value"], limit=_MAX_FORM_TOKENS)]
        except ValueError:
            continue
        if len(found) == 1:
            yield name, Text(found[0])
