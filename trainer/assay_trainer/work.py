"""From a batch to what one pass of the learner needs: which samples, and their tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay_trainer.algorithms.loss import Totals
from assay_trainer.algorithms.settings import Algorithm
from assay_trainer.batch import Sample
from assay_trainer.packing import Layout, Pass, layout, on


@dataclass(frozen=True)
class Work:
    """A pass on the device, with what its loss needs.

    Attributes:
        layout: where its tokens lie.
        sampler: [R] the engine's log-probs.
        advantages: [S] of its samples.
        mask: [R] bool.
        learns: False where no gradient can come from it.
        old: [R] the trainer's log-probs before the step's first update; None in that update.
        reference: [R] of the model that the run began with, where the job wants it.
    """

    layout: Layout
    sampler: Tensor
    advantages: Tensor
    mask: Tensor
    learns: bool
    old: Tensor | None = None
    reference: Tensor | None = None


def prepared(
    samples: Sequence[Sample],
    pass_: Pass,
    advantages: Sequence[float],
    *,
    learns: bool,
    padded: bool,
    device: torch.device,
) -> Work:
    """A pass's tensors, on the device; the host does not wait for the copies.

    Args:
        samples: the whole batch's.
        pass_: which of them.
        advantages: of the whole batch.
        learns: whether there is a gradient.
        padded: whether the layout needs blocks.
        device: where to.
    """
    chosen = [samples[i] for i in pass_.samples]
    sampler = [value for sample in chosen for value in sample.completion.log_probs]
    placed = layout([(s.prompt, s.completion.ids) for s in chosen], padded).to(device)
    return Work(
        layout=placed,
        sampler=on(torch.tensor(sampler), device),
        advantages=on(torch.tensor([advantages[i] for i in pass_.samples]), device),
        mask=torch.full_like(placed.targets, pass_.counts, dtype=torch.bool),
        learns=learns,
    )


def shares(samples: Sequence[Sample], updates: int) -> list[list[int]]:
    """Which samples each update learns from: whole groups, in their order, about as many each."""
    groups: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(i)
    ordered = list(groups.values())
    ends = [len(ordered) * u // updates for u in range(updates + 1)]
    return [
        [i for members in ordered[begin:end] for i in members]
        for begin, end in itertools.pairwise(ends)
    ]


def silent_and_loud(
    samples: Sequence[Sample],
    share: Sequence[int],
    advantages: Sequence[float],
    algorithm: Algorithm,
) -> tuple[list[int], list[int]]:
    """The judged samples of an update: those without a gradient, and those with one.

    Without an advantage the objective's gradient is 0, so that a pass forward tells all there is to
    watch. The divergence and the entropy bonus have gradients of their own.
    """
    judged = [i for i in share if samples[i].judged]
    if algorithm.kl.coef or algorithm.entropy:
        return [], judged
    return [i for i in judged if not advantages[i]], [i for i in judged if advantages[i]]


def totals(samples: Sequence[Sample], share: Sequence[int]) -> Totals:
    """What an update's averages are over, in all processes together."""
    judged = [i for i in share if samples[i].judged]
    return Totals(sum(len(samples[i].completion.ids) for i in judged), len(judged))


def over_updates(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """A step's metrics from those of its updates: means, /max, /min, and sums of tokens/."""
    found = {}
    for name in {name: None for numbers in told for name in numbers}:
        values = [numbers[name] for numbers in told if name in numbers]
        if name.startswith("tokens/"):
            found[name] = sum(values)
        elif name.endswith("/max"):
            found[name] = max(values)
        elif name.endswith("/min"):
            found[name] = min(values)
        else:
            found[name] = sum(values) / len(values)
    return found
