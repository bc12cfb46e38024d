"""Judges of model output: as the reward in training, as the gate before serving, by hand.

    async with Bench() as bench:
        verdicts = await verify_batch(bench, jobs)

`verify` judges one completion from code that is not asynchronous. Names are imported at their first
use, so that whoever wants the configuration only gets no more than that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay_verifiers.batch import Job, verify, verify_batch
    from assay_verifiers.config import VerifierModel, parse_verifier
    from assay_verifiers.contract import STATUSES, Status, Task, Unavailable, Verdict, Verifier
    from assay_verifiers.registry import Bench, Kind, verify_one

_HOMES = {
    "batch": ("Job", "verify", "verify_batch"),
    "config": ("VerifierModel", "parse_verifier"),
    "contract": ("STATUSES", "Status", "Task", "Unavailable", "Verdict", "Verifier"),
    "registry": ("Bench", "Kind", "verify_one"),
}

__all__ = [
    "STATUSES",
    "Bench",
    "Job",
    "Kind",
    "Status",
    "Task",
    "Unavailable",
    "Verdict",
    "Verifier",
    "VerifierModel",
    "parse_verifier",
    "verify",
    "verify_batch",
    "verify_one",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
