"""Weights for tokens that one program drew and another one learns from.

An engine and a trainer with the same weights do not give a token quite the same probability (other
kernels, another precision), and with one step of staleness not even the weights are the same. With

    ratio = exp(old - sampler)      the trainer's probability over the engine's

ratio is the weight that would make the gradient unbiased, and its variance is the trouble.

Shapes: ratio is [T] and so is the result. Weights never carry a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay_trainer.algorithms.settings import IcePop, Tis, Uncorrected


def tis(ratio: Tensor, cap: float) -> Tensor:
    """min(ratio, cap): truncated importance sampling.

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    return ratio.detach().clamp(max=cap)


def icepop(ratio: Tensor, alpha: float, beta: float) -> Tensor:
    """ratio where it is in [alpha, beta], else 0: IcePop.

    Ling team, "Small Leak Can Sink a Great Ship: Boost RL Training on MoE with IcePop!" (2025), and
    "Every Step Evolves" (Ring-1T, arXiv:2510.18855). A token that is left out still counts in the
    average's denominator.
    """
    ratio = ratio.detach()
    return torch.where((ratio >= alpha) & (ratio <= beta), ratio, 0)


def weigh(ratio: Tensor, settings: Tis | IcePop | Uncorrected) -> tuple[Tensor, Tensor]:
    """The weights that a job asks for, and at which tokens a bound acted: [T] float, [T] bool."""
    match settings:
        case Tis():
            return tis(ratio, settings.cap), ratio > settings.cap
        case IcePop():
            outside = (ratio < settings.alpha) | (ratio > settings.beta)
            return icepop(ratio, settings.alpha, settings.beta), outside
        case Uncorrected():
            return torch.ones_like(ratio), torch.zeros_like(ratio, dtype=torch.bool)
