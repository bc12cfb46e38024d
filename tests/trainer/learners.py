"""What a learner's first update did, and what learners are asked to do."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from assay_trainer.learner import Learner

BETA = 0.9
"""The job's first, so that AdamW's first moment tells the first gradient."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "tokens": {},
    "sequences": {"algorithm__average": "sequences"},
    "gspo": {"algorithm__loss": "gspo"},
    "cispo": {"algorithm__loss": "cispo"},
    "divergence": {"algorithm__kl__coef": 0.1},
    "entropy": {"algorithm__entropy": 0.05},
}


def first_gradients(made: Learner) -> dict[str, Tensor]:
    """Of the first update, by parameter."""
    state = made.state()
    found = {n: t / (1 - BETA) for n, t in state.items() if n.startswith("exp_avg/")}
    return {n.removeprefix("exp_avg/"): t for n, t in found.items()}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of any number."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max()) for n in one)
