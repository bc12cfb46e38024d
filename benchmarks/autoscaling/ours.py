"""The operator's own decision as a policy: what it would scrape, in the form in which it would."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Self

from assay_operator.autoscaling.decision import Decision, decide
from assay_operator.autoscaling.model import Histogram, Measured
from assay_operator.autoscaling.model import Policy as Wanted
from assay_operator.autoscaling.model import Sample as Scrape
from assay_operator.autoscaling.state import State
from benchmarks.autoscaling.policy import Objective, ReplicaView, Sample

INTERVAL_S = 5.0
TTFT_BOUNDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
"""The buckets of SGLang's histograms, in seconds. So are the next, and the last in tokens."""
ITL_BOUNDS = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08),
    *(0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8),
)
PROMPT_BOUNDS = (
    *(100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 12500),
    *(15000, 17500, 20000, 22500, 25000, 27500, 30000, 35000, 40000, 60000, 80000, 100000),
)


class Ours:
    """The builtin driver of an InferenceService with objectives for times.

    Attributes:
        decisions: all of them that changed the number, each with its time in seconds.
        last: the latest decision, None before the first.
    """

    period = INTERVAL_S

    def __init__(self, policy: Wanted) -> None:
        self.decisions: list[tuple[float, Decision]] = []
        self.last: Decision | None = None
        self._policy = policy
        self._state = State()
        self._seen = 0.0

    @classmethod
    def of(cls, objective: Objective, least: int, most: int, **parameters: float) -> Self:
        """A fresh one.

        Args:
            objective: of the service.
            least: fewest replicas.
            most: most replicas.
            parameters: fields of the operator's policy that are not the defaults.
        """
        return cls(
            Wanted(
                min=least,
                max=most,
                ttft_s=objective.ttft_s,
                itl_s=objective.itl_s,
                **parameters,  # type: ignore[arg-type]
            )
        )

    def observe(self, sample: Sample) -> int:
        views = sample.replicas
        warm = [view for view in views if sample.now - view.ready_at >= self._policy.warmup_s]
        oldest = max((sample.now - view.ready_at for view in views), default=None)
        decision = decide(
            self._policy,
            self._state,
            Scrape(
                now=sample.now,
                seconds=sample.now - self._seen,
                arrivals=sample.arrived,
                running=sum(view.running for view in views),
                queued=sum(view.queued for view in views),
                held=sample.held,
                prompt_tokens=sum(view.news.prompt_tokens for view in views),
                output_tokens=sum(view.news.output_tokens for view in views),
                ready=sample.ready,
                warm=len(warm),
                starting=sample.starting,
                oldest_ready_s=oldest,
                measured=_measured(warm) if warm else None,
            ),
        )
        self._seen, self._state, self.last = sample.now, decision.state, decision
        if decision.replicas != sample.wanted:
            self.decisions.append((sample.now, decision))
        return decision.replicas


def _measured(views: Sequence[ReplicaView]) -> Measured:
    news = [view.news for view in views]
    first = [served.first - served.routed for each in news for served in each.first_tokens]
    finished = [served for each in news for served in each.finished]
    return Measured(
        engines=len(views),
        running=sum(view.running for view in views),
        queued=sum(view.queued for view in views),
        prompt_tokens=sum(each.prompt_tokens for each in news),
        output_tokens=sum(each.output_tokens for each in news),
        kv_use=sum(view.kv_share for view in views) / len(views),
        ttft=_histogram(((value, 1) for value in first), TTFT_BOUNDS),
        itl=_histogram((gap for each in news for gap in each.gaps), ITL_BOUNDS),
        answers=_histogram(
            ((served.itl, 1) for served in finished if served.request.output > 1), ITL_BOUNDS
        ),
        prompts=_histogram(((served.request.prompt, 1) for served in finished), PROMPT_BOUNDS),
    )


def _histogram(values: Iterable[tuple[float, int]], bounds: Sequence[float]) -> Histogram:
    counts, total = [0.0] * (len(bounds) + 1), 0.0
    for value, times in values:
        counts[bisect_left(bounds, value)] += times
        total += value * times
    return Histogram(tuple(bounds), tuple(counts), total)
