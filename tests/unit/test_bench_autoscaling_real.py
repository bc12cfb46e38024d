"""The benchmark of the autoscaler beside its simulator: what it makes of a recorded run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from assay_operator.autoscaling.model import Prior
from benchmarks import common
from benchmarks.autoscaling import fit
from benchmarks.autoscaling.engine import Engine, Served
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.simulate import Life
from benchmarks.autoscaling.trace import Request, poisson
from benchmarks.autoscaling_real import __main__ as shell
from benchmarks.autoscaling_real import capacity as cap
from benchmarks.autoscaling_real import client, table
from benchmarks.autoscaling_real import course as runs
from benchmarks.autoscaling_real.capacity import Capacity, Loop, Measured, Rounds
from benchmarks.autoscaling_real.course import Course, Felt, Moved
from tests.e2e.watching import Told

Json = dict[str, Any]
ENGINE = Engine(
    base_s=0.016,
    prompt_s=0.0002,
    sequence_s=0.0012,
    context_s=0.0,
    chunk=cap.CHUNK,
    most_running=cap.SLOTS,
    kv_tokens=cap.KV_TOKENS,
    request_s=0.03,
)
BESIDE_S = 0.012
LENGTHS = [(20 + 37 * number % 180, 5 + 11 * number % 60) for number in range(60)]
OBJECTIVE = Objective("1.5 s, 50 ms", 1.5, 0.05)
PIECE = poisson(lambda at: 6.0 if 40 <= at < 100 else 0.5, 6.0, 240.0, seed=3)
SHORT = [Request(one.at, max(4, one.prompt // 32), one.output) for one in PIECE]
LEAD_S, END_S, EPOCH = 30.0, 260.0, 1e9


def noted(served: Sequence[Served], begin: float = 0.0) -> list[Json]:
    """The client's lines about simulated requests."""
    return [
        {
            "number": number,
            "at": begin + one.request.at,
            "sent": begin + one.request.at,
            "first": begin + one.first + BESIDE_S,
            "last": begin + one.finished + BESIDE_S,
            "tokens": one.request.output,
            "error": None,
        }
        for number, one in enumerate(served)
    ]


def rounds(clients: int, prompt: int, output: int, number: int = 3) -> Rounds:
    served = fit.closed_loop(ENGINE, [(prompt, output)] * clients, clients)
    return Rounds(clients, prompt, output, noted(served) * number)


@cache
def measured() -> Measured:
    """What one would measure of the engine above."""
    loop = Loop(8, LENGTHS, noted(fit.closed_loop(ENGINE, LENGTHS, 8)))
    alike = [rounds(clients, 64, 48) for clients in (1, 2, 4)]
    return Measured(alike, rounds(1, 320, 8), loop, start_s=45.0)


def spec() -> Json:
    scaling = {
        "min": 1,
        "max": 3,
        "objectives": {"ttftMs": 1500, "itlMs": 50},
        "scaleDownAfter": "30s",
    }
    found: Json = shell.service(scaling)["spec"]
    return found


def record(course: Course) -> Json:
    """What the benchmark would have written, had the course been real."""
    lines = [
        {
            "number": number,
            "at": EPOCH + one.at,
            "sent": EPOCH + one.at + 0.01,
            "first": EPOCH + one.at + one.ttft,
            "last": EPOCH + one.at + one.ttft + one.itl * (request.output - 1),
            "tokens": request.output,
            "error": None,
        }
        for number, (one, request) in enumerate(zip(course.felt, SHORT, strict=True))
        if one.ttft is not None and one.itl is not None
    ]
    reasons = {move.at: move.reason for move in course.moves}
    told = [
        {
            "at": at,
            "wanted": runs.at_time(course.wanted, at),
            "ready": runs.at_time(course.ready, at),
            "reason": reasons.get(at, "Steady"),
        }
        for at in sorted({at for at, _ in (*course.wanted, *course.ready)})
    ]
    return {
        "about": "Measured",
        "versions": "none",
        "source": "a trace",
        "share": 1.0,
        "spec": spec(),
        "measured": asdict(measured()),
        "requests": [[one.at, one.prompt, one.output] for one in SHORT],
        "run": {
            "begin": EPOCH,
            "lead_s": LEAD_S,
            "end_s": END_S,
            "told": told,
            "learned": course.learned,
            "loads": [1.0, 2.0],
            "lines": lines,
        },
    }


