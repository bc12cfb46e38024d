"""Asking a server for an opinion: retries with back-off, a budget, and failures that are failures.

What went wrong on the way is never an answer of 0: it is `Unanswered`, and masked.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpx
import tenacity

from assay_verifiers.config import HttpVerifier, RewardModelVerifier
from assay_verifiers.contract import Unavailable, Verdict, error, timeout
from assay_verifiers.jsontext import NoJson, parse
from assay_verifiers.registry import Bench

MAX_ANSWER_BYTES = 1 << 20
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Unanswered(Exception):
    """A server gave no answer that can be used.

    Attributes:
        slow: whether it took too long rather than failed.
    """

    def __init__(self, why: str, *, slow: bool = False) -> None:
        super().__init__(why)
        self.slow = slow

    def verdict(self) -> Verdict:
        """What a verifier says of it."""
        return timeout(str(self)) if self.slow else error(str(self))


class _Passing(Unanswered):
    """A failure that may be over at the next attempt, after `wait` seconds where it said so."""

    def __init__(self, why: str, *, slow: bool = False, wait: float | None = None) -> None:
        super().__init__(why, slow=slow)
        self.wait = wait


@dataclass(frozen=True)
class Remote:
    """One server with its client, budget and limit of concurrent requests."""

    model: HttpVerifier | RewardModelVerifier
    client: httpx.AsyncClient
    slots: asyncio.Semaphore

    async def ask(self, url: str, body: Any) -> Any:
        """POSTs JSON and gives the JSON that comes back.

        Connection errors, attempts that take too long and the statuses 408, 425, 429, 500, 502, 503
        and 504 are tried again, not before what Retry-After says. The budget runs from when a slot
        is free, so that a long queue of items does not use it up.

        Raises:
            Unanswered: the attempts or the budget are used up, or the answer is of no use.
        """
        retry = self.model.retry
        backoff = tenacity.wait_exponential_jitter(
            multiplier=retry.firstSeconds, max=retry.maxSeconds, jitter=retry.firstSeconds
        )
        async with self.slots:
            ends = time.monotonic() + self.model.budget
            last: _Passing | None = None

            def wait(state: tenacity.RetryCallState) -> float:
                asked = last.wait if last is not None else None
                return max(backoff(state), asked or 0.0)

            def stop(state: tenacity.RetryCallState) -> bool:
                # A wait that the budget does not cover is not begun.
                return (
                    state.attempt_number >= retry.attempts
                    or time.monotonic() + state.upcoming_sleep >= ends
                )

            async for attempt in tenacity.AsyncRetrying(
                wait=wait,
                stop=stop,
                retry=tenacity.retry_if_exception_type(_Passing),
                reraise=True,
            ):
                with attempt:
                    try:
                        return await self._attempt(url, body, ends - time.monotonic())
                    except _Passing as reason:
                        last = reason
                        raise
        raise AssertionError("tenacity ends with an answer or an exception")

    async def _attempt(self, url: str, body: Any, left: float) -> Any:
        seconds = min(self.model.timeout, left)
        try:
            # httpx limits each read; a server that sends a byte at a time must end too.
            async with asyncio.timeout(seconds):
                return await self._post(url, body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Passing(f"{url}: no answer within {seconds:.3g} s", slow=True) from None
        except httpx.TransportError as reason:
            name = type(reason).__name__
            raise _Passing(
                f"{url}: {name}: {reason}" if str(reason) else f"{url}: {name}"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as reason:
            raise Unanswered(f"{url}: {type(reason).__name__}: {reason}") from None

    async def _post(self, url: str, body: Any) -> Any:
        # Escaped to ASCII: half of a surrogate pair in a completion has no bytes of its own.
        content = json.dumps(body).encode()
        async with self.client.stream("POST", url, content=content) as response:
            if response.status_code in _PASSING:
                raise _Passing(
                    f"{url}: status {response.status_code}",
                    wait=retry_after(response.headers.get("retry-after")),
                )
            if response.status_code != 200:
                raise Unanswered(f"{url}: status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Unanswered(f"{url}: the answer is compressed, which was not asked for")
            held = bytearray()
            async for piece in response.aiter_raw():
                held += piece
                if len(held) > MAX_ANSWER_BYTES:
                    raise Unanswered(f"{url}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
        try:
            return parse(held.decode())
        except (UnicodeDecodeError, NoJson) as reason:
            raise Unanswered(f"{url}: the answer is of no use: {reason}") from None


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header[:9])
    try:
        date = email.utils.parsedate_to_datetime(header)
    except (ValueError, TypeError):
        return None
    return max(0.0, date.timestamp() - time.time())


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """One for all clients: reading the authorities takes longer than anything else here."""
    return httpx.create_ssl_context()


def connect(model: HttpVerifier | RewardModelVerifier, bench: Bench) -> Remote:
    """A client of a verifier's server, closed with the bench.

    Raises:
        Unavailable: the environment variable of the token is not set.
    """
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
    }
    if model.tokenEnv is not None:
        token = os.environ.get(model.tokenEnv)
        if not token:
            raise Unavailable(
                f"the environment variable {model.tokenEnv} with the token for {model.url} is not "
                "set: set it, or leave out tokenEnv"
            )
        headers["Authorization"] = f"Bearer {token}"
    client = httpx.AsyncClient(
        headers=headers,
        verify=_certificates(),
        follow_redirects=False,
        timeout=model.timeout,
        limits=httpx.Limits(max_connections=model.concurrency),
    )
    bench.stack.push_async_callback(client.aclose)
    return Remote(model, client, asyncio.Semaphore(model.concurrency))


def number(value: Any) -> float | None:
    """A JSON number, which a boolean is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
