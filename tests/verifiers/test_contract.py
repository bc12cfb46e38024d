"""A verdict cannot contradict itself, and a defect of a verifier is never a score."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import assay_verifiers
from assay_verifiers.config import (
    MODELS,
    AnyVerifier,
    MathVerifier,
    VerifierModel,
    WeightedVerifier,
    parse_verifier,
)
from assay_verifiers.contract import (
    MASKED,
    STATUSES,
    Task,
    Unavailable,
    Verdict,
    error,
    ok,
    timeout,
    unparsed,
    wrong,
)
from assay_verifiers.registry import Bench, Kind, plugins, soft, verify_one

TASK = Task("item", reference="18")


@given(st.sampled_from(STATUSES), st.floats(allow_nan=True, allow_infinity=True))
def test_a_verdict_that_contradicts_itself_cannot_be_made(status: Any, score: float) -> None:
    fits = (
        math.isfinite(score)
        and 0 <= score <= 1
        and (status != "ok" or score > 0)
        and (score == 0 or status in ("ok", "wrong"))
    )
    if fits:
        assert Verdict(score, status).score == score
    else:
        with pytest.raises(ValueError):
            Verdict(score, status)


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown status"):
        Verdict(0.0, "passed")  # type: ignore[arg-type]


def test_only_what_could_not_be_judged_is_masked() -> None:
    verdicts = (ok(), wrong(), wrong(score=0.5), unparsed(), timeout(), error())
    assert [verdict.masked for verdict in verdicts] == [False, False, False, False, True, True]
    assert {"timeout", "error"} == MASKED


def test_an_absurdly_long_detail_is_cut() -> None:
    detail = wrong("x" * 10**6).detail
    assert len(detail) < 2100
    assert detail.endswith("(1000000 characters)")


@dataclass
class Broken:
    raised: BaseException

    async def verify(self, task: Task, completion: str) -> Verdict:
        raise self.raised


@pytest.mark.parametrize("raised", [ValueError("x"), AssertionError(), KeyError(1), MemoryError()])
async def test_a_verifier_that_raises_gives_an_error_and_no_score(raised: Exception) -> None:
    verdict = await verify_one(Broken(raised), TASK, "18")
    assert (verdict.status, verdict.score, verdict.masked) == ("error", 0.0, True)
    assert type(raised).__name__ in verdict.detail


async def test_giving_up_is_no_verdict() -> None:
    with pytest.raises(asyncio.CancelledError):
        await verify_one(Broken(asyncio.CancelledError()), TASK, "18")


async def test_a_verdict_has_its_time(bench: Bench) -> None:
    assert 0 < (await verify_one(bench.verifier(MathVerifier()), TASK, "18")).seconds < 5


def test_a_configuration_is_read_by_its_type() -> None:
    assert parse_verifier({"type": "math", "timeout": 3}) == MathVerifier(timeout=3)
    assert parse_verifier(MathVerifier()) == MathVerifier()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "an object with a type"),
        ("math", "an object with a type"),
        ({"type": "maths"}, "there are .*math"),
        ({"type": "math", "timeOut": 3}, "timeOut"),
        ({"type": "math", "timeout": 0}, "timeout"),
        ({"type": "all", "parts": []}, "parts"),
        ({"type": "all", "parts": [{"type": "math", "answer": "first"}]}, "answer"),
    ],
)
def test_a_wrong_configuration_says_where(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_verifier(value)


def test_a_configuration_survives_being_written_and_read() -> None:
    class JobFile(BaseModel):
        verifier: AnyVerifier

    job = JobFile.model_validate(
        {"verifier": {"type": "weighted", "parts": [{"verifier": {"type": "math"}, "weight": 2}]}}
    )
    assert isinstance(job.verifier, WeightedVerifier)
    assert JobFile.model_validate_json(job.model_dump_json()) == job
    with pytest.raises(ValidationError):
        JobFile.model_validate({"verifier": {"type": "math", "weight": 1}})


def test_every_type_has_its_own_name() -> None:
    assert {name: model.model_fields["type"].default for name, model in MODELS.items()} == {
        name: name for name in MODELS
    }


def test_soft_is_what_holds_nothing_harder_than_an_opinion() -> None:
    opinion = {"type": "http", "url": "http://judge"}
    hard = {"type": "math"}
    assert soft(parse_verifier(opinion))
    assert not soft(parse_verifier(hard))
    assert soft(parse_verifier({"type": "all", "parts": [opinion, opinion]}))
    assert not soft(parse_verifier({"type": "all", "parts": [opinion, hard]}))


class Even(VerifierModel):
    """A plug-in's configuration."""

    type: Literal["even"] = "even"


@dataclass
class Point:
    """An installed entry point."""

    name: str
    loaded: Any
    value: str = "package.module:object"

    def load(self) -> Any:
        return self.loaded


class EvenVerifier:
    async def verify(self, task: Task, completion: str) -> Verdict:
        return ok() if int(completion) % 2 == 0 else wrong()


async def test_a_package_may_offer_a_type_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind(Even, lambda model, bench: EvenVerifier(), soft=True)
    monkeypatch.setattr(
        "assay_verifiers.registry.entry_points", lambda group: [Point("even", kind)]
    )
    monkeypatch.setattr("assay_verifiers.config.MODELS", models := dict(MODELS))
    monkeypatch.setattr("assay_verifiers.registry.MODELS", models)
    monkeypatch.setattr("assay_verifiers.registry.PLUGINS", plugins())
    model = parse_verifier({"type": "even"})
    async with Bench() as bench:
        assert (await verify_one(bench.verifier(model), TASK, "4")).status == "ok"
        assert (await verify_one(bench.verifier(model), TASK, "four")).status == "error"
    assert soft(model)


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (Point("even", "no kind"), "is not an"),
        (Point("math", Kind(Even, lambda model, bench: EvenVerifier())), "built-in"),
    ],
)
def test_an_entry_point_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, point: Point, said: str
) -> None:
    monkeypatch.setattr("assay_verifiers.registry.entry_points", lambda group: [point])
    with pytest.raises(ValueError, match=said):
        plugins()


async def test_a_type_whose_package_is_missing_says_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("no", name="math_verify")

    monkeypatch.setattr("assay_verifiers.registry.import_module", missing)
    async with Bench() as bench:
        with pytest.raises(Unavailable, match=r"pip install 'assay\[verifiers\]'"):
            bench.check([MathVerifier()])


async def test_equal_configurations_share_a_verifier() -> None:
    async with Bench() as bench:
        one = bench.verifier(MathVerifier())
        assert bench.verifier(MathVerifier()) is one
        assert bench.verifier(MathVerifier(timeout=1)) is not one


def test_everything_public_can_be_imported_from_the_package() -> None:
    assert all(hasattr(assay_verifiers, name) for name in assay_verifiers.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = assay_verifiers.nothing
