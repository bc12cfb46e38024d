"""What people said counts; what nobody has looked at is masked and waits in a queue, once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from assay_verifiers.config import HumanVerifier
from assay_verifiers.contract import Task, Unavailable, Verdict, Verifier
from assay_verifiers.registry import Bench, soft, verify_one


def write(path: Path, *labels: Any) -> Path:
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))
    return path


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write(tmp_path / "labels.jsonl", {"id": "a", "score": 1, "by": "Ada"})


def verifier_of(bench: Bench, labels: Path, **config: Any) -> Verifier:
    return bench.verifier(HumanVerifier(labels=str(labels), **config))


async def judge(verifier: Verifier, id: str, completion: str = "yes") -> Verdict:
    return await verify_one(verifier, Task(id, "question"), completion)


async def test_a_label_is_a_verdict_and_names_who_gave_it(bench: Bench, labels: Path) -> None:
    write(labels, {"id": "a", "score": 1, "by": "Ada"}, {"id": "b", "score": 0.25})
    verifier = verifier_of(bench, labels)
    good, bad = await judge(verifier, "a"), await judge(verifier, "b")
    assert (good.score, good.status, good.detail) == (1, "ok", "Ada gave 1")
    assert (bad.score, bad.status) == (0.25, "wrong")


async def test_no_label_is_masked_and_never_a_score(bench: Bench, labels: Path) -> None:
    verdict = await judge(verifier_of(bench, labels), "b")
    assert (verdict.score, verdict.status, verdict.masked) == (0, "error", True)


async def test_a_label_of_one_completion_says_nothing_of_another(
    bench: Bench, labels: Path
) -> None:
    hashed = hashlib.sha256(b"no").hexdigest()
    write(
        labels,
        {"id": "a", "completion": "yes", "score": 1},
        {"id": "a", "sha256": hashed, "score": 0},
    )
    verifier = verifier_of(bench, labels)
    assert (await judge(verifier, "a", "yes")).status == "ok"
    assert (await judge(verifier, "a", "no")).status == "wrong"
    assert (await judge(verifier, "a", "yes ")).status == "error"


async def test_the_latest_label_wins_and_the_particular_one_before_the_general(
    bench: Bench, labels: Path
) -> None:
    write(
        labels,
        {"id": "a", "completion": "yes", "score": 1},
        {"id": "b", "score": 0},
        {"id": "b", "score": 1},
        {"id": "a", "score": 0},
    )
    verifier = verifier_of(bench, labels)
    assert (await judge(verifier, "a", "yes")).status == "ok"
    assert (await judge(verifier, "a", "else")).status == "wrong"
    assert (await judge(verifier, "b")).status == "ok"


async def test_a_file_that_changed_is_read_again(bench: Bench, labels: Path) -> None:
    verifier = verifier_of(bench, labels)
    assert (await judge(verifier, "b")).status == "error"
    with labels.open("a") as file:
        file.write('{"id": "b", "score": 1}\n')
    assert (await judge(verifier, "b")).status == "ok"
    with labels.open("a") as file:
        file.write('{"id": "b", "sco')
    half = await judge(verifier, "b")
    assert (half.status, "line 3" in half.detail) == ("error", True)
    remove(labels)
    assert (await judge(verifier, "a")).status == "error"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not JSON", "not JSON"),
        ('{"id": 1, "score": 1}', "id"),
        ('{"id": "b"}', "score"),
        ('{"id": "b", "score": 2}', "score"),
        ('{"id": "b", "score": true}', "score"),
        ('{"id": "b", "score": NaN}', "NaN"),
        ('{"id": "b", "score": 1, "score": 0}', "twice"),
        ('{"id": "b", "score": 1, "complettion": "yes"}', "complettion"),
        ('{"id": "b", "score": 1, "sha256": "12"}', "64"),
        ('{"id": "b", "score": 1, "completion": 3}', "text"),
        ("[" * 10_000, "nested"),
    ],
)
async def test_a_malformed_label_is_refused_with_its_line(
    bench: Bench, labels: Path, line: str, says: str
) -> None:
    with labels.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(Unavailable, match=f"labels.jsonl, line 3: .*{says}"):
        verifier_of(bench, labels)


async def test_labels_that_are_not_there_are_told_before_the_work_begins(
    bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match=r"none\.jsonl"):
        verifier_of(bench, tmp_path / "none.jsonl")


async def test_what_is_unlabelled_is_queued_once_and_can_be_labelled_from_there(
    bench: Bench, labels: Path, tmp_path: Path
) -> None:
    queue = tmp_path / "queue.jsonl"
    verifier = verifier_of(bench, labels, queue=str(queue))
    verdicts = await asyncio.gather(
        *(judge(verifier, "b", text) for text in ("yes", "no", "yes", "\ud800") * 5)
    )
    assert {verdict.status for verdict in verdicts} == {"error"}
    entries = [json.loads(line) for line in queue.read_text().splitlines()]
    assert sorted(entry["completion"] for entry in entries) == ["?", "no", "yes"]
    assert {(entry["id"], entry["prompt"]) for entry in entries} == {("b", "question")}
    with labels.open("a") as file:
        for entry in entries:
            file.write(json.dumps({**entry, "score": 1, "by": "Bo"}) + "\n")
    for text in ("no", "yes", "\ud800"):
        assert (await judge(verifier, "b", text)).status == "ok"
    assert (await judge(verifier, "b", "?")).status == "error"


async def test_several_processes_share_a_queue(bench: Bench, labels: Path, tmp_path: Path) -> None:
    queue = tmp_path / "queue.jsonl"
    queue.write_text("somebody's note without an end")
    same = tmp_path / "same.jsonl"
    os.link(labels, same)
    one = verifier_of(bench, labels, queue=str(queue))
    other = verifier_of(bench, same, queue=str(queue))
    for text in ("1", "2", "1"):
        await judge(one, "b", text)
        await judge(other, "b", text)
    lines = queue.read_text().splitlines()
    assert [json.loads(line)["completion"] for line in lines[1:]] == ["1", "2"]
    queue.write_text("")
    await judge(one, "b", "1")
    assert len(queue.read_text().splitlines()) == 1


def test_the_type_is_marked_soft(labels: Path) -> None:
    assert soft(HumanVerifier(labels=str(labels)))
