"""The command line, as it is typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from assay_verifiers.cli import main
from tests.verifiers.judge import SlowJudge

YES = {"type": "regex", "pattern": "yes"}
FORMAT = {"type": "regex", "pattern": "^<answer>"}


def line(id: str, completion: str = "yes", **fields: Any) -> dict[str, Any]:
    return {
        "id": id,
        "verifier": YES,
        "prompt": "Is it?",
        "reference": None,
        "completion": completion,
    } | fields


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.jsonl"


# run


def test_run_writes_a_verdict_for_each_line_in_the_files_order(
    file: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, line("b", "no"), line("a"), line("b", "oh yes"))
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert [(v["id"], v["status"], v["score"]) for v in read(out)] == [
        ("b", "wrong", 0.0),
        ("a", "ok", 1.0),
        ("b", "ok", 1.0),
    ]
    assert all(set(v) == {"id", "score", "status", "detail", "seconds"} for v in read(out))
    said = capsys.readouterr().err
    assert "mean score 0.6667 of 3 judged items" in said and "items/s" in said


def test_a_wrong_line_is_named_and_nothing_is_judged_or_lost(
    file: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out.write_text("of before\n")
    write(file, line("a"), "{oops", line("c", verifier={"type": "regexp"}), {"id": "d"})
    assert main(["run", str(file), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "line 2: not JSON" in said and "line 3: verifier: unknown" in said
    assert "line 4: completion" in said
    assert out.read_text() == "of before\n" and list(out.parent.iterdir()) == [file, out]


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_what_cannot_be_read_or_written_is_said_before_anything_is_judged(
    file: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing == "folder":
        write(file, line("a"))
    assert main(["run", str(file), "--out", str(tmp_path / "no" / "where")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_what_cannot_be_judged_counts_in_no_mean(
    file: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = line("b", verifier={"type": "human", "labels": str(write(file.parent / "labels"))})
    write(file, line("a"), masked)
    assert main(["run", str(file), "--out", str(out)]) == 0
    assert [v["status"] for v in read(out)] == ["ok", "error"]
    assert "mean score 1.0000 of 1 judged items (1 masked)" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was(file: Path, out: Path) -> None:
    """A judge that is a server makes it slow enough to be ended in the middle."""
    with SlowJudge(0.05) as judge:
        verifier = {"type": "http", "url": judge.url, "concurrency": 4}
        write(file, *(line(f"i{n}", f"answer {n}", verifier=verifier) for n in range(120)))
        command = [sys.executable, "-m", "assay_verifiers", "run", str(file), "--out", str(out)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        while judge.asked.total() < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "--resume" in process.communicate(timeout=10)[1]
        assert process.returncode == 143 and not out.exists()
        partial = out.with_name("verdicts.jsonl.partial")
        kept = {verdict["id"] for verdict in read(partial)}
        assert 20 < len(kept) < 110
        with partial.open("a") as torn:
            torn.write('{"digest": "ab')
        before, judge.seconds = Counter(judge.asked), 0.0
        assert main(["run", str(file), "--out", str(out), "--resume"]) == 0
        assert not kept & set((judge.asked - before).keys())
        assert [v["id"] for v in read(out)] == [f"i{n}" for n in range(120)]
        assert not partial.exists()


# explain


def test_explain_shows_each_part_of_a_composed_verifier(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        {"verifier": YES, "weight": 3, "name": "truth"},
        {"verifier": {"type": "format-first", "format": FORMAT, "then": YES}},
    ]
    write(
        file,
        "a broken line does not matter",
        line("x", "no"),
        line("a", "yes, it is", verifier={"type": "weighted", "parts": parts}),
    )
    assert main(["explain", str(file), "a"]) == 0
    said = capsys.readouterr().out
    assert "truth (weight 3): ok 1" in said and "weighted: wrong 0.75" in said
    assert "format: regex: wrong 0" in said and "then: regex: not asked" in said
    assert "yes, it is" in said and "Is it?" in said


def test_explain_takes_an_item_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--item", json.dumps(line("one", "[red]no[/]"))]) == 0
    said = capsys.readouterr().out
    assert "regex: wrong 0" in said and "[red]no[/]" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain"], "either FILE and ID, or --item"),
        (["explain", "--item", '{"id": 1}'], "id"),
        (["explain", "FILE", "nobody"], "no line has the id 'nobody'"),
    ],
)
def test_explain_says_what_it_wants(
    file: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, line("a"))
    assert main([str(file) if word == "FILE" else word for word in arguments]) == 2
    assert said in capsys.readouterr().err


# suite


def items(path: Path, *prompts: str, **header: Any) -> Path:
    first = {"suite": path.stem, "verifier": YES, **header}
    return write(
        path, first, *({"id": f"{path.stem}{n}", "prompt": p} for n, p in enumerate(prompts))
    )


def test_suite_check_counts_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"type": "http", "url": "http://judge/"}
    assert main(["suite", "check", str(items(tmp_path / "s", "a", "b", verifier=judge))]) == 0
    said = capsys.readouterr().out
    assert "http 2" in said and "digest sha256:" in said
    assert "weak: 2 items" in said


def test_suite_check_names_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s", {"id": "a", "prompt": "x", "verifier": YES}, {"id": "b"})
    assert main(["suite", "check", str(path)]) == 2
    assert "line 2: verifier: Field required" in capsys.readouterr().err


def test_suite_check_finds_a_pattern_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"type": "json", "schema": {"type": "no such type"}}
    assert main(["suite", "check", str(items(tmp_path / "s", "a", verifier=broken))]) == 2
    assert "item s0: verifier:" in capsys.readouterr().err


def test_suites_that_share_a_question_are_not_disjoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = items(tmp_path / "one", "What?", "Who?"), items(tmp_path / "two", "WHO?")
    three = items(tmp_path / "three", "When?")
    check = ["suite", "check", str(one), "--disjoint"]
    assert main([*check, str(three)]) == 0
    assert main([*check, str(three), "--disjoint", str(two)]) == 1
    assert "one1 asks what two0" in capsys.readouterr().err


def test_suite_split_writes_suites_that_are_disjoint_and_miss_nothing(tmp_path: Path) -> None:
    whole = items(tmp_path / "s", *(f"question {n}" for n in range(200)))
    out = tmp_path / "splits"
    shares = ["--share", "train=0.8", "--share", "heldout=0.2"]
    assert main(["suite", "split", str(whole), *shares, "--out", str(out)]) == 0
    train, heldout = out / "train.jsonl", out / "heldout.jsonl"
    assert len(read(train)) + len(read(heldout)) == 200 and 20 < len(read(heldout)) < 60
    assert main(["suite", "check", str(train), "--disjoint", str(heldout)]) == 0
    assert main(["suite", "split", str(whole), "--share", "../x=1", "--out", str(out)]) == 2


# the rest


def test_types_lists_every_type_and_whether_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["types"]) == 0
    said = capsys.readouterr().out
    for name in ("math", "code", "logic", "json", "reward-model", "format-first"):
        assert name in said
    assert "soft" in said and "yes" in said


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["explain"], ["suite", "check"], ["suite", "split"], ["gate"], ["sandbox"]],
)
def test_every_command_has_a_help_text(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_the_module_can_be_run_as_the_command_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "assay_verifiers", "--version"], capture_output=True, check=True
    )
    assert done.stdout.strip()
