"""Checkpoints when processes are killed, the storage fills up, or two trainers meet."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from assay_trainer.checkpoint import Checkpoints
from assay_trainer.inventory import verify
from assay_trainer.storage import CheckpointError
from tests.trainer.runs import (
    assert_is_whole,
    ended,
    fork,
    model,
    opened,
    save,
    steps,
    traced,
    what_is_on_disk,
)

NO_NAMESPACE = 77


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder on memory, where there is such: thousands of fsyncs on a disk take minutes."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


def begun(folder: Path) -> dict[str, Path]:
    """A run with something to lose: the best, the served, the newest and one to be deleted."""
    with opened(folder, keep=1) as run:
        best, served = save(run, 10, score=0.9), save(run, 20)
        save(run, 30)
        newest = save(run, 40, score=0.5)
        (folder / "pins").mkdir()
        (folder / "pins" / served.manifest.digest).touch()
    return {"best": best.path, "served": served.path, "newest": newest.path}


def one_more(folder: Path) -> None:
    with opened(folder, keep=2) as run:
        run.newest()
        save(run, 50)
        run.prune()


def lines_that_matter(folder: Path) -> list[int]:
    """Before which the disk is not as it was before the line before: to end elsewhere is alike."""
    seen: list[object] = []
    lines: list[int] = []

    def before(line: int) -> None:
        now = what_is_on_disk(folder)
        if not seen or now != seen[-1]:
            seen.append(now)
            lines.append(line)

    traced(lambda: one_more(folder), before)
    return lines


def test_a_trainer_killed_at_any_line_loses_nothing_that_was_saved(quick: Path) -> None:
    begun(quick / "begun")
    shutil.copytree(quick / "begun", quick / "counted")
    lines = lines_that_matter(quick / "counted")
    assert len(lines) > 15
    ends = []
    for last in lines:
        folder = quick / f"killed-{last}"
        shutil.copytree(quick / "begun", folder)

        def killed(folder: Path = folder, last: int = last) -> None:
            die = partial(os.kill, os.getpid(), signal.SIGKILL)
            traced(lambda: one_more(folder), lambda line: line == last and die())

        assert ended(fork(killed)) == -signal.SIGKILL
        with opened(folder) as run:
            loaded = run.newest()
            assert loaded is not None
            assert loaded.skipped == ()
            ends.append(loaded.manifest.step)
            assert_is_whole(loaded, 50 if ends[-1] == 50 else 40)
            # Nothing half done is left, and what counts is whole.
            there = set(steps(folder)) - {"step-000030", "step-000050"}
            assert there == {"step-000010", "step-000020", "step-000040"}
        assert not [name for name in steps(folder) if verify(folder / "checkpoints" / name)]
    assert ends == sorted(ends), "once it is there it stays"
    assert set(ends) == {40, 50}


def test_a_trainer_killed_at_any_moment_has_kept_what_it_said_it_kept(quick: Path) -> None:
    """Here also in the midst of a system call, with files that take a while."""
    luck = random.Random(5)
    said = 0

    def train(pipe: int, step: int) -> None:
        with opened(quick, keep=1) as run:
            run.newest()
            while True:
                step += 1
                save(run, step, write=model(step, floats=1_000_000))
                os.write(pipe, step.to_bytes(4, "big"))
                run.prune()

    for kills in itertools.count(1):
        reading, writing = os.pipe()
        child = fork(lambda pipe=writing, step=said: train(pipe, step))
        os.close(writing)
        time.sleep(luck.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        said = int.from_bytes(told[-4:], "big") if told else said
        with opened(quick) as run:
            loaded = run.newest()
            assert loaded is not None or not said
            if loaded:
                assert loaded.skipped == ()
                assert said <= loaded.manifest.step <= said + 1
                assert_is_whole(loaded, loaded.manifest.step)
                said = loaded.manifest.step
        if kills >= 12 and said > 5:
            break
        assert kills < 100, f"only {said} checkpoints were written"


def small_memory(folder: Path, size: str) -> None:
    """Mounts a small file system that only this process sees, and that ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    new_user_and_mounts = 0x10000000 | 0x00020000
    if libc.unshare(new_user_and_mounts):
        os._exit(NO_NAMESPACE)
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError:
        os._exit(NO_NAMESPACE)
    options = f"size={size}".encode()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options):
        os._exit(NO_NAMESPACE)


