"""The two launches of `policy_loss`: value and metrics, and gradients.

`survey` reads every token once. A program takes a sequence where the loss needs one as a whole
(GSPO's ratio, the average over sequences), else a block of tokens. Each program leaves its sums;
the last one to finish adds them up, in a fixed order: the same batch gives the same bits.
`slope` reads every token again and writes the gradients.

Formulas and names are those of `assay_trainer.algorithms`: loss, correction and kl.
"""

from __future__ import annotations

import triton
import triton.language as tl

FARTHEST: tl.constexpr = tl.constexpr(20.0)
"""`assay_trainer.algorithms.kl.FARTHEST`; a test holds them together."""

CLIP: tl.constexpr = tl.constexpr(0)
GSPO: tl.constexpr = tl.constexpr(1)
CISPO: tl.constexpr = tl.constexpr(2)
UNCORRECTED: tl.constexpr = tl.constexpr(0)
TIS: tl.constexpr = tl.constexpr(1)
ICEPOP: tl.constexpr = tl.constexpr(2)
K1: tl.constexpr = tl.constexpr(1)
K2: tl.constexpr = tl.constexpr(2)
K3: tl.constexpr = tl.constexpr(3)

SLOTS: tl.constexpr = tl.constexpr(16)
"""Numbers that a program leaves: sums, then (from `LARGEST` on) largest values."""
LARGEST: tl.constexpr = tl.constexpr(12)


@triton.jit
def _cut(x):
    """x between -FARTHEST and FARTHEST; NaN stays NaN."""
    return tl.where(x > FARTHEST, FARTHEST, tl.where(x < -FARTHEST, -FARTHEST, x))


@triton.jit
def _first(sequence, count, value, WIDTH: tl.constexpr):
    """How many of `count` ascending numbers are below `value`: WIDTH are looked at together."""
    begin = 0
    size = count
    while size > 0:
        step = tl.cdiv(size, WIDTH)
        offsets = tl.arange(0, WIDTH) * step
        inside = offsets < size
        seen = tl.load(sequence + begin + offsets, mask=inside, other=value)
        below = tl.sum((seen < value).to(tl.int32), 0)
        if below == 0:
            size = 0
        else:
            passed = (below - 1) * step + 1
            size = tl.minimum(step - 1, size - passed)
            begin += passed
    return begin


@triton.jit
def _policy(log_prob, log_ratio, mean, advantage, low, high, LOSS: tl.constexpr):
    """A token's objective, its slope, its ratio, and whether the lower or upper bound acted."""
    if LOSS == GSPO:
        log_ratio = tl.zeros_like(log_ratio) + mean
    ratio = tl.exp(log_ratio)
    if LOSS == CISPO:
        below = ratio < low
        above = ratio > high
        slope = tl.where(below, low, tl.where(above, high, ratio)) * advantage
        value = slope * log_prob
    else:
        below = (advantage < 0) & (ratio < low)
        above = (advantage > 0) & (ratio > high)
        value = tl.where(below, low, tl.where(above, high, ratio)) * advantage
        slope = tl.where(below | above, 0.0, ratio * advantage)
    return value, slope, ratio, below, above


@triton.jit
def _weight(mismatch, floor, cap, CORRECTION: tl.constexpr):
    """A token's weight for the sampler, and whether a bound acted on it."""
    ratio = tl.exp(mismatch)
    if CORRECTION == TIS:
        outside = ratio > cap
        weight = tl.where(outside, cap, ratio)
    elif CORRECTION == ICEPOP:
        outside = (ratio < floor) | (ratio > cap)
        weight = tl.where((ratio >= floor) & (ratio <= cap), ratio, 0.0)
    else:
        outside = ratio < 0.0  # nowhere
        weight = tl.zeros_like(ratio) + 1.0
    return weight, outside


@triton.jit
def _divergence(log_prob, other, ESTIMATOR: tl.constexpr):
    """A token's estimate of KL(policy || reference), and its slope."""
    away = log_prob - other
    if ESTIMATOR == K1:
        value = away
        slope = tl.zeros_like(away) + 1.0
    elif ESTIMATOR == K2:
        value = away * away / 2
        slope = away
    else:
        d = _cut(-away)
        # exp(d) - 1 would lose most of its digits where d is small, as it is as a rule.
        small = tl.abs(d) < 0.1
        rest = d * d / 2 * (1 + d / 3 * (1 + d / 4 * (1 + d / 5 * (1 + d / 6))))
        risen = tl.where(small, d + rest, tl.exp(d) - 1)
        value = tl.where(small, rest, risen - d)
        slope = tl.where(tl.abs(away) <= FARTHEST, -risen, 0.0)
    return value, slope


@triton.jit
def _read(log_probs, sampler, mask, old, places, inside):
    """Whether tokens count, and of those that do: log-prob, its distance from old, old - sampler.

    What does not count is 0, whatever lies there.
    """
    counts = tl.load(mask + places, mask=inside, other=0).to(tl.int1)
    log_prob = tl.load(log_probs + places, mask=counts, other=0.0)
    before = log_prob
    if old is not None:
        before = tl.load(old + places, mask=counts, other=0.0)
    drawn = tl.load(sampler + places, mask=counts, other=0.0)
    return counts, log_prob, log_prob - before, before - drawn


