"""Whether an answer satisfies an SMT-LIB 2 script, by z3. Runs in a worker process.

The script is the item's and is trusted; the completion is not. Its values become z3 literals of
the constants' sorts and are substituted for the constants: none of it is parsed as SMT-LIB.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import z3

from assay_verifiers.contract import Verdict, error, ok, timeout, unparsed, wrong
from assay_verifiers.types.logic_answer import NoAnswer, Text, Tree, read_answer, symbol, trees

_DECLARES = frozenset({"declare-const", "declare-fun"})
_KEPT = _DECLARES | {
    "assert",
    "declare-datatype",
    "declare-datatypes",
    "define-const",
    "define-fun",
    "define-fun-rec",
    "define-funs-rec",
    "define-sort",
}
# z3's reader skips what it does not know with no more than a line on stderr, and a constraint that
# is skipped is a constraint that every answer satisfies: so what may stand in a script is listed.
_IGNORED = frozenset(
    {"check-sat", "exit", "get-info", "get-model", "get-value", "set-info", "set-logic"}
    | {"echo", "set-option"}
)
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,1000}(?:\.[0-9]{0,1000})?|\.[0-9]{1,1000})", re.ASCII)
_SCIENTIFIC = re.compile(r"([+-]?[0-9]{1,100}(?:\.[0-9]{0,100})?)[eE]([+-]?[0-9]{1,3})", re.ASCII)
_BITS = re.compile(r"#b[01]{1,4096}|#x[0-9a-fA-F]{1,1024}", re.ASCII)
_ESCAPE = re.compile(r"\\u\{([0-9a-fA-F]{1,5})\}|\\u([0-9a-fA-F]{4})", re.ASCII)
_LARGEST_CHARACTER = 0x2FFFF


class BrokenItem(ValueError):
    """The reference cannot be judged by, and why."""


@dataclass(frozen=True)
class Problem:
    """A script as z3 sees it: its constants by name and its assertions."""

    constants: dict[str, z3.ExprRef]
    assertions: tuple[z3.BoolRef, ...]


@lru_cache(maxsize=64)
def problem_of(script: str) -> Problem:
    """Reads a reference.

    Raises:
        BrokenItem: it is not SMT-LIB, or has no constant or no assertion, or declares what no
            answer can give a value to (functions, arrays, floating point, sorts without members).
    """
    kept: list[str] = []
    names: list[str] = []
    try:
        for tree, text in trees(script):
            head = tree[0] if isinstance(tree, list) and tree else tree
            if not isinstance(head, str) or head not in _KEPT | _IGNORED:
                raise BrokenItem(f"{text[:80]} may not stand in a reference")
            if head in _IGNORED:
                continue
            kept.append(text)
            if head in _DECLARES and isinstance(tree, list):
                if head == "declare-fun" and tree[2:3] != [[]]:
                    raise BrokenItem(f"{text[:80]} declares a function: no answer can give one")
                names.append(str(tree[1]))
    except (ValueError, IndexError) as reason:
        raise reason if isinstance(reason, BrokenItem) else BrokenItem(str(reason)) from None
    if not names:
        raise BrokenItem("it declares no constant")
    # Equations of each constant with itself bring out the constants with their sorts, those too
    # that stand in no assertion.
    kept.extend(f"(assert (= {name} {name}))" for name in names)
    try:
        parsed = list(z3.parse_smt2_string("\n".join(kept)))
    except z3.Z3Exception as reason:
        raise BrokenItem(_text(reason)) from None
    if len(parsed) <= len(names):
        raise BrokenItem("it asserts nothing")
    constants = {
        symbol(name): equation.arg(0)
        for name, equation in zip(names, parsed[-len(names) :], strict=True)
    }
    for name, constant in constants.items():
        if not _supported(constant.sort()):
            raise BrokenItem(f"{name} is of sort {constant.sort()}: no answer can give a value")
    return Problem(constants, tuple(parsed[: -len(names)]))


def check(script: str, completion: str, unique: bool, seconds: float) -> Verdict:
    """Judges one completion.

    The verdict is ok only where the assertions hold in every interpretation once the constants have
    their values. In SMT-LIB x/0 may be any number, so mere satisfiability would let an answer win
    by a division by zero.

    Args:
        script: the reference, SMT-LIB 2.
        completion: the model's text.
        unique: whether another model makes the item ambiguous, which is an `error`.
        seconds: z3's own deadline for all checks together.
    """
    ends = time.monotonic() + seconds
    try:
        problem = problem_of(script)
        values = _values(problem, completion)
    except BrokenItem as reason:
        return error(f"the item is broken: {reason}")
    except NoAnswer as reason:
        return unparsed(str(reason))
    if missing := [name for name in problem.constants if name not in values]:
        return wrong(f"no value for {', '.join(missing)}")
    pairs = [(problem.constants[name], value) for name, value in values.items()]
    return _decide(problem, pairs, unique, ends)


def _decide(
    problem: Problem, pairs: list[tuple[z3.ExprRef, z3.ExprRef]], unique: bool, ends: float
) -> Verdict:
    holds = [z3.substitute(assertion, *pairs) for assertion in problem.assertions]
    outcome = _solve(ends, z3.Not(z3.And(holds)))
    if outcome == z3.sat:
        return _failure(problem, holds, ends)
    if outcome == z3.unknown:
        return timeout("z3 could not decide in time whether the assertions hold")
    if not unique:
        return ok("satisfies every assertion")
    differs = z3.Or([constant != value for constant, value in pairs])
    return _uniqueness(_solve(ends, *problem.assertions, differs))


def _values(problem: Problem, completion: str) -> dict[str, z3.ExprRef]:
    values: dict[str, z3.ExprRef] = {}
    for name, raw in read_answer(completion, problem.constants).items():
        try:
            values[name] = literal(problem.constants[name].sort(), raw)
        except ValueError as reason:
            raise NoAnswer(f"the value of {name}: {reason}") from None
    return values


def _uniqueness(another: z3.CheckSatResult) -> Verdict:
    if another == z3.unsat:
        return ok("satisfies every assertion, and nothing else does")
    if another == z3.sat:
        return error("the item is ambiguous: the answer satisfies it, and so does another")
    return timeout("z3 could not decide whether the answer is the only one")


def _solve(ends: float, *assertions: z3.ExprRef) -> z3.CheckSatResult:
    left = ends - time.monotonic()
    if left <= 0:
        return z3.unknown
    solver = z3.Solver()
    solver.set("timeout", max(1, int(left * 1000)))
    solver.add(*assertions)
    try:
        return solver.check()
    except z3.Z3Exception:
        return z3.unknown


def _failure(problem: Problem, holds: list[z3.BoolRef], ends: float) -> Verdict:
    # Where nothing satisfies the item, the answer is not to blame.
    if _solve(ends, *problem.assertions) == z3.unsat:
        return error("the item is broken: nothing satisfies its assertions")
    for assertion, substituted in zip(problem.assertions, holds, strict=True):
        if _solve(ends, z3.Not(substituted)) != z3.unsat:
            return wrong(f"does not satisfy {_show(' '.join(assertion.sexpr().split()), 300)}")
    return wrong("does not satisfy the assertions together")


def literal(sort: z3.SortRef, raw: Any) -> z3.ExprRef:
    """A z3 literal of a sort, of a value that a completion gives.

    Args:
        sort: the constant's.
        raw: a JSON value, or a `Text` with a tree of tokens.

    Raises:
        ValueError: it is no literal of that sort.
    """
    kind = sort.kind()
    tree = _tree(raw)
    if kind == z3.Z3_BOOL_SORT:
        lowered = tree.lower() if isinstance(tree, str) else ""
        if lowered not in ("true", "false"):
            raise ValueError(f"{_show(raw)} is neither true nor false")
        return z3.BoolVal(lowered == "true")
    if kind in (z3.Z3_INT_SORT, z3.Z3_REAL_SORT):
        number = _number(tree)
        if kind == z3.Z3_REAL_SORT:
            return z3.RatVal(number.numerator, number.denominator)
        if number.denominator != 1:
            raise ValueError(f"{_show(raw)} is not an integer")
        return z3.IntVal(number.numerator)
    if kind == z3.Z3_BV_SORT:
        return z3.BitVecVal(_bits(tree, sort.size()), sort.size())
    if kind == z3.Z3_SEQ_SORT:
        return z3.StringVal(_string(raw))
    return _member(sort, tree)


def _tree(raw: Any) -> Tree:
    """A value as a tree of tokens. A JSON string stands for the token that it holds."""
    if isinstance(raw, Text):
        return raw.tree
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | float):
        return repr(raw)
    if isinstance(raw, str):
        text = raw.strip()
        if text.startswith("("):
            found = [tree for tree, _ in trees(text, limit=200)]
            if len(found) == 1:
                return found[0]
        return text
    raise ValueError(f"{_show(raw)} is no value of a constant")


def _number(tree: Tree) -> Fraction:
    if isinstance(tree, str):
        top, slash, bottom = tree.partition("/")
        if slash and _INTEGER.fullmatch(top.strip()) and _INTEGER.fullmatch(bottom.strip()):
            return _quotient(Fraction(int(top)), Fraction(int(bottom)))
        if _NUMBER.fullmatch(tree):
            return Fraction(tree)
        if (match := _SCIENTIFIC.fullmatch(tree)) is not None:
            return Fraction(match[1]) * Fraction(10) ** int(match[2])
    elif len(tree) == 2 and tree[0] == "-" and not _negated(tree[1]):
        return -_number(tree[1])
    elif len(tree) == 3 and tree[0] == "/" and not any(_quotients(part) for part in tree[1:]):
        return _quotient(_number(tree[1]), _number(tree[2]))
    raise ValueError(f"{_show(tree)} is not a number")


# A literal has one sign and one fraction bar at most, which also bounds the recursion above.
def _negated(tree: Tree) -> bool:
    return isinstance(tree, list) and tree[:1] == ["-"]


def _quotients(tree: Tree) -> bool:
    inner = tree[1] if _negated(tree) and len(tree) == 2 else tree
    return isinstance(inner, list)


def _quotient(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise ValueError("a division by zero is not a number")
    return top / bottom


def _bits(tree: Tree, width: int) -> int:
    if isinstance(tree, str) and _BITS.fullmatch(tree):
        per_digit, base = (1, 2) if tree[1] == "b" else (4, 16)
        if per_digit * (len(tree) - 2) != width:
            raise ValueError(f"{_show(tree)} is not {width} bits wide")
        return int(tree[2:], base)
    if isinstance(tree, list) and len(tree) == 3 and tree[0] == "_":
        digits = tree[1][2:] if isinstance(tree[1], str) and tree[1].startswith("bv") else ""
        if not _INTEGER.fullmatch(digits) or tree[2] != str(width):
            raise ValueError(f"{_show(tree)} is not a bit vector of {width} bits")
        tree = digits
    number = _number(tree)
    if number.denominator != 1 or not -(1 << (width - 1)) <= number < (1 << width):
        raise ValueError(f"{_show(tree)} does not fit in {width} bits")
    return int(number)


def _string(raw: Any) -> str:
    """A text in z3's notation, in which a backslash would start an escape."""
    text = raw
    if isinstance(raw, Text):
        token = raw.tree
        if not isinstance(token, str) or len(token) < 2 or token[0] != '"':
            raise ValueError(f"{_show(raw)} is not a string in quotes")
        text = _ESCAPE.sub(
            lambda match: chr(int(match[1] or match[2], 16)), token[1:-1].replace('""', '"')
        )
    if not isinstance(text, str):
        raise ValueError(f"{_show(raw)} is not a string")
    if any(ord(character) > _LARGEST_CHARACTER for character in text):
        raise ValueError("it holds a character that SMT-LIB strings cannot hold")
    return "".join(
        character if " " <= character <= "~" and character != "\\" else f"\\u{{{ord(character):x}}}"
        for character in text
    )


def _member(sort: Any, tree: Tree) -> z3.ExprRef:
    if isinstance(tree, list) and len(tree) == 3 and tree[0] == "as":
        tree = tree[1]
    name = symbol(tree)
    for index in range(sort.num_constructors()):
        if sort.constructor(index).name() == name:
            member: z3.ExprRef = sort.constructor(index)()
            return member
    members = ", ".join(sort.constructor(i).name() for i in range(sort.num_constructors()))
    raise ValueError(f"{_show(tree)} is none of {members[:200]}")


def _supported(sort: Any) -> bool:
    if sort.kind() == z3.Z3_SEQ_SORT:
        return bool(sort.is_string())
    if sort.kind() == z3.Z3_DATATYPE_SORT:
        return all(sort.constructor(i).arity() == 0 for i in range(sort.num_constructors()))
    return sort.kind() in (z3.Z3_BOOL_SORT, z3.Z3_INT_SORT, z3.Z3_REAL_SORT, z3.Z3_BV_SORT)


def _show(value: Any, longest: int = 60) -> str:
    text = str(value.tree if isinstance(value, Text) else value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _text(reason: z3.Z3Exception) -> str:
    value = reason.value
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()
