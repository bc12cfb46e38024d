"""Log-probs of given tokens straight from hidden states: [tokens, vocabulary] is never whole.

With rows h [R, H], the head's weight W [V, H], temperature t and x = h W^T / t:

    log p = x[target] - logsumexp(x)        d log p / dx = onehot - softmax(x)
    entropy = logsumexp(x) - sum(p x)       d entropy / dx = -p (log p + entropy)

Logits are made for `chunk` rows at a time, in the forward and once more in the backward pass. That
costs one more product with W and saves, for 16,384 tokens and a vocabulary of 151,936, 10 GB of
fp32 several times over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _forward(rows: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, ...]:
    logits = (rows @ weight.t()).float() * scale
    sums = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - sums
    entropy = sums - ((logits - sums[:, None]).exp() * logits).sum(-1)
    return chosen, sums, entropy


def _slopes(
    rows: Tensor, weight: Tensor, targets: Tensor, scale: float, *, sums: Tensor, gradient: Tensor
) -> Tensor:
    """The gradient of the logits, in the rows' dtype, where only log-probs have one."""
    logits = (rows @ weight.t()).float() * scale
    probabilities = (logits - sums[:, None]).exp()
    places = torch.arange(weight.shape[0], device=rows.device)
    slopes = torch.where(places == targets[:, None], 1 - probabilities, -probabilities)
    return (slopes * (gradient * scale)[:, None]).to(rows.dtype)


def _entropy_slopes(
    rows: Tensor, weight: Tensor, scale: float, *, sums: Tensor, entropy: Tensor, gradient: Tensor
) -> Tensor:
    logs = (rows @ weight.t()).float() * scale - sums[:, None]
    slopes = -logs.exp() * (logs + entropy[:, None])
    return (slopes * (gradient * scale)[:, None]).to(rows.dtype)


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}


def _on(rows: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is fast where the rows are: on a GPU its passes over logits are fused."""
    if rows.device.type != "cuda":
        return function
    if function not in _compiled:
        _compiled[function] = torch.compile(function, dynamic=True)
    return _compiled[function]


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: float,
        chunk: int,
        entropy_learns: bool,
    ) -> tuple[Tensor, Tensor]:
        run = _on(rows, _forward)
        # The gradient stays in the weight's own dtype, which may be finer.
        ctx.kind = weight.dtype
        weight = weight.to(rows.dtype)
        parts = [
            run(part, weight, wanted, scale)
            for part, wanted in zip(rows.split(chunk), targets.split(chunk), strict=True)
        ]
        chosen, sums, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(rows, weight, targets, sums, entropy)
        ctx.scale, ctx.chunk, ctx.entropy_learns = scale, chunk, entropy_learns
        if not entropy_learns:
            ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, targets, sums, entropy = ctx.saved_tensors
        of_chosen, of_entropy = gradients
        of_rows = torch.empty_like(rows)
        # Many chunks are added up here: in bf16 the last ones would be lost to rounding.
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        for begin in range(0, len(rows), ctx.chunk):
            here = slice(begin, begin + ctx.chunk)
            part = rows[here]
            slopes = _on(rows, _slopes)(
                part,
                weight,
                targets[here],
                ctx.scale,
                sums=sums[here],
                gradient=of_chosen[here],
            )
            if ctx.entropy_learns:
                slopes = slopes + _on(rows, _entropy_slopes)(
                    part,
                    weight,
                    ctx.scale,
                    sums=sums[here],
                    entropy=entropy[here],
                    gradient=of_entropy[here],
                )
            torch.mm(slopes, weight, out=of_rows[here])
            _add_product(of_weight, slopes.t(), part)
            del slopes  # or it is there beside the next chunk's
        return of_rows, of_weight.to(ctx.kind), None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in fp32 whatever the factors are."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(left @ right)


def log_probs(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    chunk: int,
    entropy_learns: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies of their distributions.

    Args:
        rows: [R, H] hidden states.
        weight: [V, H] the head's; rounded to the rows' dtype.
        targets: [R] int64.
        temperature: divides the logits.
        chunk: rows whose logits are in memory at one time.
        entropy_learns: whether the entropies have a gradient too.

    Returns:
        [R] fp32 each.
    """
    return _LogProbs.apply(  # type: ignore[no-any-return]
        rows, weight, targets, 1 / temperature, chunk, entropy_learns
    )
