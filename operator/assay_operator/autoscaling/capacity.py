"""What a replica can do, learned from what warm replicas did.

Learned are the numbers of `queueing.Engine`: two lines, fitted by weighted least squares whose
weights fade with time. One is the time between tokens over the number of requests that run beside,
the other the engine time of a prompt over its computed tokens. What is assumed at first enters as a
few observations would: it says how steep a line is for its height, and the height itself only until
anything was seen. So a kind of engine that is ten times slower than assumed is known after a few
samples, and one that was never busy is taken to slow down under load as others do.
"""

from __future__ import annotations

import math
from dataclasses import replace

from assay_operator.autoscaling.model import Histogram, Measured, Policy, Prior, Sample
from assay_operator.autoscaling.queueing import Engine, Load, outlook
from assay_operator.autoscaling.state import Learned, Line, Tally

KV_FULL = 0.95
"""SGLang admits no request that its KV memory may not hold; a little of it is never used."""
_PRIOR_WEIGHT = 2.0
"""Samples that the assumed slope of a line counts as."""
_PRIOR_HEIGHT = 0.5
_RUNNING = 16.0
"""The number of running requests at which the assumed slope counts so."""
_MANY_GAPS, _MANY_PROMPTS = 50.0, 5.0
"""A sample with so many counts half."""
_MOST_BUSY = 0.9
_SLOW_SHARE = 0.05
"""How fast means follow that are no lines, each sample."""
_CORRECTION = (0.7, 3.0)
_CORRECTION_DOUBLES_S = 120.0
_TALLY_S = 120.0
_ENOUGH = 20.0
"""Requests before anything is said about the share of them within an objective."""


def engine(learned: Learned, prior: Prior) -> Engine:
    """What a replica can do as far as it is known, the rest as assumed."""
    itl, per_running = _solve(learned.itl, prior.itl_s, prior.itl_per_running_s, _RUNNING)
    first, per_token = _solve(
        learned.prefill, prior.first_token_s, prior.prompt_token_s, prior.prompt_tokens
    )
    places = [prior.slots] if prior.slots is not None else []
    if learned.kv_per_request:
        places.append(max(1.0, KV_FULL / learned.kv_per_request))
    return Engine(
        itl_s=itl,
        itl_per_running_s=per_running,
        first_token_s=first,
        prompt_token_s=per_token,
        prompt_cv2=1.0 if learned.prompt_cv2 is None else learned.prompt_cv2,
        slots=min(places, default=None),
        correction=learned.correction,
        samples=learned.samples,
    )


def teaches(sample: Sample) -> bool:
    """Whether capacity may be learned from it.

    Not from cold replicas, which are not in `measured`, nor while others start or load weights and
    take memory, disks and cores from them, nor while one is silent and may be at anything. Those
    that failed are not counted: else one that no node takes would end all learning. Nor from a
    queue: how long one is depends on what came earlier, and while prompts wait, nothing is decoded.
    """
    seen = sample.measured
    quiet = not (sample.starting or sample.away or sample.silent or sample.rollout)
    if seen is None or not quiet or sample.seconds <= 0:
        return False
    return 0 < seen.engines >= seen.queued and sample.held == 0


def learn(learned: Learned, policy: Policy, sample: Sample) -> Learned:
    """With what one sample tells; unchanged where it tells nothing."""
    seen = sample.measured
    if seen is None or not teaches(sample):
        return learned
    fade = math.exp(-sample.seconds / policy.memory_s)
    now = engine(learned, policy.prior)
    rate = seen.ttft.count / sample.seconds / seen.engines
    after = learned
    if (first := seen.ttft.mean) is not None and first > 0:
        tokens = seen.prompt_tokens / seen.ttft.count
        # The mean time to the first token is x / (1 - r x) where prompts wait for each other as in
        # M/M/1; this is that solved for x.
        took = first / (1 + rate * first)
        weight = _weight(seen.ttft.count, _MANY_PROMPTS)
        line = _observe(learned.prefill, fade, tokens, took, now.prompt_s(tokens), weight=weight)
        after = replace(after, prefill=line)
    if (gap := seen.itl.mean) is not None and gap > 0:
        busy = min(_MOST_BUSY, rate * now.prompt_s(seen.prompt_tokens / max(seen.ttft.count, 1.0)))
        running = _running(seen, sample.seconds, gap)
        step = now.itl_s + now.itl_per_running_s * running
        weight = _weight(seen.itl.count, _MANY_GAPS)
        line = _observe(learned.itl, fade, running, gap * (1 - busy), step, weight=weight)
        after = replace(after, itl=line)
    if after is learned:
        return learned
    tally = _tally(learned.tally, seen, sample.seconds, policy)
    return replace(
        after,
        tally=tally,
        kv_per_request=_follow(learned.kv_per_request, _kv_per_request(seen)),
        prompt_cv2=_follow(learned.prompt_cv2, _cv2(seen.prompts)),
        samples=learned.samples + 1,
        correction=_correction(learned.correction, tally, policy, now, sample.seconds),
    )


