"""kind, kubectl and helm: those on PATH where their versions fit, built with Go elsewhere."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.gobuild import HELM, KIND, KUBE, KUBECTL, GoBuilder, Program
from tests.cluster.processes import capture
from tests.cluster.settings import HELM_VERSION, KIND_VERSION, KUBERNETES_VERSION

VERSION_COMMANDS = {
    "kind": ("kind", "version"),
    "kubectl": ("kubectl", "version", "--client"),
    "helm": ("helm", "version", "--short"),
}


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The first version in what a tool prints about itself."""
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def fits(tool: str, version: tuple[int, int, int]) -> bool:
    """Whether a tool of this version may be used in place of the pinned one."""
    if tool == "kubectl":
        # Supported is one minor version of skew from the API server.
        wanted = parse_version(KUBERNETES_VERSION)
        assert wanted is not None
        return version[0] == wanted[0] and abs(version[1] - wanted[1]) <= 1
    if tool == "helm":
        wanted = parse_version(HELM_VERSION)
        assert wanted is not None
        return version[0] == wanted[0] and version >= wanted
    # kind decides the node image, so exactly this one.
    return version == parse_version(KIND_VERSION)


def on_path(tool: str) -> Path | None:
    """A suitable tool of the user's own."""
    found = shutil.which(tool)
    if not found:
        return None
    asked = capture(*VERSION_COMMANDS[tool], check=False, timeout=30)
    version = parse_version(asked.stdout)
    return Path(found) if version and fits(tool, version) else None


class Tools:
    """Where each tool comes from."""

    def __init__(self, builder: GoBuilder, *, whole_kubernetes: bool) -> None:
        """`whole_kubernetes`: the node image is built too, and with it kubectl."""
        self._builder = builder
        if whole_kubernetes:
            self._found: dict[str, Path] = {}
            self._built = {"kind": KIND, "helm": HELM, "kubectl": KUBE}
            return
        wanted = {"kind": KIND, "helm": HELM, "kubectl": KUBECTL}
        self._found = {name: path for name in wanted if (path := on_path(name))}
        self._built = {name: p for name, p in wanted.items() if name not in self._found}

    @property
    def programs(self) -> Iterable[Program]:
        """What has to be built."""
        return self._built.values()

    def install(self, folder: Path) -> None:
        """Make a folder for PATH that holds exactly these tools."""
        folder.mkdir(parents=True, exist_ok=True)
        built = {name: self._builder.path(program) for name, program in self._built.items()}
        for name, target in (self._found | built).items():
            aside = folder / f".{name}"
            aside.unlink(missing_ok=True)
            aside.symlink_to(target)
            aside.replace(folder / name)
