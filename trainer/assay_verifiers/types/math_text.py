"""What a plain number in an answer is worth, and how an answer is made up.

Nothing here evaluates anything, and `math_extract` bounds an answer in length and depth: it is safe
outside worker processes. Digits are the ten ASCII ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

LONGEST_ANSWER = 1000


class Unreadable(ValueError):
    """No answer can be read; the message says why."""


@dataclass(frozen=True)
class Quantity:
    """A plain number.

    Attributes:
        value: exact; of a percentage the number before the sign.
        decimal: whether it was written with a decimal point, which makes it approximate.
        percent: whether a percent sign stands behind it.
        unit: what else stands beside it, in lower case; empty where nothing does.
    """

    value: Fraction
    decimal: bool = False
    percent: bool = False
    unit: str = ""


@dataclass(frozen=True)
class Several:
    """Several values: `kind` is `list`, `union`, or the two brackets around them, such as `[)`."""

    kind: str
    parts: tuple[str, ...]


_SPACES = re.compile(r"(?:\\[,;:! ]|~|\\q?quad(?![A-Za-z])|\\displaystyle|\\left(?![A-Za-z])|"
                     r"\\right(?![A-Za-z])|\\bigl?|\\bigr?|\s)+")  # fmt: skip
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|textrm|textit|mathit|rm)\s*\{([^{}]*)\}")
_SIGNS = str.maketrans({"\u2212": "-", "\u00d7": " \\times ", "\u00f7": "/", "\u03c0": "\\pi ",
                        "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ",
                        "\u222a": "\\cup ", "\u00b0": "^\\circ ", "\u00b7": "\\cdot ",
                        "\u2248": "\\approx "})  # fmt: skip


def normalised(answer: str) -> str:
    """The same answer without marks of layout: spaces, dollar signs around it, bold, a last dot."""
    text = answer.translate(_SIGNS).strip().strip("*`").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : -len(closing)]
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            text = inner
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"^(?:\\approx|=)", "", text.strip()).strip()
    return text.rstrip(".,;: ") if not text.endswith("\\") else text


_UNIT_WORDS = frozenset(
    [
        "mm", "cm", "dm", "km", "kg", "mg", "lb", "lbs", "oz", "ft", "in", "mi", "yd", "hr",
        "hrs", "min", "mins", "sec", "ml", "mph", "kph", "deg", "am", "pm", "usd", "eur",
        "gbp", "inches", "inch", "feet", "foot", "miles", "mile", "hours", "hour",
        "minutes", "minute", "seconds", "second", "days", "day", "weeks", "week", "months",
        "month", "years", "year", "dollars", "dollar", "cents", "cent", "euros", "meters",
        "metres", "meter", "metre", "km/h", "m/s",
    ]
)  # fmt: skip
_UNIT_LETTERS = frozenset("mgshl")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
           "trillion": 10**12}  # fmt: skip
_NO_UNIT = frozenset(
    [
        "or", "and", "to", "vs", "versus", "mod", "pi", "sqrt", "sin", "cos", "tan", "cot",
        "csc", "log", "ln", "exp", "lim", "max", "gcd", "lcm", "inf", "infinity", "times",
        "plus", "minus", "over", "through", "not", "if", "else", "union", "frac", "base",
    ]
)  # fmt: skip
_INTEGER = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+"
_PLAIN = re.compile(
    r"(?P<sign>[-+]?) ?(?P<currency>[$€£¥₹]?) ?(?P<sign2>-?) ?"
    r"(?:(?:(?P<whole>\d+)[ ]*)?\\frac ?\{ ?(?P<num>\d+) ?\} ?\{ ?(?P<den>\d+) ?\}"
    r"|(?:(?P<whole2>\d+) )?(?P<num2>\d+) ?/ ?(?P<den2>\d+)"
    rf"|(?P<number>(?:{_INTEGER})?(?:(?<=\d)\.(?!\d)|\.\d+)?)(?<=[\d.])"
    r"(?:[eE](?P<power>[-+]?\d{1,3})"
    r"|(?: ?(?:\\times|\\cdot|\*) ?10 ?\^ ?(?:\{(?P<power2>-?\d{1,3})\}|(?P<power3>-?\d{1,3}))))?)"
    r"(?P<rest>.*)",
    re.ASCII,
)
_UNIT = re.compile(
    r"(?P<space> ?)(?P<word>\\?[A-Za-z][A-Za-z./ -]*)?(?:\^ ?\{?-?\d\}?|[\u00b2\u00b3])?"
)


_SIMPLE = re.compile(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)(\.\d+)?", re.ASCII)


@lru_cache(maxsize=4096)
def plain(answer: str) -> Quantity | None:
    """The number that an answer is, or None where it is anything but one number.

    Read are signs, thousands separators, decimals, fractions, mixed numbers, powers of ten,
    currencies, percent signs, units and `million`.
    """
    if len(answer) > LONGEST_ANSWER:
        return None
    if simple := _SIMPLE.fullmatch(answer):
        return Quantity(Fraction(answer.replace(",", "")), simple[1] is not None)
    text = normalised(_TEXT.sub(r" \1", answer))
    match = _PLAIN.fullmatch(text)
    if match is None or (match["sign"] and match["sign2"]):
        return None
    value = _value(match)
    unit = _unit(match["rest"].replace("^\\circ", " degrees"))
    if value is None or unit is None:
        return None
    percent, scale, name = unit
    if match["sign"] == "-" or match["sign2"]:
        value = -value
    decimal = "." in (match["number"] or "")
    return Quantity(value * scale, decimal, percent, (match["currency"] + name).strip())


def _value(match: re.Match[str]) -> Fraction | None:
    for whole, num, den in (("whole", "num", "den"), ("whole2", "num2", "den2")):
        if match[num] is not None:
            if int(match[den]) == 0:
                return None
            return int(match[whole] or 0) + Fraction(int(match[num]), int(match[den]))
    digits = match["number"].replace(",", "").replace(" ", "").rstrip(".")
    if not digits:
        return None
    power = match["power"] or match["power2"] or match["power3"] or "0"
    return Fraction(f"{digits}e{power}")


def _unit(rest: str) -> tuple[bool, int, str] | None:
    """Percent sign, scale and unit behind a number; None where that is something else."""
    rest = rest.rstrip()
    if rest.strip() in ("%", "percent", "percents", "per cent", "percentage", "pct"):
        return True, 1, ""
    match = _UNIT.fullmatch(rest)
    if match is None:
        return None
    words = (match["word"] or "").lower().split()
    scale = 1
    while words and words[0] in _SCALES:
        scale *= _SCALES[words.pop(0)]
    if not words:
        return (False, scale, "") if scale > 1 or not rest else None
    if _NO_UNIT.intersection(words) or len(words) > 6:
        return None
    attached = not match["space"]
    for word in words:
        known = word in _UNIT_WORDS or (word in _UNIT_LETTERS and not attached) or "/" in word
        # `5x` and `5ab` are products; `5 apples` and `5cm` are quantities.
        if not known and (attached or len(word.strip(".")) < 2 or "\\" in word):
            return None
    return False, scale, " ".join([*words, rest[match.end("word") :]]).strip()


_LAST_TEXT = re.compile(rf"{_TEXT.pattern} *(?:\^ ?\{{?-?\d\}}?|[\u00b2\u00b3])?$")
_LAST_WORD = re.compile(r" ([A-Za-z/]+) *(?:\^ ?\{?-?\d\}?|[\u00b2\u00b3])?$")


def split_unit(answer: str) -> tuple[str, str]:
    """An expression without the unit at its end, and the unit in lower case."""
    text = normalised(answer)
    found = _LAST_TEXT.search(text)
    if found is None:
        found = _LAST_WORD.search(text)
        if found is None or found[1].lower() not in _UNIT_WORDS:
            return text, ""
    rest = text[: found.start()].strip()
    unit = text[found.start() :].replace(found[0], _TEXT.sub(r"\1", found[0]))
    return (rest, unit.strip().lower()) if rest else (text, "")


def same_quantity(
    reference: Quantity, answer: Quantity, tolerance: float, unit: Literal["ignore", "require"]
) -> bool:
    """Whether an answer is the reference's number.

    50% is 0.5. Where units are ignored, a percent sign that stands on one side only, behind more
    than 1, may also be a unit: 50% is then 50 as well, but 0.5% is never 0.5. Where they are
    required, the reference's unit must stand in the answer, in singular or plural.
    """
    if unit == "require" and reference.unit and not same_unit(reference.unit, answer.unit):
        return False
    near = tolerance if reference.decimal or answer.decimal else 0.0

    def close(a: Fraction, b: Fraction) -> bool:
        return abs(a - b) <= near

    if reference.percent == answer.percent:
        return close(reference.value, answer.value)
    factor = {True: Fraction(1, 100), False: Fraction(1)}
    by_value = close(
        reference.value * factor[reference.percent], answer.value * factor[answer.percent]
    )
    as_unit = unit == "ignore" and abs(reference.value) > 1
    return by_value or (as_unit and close(reference.value, answer.value))


def same_unit(one: str, other: str) -> bool:
    """Whether two units are the same, in singular or plural."""
    return _singular(one) == _singular(other)


def _singular(unit: str) -> str:
    names = {"$": "dollar", "€": "euro", "£": "pound", "usd": "dollar", "feet": "foot",
             "inches": "inch"}  # fmt: skip
    unit = names.get(unit, unit)
    return unit[:-1] if unit.endswith("s") and len(unit) > 2 else unit


_FUNCTIONS = frozenset(
    [
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh",
        "cosh", "tanh", "log", "ln", "exp", "sqrt", "abs", "max", "min", "gcd", "lcm",
        "mod", "pi", "inf", "infinity", "or", "and", "frac",
    ]
)  # fmt: skip
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def prose(text: str) -> list[str]:
    """Words in an answer that no expression has: those of a sentence."""
    stripped = re.sub(r"\\(?:begin|end|operatorname|mathbb|mathcal)\*?\{[^{}]*\}", " ", text)
    words = _WORD.findall(_TEXT.sub(r" \1 ", stripped))
    return [word for word in words if word.lower() not in _FUNCTIONS and len(word) > 2]


_OR = re.compile(r"(?:,| )\s*(?:\\text\{\s*(?:or|and)\s*\}|(?:or|and)(?![A-Za-z]))\s*|;")
_OPEN, _CLOSE = "([", ")]"


def several(answer: str) -> Several | None:
    """The values that an answer lists; None where it is one expression.

    `1, 2`, `1 or 2` and `1; 2` are lists, \\{1, 2\\} is a set, (1, 2] an interval, (1, 2) a pair
    (or an open interval, which is written the same).
    """
    text = normalised(answer)
    union = split_outside(text, "\\cup")
    if len(union) > 1:
        return Several("union", tuple(union))
    if text.startswith("\\{") and text.endswith("\\}") and text.find("\\}") == len(text) - 2:
        return Several("{}", tuple(part for part in split_outside(text[2:-2], ",") if part))
    if text[:1] in tuple(_OPEN) and text[-1:] in tuple(_CLOSE) and _closes(text) == len(text) - 1:
        parts = split_outside(text[1:-1], ",")
        return Several(text[0] + text[-1], tuple(parts)) if len(parts) > 1 else None
    parts = [part for piece in split_outside(_OR.sub(" , ", text), ",") if (part := piece.strip())]
    return Several("list", tuple(parts)) if len(parts) > 1 else None


def _closes(text: str) -> int:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return place
    return -1


def split_outside(text: str, separator: str) -> list[str]:
    """The pieces between separators that stand in no bracket."""
    pieces, depth, start, place = [], 0, 0, 0
    while place < len(text):
        depth += (text[place] in "([{") - (text[place] in ")]}")
        if depth == 0 and text.startswith(separator, place):
            pieces.append(text[start:place].strip())
            start = place = place + len(separator)
        else:
            place += 1
    return [*pieces, text[start:].strip()]
