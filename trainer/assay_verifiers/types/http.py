"""Type `http`: a remote judge. Soft: its word is taken, once it is well formed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from assay_verifiers.config import HttpVerifier
from assay_verifiers.contract import STATUSES, Task, Verdict, Verifier, error
from assay_verifiers.registry import Bench
from assay_verifiers.types.remote import Remote, Unanswered, connect, number


def verdict_of(answer: Any) -> Verdict:
    """The verdict that a judge's answer states.

    Args:
        answer: {"score": in [0, 1], "status"?: one of the contract's, "detail"?: text}. Without a
            status, a score of 1 is ok and a lower one is partial credit of a wrong answer.

    Returns:
        That verdict, or `error` where the answer says none.
    """
    try:
        return _stated(answer)
    except ValueError as reason:
        return error(f"the judge's answer is of no use: {reason}")


def _stated(answer: Any) -> Verdict:
    if not isinstance(answer, dict):
        raise ValueError("it is no object")
    score, status, detail = answer.get("score"), answer.get("status"), answer.get("detail", "")
    value = number(score)
    if value is None:
        raise ValueError(f"the score is no number: {str(score)[:80]}")
    if not isinstance(detail, str):
        raise ValueError("the detail is no text")
    if status is None:
        status = "ok" if value == 1 else "wrong"
    elif status == "wrong" and value == 1:
        raise ValueError("it says wrong with a score of 1")
    if not isinstance(status, str) or status not in STATUSES:
        raise ValueError(f"the status is {str(status)[:80]!r}, none of {', '.join(STATUSES)}")
    return Verdict(value, status, detail)


@dataclass(frozen=True)
class _Http:
    url: str
    remote: Remote

    async def verify(self, task: Task, completion: str) -> Verdict:
        body = {
            "id": task.id,
            "prompt": task.prompt,
            "completion": completion,
            "reference": task.reference,
        }
        try:
            return verdict_of(await self.remote.ask(self.url, body))
        except Unanswered as reason:
            return reason.verdict()


def make(model: HttpVerifier, bench: Bench) -> Verifier:
    """The verifier of an `http` configuration.

    Raises:
        Unavailable: its token is not set.
    """
    return _Http(model.url, connect(model, bench))
