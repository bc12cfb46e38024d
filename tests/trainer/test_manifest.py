"""A checkpoint's manifest: nothing of it changes unseen. The keep-policy: what is never deleted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay_trainer.manifest import (
    Entry,
    File,
    Manifest,
    ManifestError,
    decode,
    differences,
    digest_of,
    encode,
    fingerprint,
    to_delete,
)
from assay_trainer.storage import hashed

FILES = {
    "model.safetensors": File(sha256="a" * 64, bytes=10),
    "config.json": File(sha256="b" * 64, bytes=2),
    "trainer/state.json": File(sha256="c" * 64, bytes=3),
}


def made(**changes: Any) -> Manifest:
    files = changes.get("files", FILES)
    fields: dict[str, Any] = {
        "step": 20,
        "version": "3.20",
        "job": "d" * 64,
        "parent": None,
        "digest": changes.get("digest") or digest_of(files),
        "files": files,
        "evaluation": {"score": 0.25, "low": 0.125, "items": 200},
        "verified": True,
        "time": "2026-01-02T03:04:05+00:00",
        **changes,
    }
    return Manifest(**fields)


def test_a_manifest_is_read_as_it_was_written() -> None:
    for manifest in (made(), made(evaluation=None, verified=False, parent="e" * 64)):
        assert decode(encode(manifest)) == manifest
    assert (made().score, made().order) == (0.25, (3, 20))
    assert made(evaluation=None, verified=False).score is None


def test_no_bit_of_a_manifest_changes_unseen() -> None:
    content = encode(made())
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(ManifestError):
                decode(bytes(changed))


def test_a_manifest_that_is_cut_off_anywhere_is_refused() -> None:
    content = encode(made())
    for length in range(len(content) - 1):  # Without its last line end it is whole.
        with pytest.raises(ManifestError, match=r"^manifest.json is cut off or damaged: "):
            decode(content[:length])


def rechecked(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A manifest that was changed by somebody who knows of the checksum."""
    data = json.loads(encode(made()))
    del data["checksum"]
    change(data)
    return json.dumps({**data, "checksum": fingerprint(data)}).encode()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.update(format=2), "is of format 2; this version reads 1 only"),
        (lambda data: data.update(step="20"), "step: Input should be a valid integer"),
        (lambda data: data.update(more=1), "more: Extra inputs are not permitted"),
        (lambda data: data.pop("files"), "files: Field required"),
        (lambda data: data.update(version="3.21"), "version: 3.21 is not of step 20"),
        (lambda data: data.update(digest="0" * 64), "digest: is not that of the files"),
        (lambda data: data.update(evaluation=None), "verified: nothing without a score is"),
        (lambda data: data["evaluation"].update(score="1"), "evaluation.score: '1' is no number"),
        (lambda data: data.update(time="2026-01-02T03:04:05"), "time: a time without its zone"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        decode(rechecked(change))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../model",
        "a/../b",
        "a//b",
        "./a",
        "a\nb",
        "a\\b",
        "manifest.json",
        "\ud800",
    ],
)
def test_no_file_is_named_that_lies_elsewhere_or_has_no_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="files"):
        made(files={name: File(sha256="a" * 64, bytes=1)}, digest="a" * 64)


