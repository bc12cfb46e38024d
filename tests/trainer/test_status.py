"""What a run says of itself over HTTP and on the screen."""

from __future__ import annotations

import io
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from assay_trainer.display import Display, duration, line
from assay_trainer.settings import Status as Settings
from assay_trainer.status import Status
from assay_trainer.status_server import Server, StatusError
from assay_trainer.watch import Alarm

STEP = {
    "step": 12,
    "time": 1.7e9,
    "loss": math.nan,
    "reward/mean": 0.41,
    "seconds/step": 2.0,
    "tokens/completion": 5000.0,
    "tokens/resampled": 1000.0,
}
WEIGHED = {
    "evaluation/score": 0.53,
    "evaluation/low": 0.46,
    "evaluation/high": 0.6,
    "evaluation/sample@1": 0.5,
    "evaluation/verified": 1.0,
}
COLLAPSED = Alarm("entropy", False, "the entropy fell", "Set algorithm.entropy")


@dataclass(frozen=True)
class Engine:
    url: str
    usable: bool
    version: str | None
    reason: str


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(status: Status, **fields: Any) -> Iterator[httpx.Client]:
    # Port 0 is no job's, so it is set behind the back of the model.
    settings = Settings.model_validate(fields).model_copy(update={"port": 0})
    with (
        Server(status, settings) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client,
    ):
        yield client


def test_status_tells_where_the_run_is_as_json_without_nan() -> None:
    clock = Clock()
    status = Status("solver", 100, clock=clock)
    clock.now += 5
    status.finished({**STEP, **WEIGHED})
    status.update(
        phase="evaluate",
        done=3,
        total=200,
        message="two engines are asked",
        alarms=(COLLAPSED,),
        engines=(Engine("http://a:1", False, "1.11", "did not answer"),),
        checkpoints=({"step": 10, "score": 0.5, "verified": False},),
        doubts=("evaluation: there is none",),
    )
    clock.now += 3
    with serving(status) as client:
        answer = client.get("/status")
    assert answer.headers["content-type"] == "application/json"
    told = json.loads(answer.content, parse_constant=pytest.fail)
    assert {name: told[name] for name in ("name", "phase", "phaseDone", "phaseTotal")} == {
        "name": "solver",
        "phase": "evaluate",
        "phaseDone": 3,
        "phaseTotal": 200,
    }
    assert (told["step"], told["of"], told["reward"]) == (12, 100, 0.41)
    assert (told["score"], told["interval"], told["sample@1"]) == (0.53, [0.46, 0.6], 0.5)
    assert (told["verified"], told["weighedAtStep"]) == (True, 12)
    assert (told["tokensPerSecond"], told["secondsPerStep"]) == (3000, 2)
    assert told["etaSeconds"] == 88 * 2
    assert (told["secondsSinceProgress"], told["uptimeSeconds"]) == (3, 8)
    assert told["engines"] == [
        {"url": "http://a:1", "usable": False, "version": "1.11", "reason": "did not answer"}
    ]
    assert told["checkpoints"] == [{"step": 10, "score": 0.5, "verified": False}]
    assert told["alarms"] == [
        {
            "kind": "entropy",
            "stop": False,
            "reason": "the entropy fell",
            "remedy": "Set algorithm.entropy",
        }
    ]
    assert told["doubts"] == ["evaluation: there is none"]
    assert told["message"] == "two engines are asked"
    assert told["metrics"]["loss"] is None


def test_before_the_first_step_there_is_a_status_too() -> None:
    with serving(Status("solver", 100, step=40)) as client:
        told = client.get("/status").json()
        assert client.get("/metrics").status_code == 200
    assert (told["phase"], told["step"], told["reward"], told["etaSeconds"]) == (
        "starting",
        40,
        None,
        None,
    )


def test_the_pace_is_that_of_the_last_steps_and_not_of_the_slow_first_one() -> None:
    status = Status("solver", 100)
    for step in range(1, 41):
        status.finished({"step": step, "seconds/step": 1000.0 if step == 1 else 3.0})
    assert status.state.seconds_per_step == 3
    assert status.state.eta_seconds == 180


