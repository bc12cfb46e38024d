"""The arrows of docs/architecture.md hold: imports point down, and the operator stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "operator" / "assay_operator"
VERIFIERS = REPOSITORY / "trainer" / "assay_verifiers"
TRAINER = REPOSITORY / "trainer" / "assay_trainer"
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


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_verifiers_know_neither_training_nor_kubernetes_nor_the_operator() -> None:
    paths = sorted(VERIFIERS.rglob("*.py"))
    assert paths
    for path in paths:
        foreign = HEAVY | {"kubernetes", "kopf", "assay_operator"}
        assert not foreign & roots(path), path.name


def test_a_verifiers_configuration_needs_only_pydantic() -> None:
    assert roots(VERIFIERS / "config.py") <= {"pydantic", *sys.stdlib_module_names}


def test_the_contract_needs_only_the_standard_library() -> None:
    assert roots(VERIFIERS / "contract.py") <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["statistics", "decision"])
def test_what_the_gate_decides_is_pure(module: str) -> None:
    names = {*imports(VERIFIERS / f"{module}.py")}
    ours = {name.split(".")[1] for name in names if name.startswith("assay_verifiers")}
    assert ours <= {"config", "contract", "statistics"}
    assert not {"asyncio", "httpx", "os", "pathlib", "random", "time"} & names


def test_the_operator_takes_only_configuration_from_the_verifiers() -> None:
    for path in files():
        taken = {name for name in imports(path) if name.split(".")[0] == "assay_verifiers"}
        assert taken <= {"assay_verifiers.config"}, path.name


def test_the_trainer_knows_neither_the_operator_nor_kubernetes() -> None:
    paths = sorted(TRAINER.rglob("*.py"))
    assert paths
    for path in paths:
        assert not {"assay_operator", "kopf", "kubernetes", "sglang"} & roots(path), path.name


def test_a_job_file_is_read_without_torch() -> None:
    """All that `assay-train check` imports, too, as the interpreter sees it."""
    for name in ("job.py", "settings.py", "algorithms/settings.py"):
        light = {"pydantic", "assay_trainer", "assay_verifiers", *sys.stdlib_module_names}
        assert roots(TRAINER / name) <= light, name
        taken = {name for name in imports(TRAINER / name) if name.startswith("assay_verifiers")}
        assert taken <= {"assay_verifiers.config", "assay_verifiers.jsonlines"}, name
    code = "import sys, assay_trainer.cli; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_algorithms_are_pure() -> None:
    """Tensors and settings: no process group, no clock, no file, no model."""
    for path in (TRAINER / "algorithms").glob("*.py"):
        light = {"pydantic", "torch", "assay_trainer", "__future__", "collections", "dataclasses"}
        assert roots(path) <= light | {"typing"}, path.name
        assert "torch.distributed" not in imports(path), path.name
