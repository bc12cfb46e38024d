"""From metrics pages to samples: what engines and routers tell of themselves, and since when.

A page tells sums since its process began. What happened since the page before is their difference;
a process that began anew, or is seen for the first time, has no page before, so of it nothing is
known. Silence is likewise nothing known, and never zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from assay_operator.autoscaling.model import Histogram, Measured, Sample
from assay_operator.plan import Json

_RUNNING, _QUEUED = "sglang:num_running_reqs", "sglang:num_queue_reqs"
_KV_USE = "sglang:token_usage"
_GAUGES = (_RUNNING, _QUEUED, _KV_USE)
_TOKENS = "sglang:realtime_tokens_total"
_TTFT, _ITL = "sglang:time_to_first_token_seconds", "sglang:inter_token_latency_seconds"
_ANSWERS = "sglang:request_time_per_output_token_seconds"
_PROMPTS = "sglang:prompt_tokens_histogram"
_HISTOGRAMS = (_TTFT, _ITL, _ANSWERS, _PROMPTS)
_BUCKET = "_bucket"
_OF_ENGINES = (*_GAUGES, _TOKENS, *_HISTOGRAMS)
_ROUTER, _REQUESTS, _HEALTH = "smg_", "smg_router_requests_total", "smg_worker_health"
_RANKS = ("tp_rank=", "pp_rank=", "moe_ep_rank=", "pid=")
"""Labels of processes that work on the same requests: their gauges are not to be added up."""
_PRIORITY = "priority"
"""SGLang has a gauge for all requests, where this label is empty or absent, and beside it one for
each priority. Of counters and histograms there are only those for each."""
_COVERED = 0.5
"""SGLang measures the time between tokens where it hands them out: of answers that are not streamed
only every 50. Where it has so little of it, that of whole answers is taken."""


@dataclass(frozen=True)
class EnginePage:
    """An engine's metrics page: sums since it began, but for the first three.

    Attributes:
        running: requests that it runs.
        queued: requests that wait in it.
        kv_use: the share of its memory for keys and values that is in use.
        prompt_tokens: computed prompt tokens; what its cache held is not among them.
        output_tokens: generated tokens.
        ttft, itl, answers, prompts: see `Measured`.
    """

    running: float
    queued: float
    kv_use: float | None
    prompt_tokens: float
    output_tokens: float
    ttft: Histogram
    itl: Histogram
    answers: Histogram
    prompts: Histogram


@dataclass(frozen=True)
class RouterPage:
    """A router's metrics page.

    Attributes:
        requests: that it took for a model since it began.
        healthy: URLs of the engines that it sends requests to.
    """

    requests: float
    healthy: frozenset[str]


@dataclass(frozen=True)
class Scan:
    """One look at all pods of a service that can tell something, by their uids. None is silence.

    Attributes:
        at: when, by a clock that nobody sets, in seconds.
        engines: of those that are ready.
        routers: likewise.
        activators: likewise, what they answer; and of the others those that do.
    """

    at: float
    engines: Mapping[str, EnginePage | None] = field(default_factory=dict)
    routers: Mapping[str, RouterPage | None] = field(default_factory=dict)
    activators: Mapping[str, Json | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """How a service stands, as far as its pods and its status tell.

    Attributes:
        ready: uids of routable replicas.
        warm: those of them that have been so for long enough to learn from.
        starting, failed, away, oldest_ready_s, rollout: see `Sample`.
    """

    ready: frozenset[str] = frozenset()
    warm: frozenset[str] = frozenset()
    starting: int = 0
    failed: int = 0
    away: int = 0
    oldest_ready_s: float | None = None
    rollout: bool = False


def engine_page(text: str) -> EnginePage:
    """What an engine's metrics page says.

    Raises:
        ValueError: it is not such a page, or does not say how many requests run and wait.
    """
    gauges: dict[str, dict[str, float]] = {}
    sums: dict[str, float] = {}
    buckets: dict[str, dict[str, float]] = {}
    for name, labels, value in _lines(text, _OF_ENGINES):
        if name in _GAUGES:
            if not _label(labels, _PRIORITY):
                # The ranks of one engine tell the same; its data-parallel parts tell their own.
                part = ",".join(each for each in labels.split(",") if not each.startswith(_RANKS))
                told = gauges.setdefault(name, {})
                told[part] = _higher(told.get(part, math.nan), value)
        elif name.endswith(_BUCKET) and (base := name.removesuffix(_BUCKET)) in _HISTOGRAMS:
            bound = _label(labels, "le")
            counts = buckets.setdefault(base, {})
            counts[bound] = counts.get(bound, 0.0) + value
        elif name == _TOKENS or name.removesuffix("_sum") in _HISTOGRAMS:
            key = f"{name}/{_label(labels, 'mode')}"
            sums[key] = sums.get(key, 0.0) + value
    running, queued = (_total(gauges.get(name, {})) for name in (_RUNNING, _QUEUED))
    if running is None or queued is None:
        raise ValueError("this is no engine's metrics page, or does not say what the engine is at")
    found = {name: _histogram(buckets.get(name, {}), sums, name) for name in _HISTOGRAMS}
    use = gauges.get(_KV_USE, {})
    used = _total(use)
    return EnginePage(
        running=running,
        queued=queued,
        kv_use=None if used is None else used / len(use),
        prompt_tokens=sums.get(f"{_TOKENS}/prefill_compute", 0.0),
        # The first token of each answer comes out of its prompt.
        output_tokens=sums.get(f"{_TOKENS}/decode", 0.0) + found[_TTFT].count,
        ttft=found[_TTFT],
        itl=found[_ITL],
        answers=found[_ANSWERS],
        prompts=found[_PROMPTS],
    )


def _higher(one: float, other: float) -> float:
    """The higher of two numbers; NaN where both are."""
    return other if math.isnan(one) or other > one else one


def _total(parts: Mapping[str, float]) -> float | None:
    """Of an engine's parts; None where there is none, or where one does not know its own."""
    total = math.fsum(parts.values())
    return total if parts and not math.isnan(total) else None


