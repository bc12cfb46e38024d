"""The Go programs of the test cluster, from the module in `images/kind-node/`.

Being one module they share compiled packages: after Kubernetes the others take seconds. (Only
containerd and KEDA have modules of their own.) The compiled packages stay in the user's own Go
cache; the finished programs are kept by the content of their sources, the Go version and the flags.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.files import content_key
from tests.cluster.processes import capture
from tests.cluster.settings import CONTAINERD_VERSION, HELM_VERSION, KUBERNETES_VERSION, Cache
from tests.cluster.steps import StepRun


@dataclass(frozen=True)
class Program:
    """A main package; its name is also the last part of its import path."""

    package: str
    # Folders of ours that it is built from, beside the module's pinned dependencies.
    sources: tuple[str, ...] = ()
    # The module's folder in images/kind-node.
    module: str = "."

    @property
    def name(self) -> str:
        return self.package.rsplit("/", 1)[-1]


KUBE = Program("./kube", ("kube", "podnet"))
COREDNS = Program("./coredns", ("coredns",))
PAUSE = Program("./pause", ("pause",))
STORAGE = Program("github.com/rancher/local-path-provisioner")
CRICTL = Program("sigs.k8s.io/cri-tools/cmd/crictl")
KIND = Program("sigs.k8s.io/kind")
HELM = Program("helm.sh/helm/v4/cmd/helm")
# Only where kind's usual node image is used: then there is no need for all of Kubernetes.
KUBECTL = Program("k8s.io/kubernetes/cmd/kubectl")
# A module of its own: containerd and Kubernetes need different versions of their common parts.
CONTAINERD = tuple(
    Program(f"github.com/containerd/containerd/v2/cmd/{name}", module="containerd")
    for name in ("containerd", "containerd-shim-runc-v2", "ctr")
)

# A third one, for the same reason. KEDA brings the client of every system that it can ask.
KEDA = tuple(
    Program(f"github.com/kedacore/keda/v2/cmd/{name}", module="keda")
    for name in ("operator", "adapter")
)

COMPONENT_PROGRAMS = (KUBE, COREDNS, PAUSE, STORAGE)
NODE_PROGRAMS = (*COMPONENT_PROGRAMS, CRICTL, *CONTAINERD)


# cgo is off from the first build on: switching it would compile everything again.
# The compiler collects garbage less often: a quarter less time for some more memory (measured with
# client-go on two cores: 128 s and 92 s). The programs are the same.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOWORK": "off", "GOGC": "400"}


def build_flags() -> list[str]:
    """What the programs are built with, and what they say that they are; without the versions
    kubelet calls itself v0.0.0-master."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    versions = {
        "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/component-base/version.gitTreeState": "clean",
        "helm.sh/helm/v4/internal/version.version": HELM_VERSION,
        "github.com/containerd/containerd/v2/version.Version": CONTAINERD_VERSION,
    }
    link = ["-s", "-w", *(f"-X {name}={value}" for name, value in versions.items())]
    # containerd's snapshotters for file systems that no node here has.
    tags = "no_aufs,no_btrfs,no_devmapper,no_zfs"
    # -s -w leave debug information out of the programs; -dwarf=false does not make it at all.
    lean = ["-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false"]
    return [*lean, "-tags", tags, "-ldflags", " ".join(link)]


@dataclass(frozen=True)
class GoBuilder:
    """Builds programs of the modules in `root` and keeps them in the cache."""

    root: Path
    cache: Cache

    @cached_property
    def go_version(self) -> str:
        if not shutil.which("go"):
            raise ClusterError(
                "Go is not installed; it builds the test cluster's programs.",
                "Install Go 1.26 or newer so that `go version` works, then run this again.",
            )
        return self._go("env", "GOVERSION").strip()

    def path(self, program: Program) -> Path:
        """Where the program lies once it is built."""
        module = self.root / program.module
        sources = [module / name for name in ("go.mod", "go.sum", *program.sources)]
        key = content_key(self.go_version, *build_flags(), program.package, *sources)
        return self.cache.programs / f"{program.name}-{key}"

    def missing(self, programs: Iterable[Program]) -> list[Program]:
        return [program for program in programs if not self.path(program).exists()]

    def download(self, run: StepRun, programs: Iterable[Program]) -> None:
        """Fetch the modules that the programs need (not the whole module graph)."""
        count = 0

        def each(line: str) -> None:
            nonlocal count
            if line.startswith("go: downloading"):
                count += 1
                run.note(f"{count} modules")

        missing = self.missing(programs)
        if not missing:
            run.reuse()
        for program in missing:
            run.command(
                "go", "list", "-deps", "-f", "{{.Name}}", program.package,
                env=ENVIRONMENT, cwd=self.root / program.module, on_line=each,
            )  # fmt: skip

    def build(self, run: StepRun, programs: Iterable[Program]) -> None:
        """Build what is missing. An interrupted build goes on where it was: Go keeps every
        package that it has compiled."""
        missing = self.missing(programs)
        if not missing:
            run.reuse()
        # One at a time: each keeps both cores busy, and Go refuses to build the ones together
        # whose dependencies' names differ only in upper and lower case.
        for program in missing:
            self._build_one(run, program)
        if missing:
            run.note(", ".join(program.name for program in missing))

    def _build_one(self, run: StepRun, program: Program) -> None:
        compiled = 0

        def each(line: str) -> None:
            nonlocal compiled
            # With -v a line that is an import path says that the package is being compiled.
            if "/" in line and " " not in line:
                compiled += 1
                run.note(f"{program.name}: {compiled} packages compiled")

        run.note(program.name)
        aside = self.cache.scratch / self.path(program).name
        run.command(
            "go", "build", "-v", *build_flags(), "-o", aside, program.package,
            env=ENVIRONMENT, cwd=self.root / program.module, on_line=each,
        )  # fmt: skip
        aside.replace(self.path(program))

    def module_folder(self, module: str, place: str = ".") -> Path:
        """The folder with the sources of a module that the go.mod in `place` names."""
        return Path(json.loads(self._go("mod", "download", "-json", module, place=place))["Dir"])

    def _go(self, *args: str, place: str = ".") -> str:
        return capture("go", "-C", self.root / place, *args, env=ENVIRONMENT).stdout
