"""The benchmark of rollouts: what it makes of recorded requests, and what it asks a cluster for."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.checkpoints.observation import Observation
from assay_operator.checkpoints.planner import plan
from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import Identity, engine_template
from assay_operator.inference.profiles import resolve
from assay_operator.inference.rollout_ends import settled
from assay_operator.inference.rollout_state import Phase, write
from assay_operator.inference.rollout_world import Target, World
from assay_operator.plan import EVALUATION_ANNOTATION
from benchmarks.rollout_inplace import (
    EVALUATED,
    SERVICE,
    Weights,
    change_of,
    trained,
    verified_at,
)
from benchmarks.rollout_plain import PLAIN, Restarts, plain_objects
from benchmarks.rollout_requests import (
    Answer,
    Change,
    answers,
    last_of_others,
    margin,
    seen,
    unpassed,
    untraced,
)
from benchmarks.rollout_table import InPlace, Plain, raw, rows
from tests.e2e.watching import Told
from tests.kube import infsvc
from tests.unit.worlds import NOW

Json = dict[str, Any]
A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
# B comes from second 10 to 20 and has passed at 15; A comes back from 30 to 40, passed at 35.
FORTH = Change(B, began=10, passed=15, ended=20, phases={"Inspecting": 11, "Gating": 13})
BACK = Change(A, began=30, passed=35, ended=40)


def answer(began: float, version: str | None = A, took: float = 0.5) -> Answer:
    return Answer(began, began + took, None, version)


def failure(began: float, took: float = 0.5) -> Answer:
    return Answer(began, began + took, "URLError('refused')", None)


# --- what clients saw ---------------------------------------------------------------------------


def test_a_record_is_read_in_the_order_of_its_ends() -> None:
    lines: list[Json] = [
        {"at": 1.0, "s": 5.0, "error": None, "version": A},
        {"at": 2.0, "s": 1.0, "error": "TimeoutError()", "version": None},
    ]
    assert answers(lines) == [
        Answer(2.0, 3.0, "TimeoutError()", None),
        Answer(1.0, 6.0, None, A),
    ]


def test_the_gap_is_the_longest_time_without_an_answer() -> None:
    assert seen([answer(10.5), answer(12.5), answer(16.5)], 10, 20).gap == pytest.approx(4)


def test_a_gap_may_lie_at_either_end_of_the_stretch() -> None:
    assert seen([answer(15.5), answer(18.5)], 10, 20).gap == pytest.approx(6)
    assert seen([answer(10.5), answer(12.5)], 10, 20).gap == pytest.approx(7)


def test_a_failure_does_not_end_a_gap() -> None:
    found = seen([answer(10.5), failure(14), answer(18.5)], 10, 20)
    assert found.gap == pytest.approx(8)
    assert (found.failed, found.requests) == (1, 3)


def test_a_request_counts_wherever_it_was_under_way() -> None:
    hung = answer(9, took=30)
    found = seen([answer(1), hung, answer(12)], 10, 20)
    assert found.requests == 2
    assert found.slowest == pytest.approx(30)
    assert found.gap == pytest.approx(7.5), "what ends later ends no gap"


def test_a_stretch_without_any_request_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="no request"):
        seen([answer(1)], 10, 20)


# --- who answered -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("began", "version", "may"),
    [
        (9, A, True),
        (9, B, False),
        (14.9, B, False),
        (15, B, True),
        (19.9, A, True),
        (20, A, False),
        (29, B, True),
        (34.9, A, False),
        (35, A, True),
        (39.9, B, True),
        (40, B, False),
        (99, A, True),
        (16, "step-7", False),
    ],
)
def test_weights_may_answer_from_their_gate_until_all_serve_others(
    began: float, version: str, may: bool
) -> None:
    one = answer(began, version)
    assert unpassed([one], A, [FORTH, BACK]) == ([] if may else [one])


def test_an_answer_that_names_no_weights_is_counted_as_such_and_as_nothing_else() -> None:
    record = [answer(9), answer(16, None), failure(17)]
    assert untraced(record) == 1
    assert unpassed(record, A, [FORTH, BACK]) == []


def test_the_old_weights_last_answer_is_looked_for_within_the_change() -> None:
    record = [answer(17.5), answer(18, B), failure(19), answer(36)]
    assert last_of_others(record, FORTH) == pytest.approx(8)
    assert last_of_others([answer(18, B)], FORTH) == 0


def test_the_margin_is_from_the_gate_to_the_first_request_of_the_new_weights() -> None:
    assert margin([answer(16), answer(17, B), answer(18, B)], FORTH) == pytest.approx(2)
    assert margin([answer(14, B)], FORTH) == pytest.approx(-1)
    assert margin([answer(16), answer(45, B)], FORTH) is None


def test_a_phase_lasts_until_the_next_and_the_last_one_to_the_end() -> None:
    assert FORTH.durations() == {"Inspecting": 2, "Gating": 7}


# --- the table ----------------------------------------------------------------------------------


def regular(*bad: Answer) -> list[Answer]:
    """An answer every half second from A, then B, then A, and some others."""
    times = [each / 2 for each in range(100)]
    good = [answer(at, B if 18 <= at < 38 else A) for at in times]
    return sorted([*good, *bad], key=lambda each: each.ended)


def rolled(*bad: Answer, new_pods: int = 0) -> InPlace:
    return InPlace(regular(*bad), A, [FORTH, BACK], [(21, 29)], new_pods)


def restarted(seconds: float) -> Plain:
    change = Change("/models/tiny", began=1, passed=1, ended=1 + seconds)
    return Plain(Restarts(0, 1, 1), [answer(each, "/models/tiny") for each in range(50)], [change])


def missed(rolled: InPlace, *plains: Plain) -> list[str]:
    return [row.name for row in rows(rolled, plains) if row.goal and not row.met]


def test_nothing_is_missed_where_all_went_well() -> None:
    assert missed(rolled(), restarted(30)) == []


def test_each_goal_can_be_missed() -> None:
    assert missed(rolled(failure(3))) == ["2 rollouts in place: requests"]
    assert missed(rolled(answer(12, B))) == ["answers by a digest that had not passed then"]
    assert missed(rolled(answer(12, None))) == ["answers that name the digest that made them"]
    assert missed(rolled(new_pods=1)) == ["engine pods made anew"]
    slower = missed(rolled(), restarted(5))
    assert len(slower) == 1
    assert slower[0].endswith("/ rollout in place, medians")


def test_the_raw_figures_name_what_went_wrong_and_no_other_request() -> None:
    found = json.loads(json.dumps(raw(rolled(failure(3), answer(12, B)), [restarted(30)])))
    assert [each["began"] for each in found["failed"]] == [3]
    assert [each["began"] for each in found["unpassed"]] == [12]
    assert [each["seconds"] for each in found["rollouts"]] == [10, 10]
    assert len(json.dumps(found)) < 5000


# --- what a cluster is asked for and tells -------------------------------------------------------


def test_a_rounds_checkpoint_is_verified_by_its_note_and_not_before() -> None:
    item = trained("round-3", Weights("tiny", A), 3)
    item["metadata"] |= {"namespace": "bench", "uid": "u-1", "generation": 1}
    before = plan(Observation(item), OperatorConfig(), NOW)
    item["metadata"]["annotations"] = {EVALUATION_ANNOTATION: json.dumps(EVALUATED)}
    after = plan(Observation(item), OperatorConfig(), NOW)
    assert verified_at(item) is None
    assert verified_at({**item, "status": before.status}) is None
    assert verified_at({**item, "status": after.status}) == NOW.timestamp()
    assert after.objects == (), "no Job weighs it"


def told(at: float, phase: Phase, name: str, *, gate: bool = False) -> Told:
    """A service's status as the operator writes it."""
    target = Target(B, "/models/tiny", name, "pvc/models")
    rollout = settled(target, World(NOW, target, None, (), 2))
    state = write(replace(rollout, phase=phase, passed=gate, message=f"{phase}."))
    return Told(at, {"rollout": state})


