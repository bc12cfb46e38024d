"""The algorithms once more, as their papers write them: loops over lists of Python's floats.

Nothing is shared with the package, so that a mistake would have to be made twice. What a formula
holds without a gradient (sg) is computed at `frozen`, the log-probs at which the gradient is
wanted, so that differences of `loss` at other log-probs are that gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sequence:
    """One completion; lists are by token."""

    new: list[float]
    old: list[float]
    sampler: list[float]
    reference: list[float]
    entropy: list[float]
    mask: list[bool]
    advantage: float


@dataclass(frozen=True)
class Wanted:
    """Which formula."""

    loss: str
    clip: tuple[float, float]
    average: str
    correction: dict[str, Any]
    kl: str = "k3"
    kl_coef: float = 0.0
    entropy: float = 0.0


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1))


def advantages(
    name: str, rewards: list[float], group: list[int], judged: list[bool]
) -> list[float]:
    found = []
    for i, reward in enumerate(rewards):
        peers = [
            j
            for j in range(len(rewards))
            if judged[j] and (name == "reinforce++" or group[j] == group[i])
        ]
        values = [rewards[j] for j in peers]
        if not judged[i] or len(peers) < 2 or max(values) - min(values) <= 1e-6:
            found.append(0.0)
        elif name in ("grpo", "reinforce++"):
            found.append((reward - mean(values)) / deviation(values))
        elif name == "dr-grpo":
            found.append(reward - mean(values))
        else:
            assert name == "rloo"
            found.append(reward - mean([rewards[j] for j in peers if j != i]))
    return found


def loss(batch: list[Sequence], frozen: list[Sequence], wanted: Wanted) -> float:
    """The loss of the whole batch."""
    kept = [(s, f) for s, f in zip(batch, frozen, strict=True) if any(s.mask)]
    tokens = sum(sum(s.mask) for s, _ in kept)
    total = 0.0
    for sequence, at in kept:
        inside = [t for t, counts in enumerate(sequence.mask) if counts]
        weight = 1 / tokens
        if wanted.average == "sequences":
            weight = 1 / len(inside) / len(kept)
        for t in inside:
            value = importance(sequence, t, wanted) * objective(sequence, at, t, inside, wanted)
            value -= wanted.kl_coef * divergence(sequence.new[t], sequence.reference[t], wanted.kl)
            value += wanted.entropy * sequence.entropy[t]
            total -= weight * value
    return total


def objective(s: Sequence, at: Sequence, t: int, inside: list[int], wanted: Wanted) -> float:
    low, high = 1 - wanted.clip[0], 1 + wanted.clip[1]
    if wanted.loss == "cispo":
        ratio = math.exp(at.new[t] - at.old[t])
        return min(max(ratio, low), high) * s.advantage * s.new[t]
    if wanted.loss == "clip":
        ratio = math.exp(s.new[t] - s.old[t])
    else:
        assert wanted.loss == "gspo"
        # GSPO-token: the sequence's ratio without a gradient, times the token's own over itself.
        geometric = math.exp(mean([at.new[u] - at.old[u] for u in inside]))
        ratio = geometric * math.exp(s.new[t]) / math.exp(at.new[t])
    clipped = min(max(ratio, low), high)
    return min(ratio * s.advantage, clipped * s.advantage)


def plain_gspo(batch: list[Sequence], clip: tuple[float, float]) -> float:
    """GSPO's equation 5, with the gradient through the whole sequence's ratio."""
    kept = [s for s in batch if any(s.mask)]
    total = 0.0
    for s in kept:
        inside = [t for t, counts in enumerate(s.mask) if counts]
        ratio = math.exp(mean([s.new[t] - s.old[t] for t in inside]))
        clipped = min(max(ratio, 1 - clip[0]), 1 + clip[1])
        total -= min(ratio * s.advantage, clipped * s.advantage) / len(kept)
    return total


def importance(s: Sequence, t: int, wanted: Wanted) -> float:
    ratio = math.exp(s.old[t] - s.sampler[t])
    settings = wanted.correction
    if settings["type"] == "tis":
        return min(ratio, settings["cap"])
    if settings["type"] == "icepop":
        return ratio if settings["alpha"] <= ratio <= settings["beta"] else 0.0
    return 1.0


def divergence(policy: float, reference: float, estimator: str) -> float:
    log_ratio = reference - policy
    return {
        "k1": -log_ratio,
        "k2": log_ratio**2 / 2,
        "k3": (math.exp(log_ratio) - 1) - log_ratio,
    }[estimator]
