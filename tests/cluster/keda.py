"""KEDA on a test cluster, for the tests of `autoscaling.driver: keda`.

Its operator and its metrics server are compiled from its Go module as the cluster's own programs
are, and its own manifests install them. That takes minutes the first time, so nobody gets it who
does not ask: `python -m tests.cluster keda`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.engine import image_exists
from tests.cluster.errors import ClusterError
from tests.cluster.files import content_key, link, write_text
from tests.cluster.gobuild import KEDA, GoBuilder
from tests.cluster.lifecycle import extend
from tests.cluster.nodeimage import LEGACY_BUILDER
from tests.cluster.settings import KEDA_VERSION, NODE_SOURCES, Cache
from tests.cluster.steps import Step, StepRun

MODULES = "KEDA's Go modules"
COMPILE = "compile KEDA"
IMAGE = "KEDA's image on the nodes"
INSTALL = "KEDA"

NAMESPACE = "keda"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
"""Of which a cluster has one: nobody beside KEDA can serve it."""
MODULE_FOLDER = "keda"
"""In images/kind-node."""
_DOCKERFILE = NODE_SOURCES / MODULE_FOLDER / "Dockerfile"
_WAIT = "--timeout=300s"
"""Its pods start again and again until the certificate that one of them makes is there for all."""

Json = dict[str, Any]


def adapted(objects: Iterable[Json], image: str) -> list[Json]:
    """KEDA's own manifests with our image, which no registry has."""
    made = list(objects)
    for item in made:
        if item["kind"] == "Deployment":
            for container in item["spec"]["template"]["spec"]["containers"]:
                container |= {"image": image, "imagePullPolicy": "IfNotPresent"}
    return made


def other_server(api_service: Json | None) -> str:
    """NAMESPACE/NAME of the Service that serves external metrics, if that is not KEDA's."""
    service = ((api_service or {}).get("spec") or {}).get("service") or {}
    if service.get("namespace", NAMESPACE) == NAMESPACE:
        return ""
    return f"{service['namespace']}/{service['name']}"


@dataclass(frozen=True)
class Keda:
    """What is put onto one cluster, and taken off again."""

    cluster: Cluster
    cache: Cache
    builder: GoBuilder

    @classmethod
    def on(cls, cluster: Cluster, cache: Cache) -> Keda:
        return cls(cluster, cache, GoBuilder(NODE_SOURCES, cache))

    @cached_property
    def image(self) -> str:
        """With both programs; they need not be built yet."""
        programs = (self.builder.path(program).name for program in KEDA)
        return f"assay/keda:{KEDA_VERSION}-{content_key(_DOCKERFILE, *programs)}"

    def install(self) -> None:
        """Puts it onto the cluster, compiled where it has not been.

        Raises:
            ClusterError: a step failed, or somebody else serves external metrics.
        """
        asked = ("get", "apiservice", API_SERVICE, "-o", "json", "--ignore-not-found")
        if other := other_server(json.loads(self.cluster.kubectl(*asked).stdout or "null")):
            raise ClusterError(
                f"{other} serves external.metrics.k8s.io, and KEDA would take that away from it.",
                "If it is Assay: helm upgrade assay charts/assay -n assay-system --reuse-values "
                "--set metricsApi.enabled=false",
            )
        extend(self.steps())

    def steps(self) -> list[Step]:
        """From a cluster that runs to one whose ScaledObjects scale."""
        return [
            Step(MODULES, partial(self.builder.download, programs=KEDA), (), 90),
            Step(COMPILE, partial(self.builder.build, programs=KEDA), (MODULES,), 600),
            Step(IMAGE, self._build, (COMPILE,), 15),
            Step(INSTALL, self._install, (IMAGE,), 90),
        ]

    def remove(self) -> None:
        """Takes everything off again, also what a start that failed has left."""
        objects = self._manifests()
        kinds = [o for o in objects if o["kind"] == "CustomResourceDefinition"]
        # First and while KEDA runs: its objects go only once it has let go of them.
        for some in (kinds, objects):
            self.cluster.kubectl(
                *("delete", "--ignore-not-found", _WAIT, "-f", "-"), input=yaml.safe_dump_all(some)
            )

    def _manifests(self) -> list[Json]:
        module = self.builder.module_folder("github.com/kedacore/keda/v2", MODULE_FOLDER)
        # Without the webhooks, which only refuse what would not work.
        rendered = self.cluster.kubectl("kustomize", module / "config" / "minimal").stdout
        return adapted(yaml.safe_load_all(rendered), self.image)

    def _build(self, run: StepRun) -> None:
        if image_exists(self.image):
            run.reuse()
        else:
            context = self.cache.scratch / "context-keda"
            context.mkdir(parents=True)
            for program in KEDA:
                link(self.builder.path(program), context / program.name)
            link(_DOCKERFILE, context / "Dockerfile")
            run.command("docker", "build", "--tag", self.image, context, env=LEGACY_BUILDER)
        run.note("copying to the nodes")
        self.cluster.load(self.image)

    def _install(self, run: StepRun) -> None:
        file: Path = self.cache.scratch / "keda.yaml"
        write_text(file, yaml.safe_dump_all(self._manifests()))
        kubectl = partial(run.command, self.cluster.bin / "kubectl", env=self.cluster.environment)
        # By the server: one of KEDA's kinds is too long for the annotation that kubectl would add.
        kubectl("apply", "--server-side", "-f", file)
        for name in ("keda-operator", "keda-metrics-apiserver"):
            kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", _WAIT)
        kubectl("wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", _WAIT)
