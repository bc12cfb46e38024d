"""A completion matches a pattern of RE2's, or a group of it equals the reference's value."""

from __future__ import annotations

import time
from typing import Any

import pytest

from assay_verifiers.config import RegexVerifier
from assay_verifiers.contract import Task, Verdict
from assay_verifiers.registry import Bench, verify_one


async def judge(bench: Bench, completion: str, reference: Any = None, **config: Any) -> Verdict:
    verifier = bench.verifier(RegexVerifier(**config))
    return await verify_one(verifier, Task("a", reference=reference), completion)


@pytest.mark.parametrize(
    ("config", "completion", "status"),
    [
        ({"pattern": "yes|no"}, "I say yes.", "ok"),
        ({"pattern": "yes|no"}, "I say Yes.", "wrong"),
        ({"pattern": "yes|no", "ignoreCase": True}, "I say Yes.", "ok"),
        ({"pattern": "yes|no", "mode": "full"}, "I say yes.", "wrong"),
        ({"pattern": "yes|no", "mode": "full"}, "no", "ok"),
        ({"pattern": r"^\d+$", "mode": "full"}, "\u0661\u0662", "wrong"),
        ({"pattern": ".*"}, "", "unparsed"),
        ({"pattern": ".*"}, " \n", "unparsed"),
        ({"pattern": "a"}, "\ud800a", "unparsed"),
        ({"pattern": "a"}, "a" * 200_000, "unparsed"),
    ],
)
async def test_a_pattern_is_searched_or_matched_whole(
    bench: Bench, config: dict[str, Any], completion: str, status: str
) -> None:
    verdict = await judge(bench, completion, **config)
    assert (verdict.status, verdict.score) == (status, float(status == "ok"))


@pytest.mark.parametrize(
    ("reference", "completion", "status"),
    [
        ("42", "ANSWER: 42", "ok"),
        (42, "ANSWER: 42", "ok"),
        ({"value": " 42"}, "ANSWER: 42 ", "ok"),
        ("42", "ANSWER: 43", "wrong"),
        ("42", "ANSWER: 1 2 3 42", "wrong"),
        ("42", "forty-two", "unparsed"),
        (None, "ANSWER: 42", "error"),
        ({"value": [42]}, "ANSWER: 42", "error"),
    ],
)
async def test_a_group_must_equal_the_value(
    bench: Bench, reference: Any, completion: str, status: str
) -> None:
    for group in (1, "n"):
        pattern = r"ANSWER: *(?P<n>\d+)"
        verdict = await judge(bench, completion, reference, pattern=pattern, group=group)
        assert verdict.status == status


async def test_the_reference_may_hold_the_pattern(bench: Bench) -> None:
    assert (await judge(bench, "abc", {"pattern": "b"})).status == "ok"
    assert (await judge(bench, "abc", {"pattern": "("})).status == "error"
    assert (await judge(bench, "abc", "b")).status == "error"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"pattern": "ab(c"}, "missing \\)"),
        ({"pattern": "ab[z-a]"}, "at character 3"),
        ({"pattern": r"(a)\1"}, "at character 3"),
        ({"pattern": "a(?=b)"}, "none"),
        ({"pattern": "(a)", "group": 2}, "no group 2"),
        ({"pattern": "(?P<x>a)", "group": "y"}, "no group 'y'"),
    ],
)
async def test_a_pattern_that_is_none_is_refused_before_any_item(
    bench: Bench, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        bench.verifier(RegexVerifier(**config))


async def test_a_pattern_that_would_blow_up_elsewhere_takes_no_time(bench: Bench) -> None:
    began = time.monotonic()
    verdict = await judge(bench, "a" * 100_000, pattern="^(a+)+$|(x|x)*y|(.*a){12}b")
    assert verdict.status == "ok"
    verdict = await judge(bench, "a" * 100_000 + "!", pattern="^(a+)+$")
    assert verdict.status == "wrong"
    assert time.monotonic() - began < 2
