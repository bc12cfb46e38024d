"""The picture of a run: that it is there, whole, and says what the numbers say."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from assay_trainer.curve import draw, judgement, line_of, smooth
from assay_trainer.job import Job
from assay_trainer.watch import Alarm
from assay_verifiers.statistics import wilson
from tests.trainer.jobs import with_fields

GREEN, RED = (0, 121, 90), (179, 38, 30)


def job(**fields: Any) -> Job:
    evaluation = {"suite": "held-out.jsonl", "minScore": 0.6}
    changes = {"evaluation": evaluation, **{k.replace("__", "."): v for k, v in fields.items()}}
    return Job.model_validate(with_fields(changes))


def weighed(step: int, right: int, **more: float) -> dict[str, float]:
    interval = wilson(right, 100, 0.95)
    ends = {"evaluation/low": interval.low, "evaluation/high": interval.high}
    return {"step": step, "evaluation/score": right / 100, **ends, **more}


def learned(step: int) -> dict[str, float]:
    return {
        "step": step,
        "loss": 0.1,
        "reward/mean": step / 100,
        "entropy": 1 / step,
        "mismatch/mean": 3e-7,
        "groups/uniform": 0.4,
        "samples/truncated": 0.1,
        "samples/masked": 0.0,
        "seconds/rollout": 1.5,
        "seconds/verify-hidden": 0.2,
        "seconds/train": 1.0,
        "seconds/step": 1.8,
    }


def history(first: int, last: int) -> list[dict[str, float]]:
    lines = [weighed(0, first), *(learned(step) for step in range(1, 81))]
    lines[80] |= weighed(80, last, **{"evaluation/sample@1": last / 110})
    return lines


def pixels(path: Path) -> Any:
    return (imread(path)[..., :3] * 255).round().astype(int)


def headline_has(path: Path, colour: tuple[int, int, int]) -> bool:
    rows = pixels(path)[:60]
    return bool((rows == np.array(colour)).all(axis=-1).any())


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([], id="nothing yet"),
        pytest.param([weighed(0, 10)], id="only the first evaluation"),
        pytest.param([learned(1)], id="one step and no evaluation"),
        pytest.param([{"step": 1, "loss": math.nan, "reward/mean": math.nan}], id="only NaN"),
        pytest.param(history(10, 80), id="a run"),
        pytest.param(history(10, 80) + [learned(step) for step in range(81, 3000)], id="long"),
    ],
)
def test_whatever_a_run_has_measured_there_is_a_picture_of_1200_by_800(
    lines: list[dict[str, float]], tmp_path: Path
) -> None:
    path = tmp_path / "curve.png"
    draw(lines, path, job(trainer__steps=3000))
    assert pixels(path).shape == (800, 1200, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["curve.png"]


def test_the_headline_is_green_where_the_score_rose_and_red_where_it_fell(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    draw(history(10, 80), path, job())
    assert headline_has(path, GREEN)
    assert not headline_has(path, RED)
    draw(history(80, 10), path, job())
    assert headline_has(path, RED)
    assert not headline_has(path, GREEN)


def test_the_headline_of_a_run_that_was_stopped_is_red_however_good_its_score(
    tmp_path: Path,
) -> None:
    path = tmp_path / "curve.png"
    draw(history(10, 80), path, job(), [Alarm("not-finite", True, "loss is nan " * 40, "")])
    assert headline_has(path, RED)


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        ([], "Not weighed yet"),
        ([10], "Held-out score 0.10, weighed once"),
        ([10, 60], "Better: held-out score 0.10 → 0.60"),
        ([10, 15], "No sure change: held-out score 0.10 → 0.15"),
        ([60, 10], "Worse: held-out score 0.60 → 0.10 (best: step 0)"),
        # Better than at first, and yet something broke on the way.
        ([10, 90, 40], "Worse: held-out score 0.90 → 0.40 (best: step 1)"),
        ([10, 90, 85], "Better: held-out score 0.10 → 0.85"),
    ],
)
def test_a_change_is_called_one_only_where_the_intervals_lie_apart(
    rights: list[int], words: str
) -> None:
    assert judgement([weighed(step, right) for step, right in enumerate(rights)])[0].startswith(
        words
    )


def test_an_evaluation_without_a_judged_item_is_passed_over() -> None:
    lines = [weighed(0, 10), {**weighed(1, 0), "evaluation/score": math.nan}, weighed(2, 60)]
    assert judgement(lines)[0] == "Better: held-out score 0.10 → 0.60"


def test_smoothing_keeps_a_line_straight_and_does_not_delay_a_step() -> None:
    line = np.arange(10.0)
    assert smooth(line, 5)[2:-2] == pytest.approx(line[2:-2])
    rise = smooth(np.array([0.0] * 10 + [1.0] * 10), 5)
    assert rise[9] + rise[10] == pytest.approx(1)
    assert smooth(line, 1) == pytest.approx(line)
    assert len(smooth(np.array([]), 3)) == 0


def test_steps_without_a_number_leave_no_point() -> None:
    at, values = line_of([{"step": 1}, {"step": 2, "x": math.inf}, {"step": 3, "x": 5}], "x")
    assert (list(at), list(values)) == ([3], [5])


def test_a_reader_never_sees_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    draw(history(10, 80), path, job())
    drawing = threading.Thread(
        target=lambda: [draw(history(10, 50 + i), path, job()) for i in range(3)]
    )
    drawing.start()
    looks = 0
    while drawing.is_alive():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")
        looks += 1
    drawing.join()
    assert looks > 3


def test_a_folder_that_is_gone_is_an_error_and_not_silence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draw(history(10, 80), tmp_path / "gone" / "curve.png", job())
