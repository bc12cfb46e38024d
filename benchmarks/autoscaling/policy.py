"""What a policy sees and says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.autoscaling.engine import News, Served


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What a ready replica shows.

    Attributes:
        number: of the replica, never used twice.
        ready_at: since when it is routable, in seconds of the trace.
        running: requests that decode.
        queued: requests that wait for their first token.
        queued_tokens: prompt tokens that are not in the cache yet.
        context: tokens in the cache of what runs.
        kv_share: the same as a share of the cache.
        news: what it did since the sample before.
    """

    number: int
    ready_at: float
    running: int
    queued: int
    queued_tokens: int
    context: int
    kv_share: float
    news: News

    @property
    def load(self) -> int:
        """Requests in it."""
        return self.running + self.queued


@dataclass(frozen=True, slots=True)
class Sample:
    """What can be seen at a moment, all of it fresh; "since" means since the sample before.

    Attributes:
        now: seconds since the trace began.
        wanted: replicas that the policy last asked for.
        starting: replicas that are not routable yet.
        replicas: those that are, without the ones that only finish what they have.
        held: requests that wait at the router because no replica is routable.
        in_system: requests that have arrived and not finished.
        concurrency: mean of the same since.
        arrived: requests since.
        prompt_tokens: of these.
        finished: requests that finished since, also in replicas that are being let go.
    """

    now: float
    wanted: int
    starting: int
    replicas: Sequence[ReplicaView]
    held: int
    in_system: int
    concurrency: float
    arrived: int
    prompt_tokens: int
    finished: Sequence[Served]

    @property
    def ready(self) -> int:
        """Routable replicas."""
        return len(self.replicas)


class Policy(Protocol):
    """Decides how many replicas there shall be.

    Attributes:
        period: seconds between its looks.
    """

    period: float

    def observe(self, sample: Sample) -> int:
        """The replicas wanted now; the simulator holds them within its bounds."""
        ...


@dataclass(frozen=True)
class Objective:
    """What a user shall feel.

    Attributes:
        name: of the objective.
        ttft_s: most seconds to the first token.
        itl_s: most seconds between tokens, on average over a request.
    """

    name: str
    ttft_s: float
    itl_s: float

    def met(self, served: Served) -> bool:
        """Whether a request felt so."""
        return served.ttft <= self.ttft_s and served.itl <= self.itl_s
