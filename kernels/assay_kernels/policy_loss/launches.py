"""The two launches of `policy_loss`: what the kernels are given, and the memory that they fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay_kernels.policy_loss.formula import needs_whole

SLOTS = 16
"""Numbers that a program leaves, and metrics at the beginning of the state; `kernel.SLOTS`."""
_BLOCK = 512
_WIDTH = 256

_done: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """[1] int32, 0 whenever no launch of this stream is under way."""
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        # A graph has one of its own: it may run beside this stream, and its memory is its own.
        return torch.zeros(1, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else 0
    if (device, stream) not in _done:
        _done[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _done[device, stream]


def survey(
    log_probs: Tensor,
    entropy: Tensor | None,
    sampler: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    mask: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    loss: int,
    correction: int,
    estimator: int,
    by_sequence: bool,
    low: float,
    high: float,
    floor: float,
    cap: float,
    coefficient: float,
    bonus: float,
    per_token: float,
    per_sequence: float,
) -> tuple[Tensor, Tensor]:
    """The loss, and what `kernel.survey` says of it and of the sequences.

    Args:
        log_probs: [T] float32; for it and the other tensors see `kernel.survey`.
        loss: this and all that follows: see `Formula`.

    Returns:
        [] and the state: its first `SLOTS` numbers are the metrics.
    """
    from assay_kernels.policy_loss import kernel  # noqa: PLC0415 (needs Triton)

    count, sequences, whole = len(log_probs), len(advantages), needs_whole(loss, by_sequence)
    programs = _programs(count, sequences, whole)
    value, state = (log_probs.new_empty(shape) for shape in _sizes(programs, whole))
    kernel.survey[(programs,)](
        log_probs,
        entropy,
        sampler,
        advantages,
        sequence,
        mask,
        old,
        reference,
        state,
        _counter(log_probs.device),
        value,
        count,
        sequences,
        low,
        high,
        floor,
        cap,
        coefficient,
        bonus,
        per_token,
        per_sequence,
        LOSS=loss,
        CORRECTION=correction,
        ESTIMATOR=estimator if reference is not None else 0,
        BY_SEQUENCE=by_sequence,
        WHOLE=whole,
        BLOCK=_BLOCK,
        WIDTH=_WIDTH,
    )
    return value, state


def slopes(
    upstream: Tensor | None,
    log_probs: Tensor,
    sampler: Tensor,
    advantages: Tensor,
    sequence: Tensor,
    mask: Tensor,
    old: Tensor | None,
    reference: Tensor | None,
    state: Tensor,
    loss: int,
    correction: int,
    estimator: int,
    by_sequence: bool,
    low: float,
    high: float,
    floor: float,
    cap: float,
    coefficient: float,
    bonus: float,
    per_token: float,
    per_sequence: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of log_probs and entropy at some tokens; the latter empty where bonus is 0.

    Args:
        upstream: [] float32, the gradient of the loss; None for 1.
        log_probs: [T] float32; so are sampler, old and reference; sequence and mask are of [T].
        state: as `survey` leaves it; its first numbers are not read.
        loss: this and all that follows: see `Formula`.
    """
    from assay_kernels.policy_loss import kernel  # noqa: PLC0415 (needs Triton)

    of_log_probs = torch.empty_like(log_probs)
    of_entropy = torch.empty_like(log_probs) if bonus else log_probs.new_empty(0)
    count = len(log_probs)
    if not count:
        return of_log_probs, of_entropy
    kernel.slope[(math.ceil(count / _BLOCK),)](
        log_probs,
        sampler,
        advantages,
        sequence,
        mask,
        old,
        reference if coefficient else None,
        state,
        upstream,
        of_log_probs,
        of_entropy if bonus else None,
        count,
        len(advantages),
        low,
        high,
        floor,
        cap,
        coefficient,
        bonus,
        per_token,
        per_sequence,
        LOSS=loss,
        CORRECTION=correction,
        ESTIMATOR=estimator if coefficient else 0,
        BY_SEQUENCE=by_sequence,
        BLOCK=_BLOCK,
    )
    return of_log_probs, of_entropy


def shapes(log_probs: Tensor, advantages: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """What `survey` returns, of nothing."""
    programs = _programs(log_probs.shape[0], advantages.shape[0], whole)
    value, state = (log_probs.new_empty(shape) for shape in _sizes(programs, whole))
    return value, state


def _programs(count: int, sequences: int, whole: bool) -> int:
    # One at least: it says that the loss of nothing is 0.
    return max(1, sequences if whole else -(-count // _BLOCK))


def _sizes(programs: int, whole: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (), (SLOTS + programs * (SLOTS + 2 * whole),)
