"""What ran fused, what fell back, and why: known of every op."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import torch

from assay_kernels import registry
from assay_kernels.linear_logprob.op import OP, linear_logprob
from tests.kernels.heads import DEVICE, draw, exact, no_worse, outcome


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    """Each test counts from 0, and looks at its device anew."""
    OP.forget()
    registry.obstacle_of.cache_clear()
    yield
    OP.forget()
    registry.obstacle_of.cache_clear()


def test_a_call_that_fits_is_counted_as_fused_once_forward_and_once_backward() -> None:
    outcome(linear_logprob, draw(2, 8, 5))
    assert OP.uses() == registry.Uses(fused=2, fallbacks={})


def test_a_call_that_does_not_fit_is_counted_by_its_reason_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch = draw(2, 8, 5).to(torch.float64)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            linear_logprob(batch.hidden, batch.weight, batch.targets)
    assert OP.uses() == registry.Uses(fused=0, fallbacks={"hidden states are torch.float64": 3})
    assert [r.getMessage() for r in caplog.records] == [
        "linear_logprob runs in plain PyTorch: hidden states are torch.float64"
    ]


def test_without_triton_everything_runs_and_the_report_says_why_it_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = draw(3, 8, 5)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    found = outcome(linear_logprob, batch)
    no_worse(found, exact(batch), exact(batch))
    told = registry.report(DEVICE)
    assert {name: op["available"] for name, op in told.items()} == dict.fromkeys(told, False)
    assert told["linear_logprob"]["why_not"] == "Triton is not installed"
    assert told["linear_logprob"]["fallbacks"] == {"Triton is not installed": 2}


def test_the_report_names_every_op_and_can_be_published_as_json() -> None:
    told = json.loads(json.dumps(registry.report(DEVICE)))
    assert set(told) == set(registry.OPS)
    assert all(op["available"] for op in told.values())


def test_on_a_device_without_kernels_the_report_says_so() -> None:
    told = registry.report(torch.device("meta"))
    assert told["policy_loss"]["why_not"] == "there are no kernels for meta"
