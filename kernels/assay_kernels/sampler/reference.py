"""What `sample` computes, in plain PyTorch, with every row sorted.

Of a row's tokens, ranked by their logits (of equal ones the first token first), those may be drawn

    with fewer than top_k tokens before them,
    with a probability of at most top_p before them,
    with a probability of at least min_p times that of the first one,

probabilities being softmax(logits / temperature) over all tokens. Among them the token with the
largest log p + g is taken, where the Gumbel noise g = -log E, E = -log(1 - v), is a function of the
row's seed and position and of the token alone: v is the complement of the 32-bit MurmurHash3 of
(seed, position, token), plus 1/2, over 2^32. SGLang's seeded sampler hashes the same, so without
filters the tokens are the same, but for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
LARGEST = torch.finfo(torch.float32).max


class Sampled(NamedTuple):
    """What was drawn from B rows.

    Attributes:
        tokens: [B] int64; 0 in a row of which no token can be drawn.
        log_probs: [B] of the tokens, at the temperature, before any filter; NaN in such a row.
    """

    tokens: Tensor
    log_probs: Tensor


class Scored(NamedTuple):
    """What a distribution says of B given tokens.

    Attributes:
        log_probs: [B] of the tokens; NaN where `Sampled`'s are, and where there is no such token.
        log_sum_exps: [B] of the logits over the temperature.
    """

    log_probs: Tensor
    log_sum_exps: Tensor


def sample(
    logits: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
) -> Sampled:
    """Draws a token of each row.

    Args:
        logits: [B, V] of any float dtype. NaN and -inf are never drawn; +inf counts as float32's
            largest number.
        temperatures: [B]. Where one is not above 0 and finite, the row's first-ranked token is
            taken and its log-prob is that at temperature 1.
        seeds: [B] int64.
        positions: [B] integers; of each, 32 bits count.
        top_ks: [B] integers; 0 and below, and V and above, leave out nothing.
        top_ps: [B]; 1 and above, and NaN, leave out nothing; 0 and below leave one token.
        min_ps: [B]; 0 and below, and NaN, leave out nothing; above 1 is as 1.

    Returns:
        Tokens and log-probs, the latter float32, or float64 where logits are.
    """
    kind = torch.promote_types(logits.dtype, torch.float32)
    far, _, drawn = _scaled(logits, temperatures)
    order = far.sort(dim=-1, descending=True, stable=True).indices
    shares = far.exp()
    total = shares.sum(-1, keepdim=True)
    ranked = shares.gather(-1, order)
    rank = torch.arange(far.shape[-1], device=far.device)
    may = (ranked > 0) & (drawn | (rank == 0))
    if top_ks is not None:
        most = top_ks[:, None]
        may &= (most <= 0) | (rank < most)
    if top_ps is not None:
        share = top_ps.to(kind)[:, None]
        before = ranked.cumsum(-1) - ranked
        may &= ~(share < 1) | (before <= share.clamp(min=0) * total) | (rank == 0)
    if min_ps is not None:
        share = min_ps.to(kind)[:, None]
        may &= ~(share > 0) | (ranked >= share.clamp(max=1))
    score = ranked.log() - noise(seeds, positions, order).to(kind).log()
    winner = torch.where(may, score, -torch.inf).argmax(-1, keepdim=True)
    token = torch.where(may.any(-1, keepdim=True), order.gather(-1, winner), 0)
    log_prob = far.gather(-1, token) - total.log()
    log_prob = torch.where(far.amax(-1, keepdim=True).isneginf(), torch.nan, log_prob)
    return Sampled(token.squeeze(-1), log_prob.squeeze(-1))


def score(logits: Tensor, temperatures: Tensor, tokens: Tensor) -> Scored:
    """The log-probs that `sample` gives where it draws these tokens.

    Args:
        logits: [B, V] of any float dtype.
        temperatures: [B], as in `sample`.
        tokens: [B] int64.

    Returns:
        Log-probs and log-sum-exps, of the dtype of `sample`'s.
    """
    far, base, drawn = _scaled(logits, temperatures)
    total = far.exp().sum(-1, keepdim=True).log()
    inside = (tokens >= 0) & (tokens < logits.shape[1])
    log_prob = far.gather(-1, torch.where(inside, tokens, 0)[:, None]) - total
    known = inside & ~far.amax(-1).isneginf()
    by = torch.where(drawn, temperatures.to(far.dtype)[:, None], 1)
    sums = base / by + total
    return Scored(torch.where(known, log_prob.squeeze(-1), torch.nan), sums.squeeze(-1))


def _scaled(logits: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V] logits over the temperature from the largest on, and [B, 1] that one, and whether the
    temperature counts."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    x = logits.to(kind)
    x = torch.where(x.isnan(), -torch.inf, x).clamp(max=LARGEST)
    temperatures = temperatures.to(kind)[:, None]
    drawn = (temperatures > 0) & temperatures.isfinite()
    top = x.amax(-1, keepdim=True)
    base = torch.where(top.isneginf(), 0, top)
    return (x - base) / torch.where(drawn, temperatures, 1), base, drawn


def noise(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Exponential noise of tokens.

    Args:
        seeds: [B] int64.
        positions: [B] integers.
        tokens: [B, N] or [N] integers.

    Returns:
        [B, N] float64.
    """
    state = torch.zeros_like(seeds)
    for word in (seeds & _WORD, seeds >> 32 & _WORD, positions.long() & _WORD):
        state = _mix(state, word)
    found = _mix(state[:, None], tokens.long()) ^ 16
    found = (found ^ found >> 16) * 0x85EBCA6B & _WORD
    found = (found ^ found >> 13) * 0xC2B2AE35 & _WORD
    found ^= found >> 16
    v = ((_WORD - found).double() + 0.5) / 2**32
    # float32 has no larger number below 1.
    return -torch.log1p(-v.clamp(max=1 - 2**-24))


def _mix(state: Tensor, word: Tensor) -> Tensor:
    """One step of the hash, on numbers of 32 bits; of a product, the low ones stay right."""
    word = word * 0xCC9E2D51 & _WORD
    word = (word << 15 | word >> 17) & _WORD
    state = state ^ (word * 0x1B873593 & _WORD)
    state = (state << 13 | state >> 19) & _WORD
    return state * 5 + 0xE6546B64 & _WORD
