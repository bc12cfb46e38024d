"""The test cluster: kind with real Kubernetes, the same way on every machine.

Tests, demos and developers share it: `python -m tests.cluster up`, or

    from tests.cluster import up
    cluster = up()
    cluster.kubectl("get", "nodes")

How it works and what to do when it fails: docs/cluster.md.
"""

from tests.cluster.cluster import Cluster
from tests.cluster.errors import ClusterError
from tests.cluster.lifecycle import build, down, up
from tests.cluster.settings import BASE_IMAGE, Cache
from tests.cluster.steps import Step, StepRun

__all__ = [
    "BASE_IMAGE",
    "Cache",
    "Cluster",
    "ClusterError",
    "Step",
    "StepRun",
    "build",
    "down",
    "up",
]
