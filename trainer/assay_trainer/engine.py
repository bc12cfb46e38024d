"""One SGLang engine: what it is sent, and what of its answers is believed.

Field names and behaviours are those of SGLang 0.5.23 (managers/io_struct.py).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from assay_trainer.batch import Completion, Finish
from assay_trainer.settings import Rollout

CONNECT_SECONDS = 10.0
LOOK_SECONDS = 30.0
"""How long a question that costs an engine nothing may take. It waits behind a whole batch."""

_ROUNDING = 1e-3
_LEAST_LOG_PROB = -1000.0
"""A drawn token has a probability that fp32 can hold. SGLang writes log 0 as -3.4e38."""

_MAX_JSON = 1 << 20
_SEED_BITS = 62
_BYTES_PER_TOKEN = 512
"""Of an answer: a token is an id, a log-prob, and its text once."""


class EngineError(Exception):
    """Nothing is left to try; the message says what was tried, and what to do."""


class Refused(EngineError):
    """An engine says that the request is wrong, so that others would say the same."""


class EngineFailure(Exception):
    """One engine does not do what it should; another one may.

    Attributes:
        status: of HTTP; 0 where there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """One engine over HTTP.

    Args:
        url: its base.
        client: shared by all engines; carries the token.
        seconds: for one request, and for one update of the weights.
        seeded: whether each completion gets a seed of its own. An engine in deterministic mode
            draws all completions of a request with one seed: all the same.
    """

    def __init__(
        self, url: str, client: httpx.AsyncClient, seconds: float, seeded: bool = False
    ) -> None:
        parts = urlsplit(url.rstrip("/"))
        self.host = parts.hostname or ""
        self.shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """The URL without a password."""
        self._url, self._client, self._seconds = url.rstrip("/"), client, seconds
        self._seeded = seeded

    async def generate(
        self,
        ids: Sequence[int],
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        vocabulary: int,
    ) -> list[Completion]:
        """`n` completions of one prompt.

        Raises:
            EngineFailure: no answer in time, or one that cannot be true.
            Refused: the engine says that the request is wrong.
        """
        sampling = {
            "n": n,
            "temperature": temperature,
            "max_new_tokens": max_tokens,
            # As they are by default, unless the engine was started with other preferences.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "min_new_tokens": 0,
            "ignore_eos": False,
        }
        asked: dict[str, Any] = {"input_ids": list(ids), "sampling_params": sampling}
        if self._seeded:
            seeds = [secrets.randbits(_SEED_BITS) for _ in range(n)]
            asked = {
                "input_ids": [list(ids)] * n,
                "sampling_params": [{**sampling, "n": 1, "sampling_seed": seed} for seed in seeds],
            }
        body = {**asked, "return_logprob": True, "stream": False}
        longest = _MAX_JSON + _BYTES_PER_TOKEN * n * max_tokens
        try:
            answer = await self.call("/generate", body, longest=longest)
        except EngineFailure as reason:
            if reason.status in (400, 413, 422):
                raise Refused(f"{self.shown} refuses a request: {reason}") from reason
            raise
        try:
            return completions(answer, n=n, max_tokens=max_tokens, vocabulary=vocabulary)
        except ValueError as reason:
            raise EngineFailure(f"nonsense from /generate: {reason}") from reason

    async def weights(self) -> tuple[str, str]:
        """Version and folder of the weights, as the engine reports them.

        Raises:
            EngineFailure: it does not tell.
        """
        told = await self.call("/model_info", seconds=min(LOOK_SECONDS, self._seconds))
        version = told.get("weight_version") if isinstance(told, dict) else None
        path = told.get("model_path") if isinstance(told, dict) else None
        if not isinstance(version, str) or not isinstance(path, str):
            raise EngineFailure("/model_info tells no weight_version and model_path: no SGLang?")
        return version, path

    async def load(self, folder: Path, version: str) -> None:
        """Gives it the weights of a folder and looks whether it has them.

        Raises:
            EngineFailure: it has not, or nobody knows.
        """
        body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
        await self.order("/update_weights_from_disk", body)
        await self.verify(version, folder)

    async def verify(self, version: str, folder: Path | None = None) -> None:
        """Raises EngineFailure where it reports other weights than these."""
        reported, path = await self.weights()
        if reported != version or (folder is not None and path != str(folder)):
            raise EngineFailure(
                f"took weights {version} and then reported {reported} from {path}: its weights "
                "are unknown"
            )

    async def order(self, path: str, body: Mapping[str, Any]) -> None:
        """Has something changed. Raises EngineFailure where the engine does not say it was."""
        done = await self.call(path, body)
        if not isinstance(done, dict) or done.get("success") is not True:
            raise EngineFailure(f"{path} did not succeed: {_shortened(json.dumps(done))}")

    async def call(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        longest: int = _MAX_JSON,
    ) -> Any:
        """The JSON that a path answers: of GET, or of POST where there is a body.

        Raises:
            EngineFailure: no answer in time, no success, too long, or no JSON.
        """
        seconds = self._seconds if seconds is None else seconds
        content = None if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        data = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, f"{self._url}{path}", content=content) as response,
            ):
                async for chunk in response.aiter_bytes():
                    data += chunk
                    if len(data) > longest:
                        raise EngineFailure(f"{path} answers more than {longest} bytes")
        except TimeoutError as reason:
            raise EngineFailure(f"{path}: no answer within {seconds:g} s") from reason
        except (httpx.HTTPError, httpx.InvalidURL) as reason:
            said = str(reason) or type(reason).__name__
            raise EngineFailure(f"{path}: {said}") from reason
        status = response.status_code
        if status != 200:
            if status in (401, 403):
                said = "name the variable with its token in rollout.tokenEnv"
            else:
                said = _message(bytes(data))
            raise EngineFailure(f"{path}: HTTP {status}: {said}", status)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as reason:
            raise EngineFailure(f"{path}: the answer is not JSON: {reason}") from reason