def test_what_json_cannot_say_is_refused_when_it_is_written() -> None:
    with pytest.raises(ValueError, match="is no number"):
        made(evaluation={"score": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(made(evaluation={"score": 0.5, "low": float("inf")}))


def test_the_digest_is_what_sha256sum_says_of_the_models_files(tmp_path: Path) -> None:
    names = ["b.json", "a.safetensors", "B.txt", "sub/ä.model", "trainer/state.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    told = subprocess.run(
        ["sh", "-c", 'sha256sum "$@" | sha256sum', "sh", *sorted(names[:4])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    files, unreadable = hashed({name: tmp_path / name for name in names})
    assert not unreadable
    assert told.stdout.split()[0] == digest_of(files)


def test_the_digest_is_of_what_is_served_and_not_of_the_trainers_state() -> None:
    other = File(sha256="f" * 64, bytes=3)
    assert digest_of({**FILES, "trainer/state.json": other}) == digest_of(FILES)
    for name in ("model.safetensors", "config.json", "new.json"):
        assert digest_of({**FILES, name: other}) != digest_of(FILES)
    renamed = {**FILES, "model-1.safetensors": FILES["model.safetensors"]}
    del renamed["model.safetensors"]
    assert digest_of(renamed) != digest_of(FILES)


def test_each_file_that_differs_is_named() -> None:
    assert differences(FILES, FILES) == []
    there = {
        "config.json": File(sha256="b" * 64, bytes=1),
        "trainer/state.json": File(sha256="f" * 64, bytes=3),
        "model-2.safetensors": File(sha256="a" * 64, bytes=1),
    }
    assert differences(FILES, there) == [
        "config.json has 1 bytes, not 2",
        "model.safetensors is missing",
        "trainer/state.json is damaged: its SHA-256 is ffffffffffff..., not cccccccccccc...",
        "model-2.safetensors is not in the manifest",
    ]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_reading_manifests_imports_no_torch() -> None:
    code = (
        "import sys, assay_trainer.manifest, assay_trainer.inventory; print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"


def entry(step: int, score: float | None = None, **more: Any) -> Entry:
    fields = {"order": (1, step), "digest": f"digest-{step}", "whole": True, **more}
    return Entry(name=f"step-{step}", score=score, **fields)


def names(entries: list[Entry]) -> list[str]:
    return [one.name for one in entries]


def test_the_newest_the_best_verified_and_the_served_stay() -> None:
    run = [entry(20), entry(40, 0.7), entry(60, 0.6), entry(80), entry(100), entry(120)]
    assert names(to_delete(run, 2, {"digest-20"})) == ["step-60", "step-80"]
    assert names(to_delete(run, 2, set())) == ["step-20", "step-60", "step-80"]
    assert to_delete(run, 6, set()) == []
    assert to_delete([], 1, set()) == []


def test_of_equally_good_ones_the_newest_stays() -> None:
    run = [entry(20, 0.5), entry(40, 0.5), entry(60)]
    assert names(to_delete(run, 1, set())) == ["step-20"]


def test_damaged_ones_push_no_whole_one_out() -> None:
    run = [entry(20), entry(40), entry(60, whole=False), entry(80, whole=False)]
    assert to_delete(run, 2, set()) == []
    assert names(to_delete([*run, entry(100), entry(120)], 2, set())) == [
        "step-20",
        "step-40",
        "step-60",
        "step-80",
    ]


def test_a_best_one_that_is_damaged_does_not_cost_the_best_whole_one() -> None:
    run = [entry(20, 0.6), entry(40, 0.9, whole=False), entry(60, 0.5), entry(80)]
    assert names(to_delete(run, 1, set())) == ["step-60"]


def test_what_a_later_attempt_wrote_is_newer_whatever_its_step() -> None:
    run = [entry(80), entry(100), entry(40, order=(2, 40))]
    assert names(to_delete(run, 1, set())) == ["step-80", "step-100"]


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least the newest"):
        to_delete([entry(20)], 0, set())


ENTRIES = st.lists(
    st.builds(
        Entry,
        name=st.uuids().map(str),
        order=st.tuples(st.integers(1, 3), st.integers(0, 6)),
        digest=st.sampled_from("abcdef"),
        score=st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        whole=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda one: one.name,
)


@given(
    ENTRIES, st.integers(1, 4), st.frozensets(st.sampled_from("abcdef"), max_size=2), st.randoms()
)
def test_whatever_there_is_the_best_verified_the_served_and_the_newest_stay(
    entries: list[Entry], keep: int, pins: frozenset[str], luck: Any
) -> None:
    gone = to_delete(entries, keep, pins)
    left = [one for one in entries if one not in gone]
    newest_first = sorted(entries, key=lambda one: (one.order, one.name), reverse=True)
    whole = [one for one in newest_first if one.whole]

    assert not [one for one in gone if one in newest_first[:keep] or one in whole[:keep]]
    assert not [one for one in gone if one.digest in pins]
    for some in (entries, whole):
        scores = [one.score for one in some if one.score is not None]
        assert not scores or max(scores) in [one.score for one in left if one in some]
    # And no more than that stays: storage is bounded.
    newer = {one.name: newest_first[:i] for i, one in enumerate(newest_first)}
    more = [
        one
        for one in left
        if one.digest not in pins and sum(other.whole for other in newer[one.name]) >= keep
    ]
    assert len(more) <= 2
    assert all(one.score is not None for one in more)

    assert gone == [one for one in reversed(newest_first) if one in gone]
    assert to_delete(left, keep, pins) == []
    mixed = list(entries)
    luck.shuffle(mixed)
    assert to_delete(mixed, keep, pins) == gone
