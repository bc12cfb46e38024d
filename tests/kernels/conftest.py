"""Where torch comes from, as for the trainer's tests; without a GPU, Triton interprets kernels.

What needs a GPU is in `gpu_*.py`, which pytest reads only when it is told to:

    python -m pytest -o "python_files=test_*.py gpu_*.py" --confcutdir tests/kernels tests/kernels

(`--confcutdir`: what other tests need, a cluster for one, is not looked for.)
"""

from __future__ import annotations

import os

import pytest

from tests.trainer.conftest import find_torch

find_torch()

import torch  # noqa: E402 (it may only now be there to import)

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined, which is when a test first calls one.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    """Padding is computed and dropped: what the interpreter says of it says nothing of results."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.fixture
def true_float32() -> None:
    """float32 products are float32's, not TF32's, for ours and for PyTorch's."""
    torch.backends.cuda.matmul.allow_tf32 = False