def test_a_rollout_is_read_from_the_statuses_that_are_of_its_own_checkpoint() -> None:
    statuses = [
        told(1, "Done", "round-1", gate=True),
        told(3, "Inspecting", "round-2"),
        told(4, "Gating", "round-2"),
        told(5, "Gating", "round-2"),
        told(6, "Holding", "round-2", gate=True),
        told(9, "Done", "round-2", gate=True),
    ]
    assert change_of(statuses, "round-2", began=2) == Change(
        version=B,
        began=2,
        passed=6,
        ended=9,
        phases={"Inspecting": 3, "Gating": 4, "Holding": 6},
    )


def test_a_rollout_that_was_not_done_is_no_figure() -> None:
    statuses = [told(3, "Gating", "round-2"), told(4, "Failed", "round-2")]
    with pytest.raises(AssertionError, match="Failed"):
        change_of(statuses, "round-2", began=2)


def test_the_plain_deployment_runs_assays_engines_without_assay() -> None:
    spec = InferenceServiceSpec.model_validate(infsvc(SERVICE, {})["spec"])
    profile = resolve("auto", "cpu", "throughput", None)
    template = engine_template(Identity(SERVICE, "bench"), spec, profile, OperatorConfig())
    before = copy.deepcopy(template)
    deployment, service = plain_objects(template, SERVICE, "tiny", 2)
    assert template == before
    pod = deployment["spec"]["template"]
    ours, theirs = before["spec"]["containers"][0], pod["spec"]["containers"][0]
    for same in ("image", "resources", "lifecycle", "startupProbe", "livenessProbe"):
        assert theirs[same] == ours[same]
    assert theirs["args"][: len(ours["args"])] == [
        PLAIN if each == SERVICE else each for each in ours["args"]
    ]
    assert "$(MODEL_PATH)" in theirs["args"]
    assert {"name": "MODEL_PATH", "value": "/models/tiny"} in theirs["env"]
    assert theirs["readinessProbe"]["httpGet"]["path"] == "/health"
    assert not re.search(rf'"{SERVICE}["-]', json.dumps(deployment)), "the service's is left out"
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    mounted = {each["name"] for each in theirs["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["spec"]["volumes"]}