def test_without_a_measured_duration_the_pace_is_the_clocks() -> None:
    clock = Clock()
    status = Status("solver", 10, clock=clock)
    for step in (1, 2):
        clock.now += 7
        status.finished({"step": step})
    assert status.state.seconds_per_step == 7


def test_a_new_phase_begins_to_count_anew() -> None:
    status = Status("solver", 10)
    status.update(phase="evaluate", done=3, total=20)
    status.update(phase="train")
    assert (status.state.done, status.state.total) == (0, 0)


def test_prometheus_reads_the_numbers_of_the_last_step() -> None:
    status = Status("solver", 100)
    status.finished({**STEP, **WEIGHED})
    status.update(
        phase="train",
        alarms=(COLLAPSED,),
        engines=(Engine("http://a:1", True, "1.1", ""), Engine('http://"b"\n', False, None, "")),
    )
    with serving(status) as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name.removeprefix("assay_trainer_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found[("step",)] == 12
    assert found[("steps",)] == 100
    assert found[("reward",)] == 0.41
    assert found[("score",)] == 0.53
    assert found[("tokens_total",)] == 6000
    assert found["phase", "train"] == 1
    assert found["alarm", "entropy"] == 0
    assert found["engine_usable", "http://a:1"] == 1
    assert found["engine_usable", 'http://"b"\n'] == 0
    assert found["metric", "reward/mean"] == 0.41
    assert math.isnan(found["metric", "loss"])


def test_healthz_fails_with_the_reason_when_no_step_was_finished_in_time() -> None:
    clock = Clock()
    status = Status("solver", 100, clock=clock)
    with serving(status, progressSeconds=60) as client:
        clock.now += 60
        assert client.get("/healthz").text == "ok\n"
        clock.now += 1
        status.update(phase="rollout", message="no engine answers")
        answer = client.get("/healthz")
        assert answer.status_code == 503
        assert "no step was finished for 61 s, at most 60 s" in answer.text
        assert "now: rollout; no engine answers" in answer.text
        status.finished({"step": 1})
        assert client.get("/healthz").status_code == 200


def test_healthz_fails_at_once_for_a_run_that_stopped_and_never_for_one_that_is_done() -> None:
    clock = Clock()
    status = Status("solver", 100, clock=clock)
    with serving(status, progressSeconds=60) as client:
        status.update(phase="stopped", message="loss is nan")
        answer = client.get("/healthz")
        assert (answer.status_code, answer.text) == (503, "stopped at step 0 of 100: loss is nan\n")
        status.update(phase="finished")
        clock.now += 1000
        assert client.get("/healthz").status_code == 200


def test_other_paths_and_methods_are_refused() -> None:
    with serving(Status("solver", 1)) as client:
        answer = client.get("/")
        assert (answer.status_code, answer.text) == (404, "/status, /metrics, /healthz\n")
        assert client.post("/status", content=b"{}").status_code == 501
        assert client.get("/healthz?verbose=1").status_code == 200


def test_a_port_that_is_taken_is_an_error_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            StatusError, match=rf"status\.port: cannot listen on 127\.0\.0\.1 port {port} .*in use"
        ):
            Server(Status("solver", 1), Settings(port=port))


def test_a_host_that_is_none_is_an_error_with_the_remedy() -> None:
    with pytest.raises(StatusError, match=r"cannot listen on 256\.0\.0\.1"):
        Server(Status("solver", 1), Settings(host="256.0.0.1"))


def test_clients_that_send_nothing_do_not_keep_others_from_an_answer() -> None:
    with serving(Status("solver", 1)) as client:
        silent = [
            socket.create_connection((client.base_url.host, client.base_url.port or 0))
            for _ in range(20)
        ]
        assert client.get("/healthz").status_code == 200
        for connection in silent:
            connection.close()


def test_the_server_leaves_no_thread_and_no_port_behind() -> None:
    before = threading.active_count()
    for _ in range(3):
        with serving(Status("solver", 1)) as client:
            client.get("/status")
            port = client.base_url.port
    assert port is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_threads_may_change_and_read_the_status_at_the_same_time() -> None:
    status = Status("solver", 10_000)
    torn = []

    def change(first: int) -> None:
        for number in range(first, first + 500):
            status.update(done=number, total=number)

    def look() -> None:
        while any(thread.is_alive() for thread in changing):
            state = status.state
            if state.done != state.total:
                torn.append(state)

    changing = [threading.Thread(target=change, args=(i * 500,)) for i in range(4)]
    looking = threading.Thread(target=look)
    for thread in [*changing, looking]:
        thread.start()
    for thread in [*changing, looking]:
        thread.join()
    assert torn == []


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="rewards"):
        Status("solver", 1).update(rewards=1)


