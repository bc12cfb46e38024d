"""Worker processes: a deadline frees its worker, a death harms no other, nothing is left over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from assay_verifiers.workers import WorkerDied, WorkerRaised, Workers, WorkerTimeout
from tests.cluster.settings import REPOSITORY
from tests.verifiers import calls


@pytest_asyncio.fixture(loop_scope="session")
async def workers() -> AsyncIterator[Workers]:
    pool = Workers(2)
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    text = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(word) for word in text.split()]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def until(what: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)


def host_of(pool: Workers) -> int:
    """The host's process."""
    assert pool._host is not None
    return pool._host.pid


async def test_a_call_returns_what_the_function_returns(workers: Workers) -> None:
    value = {"status": ("ok", 1.0, None), "text": "x" * 3_000_000}
    assert await workers.call(10, calls.same, value) == value


async def test_a_worker_serves_many_calls(workers: Workers) -> None:
    assert len({await workers.call(10, calls.pid) for _ in range(20)}) == 1


async def test_no_more_run_at_a_time_than_there_are_workers(workers: Workers) -> None:
    found = await asyncio.gather(*(workers.call(10, calls.pid) for _ in range(100)))
    assert len(set(found)) <= 2


async def test_a_deadline_ends_the_call_and_frees_its_worker(workers: Workers) -> None:
    await workers.call(10, calls.same, 0)
    began = time.monotonic()
    with pytest.raises(WorkerTimeout, match=r"0\.3 s"):
        await workers.call(0.3, calls.hang)
    assert 0.3 <= time.monotonic() - began < 1.5
    until(lambda: not children(host_of(workers)))
    assert await workers.call(10, calls.same, 1) == 1


async def test_others_do_not_wait_for_a_call_that_hangs(workers: Workers) -> None:
    await workers.call(10, calls.same, 0)
    hanging = asyncio.create_task(workers.call(1, calls.hang))
    began = time.monotonic()
    assert await asyncio.gather(*(workers.call(10, calls.same, n) for n in range(100))) == list(
        range(100)
    )
    assert time.monotonic() - began < 1
    with pytest.raises(WorkerTimeout):
        await hanging


async def test_one_percent_that_hangs_costs_its_deadlines_and_no_more(workers: Workers) -> None:
    await asyncio.gather(*(workers.call(10, calls.same, 0) for _ in range(8)))
    began = time.monotonic()
    found = await asyncio.gather(
        *(
            workers.call(0.2, calls.hang) if n % 100 == 50 else workers.call(10, calls.same, n)
            for n in range(1000)
        ),
        return_exceptions=True,
    )
    took = time.monotonic() - began
    assert sum(isinstance(one, WorkerTimeout) for one in found) == 10
    assert [one for one in found if isinstance(one, int)] == [
        n for n in range(1000) if n % 100 != 50
    ]
    assert took < 10 * 0.2 / 2 + 4
    assert len(children(host_of(workers))) <= 2


async def test_an_answer_counts_that_came_while_the_event_loop_was_busy(workers: Workers) -> None:
    await workers.call(10, calls.same, 0)
    asked = asyncio.create_task(workers.call(0.3, calls.sleep, 0.05))
    await asyncio.sleep(0.02)
    time.sleep(0.5)  # noqa: ASYNC251  # what a careless user's code does
    assert await asked == 0.05


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (calls.leave, (3,), "exit code 3"),
        (calls.leave, (0,), "exit code 0"),
        (calls.be_killed, (), "signal 9"),
    ],
)
async def test_a_worker_that_dies_is_told_and_replaced(
    workers: Workers, function: Callable[..., None], arguments: tuple[object, ...], said: str
) -> None:
    with pytest.raises(WorkerDied, match=said):
        await workers.call(10, function, *arguments)
    assert await workers.call(10, calls.same, 1) == 1


async def test_an_idle_worker_that_is_killed_is_replaced(workers: Workers) -> None:
    os.kill(await workers.call(10, calls.pid), signal.SIGKILL)
    await asyncio.sleep(0.1)
    assert await workers.call(10, calls.same, 1) == 1


async def test_the_host_may_be_killed_and_is_started_again(workers: Workers) -> None:
    worker = await workers.call(10, calls.pid)
    os.kill(host_of(workers), signal.SIGKILL)
    until(lambda: not alive(worker))
    await asyncio.sleep(0.05)
    assert await workers.call(10, calls.same, 1) == 1


