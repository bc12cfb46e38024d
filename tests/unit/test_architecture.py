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
KERNELS = REPOSITORY / "kernels" / "assay_kernels"
PURE = ("api", "autoscaling", "inference", "training", "checkpoints")
PARTS = (*PURE, "cluster", "sglang", "handlers", "reconcilers", "activator")
ALLOWED: dict[str, set[str]] = {
    "api": set(),
    "autoscaling": set(),
    "inference": {"api", "autoscaling"},
    "training": {"api", "inference"},
    "checkpoints": {"api", "inference"},
    "cluster": {"api"},
    "sglang": {"api", "inference", "cluster"},
    "handlers": {*PURE, "cluster", "sglang"},
    "reconcilers": {*PURE, "cluster", "sglang"},
    "activator": set(),
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


@pytest.mark.parametrize("part", PURE)
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


def test_kernels_stand_between_the_algorithms_and_the_learner() -> None:
    """The packages import from each other, their modules do not."""
    paths = sorted(KERNELS.rglob("*.py"))
    assert paths
    for path in paths:
        foreign = {"assay_operator", "assay_verifiers", "kopf", "kubernetes", "transformers"}
        assert not foreign & roots(path), path.name
        taken = {name for name in imports(path) if name.startswith("assay_trainer")}
        assert all(name.startswith("assay_trainer.algorithms.") for name in taken), path.name
    users = {path.stem for path in TRAINER.rglob("*.py") if "assay_kernels" in roots(path)}
    assert users == {"kernels", "exact"}


def test_only_the_plugin_knows_sglang_and_it_needs_no_trainer() -> None:
    for path in KERNELS.rglob("*.py"):
        plugin = path.parent.name == "integrations"
        assert plugin or "sglang" not in roots(path), path.name
        assert not (plugin and "assay_trainer" in roots(path)), path.name


def test_an_image_without_kernels_can_train() -> None:
    """What begins a run does not import them; only what was chosen for them does."""
    parts = parts_of_the_trainer()
    assert not {name for name, needed in parts.items() if "exact" in needed}
    begins = ast.parse((TRAINER / "kernels.py").read_text()).body
    assert not {
        node.module
        for node in begins
        if isinstance(node, ast.ImportFrom) and "assay_kernels" in (node.module or "")
    }


def test_a_job_file_is_read_without_torch() -> None:
    for name in ("job.py", "settings.py", "algorithms/settings.py"):
        light = {"pydantic", "assay_trainer", "assay_verifiers", *sys.stdlib_module_names}
        assert roots(TRAINER / name) <= light, name
        taken = {name for name in imports(TRAINER / name) if name.startswith("assay_verifiers")}
        assert taken <= {"assay_verifiers.config", "assay_verifiers.jsonlines"}, name


def test_a_job_is_checked_and_checkpoints_are_listed_without_torch() -> None:
    """All that the command line imports before it trains, as the interpreter sees it."""
    parts = (
        *("settings", "job", "check", "manifest", "inventory", "storage", "cli"),
        *("inspection", "lastwords", "likeness", "tensorfiles"),
    )
    code = f"""import sys, assay_trainer.cli
missing = {{f"assay_trainer.{{part}}" for part in {parts!r}}} - {{*sys.modules}}
heavy = {{"torch", "numpy", "transformers", "safetensors", "matplotlib"}} & {{*sys.modules}}
print(sorted(missing), sorted(heavy))"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[] []\n", "")


def parts_of_the_trainer() -> dict[str, set[str]]:
    """Each module and the modules of the trainer that it needs to be imported."""
    names = {
        ".".join(path.relative_to(TRAINER).with_suffix("").parts): path
        for path in TRAINER.rglob("*.py")
        if path.name != "__init__.py"
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted.add(node.module)
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[name] = {other for other in names if f"assay_trainer.{other}" in wanted}
    return found


def test_the_trainers_imports_point_down() -> None:
    left = parts_of_the_trainer()
    while lowest := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in lowest:
            del left[name]
    assert not left, f"these import each other: {sorted(left)}"


def test_only_the_run_knows_engines_and_learner_both() -> None:
    """The loop does not: it is given them, so that a recording can stand in for engines."""
    users: dict[str, set[str]] = {}
    for name, needed in parts_of_the_trainer().items():
        for other in needed:
            users.setdefault(other, set()).add(name)
    assert users["learner"] == {"run"}
    assert users["engines"] == {"run", "weights", "broadcast"}
    assert users["rollout"] == users["data"] == users["loop"] == {"run"}
    assert not users.get("run") and users["cli"] == {"__main__"}


@pytest.mark.parametrize(
    "part",
    [
        *("batch", "recording", "items", "data", "engine", "engines", "rollout", "evaluate"),
        *("schedule", "metrics", "watch", "curve", "display", "status", "status_server"),
    ],
)
def test_what_asks_judges_and_watches_handles_no_tensors(part: str) -> None:
    assert "torch" not in roots(TRAINER / f"{part}.py")


@pytest.mark.parametrize(
    "part", ["batch", "likeness", "manifest", "schedule", "tensorfiles", "watch"]
)
def test_what_the_trainer_decides_from_plain_data_is_pure(part: str) -> None:
    shell = {"asyncio", "httpx", "os", "pathlib", "random", "subprocess", "threading", "time"}
    assert not shell & roots(TRAINER / f"{part}.py")


def test_algorithms_are_pure() -> None:
    """Tensors and settings: no process group, no clock, no file, no model."""
    for path in (TRAINER / "algorithms").glob("*.py"):
        light = {"pydantic", "torch", "assay_trainer", "__future__", "collections", "dataclasses"}
        assert roots(path) <= light | {"typing"}, path.name
        assert "torch.distributed" not in imports(path), path.name