def router_page(text: str) -> RouterPage:
    """What a router's metrics page says.

    Raises:
        ValueError: it is not such a page.
    """
    if _ROUTER not in text:
        raise ValueError("this is no router's metrics page")
    requests, healthy = 0.0, set()
    for name, labels, value in _lines(text, (_REQUESTS, _HEALTH)):
        if name == _REQUESTS:
            requests += value
        elif name == _HEALTH and value == 1:
            healthy.add(_label(labels, "worker").rstrip("/"))
    return RouterPage(requests, frozenset(healthy))


def _lines(text: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, str, float]]:
    """Name, labels and value of the lines that begin so; what cannot be read is left out.

    There may be thousands of engines, each with a page of a thousand lines: on the hundred and
    sixty that count, prometheus-client's parser takes many times as long.
    """
    for line in text.splitlines():
        if line.startswith(wanted):
            head, _, number = line.rpartition(" ")
            name, _, labels = head.partition("{")
            try:
                yield name, labels[:-1], float(number)
            except ValueError:
                continue


def _label(labels: str, name: str) -> str:
    """The value of one label; it has no quotes within."""
    return f",{labels}".partition(f',{name}="')[2].partition('"')[0]


def _histogram(counts: Mapping[str, float], sums: Mapping[str, float], name: str) -> Histogram:
    """From counts that are cumulated over the buckets."""
    if not counts:
        return Histogram()
    rising = sorted((float(bound), count) for bound, count in counts.items())
    each = [rising[0][1], *(high[1] - low[1] for low, high in pairwise(rising))]
    bounds = tuple(bound for bound, _ in rising[:-1])
    return Histogram(bounds, tuple(each), sums.get(f"{name}_sum/", 0.0))


def difference(page: EnginePage, before: EnginePage) -> EnginePage | None:
    """What an engine did between two pages; None where it was started anew in between."""
    spans = [
        _since(now, then)
        for now, then in (
            (page.ttft, before.ttft),
            (page.itl, before.itl),
            (page.answers, before.answers),
            (page.prompts, before.prompts),
        )
    ]
    prompts = page.prompt_tokens - before.prompt_tokens
    outputs = page.output_tokens - before.output_tokens
    ttft, itl, answers, lengths = spans
    # Put so that NaN is nothing that is known.
    if not (prompts >= 0 and outputs >= 0 and ttft and itl and answers and lengths):
        return None
    return EnginePage(
        page.running, page.queued, page.kv_use, prompts, outputs, ttft, itl, answers, lengths
    )


def _since(now: Histogram, before: Histogram) -> Histogram | None:
    if not before.bounds:
        return now
    if now.bounds != before.bounds or not now.sum >= before.sum:
        return None
    counts = tuple(new - old for new, old in zip(now.counts, before.counts, strict=True))
    return Histogram(now.bounds, counts, now.sum - before.sum) if min(counts) >= 0 else None


