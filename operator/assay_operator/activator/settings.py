"""What an activator is told at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What an activator is told at its start.

    Attributes:
        upstream: URL of the routers, without a path.
        model: the name that clients send.
        hold_seconds: a request waits so long at most.
        start_seconds: what a replica may take to start; by it clients are told when to come back.
        finish_seconds: from SIGTERM until what is still under way is cut off.
        requests: that wait at once.
        size: bytes of their bodies that are kept at once.
    """

    upstream: str
    model: str
    hold_seconds: float = 600.0
    start_seconds: float = 120.0
    finish_seconds: float = 180.0
    requests: int = 512
    size: int = 64 << 20
