"""The project's own images, built on the Docker engine that the test cluster runs on.

    images = Images(Cache.default())
    up(extra_steps=images.steps(needs=(plan.BASE,)))
    images.reference("operator")     # assay/operator:0.1.0-3f9c...

An image's tag is the key of everything that went into it, so an unchanged one is neither built nor
loaded into a cluster again, and two checkouts never overwrite each other's.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tests.cluster.display import choose_display
from tests.cluster.engine import image_exists
from tests.cluster.errors import ClusterError
from tests.cluster.files import content_key
from tests.cluster.processes import capture
from tests.cluster.settings import BASE_IMAGE, DEBIAN_SUITE, REPOSITORY, Cache
from tests.cluster.steps import Step, StepRun, run_steps

# Debian 12's Python, and the platform tags that its pip accepts.
PYTHON_VERSION = "3.11"
# Debian 12 has glibc 2.36; wheels for an older one run as well.
WHEEL_PLATFORMS = (
    *(f"manylinux_2_{minor}" for minor in range(36, 4, -1)),
    *("manylinux2014", "manylinux2010", "manylinux1"),
)
BASE_STEP = "Python base image"
KEPT_TAGS = 3
CONSTRAINTS = REPOSITORY / "constraints.txt"
TRAINER_REQUIREMENTS = "images/trainer/cpu-requirements.txt"
# The builder that needs no plugin, so that it is there with every Docker.
BUILDER = {"DOCKER_BUILDKIT": "0"}


@dataclass(frozen=True)
class Recipe:
    """One image: its Dockerfile and what stands beside it in the build context.

    Attributes:
        name: the image is called assay/NAME.
        dockerfile: relative to the checkout.
        context: the folder of the checkout that the Dockerfile takes for its context.
        sources: what it takes of it, files and folders.
        target: the Dockerfile's stage; the last one where it is empty.
        wheels: name of the packages that are in the context too; none where it is empty.
        expected_seconds: what a build takes.
    """

    name: str
    dockerfile: str
    context: str
    sources: tuple[str, ...]
    target: str = ""
    wheels: str = ""
    expected_seconds: float = 20.0

    @property
    def step(self) -> str:
        return f"{self.name} image"

    @property
    def inputs(self) -> dict[str, Path]:
        """What the image is made of, but the base and the wheels, by place in the context."""
        root = REPOSITORY / self.context
        found = {"Dockerfile": REPOSITORY / self.dockerfile}
        for source in self.sources:
            path = root / source
            if not path.exists():
                raise ClusterError(f"the {self.step} needs {path}, which does not exist")
            for file in [path] if path.is_file() else _files(path):
                found[file.relative_to(root).as_posix()] = file
        return dict(sorted(found.items()))


RECIPES = (
    Recipe(
        "operator",
        "images/operator/Dockerfile",
        ".",
        (
            *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "operator"),
            *("trainer/assay_verifiers/__init__.py", "trainer/assay_verifiers/config.py"),
        ),
        wheels="operator",
        expected_seconds=50.0,
    ),
    # Engine and router alike: both are packages in the environment that the nodes mount.
    Recipe(
        "engine-cpu",
        "images/engine/Dockerfile.cpu",
        ".",
        (
            *("pyproject.toml", "kernels/assay_kernels"),
            *("images/engine/launch.py", "images/engine/add_plugin.py"),
        ),
        target="slim",
    ),
    # Trainer, gate and inspection: they too find most packages in that environment.
    Recipe(
        "trainer-cpu",
        "images/trainer/Dockerfile.cpu",
        ".",
        ("pyproject.toml", "README.md", "LICENSE", "trainer", TRAINER_REQUIREMENTS),
        wheels="trainer",
        expected_seconds=90.0,
    ),
)


@dataclass(frozen=True)
class Packages:
    """Python packages that are fetched for an image before it is built.

    Attributes:
        name: of the set.
        whole: requirements that come with all that they need, as wheels.
        alone: a file of pinned ones that come without, as wheels where there are any.
    """

    name: str
    whole: tuple[str, ...]
    alone: Path | None = None

    @property
    def step(self) -> str:
        return f"{self.name}'s packages"

    @property
    def key(self) -> str:
        """Changes with what would be fetched."""
        alone = [self.alone] if self.alone else []
        return content_key(CONSTRAINTS, *alone, *self.whole, PYTHON_VERSION, _architecture())

    def commands(self, folder: Path) -> list[list[str | Path]]:
        """The calls of pip that fetch them into `folder`.

        pip takes a foreign platform only where it builds nothing: for wheels alone, or where it
        need not look for what the packages need.
        """
        wheels = ("--constraint", CONSTRAINTS, "--only-binary", ":all:")
        found: list[list[str | Path]] = [[*_download(folder), *wheels, *self.whole]]
        if self.alone:
            found.append([*_download(folder), "--no-deps", "--requirement", self.alone])
        return found


def packages(name: str) -> Packages:
    """A set of packages by its name."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    builds = project["build-system"]["requires"]
    if name == "operator":
        extra = project["project"]["optional-dependencies"]["operator"]
        return Packages(name, (*project["project"]["dependencies"], *extra, *builds))
    # What cpu-requirements.txt needs in turn stands in it or is in the engine's environment. A few
    # come as sources, and setuptools builds those.
    return Packages(name, (*builds, "setuptools>=77"), REPOSITORY / TRAINER_REQUIREMENTS)