@triton.jit
def _whole(
    log_probs, sampler, sequence, mask, old, count, which, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """Where a sequence lies, how many of its tokens count, and their mean log-ratio."""
    begin = _first(sequence, count, which, WIDTH)
    end = _first(sequence, count, which + 1, WIDTH)
    length = tl.full((), 0, tl.float32)
    total = tl.full((), 0, tl.float32)
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        counts, _, away, _ = _read(log_probs, sampler, mask, old, places, places < end)
        length += tl.sum(counts.to(tl.float32), 0)
        total += tl.sum(_cut(away), 0)
    length = tl.maximum(length, 1.0)
    return begin, end, length, total / length


@triton.jit
def survey(
    log_probs,  # [T] float32
    entropy,  # [T] float32, or None
    sampler,  # [T] float32
    advantages,  # [S] float32
    sequence,  # [T] int64, ascending where WHOLE
    mask,  # [T] bool
    old,  # [T] float32, or None
    reference,  # [T] float32, or None
    state,  # float32, out: SLOTS metrics; where WHOLE, of each program its sequence's length (1
    # where no token counts), then of each its mean log-ratio; [programs, SLOTS] for use here
    done,  # [1] int32, 0 before and after: programs that have finished
    loss,  # [] float32, out
    count,  # T
    sequences,  # S
    low,
    high,
    floor,
    cap,
    coefficient,
    bonus,
    per_token,
    per_sequence,
    LOSS: tl.constexpr,
    CORRECTION: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    BY_SEQUENCE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Loss and metrics. A program's slots are: objective, kl (averaged for the metric, then for the
    loss), entropy (likewise), ratio, below, above, mismatch, weight, outside, tokens seen; and the
    largest ratio, -ratio and mismatch."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    partials = state + SLOTS
    if WHOLE:
        partials += 2 * programs
        begin, end, length, mean = _whole(
            log_probs, sampler, sequence, mask, old, count, program, BLOCK, WIDTH
        )
        tl.store(state + SLOTS + program, length)
        tl.store(state + SLOTS + programs + program, mean)
    else:
        begin = program * BLOCK
        end = tl.minimum(begin + BLOCK, count)
        length = 1.0
        mean = 0.0
    share = per_token
    if BY_SEQUENCE:
        share = per_sequence / length
    slots = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    most = tl.full((SLOTS,), -float("inf"), tl.float32)
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        inside = places < end
        counts, log_prob, away, mismatch = _read(log_probs, sampler, mask, old, places, inside)
        owner = tl.load(sequence + places, mask=inside, other=0)
        known = (owner >= 0) & (owner < sequences)
        advantage = tl.load(advantages + owner, mask=counts & known, other=float("nan"))
        advantage = tl.where(counts, advantage, 0.0)
        value, _, ratio, below, above = _policy(
            log_prob, _cut(away), mean, advantage, low, high, LOSS
        )
        weight, outside = _weight(mismatch, floor, cap, CORRECTION)
        apart = tl.abs(mismatch)
        ones = tl.where(counts, 1.0, 0.0)
        sums += tl.where(slots == 0, tl.sum(tl.where(counts, value * weight, 0.0), 0) * share, 0.0)
        if ESTIMATOR:
            other = tl.load(reference + places, mask=counts, other=0.0)
            divergence, _ = _divergence(log_prob, other, ESTIMATOR)
            divergence = tl.sum(tl.where(counts, divergence, 0.0), 0)
            sums += tl.where(slots == 1, divergence * per_token, 0.0)
            sums += tl.where(slots == 2, divergence * share, 0.0)
        if entropy is not None:
            spread = tl.sum(tl.load(entropy + places, mask=counts, other=0.0), 0)
            sums += tl.where(slots == 3, spread * per_token, 0.0)
            sums += tl.where(slots == 4, spread * share, 0.0)
        sums += tl.where(slots == 5, tl.sum(ones * ratio, 0) * per_token, 0.0)
        sums += tl.where(slots == 6, tl.sum(tl.where(below, ones, 0.0), 0) * per_token, 0.0)
        sums += tl.where(slots == 7, tl.sum(tl.where(above, ones, 0.0), 0) * per_token, 0.0)
        sums += tl.where(slots == 8, tl.sum(apart, 0) * per_token, 0.0)
        sums += tl.where(slots == 9, tl.sum(tl.where(counts, weight, 0.0), 0) * per_token, 0.0)
        sums += tl.where(slots == 10, tl.sum(tl.where(outside, ones, 0.0), 0) * per_token, 0.0)
        mine = inside
        if WHOLE:
            mine = inside & (owner == program)
        sums += tl.where(slots == 11, tl.sum(tl.where(mine, 1.0, 0.0), 0), 0.0)
        lowest = -float("inf")
        largest = tl.max(tl.where(counts, ratio, lowest), 0)
        smallest = tl.max(tl.where(counts, -ratio, lowest), 0)
        farthest = tl.max(tl.where(counts, apart, lowest), 0)
        found = tl.where(
            slots == LARGEST, largest, tl.where(slots == LARGEST + 1, smallest, farthest)
        )
        most = tl.maximum(most, found)
    tl.store(partials + program * SLOTS + slots, tl.where(slots < LARGEST, sums, most))
    # Every thread's numbers are written before one of them says that this program is done.
    tl.debug_barrier()
    if tl.atomic_add(done, 1, sem="acq_rel", scope="gpu") == programs - 1:
        tl.debug_barrier()
        _conclude(partials, done, loss, state, programs, count, coefficient, bonus, WHOLE)


@triton.jit
def _conclude(
    partials, done, loss, metrics, programs, count, coefficient, bonus, WHOLE: tl.constexpr
):
    """Adds up what all programs left."""
    slots = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    most = tl.full((SLOTS,), -float("inf"), tl.float32)
    for begin in range(0, programs, 64):
        rows = begin + tl.arange(0, 64)[:, None]
        # Past the first cache, which need not know what other multiprocessors wrote.
        seen = tl.load(
            partials + rows * SLOTS + slots[None, :],
            mask=rows < programs,
            other=0.0,
            cache_modifier=".cg",
        )
        sums += tl.sum(seen, 0)
        most = tl.maximum(most, tl.max(tl.where(rows < programs, seen, -float("inf")), 0))
    policy = -tl.sum(tl.where(slots == 0, sums, 0.0), 0)
    divergence = tl.sum(tl.where(slots == 2, sums, 0.0), 0)
    spread = tl.sum(tl.where(slots == 4, sums, 0.0), 0)
    ratio = tl.sum(tl.where(slots == 5, sums, 0.0), 0)
    apart = tl.sum(tl.where(slots == 8, sums, 0.0), 0)
    seen_in_all = tl.sum(tl.where(slots == 11, sums, 0.0), 0)
    value = policy
    # Where a coefficient is 0, its term has no say even if it is infinite.
    if coefficient != 0:
        value += coefficient * divergence
    if bonus != 0:
        value -= bonus * spread
    if WHOLE:
        # Tokens that belong elsewhere, or nowhere: sequences do not lie end to end.
        value = tl.where(seen_in_all == count, value, float("nan"))
    # A largest value skips NaN, but a sum does not.
    total = tl.where(slots < LARGEST + 2, ratio, apart)
    most = tl.where(total != total, float("nan"), most)
    most = tl.where(slots == LARGEST + 1, -most, most)
    found = tl.where(slots < LARGEST, sums, most)
    found = tl.where(slots == 0, policy, tl.where(slots == 11, value, found))
    tl.store(metrics + slots, found)
    tl.store(loss, value)
    tl.store(done, 0)


@triton.jit
def slope(
    log_probs,  # [T] float32
    sampler,  # [T] float32
    advantages,  # [S] float32
    sequence,  # [T] int64
    mask,  # [T] bool
    old,  # [T] float32, or None
    reference,  # [T] float32, or None
    state,  # float32, as `survey` leaves it: read where BY_SEQUENCE, and for GSPO with old
    upstream,  # [] float32, or None for 1
    of_log_probs,  # [T] float32, out
    of_entropy,  # [T] float32, out, or None
    count,  # T
    sequences,  # S
    low,
    high,
    floor,
    cap,
    coefficient,
    bonus,
    per_token,
    per_sequence,
    LOSS: tl.constexpr,
    CORRECTION: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    BY_SEQUENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss's gradients at some tokens."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    counts, log_prob, away, mismatch = _read(log_probs, sampler, mask, old, places, inside)
    owner = tl.load(sequence + places, mask=counts, other=0)
    known = counts & (owner >= 0) & (owner < sequences)
    advantage = tl.load(advantages + owner, mask=known, other=float("nan"))
    mean = tl.zeros_like(log_prob)
    if LOSS == GSPO and old is not None:
        means = state + SLOTS + tl.maximum(sequences, 1)
        mean = tl.load(means + owner, mask=known, other=float("nan"))
    share = per_token
    if BY_SEQUENCE:
        share = per_sequence / tl.load(state + SLOTS + owner, mask=known, other=float("nan"))
    _, rise, _, _, _ = _policy(log_prob, _cut(away), mean, advantage, low, high, LOSS)
    if LOSS != CISPO:
        rise = tl.where(tl.abs(away) <= FARTHEST, rise, 0.0)
    weight, _ = _weight(mismatch, floor, cap, CORRECTION)
    found = -rise * weight
    if ESTIMATOR:
        other = tl.load(reference + places, mask=counts, other=0.0)
        _, pull = _divergence(log_prob, other, ESTIMATOR)
        found += coefficient * pull
    by = share
    if upstream is not None:
        by *= tl.load(upstream)
    tl.store(of_log_probs + places, tl.where(counts, found * by, 0.0), mask=inside)
    if of_entropy is not None:
        tl.store(of_entropy + places, tl.where(counts, -bonus * by, 0.0), mask=inside)
