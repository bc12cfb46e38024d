"""Which kernels can run here, which ran, and why others did not.

Every op asks its `Op` before each run, so that what an engine or a trainer really used can be
published and looked at: a kernel that silently gives way to plain PyTorch costs time that nobody
sees.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = (torch.bfloat16, torch.float16, torch.float32)
_log = logging.getLogger(__name__)

OPS = {
    "linear_logprob": "assay_kernels.linear_logprob.op",
    "linear_policy_loss": "assay_kernels.linear_logprob.folded",
    "matmul": "assay_kernels.matmul.op",
    "policy_loss": "assay_kernels.policy_loss.op",
    "qk_norm_rope": "assay_kernels.qk_norm_rope.op",
    "rms_norm": "assay_kernels.rms_norm.op",
    "sampler": "assay_kernels.sampler.op",
    "silu_mul": "assay_kernels.silu_mul.op",
}
"""All ops, with the module whose `OP` each is."""

OLDEST = (8, 0)
"""The compute capability from which on kernels run: Ampere's, the first with bfloat16."""


@dataclass(frozen=True)
class Uses:
    """How often an op ran in this process.

    Attributes:
        fused: with its kernels.
        fallbacks: by its reference instead, by reason.
    """

    fused: int
    fallbacks: Mapping[str, int]


class Op:
    """An op's part of the registry. Safe to use from several threads."""

    def __init__(
        self, name: str, obstacle: Callable[[torch.device], str | None] | None = None
    ) -> None:
        """Makes the op known.

        Args:
            name: of the op.
            obstacle: what keeps its kernels from running on a device, whatever the tensors are; by
                default what keeps any kernel from it.
        """
        self.name = name
        self._obstacle = obstacle or obstacle_of
        self._lock = threading.Lock()
        self._fused = 0
        self._fallbacks: Counter[str] = Counter()

    def obstacle(self, device: torch.device) -> str | None:
        """What keeps the kernels from running there; None where nothing does."""
        return self._obstacle(device)

    def fused(self, why_not: str | None) -> bool:
        """Counts a run, and says whether it is to be fused.

        Args:
            why_not: what of this call does not fit the kernels; None where all does. The first run
                of each reason is logged.
        """
        with self._lock:
            if why_not is None:
                self._fused += 1
                return True
            self._fallbacks[why_not] += 1
            first = self._fallbacks[why_not] == 1
        if first:
            _log.warning("%s runs in plain PyTorch: %s", self.name, why_not)
        return False

    def uses(self) -> Uses:
        """How often it ran up to now."""
        with self._lock:
            return Uses(self._fused, dict(self._fallbacks))

    def forget(self) -> None:
        """Begins to count anew; reasons are logged again."""
        with self._lock:
            self._fused = 0
            self._fallbacks.clear()


@functools.cache
def obstacle_of(device: torch.device) -> str | None:
    """What keeps Triton's kernels from running on a device; None where nothing does.

    It is looked up once in a process: it would take longer than a small kernel.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if interpreted() else "tensors are on the CPU"
    if device.type != "cuda":
        return f"there are no kernels for {device.type}"
    if torch.version.hip is not None:
        return "the kernels were never tried on AMD GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return f"compute capability {found[0]}.{found[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None


def dtype_misfit(tensor: Tensor, said: str) -> str | None:
    """What of a tensor's dtype keeps a call from kernels of floats up to 32 bits.

    Args:
        tensor: that the kernel reads.
        said: how the sentence about its dtype begins: "x is".
    """
    if tensor.dtype not in KINDS:
        return f"{said} {tensor.dtype}"
    if interpreted() and tensor.dtype != torch.float32:
        return "Triton's interpreter is right in float32 only"
    return None


def interpreted() -> bool:
    """Whether Triton interprets its kernels, which it does on the CPU; read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


def ops() -> dict[str, Op]:
    """All ops by name."""
    return {name: importlib.import_module(module).OP for name, module in OPS.items()}


def report(device: torch.device) -> dict[str, dict[str, Any]]:
    """What can run on a device and what ran in this process, op by op; made for JSON.

    Returns:
        By name: available, why_not (empty where available), fused and fallbacks as in `Uses`.
    """
    found = {}
    for name, op in ops().items():
        why_not, uses = op.obstacle(device), op.uses()
        found[name] = {
            "available": why_not is None,
            "why_not": why_not or "",
            "fused": uses.fused,
            "fallbacks": dict(uses.fallbacks),
        }
    return found
