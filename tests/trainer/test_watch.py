"""What a run is warned of and what ends it; and the file of its metrics."""

from __future__ import annotations

import json
import math
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.job import Job
from assay_trainer.metrics import MetricsError, MetricsLog, read
from assay_trainer.watch import Alarm, alarms
from tests.trainer.jobs import with_fields

HEALTHY = {
    "loss": 0.01,
    "policy": 0.01,
    "grad/norm": 0.4,
    "reward/mean": 0.4,
    "entropy": 0.8,
    "groups/uniform": 0.3,
    "groups/few": 0.0,
    "samples/masked": 0.0,
    "samples/truncated": 0.05,
    "mismatch/mean": 1e-3,
    "mismatch/max": 0.2,
    "ratio/mean": 1.0,
}


def job(**changes: Any) -> Job:
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return Job.model_validate(with_fields({"trainer.steps": 1000, **fields}))


def steps(count: int, changes: dict[str, float] | None = None, first: int = 1) -> list[Any]:
    line = {**HEALTHY, **{name.replace("__", "/"): v for name, v in (changes or {}).items()}}
    return [{"step": step, **line} for step in range(first, first + count)]


def only(history: list[Any], **changes: Any) -> Alarm:
    (alarm,) = alarms(history, job(**changes))
    assert alarm.reason
    assert alarm.remedy
    return alarm


def test_a_healthy_run_has_no_alarm_and_neither_has_one_that_has_not_begun() -> None:
    assert alarms(steps(50), job()) == []
    assert alarms([], job()) == []
    assert alarms([{"step": 0, "evaluation/score": math.nan}], job()) == []


