"""What tests on a cluster share: a namespace, a model on a volume, a pod for clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assay import DEFAULT_TEST_CLUSTER, Assay
from tests.cluster import Cluster
from tests.cluster.processes import Processes
from tests.cluster.settings import Cache
from tests.cluster.steps import StepRun
from tests.e2e.clients import CLIENT, client_pod
from tests.kube import Kube

NAMESPACE = "assay-tests"


@pytest.fixture(scope="session")
def assay() -> Assay:
    """Assay on the cluster that ASSAY_CLUSTER names, which `python -m tests.all` brings up."""
    cache = Cache.default()
    cluster = Cluster.named(os.environ.get("ASSAY_CLUSTER", DEFAULT_TEST_CLUSTER), cache)
    problem = cluster.problem()
    if problem:
        pytest.fail(f"cluster {cluster.name}: {problem}. Run `make test` or `python -m tests.all`.")
    return Assay(cluster, cache)


@pytest.fixture(scope="session")
def cluster(assay: Assay) -> Cluster:
    """The cluster that the tests run on."""
    return assay.cluster


@pytest.fixture(scope="session")
def kube(assay: Assay) -> Iterator[Kube]:
    """A namespace for all tests, with a pod in which clients run."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=180s")
    kubectl("create", "namespace", NAMESPACE)
    kube = Kube(assay.cluster, NAMESPACE)
    kube.apply(client_pod(assay.engine_image))
    kube.kubectl("wait", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=120s")
    yield kube
    kubectl("delete", "namespace", NAMESPACE, "--timeout=180s")


@pytest.fixture(scope="session")
def model(assay: Assay, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of a small model on a volume in the tests' namespace."""
    log: Path = tmp_path_factory.mktemp("model") / "log"
    assay.make_model(kube.namespace, StepRun("model", log, Processes()))
    return "pvc://models/tiny"


@pytest.fixture(scope="session")
def operator_config(assay: Assay, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the operator on this cluster, for one that runs in a shell."""
    return assay.write_operator_config(tmp_path_factory.mktemp("operator"))