@cache
def simulated(start_s: float = 45.0) -> Course:
    return anew(replace(cap.capacity(measured()), start_s=start_s))


def anew(found: Capacity) -> Course:
    return runs.simulated(SHORT, LEAD_S, found, runs.policy_for(spec()), OBJECTIVE)


def as_read(raw: Json) -> table.Result:
    """Simulated from the record's JSON, as after a run."""
    return table.simulate(table.read(json.loads(json.dumps(raw))))


def values(result: table.Result) -> dict[str, str]:
    return {row.name: row.value for row in table.rows(result)}


class TestTrace:
    def test_a_piece_begins_at_0_with_its_times_kept_and_its_lengths_scaled_down(self) -> None:
        trace = [Request(5.0, 64, 9), Request(12.5, 6400, 9), Request(13.0, 99_999, 999)]
        assert cap.shortened([*trace, Request(30.0, 64, 9)], 10.0, 20.0) == [
            Request(2.5, 200, 9),
            Request(3.0, cap.LONGEST_PROMPT, cap.LONGEST_OUTPUT),
        ]

    def test_a_piece_without_a_request_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no request from 10 s on for 5 s"):
            cap.shortened([Request(5.0, 64, 9)], 10.0, 5.0)

    def test_the_same_seed_keeps_the_same_requests(self) -> None:
        kept = cap.thinned(SHORT, 0.5, seed=1)
        assert kept == cap.thinned(SHORT, 0.5, seed=1) != cap.thinned(SHORT, 0.5, seed=2)
        assert set(kept) < set(SHORT) and 0.4 < len(kept) / len(SHORT) < 0.6
        assert cap.thinned(SHORT, 1.0, seed=1) == SHORT

    def test_the_busiest_minute_is_found_wherever_it_begins(self) -> None:
        trace = [Request(at, 8, 8) for at in (0.0, 50.0, 100.0, 105.0, 109.9, 110.0)]
        assert cap.busiest(trace) == 4 / 60

    def test_twice_as_fast_an_engine_gets_twice_the_requests(self) -> None:
        often = [one for one in SHORT for _ in range(4)]
        slow = Capacity(ENGINE, BESIDE_S, 45.0)
        halves = {name: getattr(ENGINE, name) / 2 for name in ("base_s", "prompt_s", "request_s")}
        fast = replace(slow, engine=replace(ENGINE, **halves, sequence_s=ENGINE.sequence_s / 2))
        half = Objective("half", OBJECTIVE.ttft_s / 2, OBJECTIVE.itl_s / 2)
        share = cap.share_kept(slow, often, OBJECTIVE)
        assert cap.share_kept(fast, often, half) == pytest.approx(2 * share, rel=0.05)
        assert cap.share_kept(slow, SHORT[:5], OBJECTIVE) == 1.0, "never more than there are"


class TestCapacity:
    def test_an_engine_is_found_again_from_what_clients_noted(self) -> None:
        found = cap.capacity(measured())
        for name in ("base_s", "prompt_s", "sequence_s", "request_s"):
            assert getattr(found.engine, name) == pytest.approx(getattr(ENGINE, name), rel=0.02)
        assert found.beside_s == pytest.approx(BESIDE_S, abs=0.001)
        assert found.start_s == 45.0

    def test_noise_that_would_make_times_negative_makes_them_nothing(self) -> None:
        wild = measured()
        faster = [
            replace(one, lines=[*rounds(1, 64, 48).lines] * one.clients) for one in wild.rounds
        ]
        hurried = replace(wild, rounds=faster, long=replace(rounds(1, 64, 48), prompt=320))
        found = cap.capacity(hurried).engine
        assert found.base_s > 0
        assert min(found.prompt_s, found.sequence_s, found.request_s) >= 0

    def test_the_time_of_a_step_is_that_of_the_request_that_began_last(self) -> None:
        """The others' tokens waited for its prompt."""
        lines = [
            {"number": 0, "sent": 0.0, "first": 1.0, "last": 9.0, "tokens": 5},
            {"number": 1, "sent": 0.0, "first": 3.0, "last": 9.0, "tokens": 5},
        ]
        found = Rounds(2, 10, 5, lines)
        assert found.itl_s == 1.5
        assert found.ttft_s == 2.0
        assert found.tokens_s == 10 / 9

    def test_a_closed_loop_never_has_more_requests_than_clients(self) -> None:
        served = fit.closed_loop(ENGINE, LENGTHS, 3)
        assert [(one.request.prompt, one.request.output) for one in served] == LENGTHS
        for one in served:
            beside = [
                other for other in served if other.request.at <= one.request.at < other.finished
            ]
            assert len(beside) <= 3


