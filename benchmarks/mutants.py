"""Programs with one small error each, made from a right one: what a test should catch.

The operators are the usual ones of mutation testing (DeMillo, Lipton and Sayward 1978; Offutt et
al. 1996): comparisons, arithmetic, logic, constants, bounds, returned values, left-out statements.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitXor: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One program with one error.

    Attributes:
        change: the line and what was changed in it.
        source: the program.
    """

    change: str
    source: str


def mutants(source: str, entry: str, count: int, seed: str) -> list[Mutant]:
    """Mutants of a function, each different from the original and from the others.

    Args:
        source: a program that defines it.
        entry: the function's name; nothing else is changed.
        count: how many at most, drawn at random.
        seed: the same seed gives the same mutants.
    """
    original = ast.parse(source)
    seen = {ast.unparse(original)}
    found = []
    for position, node in enumerate(ast.walk(original)):
        for name, changed in _changes(node):
            tree = copy.deepcopy(original)
            target = list(ast.walk(tree))[position]
            if not _inside(tree, target, entry):
                continue
            _replace(tree, target, changed)
            text = ast.unparse(ast.fix_missing_locations(tree))
            if text not in seen:
                seen.add(text)
                line = getattr(node, "lineno", 0)
                found.append(Mutant(f"line {line}: {name}", text))
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    return sorted(chosen, key=lambda mutant: mutant.change)


def _inside(tree: ast.Module, target: ast.AST, entry: str) -> bool:
    functions = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry
    ]
    docstring = functions[-1].body[0]
    inside = any(node is target for part in functions[-1].body for node in ast.walk(part))
    return inside and not any(node is target for node in ast.walk(docstring))


def _replace(tree: ast.Module, target: ast.AST, changed: ast.AST) -> None:
    class Replacer(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return changed if node is target else self.generic_visit(node)

    Replacer().visit(tree)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What can be made of a node, with the change's name."""
    yield from _expressions(node)
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield "condition negated", changed
    elif isinstance(node, ast.AugAssign) and type(node.op) in _COMPUTED:
        operator = _COMPUTED[type(node.op)]
        yield (
            f"{ast.unparse(node)}: {operator.__name__}",
            ast.AugAssign(node.target, operator(), node.value),
        )
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return None", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Break):
        yield "continue instead of break", ast.Continue()
    elif isinstance(node, ast.Continue):
        yield "break instead of continue", ast.Break()
    if isinstance(node, ast.Expr | ast.AugAssign) or (
        isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name)
    ):
        yield f"without {ast.unparse(node)[:60]}", ast.Pass()


def _expressions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    text = ast.unparse(node)[:60] if isinstance(node, ast.expr) else ""
    match node:
        case ast.Compare(left, [operator, *others], values):
            changed = _COMPARED[type(operator)]
            yield f"{text}: {changed.__name__}", ast.Compare(left, [changed(), *others], values)
        case ast.BinOp(left, operator, right) if type(operator) in _COMPUTED:
            other = _COMPUTED[type(operator)]
            yield f"{text}: {other.__name__}", ast.BinOp(left, other(), right)
        case ast.BoolOp(operator, values):
            joined = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield f"{text}: {type(joined).__name__}", ast.BoolOp(joined, values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield f"{text}: without its sign", operand
        case ast.Constant(bool() as value):
            yield f"{value}: flipped", ast.Constant(not value)
        case ast.Constant(int() as value):
            yield f"{value}: plus 1", ast.Constant(value + 1)
            yield f"{value}: minus 1", ast.Constant(value - 1)
        case ast.Constant(str() as value):
            yield f"{value!r}: another text", ast.Constant("" if value else "x")
        case ast.Slice(lower, upper, step) if upper is not None:
            yield f"{text}: upper bound minus 1", ast.Slice(lower, _minus_one(upper), step)
        case ast.Slice(lower, upper, step) if lower is not None:
            yield f"{text}: lower bound minus 1", ast.Slice(_minus_one(lower), upper, step)
        case ast.Call(ast.Name("range") as function, [*first, last], []):
            yield f"{text}: one less", ast.Call(function, [*first, _minus_one(last)], [])


def _minus_one(value: ast.expr) -> ast.expr:
    return ast.BinOp(value, ast.Sub(), ast.Constant(1))