def _running(seen: Measured, seconds: float, gap: float) -> float:
    """Requests that one engine ran, its mean: tokens/s times seconds a token (Little's law).

    Exact where the gauge is one moment's; that counts where no token was counted yet.
    """
    if seen.output_tokens > 0:
        return seen.output_tokens / seconds / seen.engines * gap
    return seen.running / seen.engines


def _tally(old: Tally, seen: Measured, seconds: float, policy: Policy) -> Tally:
    """With one sample more."""
    kept = math.exp(-seconds / _TALLY_S) if old.engines == seen.engines else 0.0

    def within(felt: Histogram, objective: float | None) -> float:
        return felt.count * ((felt.share_within(objective) or 0.0) if objective else 1.0)

    return Tally(
        engines=seen.engines,
        seconds=old.seconds * kept + seconds,
        firsts=old.firsts * kept + seen.ttft.count,
        firsts_within=old.firsts_within * kept + within(seen.ttft, policy.ttft_s),
        answers=old.answers * kept + seen.answers.count,
        answers_within=old.answers_within * kept + within(seen.answers, policy.itl_s),
        prompt_tokens=old.prompt_tokens * kept + seen.prompt_tokens,
        output_tokens=old.output_tokens * kept + seen.output_tokens,
    )


def _correction(old: float, tally: Tally, policy: Policy, now: Engine, seconds: float) -> float:
    """Follows whether users wait longer, or shorter, than the model says of this very load."""
    rested = 1 + (old - 1) * math.exp(-seconds / policy.memory_s)
    shares = [
        (good / count, math.sqrt(policy.attainment * (1 - policy.attainment) / count))
        for good, count, objective in (
            (tally.firsts_within, tally.firsts, policy.ttft_s),
            (tally.answers_within, tally.answers, policy.itl_s),
        )
        if objective is not None and count >= _ENOUGH
    ]
    if not shares or not tally.firsts:
        return rested
    load = Load(
        tally.firsts / tally.seconds,
        tally.prompt_tokens / tally.firsts,
        tally.output_tokens / tally.firsts,
    )
    said = outlook(now, load, tally.engines, policy.attainment)
    well = said.ttft_s <= (policy.ttft_s or math.inf) and said.itl_s <= (policy.itl_s or math.inf)
    grown = 2 ** (seconds / _CORRECTION_DOUBLES_S)
    if well and any(share < policy.attainment - 2 * noise for share, noise in shares):
        return min(_CORRECTION[1], old * grown)
    if not well and all(share > policy.attainment for share, _ in shares):
        return max(_CORRECTION[0], old / grown)
    return rested if well else old


def _kv_per_request(seen: Measured) -> float | None:
    each = seen.running / seen.engines
    return seen.kv_use / each if seen.kv_use and each >= 1 else None


def _cv2(lengths: Histogram) -> float | None:
    """Variance by the square of the mean, from the middles of buckets; None without any."""
    count = lengths.count
    if count <= 0 or not lengths.bounds:
        return None
    edges = (0.0, *lengths.bounds)
    middles = [(low + high) / 2 for low, high in zip(edges, lengths.bounds, strict=False)]
    middles.append(2 * lengths.bounds[-1])
    pairs = list(zip(middles, lengths.counts, strict=True))
    mean = sum(middle * number for middle, number in pairs) / count
    square = sum(middle**2 * number for middle, number in pairs) / count
    return max(0.0, square / mean**2 - 1) if mean > 0 else None


def _follow(old: float | None, new: float | None) -> float | None:
    if old is None or new is None:
        return old if new is None else new
    return old + _SLOW_SHARE * (new - old)


def _weight(count: float, half: float) -> float:
    return count / (count + half)


def _observe(
    line: Line, fade: float, u: float, y: float, expected: float, *, weight: float
) -> Line:
    """With one observation more; one far off the line counts less (Huber's weights)."""
    off = abs(y - expected) / expected
    weight *= min(1.0, 2 * line.spread / off) if off else 1.0
    return Line(
        w=line.w * fade + weight,
        u=line.u * fade + weight * u,
        uu=line.uu * fade + weight * u * u,
        y=line.y * fade + weight * y,
        uy=line.uy * fade + weight * u * y,
        # What is off again and again is no outlier, but news.
        spread=max(0.05, line.spread + 0.1 * (min(off, 5 * line.spread) - line.spread)),
    )


def _solve(line: Line, height: float, slope: float, at: float) -> tuple[float, float]:
    """Height at 0 and slope of the line, both above or at 0, given those that are assumed.

    Minimises the squares of the observations plus
    `_PRIOR_HEIGHT * (a - height)^2 + _PRIOR_WEIGHT * at^2 * (b - a * slope / height)^2`.
    """
    ratio = slope / height
    strength = _PRIOR_WEIGHT * at * at
    aa = line.w + strength * ratio**2 + _PRIOR_HEIGHT
    ab = line.u - strength * ratio
    bb = line.uu + strength
    ya = line.y + _PRIOR_HEIGHT * height
    determinant = aa * bb - ab * ab
    a = (ya * bb - ab * line.uy) / determinant
    b = (aa * line.uy - ab * ya) / determinant
    if b < 0:
        return ya / (line.w + _PRIOR_HEIGHT), 0.0
    if a <= 0:
        return height * 1e-3, line.uy / line.uu
    return a, b