class TestCourse:
    def test_a_request_of_which_nothing_was_noted_has_failed(self) -> None:
        good = {"number": 1, "sent": 12.0, "first": 12.5, "last": 14.5, "tokens": 5, "error": None}
        bad = {**good, "number": 2, "error": "TimeoutError()"}
        assert runs.felt([bad, good], begin=10.0, due=[0.0, 1.0, 2.0]) == [
            Felt(0.0, None, None),
            Felt(1.0, 1.5, 0.5),
            Felt(2.0, None, None),
        ]

    def test_one_who_was_sent_late_waited_from_when_it_was_due(self) -> None:
        late = {"number": 0, "sent": 14.0, "first": 14.2, "last": 14.2, "tokens": 1, "error": None}
        [found] = runs.felt([late], begin=10.0, due=[1.0])
        assert found.ttft == pytest.approx(3.2) and found.itl == 0.0

    def test_statuses_become_steps_and_changes(self) -> None:
        told: list[Json] = [
            {"at": -5.0, "wanted": None, "ready": 1, "reason": None},
            {"at": -4.0, "wanted": 1, "ready": 1, "reason": "Steady"},
            {"at": 3.0, "wanted": 2, "ready": 1, "reason": "Burst"},
            {"at": 9.0, "wanted": 2, "ready": 2, "reason": "Burst"},
        ]
        assert runs.told_steps(told, "wanted") == [(-4.0, 1), (3.0, 2)]
        assert runs.told_steps(told, "ready") == [(-5.0, 1), (9.0, 2)]
        assert runs.told_moves(told) == [Moved(3.0, 1, 2, "Burst")]

    def test_only_statuses_that_change_a_number_are_written_down(self) -> None:
        def status(wanted: int, ready: int, reason: str) -> Json:
            return {
                "readyReplicas": ready,
                "autoscaling": {"replicas": wanted, "reason": reason},
            }

        told = [
            Told(EPOCH - 1.0, {"readyReplicas": 1}),
            Told(EPOCH, status(1, 1, "Steady")),
            Told(EPOCH + 1, status(1, 1, "Stabilising")),
            Told(EPOCH + 2, status(2, 1, "Demand")),
            Told(EPOCH + 3, status(2, 2, "Steady")),
        ]
        assert shell.changes(told, EPOCH) == [
            {"at": -1.0, "wanted": None, "ready": 1, "reason": None},
            {"at": 0.0, "wanted": 1, "ready": 1, "reason": "Steady"},
            {"at": 2.0, "wanted": 2, "ready": 1, "reason": "Demand"},
            {"at": 3.0, "wanted": 2, "ready": 2, "reason": "Steady"},
        ]

    def test_a_second_has_the_number_of_its_middle(self) -> None:
        assert runs.each_second([(-9.0, 1), (1.4, 2), (2.6, 3), (2.7, 1)], 5.0) == [1, 2, 2, 1, 1]

    def test_agreement_is_told_by_seconds(self) -> None:
        found = runs.agreement([1, 1, 2, 3], [1, 2, 2, 1])
        assert (found.same, found.close, found.difference) == (0.5, 0.75, 0.75)

    def test_a_number_is_inside_where_it_is_neither_below_nor_above_all_others(self) -> None:
        assert runs.inside([1, 2, 3, 1], [[1, 1, 1, 2], [1, 3, 2, 3]]) == 0.5

    def test_a_simulated_replica_is_ready_from_its_start_until_it_is_let_go(self) -> None:
        lives = [Life(0.0), Life(10.0, left=40.0, gone=45.0), Life(50.0, left=55.0)]
        assert runs.ready_steps(lives, start_s=20.0, lead_s=5.0) == [
            (-5.0, 1),
            (25.0, 2),
            (35.0, 1),
        ]

    def test_figures_count_failures_as_not_within_and_only_what_the_trace_cost(self) -> None:
        course = Course(
            wanted=[(-5.0, 1), (4.0, 2), (8.0, 1), (50.0, 3)],
            ready=[(-5.0, 1)],
            moves=[
                Moved(-1.0, 2, 1, "Quiet"),
                Moved(4.0, 1, 2, "Demand"),
                Moved(8.0, 2, 1, "Quiet"),
            ],
            felt=[
                Felt(0.0, 1.0, 0.01),
                Felt(1.0, 2.0, 0.01),
                Felt(2.0, 1.0, 0.1),
                Felt(3, None, None),
            ],
            learned={},
        )
        found = runs.figures(course, OBJECTIVE, 10.0)
        assert (found.replica_seconds, found.most, found.scalings, found.failed) == (14, 2, 2, 1)
        assert (found.attained, found.ttft, found.itl) == (0.25, 0.5, 0.5)
        assert (found.ttft_p50, found.ttft_p95, found.itl_p95) == (1.0, 2.0, 0.1)


