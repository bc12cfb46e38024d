"""Where torch comes from: the environment that runs the tests, else the engine environment.

`make test` builds the engine environment anyway, and torch is in it; so it is not installed twice.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.trainer.trained import Trainers

# The whole folder is numbers of a few bytes: one thread is faster than any more.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def find_torch() -> None:
    """Makes torch importable, or ends the run: without it these tests would test nothing."""
    if importlib.util.find_spec("torch"):
        return
    folder = os.environ.get("ASSAY_ENGINE_ENV", "")
    if not folder or not (Path(folder) / "torch").is_dir():
        pytest.exit(
            "tests/trainer needs torch: `pip install 'assay[trainer]'`, or set ASSAY_ENGINE_ENV to "
            "an engine environment, as `make test` does "
            f"({folder + ' holds no torch' if folder else 'it is not set'})",
            returncode=4,
        )
    # Last, so that of what both have, the tests' own is taken.
    sys.path.append(folder)


find_torch()


@pytest.fixture(scope="session")
def trainers() -> Iterator[Trainers]:
    """Processes that train and can be killed; what they import is imported once."""
    from tests.trainer.trained import Trainers  # noqa: PLC0415

    with Trainers() as made:
        yield made