def sample(before: Scan | None, scan: Scan, standing: Standing, now: float) -> Sample:
    """What was seen between two looks at a service.

    Args:
        before: the look before, None where there was none.
        scan: this one.
        standing: how the service stands now.
        now: the time by the wall clock, in seconds.
    """
    told = {uid: page for uid, page in scan.engines.items() if page and uid in standing.ready}
    spans = _spans(before, scan)
    silent = len(standing.ready) - len(told)
    known = [spans[uid] for uid in told if uid in spans]
    return Sample(
        now=now,
        seconds=scan.at - before.at if before else 0.0,
        arrivals=_arrivals(before, scan),
        running=sum(page.running for page in told.values()) if not silent else None,
        queued=sum(page.queued for page in told.values()) if not silent else None,
        held=_held(scan),
        prompt_tokens=sum(page.prompt_tokens for page in known) if known else None,
        output_tokens=sum(page.output_tokens for page in known) if known else None,
        ready=len(standing.ready),
        warm=len(standing.warm),
        starting=standing.starting,
        failed=standing.failed,
        away=standing.away,
        silent=silent,
        oldest_ready_s=standing.oldest_ready_s,
        rollout=standing.rollout,
        measured=_measured([spans[uid] for uid in told if uid in spans and uid in standing.warm]),
    )


def _spans(before: Scan | None, scan: Scan) -> dict[str, EnginePage]:
    """What each engine did since the look before, as far as it is known."""
    found = {}
    for uid, page in scan.engines.items():
        then = before.engines.get(uid) if before else None
        if page and then and (span := difference(page, then)):
            found[uid] = span
    return found


def _arrivals(before: Scan | None, scan: Scan) -> float | None:
    """Requests that came to the service since the look before, None where they are not known.

    A request that waited at an activator comes to a router when its wait is over: it counts when it
    begins to wait, and so does one that is refused there. So of what came to the routers as many
    are left out as wait no more, though some of these may have been given up, which is not told.
    """
    routed = _routed(before, scan) if before else None
    if before is None or routed is None or None in scan.activators.values():
        return None
    came, left = _waited(before, scan)
    return came + max(0.0, routed - left)


def _waited(before: Scan, scan: Scan) -> tuple[int, int]:
    """Requests that came to activators since the look before, and those that wait there no more."""
    came = 0
    left = sum(
        then["held"]
        for uid, then in before.activators.items()
        if then and uid not in scan.activators
    )
    for uid, now in scan.activators.items():
        if now is None:
            continue
        then = before.activators.get(uid)
        # Of one that was not known, or was started anew, it is known what waits there now.
        known = then if then and then["requests"] <= now["requests"] else None
        new = now["requests"] - known["requests"] if known else now["held"]
        had = known["held"] if known else 0
        came += new
        # One that comes back from a router without a worker waits again.
        left += max(0, had + new - now["held"])
    return came, left


def _routed(before: Scan, scan: Scan) -> float | None:
    """Requests that came to the routers since the look before, None where one does not tell."""
    came = 0.0
    for uid, page in scan.routers.items():
        then = before.routers.get(uid)
        if page is None or then is None or not page.requests >= then.requests:
            return None
        came += page.requests - then.requests
    return came


def _held(scan: Scan) -> int:
    return sum(answer["held"] for answer in scan.activators.values() if answer)


def quiet(before: Scan | None, scan: Scan) -> bool | None:
    """Whether no engine has a request and no router got one since the look before; None where one
    of them does not say."""
    pages = scan.engines.values()
    came = _routed(before, scan) if before else None
    if came is None or None in pages:
        return None
    return not came and not any(page.running or page.queued for page in pages if page)


def _measured(spans: list[EnginePage]) -> Measured | None:
    if not spans:
        return None
    uses = [span.kv_use for span in spans if span.kv_use is not None]
    itl, answers = _sum(span.itl for span in spans), _sum(span.answers for span in spans)
    outputs = sum(span.output_tokens for span in spans)
    return Measured(
        engines=len(spans),
        running=sum(span.running for span in spans),
        queued=sum(span.queued for span in spans),
        prompt_tokens=sum(span.prompt_tokens for span in spans),
        output_tokens=outputs,
        kv_use=sum(uses) / len(uses) if uses else None,
        ttft=_sum(span.ttft for span in spans),
        itl=itl if itl.count >= _COVERED * outputs else answers,
        answers=answers,
        prompts=_sum(span.prompts for span in spans),
    )


def _sum(histograms: Iterable[Histogram]) -> Histogram:
    """Of those with the buckets of the first that has any: one release has one set of them."""
    total = Histogram()
    for each in histograms:
        if not total.bounds:
            total = each
        elif each.bounds == total.bounds:
            counts = tuple(a + b for a, b in zip(total.counts, each.counts, strict=True))
            total = Histogram(total.bounds, counts, total.sum + each.sum)
    return total