def _download(folder: Path) -> list[str | Path]:
    """Wheels for the images' Python, whatever Python runs here."""
    platforms = (f"{name}_{_architecture()}" for name in WHEEL_PLATFORMS)
    return [
        *(sys.executable, "-m", "pip", "download", "--progress-bar", "off"),
        *("--disable-pip-version-check", "--dest", folder),
        *("--implementation", "cp", "--python-version", PYTHON_VERSION),
        *(word for tag in platforms for word in ("--platform", tag)),
    ]


def _files(folder: Path) -> list[Path]:
    """The files in `folder`, without what Python leaves behind."""
    return [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


class Images:
    """Builds the images of `RECIPES`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._references: dict[str, str] = {}

    @cached_property
    def _project(self) -> dict[str, Any]:
        return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())

    def _fetched(self, name: str) -> Path:
        """The folder of a set of packages."""
        return self._cache.images / f"{name}-wheels-{packages(name).key}"

    @cached_property
    def _base(self) -> str:
        key = content_key(REPOSITORY / "images/base/Dockerfile", BASE_IMAGE)
        return f"assay/base:{DEBIAN_SUITE}-{key}"

    def reference(self, name: str) -> str:
        """The image's name with its tag; it need not be built yet.

        It stays the same for the life of this object, even if somebody edits a file meanwhile.
        """
        if name not in self._references:
            self._references[name] = self._reference(_recipe(name))
        return self._references[name]

    def _reference(self, recipe: Recipe) -> str:
        wheels = self._fetched(recipe.wheels).name if recipe.wheels else ""
        parts = [part for place, path in recipe.inputs.items() for part in (place, path)]
        version = self._project["project"]["version"]
        key = content_key(self._base, wheels, recipe.target, *parts)
        return f"assay/{recipe.name}:{version}-{key}"

    def steps(
        self, names: Iterable[str] | None = None, needs: tuple[str, ...] = ()
    ) -> tuple[Step, ...]:
        """Steps that build the images.

        Args:
            names: which ones; all of them by default.
            needs: steps after which the Docker engine answers and `settings.BASE_IMAGE` exists.
        """
        recipes = [_recipe(name) for name in names] if names is not None else list(RECIPES)
        steps = [Step(BASE_STEP, self._build_base, needs, 25.0)]
        for name in dict.fromkeys(recipe.wheels for recipe in recipes if recipe.wheels):
            steps.append(Step(packages(name).step, partial(self._fetch, name), (), 15.0))
        for recipe in recipes:
            fetched = (packages(recipe.wheels).step,) if recipe.wheels else ()
            before = (BASE_STEP, *fetched)
            steps.append(
                Step(recipe.step, partial(self.build, recipe), before, recipe.expected_seconds)
            )
        return tuple(steps)

    def build(self, recipe: Recipe, run: StepRun) -> None:
        """Build one image, unless it is there."""
        reference = self.reference(recipe.name)
        if image_exists(reference):
            run.reuse()
            return
        with tempfile.TemporaryDirectory(prefix="assay-context-") as folder:
            context = Path(folder)
            for place, path in recipe.inputs.items():
                target = context / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
            if recipe.wheels:
                shutil.copytree(self._fetched(recipe.wheels), context / "wheels")
            run.command(
                "docker", "build", "--tag", reference, "--target", recipe.target,
                "--build-arg", f"BASE_IMAGE={self._base}", context,
                env=BUILDER, on_line=_note_steps(run),
            )  # fmt: skip
        _drop_old_tags(reference)

    def _build_base(self, run: StepRun) -> None:
        if image_exists(self._base):
            run.reuse()
            return
        run.command(
            "docker", "build", "--tag", self._base, "--build-arg", f"BASE={BASE_IMAGE}",
            REPOSITORY / "images/base", env=BUILDER,
        )  # fmt: skip

    def _fetch(self, name: str, run: StepRun) -> None:
        """Download on this machine, whose pip knows its way through proxies and certificates; a
        container would have to be told."""
        folder = self._fetched(name)
        if folder.exists():
            run.reuse()
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".wheels-", dir=folder.parent))
        try:
            for command in packages(name).commands(aside):
                run.command(*command)
            aside.chmod(0o755)
            aside.rename(folder)
        except OSError:
            # Another run of ours was faster.
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def build(names: Iterable[str] | None = None, cache: Cache | None = None) -> dict[str, str]:
    """Build images where the Docker engine and the base image are there already.

    Returns:
        each image's name with its tag, by its short name.
    """
    cache = cache or Cache.default()
    wanted = list(names) if names is not None else [recipe.name for recipe in RECIPES]
    images = Images(cache)
    if not image_exists(BASE_IMAGE):
        raise ClusterError(f"{BASE_IMAGE} does not exist.", "Bring up the test cluster first.")
    run_steps(images.steps(wanted), logs=cache.logs, display=choose_display())
    return {name: images.reference(name) for name in wanted}


def _recipe(name: str) -> Recipe:
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES)
    raise ClusterError(f"no image is called {name}", f"These are built: {known}.")


def _architecture() -> str:
    """The engine's architecture as wheels name it: this machine's, as kind's nodes have it too."""
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)


def _note_steps(run: StepRun) -> Callable[[str], None]:
    def note(line: str) -> None:
        if line.startswith("Step "):
            run.note(line.removeprefix("Step ")[:60])

    return note


def _drop_old_tags(reference: str) -> None:
    """Untag all but the newest images of this name, so that a day's work does not fill the disk."""
    repository = reference.rpartition(":")[0]
    listed = capture("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository)
    old = [tag for tag in listed.stdout.split()[KEPT_TAGS:] if tag != reference]
    if old:
        capture("docker", "rmi", *old, check=False)
