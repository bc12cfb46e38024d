"""The project's own images, as far as they can be told without building one."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from assay_operator.config import OperatorConfig
from tests.assay import Assay
from tests.cluster.cluster import Cluster
from tests.cluster.images import (
    CONSTRAINTS,
    RECIPES,
    TRAINER_REQUIREMENTS,
    Images,
    Recipe,
    packages,
)
from tests.cluster.settings import REPOSITORY, Cache
from tests.cluster.steps import order

FROM_THE_ENGINE = {"torch", "transformers", "safetensors"}
"""What trains, and all that it needs in turn: no test environment has it."""
PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def pins(path: Path) -> dict[str, str]:
    """Names and versions in a file of pinned requirements."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


ENGINE = pins(REPOSITORY / "images/engine/cpu/requirements.txt")
OURS = pins(REPOSITORY / TRAINER_REQUIREMENTS)


def needed(extras: tuple[str, ...]) -> Iterator[Requirement]:
    """All that extras of the project need, directly or not, as the test environment tells."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    texts += [text for extra in extras for text in project["optional-dependencies"][extra]]
    todo = [Requirement(text) for text in texts if not text.startswith("assay")]
    done: set[str] = set()
    while todo:
        requirement = todo.pop()
        yield requirement
        if requirement.name in FROM_THE_ENGINE or str(requirement) in done:
            continue
        done.add(str(requirement))
        for text in metadata.requires(requirement.name) or ():
            further = Requirement(text)
            wanted = ("", *requirement.extras)
            if further.marker is None or any(
                further.marker.evaluate({**PYTHON, "extra": extra}) for extra in wanted
            ):
                todo.append(further)


def test_the_cpu_trainer_finds_every_package_in_the_engines_environment_or_in_its_image() -> None:
    both = {**ENGINE, **OURS}
    names = set()
    for requirement in needed(("verifiers", "trainer")):
        name = canonicalize_name(requirement.name)
        names.add(name)
        assert name in both, f"{requirement} is neither there nor in {TRAINER_REQUIREMENTS}"
        assert requirement.specifier.contains(both[name], prereleases=True), requirement
    assert OURS.keys() - names == set(), "nothing needs these"
    assert OURS.keys() & ENGINE.keys() == set(), "these are in the engine's environment"


def test_the_cpu_trainers_packages_are_those_that_the_tests_run_with() -> None:
    tested = pins(CONSTRAINTS)
    assert {name: tested.get(name) for name in OURS} == OURS


def test_an_images_packages_are_fetched_for_its_own_python(tmp_path: Path) -> None:
    (whole,) = packages("operator").commands(tmp_path)
    assert "--only-binary" in whole and "kopf>=1.45,<2" in whole
    whole, alone = packages("trainer").commands(tmp_path)
    assert "hatchling>=1.26" in whole and "--no-deps" in alone
    assert alone[-1] == REPOSITORY / TRAINER_REQUIREMENTS
    for command in (whole, alone):
        assert command[command.index("--python-version") + 1] == "3.11"
        assert any(str(word).startswith("manylinux_2_27_") for word in command)


def test_another_requirement_is_another_set_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = packages("trainer").key
    assert packages("trainer").key == before != packages("operator").key
    monkeypatch.setattr("tests.cluster.images.PYTHON_VERSION", "3.12")
    assert packages("trainer").key != before


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_what_a_dockerfile_copies_is_in_its_context(recipe: Recipe) -> None:
    there = {place: path for place, path in recipe.inputs.items() if place != "Dockerfile"}
    text = (REPOSITORY / recipe.dockerfile).read_text().replace("\\\n", " ")
    # Stages after the one that is built do not matter.
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    if recipe.target:
        names = [re.search(r" AS (\S+)", stage.splitlines()[0]) for stage in stages]
        last = next(n for n, name in enumerate(names) if name and name[1] == recipe.target)
        stages = stages[: last + 1]
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY .*", "".join(stages), re.MULTILINE)]
    for sources in copied:
        if sources[0].startswith("--from="):
            continue
        for source in sources:
            known = source in there or any(place.startswith(f"{source}/") for place in there)
            assert known or (source in ("wheels", "wheel[s]") and recipe.wheels), source


@pytest.mark.parametrize("image", ["engine", "operator", "trainer"])
def test_what_a_dockerfile_copies_is_not_ignored(image: str) -> None:
    file = REPOSITORY / "images" / image / "Dockerfile"
    ignore = file.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[0] == "*"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)", file.read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert source.replace("[s]", "s") in let_in, source


def test_the_operators_image_has_what_the_operator_imports_of_the_verifiers() -> None:
    (recipe,) = (recipe for recipe in RECIPES if recipe.name == "operator")
    copied = {place for place in recipe.inputs if place.startswith("trainer/")}
    wanted = {
        f"trainer/{node.module.replace('.', '/')}.py"
        for path in (REPOSITORY / "operator").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("assay_verifiers")
        and node.module
    }  # fmt: skip
    assert wanted and wanted <= copied


def test_every_image_of_the_cluster_can_be_planned(tmp_path: Path) -> None:
    images = Images(Cache(tmp_path))
    names = order(list(images.steps()))
    for recipe in RECIPES:
        if recipe.wheels:
            assert names.index(packages(recipe.wheels).step) < names.index(recipe.step)
    references = {images.reference(recipe.name) for recipe in RECIPES}
    assert len(references) == len(RECIPES)


def test_the_clusters_operator_puts_the_mounted_environment_into_every_pod_that_needs_it(
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path)
    assay = Assay(Cluster.named("none", cache), cache)
    config = OperatorConfig.model_validate(assay.operator_config())
    templates = {
        "engine": config.engine.templates["cpu"],
        "router": config.router.template,
        "verifier": config.verifier.template,
        "trainer": config.trainer.templates["cpu"],
    }
    for name, template in templates.items():
        (container,) = template["spec"]["containers"]
        assert container["name"] == name
        assert container["volumeMounts"][0]["mountPath"] == "/opt/assay/engine"
    assert config.verifier.image == config.trainer.images["cpu"]
