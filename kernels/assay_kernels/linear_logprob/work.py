"""What `linear_policy_loss` does with some of its tokens: logits once, then gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assay_kernels.linear_logprob.passes import add_product, groups, room, survey, turn

Wanted = tuple[Tensor | None, Tensor | None, Tensor | None]
"""[R] d loss / d log-prob, log-sum-exp and entropy; None where there is none."""


@dataclass
class Work:
    """Head, tokens and slopes of one call.

    Attributes:
        hidden: [T, H].
        weight: [V, H] of its dtype.
        targets: [T].
        temperature: divides the logits.
        scratch: bytes of logits in memory at one time.
        said: [T] log-probs, log-sum-exps, entropies; filled here.
        slopes: what the loss wants of some tokens, once their log-probs are there.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    temperature: float
    scratch: int
    said: tuple[Tensor, Tensor, Tensor]
    slopes: Callable[[slice], Wanted]
    _logits: Tensor | None = None

    def by_rows(
        self, rows: slice, of_hidden: Tensor | None, of_weight: Tensor | None, *, anew: bool
    ) -> None:
        """Some tokens, all of whose logits are in scratch memory; the first call has most tokens.

        Args:
            rows: which tokens.
            of_hidden: [T, H], or None where it is not asked for.
            of_weight: [V, H], or None likewise.
            anew: whether of_weight holds nothing yet.
        """
        hidden, count = self.hidden[rows], rows.stop - rows.start
        if self._logits is None:
            self._logits = room(hidden, count, len(self.weight))
        logits = self._logits[:count]
        torch.mm(hidden, self.weight.t(), out=logits)
        survey(logits, self.targets[rows], self.temperature, self._said(rows))
        self._turn(logits, logits, rows, self.slopes(rows), first=0)
        if of_hidden is not None:
            torch.mm(logits, self.weight, out=of_hidden[rows])
        if of_weight is not None:
            add_product(of_weight, logits.t(), hidden, anew=anew)

    def in_place(self, of_hidden: Tensor | None, of_weight: Tensor) -> int:
        """The first tokens, whose logits are where the weight's gradient will be.

        Column by column, logits of H tokens take just the memory of the gradient (of 2 H, where
        that is in float32 and logits are in 16 bits). Some columns at a time, their gradient is
        made in scratch memory, and the weight's gradient is written over what was read.

        Args:
            of_hidden: [T, H], or None where it is not asked for.
            of_weight: [V, H], of nothing yet.

        Returns:
            How many tokens that were.
        """
        lain = of_weight.view(self.hidden.dtype)
        count: int = min(len(self.hidden), lain.shape[1])
        rows, hidden = slice(count), self.hidden[:count]
        logits = lain[:, :count]
        torch.mm(self.weight, hidden.t(), out=logits)
        survey(logits.t(), self.targets[rows], self.temperature, self._said(rows))
        wanted = self.slopes(rows)
        total = None if of_hidden is None else torch.empty_like(hidden, dtype=torch.float32)
        sums = 0 if total is None else total.numel() * total.element_size()
        left = max(self.scratch - sums, self.scratch // 2)
        turned = None
        for columns in groups(len(self.weight), count * hidden.element_size(), left):
            some = self.weight[columns]
            if turned is None:
                turned = room(hidden, len(some), count)
            here = turned[: len(some)]
            self._turn(logits[columns].t(), here.t(), rows, wanted, first=columns.start)
            if total is not None:
                add_product(total, here.t(), some, anew=columns.start == 0)
            add_product(of_weight[columns], here, hidden, anew=True)
        if of_hidden is not None and total is not None:
            of_hidden[rows] = total
        return count

    def _said(self, rows: slice) -> tuple[Tensor, ...]:
        return tuple(part[rows] for part in self.said)

    def _turn(
        self,
        logits: Tensor,
        into: Tensor,
        rows: slice,
        wanted: Wanted,
        *,
        first: int,
    ) -> None:
        turn(
            logits,
            into,
            self.targets[rows],
            self._said(rows)[1:],
            wanted,
            first=first,
            vocabulary=len(self.weight),
            temperature=self.temperature,
        )
