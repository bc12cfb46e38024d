"""Batches on disk: what is read is what was written, and what is damaged is told."""

from __future__ import annotations

import math
import random
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from assay_trainer.batch import Batch, Completion, Sample
from assay_trainer.recording import Recorder, RecordingError, Replay, load, save
from assay_verifiers.contract import STATUSES


def drawn(seed: int, samples: int = 24, step: int = 3) -> Batch:
    """A ragged batch in which every status, finish and several versions stand."""
    source = random.Random(seed)
    prompts = [tuple(source.randrange(2**17) for _ in range(source.randint(1, 40))) for _ in "abc"]
    made = []
    for place in range(samples):
        length = source.randint(1, 60)
        status = STATUSES[place % len(STATUSES)]
        made.append(
            Sample(
                item=f"item ü {place % 3}",
                number=2**40 + place % 3,
                group=place * 3 // samples,
                prompt=prompts[place * 3 // samples],
                completion=Completion(
                    ids=tuple(source.randrange(2**17) for _ in range(length)),
                    log_probs=tuple(float(np.float32(-source.random())) for _ in range(length)),
                    versions=tuple(f"1.{source.randrange(3)}" for _ in range(length)),
                    finish="length" if place % 4 == 0 else "stop",
                ),
                reward=source.random() if status in ("ok", "wrong") else 0.0,
                status=status,
                judged=place % 5 != 0,
            )
        )
    metrics = {"seconds/rollout": source.random(), "samples": samples, "huge": math.inf}
    return Batch(step, tuple(made), 2**40 + 77, metrics)


def test_a_batch_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "buffer.safetensors"
    for seed in range(5):
        save(drawn(seed), path)
        assert load(path) == drawn(seed)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def with_log_probs(*values: float) -> Batch:
    ids, versions = (1,) * len(values), ("1.0",) * len(values)
    completion = Completion(ids, values, versions, "stop")
    return Batch(1, (Sample("a", 0, 0, (7,), completion, 1.0, "ok", True),), 1)


@pytest.mark.parametrize("values", [(-0.1, -1e-30, 0.0), (-0.0, -(2.0**-149), -3.0e38)])
def test_log_probs_keep_every_bit_whether_they_are_float32_or_float64(
    tmp_path: Path, values: tuple[float, ...]
) -> None:
    save(with_log_probs(*values), tmp_path / "batch")
    found = load(tmp_path / "batch").samples[0].completion.log_probs
    assert struct.pack("3d", *found) == struct.pack("3d", *values)


def test_float32_log_probs_take_four_bytes_each(tmp_path: Path) -> None:
    count = 10_000
    save(with_log_probs(*[-0.5] * count), tmp_path / "half")
    save(with_log_probs(*[-0.1] * count), tmp_path / "tenth")
    sizes = [(tmp_path / name).stat().st_size for name in ("half", "tenth")]
    assert 4 * count <= sizes[1] - sizes[0] < 4 * count + 100


def test_a_damaged_byte_anywhere_is_found(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    save(drawn(1, samples=6), path)
    whole = path.read_bytes()
    source = random.Random(0)
    places = {*range(12), *source.sample(range(len(whole)), 400)}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load(path)
        except RecordingError as reason:
            assert str(reason).startswith(f"{path}: ")
        else:
            # Not every bit of the header means something: an escaped letter has two forms.
            assert found == drawn(1, samples=6)


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_a_torn_file_is_told_by_its_name(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "batch"
    save(drawn(1), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept) if 0 < kept < 1 else int(kept)])
    with pytest.raises(RecordingError, match=f"{path}: no recorded batch, or torn"):
        load(path)


def test_a_file_that_is_missing_or_something_else_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="none: cannot be read: No such file"):
        load(tmp_path / "none")
    (tmp_path / "other").write_text('{"step": 1}')
    with pytest.raises(RecordingError, match="other: no recorded batch"):
        load(tmp_path / "other")


@contextmanager
def small_files() -> Iterator[None]:
    """A storage that is full after so many bytes of a file. Only around what is tested: pytest's
    own output may be a file, too."""
    kept, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.RLIMIT_FSIZE
    before = resource.getrlimit(limits)
    resource.setrlimit(limits, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limits, before)
        signal.signal(signal.SIGXFSZ, kept)


def test_storage_that_fills_up_leaves_the_earlier_file_and_nothing_half(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    small, large = drawn(1, samples=3), drawn(2, samples=200)
    save(small, path)
    wanted = pytest.raises(RecordingError, match="batch: cannot be written: File too large")
    with wanted, small_files():
        save(large, path)
    assert load(path) == small
    assert list(tmp_path.iterdir()) == [path]


# A run's batches.


def test_a_replay_gives_the_batches_that_were_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "kept" / "batches"
    recorder = Recorder(folder)
    for step in (1, 2, 3):
        recorder.keep(drawn(step, step=step))
    recorder.keep(drawn(9, step=2))
    replay = Replay(folder)
    assert [replay.batch(step) for step in (3, 1)] == [drawn(3, step=3), drawn(1, step=1)]
    assert replay.batch(2) == drawn(9, step=2)


def test_a_step_that_was_not_recorded_is_told_with_those_that_were(tmp_path: Path) -> None:
    for step in (4, 5):
        Recorder(tmp_path).keep(drawn(step, step=step))
    with pytest.raises(RecordingError) as refused:
        Replay(tmp_path).batch(6)
    assert str(refused.value) == (
        f"{tmp_path / 'step-000006.safetensors'}: was not recorded: there are "
        "step-000004.safetensors to step-000005.safetensors"
    )


def test_a_batch_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    Recorder(tmp_path).keep(drawn(1, step=1))
    (tmp_path / "step-000001.safetensors").rename(tmp_path / "step-000002.safetensors")
    with pytest.raises(RecordingError, match="holds the batch of step 1"):
        Replay(tmp_path).batch(2)


def test_a_folder_without_batches_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(RecordingError, match="holds no recorded batch"):
            Replay(folder)
