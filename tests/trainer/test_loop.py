"""The loop: the order of its parts, what is kept, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from assay_trainer.checkpoint import CheckpointError
from assay_trainer.engine import EngineError
from assay_trainer.inventory import found
from assay_trainer.learner import LearnerError
from assay_trainer.loop import TrainingStopped
from assay_trainer.recording import load
from assay_trainer.weights import WeightsError
from assay_verifiers.interrupts import Interrupted
from tests.trainer.course import PROMPTS, Course, forever, others
from tests.trainer.runs import ended, fork

IN_TURN = {"rollout__maxStaleness": 0}
AHEAD = {"rollout__maxStaleness": 1}
STALENESS = pytest.mark.parametrize("staleness", [0, 1])
WEIGHED = {"evaluation__suite": "heldout.jsonl"}


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    # It takes a second; test_run looks at real ones.
    monkeypatch.setattr("assay_trainer.curve.draw", lambda *_: None)
    return Course(tmp_path)


def of(course: Course, *kinds: str) -> list[str]:
    """What was told of these kinds."""
    return [told for told in course.told if told.split()[0] in kinds]


async def test_without_staleness_it_draws_learns_and_pushes_strictly_in_turn(
    course: Course,
) -> None:
    await course.run(trainer__steps=2, checkpoint__every=2, **IN_TURN)
    assert course.told == [
        *("push 1.0", "pushed 1.0"),
        *("draw 1", "drawn 1 by 1.0 from 0", "learn 1", "push 1.1", "pushed 1.1"),
        *("draw 2", "drawn 2 by 1.1 from 4", "learn 2", "push 1.2", "pushed 1.2"),
        *("write 2", "close"),
    ]


async def test_with_staleness_1_the_next_batch_is_drawn_while_this_one_trains(
    course: Course,
) -> None:
    drawn = [threading.Event() for _ in range(6)]

    async def draw(step: int) -> None:
        drawn[step].set()

    def learn(step: int) -> None:
        if step < 4:
            assert drawn[step + 1].wait(10), "the next batch waits until this one was learned from"

    course.drawing, course.meanwhile = draw, learn
    await course.run(**AHEAD)
    assert of(course, "drawn") == [
        "drawn 1 by 1.0 from 0",
        "drawn 2 by 1.0 from 4",
        "drawn 3 by 1.1 from 8",
        "drawn 4 by 1.2 from 12",
    ]


@STALENESS
async def test_weights_never_change_while_a_batch_is_drawn(course: Course, staleness: int) -> None:
    # Drawing takes longer than learning, so that a push would come into the middle.
    course.drawing = lambda step: asyncio.sleep(0.05)
    await course.run(rollout__maxStaleness=staleness)
    drawing = pushing = False
    for told in of(course, "draw", "drawn", "push", "pushed"):
        drawing = told.startswith("draw ") or (drawing and not told.startswith("drawn"))
        pushing = told.startswith("push ") or (pushing and not told.startswith("pushed"))
        assert not (drawing and pushing), told


@STALENESS
async def test_every_batch_is_drawn_once_and_none_beyond_the_last_step(
    course: Course, staleness: int
) -> None:
    await course.run(rollout__maxStaleness=staleness)
    assert of(course, "draw") == [f"draw {step}" for step in range(1, 5)]
    assert of(course, "learn") == [f"learn {step}" for step in range(1, 5)]
    assert [line["step"] for line in course.lines()] == [1, 2, 3, 4]


async def test_it_is_weighed_before_the_first_step_then_when_due_and_after_the_last(
    course: Course,
) -> None:
    await course.run(trainer__steps=5, evaluation__every=2, **WEIGHED)
    assert of(course, "weigh") == ["weigh 1.0", "weigh 1.2", "weigh 1.4", "weigh 1.5"]
    assert [line["step"] for line in course.lines() if "evaluation/score" in line] == [0, 2, 4, 5]


async def test_checkpoints_are_written_when_due_and_after_the_last_step(course: Course) -> None:
    await course.run(trainer__steps=5, checkpoint__every=2)
    assert course.saved() == [2, 4, 5]
    assert course.newest().manifest.version == "1.5"
    assert course.newest().state() == {"position": 5 * PROMPTS}


async def test_only_as_many_checkpoints_are_kept_as_the_job_says_and_the_best(
    course: Course,
) -> None:
    def better_once(step: int) -> None:
        course.score = 0.9 if step == 2 else 0.6

    course.meanwhile = better_once
    every = {"checkpoint__every": 1, "evaluation__every": 1, **WEIGHED}
    await course.run(trainer__steps=6, checkpoint__keep=2, **every, **IN_TURN)
    assert course.saved() == [2, 5, 6]


async def test_a_checkpoint_has_the_evaluation_of_its_own_weights_or_none(course: Course) -> None:
    await course.run(checkpoint__every=1, checkpoint__keep=9, evaluation__every=2, **WEIGHED)
    assert [bool(course.manifest(step)["evaluation"]) for step in (1, 2, 3, 4)] == [
        *(False, True),
        *(False, True),
    ]


async def test_the_batch_that_was_drawn_ahead_is_in_the_checkpoint_and_is_learned_from_after_it(
    course: Course,
) -> None:
    course.faults["learn 3"] = LearnerError("step 3: the loss is nan")
    with pytest.raises(LearnerError):
        await course.run(checkpoint__every=2, **AHEAD)
    loaded = course.newest()
    assert loaded.manifest.step == 2 and loaded.buffer
    assert load(loaded.buffer).step == 3
    del course.faults["learn 3"]
    course.told.clear()
    await course.run(checkpoint__every=2, **AHEAD)
    assert of(course, "draw") == ["draw 4"]
    assert of(course, "learn") == ["learn 3", "learn 4"]
    assert course.learned == 4
    assert course.newest().state() == {"position": 4 * PROMPTS}


async def test_a_run_that_goes_on_pushes_under_a_later_version_and_does_not_weigh_the_base_again(
    course: Course,
) -> None:
    course.faults["learn 3"] = LearnerError("step 3: the loss is nan")
    each = {"checkpoint__every": 1, "evaluation__every": 4, **WEIGHED}
    with pytest.raises(LearnerError):
        await course.run(**each, **IN_TURN)
    course.faults.clear()
    course.told.clear()
    await course.run(**each, **IN_TURN)
    assert of(course, "pushed", "weigh") == [
        *("pushed 2.2", "pushed 2.3", "pushed 2.4", "weigh 2.4"),
    ]
    assert of(course, "drawn") == ["drawn 3 by 2.2 from 8", "drawn 4 by 2.3 from 12"]


@STALENESS
async def test_a_sigterm_in_the_middle_of_a_step_finishes_it_and_writes_a_checkpoint(
    course: Course, staleness: int
) -> None:
    def signalled(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)

    course.meanwhile = signalled
    with pytest.raises(Interrupted) as raised:
        await course.run(rollout__maxStaleness=staleness)
    assert raised.value.code == 143
    assert course.newest().manifest.step == 2
    assert [line["step"] for line in course.lines()] == [1, 2]
    assert course.told[-1] == "close" and not others()
    course.meanwhile = lambda step: None
    await course.run(rollout__maxStaleness=staleness)
    assert course.learned == 4
    assert of(course, "learn") == [f"learn {step}" for step in range(1, 5)]


async def test_what_was_drawn_ahead_when_a_signal_comes_is_kept(course: Course) -> None:
    def signalled(step: int) -> None:
        time.sleep(0.1)  # Drawing takes less.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

    course.meanwhile = signalled
    with pytest.raises(Interrupted):
        await course.run(**AHEAD)
    loaded = course.newest()
    assert loaded.manifest.step == 1 and loaded.buffer and load(loaded.buffer).step == 2


@STALENESS
async def test_a_signal_while_a_batch_is_drawn_gives_the_batch_up_and_keeps_what_was_learned(
    course: Course, staleness: int
) -> None:
    async def hang_later(step: int) -> None:
        if step == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            await forever(step)

    course.drawing = hang_later
    with pytest.raises(Interrupted) as raised:
        await course.run(rollout__maxStaleness=staleness)
    assert raised.value.code == 130
    assert "gave up 2" in course.told and not others()
    loaded = course.newest()
    assert loaded.manifest.step == 1 and loaded.buffer is None
    assert loaded.state() == {"position": PROMPTS}
    assert [line["step"] for line in course.lines()] == [1]


async def test_a_signal_before_anything_was_learned_leaves_no_checkpoint(course: Course) -> None:
    async def hang(step: int) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        await forever(step)

    course.drawing = hang
    with pytest.raises(Interrupted):
        await course.run()
    assert course.saved() == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(
    course: Course, first: signal.Signals, second: signal.Signals
) -> None:
    course.meanwhile = lambda step: time.sleep(30)
    child = fork(lambda: asyncio.run(course.run()))
    deadline = time.monotonic() + 10
    while not list(course.folder.glob("checkpoints")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child, first)
    time.sleep(0.2)
    began = time.monotonic()
    os.kill(child, second)
    assert ended(child) == -second
    assert time.monotonic() - began < 2


async def test_signals_mean_what_they_meant_before_when_the_loop_has_ended(course: Course) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    await course.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_an_alarm_that_stops_says_why_and_saves_no_harmed_weights(course: Course) -> None:
    def harm(step: int) -> None:
        course.metrics["ratio/mean"] = 20.0 if step == 3 else 1.0

    course.meanwhile = harm
    with pytest.raises(TrainingStopped, match=r"mean ratio is 20 .* Lower trainer\.learningRate"):
        await course.run(checkpoint__every=1)
    assert course.saved() == [1, 2]
    assert course.lines()[-1]["ratio/mean"] == 20
    assert course.told[-1] == "close" and not others()


async def test_an_alarm_that_only_warns_is_told_and_the_run_goes_on(course: Course) -> None:
    course.metrics["samples/masked"] = 0.75
    await course.run()
    assert course.loop is not None and course.loop.place.step == 4
    (alarm,) = course.loop._status.state.alarms
    assert alarm.kind == "masked" and not alarm.stop


FAILURES: dict[str, tuple[Exception, int]] = {
    "draw 3": (EngineError("no engine answers"), 2),
    "learn 3": (LearnerError("step 3: the loss is nan"), 2),
    "push 1.3": (WeightsError("weights 1.3 could not be written"), 3),
    "weigh 1.3": (EngineError("no engine answers"), 3),
    "write 3": (OSError(28, "No space left on device"), 2),
}
"""What fails, and the step of the newest checkpoint then: with engines that fail nothing is wrong
with what was learned, so it is kept."""


@STALENESS
@pytest.mark.parametrize("what", FAILURES)
async def test_a_part_that_fails_ends_the_run_with_its_reason_and_a_whole_checkpoint_is_there(
    course: Course, what: str, staleness: int
) -> None:
    reason, last = FAILURES[what]
    course.faults[what] = reason
    each = {"checkpoint__every": 1, "evaluation__every": 1, **WEIGHED}
    wanted = CheckpointError if what.startswith("write") else type(reason)
    with pytest.raises(wanted) as raised:
        await course.run(rollout__maxStaleness=staleness, **each)
    assert "No space left" in str(raised.value) or str(raised.value) == str(reason)
    assert course.newest().manifest.step == last
    assert course.told[-1] == "close" and not others()
    course.faults.clear()
    await course.run(rollout__maxStaleness=staleness, **each)
    assert course.learned == 4 and course.newest().manifest.step == 4
    assert [line["step"] for line in course.lines()] == [0, 1, 2, 3, 4]
    kept = found(course.folder)[0]
    assert {3, 4} <= {saved.manifest.step for saved in kept if saved.manifest.evaluation}


async def test_an_evaluation_that_a_failure_prevented_is_made_up_for(course: Course) -> None:
    course.faults["weigh 1.2"] = EngineError("no engine answers")
    each = {"evaluation__every": 2, **WEIGHED}
    with pytest.raises(EngineError):
        await course.run(**each)
    assert course.newest().manifest.evaluation is None
    course.faults.clear()
    course.told.clear()
    await course.run(**each)
    assert of(course, "weigh") == ["weigh 3.2", "weigh 3.4"]
    assert course.manifest(4)["evaluation"]


async def test_a_failure_while_the_next_batch_is_drawn_gives_that_up(course: Course) -> None:
    async def hang_later(step: int) -> None:
        if step == 2:
            await forever(step)

    course.drawing = hang_later
    course.faults["learn 1"] = LearnerError("step 1: the loss is nan")
    with pytest.raises(LearnerError):
        await course.run(**AHEAD)
    assert "gave up 2" in course.told and not others()


async def test_a_run_without_room_for_its_picture_goes_on(
    course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("assay_trainer.curve.draw", full)
    await course.run()
    assert course.saved() == [4]
    assert course.loop is not None
    assert "curve.png cannot be drawn" in course.loop._status.state.message
