"""What users look up: every word that a condition of a service may give as its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from prometheus_client import Counter, Gauge

from assay_operator import telemetry
from assay_operator.autoscaling.model import Reason

ROOT = Path(__file__).parents[2]
INFERENCE = ROOT / "operator" / "assay_operator" / "inference"
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
AUTOSCALING = (ROOT / "docs" / "autoscaling.md").read_text()


def reasons(module: str) -> Iterator[str]:
    """Those of the verdicts that a module makes."""
    for node in ast.walk(ast.parse((INFERENCE / f"{module}.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Verdict":
            word = node.args[1]
            if isinstance(word, ast.Constant):
                yield str(word.value)


def test_every_reason_of_a_service_that_is_or_is_not_ready_is_explained() -> None:
    found = {*reasons("status"), *reasons("scaling_status"), *reasons("drivers")}
    assert {"Serving", "MetricsUnknown", "DriverMissing"} <= found
    assert not {word for word in found if f"`{word}`" not in TROUBLESHOOTING}


def test_every_reason_of_a_decision_is_explained() -> None:
    assert not {word for word in get_args(Reason) if f"`{word}`" not in AUTOSCALING}


def test_every_metric_of_autoscaling_is_named() -> None:
    names = [
        metric._name
        for metric in vars(telemetry).values()
        if isinstance(metric, Gauge | Counter) and "_autoscaling_" in metric._name
    ]
    assert len(names) == 4
    assert not [name for name in names if f"`{name}" not in AUTOSCALING]
