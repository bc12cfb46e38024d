"""Verifiers made of verifiers: what a part could not judge, the whole could not judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_verifiers.config import MODELS, VerifierModel, parse_verifier
from assay_verifiers.contract import (
    MASKED,
    STATUSES,
    Task,
    Verdict,
    error,
    ok,
    timeout,
    unparsed,
    wrong,
)
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.types import compose

TASK = Task("item", prompt="?", reference="18")


class Fixed(VerifierModel):
    """A verifier with a given verdict."""

    type: Literal["fixed"] = "fixed"
    status: str
    score: float = 0.0


@dataclass
class FixedVerifier:
    verdict: Verdict
    asked: list[Verdict] = field(default_factory=list)

    async def verify(self, task: Task, completion: str) -> Verdict:
        self.asked.append(self.verdict)
        return self.verdict


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """Makes the type `fixed` known; the verdicts that were asked for."""
    known = Bench.verifier
    found: list[Verdict] = []

    def verifier(self: Bench, model: VerifierModel) -> Any:
        if isinstance(model, Fixed):
            return FixedVerifier(Verdict(model.score, model.status), found)  # type: ignore[arg-type]
        return known(self, model)

    monkeypatch.setitem(MODELS, "fixed", Fixed)
    monkeypatch.setattr(Bench, "verifier", verifier)
    return found


OK = {"type": "fixed", "status": "ok", "score": 1}
PARTLY = {"type": "fixed", "status": "wrong", "score": 0.5}
WRONG = {"type": "fixed", "status": "wrong"}
UNPARSED = {"type": "fixed", "status": "unparsed"}
TIMEOUT = {"type": "fixed", "status": "timeout"}
ERROR = {"type": "fixed", "status": "error"}


async def verdict_of(value: Any) -> Verdict:
    async with Bench() as bench:
        return await verify_one(bench.verifier(parse_verifier(value)), TASK, "18")


def weighted(*parts: tuple[Any, float]) -> Any:
    return {
        "type": "weighted",
        "parts": [{"verifier": verifier, "weight": weight} for verifier, weight in parts],
    }


def all_of(*parts: Any) -> Any:
    return {"type": "all", "parts": list(parts)}


def format_first(format: Any, then: Any) -> Any:
    return {"type": "format-first", "format": format, "then": then}


@pytest.mark.parametrize(
    ("value", "status", "score"),
    [
        (weighted((OK, 1), (OK, 3)), "ok", 1.0),
        (weighted((OK, 1), (WRONG, 3)), "wrong", 0.25),
        (weighted((OK, 1), (UNPARSED, 3)), "wrong", 0.25),
        (weighted((PARTLY, 1), (PARTLY, 1)), "wrong", 0.5),
        (weighted((UNPARSED, 1), (UNPARSED, 1)), "unparsed", 0.0),
        (weighted((OK, 99), (TIMEOUT, 1)), "timeout", 0.0),
        (weighted((OK, 99), (ERROR, 1)), "error", 0.0),
        (weighted((TIMEOUT, 1), (ERROR, 1)), "error", 0.0),
        (all_of(OK, OK), "ok", 1.0),
        (all_of(OK, WRONG), "wrong", 0.0),
        (all_of(OK, PARTLY), "wrong", 0.0),
        (all_of(OK, UNPARSED), "wrong", 0.0),
        (all_of(OK, TIMEOUT), "timeout", 0.0),
        (all_of(WRONG, ERROR), "error", 0.0),
        (format_first(OK, PARTLY), "wrong", 0.5),
        (format_first(OK, OK), "ok", 1.0),
        (format_first(WRONG, OK), "wrong", 0.0),
        (format_first(PARTLY, OK), "wrong", 0.0),
        (format_first(UNPARSED, OK), "unparsed", 0.0),
        (format_first(TIMEOUT, OK), "timeout", 0.0),
        (format_first(OK, ERROR), "error", 0.0),
        # a timeout deep inside masks the whole
        (all_of(OK, weighted((OK, 9), (format_first(OK, TIMEOUT), 1))), "timeout", 0.0),
        (weighted((all_of(OK, all_of(OK, ERROR)), 1), (OK, 99)), "error", 0.0),
        (format_first(all_of(OK, TIMEOUT), OK), "timeout", 0.0),
    ],
)
async def test_a_whole_has_the_status_that_its_parts_allow(
    value: Any, status: str, score: float
) -> None:
    verdict = await verdict_of(value)
    assert (verdict.status, verdict.score) == (status, score), verdict.detail


async def test_nothing_is_asked_behind_a_format_that_is_wrong(asked: list[Verdict]) -> None:
    await verdict_of(format_first(WRONG, OK))
    assert [verdict.status for verdict in asked] == ["wrong"]


async def test_the_detail_names_every_part() -> None:
    value = {
        "type": "weighted",
        "parts": [{"verifier": OK, "name": "sum"}, {"verifier": WRONG}],
    }
    assert (await verdict_of(value)).detail == "sum: ok 1; fixed: wrong 0"


async def test_real_verifiers_compose() -> None:
    form = {"type": "regex", "pattern": r"^A: \d+$"}
    value = format_first(form, {"type": "math"})
    async with Bench() as bench:
        verifier = bench.verifier(parse_verifier(value))
        assert (await verify_one(verifier, TASK, "A: 18")).status == "ok"
        assert (await verify_one(verifier, TASK, "A: 17")).status == "wrong"
        assert (await verify_one(verifier, TASK, "it is 18")).status == "wrong"


verdicts = st.lists(
    st.sampled_from(
        [ok(), ok(score=0.7), wrong(), wrong(score=0.4), unparsed(), timeout(), error()]
    ),
    min_size=1,
    max_size=6,
)


@given(verdicts, st.data())
def test_whatever_the_parts_say_the_whole_is_consistent(
    parts: list[Verdict], data: st.DataObject
) -> None:
    names = [str(number) for number in range(len(parts))]
    weights = data.draw(
        st.lists(st.floats(1e-3, 1e3), min_size=len(parts), max_size=len(parts)), label="weights"
    )
    for whole in (compose.weighted(names, weights, parts), compose.all_must_pass(names, parts)):
        assert whole.status in STATUSES
        assert whole.masked == any(part.masked for part in parts)
        assert (whole.status in MASKED) <= (whole.score == 0)
        assert (whole.status == "ok") == all(part.status == "ok" for part in parts)
        assert whole.score <= max(part.score for part in parts) + 1e-9
