"""Rules in CEL, the Common Expression Language (cel.dev), over JSON: Google's own implementation.

Beside the standard functions a rule may use `sum(list)`, `round(number, digits)` and `date(text)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Any

from cel_expr_python import cel

VARIABLES = ("output", "source", "reference", "data")
_LONGEST_SHOWN = 80
_MOST_SHOWN = 6
_EXACT = 1 << 53

_PATH = re.compile(
    r"(?<![\w.\"'])(?:output|reference|data)(?:\.[A-Za-z_]\w*(?!\w|\()|\[\d+\])+", re.ASCII
)
_CALL = re.compile(r"(?<![\w.])(?:sum|round|date|size)\(", re.ASCII)
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Failed(ValueError):
    """A rule does not hold or cannot be evaluated, and why."""


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    # The shortest decimal that names the double is the number as the document wrote it.
    return Decimal(repr(value))


def _sum(values: Any) -> float:
    if not isinstance(values, list):
        raise ValueError("sum() takes a list of numbers")
    return float(sum((_decimal(value) for value in values), Decimal(0)))


def _round(value: Any, digits: int) -> float:
    number = _decimal(value)
    if not 0 <= digits <= 12 or abs(number) >= Decimal(10) ** 15:
        raise ValueError("round() takes numbers below 1e15 and 0 to 12 digits")
    return float(number.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _date(text: Any) -> datetime:
    if not isinstance(text, str) or not _ISO_DATE.fullmatch(text):
        raise ValueError(f"{text!r} is not a date of the form 2026-01-31")
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)


@lru_cache(maxsize=1)
def _environment() -> Any:
    kinds = cel.Type
    functions = [
        ("sum", kinds.DOUBLE, [kinds.DYN], _sum),
        ("round", kinds.DOUBLE, [kinds.DYN, kinds.INT], _round),
        ("date", kinds.TIMESTAMP, [kinds.DYN], _date),
    ]
    extension = cel.CelExtension(
        "assay",
        [
            cel.FunctionDecl(name, [cel.Overload(f"assay_{name}", result, takes, False, function)])
            for name, result, takes, function in functions
        ],
    )
    return cel.NewEnv(variables=dict.fromkeys(VARIABLES, kinds.DYN), extensions=[extension])


@lru_cache(maxsize=1024)
def compiled(rule: str) -> Any:
    """A rule, checked: what it names exists, and what it says is true or false.

    Raises:
        ValueError: it is not such a rule.
    """
    try:
        expression = _environment().compile(rule)
    except RuntimeError as reason:
        raise ValueError(str(reason).removesuffix(" [INVALID_ARGUMENT]")) from None
    if expression.return_type() not in (cel.Type.BOOL, cel.Type.DYN):
        raise ValueError(f"it says a {expression.return_type()}, not true or false")
    return expression


def uses(rule: str, variable: str) -> bool:
    """Whether a rule's text speaks of a variable."""
    return re.search(rf"(?<![\w.\"']){variable}(?!\w)", rule) is not None


def plain(value: Any) -> Any:
    """JSON as CEL shall see it: every number a double.

    JSON knows one kind of number, and whether a model writes 100 or 100.0 must not decide whether
    `output.net + output.tax` can be evaluated: CEL does not add an int to a double.

    Raises:
        Failed: an integer that no double holds exactly, so that comparing it would prove nothing.
    """
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        if abs(value) > _EXACT:
            raise Failed(f"the integer {str(value)[:40]} is too large to be compared exactly")
        return float(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()}


def require(rule: str, variables: Mapping[str, Any]) -> None:
    """Evaluates a rule.

    Args:
        rule: the CEL text.
        variables: all of `VARIABLES`, as `plain` gives them.

    Raises:
        Failed: it is not true; says with which values, or why it cannot be evaluated.
    """
    result = _evaluate(compiled(rule), variables)
    if isinstance(result, Failed):
        raise Failed(f"cannot be evaluated: {result}{_seen(rule, variables)}")
    if not isinstance(result, bool):
        raise Failed(f"is neither true nor false but {_show(result)}{_seen(rule, variables)}")
    if not result:
        raise Failed(f"is false{_seen(rule, variables)}")


def _evaluate(expression: Any, variables: Mapping[str, Any]) -> Any:
    try:
        value = expression.eval(data=dict(variables))
    except (RuntimeError, ValueError, TypeError, OverflowError) as reason:
        return Failed(str(reason))
    if value.type() == cel.Type.ERROR:
        return Failed(str(value.plain_value()))
    return value.plain_value()


def _seen(rule: str, variables: Mapping[str, Any]) -> str:
    """The values of the rule's parts that can be evaluated alone: what it compared."""
    parts = [(match.start(), match.end()) for match in _PATH.finditer(rule)]
    parts += [
        (match.start(), end)
        for match in _CALL.finditer(rule)
        if (end := _closing(rule, match.end())) is not None
    ]
    shown: dict[str, str] = {}
    for start, end in sorted(parts):
        text = rule[start:end]
        try:
            value = _evaluate(_environment().compile(text), variables)
        except RuntimeError:  # It uses a variable of a comprehension around it.
            continue
        if not isinstance(value, Failed):
            shown.setdefault(text, _show(value))
    listed = ", ".join(f"{text} = {value}" for text, value in list(shown.items())[:_MOST_SHOWN])
    return f" ({listed})" if listed else ""


def _closing(rule: str, start: int) -> int | None:
    depth = 1
    for index in range(start, len(rule)):
        depth += {"(": 1, ")": -1}.get(rule[index], 0)
        if depth == 0:
            return index + 1
    return None


def _show(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
