"""An engine with continuous batching, as a model of how long its iterations take.

It follows SGLang's scheduler with default settings. An iteration is either a prefill batch of at
most `chunk` prompt tokens, or one decode step of everything that runs. Prompts that wait go first,
in order of arrival, and the last of a batch may be cut. A prompt's last chunk yields its first
token.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

from benchmarks.autoscaling.trace import Request

NEVER = math.inf


@dataclass(frozen=True)
class Engine:
    """How long an iteration takes, and what fits.

    A prefill batch that ends the prompts of n requests takes base_s + tokens * prompt_s +
    n * request_s. A decode step of n sequences with k tokens of context in all takes base_s +
    n * sequence_s + k * context_s.

    Attributes:
        base_s: seconds an iteration, whatever is in it.
        prompt_s: seconds a prompt token.
        sequence_s: seconds a sequence and decode step.
        context_s: seconds a token of context and decode step.
        chunk: most prompt tokens of an iteration.
        most_running: most sequences that run at once.
        kv_tokens: tokens that the KV cache holds.
        warm_s: seconds after its start in which a replica is slower.
        warm_factor: how many times slower it is then.
        request_s: seconds a request, however long its prompt is.
    """

    base_s: float
    prompt_s: float
    sequence_s: float
    context_s: float
    chunk: int
    most_running: int
    kv_tokens: int
    warm_s: float = 0.0
    warm_factor: float = 1.0
    request_s: float = 0.0

    def prefill(self, tokens: float, requests: int = 1) -> float:
        """Seconds of a prefill batch that ends the prompts of so many requests."""
        return self.base_s + tokens * self.prompt_s + requests * self.request_s

    def decode(self, sequences: float, context: float) -> float:
        """Seconds of a decode step; `context` in tokens over all sequences."""
        return self.base_s + sequences * self.sequence_s + context * self.context_s


@dataclass(slots=True)
class Served:
    """What became of a request; times in seconds since the trace began.

    Attributes:
        request: what was asked.
        routed: when it came to a replica; infinite until then. So are the next two.
        first: when its first token came.
        finished: when its last token came.
        times: how often it finished: anything but 1 in the end would be an error of the model.
    """

    request: Request
    routed: float = NEVER
    first: float = NEVER
    finished: float = NEVER
    times: int = 0

    @property
    def ttft(self) -> float:
        """Seconds from arrival to first token."""
        return self.first - self.request.at

    @property
    def itl(self) -> float:
        """Mean seconds between its tokens; 0 where there is only one."""
        gaps = self.request.output - 1
        return (self.finished - self.first) / gaps if gaps else 0.0


@dataclass(slots=True)
class News:
    """What a replica did in some time.

    Attributes:
        first_tokens: requests that got their first token.
        finished: requests that finished.
        prompt_tokens: that were computed.
        output_tokens: that were generated.
        gaps: seconds between two tokens of a request, and how often there were so many.
    """

    first_tokens: list[Served] = field(default_factory=list)
    finished: list[Served] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)


class Replica:
    """One engine's queue and batch, advanced from one moment to another.

    Replicas know nothing of each other, so each is advanced only when somebody needs to know. What
    happens does not depend on how often that is. A run of decode steps between which nothing
    changes is taken at once, its length being an arithmetic series.

    A request is admitted when its prompt and all of its output fit into the cache. So nothing is
    ever retracted, which a real engine, not knowing how much will be generated, may have to do.
    """

    def __init__(self, engine: Engine, number: int, ready_at: float) -> None:
        self.engine = engine
        self.number = number
        self.ready_at = ready_at
        self.warm_at = ready_at + engine.warm_s
        self.waiting: deque[Served] = deque()
        self.waiting_tokens = 0
        """Prompt tokens that are not in the cache yet, of the waiting and the cut one."""
        self.load = 0
        """Requests in it, running and waiting."""
        self.running = 0
        self.context = 0
        """Tokens in the cache of what runs."""
        self.news = News()
        """Since whoever reads it put a new one in its place."""
        self.done_at = ready_at
        """When it last finished a request."""
        self.steps = 0
        """Decode steps so far: what finishes after which step is in `_ends`."""
        self._ends: list[tuple[int, int, Served]] = []
        self._order = 0
        self._reserved = 0
        self._left = 0
        """Prompt tokens left of the first that waits, once it was cut; 0 before."""
        self._batch: list[Served] = []
        self._batch_tokens = 0
        self.next_end = NEVER
        """When the iteration that is being done ends; never, where nothing is to be done."""
        self._last_step = ready_at
        """When the last decode step ended."""
        self._newcomers: list[tuple[float, int]] = []
        """When prefill batches ended since then, and how many got their first token."""

    @property
    def queued(self) -> int:
        """Requests that wait for their first token."""
        return len(self.waiting) + len(self._batch)

    @property
    def kv_share(self) -> float:
        """Share of the cache that is in use."""
        return self.context / self.engine.kv_tokens

    def take(self, served: Served, at: float) -> None:
        """A request comes in; the replica must have been advanced to `at`."""
        served.routed = at
        self.load += 1
        self.waiting.append(served)
        self.waiting_tokens += served.request.prompt
        if self.next_end == NEVER:
            self._begin(at)

    def advance(self, until: float) -> None:
        """Everything that ends at or before `until` happens."""
        while self.next_end <= until:
            at = self.next_end
            if self._batch_tokens:
                self._end_prefill(at)
            else:
                at = self._decode_on(at, until)
            self._begin(at)

    def _factor(self, at: float) -> float:
        return self.engine.warm_factor if at < self.warm_at else 1.0

    def _begin(self, at: float) -> None:
        """Starts the next iteration."""
        if self.waiting:
            self._fill()
        if self._batch_tokens:
            took = self.engine.prefill(self._batch_tokens, len(self._batch))
            self.next_end = at + took * self._factor(at)
        elif self.running:
            self.next_end = at + self.engine.decode(self.running, self.context) * self._factor(at)
        else:
            self.next_end = NEVER

    def _fill(self) -> None:
        """Takes prompts off the queue into the next prefill batch."""
        room = self.engine.chunk
        places = self.engine.most_running - self.running
        while room and self.waiting and places > len(self._batch):
            served = self.waiting[0]
            request = served.request
            if not self._left:
                needed = request.prompt + request.output
                if self._reserved + needed > self.engine.kv_tokens and self._reserved:
                    break
                self._reserved += needed
                self._left = request.prompt
            part = min(room, self._left)
            room -= part
            self._left -= part
            self._batch_tokens += part
            if self._left:
                break
            self._batch.append(self.waiting.popleft())

    def _end_prefill(self, at: float) -> None:
        news = self.news
        news.prompt_tokens += self._batch_tokens
        news.output_tokens += len(self._batch)
        self.waiting_tokens -= self._batch_tokens
        self._batch_tokens = 0
        before = self.running
        for served in self._batch:
            served.first = at
            news.first_tokens.append(served)
            request = served.request
            if request.output == 1:
                self._finish(served, at)
                continue
            self.running += 1
            self.context += request.prompt + 1
            self._order += 1
            heappush(self._ends, (self.steps + request.output - 1, self._order, served))
        self._batch.clear()
        if self.running > before:
            self._newcomers.append((at, self.running - before))

    def _decode_on(self, at: float, until: float) -> float:
        """The step that ends at `at`, and as many more as end by `until` with nothing in between.

        Returns:
            When the last of them ended.
        """
        self.steps += 1
        self.context += self.running
        self._note_gaps(at)
        more = self._ends[0][0] - self.steps
        # A prompt that waits goes first, if it waits for a place it must wait for something's end.
        if more and (not self.waiting or self._full()):
            horizon = min(until, self.warm_at) if at < self.warm_at else until
            at = self._steps(more, at, horizon)
        self._last_step = at
        while self._ends and self._ends[0][0] == self.steps:
            served = heappop(self._ends)[2]
            self.running -= 1
            self.context -= served.request.prompt + served.request.output
            self._finish(served, at)
        return at

    def _full(self) -> bool:
        """Whether what waits cannot be admitted before something finishes."""
        request = self.waiting[0].request
        return self.running >= self.engine.most_running or (
            not self._left
            and self._reserved + request.prompt + request.output > self.engine.kv_tokens
        )

    def _steps(self, most: int, at: float, until: float) -> float:
        """Up to `most` decode steps from `at` that end by `until`.

        Step i, from 0, takes f * (first + i * growth), since each sequence grows by a token a
        step. So j steps take f * (j * first + growth * j * (j - 1) / 2), solved here for j.
        """
        factor = self._factor(at)
        first = self.engine.decode(self.running, self.context) * factor
        growth = self.running * self.engine.context_s * factor

        def took(steps: int) -> float:
            return steps * first + growth * steps * (steps - 1) / 2

        done = most
        if at + took(most) > until:
            if growth:
                half = first - growth / 2
                root = math.sqrt(half * half + 2 * growth * max(0.0, until - at))
                done = int((root - half) / growth)
            else:
                done = int((until - at) / first)
            # The division may have rounded across a step's end.
            done = min(most, done)
            while done > 0 and at + took(done) > until:
                done -= 1
        self.steps += done
        self.context += done * self.running
        self.news.output_tokens += done * self.running
        if done:
            self.news.gaps.append((took(done) / done, done * self.running))
        return at + took(done)

    def _note_gaps(self, at: float) -> None:
        """Those that ran already waited since the last step, the others since their first token."""
        before = self.running
        for since, number in self._newcomers:
            self.news.gaps.append((at - since, number))
            before -= number
        self._newcomers.clear()
        if before:
            self.news.gaps.append((at - self._last_step, before))
        self.news.output_tokens += self.running

    def _finish(self, served: Served, at: float) -> None:
        self.load -= 1
        served.finished = self.done_at = at
        served.times += 1
        self._reserved -= served.request.prompt + served.request.output
        self.news.finished.append(served)
