"""A job's `Algorithm` and a batch's `Totals` as plain numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

from assay_trainer.algorithms.loss import Totals
from assay_trainer.algorithms.settings import Algorithm, IcePop, Tis

LOSSES = ("clip", "gspo", "cispo")
CORRECTIONS = ("none", "tis", "icepop")
ESTIMATORS = ("", "k1", "k2", "k3")


def needs_whole(loss: int, by_sequence: bool) -> bool:
    """Whether a token's part needs its whole sequence: for GSPO, and averages over sequences."""
    return by_sequence or LOSSES[loss] == "gspo"


class Formula(NamedTuple):
    """The numbers of an `Algorithm` and `Totals`, as kernels take them.

    Attributes:
        loss: its place in `LOSSES`.
        correction: its place in `CORRECTIONS`.
        estimator: its place in `ESTIMATORS`.
        by_sequence: whether averages are over sequences.
        low: the lowest ratio that is not bounded.
        high: the highest.
        floor: the smallest weight that IcePop keeps.
        cap: the largest weight.
        coefficient: of the divergence.
        bonus: of the entropy.
        per_token: 1 / tokens of the whole batch.
        per_sequence: 1 / sequences of the whole batch.
    """

    loss: int
    correction: int
    estimator: int
    by_sequence: bool
    low: float
    high: float
    floor: float
    cap: float
    coefficient: float
    bonus: float
    per_token: float
    per_sequence: float

    @classmethod
    def of(cls, algorithm: Algorithm, totals: Totals) -> Formula:
        """The formula that a job asks for."""
        floor, cap = 0.0, math.inf
        match algorithm.importanceCorrection:
            case Tis(cap=cap):
                pass
            case IcePop(alpha=floor, beta=cap):
                pass
        return cls(
            loss=LOSSES.index(algorithm.loss),
            correction=CORRECTIONS.index(algorithm.importanceCorrection.type),
            estimator=ESTIMATORS.index(algorithm.kl.estimator),
            by_sequence=algorithm.average == "sequences",
            low=1 - algorithm.clip[0],
            high=1 + algorithm.clip[1],
            floor=floor,
            cap=cap,
            coefficient=algorithm.kl.coef,
            bonus=algorithm.entropy,
            per_token=1 / max(1, totals.tokens),
            per_sequence=1 / max(1, totals.sequences),
        )
