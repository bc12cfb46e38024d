"""The arrows of docs/architecture.md hold: imports point down, and the operator stays light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "operator" / "assay_operator"
PARTS = ("api", "inference", "cluster", "sglang", "handlers")
ALLOWED: dict[str, set[str]] = {
    "api": set(),
    "inference": {"api"},
    "cluster": {"api"},
    "sglang": {"api", "inference", "cluster"},
    "handlers": {"api", "inference", "cluster", "sglang"},
}
HEAVY = {"torch", "sglang", "transformers", "triton", "assay_trainer", "assay_kernels"}


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_down(part: str) -> None:
    for path in (PACKAGE / part).glob("*.py"):
        for name in imports(path):
            words = name.split(".")
            if words[0] != "assay_operator" or len(words) < 2 or words[1] not in PARTS:
                continue
            assert words[1] in ALLOWED[part] | {part}, f"{path.name} imports {name}"


def test_the_operator_is_light() -> None:
    for path in files():
        assert not HEAVY & {name.split(".")[0] for name in imports(path)}, path.name


def test_only_handlers_know_kopf() -> None:
    for path in files():
        if path.parent.name != "handlers":
            assert "kopf" not in {name.split(".")[0] for name in imports(path)}, path.name


@pytest.mark.parametrize("part", ["api", "inference"])
def test_the_core_is_pure(part: str) -> None:
    """No network, no clock, no event loop where decisions are made."""
    shell = {"aiohttp", "asyncio", "kubernetes", "kopf", "socket", "time", "random", "subprocess"}
    for path in (PACKAGE / part).glob("*.py"):
        assert not shell & {name.split(".")[0] for name in imports(path)}, path.name
