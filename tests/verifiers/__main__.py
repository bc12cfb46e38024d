"""`make test-verifiers`: the verifiers' tests, with the sandbox's Debian package if need be.

    python -m tests.verifiers [PYTEST_ARGUMENT...]

They need no cluster. Where bubblewrap is neither installed nor can be, the tests of that kind of
sandbox are skipped, with this reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.cluster.display import choose_display
from tests.cluster.engine import install_packages, is_debian
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY, Cache
from tests.cluster.steps import Step, run_steps

FOLDER = "tests/verifiers"


def main(arguments: list[str]) -> int:
    """Returns pytest's exit code, or 1 where the package could not be installed."""
    if shutil.which("bwrap") is None and is_debian() and os.geteuid() == 0:
        step = Step("bubblewrap", lambda run: install_packages(run, "bubblewrap"), (), 10)
        try:
            run_steps([step], logs=Cache.default().logs, display=choose_display())
        except ClusterError as error:
            print(error, file=sys.stderr)
            return 1
    command = [sys.executable, "-m", "pytest", *(arguments or [FOLDER])]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
