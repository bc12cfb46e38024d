"""The step runner: order, running side by side, failures, progress."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from tests.cluster.display import LiveDisplay, PlainDisplay, duration
from tests.cluster.errors import ClusterError
from tests.cluster.steps import RunState, Step, StepRun, order, run_steps


def nothing(_: StepRun) -> None:
    pass


def run(steps: list[Step], logs: Path) -> None:
    run_steps(steps, logs=logs, display=PlainDisplay())


def test_order_puts_needs_first() -> None:
    steps = [Step("c", nothing, ("b",)), Step("b", nothing, ("a",)), Step("a", nothing)]
    assert order(steps) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step("a", nothing), Step("a", nothing)], "more than one step is named a"),
        ([Step("a", nothing, ("x",))], 'step "a" needs x: no such step'),
        ([Step("a", nothing, ("b",)), Step("b", nothing, ("a",))], "steps need one another"),
    ],
)
def test_nonsense_is_refused(steps: list[Step], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        order(steps)


def test_independent_steps_run_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=10)
    done: list[str] = []

    def meet(step: StepRun) -> None:
        together.wait()
        done.append(step.name)

    def last(step: StepRun) -> None:
        done.append(step.name)

    run([Step("z", last, ("a", "b")), Step("a", meet), Step("b", meet)], tmp_path)
    assert sorted(done[:2]) == ["a", "b"]
    assert done[2] == "z"


def test_failure_names_step_log_and_command_and_stops_the_rest(tmp_path: Path) -> None:
    def fail(step: StepRun) -> None:
        step.command("sh", "-c", "echo what happened; exit 3")

    started: list[str] = []
    steps = [Step("bad one", fail), Step("after", lambda s: started.append(s.name), ("bad one",))]
    with pytest.raises(ClusterError) as caught:
        run(steps, tmp_path)
    text = str(caught.value)
    assert 'step "bad one" failed' in text
    assert "exit code 3" in text
    assert "    what happened\n" in text
    assert str(tmp_path / "bad-one.log") in text
    assert started == []


def test_failure_ends_commands_of_other_steps(tmp_path: Path) -> None:
    started = threading.Event()
    ended = threading.Event()

    def long(step: StepRun) -> None:
        try:
            step.command("sh", "-c", "echo up; sleep 60", on_line=lambda _: started.set())
        finally:
            ended.set()

    def fail(_: StepRun) -> None:
        assert started.wait(10)
        raise ClusterError("no")

    with pytest.raises(ClusterError, match="no"):
        run([Step("long", long), Step("fail", fail)], tmp_path)
    assert ended.wait(10)


def test_measured_durations_replace_guesses_unless_reused(tmp_path: Path) -> None:
    def reuse(step: StepRun) -> None:
        step.reuse()

    steps = [Step("work", nothing, expected_seconds=100), Step("kept", reuse, expected_seconds=50)]
    expected: dict[str, float] = {}

    class Spy(PlainDisplay):
        def begin(self, state: RunState) -> None:
            super().begin(state)
            expected.update(state.expected)

    run(steps, tmp_path)
    run_steps(steps, logs=tmp_path, display=Spy())
    assert expected["work"] < 10
    assert expected["kept"] == 50


def test_time_left_is_the_longest_chain() -> None:
    steps = [Step("a", nothing), Step("b", nothing, ("a",)), Step("c", nothing)]
    state = RunState({s.name: s for s in steps}, {"a": 10, "b": 20, "c": 25})
    assert state.seconds_left() == 30


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (125, "2 min 05 s")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_live_display_shows_what_runs_and_what_is_left(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    display = LiveDisplay(console)
    seen: list[str] = []

    def look(step: StepRun) -> None:
        step.note("part [1]")
        with console.capture() as capture:
            console.print(display.render())
        seen.append(capture.get())

    run_steps(
        [Step("look", look), Step("later", nothing, ("look",))], logs=tmp_path, display=display
    )
    assert "look" in seen[0]
    assert "part [1]" in seen[0]
    assert "then: later" in seen[0]
    assert "0 of 2 steps" in seen[0]
