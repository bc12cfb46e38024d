"""Assay on a test cluster, as steps: its images, the engine's environment, its chart, a model.

The demo and the tests share them. On CPU the engine's Python environment has 6 GB; it is not copied
into an image but lies in the cache's share folder, which every node mounts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from assay_operator.plan import MANAGED_BY_LABEL
from tests.cluster.cluster import Cluster
from tests.cluster.images import Images
from tests.cluster.lifecycle import down, up
from tests.cluster.plan import BASE, CLUSTER
from tests.cluster.settings import REPOSITORY, SHARE_MOUNT, Cache
from tests.cluster.steps import Step, StepRun

ENVIRONMENT = "engine environment"
LOAD = "images on the nodes"
INSTALL = "Assay by its Helm chart"
MODEL = "a small model on a volume"

SYSTEM = "assay-system"
RELEASE = "assay"
CHART = REPOSITORY / "charts" / "assay"
ENGINE_MOUNT = "/opt/assay/engine"
MODEL_SEED = 7
MAKE_MODEL = REPOSITORY / "examples/tiny-model/make_model.py"
MAKE_TASK = REPOSITORY / "examples/train-demo/make_task.py"
DEFAULT_TEST_CLUSTER = "assay-test"
IMAGES = ("operator", "engine-cpu", "trainer-cpu")

Json = dict[str, Any]


def build_env_module() -> ModuleType:
    """images/engine/cpu/build_env.py, which is a script and not part of a package."""
    path = REPOSITORY / "images/engine/cpu/build_env.py"
    spec = importlib.util.spec_from_file_location("assay_build_env", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def engine_environment(cache: Cache) -> Path:
    """The engine's Python environment for CPU, in the cache's share folder."""
    return cache.share / f"engine-{build_env_module().content_key()}"


def environment_step(cache: Cache) -> Step:
    """Builds it; nothing to do where it is there. It needs no cluster."""

    def install(run: StepRun) -> None:
        script = REPOSITORY / "images/engine/cpu/build_env.py"
        folder = engine_environment(cache)
        if build_env_module().is_complete(folder):
            run.reuse()
            return
        run.command(
            *(sys.executable, script, folder, "--progress"),
            on_line=lambda line: run.note(line[:60]),
        )

    return Step(ENVIRONMENT, install, (), 150)


@dataclass(frozen=True)
class Assay:
    """What is put onto one cluster."""

    cluster: Cluster
    cache: Cache

    @cached_property
    def images(self) -> Images:
        return Images(self.cache)

    @cached_property
    def environment(self) -> Path:
        """The engine's Python environment."""
        return engine_environment(self.cache)

    @property
    def engine_image(self) -> str:
        return self.images.reference("engine-cpu")

    @property
    def trainer_image(self) -> str:
        return self.images.reference("trainer-cpu")

    def pod_overrides(self, container: str) -> Json:
        """What a pod needs to find the mounted environment."""
        mount = {"name": "environment", "mountPath": ENGINE_MOUNT, "readOnly": True}
        path = f"{SHARE_MOUNT}/{self.environment.name}"
        return {
            "spec": {
                "containers": [{"name": container, "volumeMounts": [mount]}],
                "volumes": [
                    {"name": "environment", "hostPath": {"path": path, "type": "Directory"}}
                ],
            }
        }

    def operator_config(self) -> Json:
        """The operator's configuration file for this cluster."""
        return {
            "engine": {
                "images": {"cpu": self.engine_image, "nvidia": "assay/engine:0.5.23"},
                "templates": {"cpu": self.pod_overrides("engine")},
            },
            "router": {
                "image": self.engine_image,
                "template": self.pod_overrides("router"),
            },
            "activator": {"image": self.images.reference("operator")},
            "verifier": {
                "image": self.trainer_image,
                "template": self.pod_overrides("verifier"),
            },
            "trainer": {
                "images": {"cpu": self.trainer_image, "nvidia": "assay/trainer:0.1.0"},
                "templates": {"cpu": self.pod_overrides("trainer")},
            },
        }

    def values(self, metrics_api: bool = True) -> Json:
        """The chart's values for this cluster.

        Args:
            metrics_api: whether it serves external.metrics.k8s.io, which KEDA has to be left to.
        """
        repository, _, tag = self.images.reference("operator").rpartition(":")
        # Tests and benchmarks ask engines themselves, from pods of their own beside them.
        theirs = {"key": MANAGED_BY_LABEL, "operator": "DoesNotExist"}
        peers = [{"podSelector": {"matchExpressions": [theirs]}}]
        return {
            "image": {"repository": repository, "tag": tag},
            "config": self.operator_config(),
            "networkPolicy": {"workloads": {"metricsFrom": peers}},
            "metricsApi": {"enabled": metrics_api},
        }

    def steps(self) -> list[Step]:
        """From a cluster that is coming up to one that serves InferenceServices."""
        built = tuple(step.name for step in self.images.steps(IMAGES))
        return [
            environment_step(self.cache),
            *self.images.steps(IMAGES, (BASE,)),
            Step(LOAD, self.load, (CLUSTER, *built), 20),
            Step(INSTALL, self.install, (LOAD,), 20),
        ]

    def model_step(self, namespace: str) -> Step:
        """A small model on a PersistentVolumeClaim `models` of `namespace`."""

        def make(run: StepRun) -> None:
            self.make_model(namespace, run)

        return Step(MODEL, make, (LOAD, ENVIRONMENT), 45)

    def load(self, run: StepRun) -> None:
        run.note("copying")
        self.cluster.load(*(self.images.reference(name) for name in IMAGES))

    def install(self, run: StepRun, metrics_api: bool = True) -> None:
        """The chart with `values(metrics_api)`, or the change of a release to these."""
        run.note("helm upgrade --install")
        self.cluster.helm(
            *("upgrade", "--install", RELEASE, CHART),
            *("--namespace", SYSTEM, "--create-namespace"),
            *("--values", "-", "--wait", "--timeout", "180s"),
            input=yaml.safe_dump(self.values(metrics_api)),
        )

    def make_model(
        self, namespace: str, run: StepRun, name: str = "tiny", options: tuple[str, ...] = ()
    ) -> None:
        """Runs examples/tiny-model in a Job; it does nothing where the model is there.

        Args:
            namespace: that gets the claim `models`, too.
            run: is told what goes on.
            name: of the folder on it.
            options: of make_model.py, by which another model comes out.
        """
        words = ("--out", f"/models/{name}", "--seed", str(MODEL_SEED), *options)
        self._make(namespace, run, f"make-{name}", (MAKE_MODEL,), words)

    def make_task(
        self, namespace: str, run: StepRun, name: str = "task", options: tuple[str, ...] = ()
    ) -> None:
        """Runs examples/train-demo/make_task.py in a Job: a model, and items, on `models`.

        Args:
            namespace: as in `make_model`.
            run: is told what goes on.
            name: of the folder.
            options: of make_task.py, by which another task comes out.
        """
        scripts = (MAKE_TASK, MAKE_TASK.with_name("items.py"), MAKE_MODEL)
        words = ("--out", f"/models/{name}", *options)
        self._make(namespace, run, f"make-{name}", scripts, words)

    def _make(
        self,
        namespace: str,
        run: StepRun,
        job: str,
        scripts: tuple[Path, ...],
        arguments: tuple[str, ...],
    ) -> None:
        """Runs the first of some scripts in a Job that sees the claim `models`."""
        kubectl = self.cluster.kubectl
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": job},
            "data": {script.name: script.read_text() for script in scripts},
        }
        made = self._making_job(job, scripts[0].name, arguments)
        kubectl("-n", namespace, "delete", "job", job, "--ignore-not-found")
        kubectl(
            "-n", namespace, "apply", "-f", "-",
            input=yaml.safe_dump_all([models_claim(), config, made]),
        )  # fmt: skip
        run.note("training it")
        run.command(
            *(self.cluster.bin / "kubectl", "-n", namespace, "wait", f"job/{job}"),
            *("--for=condition=Complete", "--timeout=300s"),
            env=self.cluster.environment,
        )

    def build_model_image(self, image: str, folder: Path) -> None:
        """An image that holds nothing but an untrained model, on all nodes."""
        folder.chmod(0o777)
        self.cluster.docker(
            *("run", "--rm", "--volume", f"{self.environment}:{ENGINE_MOUNT}:ro"),
            *("--volume", f"{MAKE_MODEL}:/make_model.py:ro", "--volume", f"{folder}:/out"),
            *("--entrypoint", "python3", self.engine_image, "/make_model.py"),
            *("--out", "/out/model", "--seed", "1", "--steps", "0"),
        )
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY model /\n")
        self.cluster.docker("build", "--tag", image, str(folder))
        self.cluster.load(image)

    def _making_job(self, name: str, script: str, arguments: tuple[str, ...]) -> Json:
        overrides = self.pod_overrides("make")["spec"]
        container = {
            "name": "make",
            "image": self.engine_image,
            "command": ["python3", f"/scripts/{script}"],
            "args": list(arguments),
            "env": [
                {"name": "HOME", "value": "/tmp"},
                # One script may import another, which lies beside it here.
                {"name": "PYTHONPATH", "value": f"/scripts:{ENGINE_MOUNT}"},
            ],
            "volumeMounts": [
                {"name": "models", "mountPath": "/models"},
                {"name": "scripts", "mountPath": "/scripts"},
                *overrides["containers"][0]["volumeMounts"],
            ],
        }
        volumes = [
            {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "scripts", "configMap": {"name": name}},
            *overrides["volumes"],
        ]
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "backoffLimit": 2,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [container],
                        "volumes": volumes,
                    }
                },
            },
        }

    def write_operator_config(self, folder: Path) -> Path:
        """The operator's configuration as a file, for an operator that runs in a shell."""
        path = folder / "operator-config.yaml"
        path.write_text(json.dumps(self.operator_config()))
        return path


@contextmanager
def on_a_cluster() -> Iterator[Assay]:
    """Assay on a test cluster for the time of a `with` block.

    Environment: ASSAY_CLUSTER (default assay-test) names the cluster; with KEEP=1 it is left
    running.

    Raises:
        ClusterError: the cluster cannot be had.
    """
    name = os.environ.get("ASSAY_CLUSTER", DEFAULT_TEST_CLUSTER)
    cache = Cache.default()
    assay = Assay(Cluster.named(name, cache), cache)
    try:
        up(name, extra_steps=assay.steps())
        yield assay
    finally:
        if os.environ.get("KEEP") != "1":
            print("\n".join(down(name, stop_engine=True)), flush=True)


def models_claim() -> Json:
    """The volume on which the models of tests and demo lie."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
