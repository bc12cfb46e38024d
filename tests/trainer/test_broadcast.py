"""Weights by broadcast to engines in processes of their own: gloo here, NCCL where GPUs are.

tests/engine/test_real_training.py does the same with a real SGLang server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

from assay_trainer.broadcast import BroadcastTransfer
from assay_trainer.engines import Engines
from assay_trainer.settings import Rollout
from tests.trainer.engine_server import VOCABULARY
from tests.trainer.test_engines import drawn, until, usable

REPOSITORY = Path(__file__).parents[2]


class Learner:
    """Weights of several types and sizes, some larger than a bucket."""

    def __init__(self, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        self.held = {
            "large": torch.randn(50, 40, generator=source),
            "half": torch.randn(33, generator=source).bfloat16(),
            "scalar": torch.randn((), generator=source),
            "more": torch.randn(7, 9, generator=source),
        }

    @property
    def sums(self) -> dict[str, float]:
        return {name: tensor.double().sum().item() for name, tensor in self.held.items()}

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.held

    def write(self, folder: Path) -> None:
        raise AssertionError("a broadcast writes no files of its own accord")


@contextlib.contextmanager
def receiver(dies_at: int = 0) -> Iterator[str]:
    """The URL of a receiving engine."""
    path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry)])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.receiver", "cpu", str(dies_at)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[str, str]]:
    with receiver() as a, receiver() as b:
        yield a, b


@asynccontextmanager
async def transfer_to(folder: Path, *urls: str) -> AsyncIterator[tuple[Engines, BroadcastTransfer]]:
    settings = Rollout.model_validate({"engines": urls, "requestSeconds": 10, "waitSeconds": 20})
    async with Engines(settings, VOCABULARY) as engines:
        await engines.start()
        transfer = BroadcastTransfer(
            engines, folder, device=torch.device("cpu"), seconds=10, bucket_bytes=300
        )
        yield engines, transfer
        await transfer.close()


async def sums(url: str) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        told: dict[str, float] = (await client.get(f"{url}/sums")).json()
        return told


async def test_every_engine_gets_every_tensor_and_no_file_is_written(
    two: tuple[str, str], tmp_path: Path
) -> None:
    a, b = two
    async with transfer_to(tmp_path / "w", a, b) as (engines, transfer):
        for step in (1, 2):
            learner = Learner(step)
            pushed = await transfer.push(learner, f"1.{step}")
            assert (pushed.loaded.good, pushed.fallback) == ((a, b), "")
            assert await sums(a) == await sums(b) == learner.sums
        assert [state.version for state in engines.states] == ["1.2", "1.2"]
    assert not (tmp_path / "w").exists()


async def test_an_engine_that_dies_in_the_middle_leaves_the_others_with_whole_weights(
    two: tuple[str, str], tmp_path: Path
) -> None:
    a, _ = two
    with receiver(dies_at=2) as b:
        async with transfer_to(tmp_path, a, b) as (engines, transfer):
            pushed = await transfer.push(Learner(1), "1.1")
            assert pushed.fallback
            assert pushed.loaded.good == (a,)
            assert list(pushed.loaded.failed) == [b]
            # Not what was broadcast in part: they were read from a file.
            assert engines.states[0].version == "1.1"
            written = load_file(tmp_path / "1.1" / "model.safetensors")
            assert torch.equal(written["large"], Learner(1).held["large"])
            # The next group has only those that are left.
            learner = Learner(2)
            pushed = await transfer.push(learner, "1.2")
            assert (pushed.loaded.good, pushed.fallback) == ((a,), "")
            assert await sums(a) == learner.sums


async def test_an_engine_that_comes_back_reads_files_and_is_in_the_next_broadcast(
    two: tuple[str, str], tmp_path: Path
) -> None:
    a, b = two
    async with transfer_to(tmp_path, a, b) as (engines, transfer):
        await transfer.push(Learner(1), "1.1")
        async with httpx.AsyncClient() as client:
            await client.post(f"{b}/misbehave", json={})
        await asyncio.gather(drawn(engines), drawn(engines))
        assert usable(engines) == [True, False]
        await transfer.push(Learner(2), "1.2")
        await until(lambda: all(state.usable for state in engines.states))
        assert (tmp_path / "1.2").is_dir()
        learner = Learner(3)
        pushed = await transfer.push(learner, "1.3")
        assert (set(pushed.loaded.good), pushed.fallback) == ({a, b}, "")
        assert await sums(a) == await sums(b) == learner.sums
