"""Whether an answer equals a reference, as mathematics. Runs in worker processes: it may hang.

Numbers are compared exactly. Everything else is read by math-verify's LaTeX parser; its own time
limits, which need SIGALRM, are off, and the caller's deadline kills the process instead.

Where math-verify is more generous than a reward may be, this is stricter: several values never
equal one, numbers side by side ("9 9") are no sum, a subscript on a number is a base, prose between
numbers is no product, and small numbers are compared relative to their size.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from assay_verifiers.contract import Status
from assay_verifiers.types.math_text import (
    Several,
    Unreadable,
    normalised,
    plain,
    prose,
    same_quantity,
    same_unit,
    several,
    split_outside,
    split_unit,
)

# Both packages warn once that their time limits are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

UnitMode = Literal["ignore", "require"]
_LATEX = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
        )
    )
]
# A value with more digits is not computed: 9^(9^9) would fill the memory.
_MOST_DIGITS = 10_000
_MOST_EXPONENT_DIGITS = 12
_LONGEST_TEXT = 60
_SIDE_BY_SIDE = re.compile(r"\d\s+\d|\d\s*\(\s*\d+\s*\)|\)\s*\(\s*\d+\s*\)|\)\s*\d")
_LOGARITHM = re.compile(r"\\log ?_ ?(?:\d|\{\d+\})")
# What math-verify drops before it reads, so that 1'8 would be 18.
_DROPPED = re.compile(r"[\"'$]|\\text\s*\{\s*\}|,?\\[lc]?dots|\\!")
_BASE = re.compile(r"\d ?_")
_TIME = re.compile(r"\d{1,2}:\d\d")
_RELATION = re.compile(
    r"[<>=]|\\(?:le|ge|leq|geq|lt|gt|neq?|in|cup|cap|mathbb|emptyset)(?![A-Za-z])"
)


class _BadReference(ValueError):
    pass


def judge(
    answer: str, references: Sequence[str], tolerance: float, unit: UnitMode
) -> tuple[Status, str]:
    """Whether an answer equals one of the references.

    Args:
        answer: as `math_extract.extract` gives it.
        references: as `math_extract.reference_text` gives them.
        tolerance: how far two numbers may lie apart where one is a decimal.
        unit: whether a reference's unit must stand in the answer.

    Returns:
        A status of `contract.Status` and a detail. Exceptions of the comparison are not caught:
        whoever calls makes them `error`.
    """
    broken, unread = "", ""
    for reference in references:
        try:
            if _equal(reference, answer, tolerance, unit):
                return "ok", f"{answer} equals {reference}"
        except _BadReference as reason:
            broken = str(reason)
        except Unreadable as reason:
            unread = str(reason)
    if broken:
        return "error", broken
    if unread:
        return "unparsed", unread
    return "wrong", f"{answer} is not {' or '.join(references)}"


# One of each kind of expression that answers are commonly made of.
_TYPICAL = (
    (r"\frac{3\sqrt{2}}{5}", r"\frac{3}{5} \sqrt{2}"),
    (r"\sqrt[3]{16} + 1", r"2\sqrt[3]{2} + \sqrt{1}"),
    (r"(x+2)(x-3)", r"x^2 - x - 6"),
    (r"\frac{x^{2}-1}{x+1}", r"x-1"),
    (r"y = 2x + 1", r"y = 1 + 2x"),
    (r"\left(-\infty, \frac{1}{2}\right] \cup [3, \infty)", r"(-\infty, 1/2] \cup [3, \infty)"),
    (r"x < 5", r"(-\infty, 5)"),
    (r"1 \le x \le 2", r"[1, 2]"),
    (r"\frac{7\pi}{4}", r"7 \pi / 4"),
    (r"2\sin \frac{\pi}{3}", r"\sqrt{3}"),
    (r"\tan^{-1} x + \cos(2x)", r"\arctan x + 1 - 2 \sin^2 x"),
    (r"\log_{2} 3", r"\frac{\ln 3}{\ln 2}"),
    (r"e^{2x}", r"\exp(2x)"),
    (r"3 + 4i", r"4i + 3"),
    (r"\begin{pmatrix} 1 & x\\3 & 4 \end{pmatrix}", r"\begin{bmatrix} 1 & x\\3 & 5 \end{bmatrix}"),
    (r"\binom{5}{2} \cdot 3! - |x|", r"60 - |x|"),
    (r"2^{10} \times 3", r"3072"),
    (r"0.1 + x", r"x + \frac{1}{10}"),
    (r"\{1, -2\}", r"-2, x = 1"),
)  # fmt: skip


def warm_up() -> None:
    """Judges typical answers, in the process that workers are forked from.

    The parser learns its grammar's decisions from what it reads. A worker that has not learnt them
    takes some ten times longer, so that items after a killed worker would miss their deadline.
    """
    for reference, answer in _TYPICAL:
        judge(answer, [reference], 1e-6, "ignore")


def _equal(reference: str, answer: str, tolerance: float, unit: UnitMode) -> bool:
    if _bare(reference) == _bare(answer):
        return True
    known, given = plain(reference), plain(answer)
    if known is not None and given is not None:
        return same_quantity(known, given, tolerance, unit)
    if _is_text(reference):
        return _words(reference) == _words(answer)
    if known is not None and unit == "require" and known.unit:
        return False
    return _equal_lists(reference, answer, tolerance, unit)


def _equal_lists(reference: str, answer: str, tolerance: float, unit: UnitMode) -> bool:
    known, given = several(reference), several(answer)

    def same(one: str, other: str) -> bool:
        return _equal(one, other, tolerance, unit)

    if known is None and given is None:
        return _equal_expressions(reference, answer, tolerance, unit)
    if known is None or given is None:
        listed, single = (given, reference) if known is None else (known, answer)
        if listed is not None and listed.kind == "{}" and len(listed.parts) == 1:
            return same(single, listed.parts[0])
        # A relation may say the same as an interval; a single value is never several.
        return bool(_RELATION.search(single)) and _by_math_verify(reference, answer, tolerance)
    if len(known.parts) != len(given.parts):
        return "union" in (known.kind, given.kind) and _by_math_verify(reference, answer, tolerance)
    return _equal_parts(known, given, same)


def _equal_parts(known: Several, given: Several, same: Callable[[str, str], bool]) -> bool:
    """Whether as many values are the same: in any order, or in a pair's or an interval's."""
    if {known.kind, given.kind} <= {"list", "{}", "union"}:
        return _same_bag(known.parts, given.parts, same)
    if known.kind != given.kind and {known.kind, given.kind} != {"()", "list"}:
        return False
    return all(same(*pair) for pair in zip(known.parts, given.parts, strict=True))


def _same_bag(known: Sequence[str], given: Sequence[str], same: Callable[[str, str], bool]) -> bool:
    """Whether each known value is met by a given one of its own."""
    left = list(given)
    for value in known:
        met = next((place for place, other in enumerate(left) if same(value, other)), None)
        if met is None:
            return False
        del left[met]
    return True


def _equal_expressions(reference: str, answer: str, tolerance: float, unit: UnitMode) -> bool:
    if _BASE.search(reference) or _BASE.search(answer):
        return re.sub("[{}]", "", _bare(reference)) == re.sub("[{}]", "", _bare(answer))
    reference, wanted = split_unit(reference)
    answer, given = split_unit(answer)
    if unit == "require" and wanted and not same_unit(wanted, given):
        return False
    if (wanted or given) and plain(reference) and plain(answer):
        return _equal(reference, answer, tolerance, "ignore")
    one, other = _sides(reference), _sides(answer)
    if len(one) == 1 and len(other) > 1:
        # "x = 18", "3 + 15 = 18": the last side is the answer; "17 = 18" is two.
        answers = [side for side in other[:-1] if plain(side)] + other[-1:]
        return all(_equal(reference, side, tolerance, unit) for side in answers)
    if len(one) == 2 and len(other) == 1 and re.fullmatch(r"\\?[A-Za-z_{}\d]+", one[0]):
        return _equal(one[1], answer, tolerance, unit)
    return _by_math_verify(reference, answer, tolerance)


def _sides(text: str) -> list[str]:
    if re.search(r"[<>!=]=", text):
        return [text]
    return [side for side in split_outside(text, "=") if side] or [text]


def _by_math_verify(reference: str, answer: str, tolerance: float) -> bool:
    try:
        known = _read(reference)
    except Unreadable as reason:
        raise _BadReference(f"the reference {reference!r} cannot be read: {reason}") from reason
    given = _read(answer)
    _refuse_giants(given)
    if _is_number(known) and _is_number(given):
        return _equal_numbers(known, given, tolerance)
    digits = 15 if tolerance <= 0 else max(0, min(15, round(-math.log10(tolerance))))
    return bool(
        verify(known, given, float_rounding=digits, timeout_seconds=None, raise_on_error=True)
    )


def _read(text: str) -> Any:
    """A sympy object.

    Raises:
        Unreadable: it is no expression that could be read without guessing.
    """
    text = normalised(text).replace("**", "^")
    if words := prose(text):
        raise Unreadable(f"words in the expression: {' '.join(words)[:100]}")
    if _SIDE_BY_SIDE.search(_DROPPED.sub(" ", _LOGARITHM.sub("", text))):
        raise Unreadable(f"numbers side by side: {text[:100]}")
    found = parse(
        f"\\boxed{{{text}}}", _LATEX, "no_fallback", parsing_timeout=None, raise_on_error=True
    )
    if len(found) != 1:
        raise Unreadable(f"not an expression: {text[:100]}")
    return found[0]


def _refuse_giants(expression: Any) -> None:
    try:
        if isinstance(expression, sympy.Basic) and _digits(expression) > _MOST_DIGITS:
            raise Unreadable("the answer's value is too large to be computed")
    except (OverflowError, RecursionError) as reason:
        raise Unreadable("the answer is too large or too deep to be computed") from reason


def _digits(expression: sympy.Basic) -> float:
    """About how many digits computing an expression takes; infinity where it is hopeless."""
    if isinstance(expression, sympy.Integer):
        return abs(int(expression)).bit_length() * 0.302
    inner = [_digits(argument) for argument in expression.args] or [1.0]
    most = max(inner)
    if expression.is_number and isinstance(expression, (sympy.factorial, sympy.binomial)):
        return math.inf if inner[0] > _MOST_EXPONENT_DIGITS else 10 ** inner[0] * inner[0]
    if isinstance(expression, sympy.Pow) and expression.exp.is_number:
        if expression.exp.is_Rational and inner[1] <= _MOST_EXPONENT_DIGITS:
            return max(most, inner[0] * abs(float(expression.exp)))
        return math.inf if inner[1] > _MOST_EXPONENT_DIGITS else inner[0] * 10 ** inner[1]
    return sum(inner) if isinstance(expression, sympy.Mul) else most


def _is_number(expression: Any) -> bool:
    return isinstance(expression, sympy.Expr) and not expression.free_symbols


def _equal_numbers(known: sympy.Expr, given: sympy.Expr, tolerance: float) -> bool:
    known, given = known.doit(), given.doit()
    if known == given:
        return True
    if known.is_Rational and given.is_Rational:
        return False
    one, other = sympy.N(known, 40), sympy.N(given, 40)
    if not (one.is_finite and other.is_finite):
        return bool(one == other) and one is not sympy.nan
    distance, size = abs(one - other), max(abs(one), abs(other), 1)
    if known.has(sympy.Float) or given.has(sympy.Float):
        return bool(distance <= tolerance)
    return bool(distance <= size * sympy.Float("1e-30", 40))


def _bare(text: str) -> str:
    # A space between digits or letters means something: 1 1/2 is not 11/2.
    return re.sub(r"(?<![0-9A-Za-z]) +| +(?![0-9A-Za-z])", "", normalised(text))


def _words(text: str) -> str:
    spoken = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", normalised(text))
    return " ".join(spoken.lower().strip("().* ").split())


def _is_text(reference: str) -> bool:
    """Whether a reference is a name, a few words or a time of day, and no expression."""
    spoken = _words(reference)
    if "\\text" in reference and re.fullmatch(r"[^\\{}\d=<>+^]+", spoken):
        return True
    in_words = bool(prose(split_unit(reference)[0]))
    if in_words and len(spoken) > _LONGEST_TEXT:
        raise _BadReference(f"the reference is prose without a marked answer: {spoken[:100]}")
    return in_words or bool(_TIME.match(spoken))