def completions(answer: Any, *, n: int, max_tokens: int, vocabulary: int) -> list[Completion]:
    """What /generate answered, if it can be true.

    Args:
        answer: a list of `n` completions; SGLang gives a single one without the list.
        n: how many were asked for.
        max_tokens: of each.
        vocabulary: every id is below it.

    Raises:
        ValueError: it cannot.
    """
    several = [answer] if isinstance(answer, dict) else answer
    if not isinstance(several, list) or len(several) != n:
        count = len(several) if isinstance(several, list) else 0
        raise ValueError(f"{count} completions where {n} were asked for")
    return [_completion(one, max_tokens, vocabulary) for one in several]


def _completion(one: Any, max_tokens: int, vocabulary: int) -> Completion:
    meta = one.get("meta_info") if isinstance(one, dict) else None
    if not isinstance(meta, dict):
        raise ValueError("a completion without meta_info")
    finish = _finish(meta.get("finish_reason"))
    told = meta.get("output_token_logprobs")
    if not isinstance(told, list) or not 0 < len(told) <= max_tokens:
        count = len(told) if isinstance(told, list) else "no"
        raise ValueError(f"{count} log-probs for a completion of 1 to {max_tokens} tokens")
    ids, log_probs = [], []
    for entry in told:
        match entry:
            case [int() | float() as log_prob, int() as token, *_] if (
                0 <= token < vocabulary
                and math.isfinite(log_prob)
                and _LEAST_LOG_PROB < log_prob <= _ROUNDING
            ):
                ids.append(token)
                log_probs.append(float(log_prob))
            case _:
                raise ValueError(
                    f"{_shortened(json.dumps(entry))} is no log-prob with one of {vocabulary} ids"
                )
    if one.get("output_ids") != ids:
        raise ValueError("output_ids and output_token_logprobs name different tokens")
    return Completion(tuple(ids), tuple(log_probs), tuple(_versions(meta, len(ids))), finish)


def _finish(reason: Any) -> Finish:
    kind = reason.get("type") if isinstance(reason, dict) else reason
    match kind:
        case "stop":
            return "stop"
        case "length":
            return "length"
    # SGLang ends what it gives up with status 200 and `abort`.
    raise ValueError(f"a completion that ended by {_shortened(json.dumps(reason))}")


def _versions(meta: Mapping[str, Any], length: int) -> Iterator[str]:
    """The weights of each token: by spans, where SGLang tells them, else one for all."""
    spans = meta.get("weight_versions")
    if spans is None:
        spans = [{"version": meta.get("weight_version"), "start": 0, "end": length}]
    at = 0
    for span in spans if isinstance(spans, list) else ():
        match span:
            case {"version": str() as version, "start": int() as start, "end": int() as end} if (
                start == at <= end <= length
            ):
                yield from (version for _ in range(start, end))
                at = end
            case _:
                break
    if at != length:
        raise ValueError(
            f"no weight version for each of {length} tokens: {_shortened(json.dumps(spans))}"
        )


def strangers(drawn: Sequence[Completion], known: AbstractSet[str]) -> list[str]:
    """Versions in completions that nobody gave the engine."""
    return sorted({v for one in drawn for v in one.versions} - known)


def _message(content: bytes) -> str:
    """What an error's body says, in a line."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return _shortened(content.decode(errors="replace")) or "no reason is told"
    while isinstance(data, dict):
        inner = next((data[key] for key in ("error", "message", "detail") if data.get(key)), None)
        if inner is None:
            break
        data = inner
    return _shortened(data if isinstance(data, str) else json.dumps(data))


def _shortened(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def bearer(settings: Rollout) -> str | None:
    """The engines' token; None where the job names none.

    Raises:
        EngineError: the variable that the job names is not set.
    """
    if settings.tokenEnv is None:
        return None
    token = os.environ.get(settings.tokenEnv)
    if not token:
        raise EngineError(f"rollout.tokenEnv: the variable {settings.tokenEnv} is not set")
    return token