class TestTable:
    def test_a_run_that_went_as_simulated_agrees_in_everything(self) -> None:
        course = simulated()
        assert len(course.moves) >= 2, "else it would say little"
        found = as_read(record(course))
        assert found.courses[0].moves == course.moves == found.record.course.moves
        told = values(found)
        for name in ("wanted", "ready"):
            assert told[f"replicas {name}, real and simulated, each second"].startswith(
                "the same 100% of the time, within one 100%, mean difference 0.00;"
            )
            [span] = [
                said for key, said in told.items() if key.startswith(f"replicas {name}, real, in")
            ]
            assert span == "100% of the time"
        assert told["scalings, real"] == told["scalings, simulated"] != "none"
        for name, value in told.items():
            if pair := re.match(r"([0-9.%]+)(?: ms)? real, ([0-9.%]+)", value):
                assert pair[1] == pair[2], name

    def test_replicas_that_came_later_than_simulated_are_seen(self) -> None:
        told = values(as_read(record(simulated(start_s=70.0))))
        said = told["replicas ready, real and simulated, each second"]
        assert int(re.match(r"the same (\d+)%", said)[1]) < 95  # type: ignore[index]
        said = told["a replica's start, from being asked for until routable"]
        assert said.startswith("45 s before the run") and "70" in said

    def test_a_failed_request_is_a_goal_missed(self) -> None:
        raw = record(simulated())
        raw["run"]["lines"][3]["error"] = "HTTPError(503)"
        del raw["run"]["lines"][7]
        [row] = [row for row in table.rows(as_read(raw)) if row.name == "failed requests, real"]
        assert (row.value, row.met) == (f"2 of {len(SHORT)}", False)

    def test_a_run_of_which_no_request_came_through_is_told_all_the_same(self) -> None:
        raw = record(simulated())
        raw["run"]["lines"] = []
        told = values(as_read(raw))
        assert told["failed requests, real"] == f"{len(SHORT)} of {len(SHORT)}"

    def test_runs_differ_by_when_the_operator_looks_and_by_nothing_else(self) -> None:
        found = as_read(record(simulated()))
        assert len(found.courses) == table.PHASES
        assert {len(course.felt) for course in found.courses} == {len(SHORT)}
        assert anew(cap.capacity(measured())) == simulated()

    def test_notes_name_the_spec_and_the_fitted_engine(self) -> None:
        said = "\n".join(table.notes(as_read(record(simulated())), "name"))
        assert '"scaleDownAfter": "30s"' in said and "CPU limit of 400m" in said
        assert "16.0 ms an iteration, 1.20 ms a sequence" in said

    def test_a_record_alone_gives_table_picture_and_the_same_record_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (common, shell):
            monkeypatch.setattr(module, "RESULTS", tmp_path)
        file, whole = tmp_path / "autoscaling_real.json", record(simulated())
        file.write_text(json.dumps(whole))
        monkeypatch.setattr("sys.argv", ["autoscaling_real", "--dry", str(file)])
        assert shell.main() == 0
        after = json.loads(file.read_text())
        assert after.pop("computed")["capacity"]["start_s"] == 45.0
        assert after == json.loads(json.dumps(whole))
        assert "| scalings, real | " in (tmp_path / "autoscaling_real.md").read_text()
        assert (tmp_path / "autoscaling_real.png").read_bytes().startswith(b"\x89PNG")


def test_the_simulated_operator_has_the_policy_of_the_real_one() -> None:
    policy = runs.policy_for(spec())
    assert (policy.min, policy.max, policy.ttft_s, policy.itl_s) == (1, 3, 1.5, 0.05)
    assert policy.down_window_s == 30
    assert policy.prior.slots == cap.SLOTS, "as the engine's arguments say"
    assert policy.prior != Prior(slots=cap.SLOTS), "that of an engine on CPU"


