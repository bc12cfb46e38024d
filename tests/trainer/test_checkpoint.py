"""Checkpoints: what was saved comes back, what is damaged is named, what counts is never lost."""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from assay_trainer.inventory import table, verify
from assay_trainer.storage import CheckpointError
from tests.trainer.runs import assert_is_whole, model, opened, save, steps


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def test_everything_comes_back_as_it_was_to_the_bit(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC12345, -0x80000000, 1, 0x7F800000], dtype=torch.int32)
    tensors = {
        "nan, -0, subnormal, infinite": bits.view(torch.float32),
        "rng": torch.get_rng_state(),
        "bf16": torch.arange(7, dtype=torch.bfloat16),
        "step": torch.tensor(2**62),
        "none": torch.empty(0, 3),
    }
    with opened(tmp_path) as run:
        saved = save(run, 20, tensors=tensors)
    with opened(tmp_path) as run:
        loaded = run.newest()
    assert loaded is not None
    assert (loaded.path, loaded.manifest, loaded.skipped) == (saved.path, saved.manifest, ())
    assert loaded.state() == {"position": 1280}
    assert loaded.buffer is not None
    assert load_file(loaded.buffer)["ids"].tolist() == [20]
    found = loaded.tensors()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(found[name]) == bytes_of(tensor)


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "run") as run:
        assert run.newest() is None
        assert run.prune() == []