async def test_a_memory_bomb_is_a_memory_error_of_the_worker(workers: Workers) -> None:
    with pytest.raises(MemoryError):
        await workers.call(10, calls.allocate, 10_240)
    assert await workers.call(10, calls.allocate, 10) == 10 << 20


async def test_exceptions_come_back_by_name(workers: Workers) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        await workers.call(10, calls.fail, "no such thing")
    with pytest.raises(WorkerRaised, match="Special: of its own kind"):
        await workers.call(10, calls.fail_with_its_own)


async def test_a_result_that_is_an_object_is_refused(workers: Workers) -> None:
    with pytest.raises(Exception, match="plain data"):
        await workers.call(10, calls.give_an_object)
    assert await workers.call(10, calls.same, 1) == 1


async def test_a_call_that_is_cancelled_ends_its_worker(workers: Workers, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    asked = asyncio.create_task(workers.call(60, calls.hang_and_tell, str(told)))
    await asyncio.to_thread(until, lambda: bool(told.exists() and told.read_text()))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    until(lambda: not alive(int(told.read_text())))
    assert await workers.call(10, calls.same, 1) == 1


async def test_workers_are_replaced_after_their_share_of_calls() -> None:
    pool = Workers(1, calls=5)
    try:
        found = [await pool.call(10, calls.pid) for _ in range(20)]
        assert len(set(found)) == 4
    finally:
        pool.close()


async def test_closing_leaves_no_process_and_no_descriptor() -> None:
    before = descriptors()
    pool = Workers(2)
    await asyncio.gather(*(pool.call(10, calls.pid) for _ in range(10)))
    with pytest.raises(WorkerTimeout):
        await pool.call(0.1, calls.hang)
    host = host_of(pool)
    below = children(host)
    hanging = asyncio.create_task(pool.call(60, calls.hang))
    await asyncio.sleep(0.1)
    pool.close()
    with pytest.raises(WorkerDied, match="closed"):
        await hanging
    with pytest.raises(WorkerDied, match="closed"):
        await pool.call(10, calls.same, 1)
    assert below
    assert not any(map(alive, (host, *below)))
    assert host not in children(os.getpid())
    assert descriptors() == before


_PROGRAM = """
import asyncio, os, sys
from assay_verifiers.workers import Workers
from tests.verifiers import calls

async def main():
    pool = Workers(1)
    worker = await pool.call(10, calls.pid)
    if os.fork() == 0:
        import time
        time.sleep(60)  # a child that holds copies of every descriptor
    print(worker, flush=True)
    await pool.call(60, calls.hang)

asyncio.run(main())
"""


def test_a_user_who_is_killed_leaves_nothing_behind() -> None:
    user = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    assert user.stdout is not None
    worker = int(user.stdout.readline())
    host = next(pid for pid in children(user.pid) if worker in children(pid))
    user.kill()
    user.wait()
    try:
        until(lambda: not alive(worker) and not alive(host))
    finally:
        os.killpg(user.pid, signal.SIGKILL)
        user.stdout.close()


_UNGUARDED = """
from assay_verifiers import verify
print(verify({"type": "math"}, r"\\boxed{\\sqrt{18}}", reference=r"3\\sqrt{2}").status)
"""


@pytest.mark.parametrize("how", ["script", "stdin"])
def test_a_script_without_a_main_guard_runs_once(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_UNGUARDED)
    command = [sys.executable, str(script)] if how == "script" else [sys.executable, "-"]
    done = subprocess.run(
        command, input=_UNGUARDED, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("ok\n", "")


async def test_a_function_of_main_is_refused_at_once(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls.same, "__module__", "__main__")
    with pytest.raises(ValueError, match="module that can be imported"):
        await workers.call(10, calls.same, 1)


async def test_what_a_worker_prints_is_not_among_the_users_output(
    workers: Workers, capfd: pytest.CaptureFixture[str]
) -> None:
    await workers.call(10, calls.say, "not for you")
    assert capfd.readouterr().out == ""


async def test_modules_named_later_are_loaded_for_new_workers() -> None:
    preload = ["json"]
    pool = Workers(1, preload=preload, calls=1)
    try:
        assert await pool.call(10, calls.same, 1) == 1
        preload += ["no_such_module_anywhere", "fractions"]
        assert await pool.call(10, calls.same, 2) == 2
        assert set(pool._loaded) == set(preload)
    finally:
        pool.close()
