"""`assay explain NAME`: the last hour of a service, drawn in a terminal."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from assay_operator.__main__ import main
from assay_operator.explain import explain
from assay_operator.plan import Json
from tests.unit.scaled_fleet import Scaled, step
from tests.unit.worlds import NOW, service


@pytest.fixture(scope="module")
def cluster() -> Scaled:
    """A service whose load rose from 4 requests under way to 20."""
    made = Scaled(step(4, 20, 120, 900))
    made.live(300)
    return made


def row(text: str, name: str) -> tuple[str, str]:
    """A line of the picture: what is drawn, and the numbers beside it."""
    found = re.search(rf"^{name} +([▁▂▃▄▅▆▇█ ]{{60}})  (.*)$", text, re.M)
    assert found, text
    return found[1], found[2]


def test_the_picture_shows_the_load_and_what_became_of_it(cluster: Scaled) -> None:
    text = explain(cluster.service, cluster.time())
    arrivals, _ = row(text, "requests/s")
    assert arrivals.strip().startswith("▂") and arrivals.endswith("█")
    drawn, numbers = row(text, "wanted")
    assert numbers == f"1 to {cluster.deployed}, now {cluster.deployed}"
    # A column for each minute that was seen; the last one may not be written yet.
    assert len(drawn.lstrip()) in {4, 5}
    assert row(text, "ready")[1] == row(text, "wanted")[1]


def test_the_decision_is_told_in_its_own_words_and_numbers(cluster: Scaled) -> None:
    text = explain(cluster.service, cluster.time() + timedelta(seconds=7))
    told = cluster.scaling
    assert told["message"] in text and told["changes"][0] in text
    assert all(part in text for part in told["formula"].split("; "))
    assert "objectives: 8 requests a replica" in text
    assert "1 to 5 by driver builtin" in text
    assert re.search(r"\(\d+ s ago\)", text)
    assert "ScalingActive True (Scaling)" in text


def scales(**status: Json) -> Json:
    goals = {"ttftMs": 500, "itlMs": 40, "attainment": 0.9}
    return service({"autoscaling": {"max": 4, "objectives": goals}}, status or None)


def test_before_anything_was_measured_it_says_so() -> None:
    text = explain(scales(), NOW)
    assert "ttft 500 ms, itl 40 ms, for 90.0% of the requests" in text
    assert text.endswith("Nothing was measured yet.")


def test_a_history_that_cannot_be_read_costs_the_picture_only() -> None:
    told = {"time": "2026-11-24T11:59:00Z", "message": "stays at 1", "state": "{"}
    text = explain(scales(autoscaling=told), NOW)
    assert "There is no history yet." in text and "stays at 1" in text


def test_what_was_not_measured_is_not_drawn_as_zero() -> None:
    point = [0.0, 30.0, 0.0, 15.0, 0.5, 0.5, 1, 1, 1, 0.0, None]
    told = {
        "time": "2026-11-24T11:59:00Z",
        "state": json.dumps({"clock": 30.0, "history": [point]}),
    }
    text = explain(scales(autoscaling=told), NOW)
    assert re.search(r"^within goals +not measured$", text, re.M)
    assert row(text, "requests/s")[1] == "0.5 to 0.5, now 0.5"


def test_without_a_way_to_a_cluster_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "solver", "--kubeconfig", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("assay-operator: ")


def test_one_that_does_not_scale_itself_has_nothing_to_explain() -> None:
    with pytest.raises(ValueError, match=r"solver has no spec\.autoscaling"):
        explain(service(), NOW)
