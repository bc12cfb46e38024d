"""Advantages: how much better a completion is than what was to be expected of its prompt.

All functions take the whole global batch, since it is small (one number a sample) and a group must
not be torn apart:

    rewards  [N] float32 or float64. What is not judged may hold anything, NaN included.
    group    [N] int64, from 0. Samples of the same prompt have the same number, in any order.
    judged   [N] bool. False where the verifier's status is `timeout` or `error`, or where the job
             masks a sample for another reason.

and return advantages [N] of the rewards' dtype. A sample that was not judged has no part in any
mean or deviation and gets 0. So does every sample of a group of which fewer than two were judged,
or whose judged rewards are all the same: there is nothing to be learned from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SAME = 1e-6
"""Rewards in [0, 1] that lie no farther apart are the same: dividing by a deviation that is only
rounding would make noise as loud as a signal."""

AdvantageFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Groups:
    """What the groups of a batch look like; each tensor is [G].

    Attributes:
        size: samples of each group.
        judged: judged samples of each group.
        mean: of the judged rewards; 0 where there are none.
        informative: whether at least two were judged, and they differ.
    """

    size: Tensor
    judged: Tensor
    mean: Tensor
    informative: Tensor


def groups(rewards: Tensor, group: Tensor, judged: Tensor) -> Groups:
    """Counts, means and whether there is anything to learn, group by group.

    Raises:
        ValueError: the shapes differ, or rewards are not floats.
    """
    if not rewards.is_floating_point():
        raise ValueError(f"rewards must be float32 or float64, not {rewards.dtype}")
    if not rewards.shape == group.shape == judged.shape or rewards.dim() != 1:
        raise ValueError("rewards, group and judged must be vectors of one length")
    many = int(group.max()) + 1 if len(group) else 0
    counted = judged.to(rewards.dtype)
    size = torch.bincount(group, minlength=many)
    members = rewards.new_zeros(many).index_add(0, group, counted)
    known = torch.where(judged, rewards, 0)
    mean = rewards.new_zeros(many).index_add(0, group, known) / members.clamp(min=1)
    far = rewards.new_full((many,), float("inf"))
    highest = (-far).scatter_reduce(0, group, torch.where(judged, rewards, -far[:1]), "amax")
    lowest = far.scatter_reduce(0, group, torch.where(judged, rewards, far[:1]), "amin")
    # One alone does not differ from itself.
    return Groups(size, members, mean, highest - lowest > SAME)


def grpo(rewards: Tensor, group: Tensor, judged: Tensor) -> Tensor:
    """(r - mean) / std within the group: DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    The deviation is the sample's (n - 1), as in the implementations that are in wide use.
    """
    found = groups(rewards, group, judged)
    centred = _centred(rewards, group, judged, found)
    squares = torch.zeros_like(found.mean).index_add(0, group, centred**2)
    deviation = (squares / (found.judged - 1).clamp(min=1)).sqrt()
    # 1 where nothing is to be learned: the numerator is 0 there.
    return centred / torch.where(found.informative, deviation, 1)[group]


def dr_grpo(rewards: Tensor, group: Tensor, judged: Tensor) -> Tensor:
    """r - mean within the group: Dr. GRPO, arXiv:2503.20783.

    Without the division, questions of which a model gets nearly all or nearly none right do not
    weigh more than others.
    """
    return _centred(rewards, group, judged, groups(rewards, group, judged))


def rloo(rewards: Tensor, group: Tensor, judged: Tensor) -> Tensor:
    """r minus the mean of the others of its group, sum / (n - 1): RLOO, arXiv:2402.14740.

    It is n / (n - 1) times Dr. GRPO's, which makes the baseline independent of the sample.
    """
    found = groups(rewards, group, judged)
    factor = found.judged / (found.judged - 1).clamp(min=1)
    return _centred(rewards, group, judged, found) * factor[group]


def reinforce_plus_plus(rewards: Tensor, group: Tensor, judged: Tensor) -> Tensor:
    """(r - mean) / std over the whole batch: REINFORCE++, arXiv:2501.03262.

    The groups do not matter, so that one completion of each prompt is enough. (The divergence from
    the reference, which the paper takes off the reward, is a term of the loss here: see `kl`.)
    """
    return grpo(rewards, torch.zeros_like(group), judged)


ADVANTAGES: dict[str, AdvantageFunction] = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": reinforce_plus_plus,
}
"""By their names in the job file."""


def statistics(rewards: Tensor, group: Tensor, judged: Tensor) -> dict[str, Tensor]:
    """What to watch of a batch's rewards, each a float scalar.

    They are over the whole batch already, so they must not be added over processes.

    Returns:
        reward/mean: of the judged samples (NaN where there are none). samples/masked: the share
        that was not judged. groups/few: the share of groups of which fewer than two were judged.
        groups/uniform: the share whose judged rewards are all the same.
    """
    found = groups(rewards, group, judged)
    there = found.size > 0
    few = there & (found.judged < 2)
    uniform = there & ~few & ~found.informative
    present = there.sum().clamp(min=1)
    return {
        "reward/mean": torch.where(judged, rewards, 0).sum() / judged.sum(),
        "samples/masked": (~judged).sum() / max(1, len(judged)),
        "groups/few": few.sum() / present,
        "groups/uniform": uniform.sum() / present,
    }


def _centred(rewards: Tensor, group: Tensor, judged: Tensor, found: Groups) -> Tensor:
    counts = judged & found.informative[group]
    return torch.where(counts, rewards - found.mean[group], 0)