# --- The client in its pod -------------------------------------------------------------------

Answer = Callable[[Json], list[str]]
"""The data lines of an answer to a request's body."""


def tokens(body: Json) -> list[str]:
    """As SGLang answers."""
    pieces: list[Json] = [{"choices": [{"text": "1", "finish_reason": None}]}] * (
        body["max_tokens"] - 1
    )
    pieces.append({"choices": [{"text": "", "finish_reason": "length"}]})
    pieces.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
    return [*map(json.dumps, pieces), "[DONE]"]


@contextmanager
def server(answer: Answer, status: int = 200) -> Iterator[tuple[client.Server, list[Json]]]:
    """A small OpenAI server on loopback, and the bodies that it got."""
    bodies: list[Json] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for line in answer(bodies[-1]):
                self.wfile.write(f"data: {line}\n\n".encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield client.Server(f"http://127.0.0.1:{http.server_port}/v1", "tiny", 10.0), bodies
        http.shutdown()


def test_a_request_is_noted_as_its_user_felt_it() -> None:
    with server(tokens) as (asked, bodies):
        line = client.ask(asked, 4, (0.0, 30, 5), due=99.0)
    assert (line["number"], line["at"], line["tokens"], line["error"]) == (4, 99.0, 5, None)
    assert line["sent"] <= line["first"] <= line["last"]
    [body] = bodies
    assert len(body["prompt"]) == 30 and body["prompt"].isdigit(), "a digit is a token"
    assert body["stream"] and body["ignore_eos"] and body["max_tokens"] == 5


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (lambda _: [], 503, "HTTPError 503"),
        (lambda body: tokens(body)[:2], 200, "broke off"),
        (
            lambda body: [*tokens(body)[:2], "[DONE]"],
            200,
            "2 tok",
        ),
        (lambda _: ['{"error": {"message": "no memory"}}', "[DONE]"], 200, "no memory"),
    ],
)
def test_whatever_is_no_whole_answer_is_an_error(answer: Answer, status: int, said: str) -> None:
    with server(answer, status) as (asked, _):
        line = client.ask(asked, 0, (0.0, 3, 6), due=0.0)
    assert said in line["error"]


def test_who_cannot_be_reached_is_an_error() -> None:
    with server(tokens) as (asked, _):
        pass
    assert "refused" in client.ask(asked, 0, (0.0, 3, 6), due=0.0)["error"]


@pytest.mark.parametrize("way", [client.loop, client.rounds])
def test_every_request_is_sent_once_with_a_prompt_of_its_own(way: Callable[..., None]) -> None:
    requests = list(enumerate([(0.0, 20, 2)] * 7))
    lines: list[Json] = []
    with server(tokens) as (asked, bodies):
        way(asked, 3, requests, lines.append)
    assert sorted(line["number"] for line in lines) == list(range(7))
    assert len({body["prompt"] for body in bodies}) == 7
    assert [line["error"] for line in lines] == [None] * 7


def test_a_round_begins_when_the_one_before_is_over() -> None:
    lines: list[Json] = []
    with server(tokens) as (asked, _):
        client.rounds(asked, 2, list(enumerate([(0.0, 20, 2)] * 6)), lines.append)
    first, second = lines[:2], lines[2:4]
    assert {line["number"] for line in first} == {0, 1}
    assert max(line["last"] for line in first) <= min(line["sent"] for line in second)


def test_a_replay_sends_each_request_at_its_time_whatever_becomes_of_others() -> None:
    lines: list[Json] = []
    begin = 1000.0
    with server(lambda body: tokens(body)[:1]) as (asked, _):
        client.replay(asked, begin, [(0, (0.5, 9, 3)), (1, (2.0, 9, 3))], lines.append)
    assert sorted(line["at"] for line in lines) == [begin + 0.5, begin + 2.0]
    assert all("broke off" in line["error"] for line in lines)


def test_lengths_survive_a_shell() -> None:
    requests = [(0.0, 4, 2), (12.3456, 400, 200)]
    text = client.written(requests)
    assert re.fullmatch(r"[0-9.:,]+", text)
    assert client.parsed(text) == [(0.0, 4, 2), (12.346, 400, 200)]
