"""`make test`, the part that needs a cluster or the engine environment (torch, SGLang): brings one
up, runs the tests on it, removes it.

    python -m tests.all [PYTEST_ARGUMENT...]

Without arguments it is all tests but the one with KEDA, which would be compiled first:
`make test-keda`.

Environment: ASSAY_CLUSTER (default assay-test) names the cluster; with KEEP=1 it is left running.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.assay import on_a_cluster
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY

RUNS = (
    # By itself: it has Triton interpret its kernels, wherever in the process they are used.
    ("tests/kernels", "-n", "auto", "--dist", "worksteal"),
    (
        *("tests/trainer", "tests/engine", "tests/integration", "tests/e2e"),
        # KEDA takes ten minutes to compile: `make test-keda`.
        "--ignore=tests/e2e/test_keda.py",
    ),
)
"""The words that each run of pytest is given."""


def main(arguments: list[str]) -> int:
    """Returns pytest's first exit code that is not 0, or 1 where the cluster could not be had."""
    try:
        with on_a_cluster() as assay:
            environment = {
                **os.environ,
                "ASSAY_CLUSTER": assay.cluster.name,
                "ASSAY_ENGINE_ENV": str(assay.environment),
            }
            codes = []
            for words in [arguments] if arguments else RUNS:
                command = [sys.executable, "-m", "pytest", *words]
                run = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
                codes.append(run.returncode)
            return next(filter(None, codes), 0)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
