"""The engines that draw completions: who gets which prompt, who is out, how it comes back.

An engine is *usable* when it answers and has the current weights, seen in its own report, and runs
the kernels that the job wants. One that fails a request or an update is out at once; a task looks
at it again and again, gives it the current weights, and only then it gets a prompt. So no
completion is ever drawn with weights that this run did not give, whatever an engine was restarted
with.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import httpx

from assay_trainer.batch import Completion
from assay_trainer.engine import (
    CONNECT_SECONDS,
    LOOK_SECONDS,
    Engine,
    EngineError,
    EngineFailure,
    strangers,
)
from assay_trainer.settings import Rollout
from assay_trainer.versions import Loaded, Update, Weights, age
from assay_verifiers.endpoints import KERNELS_PATH, why_not_fused

FIRST_WAIT = 0.5
DOUBLINGS = 6
"""An engine that fails again and again is looked at every 32 seconds in the end."""


@dataclass(frozen=True)
class EngineState:
    """One engine, for /status.

    Attributes:
        url: without a password.
        usable: whether it gets prompts.
        version: of the weights that it was last seen to have.
        reason: why it is not usable.
    """

    url: str
    usable: bool
    version: str | None
    reason: str


@dataclass
class _Seat:
    """What is known of an engine."""

    engine: Engine
    usable: bool = False
    version: str | None = None
    reason: str = "was not asked yet"
    busy: int = 0
    failures: int = 0
    """In a row, since it last answered a prompt."""
    life: int = 0
    """Counts how often it went out: what was asked before that says nothing about it now."""
    looked: bool = False
    loading: str | None = None
    """The version that it is given while it is not usable."""
    admission: asyncio.Task[None] | None = field(default=None, repr=False)


class Engines:
    """All engines of a run; an asynchronous context manager.

    Args:
        settings: of the job.
        vocabulary: how many token ids the model has (config.json's vocab_size). SGLang dies of a
            prompt with an id beyond it, so none is sent.
        token: what the engines ask for; see `engine.bearer`.
        seeded: see `Engine`.
    """

    def __init__(
        self,
        settings: Rollout,
        vocabulary: int,
        *,
        token: str | None = None,
        seeded: bool = False,
    ) -> None:
        self._settings, self._vocabulary = settings, vocabulary
        headers = {"content-type": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            # A proxy between trainer and engines would be an accident.
            trust_env=False,
        )
        self._seats = [
            _Seat(Engine(url, self._client, settings.requestSeconds, seeded))
            for url in settings.engines
        ]
        self._changed = asyncio.Condition()
        self._weights: Weights | None = None
        self._alone_since = time.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [seat.admission for seat in self._seats if seat.admission]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    @property
    def states(self) -> list[EngineState]:
        """Every engine, in the job's order."""
        return [
            EngineState(seat.engine.shown, seat.usable, seat.version, seat.reason)
            for seat in self._seats
        ]

    @property
    def version(self) -> str | None:
        """Of the current weights; None before the first."""
        return self._weights.version if self._weights else None

    @property
    def versions_in_use(self) -> set[str]:
        """Versions that usable engines have, or that an engine may be reading now."""
        using = {seat.version for seat in self._seats if seat.usable}
        return {v for v in using | {seat.loading for seat in self._seats} if v is not None}

    async def start(self) -> None:
        """Waits until every engine was asked once and one answers.

        Raises:
            EngineError: none does within rollout.waitSeconds.
        """
        self._alone_since = time.monotonic()
        for seat in self._seats:
            self._look_at(seat)
        await self._wait_for(
            lambda: (
                all(seat.looked for seat in self._seats)
                and any(seat.usable for seat in self._seats)
            )
        )

    async def generate(
        self, ids: Sequence[int], *, n: int, max_tokens: int, temperature: float
    ) -> list[Completion]:
        """`n` completions of one prompt, drawn by one engine with the current weights.

        An engine that fails is out, and another one is asked: rollout.attempts in all.

        Args:
            ids: token ids of the prompt.
            n: how many; one request, so that the prompt is computed once.
            max_tokens: of each.
            temperature: 0 takes the most likely token. The log-probs are of the distribution that
                was drawn from, log_softmax(logits / temperature); with 0, of temperature 1.

        Raises:
            EngineError: every attempt failed, no engine is usable for rollout.waitSeconds, or the
                request itself is wrong.
        """
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise EngineError(
                    f"a prompt has the token id {token}, but the model has {self._vocabulary}: "
                    "tokenizer and model do not belong together"
                )
        if not ids:
            raise EngineError("a prompt has no tokens")
        failed: dict[Engine, str] = {}
        for _ in range(self._settings.attempts):
            seat = await self._taken(failed)
            life, sent = seat.life, self.version
            try:
                drawn = await seat.engine.generate(
                    ids,
                    n=n,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    vocabulary=self._vocabulary,
                )
                known = {version for version in (sent, self.version) if version is not None}
                if known and (others := strangers(drawn, known)):
                    raise EngineFailure(
                        f"it drew with weights {', '.join(others)} instead of {sent}: does another "
                        "run use it, or was it restarted?"
                    )
            except EngineFailure as reason:
                failed[seat.engine] = str(reason)
                if seat.life == life:
                    await self._put_out(seat, str(reason))
            else:
                if seat.life == life:
                    seat.failures = 0
                return drawn
            finally:
                seat.busy -= 1
                async with self._changed:
                    self._changed.notify()
        told = "; ".join(f"{engine.shown}: {reason}" for engine, reason in failed.items())
        raise EngineError(f"{self._settings.attempts} attempts of one request failed: {told}")

    async def renew(self, weights: Weights, update: Update) -> Loaded:
        """Gives all usable engines new weights, and looks whether they have them.

        Engines that are out get them when they come back.

        Args:
            weights: the new ones.
            update: gives them to engines. It may be told of fewer engines than there are.

        Raises:
            EngineError: the version does not grow, or no engine took the weights within
                rollout.waitSeconds.
        """
        if self._weights and age(weights.version) <= age(self._weights.version):
            raise EngineError(
                f"weights {weights.version} are not newer than {self._weights.version}"
            )
        began = time.monotonic()
        self._weights = weights
        seats = [seat for seat in self._seats if seat.usable]
        for seat in seats:
            seat.usable, seat.reason = False, f"is given weights {weights.version}"
        self._alone_since = time.monotonic()
        failed: dict[str, str] = {}
        unsettled = {seat.engine: seat for seat in seats}
        try:
            failures = dict(await update([seat.engine for seat in seats]))
            self._alone_since = time.monotonic()
            checks = [self._verified(seat.engine, weights.version, failures) for seat in seats]
            for seat, reason in zip(seats, await asyncio.gather(*checks), strict=True):
                del unsettled[seat.engine]
                if reason is None:
                    await self._let_in(seat, weights.version)
                else:
                    failed[seat.engine.shown] = reason
                    await self._put_out(seat, reason)
        finally:
            for seat in unsettled.values():
                await self._put_out(seat, f"did not get weights {weights.version}")
        seconds = time.monotonic() - began
        await self._wait_for(lambda: any(seat.usable for seat in self._seats))
        good = tuple(seat.engine.shown for seat in self._seats if seat.usable)
        return Loaded(weights.version, seconds, good, failed)

    async def _taken(self, failed: Mapping[Engine, str]) -> _Seat:
        """The usable engine with the least to do, rather one that has not failed; counted."""

        def free() -> list[_Seat]:
            most = self._settings.concurrency
            return [seat for seat in self._seats if seat.usable and seat.busy < most]

        await self._wait_for(lambda: bool(free()))
        seat = min(free(), key=lambda seat: (seat.engine in failed, seat.busy))
        seat.busy += 1
        return seat

    async def _wait_for(self, ready: Callable[[], bool]) -> None:
        """Until something is so; at most rollout.waitSeconds without any usable engine."""
        async with self._changed:
            while not ready():
                alone = not any(seat.usable for seat in self._seats)
                deadline = self._alone_since + self._settings.waitSeconds if alone else None
                left = None if deadline is None else deadline - time.monotonic()
                try:
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                except TimeoutError as reason:
                    told = "; ".join(f"{s.engine.shown}: {s.reason}" for s in self._seats)
                    raise EngineError(
                        f"no engine is usable for {self._settings.waitSeconds:g} s ({told}). Start "
                        "SGLang there, or name others in rollout.engines"
                    ) from reason
                except asyncio.CancelledError:
                    # It may have been woken already, and nobody else was.
                    self._changed.notify()
                    raise

    async def _let_in(self, seat: _Seat, version: str | None) -> None:
        seat.usable, seat.version, seat.reason = True, version, ""
        async with self._changed:
            self._changed.notify_all()

    async def _put_out(self, seat: _Seat, reason: str) -> None:
        """No more prompts for it, until a look at it goes well."""
        if seat.usable and not any(s.usable for s in self._seats if s is not seat):
            self._alone_since = time.monotonic()
        seat.usable, seat.reason = False, reason
        seat.failures += 1
        seat.life += 1
        self._look_at(seat)
        async with self._changed:
            self._changed.notify_all()

    def _look_at(self, seat: _Seat) -> None:
        if seat.admission is None or seat.admission.done():
            seat.admission = asyncio.create_task(self._admit(seat))

    async def _admit(self, seat: _Seat) -> None:
        """Brings an engine in, or back: first the weights, then prompts."""
        rest = seat.failures > 0
        while not seat.usable:
            if rest:
                await asyncio.sleep(FIRST_WAIT * 2 ** min(seat.failures - 1, DOUBLINGS))
            rest = False
            try:
                version, _ = await seat.engine.weights()
                await self._check_kernels(seat.engine)
                weights = self._weights
                if weights:
                    # Whatever it reports: an update that failed may have left parts of two.
                    seat.loading = version = weights.version
                    await seat.engine.load(await weights.folder(), version)
            except EngineFailure as reason:
                seat.looked, seat.reason = True, str(reason)
                seat.failures += 1
                rest = True
                async with self._changed:
                    self._changed.notify_all()
                continue
            finally:
                seat.loading = None
            seat.looked = True
            if weights is self._weights:
                await self._let_in(seat, version)

    async def _verified(
        self, engine: Engine, version: str, failures: Mapping[Engine, str]
    ) -> str | None:
        """Why an engine does not have the weights, or may not draw with them; None where it may."""
        if engine in failures:
            return failures[engine]
        try:
            await engine.verify(version)
            # It may have been started again since it was let in, while nobody asked it anything.
            await self._check_kernels(engine)
        except EngineFailure as reason:
            return str(reason)
        return None

    async def _check_kernels(self, engine: Engine) -> None:
        """Raises EngineFailure where an engine does not say that it runs what the job wants."""
        if self._settings.kernels == "any":
            return
        seconds = min(LOOK_SECONDS, self._settings.requestSeconds)
        try:
            told = await engine.call(KERNELS_PATH, seconds=seconds)
        except EngineFailure as reason:
            if reason.status != 404:
                raise
            told = None
        if why_not := why_not_fused(told):
            raise EngineFailure(
                f"does not run the fused kernels that rollout.kernels asks for: {why_not}"
            )