def shown(*, terminal: bool = False, width: int = 110, seconds: float = 0.0) -> tuple[Any, Any]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    return Display(console, seconds=seconds), out


def test_away_from_a_terminal_there_is_a_plain_line_with_reward_score_speed_and_time_left() -> None:
    display, out = shown()
    status = Status("solver", 100, on_change=display.show)
    with display:
        status.finished({**STEP, **WEIGHED})
        status.update(phase="evaluate", done=3, total=20)
    assert out.getvalue().splitlines() == [
        "step 12: held-out score 0.5300 (0.460 to 0.600), sample@1 0.5000, verified",
        "step 12 of 100  starting  reward 0.410  score 0.530  ETA 2 min 56 s  3,000 tokens/s",
        "step 12 of 100  evaluate  reward 0.410  score 0.530  ETA 2 min 56 s  "
        "3,000 tokens/s  (3 of 20)",
    ]


def test_plain_lines_come_seldom_and_the_end_is_told_once_in_any_case() -> None:
    display, out = shown(seconds=3600)
    status = Status("solver", 100, on_change=display.show)
    with display:
        for step in range(1, 101):
            status.finished({"step": step, "reward/mean": step / 100, "seconds/step": 1.0})
        status.update(phase="finished", message="curve.png shows it")
        status.update(message="curve.png shows it")
    first, last = out.getvalue().splitlines()
    assert first.startswith("step 1 of 100")
    assert last == "step 100 of 100  finished  reward 1.000  curve.png shows it"


def test_an_alarm_is_told_once_with_its_remedy_and_again_when_it_comes_to_stop() -> None:
    display, out = shown(seconds=3600)
    status = Status("solver", 100, on_change=display.show)
    with display:
        for stop in (False, False, True, True):
            alarm = Alarm("no-variance", stop, "[every] reward was 0", "Take easier items")
            status.update(alarms=(alarm,))
    told = [text for text in out.getvalue().splitlines() if not text.startswith("step")]
    assert told == [
        "warning: [every] reward was 0. Take easier items",
        "stopping: [every] reward was 0. Take easier items",
    ]


@pytest.mark.parametrize("width", [80, 110, 200])
def test_on_a_terminal_there_is_a_bar_that_fits_and_lines_that_stay_above_it(width: int) -> None:
    display, out = shown(terminal=True, width=width)
    status = Status("solver", 100, on_change=display.show)
    with display:
        status.finished({**STEP, **WEIGHED})
        status.update(phase="evaluate", alarms=(COLLAPSED,))
        display._bar.refresh()
        drawn = out.getvalue()
    assert "step 12: held-out score 0.5300" in drawn
    assert "warning: the entropy fell" in drawn
    bars = [text for text in drawn.split("\r") if "12/100" in text]
    for part in (
        "evaluate",
        "12/100",
        "reward 0.410",
        "score 0.530",
        "3,000 tokens/s",
        "ETA 2 min",
    ):
        assert part in bars[-1]
    assert "━" in bars[-1] or width == 80


def test_an_evaluation_in_which_nothing_could_be_judged_is_told_as_that() -> None:
    display, out = shown(seconds=3600)
    status = Status("solver", 100, on_change=display.show)
    with display:
        nothing = {"evaluation/score": math.nan, "evaluation/low": 0.0, "evaluation/high": 1.0}
        status.weighed(20, nothing)
    assert out.getvalue().splitlines()[0] == "step 20: no held-out item could be judged"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (12_030, "3 h 20 min"),
        (200_000, "2 d 07 h"),
    ],
)
def test_durations_are_told_in_their_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_line_before_anything_is_known_says_only_where_the_run_is() -> None:
    assert line(Status("solver", 7).state) == "step 0 of 7  starting"
