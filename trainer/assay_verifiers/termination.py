"""What a command leaves as its container's termination message. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 4095
"""Kubernetes keeps at most 4,096 bytes of a container's termination message."""


def leave(path: Path, content: bytes) -> None:
    """Writes a message in one go, over what stands there.

    Not by renaming: a termination log is a mounted file.

    Raises:
        OSError: it cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(handle, content)
        os.ftruncate(handle, len(content))
    finally:
        os.close(handle)
