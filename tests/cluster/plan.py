"""What has to be done for a cluster, as steps. Their names are the ones that others may need:
`Step("my image", ..., needs=(DOCKER, BASE))`, `Step("install", ..., needs=(CLUSTER,))`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from tests.cluster import engine, kindconfig, nodeimage
from tests.cluster.cluster import Cluster
from tests.cluster.engine import Engine
from tests.cluster.files import content_key, write_text
from tests.cluster.gobuild import KUBE, NODE_PROGRAMS, GoBuilder, Program
from tests.cluster.nodeimage import NodeImage
from tests.cluster.processes import capture
from tests.cluster.settings import KIND_NODE_IMAGE, KIND_VERSION, NODE_SOURCES, Cache
from tests.cluster.steps import Step, StepRun
from tests.cluster.tools import Tools

PACKAGES = "host packages"
DOCKER = "docker engine"
MODULES = "Go modules"
COMPILE_KUBERNETES = "compile Kubernetes"
COMPILE = "compile the other programs"
DEBIAN = "Debian packages"
BASE = "base image"
NODE_PACKAGES = "node packages"
COMPONENTS = "system pod images"
NODE = "node image"
SAVE = "save node image"
KIND = "kind cluster"
CLUSTER = "cluster"

CLUSTER_LABEL = "io.x-k8s.kind.cluster"
WAIT = "--timeout=180s"


@dataclass(frozen=True)
class Plan:
    """The steps to one cluster on this machine."""

    cache: Cache
    name: str
    workers: int

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster.named(self.name, self.cache)

    @cached_property
    def builder(self) -> GoBuilder:
        return GoBuilder(NODE_SOURCES, self.cache)

    @cached_property
    def node_image(self) -> NodeImage:
        return NodeImage(self.cache, self.builder)

    @cached_property
    def builds_node_image(self) -> bool:
        """Whether kind's usual node image can't be had. The cheap questions come first: only a
        machine that has neither image yet asks a registry."""
        if engine.image_exists(KIND_NODE_IMAGE):
            return False
        if shutil.which("go") and self.node_image.exists():
            return True
        return not engine.registry_answers(KIND_NODE_IMAGE)

    @cached_property
    def tools(self) -> Tools:
        return Tools(self.builder, whole_kubernetes=self.builds_node_image)

    @cached_property
    def programs(self) -> list[Program]:
        programs = list(self.tools.programs)
        if self.builds_node_image:
            programs += [program for program in NODE_PROGRAMS if program not in programs]
        return programs

    def engine_steps(self) -> list[Step]:
        """Everything that a Docker engine needs; the first thing on a bare machine."""
        return [
            Step(PACKAGES, self._install_packages, expected_seconds=15),
            Step(DOCKER, Engine(self.cache).ensure, (PACKAGES,), expected_seconds=5),
        ]

    def build_steps(self) -> list[Step]:
        """Everything but the cluster."""
        rest = [program for program in self.programs if program != KUBE]
        compile_all = [
            Step(MODULES, partial(self.builder.download, programs=self.programs), (), 45),
            Step(COMPILE, partial(self.builder.build, programs=rest), (MODULES,), 60),
        ]
        if not self.builds_node_image:
            pull = Step(BASE, nodeimage.pull_base, (DOCKER,), expected_seconds=10)
            return [*self.engine_steps(), *compile_all, pull]
        kubernetes = partial(self.builder.build, programs=[KUBE])
        compile_all[1] = replace(compile_all[1], needs=(COMPILE_KUBERNETES,))
        image = self.node_image
        return [
            *self.engine_steps(),
            *compile_all,
            Step(COMPILE_KUBERNETES, kubernetes, (MODULES,), expected_seconds=540),
            Step(DEBIAN, image.make_base_archive, (PACKAGES,), expected_seconds=65),
            Step(BASE, image.import_base, (DOCKER, DEBIAN), expected_seconds=2),
            Step(NODE_PACKAGES, image.build_packages, (BASE,), expected_seconds=15),
            Step(COMPONENTS, image.build_components, (BASE, COMPILE), expected_seconds=15),
            Step(NODE, image.build_node, (NODE_PACKAGES, COMPONENTS), expected_seconds=25),
            Step(SAVE, image.save, (NODE,), expected_seconds=5),
        ]

    def steps(self) -> list[Step]:
        """Everything."""
        image = NODE if self.builds_node_image else DOCKER
        return [
            *self.build_steps(),
            Step(KIND, self._create, (image, COMPILE), expected_seconds=35),
            Step(CLUSTER, self._wait, (KIND,), expected_seconds=10),
        ]

    @property
    def _record(self) -> Path:
        return self.cache.cluster(self.name) / "cluster.json"

    def _key(self, config: str) -> str:
        image = self.node_image.reference if self.builds_node_image else KIND_NODE_IMAGE
        return content_key(KIND_VERSION, image, config)

    def recorded_key(self) -> str:
        """Key of the cluster that was made last under this name, if it was finished."""
        try:
            return str(json.loads(self._record.read_text())["key"])
        except (OSError, ValueError, KeyError):
            return ""

    def _install_packages(self, run: StepRun) -> None:
        wanted = []
        if not engine.answers() and not shutil.which("dockerd"):
            # The clipping runtime is written for Debian's own Python.
            wanted += ["docker.io", "python3"]
        if shutil.which("docker") and self.builds_node_image:
            made = self.node_image.base_archive.exists() or shutil.which("mmdebstrap")
            wanted += [] if made else ["mmdebstrap"]
        if wanted:
            engine.install_packages(run, *wanted)
        else:
            run.reuse("nothing missing")

    def _create(self, run: StepRun) -> None:
        self.tools.install(self.cluster.bin)
        config = kindconfig.render(
            workers=self.workers,
            share=self.cache.share,
            may_raise_limits=engine.may_raise_limits(),
        )
        key = self._key(config)
        if self.recorded_key() == key:
            problem = self.cluster.problem()
            if not problem:
                run.reuse("already running")
                return
            run.log(f"the cluster is made again: {problem}")
        delete_cluster(self.cache, self.name, keep_tools=True)
        file = self.cache.cluster(self.name) / "kind.yaml"
        write_text(file, config)
        image = ("--image", self.node_image.reference) if self.builds_node_image else ()
        # Retained on failure, so that one can look at the nodes; the next run removes them.
        run.command(
            self.cluster.bin / "kind", "create", "cluster", "--name", self.name, "--retain",
            "--config", file, "--kubeconfig", self.cluster.kubeconfig, *image,
            on_line=lambda line: run.note(line.strip(" •✓.")[:50]),
        )  # fmt: skip
        run.note("created")
        write_text(self._record, json.dumps({"key": key, "workers": self.workers}) + "\n")

    def _wait(self, run: StepRun) -> None:
        """Ready is: all nodes are, names resolve, volumes can be had."""
        kubectl = partial(run.command, self.cluster.bin / "kubectl", env=self.cluster.environment)
        kubectl("wait", "--for=condition=Ready", "nodes", "--all", WAIT)
        kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", WAIT)
        kubectl(
            "-n", "local-path-storage", "rollout", "status", "deployment/local-path-provisioner",
            WAIT,
        )  # fmt: skip
        run.note("ready")


def cluster_names(cache: Cache) -> list[str]:
    """Clusters that have a folder in the cache, whether they run or not."""
    return sorted(folder.name for folder in (cache.root / "clusters").glob("*") if folder.is_dir())


def node_containers(name: str) -> list[str]:
    """Containers of a cluster's nodes, running or not."""
    label = f"label={CLUSTER_LABEL}={name}"
    return capture("docker", "ps", "-aq", "--filter", label, check=False).stdout.split()


def delete_cluster(cache: Cache, name: str, *, keep_tools: bool = False) -> bool:
    """Remove a cluster's containers with their volumes, kind's network if no other cluster uses
    it, and its folder. Works on half-made clusters too; returns whether there were containers."""
    containers = node_containers(name)
    folder = cache.cluster(name)
    # First the record: from here on nobody takes this for a whole cluster.
    for file in ("cluster.json", "kubeconfig", "kubeconfig.lock"):
        (folder / file).unlink(missing_ok=True)
    if containers:
        capture("docker", "rm", "--force", "--volumes", *containers)
    capture("docker", "network", "rm", "kind", check=False)
    if not keep_tools:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(containers)
