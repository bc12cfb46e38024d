"""Versions of the weights: their order, where one lies, how engines got it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay_trainer.engine import Engine


def age(version: str) -> tuple[int, int]:
    """Attempt and step of a version, which can be compared.

    Raises:
        ValueError: it is no such version.
    """
    attempt, _, step = version.partition(".")
    return int(attempt), int(step)


@dataclass(frozen=True)
class Weights:
    """What every engine shall have.

    Attributes:
        version: `ATTEMPT.STEP`; it only grows.
        folder: says where they lie; it may have to write them first, and raises EngineFailure
            where that fails.
    """

    version: str
    folder: Callable[[], Awaitable[Path]]


@dataclass(frozen=True)
class Loaded:
    """How an update of the weights went.

    Attributes:
        version: what was given.
        seconds: from the first request until the last engine was seen to have it, or was out.
        good: the engines that have it.
        failed: those that are out, and why.
    """

    version: str
    seconds: float
    good: tuple[str, ...]
    failed: Mapping[str, str]


Update = Callable[[Sequence[Engine]], Awaitable[Mapping[Engine, str]]]
"""Gives engines the new weights; returns those that failed, and why."""
