"""The one exception of this package: what went wrong, and what the reader can do about it."""

from __future__ import annotations


class ClusterError(Exception):
    """A failure that is told to the user without a traceback."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n  {hint}" if hint else message)
        self.message = message
        self.hint = hint
