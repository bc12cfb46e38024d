"""Random ragged batches, as lists for the reference and as packed tensors for the package."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

import torch

from assay_trainer.algorithms.loss import Packed
from assay_trainer.algorithms.settings import Algorithm
from tests.trainer.reference import Sequence, Wanted

CORRECTIONS: tuple[dict[str, Any], ...] = (
    {"type": "none"},
    {"type": "tis", "cap": 1.1},
    {"type": "icepop", "alpha": 0.8, "beta": 1.3},
)
CLIPS = {"clip": (0.2, 0.28), "gspo": (0.03, 0.05), "cispo": (0.3, 0.25)}


def draw(seed: int, sequences: int = 7, near: float = 0.4) -> list[Sequence]:
    """Sequences of 1 to 9 tokens, some of them masked in part, one in four as a whole."""
    source = random.Random(seed)

    def around(values: list[float]) -> list[float]:
        return [value + source.gauss(0, near) for value in values]

    batch = []
    for _ in range(sequences):
        length = source.randint(1, 9)
        old = [-source.expovariate(0.7) - 0.05 for _ in range(length)]
        whole = source.random() < 0.25
        batch.append(
            Sequence(
                new=around(old),
                old=old,
                sampler=around(old),
                reference=around(old),
                entropy=[source.uniform(0, 3) for _ in old],
                mask=[not whole and source.random() < 0.8 for _ in old],
                advantage=0.0 if whole else source.gauss(0, 1),
            )
        )
    return batch


def pack(batch: Iterable[Sequence], dtype: torch.dtype = torch.float64) -> Packed:
    """The same as tensors; log_probs and entropy are leaves that want gradients."""
    sequences = list(batch)

    def flat(name: str) -> torch.Tensor:
        values = [value for s in sequences for value in getattr(s, name)]
        return torch.tensor(values, dtype=torch.bool if name == "mask" else dtype)

    owner = [i for i, s in enumerate(sequences) for _ in s.new]
    return Packed(
        log_probs=flat("new").requires_grad_(),
        sampler=flat("sampler"),
        advantages=torch.tensor([s.advantage for s in sequences], dtype=dtype),
        sequence=torch.tensor(owner, dtype=torch.int64),
        mask=flat("mask"),
        old=flat("old"),
        reference=flat("reference"),
        entropy=flat("entropy").requires_grad_(),
    )


def settings(wanted: Wanted) -> Algorithm:
    """The job's part that asks for a formula."""
    return Algorithm.model_validate(
        {
            "loss": wanted.loss,
            "clip": wanted.clip,
            "average": wanted.average,
            "importanceCorrection": wanted.correction,
            "kl": {"coef": wanted.kl_coef, "estimator": wanted.kl},
            "entropy": wanted.entropy,
        }
    )


def moved(batch: list[Sequence], name: str, which: int, by: float) -> list[Sequence]:
    """The batch with one token's number changed; tokens are counted through the whole batch."""
    found = []
    for s in batch:
        values = list(getattr(s, name))
        if 0 <= which < len(values):
            values[which] += by
        which -= len(values)
        found.append(dataclasses.replace(s, **{name: values}))
    return found
