"""Asks a model's endpoint: an OpenAI-compatible server, or SGLang by its own API.

What goes wrong with one question is an answer without a text and with the reason, never an empty
completion: the gate must not count a broken connection as a wrong answer.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from assay_verifiers.config import Retry
from assay_verifiers.suites import SuiteItem

Api = Literal["auto", "openai", "sglang"]
KERNELS_PATH = "/assay/kernels"
"""Where the plugin in an engine tells what it runs."""
_LONGEST_ANSWER = 64 << 20
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class EndpointError(Exception):
    """An endpoint does not answer as it should; the message says how, in a line."""


def why_not_fused(told: object) -> str | None:
    """Why an engine does not run Assay's fused kernels, None where it does.

    Args:
        told: what it answers at `KERNELS_PATH`; None where it has no such path.
    """
    if told is None:
        return "the plugin is not in it"
    known = told if isinstance(told, dict) else {}
    if known.get("active") is True and known.get("kernels") == "fused":
        return None
    return str(known.get("why_not") or f"it runs {known.get('kernels')} kernels")


class _Transient(EndpointError):
    """It may be better in a moment."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True)
class Sampling:
    """How each question is asked.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: the share of probability that is drawn from.
        max_tokens: of an answer, where the item names none.
        samples: how often each item is asked; its score is their mean.
        seed: the base; each sample's own seed comes from it and the item's id.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 2048
    samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Identity:
    """What an endpoint says it is.

    Attributes:
        api: the one that is used.
        model: the name that is asked for.
        weight_version: what SGLang reports; None where the endpoint does not tell.
    """

    api: Literal["openai", "sglang"]
    model: str
    weight_version: str | None


@dataclass(frozen=True)
class Answer:
    """One answer; `failure` says why there is none.

    Attributes:
        text: the completion; None where there is none.
        finish: why it ended, such as `stop` or `length`.
        tokens: how many were generated, where that is told.
        weight_versions: the versions that it was generated with, where they are told.
    """

    text: str | None
    failure: str = ""
    finish: str = ""
    tokens: int | None = None
    weight_versions: tuple[str, ...] = ()


class Endpoint:
    """One endpoint; an asynchronous context manager.

    Args:
        url: its base, with or without `/v1`.
        api: auto takes the OpenAI API where /v1/models answers, else SGLang's own.
        model: the name to ask for; by default the first that /v1/models lists.
        token_env: the environment variable that holds the bearer token.
        seconds: for one attempt.
        retry: how failures are tried again.

    Raises:
        ValueError: the URL is none, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        *,
        api: Api = "auto",
        model: str | None = None,
        token_env: str | None = None,
        seconds: float = 300.0,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL")
        self.base = url.rstrip("/").removesuffix("/v1")
        headers = {"content-type": "application/json"}
        if token_env is not None:
            if not os.environ.get(token_env):
                raise ValueError(f"the environment variable {token_env} is not set")
            headers["authorization"] = f"Bearer {os.environ[token_env]}"
        self._api, self._model, self._retry = api, model, retry
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(seconds, connect=min(seconds, 10.0), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            follow_redirects=False,
        )
        self._seconds = seconds

    @property
    def shown(self) -> str:
        """The URL without a password."""
        parts = urlsplit(self.base)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def identity(self) -> Identity:
        """What it is, asked anew each time.

        Raises:
            EndpointError: it does not answer, or answers neither API.
        """
        listed = await self._optional("/v1/models")
        told = await self._optional("/model_info") or await self._optional("/get_model_info")
        if listed is None and told is None:
            raise EndpointError(f"{self.shown} answers neither /v1/models nor /model_info")
        api = self._api
        if api == "auto":
            api = "openai" if listed is not None else "sglang"
        data = listed.get("data") if listed else None
        names = [m["id"] for m in data if isinstance(m, dict) and "id" in m] if data else []
        model = self._model or (names[0] if names else None)
        model = model or (told or {}).get("model_path") or "default"
        version = (told or {}).get("weight_version")
        return Identity(api, str(model), None if version is None else str(version))

    async def lacks_kernels(self) -> str | None:
        """Why an engine does not run Assay's fused kernels; None where it says that it does.

        Raises:
            EndpointError: it does not answer.
        """
        try:
            return why_not_fused(await self._json("GET", KERNELS_PATH))
        except _Missing:
            return why_not_fused(None)

    async def ask(self, item: SuiteItem, who: Identity, sampling: Sampling, seed: int) -> Answer:
        """One answer to an item, or why there is none."""
        tokens = item.maxTokens or sampling.max_tokens
        try:
            if who.api == "sglang" and item.prompt is not None:
                body: dict[str, Any] = {
                    "text": item.prompt,
                    "sampling_params": {
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "max_new_tokens": tokens,
                        "sampling_seed": seed,
                    },
                }
                return _generated(await self._json("POST", "/generate", body))
            messages = (
                [message.model_dump(exclude_none=True) for message in item.messages]
                if item.messages
                else [{"role": "user", "content": item.prompt}]
            )
            body = {
                "model": who.model,
                "messages": messages,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": tokens,
                "seed": seed,
            }
            return _chatted(await self._json("POST", "/v1/chat/completions", body))
        except EndpointError as reason:
            return Answer(None, failure=str(reason))

    async def _optional(self, path: str) -> dict[str, Any] | None:
        """What a path answers, or None where the server has no such path."""
        try:
            found = await self._json("GET", path)
        except _Transient:
            raise
        except EndpointError as reason:
            if not isinstance(reason, _Missing) and path == "/v1/models":
                raise  # Such as 401: what else is asked would be refused, too.
            return None
        return found if isinstance(found, dict) else None

    async def _json(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request, again after transient failures, and returns the JSON.

        Raises:
            EndpointError: there is no good answer.
        """
        retry = self._retry
        backoff = wait_random_exponential(retry.firstSeconds, retry.maxSeconds)

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            after = failure.after if isinstance(failure, _Transient) else 0.0
            return max(backoff(state), min(after, retry.maxSeconds))

        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(retry.attempts),
            wait=wait,
            retry=retry_if_exception_type(_Transient),
            reraise=True,
        ):
            with attempt:
                return await self._once(method, path, body)
        raise AssertionError("tenacity returns or raises")

    async def _once(self, method: str, path: str, body: Any) -> Any:
        content = None if body is None else json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(self._seconds),
                self._client.stream(method, f"{self.base}{path}", content=content) as response,
            ):
                data = b""
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > _LONGEST_ANSWER:
                        raise EndpointError(f"{path}: an answer of more than 64 MiB")
        except TimeoutError as reason:
            raise _Transient(f"{path}: no answer within {self._seconds:g} s") from reason
        except httpx.InvalidURL as reason:
            raise EndpointError(f"{self.shown}: {reason}") from reason
        except httpx.HTTPError as reason:
            raise _Transient(f"{path}: {str(reason) or type(reason).__name__}") from reason
        if response.status_code != 200:
            _refused(path, response.status_code, response.headers, data)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as reason:
            raise EndpointError(f"{path}: the answer is not JSON") from reason


class _Missing(EndpointError):
    """The server has no such path."""


def _refused(path: str, status: int, headers: Mapping[str, str], data: bytes) -> NoReturn:
    said = " ".join(data[:300].decode(errors="replace").split())
    message = f"{path}: {status} {said}".rstrip()
    if status in _TRANSIENT:
        after = headers.get("retry-after", "")
        raise _Transient(message, float(after) if after.isdigit() else 0.0)
    if status in (404, 405):
        raise _Missing(message)
    raise EndpointError(message)


def _chatted(data: Any) -> Answer:
    """The answer of an OpenAI chat completion."""
    try:
        choice = data["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Answer(None, failure="the answer has no choices[0].message.content")
    metadata = data.get("metadata")
    usage = data.get("usage")
    return _answer(
        # A reasoning model that ran out of tokens before its answer said nothing: no content.
        "" if text is None else text,
        choice.get("finish_reason"),
        usage.get("completion_tokens") if isinstance(usage, dict) else None,
        metadata if isinstance(metadata, dict) else {},
    )


def _generated(data: Any) -> Answer:
    """The answer of SGLang's /generate."""
    data = data[0] if isinstance(data, list) and data else data
    if not isinstance(data, dict) or "text" not in data:
        return Answer(None, failure="the answer has no text")
    found = data.get("meta_info")
    meta: dict[str, Any] = found if isinstance(found, dict) else {}
    finish = meta.get("finish_reason")
    return _answer(
        data["text"],
        finish.get("type") if isinstance(finish, dict) else finish,
        meta.get("completion_tokens"),
        meta,
    )


def _answer(text: Any, finish: Any, tokens: Any, meta: Mapping[str, Any]) -> Answer:
    if not isinstance(text, str):
        return Answer(None, failure="the answer's text is no string")
    if finish == "abort":
        # SGLang ends what it gives up, in an update of weights for example, with status 200.
        return Answer(None, failure="the server gave the answer up (finish_reason abort)")
    # SGLang tells the spans of tokens, where the weights changed in the middle of an answer.
    spans = meta.get("weight_versions")
    told = [
        span.get("version")
        for span in (spans if isinstance(spans, list) else ())
        if isinstance(span, dict)
    ]
    versions = [version for version in (*told, meta.get("weight_version")) if version is not None]
    return Answer(
        text,
        finish=str(finish or ""),
        tokens=tokens if isinstance(tokens, int) else None,
        weight_versions=tuple(sorted({str(version) for version in versions})),
    )
