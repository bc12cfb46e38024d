"""The learning rate as a function of the update's number: nothing to keep, nothing to resume."""

from __future__ import annotations

import math

from assay_trainer.settings import Trainer


def rate(settings: Trainer, update: int) -> float:
    """The rate of an update, counted from 1.

    It rises linearly over the warm-up, whose last update has the highest rate; then it stays, or
    falls so that it would be 0 at the update after the last one: linearly, or as half a cosine
    (SGDR, arXiv:1608.03983, eq. 5).
    """
    warmup = settings.warmupSteps * settings.updatesPerStep
    if update <= warmup:
        return settings.learningRate * update / warmup
    gone = (update - 1 - warmup) / max(1, settings.steps * settings.updatesPerStep - warmup)
    match settings.decay:
        case "constant":
            left = 1.0
        case "linear":
            left = 1 - gone
        case "cosine":
            left = (1 + math.cos(math.pi * gone)) / 2
    return settings.learningRate * max(0.0, left)
