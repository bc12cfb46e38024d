"""Where the final answer of a completion or a reference stands.

Every regular expression is linear or applied to a bounded piece of the end of the text: a
completion of any size is read in milliseconds.

Digits that only look like ASCII's (Arabic-Indic, fullwidth, mathematical bold) make an answer
unreadable: they are neither read as digits nor passed over for an earlier answer.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Literal

from assay_verifiers.types.math_text import LONGEST_ANSWER, Unreadable, plain, prose

Convention = Literal["auto", "boxed", "hash", "last-number"]

DEEPEST_ANSWER = 20
# The conclusion: where an answer without a mark of its own is looked for.
_TAIL = 4000

_HASH = re.compile(r"^[ \t]*####(?!#)[ \t]*([^\n]*)$", re.M)
_PHRASE = re.compile(
    r"(?:^[ \t*_]*A[ \t]*:|\b(?i:answer)\b[^\n.:=]{0,60}?(?:\bis\b|:|=))[ \t*_:]*", re.M
)
# A number in prose. \d is any script's digit here, so that look-alikes are met and refused.
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
    rf"(?<![^\W\d])(?:(?<![\w)])[-\u2212])?\\?[$€£¥₹]?[ ]?(?<!\d)(?:{_NUMBER})(?:[ ]?/[ ]?\d+)?"
    r"(?:[ ]?\\?%|[ ](?!(?:or|and)\b)[A-Za-z]{2,20}\b)?"
)
_BETWEEN = re.compile(r"[\s,;|/&]*(?:(?:or|and)[\s,;|/&]*)?", re.I)
_LINE_END = re.compile(r"\n|\.(?=\s|$)(?!\d)")


def extract(text: str, convention: Convention = "auto") -> str:
    """The final answer in a completion.

    `boxed` takes the last \\boxed{} or \\fbox{}, `hash` what follows the last line's `####`,
    `last-number` the last number, unless it ends a list of three or more with nothing but
    separators between them, or of two with an "or", which is a spray and no answer. `auto` takes
    the most explicit one: boxed, hash, a phrase such as "A: 18" or "the answer is 18", the last
    number.

    Raises:
        Unreadable: nothing of the kind is there, or it is cut off or absurdly long.
    """
    if convention in ("auto", "boxed") and (found := _boxed(text)) is not None:
        return _checked(found)
    if convention == "boxed":
        raise Unreadable("no \\boxed{}")
    if convention in ("auto", "hash") and (found := _hash(text, convention)) is not None:
        return _checked(found)
    if convention == "hash":
        raise Unreadable("no ####")
    tail = text[-_TAIL:]
    if convention == "auto" and (found := _phrase(tail)) is not None:
        return _checked(found)
    return _checked(_last_number(tail))


def _checked(answer: str) -> str:
    if len(answer) > LONGEST_ANSWER:
        raise Unreadable(f"the answer has more than {LONGEST_ANSWER} characters")
    depth = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        if depth > DEEPEST_ANSWER:
            raise Unreadable(f"the answer is nested more than {DEEPEST_ANSWER} deep")
        if not character.isascii() and unicodedata.category(character) == "Nd":
            raise Unreadable(f"{character!r} is not one of the digits 0 to 9")
    if not answer.strip():
        raise Unreadable("the answer is empty")
    return answer.strip()


def _boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start : start + LONGEST_ANSWER + 50]
    inside = rest[6 if rest.startswith("\\boxed") else 5 :].lstrip()
    if not inside.startswith("{"):
        token = re.match(r"[^\s$\\]+", inside)
        return token[0] if token else ""
    depth = 0
    for place, character in enumerate(inside):
        # A brace behind a backslash is a set's.
        if character in "{}" and inside[place - 1 : place] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return inside[1:place]
    if len(inside) > LONGEST_ANSWER:
        raise Unreadable(f"the box has more than {LONGEST_ANSWER} characters")
    raise Unreadable("the last \\boxed{ is never closed")


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


def _hash(text: str, convention: Convention) -> str | None:
    last = _last(_HASH, text)
    if last is None:
        return None
    answer = last[1].strip()
    # A heading of Markdown looks the same and is none of the convention's.
    return answer if convention == "hash" or _mathematical(answer) else None


def _phrase(tail: str) -> str | None:
    last = _last(_PHRASE, tail)
    if last is None:
        return None
    rest = tail[last.end() :].lstrip()
    for opening, closing in (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$", "$")):
        end = rest.find(closing, len(opening))
        # A dollar sign before a number with no second one behind it is money.
        if (
            rest.startswith(opening)
            and 0 < end <= LONGEST_ANSWER
            and "\n" not in rest[:end].strip()
        ):
            return rest[len(opening) : end]
    end_of_line = _LINE_END.search(rest)
    sentence = (rest[: end_of_line.start()] if end_of_line else rest).strip(" \t*_.`")
    if _mathematical(sentence):
        return sentence
    if number := _TOKEN.search(sentence):
        return _number(sentence, number)
    return sentence or None


def _mathematical(text: str) -> bool:
    """Whether a piece of text is an expression from end to end, with at most a unit."""
    if plain(text) is not None:
        return True
    return bool(re.search(r"[\d\\]", text)) and not prose(text)


def _last_number(tail: str) -> str:
    tokens = list(_TOKEN.finditer(tail))
    if not tokens:
        raise Unreadable("no answer")
    in_a_row = 1
    for before, after in zip(reversed(tokens[:-1]), reversed(tokens[1:]), strict=True):
        separator = tail[before.end() : after.start()]
        if not _BETWEEN.fullmatch(separator):
            break
        in_a_row += 1
        if in_a_row == 3 or "or" in separator.lower():
            raise Unreadable("a list of numbers and no answer")
    return _formula(tail, tokens[-1]) or _number(tail, tokens[-1])


_PART = re.compile(r"(?<!\\boxed)(?<!\\fbox)(?<!\\text)(?<!\\textbf)(?<!\\mathbf)\{$|[\^_]$")


def _formula(text: str, number: re.Match[str]) -> str | None:
    """The LaTeX formula that a number stands in, if it stands in one."""
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        end = text.find(closing, number.end())
        # A dollar sign before the number has been read as a currency's.
        start = text.rfind(opening, 0, number.start() + (number[0][0] == opening))
        if 0 <= start < end <= start + LONGEST_ANSWER:
            inside = text[start + len(opening) : end]
            if closing not in inside and not prose(inside):
                return inside
    return None


def _number(text: str, match: re.Match[str]) -> str:
    """A number of prose with the word behind it, where that can be a unit.

    Raises:
        Unreadable: it is a part of an expression, as the 2 of \\frac{1}{2} is.
    """
    if _PART.search(text[: match.start()]):
        raise Unreadable("the last number is a part of an expression that is not marked as one")
    return match[0] if plain(match[0]) is not None else re.sub(r" [A-Za-z]+$", "", match[0])


def reference_text(reference: object) -> str:
    """The answer in a trusted reference: a number, an answer, or a worked solution ending in one.

    Raises:
        Unreadable: it is neither.
    """
    if isinstance(reference, bool) or not isinstance(reference, (int, float, str)):
        raise Unreadable(f"a reference of type {type(reference).__name__}")
    if not isinstance(reference, str):
        if not math.isfinite(reference):
            raise Unreadable(f"{reference} is no number")
        return repr(reference)
    found = _boxed(reference)
    if found is None:
        found = _hash(reference, "hash")
    if found is None and (lines := re.findall(r"^[ \t]*A:[ \t]*(.+)$", reference, re.M)):
        found = lines[-1]
    return _checked(reference if found is None else found)
