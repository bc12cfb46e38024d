"""Plain data over pipes: what the tester and the candidate say to each other.

Only values of Python's builtin data types pass, and the receiver builds them itself, of exactly
those types: a candidate's object with an `__eq__` of its own never arrives. JSON carries them; what
JSON cannot tell apart is an object with one letter as its key.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

LARGEST = 8 << 20
"""Bytes of one message."""
_PLAIN_INT = 1 << 53


class NotPlainError(Exception):
    """A value is not plain data; the message names its type."""


class EndedError(Exception):
    """The other side has ended."""


def encode(value: Any) -> Any:  # noqa: PLR0911
    """The JSON form of a value. Subclasses are sent as the builtin type that they extend.

    Raises:
        NotPlainError: it is, or holds, an object of another type.
        RecursionError: it is nested too deeply, or within itself.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        # In hexadecimal: decimal digits of a large number cost quadratic time and are limited.
        return number if -_PLAIN_INT < number < _PLAIN_INT else {"i": hex(number)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"f": repr(float(value))}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"t": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"d": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, set):
        return {"s": [encode(item) for item in value]}
    if isinstance(value, frozenset):
        return {"z": [encode(item) for item in value]}
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": value.hex()}
    if isinstance(value, complex):
        return {"c": [repr(value.real), repr(value.imag)]}
    raise NotPlainError(type(value).__name__)


def decode(form: Any) -> Any:  # noqa: PLR0911
    """The value of a JSON form, built of exact builtin types.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is no form that `encode` makes.
    """
    if form is None or isinstance(form, bool | int | float | str):
        return form
    if isinstance(form, list):
        return [decode(item) for item in form]
    ((kind, content),) = form.items()
    match kind:
        case "t":
            return tuple([decode(item) for item in content])
        case "d":
            return {decode(key): decode(item) for key, item in content}
        case "i":
            return int(content, 16)
        case "f":
            return float(content)
        case "s":
            return {decode(item) for item in content}
        case "z":
            return frozenset([decode(item) for item in content])
        case "b":
            return bytes.fromhex(content)
        case "a":
            return bytearray.fromhex(content)
        case "c":
            return complex(float(content[0]), float(content[1]))
    raise ValueError(f"unknown kind {kind!r}")


def send(fd: int, message: Any) -> None:
    """Writes one message.

    Raises:
        NotPlainError: it is larger than `LARGEST`.
        EndedError: nobody reads.
    """
    body = json.dumps(message).encode()
    if len(body) > LARGEST:
        raise NotPlainError(f"value of {len(body)} bytes")
    rest = memoryview(len(body).to_bytes(8, "big") + body)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BrokenPipeError as reason:
        raise EndedError from reason


def receive(fd: int) -> Any:
    """Reads one message.

    Raises:
        EndedError: the other side ended.
        ValueError, RecursionError: it is too large or no JSON.
    """
    length = int.from_bytes(_read(fd, 8), "big")
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(_read(fd, length))


def _read(fd: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(fd, min(length, 1 << 20))
        if not part:
            raise EndedError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
