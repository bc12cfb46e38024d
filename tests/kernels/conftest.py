"""Where torch comes from, as for the trainer's tests; without a GPU, Triton interprets kernels.

What needs a GPU is in `gpu_*.py`, which pytest reads only when it is told to:

    python -m pytest tests/kernels tests/kernels/gpu_*.py
"""

from __future__ import annotations

import os

from tests.trainer.conftest import find_torch

find_torch()

import torch  # noqa: E402 (it may only now be there to import)

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined, which is when a test first calls one.
    os.environ["TRITON_INTERPRET"] = "1"