def fill_up(folder: Path) -> None:
    """Saves with ever more room, from none to enough: each write is once the one that fails."""
    small_memory(folder, "1m")
    run = folder / "run"
    begun(run)
    before = what_is_on_disk(run / "checkpoints")
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    for pages in range(100):
        os.truncate(ballast, ballast.stat().st_size - 4096 * bool(pages))
        try:
            with opened(run) as checkpoints:
                save(checkpoints, 50)
        except CheckpointError as reason:
            assert "No space left on device: 0.000 GB are free" in str(reason), reason
            assert "make room there, or lower checkpoint.keep" in str(reason)
            assert what_is_on_disk(run / "checkpoints") == before
        else:
            break
    assert pages > 5
    ballast.unlink()
    with opened(run) as checkpoints:
        assert_is_whole(checkpoints.newest(), 50)


def test_storage_that_fills_up_at_any_write_costs_only_what_was_being_written(
    tmp_path: Path,
) -> None:
    code = ended(fork(lambda: fill_up(tmp_path)))
    if code == NO_NAMESPACE:
        pytest.skip("this machine lets no process of this user mount a file system of its own")
    assert code == 0


def test_a_limit_on_the_size_of_files_is_told_as_such(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        save(run, 20)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with opened(tmp_path) as run:
            for write in (model(40, floats=100_000), lambda path: big(path / "config.json")):
                with pytest.raises(CheckpointError, match=r"File too large: .*\(ulimit -f\)"):
                    save(run, 40, write=write)
                assert steps(tmp_path) == ["step-000020"]
                assert_is_whole(run.newest(), 20)

    def big(path: Path) -> None:
        path.write_bytes(bytes(100_000))

    assert ended(fork(limited)) == 0


def works_until_killed(folder: Path, say: Callable[[], object]) -> None:
    run = opened(folder)
    say()
    time.sleep(60)
    run.close()


def start(folder: Path, work: Callable[[Path, Callable[[], object]], None]) -> int:
    """A process that has said that it is at work."""
    reading, writing = os.pipe()
    child = fork(lambda: work(folder, lambda: os.write(writing, b"!")))
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"!"
    return child


def test_two_trainers_cannot_work_in_the_same_folder(tmp_path: Path) -> None:
    child = start(tmp_path, works_until_killed)
    try:
        with pytest.raises(CheckpointError) as caught:
            opened(tmp_path)
        assert f"another trainer works in {tmp_path} (process {child} on " in str(caught.value)
        assert "end it first, or give this job another checkpoint.directory" in str(caught.value)
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
    with opened(tmp_path) as run:
        assert run.attempt == 2
        with pytest.raises(CheckpointError, match="another trainer works in"):
            opened(tmp_path)


def test_what_a_killed_trainer_leaves_running_does_not_hold_its_folder(tmp_path: Path) -> None:
    orphans = tmp_path / "orphans"

    def forks_and_works(folder: Path, say: Callable[[], object]) -> None:
        run = opened(folder)
        orphans.write_text(str(fork(lambda: time.sleep(30))))
        say()
        time.sleep(60)
        run.close()

    child = start(tmp_path / "run", forks_and_works)
    os.kill(child, signal.SIGKILL)
    ended(child)
    try:
        opened(tmp_path / "run").close()
    finally:
        os.kill(int(orphans.read_text()), signal.SIGKILL)


def test_a_trainer_that_lost_its_lock_and_was_followed_writes_and_deletes_nothing(
    tmp_path: Path,
) -> None:
    """As on network storage after a cut: its lock is gone, and it is not told."""
    lost = opened(tmp_path, keep=1)
    save(lost, 20)
    lost.close()  # That is, its lock.
    with opened(tmp_path) as follower:
        save(follower, 40)
        with pytest.raises(CheckpointError, match="this is attempt 1, that is attempt 2"):
            save(lost, 60)
        with pytest.raises(CheckpointError, match="another trainer has taken"):
            lost.prune()
        assert steps(tmp_path) == ["step-000020", "step-000040"]
        assert_is_whole(follower.newest(), 40)


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file cannot be used: Not a directory"):
        opened(tmp_path / "file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="run cannot be used: File exists"):
        Checkpoints(tmp_path / "run", 1, job="0" * 64)