def test_a_checkpoint_says_where_it_comes_from(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first, second = save(run, 20), save(run, 40, score=0.5)
    with opened(tmp_path) as run:
        loaded = run.newest()
        third = save(run, 60)
    assert loaded is not None
    assert first.manifest.parent is None
    assert second.manifest.parent == first.manifest.digest
    assert third.manifest.parent == loaded.manifest.digest == second.manifest.digest
    assert [one.manifest.version for one in (first, second, third)] == ["1.20", "1.40", "2.60"]
    assert (second.manifest.verified, second.manifest.score) == (True, 0.5)


def test_a_checkpoint_without_a_buffer_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.save(model(20), step=20, tensors={"a": torch.zeros(1)}, state={})
        loaded = run.newest()
    assert loaded is not None
    assert loaded.buffer is None


def test_an_engine_of_another_user_can_read_a_checkpoint(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with opened(tmp_path) as run:
            path = save(run, 20).path
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()}
    folders = {stat.S_IMODE(folder.stat().st_mode) for folder in (path, path / "trainer")}
    assert (modes, folders) == ({0o644}, {0o755})


FILES = (
    "config.json",
    "model.safetensors",
    "trainer/state.safetensors",
    "trainer/state.json",
    "trainer/buffer.safetensors",
    "manifest.json",
)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_named_and_the_one_before_is_taken(
    tmp_path: Path, name: str
) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        path = save(run, 40).path
    content = (path / name).read_bytes()
    luck = random.Random(name)
    places = {0, len(content) - 1, *(luck.randrange(len(content)) for _ in range(20))}
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << luck.randrange(8)
        (path / name).write_bytes(changed)
        with opened(tmp_path) as run:
            loaded = run.newest()
        assert_is_whole(loaded, 20)
        assert loaded is not None
        assert [skipped for skipped, _ in loaded.skipped] == [path]
        assert name in loaded.skipped[0].why


def damage_by_loss(path: Path) -> str:
    (path / "model.safetensors").unlink()
    return "model.safetensors is missing"


def damage_by_truncation(path: Path) -> str:
    os.truncate(path / "trainer/state.safetensors", 100)
    return "trainer/state.safetensors has 100 bytes, not "


def damage_by_addition(path: Path) -> str:
    (path / "model-2.safetensors").write_bytes(b"")
    return "model-2.safetensors is not in the manifest"


def damage_by_link(path: Path) -> str:
    (path / "config.json").rename(path.parent / "elsewhere.json")
    (path / "config.json").symlink_to(path.parent / "elsewhere.json")
    return "config.json is no plain file"


def damage_by_folder(path: Path) -> str:
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    return "config.json is missing"


def damage_by_half_a_manifest(path: Path) -> str:
    os.truncate(path / "manifest.json", 200)
    return "manifest.json is cut off or damaged"


def damage_by_no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "manifest.json is missing"


def damage_by_no_folder(path: Path) -> str:
    path.rename(path.with_name("saved elsewhere"))
    path.write_text("")
    return "manifest.json cannot be read: Not a directory"


DAMAGES = (
    damage_by_loss,
    damage_by_truncation,
    damage_by_addition,
    damage_by_link,
    damage_by_folder,
    damage_by_half_a_manifest,
    damage_by_no_manifest,
    damage_by_no_folder,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        path = save(run, 40).path
    assert verify(path) == []
    why = damage(path)
    assert any(why in problem for problem in verify(path))
    with opened(tmp_path) as run:
        loaded = run.newest()
        assert_is_whole(loaded, 20)
        assert loaded is not None
        assert loaded.skipped[0].path == path
        assert why in loaded.skipped[0].why
        # And the run goes on past the damaged one.
        assert save(run, 40).path.name == "step-000040.2"
        assert_is_whole(run.newest(), 40)


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_checkpoint_is_whole_the_run_does_not_begin_again_by_itself(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    with opened(tmp_path) as run:
        path = save(run, 20).path
    why = damage(path)
    with opened(tmp_path) as run, pytest.raises(CheckpointError) as caught:
        run.newest()
    first, *lines = str(caught.value).splitlines()
    assert "is whole: repair or restore one; or, to begin again from the base model" in first
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: ")
    assert why in lines[0]


def test_what_was_passed_over_once_is_never_gone_on_from(tmp_path: Path) -> None:
    """Else data would be used twice: the newer one belongs to a past that was left behind."""
    with opened(tmp_path) as run:
        save(run, 20)
        weights = save(run, 60).path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"unreadable for a moment")
    with opened(tmp_path) as run:
        assert_is_whole(run.newest(), 20)
        save(run, 40)
    weights.write_bytes(content)
    with opened(tmp_path) as run:
        assert_is_whole(run.newest(), 40)


def test_pruning_leaves_the_newest_the_best_verified_and_the_served(tmp_path: Path) -> None:
    with opened(tmp_path, keep=2) as run:
        saved = [save(run, step, score) for step, score in ((20, 0.6), (40, 0.7), (60, 0.5))]
        saved += [save(run, step) for step in (80, 100, 120)]
        (tmp_path / "pins").mkdir()
        (tmp_path / "pins" / saved[2].manifest.digest).touch()
        assert run.prune() == [saved[0].path, saved[3].path]
        assert steps(tmp_path) == ["step-000040", "step-000060", "step-000100", "step-000120"]
        assert run.prune() == []
        (tmp_path / "pins" / saved[2].manifest.digest).unlink()
        assert run.prune() == [saved[2].path]


def test_a_pin_that_comes_while_its_checkpoint_is_being_deleted_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, keep=1) as run:
        first = save(run, 20)
        save(run, 40)
        (tmp_path / "pins").mkdir()
        rename = Path.rename

        def pinned_meanwhile(path: Path, target: Path) -> Path:
            if path == first.path:
                (tmp_path / "pins" / first.manifest.digest).touch()
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", pinned_meanwhile)
        assert run.prune() == []
    assert verify(first.path) == []


def test_a_pin_holds_also_when_the_trainer_ends_while_it_deletes(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first, second = save(run, 20), save(run, 40)
    for saved in (first, second):
        saved.path.rename(saved.path.with_name(f".{saved.path.name}.gone"))
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / first.manifest.digest).touch()
    opened(tmp_path).close()
    assert steps(tmp_path) == ["step-000020"]
    assert verify(first.path) == []


def test_pins_may_lie_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_PINS", str(tmp_path / "beside"))
    with opened(tmp_path / "run", keep=1) as run:
        saved = [save(run, step) for step in (20, 40, 60)]
        (tmp_path / "beside").mkdir()
        (tmp_path / "beside" / saved[0].manifest.digest).touch()
        assert run.prune() == [saved[1].path]


def test_what_there_is_is_told_with_all_that_a_manifest_says_of_it(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first, second = save(run, 20), save(run, 40, score=0.5)
        told = run.kept()
    assert [each["path"] for each in told] == [str(second.path), str(first.path)]
    newest = second.manifest
    assert told[0] == {
        "step": 40,
        "path": str(second.path),
        "digest": newest.digest,
        "version": "1.40",
        "parent": first.manifest.digest,
        "score": 0.5,
        "verified": newest.verified,
        "evaluation": newest.evaluation,
        "time": newest.time,
    }


def test_pruning_never_deletes_what_it_cannot_judge(tmp_path: Path) -> None:
    with opened(tmp_path, keep=1) as run:
        best = save(run, 20, score=0.9).path
        (best / "manifest.json").write_text("{")
        for step in (40, 60, 80):
            save(run, step)
        run.prune()
    assert steps(tmp_path) == ["step-000020", "step-000080"]


def test_pruning_counts_none_as_kept_that_was_found_damaged(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        save(run, 20)
        path = save(run, 40).path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with opened(tmp_path, keep=1) as run:
        assert_is_whole(run.newest(), 20)
        assert run.prune() == []
        save(run, 40)
        run.prune()
        assert steps(tmp_path) == ["step-000040.2"]


def test_pruning_counts_none_as_kept_of_which_a_file_is_missing(tmp_path: Path) -> None:
    with opened(tmp_path, keep=1) as run:
        save(run, 20)
        damage_by_loss(save(run, 40).path)
        assert run.prune() == []


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path: Path) -> None:
    clock = itertools.count(1_000_000_000, -500_000_000)  # It soon stands before 1970.
    with opened(tmp_path, keep=1, now=lambda: next(clock)) as run:
        first, second = save(run, 20), save(run, 40)
        assert first.manifest.time > second.manifest.time
        os.utime(second.path, (0, 0))
        assert_is_whole(run.newest(), 40)
        assert run.prune() == [first.path]


def test_attempts_only_grow(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        with opened(tmp_path) as run:
            assert (run.attempt, run.version(20)) == (attempt, f"{attempt}.20")
    with opened(tmp_path) as run:
        save(run, 20)
    (tmp_path / "attempt").unlink()  # As where only the checkpoints were copied to a new place.
    with opened(tmp_path) as run:
        assert run.attempt == 5


@pytest.mark.parametrize("content", ["", "x", "-1\n", "1.5", "9" * 400])
def test_a_damaged_attempt_counter_is_told_and_not_begun_again(
    tmp_path: Path, content: str
) -> None:
    opened(tmp_path).close()
    (tmp_path / "attempt").write_text(content)
    for _ in range(2):  # The lock is let go of, so it is the same the second time.
        with pytest.raises(CheckpointError, match="attempt is damaged: write a number into it"):
            opened(tmp_path)
    (tmp_path / "attempt").write_text("7")
    with opened(tmp_path) as run:
        assert run.attempt == 8


def test_the_table_says_of_each_checkpoint_what_it_is_worth(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first, second = save(run, 20, score=0.61), save(run, 40)
        third = save(run, 60)
    damage_by_loss(second.path)
    damage_by_no_manifest(third.path)
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins" / first.manifest.digest).touch()
    lines, problems = table(tmp_path)
    digests = [one.manifest.digest[:12] for one in (first, second)]
    assert [line.split() for line in lines] == [
        ["CHECKPOINT", "STEP", "VERSION", "SCORE", "VERIFIED", "DIGEST", "SERVED", "WHOLE"],
        ["step-000020", "20", "1.20", "0.610", "yes", digests[0], "yes", "yes"],
        ["step-000040", "40", "1.40", "-", "no", digests[1], "no", "no"],
        ["step-000060", "?", "?", "?", "?", "?", "?", "no"],
    ]
    assert problems == [
        f"{second.path}: model.safetensors is missing",
        f"{third.path}: manifest.json is missing",
    ]
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        table(tmp_path / "checkpoints")
