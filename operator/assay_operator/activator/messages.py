"""What an activator says itself, and what it passes on: pure functions of plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110, section 7.6.1: what is about one connection is not for the next one."""
_LONGEST_PAUSE = 30.0
# The router's words for that it has no worker, in the header that it says them with.
ERROR_CODE = "x-smg-error-code"
_NO_WORKERS = frozenset({"no_workers", "no_available_workers", "no_models_available"})
# A router without any worker says the same of a model that nobody ever served, or wants to be told
# of a model at all.
_PERHAPS_NO_WORKERS = frozenset({"model_not_found", "missing_model"})


@dataclass(frozen=True)
class Answer:
    """An answer of the activator's own.

    Attributes:
        status: HTTP.
        body: the text.
        reason: by which it is counted, empty where it is no refusal.
        headers: with the body's type.
    """

    status: int
    body: str
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def error(status: int, code: str, message: str, *, again: int | None = None) -> Answer:
    """An error in the form of OpenAI's API, as the router has it.

    Args:
        status: HTTP.
        code: for programs.
        message: for people.
        again: seconds after which it is worth another try, None where it never is.
    """
    kind = "server_error" if status >= 500 else "invalid_request_error"
    told = {"error": {"type": kind, "code": code, "message": message, "param": None}}
    headers = {"Content-Type": "application/json"}
    if again is not None:
        headers["Retry-After"] = str(again)
    return Answer(status, json.dumps(told), code, headers)


def again_after(start: float, oldest: float) -> int:
    """Seconds until a replica may be there, at least one and at most half a minute.

    Args:
        start: what a start took last, or may take.
        oldest: for how long somebody waits for it already.
    """
    return math.ceil(min(_LONGEST_PAUSE, max(1.0, start - oldest)))


def health(method: str, path: str) -> Answer | None:
    """The answer to whoever asks whether the service is well, None to others.

    One without a replica is: it takes requests. The router answers the same paths.
    """
    if method in {"GET", "HEAD"} and path in {"/health", "/liveness", "/readiness"}:
        return Answer(200, "OK", headers={"Content-Type": "text/plain; charset=utf-8"})
    return None


def models(method: str, path: str, name: str, since: int) -> Answer | None:
    """The list of models, if it is asked for.

    Args:
        method: HTTP.
        path: without a query.
        name: that clients send.
        since: when this process began, in seconds since the epoch.
    """
    if method not in {"GET", "HEAD"} or path != "/v1/models":
        return None
    entry = {"id": name, "object": "model", "created": since, "owned_by": "assay"}
    told = {"object": "list", "data": [entry]}
    return Answer(200, json.dumps(told), headers={"Content-Type": "application/json"})


def end_to_end(
    headers: Iterable[tuple[str, str]], *, without: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """The headers that are passed on, in their order.

    Args:
        headers: as they came.
        without: more names, in lower case, that are not.
    """
    came = list(headers)
    named = {
        name.strip().lower()
        for key, value in came
        if key.lower() == "connection"
        for name in value.split(",")
    }
    gone = _HOP_BY_HOP | named | frozenset(without)
    return [(key, value) for key, value in came if key.lower() not in gone]


def lacks_workers(code: str | None, *, doubted: bool) -> bool:
    """Whether a router's error code means that it has no worker now.

    Args:
        code: that it gave.
        doubted: whether the same request had a doubtful answer before, though the router had a
            worker: then it is the request's own fault.
    """
    return code in _NO_WORKERS or (code in _PERHAPS_NO_WORKERS and not doubted)


def is_websocket(headers: Mapping[str, str]) -> bool:
    """Whether a request is to become a WebSocket."""
    return headers.get("Upgrade", "").lower() == "websocket"
