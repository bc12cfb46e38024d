"""Ways to a pod's ports: straight to its address, or through the API server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from assay_operator.cluster.client import ApiError, Client
from assay_operator.plan import Json

CONNECT_SECONDS = 2.0
CONNECTIONS = 64
LONG_SECONDS = 60.0
"""What may take longer has connections of its own: many loads at once must keep no look waiting."""
ANSWER_SECONDS = 5.0
_LARGEST_ANSWER = 1 << 20


class ProbeError(Exception):
    """A pod did not answer as it should; the message says how, in one line.

    Attributes:
        status: the HTTP status, 0 where there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Question:
    """A request to a pod: POST where there is a body, else GET. The answer is JSON, or `text`."""

    port: int
    path: str
    seconds: float = ANSWER_SECONDS
    body: Json | None = None
    text: bool = False


class Reach(Protocol):
    """A way to a pod's port."""

    async def ask(self, pod: Json, question: Question) -> Any:
        """The JSON, or the text, that the pod answers.

        Raises:
            ProbeError: it did not answer, or not with 2xx and what was asked for.
        """

    async def close(self) -> None: ...


class PodReach:
    """Straight to the pod's address: for an operator in the cluster."""

    def __init__(self) -> None:
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def ask(self, pod: Json, question: Question) -> Any:
        address = pod.get("status", {}).get("podIP")
        if not address:
            raise ProbeError("the pod has no address yet")
        host = f"[{address}]" if ":" in address else address
        path, seconds = question.path, question.seconds
        try:
            async with self._open(seconds > LONG_SECONDS).request(
                "GET" if question.body is None else "POST",
                f"http://{host}:{question.port}{path}",
                json=question.body,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as answer:
                content = await _bounded(answer)
        except TimeoutError as error:
            raise ProbeError(f"{path}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProbeError(f"{path}: {error or type(error).__name__}") from error
        if not 200 <= answer.status < 300:
            text = content[:200].decode(errors="replace").replace("\n", " ")
            raise ProbeError(f"{path}: {answer.status} {text}".rstrip(), answer.status)
        if question.text:
            return content.decode(errors="replace")
        try:
            return json.loads(content or b"null")
        except ValueError as error:
            raise ProbeError(f"{path}: the answer is not JSON") from error

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def _open(self, long: bool) -> aiohttp.ClientSession:
        if long not in self._sessions:
            # Pods come and go: a kept connection is rarely used again and often dead.
            connector = aiohttp.TCPConnector(limit=0 if long else CONNECTIONS, force_close=True)
            self._sessions[long] = aiohttp.ClientSession(connector=connector)
        return self._sessions[long]


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    """The body, as long as it is not absurdly long: pods are not trusted with our memory."""
    content = b""
    async for chunk in answer.content.iter_chunked(1 << 16):
        content += chunk
        if len(content) > _LARGEST_ANSWER:
            raise ProbeError(f"{answer.url.path}: the answer is longer than {_LARGEST_ANSWER} B")
    return content


class ApiServerReach:
    """Through the API server's pod proxy: for an operator that runs outside the cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(self, pod: Json, question: Question) -> Any:
        try:
            return await self._client.proxy(
                pod,
                question.port,
                question.path,
                question.body,
                question.seconds,
                text=question.text,
            )
        except ApiError as error:
            raise ProbeError(
                f"{question.path}: {error.status or error.reason} {error.message}", error.status
            ) from error

    async def close(self) -> None:
        """The client is not ours to close."""