@pytest.mark.parametrize("name", ["loss", "grad/norm", "kl", "entropy", "reward/mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_the_run_at_once(name: str, value: float) -> None:
    alarm = only(steps(3) + steps(1, {name: value}, first=4))
    assert (alarm.kind, alarm.stop) == ("not-finite", True)
    assert f"step 4: {name} is {value}" in alarm.reason
    assert "learningRate" in alarm.remedy


def test_a_step_in_which_nothing_could_be_judged_warns_and_three_in_a_row_stop() -> None:
    masked = {"samples/masked": 1.0, "reward/mean": math.nan, "groups/few": 1.0, "status/error": 64}
    alarm = only(steps(5) + steps(2, masked, first=6))
    assert (alarm.kind, alarm.stop) == ("masked", False)
    alarm = only(steps(5) + steps(3, masked, first=6))
    assert (alarm.kind, alarm.stop) == ("masked", True)
    assert "100% of the samples could not be judged (error 64)" in alarm.reason
    assert "rollout.maxTokens" not in alarm.remedy
    assert not only(steps(2, masked)).stop


def test_masked_truncated_completions_are_named_as_a_cause_where_the_job_masks_them() -> None:
    alarm = only(steps(1, {"samples/masked": 0.7}), rollout__truncated="mask")
    assert not alarm.stop
    assert "rollout.maxTokens" in alarm.remedy


def test_a_reward_that_never_varies_warns_first_and_stops_in_the_end() -> None:
    dead = {"groups/uniform": 1.0, "reward/mean": 0.0, "status/unparsed": 60, "status/wrong": 4}
    assert alarms(steps(9) + steps(4, dead, first=10), job()) == []
    alarm = only(steps(9) + steps(5, dead, first=10))
    assert (alarm.kind, alarm.stop) == ("no-variance", False)
    assert "for 5 steps" in alarm.reason
    assert "(wrong 4, unparsed 60)" in alarm.reason
    assert only(steps(9) + steps(20, dead, first=10)).stop


def test_one_step_that_has_something_to_learn_ends_that_alarm() -> None:
    dead = {"groups/uniform": 0.5, "groups/few": 0.5}
    assert only(steps(30, dead)).stop
    assert alarms(steps(30, dead) + steps(1, first=31), job()) == []


def test_a_task_that_is_solved_warns_and_never_stops() -> None:
    alarm = only(steps(100, {"groups/uniform": 1.0, "reward/mean": 1.0}))
    assert (alarm.kind, alarm.stop) == ("no-variance", False)
    assert "every completion" in alarm.reason


def test_with_a_baseline_of_the_whole_batch_uniform_groups_are_no_alarm() -> None:
    alike = {"groups/uniform": 1.0}
    single = {"algorithm__name": "reinforce++", "algorithm__groupSize": 1}
    assert alarms(steps(30, alike), job(**single)) == []
    assert only(steps(30, {**alike, "reward/mean": 0.0}), **single).stop


def test_entropy_that_collapses_before_the_reward_is_good_warns() -> None:
    fallen = steps(10) + steps(10, {"entropy": 0.004}, first=11)
    alarm = only(fallen)
    assert (alarm.kind, alarm.stop) == ("entropy", False)
    assert "from 0.8 to 0.004" in alarm.reason
    sure_and_right = {"entropy": 0.004, "reward/mean": 0.97}
    assert alarms(steps(10) + steps(10, sure_and_right, first=11), job()) == []


def test_entropy_that_was_low_from_the_start_or_is_not_measured_is_no_alarm() -> None:
    assert alarms(steps(40, {"entropy": 0.004}), job()) == []
    unmeasured = [{name: v for name, v in line.items() if name != "entropy"} for line in steps(40)]
    assert alarms(unmeasured, job()) == []


@pytest.mark.parametrize(
    ("precision", "staleness", "value", "found"),
    [
        ("fp32", 0, 2e-3, True),
        ("fp32", 0, 5e-4, False),
        ("fp32", 1, 2e-2, False),
        ("bf16", 0, 2e-2, False),
        ("bf16", 1, 0.2, True),
        ("deterministic", 0, 1e-7, True),
        ("deterministic", 0, 0.0, False),
        ("deterministic", 1, 2e-2, False),
    ],
)
def test_engine_and_trainer_may_differ_as_much_as_precision_and_staleness_explain(
    precision: str, staleness: int, value: float, found: bool
) -> None:
    exact = precision == "deterministic"
    asked = job(
        trainer__precision="bf16" if exact else precision,
        trainer__deterministic=exact,
        rollout__maxStaleness=staleness,
    )
    kinds = [alarm.kind for alarm in alarms(steps(3, {"mismatch/mean": value}), asked)]
    assert kinds == (["mismatch"] if found else [])
    # Only where it lasts: one step may hold an odd token.
    assert alarms(steps(2, {"mismatch/mean": value}), asked) == []
    lasting = {"mismatch/mean": value}
    broken = steps(2, lasting) + steps(1, {"mismatch/mean": 0.0}, first=3) + steps(1, lasting, 4)
    assert alarms(broken, asked) == []


def test_a_mismatch_that_no_rounding_explains_stops_the_run() -> None:
    assert only(steps(3, {"mismatch/mean": 1.7})).stop


@pytest.mark.parametrize(("ratio", "stop"), [(3.0, False), (50.0, True), (math.nan, True)])
def test_a_ratio_that_explodes_warns_then_stops(ratio: float, stop: bool) -> None:
    alarm = only(steps(1, {"ratio/mean": ratio}), trainer__updatesPerStep=4)
    assert (alarm.kind, alarm.stop) == ("ratio", stop)
    assert "updatesPerStep (it is 4)" in alarm.remedy


def test_completions_that_are_mostly_cut_off_warn() -> None:
    alarm = only(steps(3, {"samples/truncated": 0.8}), rollout__maxTokens=64)
    assert (alarm.kind, alarm.stop) == ("truncated", False)
    assert "80% of the completions were cut off at 64 tokens" in alarm.reason


def test_alarms_that_stop_come_first() -> None:
    found = alarms(steps(3, {"samples/truncated": 0.8, "mismatch/mean": 2.0}), job())
    assert [alarm.stop for alarm in found] == [True, False]


def test_the_log_has_a_line_of_json_for_each_step_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(0, {"evaluation/score": 0.1})
        log.append(1, {"loss": math.nan, "reward/mean": 0.25})
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[1]["loss"] is None
    assert lines[1]["time"] > 0
    assert math.isnan(read(path)[1]["loss"])


def test_a_run_that_goes_on_drops_the_lines_of_steps_that_were_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 8):
            log.append(step, {"loss": step / 10})
    with MetricsLog(path, resumed=4) as log:
        assert [line["step"] for line in log.history] == [1, 2, 3, 4]
        log.append(5, {"loss": 9.0})
    assert [(line["step"], line["loss"]) for line in read(path)][-2:] == [(4, 0.4), (5, 9.0)]
    assert len(read(path)) == 5


def test_a_line_that_was_torn_by_a_crash_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert [line["step"] for line in read(path)] == [1]
    with MetricsLog(path) as log:
        log.append(2, {"loss": 0.25})
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("damage", ["{nonsense", "[]", "{}", '{"step": 1.5}', '{"step": null}'])
def test_a_damaged_line_in_the_middle_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 3}}\n')
    with pytest.raises(MetricsError, match=r"line 2 is damaged .* move the file away"):
        MetricsLog(path)


def test_a_step_is_written_only_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append(3, {})
        with pytest.raises(ValueError, match="step 3 comes after step 3"):
            log.append(3, {})


def test_storage_that_fills_up_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(1, {"loss": 0.5})
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
        try:
            with pytest.raises(OSError, match=r"No space|too large"):
                log.append(2, {"loss": 0.25})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_bytes() == before
        log.append(2, {"loss": 0.25})
    assert [line["step"] for line in read(path)] == [1, 2]
