"""The gate against real servers on loopback: what passes, fails, stays undecided, and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from assay_verifiers.answers import Answers, Record
from assay_verifiers.cli import main
from assay_verifiers.progress import Counted
from assay_verifiers.report import summary
from tests.verifiers.endpoint import FakeModel

RIGHT, WRONG = "the answer is yes", "the answer is no"


def number(question: str) -> int:
    return int(question.rsplit(maxsplit=1)[-1])


def right_below(share: int) -> Callable[[str, dict[str, Any]], str]:
    """Right on about the given share, in percent, spread over the questions."""
    return lambda question, _: RIGHT if place(number(question)) < share else WRONG


def place(number: int) -> int:
    return number * 37 % 100


def suite(path: Path, items: int, **fields: Any) -> Path:
    header = {"suite": "yes", "verifier": {"type": "regex", "pattern": "yes"}}
    lines: list[dict[str, Any]] = [header]
    lines += [{"id": f"i{n}", "prompt": f"question {n}", **fields} for n in range(items)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeModel]]:
    with ExitStack() as stack:
        yield lambda *args, **named: stack.enter_context(FakeModel(*args, **named))


class Gate:
    """A suite and a folder, and the command on them."""

    def __init__(self, folder: Path, items: int = 60, **fields: Any) -> None:
        self.folder = folder
        self.suite = suite(folder / "suite.jsonl", items, **fields)
        self.out = folder / "out"

    def arguments(self, candidate: FakeModel, incumbent: FakeModel | None, *more: str) -> list[str]:
        found = ["gate", "--suite", str(self.suite), "--out", str(self.out)]
        found += ["--candidate", candidate.url]
        found += ["--incumbent", incumbent.url] if incumbent else []
        return [*found, *more]

    def __call__(self, candidate: FakeModel, incumbent: FakeModel | None = None, *more: str) -> int:
        return main(self.arguments(candidate, incumbent, *more))

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "answers.jsonl").open()]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_the_same_model_on_both_sides_passes_with_the_same_seeds(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=140)
    candidate, incumbent = serve(right_below(70)), serve(right_below(70))
    assert gate(candidate, incumbent) == 0
    report = gate.report
    assert report["verdict"] == "pass"
    assert report["score"]["candidate"]["mean"] == pytest.approx(
        sum(place(n) < 70 for n in range(140)) / 140
    )
    assert report["difference"]["mean"] == 0 and report["difference"]["pValue"] == 1
    assert report["suite"]["digest"].startswith("sha256:")
    assert report["sides"]["candidate"]["weightVersions"] == ["w1"]
    asked = [
        {body["messages"][0]["content"]: body["seed"] for body in side.bodies}
        for side in (candidate, incumbent)
    ]
    assert asked[0] == asked[1] and len(set(asked[0].values())) == 140


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        (None, "the plugin is not in it"),
        ((200, {"active": False, "kernels": "fused", "why_not": "no sampler"}), "no sampler"),
        ((200, {"active": True, "kernels": "stock"}), "it runs stock kernels"),
        ((200, []), "it runs None kernels"),
    ],
)
def test_a_candidate_without_the_kernels_that_it_would_be_served_with_is_not_judged(
    gate: Gate, serve: Callable[..., FakeModel], kernels: tuple[int, Any] | None, why: str
) -> None:
    candidate, incumbent = serve(right_below(100)), serve(right_below(70))
    candidate.kernels = kernels
    told = gate.folder / "summary"
    options = ("--candidate-kernels", "fused", "--summary", str(told))
    assert gate(candidate, incumbent, *options) == 2, "which is no refusal"
    said = json.loads(told.read_text())
    assert said["verdict"] is None and "does not run the fused kernels" in said["reason"]
    assert why in said["reason"] and not candidate.asked


def test_a_candidate_is_judged_where_it_runs_them_or_nobody_wants_to_know(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    candidate, options = serve(right_below(100)), ("--min-score", "0.5", "--restart")
    assert gate(candidate, None, *options) == 0
    fused = (*options, "--candidate-kernels", "fused")
    candidate.kernels = (200, {"active": True, "kernels": "fused"})
    assert gate(candidate, None, *fused) == 0
    incumbent = serve(right_below(0))
    assert gate(candidate, incumbent, *fused) == 0, "who serves was asked by the operator"
    candidate.kernels = (403, {})
    assert gate(candidate, None, *fused) == 3, "silence decides nothing"


def test_a_worse_candidate_fails_and_the_items_that_it_lost_are_named(
    gate: Gate, serve: Callable[..., FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(serve(right_below(60)), serve(right_below(90))) == 1
    assert gate.report["verdict"] == "fail"
    lost = sorted(f"i{n}" for n in range(60) if 60 <= place(n) < 90)
    assert gate.report["difference"]["mean"] == pytest.approx(-len(lost) / 60)
    assert [entry["id"] for entry in gate.report["regressions"]] == lost
    said = capsys.readouterr().out
    assert "fail" in said and f"worse: {lost[0]}" in said and "sha256:" in said


def test_a_few_items_decide_nothing_and_it_says_how_many_more_would(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=12)
    assert gate(serve(right_below(100)), serve(right_below(100))) == 3
    assert gate.report["verdict"] == "undecided" and gate.report["moreItems"] == 121


def test_without_an_incumbent_only_the_score_counts(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(80))
    assert gate(model, None, "--min-score", "0.6") == 0
    # Other limits need no new answers.
    assert gate(model, None, "--min-score", "0.9") == 1
    assert model.asked.total() == 60


def test_asking_for_nothing_is_a_usage_error(
    gate: Gate, serve: Callable[..., FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(serve(right_below(80))) == 2
    assert "--min-score or --incumbent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--min-score", "1.5"), "minScore"),
        (("--min-score", "0.5", "--candidate", "ftp://x"), "no http or https URL"),
        (("--min-score", "0.5", "--split", "none"), "no item is in split"),
    ],
)
def test_an_option_that_makes_no_sense_is_a_usage_error(
    gate: Gate,
    serve: Callable[..., FakeModel],
    more: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = serve(right_below(80))
    assert gate(model, None, *more) == 2
    assert said in capsys.readouterr().err and not model.asked


def test_failures_that_pass_by_are_tried_again(gate: Gate, serve: Callable[..., FakeModel]) -> None:
    model = serve(right_below(100))
    model.refuse = {f"question {n}": [503] for n in range(0, 60, 20)}
    model.refuse["question 7"] = [429]
    assert gate(model, None, "--min-score", "0.9") == 0
    assert gate.report["score"]["candidate"]["mean"] == 1
    assert model.asked["question 7"] == 2 and len(gate.lines) == 60


def test_what_an_endpoint_does_not_answer_is_masked_and_never_a_zero(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(100))
    model.refuse = {f"question {n}": [400] * 9 for n in range(0, 60, 50)}
    assert gate(model, None, "--min-score", "0.9", "--ask-again", "2") == 0
    report = gate.report
    assert report["score"]["candidate"] == {
        **report["score"]["candidate"],
        "mean": 1.0,
        "items": 58,
    }
    assert report["sides"]["candidate"]["statuses"]["error"] == 2
    assert model.asked["question 50"] == 3 and model.asked["question 51"] == 1


def test_too_much_that_is_masked_decides_nothing(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(100))
    model.refuse = {f"question {n}": [400] * 9 for n in range(0, 60, 10)}
    assert gate(model, None, "--min-score", "0.9") == 3
    assert "6 of 60" in gate.report["reason"] and "6 error" in gate.report["reason"]


def test_an_endpoint_that_is_gone_is_not_asked_to_the_end(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=100)
    model = serve(right_below(100))
    model.refuse = {f"question {n}": [400] * 9 for n in range(20, 100)}
    assert gate(model, None, "--min-score", "0.9", "--concurrency", "4") == 3
    assert "failures in a row" in gate.report["reason"]
    assert model.asked.total() < 80
    model.refuse = {}
    assert gate(model, None, "--min-score", "0.9") == 0
    assert model.asked["question 0"] == 1


def test_an_answer_that_the_server_gave_up_is_no_answer(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(100))
    model.finish = "abort"
    assert gate(model, None, "--min-score", "0.1") == 3
    assert gate.report["sides"]["candidate"]["statuses"]["wrong"] == 0


def test_answers_cut_at_the_limit_of_tokens_are_counted(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(100))
    model.finish = "length"
    assert gate(model, None, "--min-score", "0.5", "--max-tokens", "16") == 0
    assert gate.report["sides"]["candidate"]["truncated"] == 60
    assert any("limit of tokens" in warning for warning in gate.report["warnings"])
    assert model.bodies[0]["max_tokens"] == 16


@pytest.mark.parametrize("provenance", [True, False])
def test_weights_that_change_in_the_middle_make_it_undecided(
    gate: Gate, serve: Callable[..., FakeModel], provenance: bool
) -> None:
    model = serve(right_below(100))
    model.provenance = provenance

    def update(count: int) -> None:
        if count == 20:
            model.weights = "w2"

    model.after = update
    assert gate(model, None, "--min-score", "0.5") == 3
    assert "weights changed" in gate.report["reason"] and "w1, w2" in gate.report["reason"]
    assert gate.report["stopped"] == ["candidate"]
    # Where each answer tells its weights, it ends at once; else at the end.
    assert (model.asked.total() < 50) == provenance


def test_sglang_is_asked_by_its_own_api_where_it_has_no_other(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(100), openai=False)
    assert gate(model, None, "--min-score", "0.9") == 0
    assert gate.report["sides"]["candidate"]["api"] == "sglang"
    assert {"temperature", "max_new_tokens", "sampling_seed"} <= set(
        model.bodies[0]["sampling_params"]
    )


def test_chat_messages_and_an_items_own_limit_of_tokens_are_sent_as_they_are(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=0)
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": "say 1"}]
    line = {"id": "a", "messages": messages, "maxTokens": 5}
    gate.suite.write_text(gate.suite.read_text() + json.dumps(line) + "\n")
    model = serve(right_below(100))
    assert gate(model, None, "--min-score", "0.1", "--temperature", "0.7") == 0
    body = model.bodies[0]
    assert (body["messages"], body["max_tokens"], body["temperature"]) == (messages, 5, 0.7)
    assert body["model"] == "tiny"


def test_several_samples_of_an_item_are_one_graded_score(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=10)
    model = serve(lambda question, body: RIGHT if body["seed"] % 2 else WRONG)
    gate(model, None, "--min-score", "0.1", "--samples", "4", "--temperature", "1")
    report = gate.report
    assert report["score"]["candidate"]["items"] == 10 and model.asked["question 3"] == 4
    share = sum(body["seed"] % 2 for body in model.bodies) / 40
    assert report["score"]["candidate"]["mean"] == pytest.approx(share)


def test_the_token_comes_from_the_environment_and_stands_in_no_file(
    gate: Gate, serve: Callable[..., FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(right_below(100))
    model.token = "s3cret"
    assert gate(model, None, "--min-score", "0.5") == 3
    assert "401" in gate.report["reason"]
    assert gate(model, None, "--min-score", "0.5", "--token-env", "GATE_TOKEN") == 2
    monkeypatch.setenv("GATE_TOKEN", "s3cret")
    assert gate(model, None, "--min-score", "0.5", "--token-env", "GATE_TOKEN") == 0
    for path in gate.out.iterdir():
        assert "s3cret" not in path.read_text()


def test_an_endpoint_that_is_not_there_is_undecided_and_the_summary_says_which(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    with FakeModel(right_below(1)) as gone:
        pass
    summary_file = gate.folder / "summary"
    more = ("--attempts", "1", "--summary", str(summary_file))
    assert gate(serve(right_below(100)), gone, *more) == 3
    told = json.loads(summary_file.read_text())
    assert (told["verdict"], told["stopped"]) == ("undecided", ["incumbent"])
    assert told["reason"].startswith("incumbent: ")


def test_an_incumbent_that_goes_while_it_is_asked_makes_it_undecided_and_is_named(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    candidate, incumbent = serve(right_below(100)), serve(right_below(100))

    def refuse(count: int) -> None:
        if count == 20:
            incumbent.token = "another"

    incumbent.after = refuse
    assert gate(candidate, incumbent, "--attempts", "1") == 3
    assert gate.report["stopped"] == ["incumbent"]
    assert "failures in a row" in gate.report["reason"]


def test_a_broken_suite_asks_nothing_and_the_summary_says_which_line(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    gate.suite.write_text(gate.suite.read_text() + "{broken\n")
    model, told = serve(right_below(100)), gate.folder / "summary"
    assert gate(model, None, "--min-score", "0.5", "--summary", str(told)) == 2
    assert "line 62" in json.loads(told.read_text())["reason"]
    assert not model.asked


def test_a_defect_of_ours_never_looks_like_a_candidate_that_fails(
    gate: Gate, serve: Callable[..., FakeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Answers, record: Record) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Answers, "add", full)
    told = gate.folder / "summary"
    more = ("--min-score", "0.5", "--summary", str(told))
    assert gate(serve(right_below(100)), None, *more) == 2
    assert json.loads(told.read_text())["verdict"] is None


def test_a_split_alone_is_asked(gate: Gate, serve: Callable[..., FakeModel]) -> None:
    lines = gate.suite.read_text().splitlines()
    lines[1:41] = [json.dumps({**json.loads(line), "split": "heldout"}) for line in lines[1:41]]
    gate.suite.write_text("\n".join(lines))
    model = serve(right_below(100))
    assert gate(model, None, "--min-score", "0.5", "--split", "heldout") == 0
    assert model.asked.total() == 40


# Going on


def start(gate: Gate, model: FakeModel, *more: str) -> subprocess.Popen[bytes]:
    """The command in a process of its own, waited for until about half of it is done."""
    model.seconds = 0.02
    arguments = gate.arguments(model, None, "--min-score", "0.5", "--concurrency", "4", *more)
    process = subprocess.Popen([sys.executable, "-m", "assay_verifiers", *arguments])
    deadline = time.monotonic() + 30
    while model.asked.total() < 25 and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_and_asks_only_what_is_missing(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    model = serve(right_below(90))
    process = start(gate, model)
    process.kill()
    process.wait()
    kept = len(gate.lines)
    assert 10 < kept < 60
    with (gate.out / "answers.jsonl").open("a") as file:
        file.write('{"side": "candidate", "id": "torn')
    before = model.asked.copy()
    assert gate(model, None, "--min-score", "0.5") == 0
    assert (model.asked - before).total() == 60 - kept
    assert gate.report["score"]["candidate"]["items"] == 60 and len(gate.lines) == 60


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_keeps_what_it_has(
    gate: Gate, serve: Callable[..., FakeModel], number: int, code: int
) -> None:
    process = start(gate, serve(right_below(90)))
    process.send_signal(number)
    assert process.wait(10) == code
    assert 10 < len(gate.lines) < 60


def test_another_process_in_the_same_folder_is_refused(
    gate: Gate, serve: Callable[..., FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model = serve(right_below(90))
    process = start(gate, model)
    assert gate(model, None, "--min-score", "0.5", "--concurrency", "4") == 2
    assert "another process" in capsys.readouterr().err
    process.kill()
    process.wait()


def test_other_settings_are_not_mixed_with_what_is_there(
    gate: Gate, serve: Callable[..., FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model = serve(right_below(100))
    assert gate(model, None, "--min-score", "0.5") == 0
    assert gate(model, None, "--min-score", "0.5", "--seed", "1") == 2
    assert "sampling.seed 0, now 1" in capsys.readouterr().err
    model.weights = "w2"
    assert gate(model, None, "--min-score", "0.5") == 2
    assert "weight_version" in capsys.readouterr().err
    assert model.asked.total() == 60
    assert gate(model, None, "--min-score", "0.5", "--restart") == 0
    assert model.asked.total() == 120


def test_a_damaged_line_is_named(
    gate: Gate, serve: Callable[..., FakeModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model = serve(right_below(100))
    gate(model, None, "--min-score", "0.5")
    path = gate.out / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "garbage\n", *lines[1:]]))
    assert gate(model, None, "--min-score", "0.5") == 2
    assert "line 2 is damaged" in capsys.readouterr().err


# The summary


def test_the_summary_is_valid_and_under_4_kb_whatever_the_names_are(
    tmp_path: Path, serve: Callable[..., FakeModel]
) -> None:
    gate = Gate(tmp_path, items=0)
    wild = ["\U0001f4a9" * 500, '"\\' * 250, "\x01" * 500]
    lines = [{"suite": "\U0001f525" * 256, "verifier": {"type": "regex", "pattern": "yes"}}]
    lines += [{"id": f"{wild[n % 3]}{n}", "prompt": f"question {n}"} for n in range(60)]
    gate.suite.write_text("".join(json.dumps(line) + "\n" for line in lines))
    candidate = serve(right_below(0), weights="\U0001f4a9" * 3000)
    told = tmp_path / "termination-log"
    told.write_text("what stood there before, and is longer" * 200)
    digest = f"sha256:{'5f' * 32}"
    incumbent = serve(right_below(100), weights=digest)
    assert gate(candidate, incumbent, "--summary", str(told)) == 1
    content = told.read_bytes()
    assert len(content) < 4096
    found = json.loads(content)
    # Whatever else is cut, a reader can tell which weights were asked.
    assert found["sides"]["incumbent"]["weightVersions"] == [digest]
    assert found["verdict"] == "fail" and found["score"]["candidate"]["mean"] == 0
    assert found["suite"]["digest"] == gate.report["suite"]["digest"]


def test_an_ordinary_summary_names_the_worst_items(
    gate: Gate, serve: Callable[..., FakeModel]
) -> None:
    gate(serve(right_below(60)), serve(right_below(90)))
    found = json.loads(summary(gate.report))
    assert len(found["regressions"]) == 10
    assert found["difference"]["mean"] == pytest.approx(gate.report["difference"]["mean"], abs=1e-6)


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=False)
    with Counted("asking candidate", 200, console, done=50, seconds=0) as counted:
        counted.step("ok")
        counted.step("wrong")
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "asking candidate: 51 of 200 ok 1\nasking candidate: 52 of 200 ok 1 wrong 1\n"
    )


def test_progress_is_a_bar_on_a_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with Counted("asking candidate", 200, console, done=50) as counted:
        counted.step("timeout")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "51/200" in shown and "timeout 1" in shown
