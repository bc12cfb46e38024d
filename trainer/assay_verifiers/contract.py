"""What a verifier is: an item and a completion in, a verdict out.

A wrong reward is worse than none, so a verdict says not only how good an answer is but whether it
could be judged at all. What could not be judged (`timeout`, `error`) is masked: it takes no part in
a loss or a mean, and is counted instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

Status = Literal["ok", "wrong", "unparsed", "timeout", "error"]
"""ok: everything that was asked holds. wrong: it was judged and does not (partial credit included).
unparsed: no answer could be read in the completion. timeout: it could not be judged within the
deadline. error: it could not be judged for another reason."""

STATUSES: tuple[Status, ...] = get_args(Status)
MASKED: frozenset[Status] = frozenset({"timeout", "error"})
_LONGEST_DETAIL = 2000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion.

    Attributes:
        score: in [0, 1]. Above 0 only where the status is `ok` or `wrong` (partial credit), and
            always above 0 where it is `ok`.
        status: see `Status`.
        detail: why, in a line or a few, for people. Cut where it is absurdly long.
        seconds: how long it took, in wall-clock seconds.

    Raises:
        ValueError: score and status contradict each other, or the score is not in [0, 1].
    """

    score: float
    status: Status
    detail: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}")
        if not math.isfinite(self.score) or not 0 <= self.score <= 1:
            raise ValueError(f"the score must be in [0, 1], not {self.score!r}")
        if self.score > 0 and self.status not in ("ok", "wrong"):
            raise ValueError(f"{self.status} with a score of {self.score}")
        if self.score == 0 and self.status == "ok":
            raise ValueError("ok with a score of 0")
        if len(self.detail) > _LONGEST_DETAIL:
            cut = f"{self.detail[:_LONGEST_DETAIL]} ... ({len(self.detail)} characters)"
            object.__setattr__(self, "detail", cut)

    @property
    def masked(self) -> bool:
        """Whether nothing may be concluded from it."""
        return self.status in MASKED

    def took(self, seconds: float) -> Verdict:
        """The same verdict with its time."""
        return replace(self, seconds=seconds)


def ok(detail: str = "", score: float = 1.0) -> Verdict:
    """Everything that was asked holds."""
    return Verdict(score, "ok", detail)


def wrong(detail: str = "", score: float = 0.0) -> Verdict:
    """Judged, and something does not hold; `score` is partial credit."""
    return Verdict(score, "wrong", detail)


def unparsed(detail: str = "") -> Verdict:
    """No answer could be read."""
    return Verdict(0.0, "unparsed", detail)


def timeout(detail: str = "") -> Verdict:
    """Could not be judged within the deadline: masked."""
    return Verdict(0.0, "timeout", detail)


def error(detail: str = "") -> Verdict:
    """Could not be judged: masked."""
    return Verdict(0.0, "error", detail)


@dataclass(frozen=True)
class Task:
    """What a verifier may know of an item beside its own configuration.

    Attributes:
        id: the item's name.
        prompt: what the model was asked, as text (of chat messages: the last user's).
        reference: the truth, of whatever form the verifier's type wants: JSON data.
    """

    id: str
    prompt: str = ""
    reference: Any = None


class Verifier(Protocol):
    """A judge of one type with one configuration. It holds no state of items."""

    async def verify(self, task: Task, completion: str) -> Verdict:
        """Judges one completion.

        Never raises for anything that a completion holds: what cannot be judged is a verdict of
        status `timeout` or `error`. `verify_one` measures the time and turns a stray exception
        into `error`.

        Raises:
            asyncio.CancelledError: the caller gave up; nothing goes on in the background.
        """


class Unavailable(Exception):
    """A verifier cannot work here; the message says why and what the remedy is."""
