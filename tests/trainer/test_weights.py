"""Weights to engines through files: nothing half written, nothing believed that was not seen."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from assay_trainer.broadcast import BroadcastTransfer, packed, parts
from assay_trainer.engine import EngineError
from assay_trainer.weights import DiskTransfer, WeightsError, publish
from tests.trainer.engine_server import EngineServer, hangs, says
from tests.trainer.test_engines import drawn, started, until, usable


class Learner:
    """Weights that can be written."""

    def __init__(self, value: float = 0.0, fails: Exception | None = None) -> None:
        self.value, self.fails = value, fails

    def weights(self) -> Mapping[str, torch.Tensor]:
        return {"w": torch.full((4,), self.value)}

    def write(self, folder: Path) -> None:
        save_file(dict(self.weights()), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        if self.fails:
            raise self.fails


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_new_weights_lie_in_a_folder_of_their_own_that_every_engine_was_seen_to_have(
    tmp_path: Path,
) -> None:
    with EngineServer() as a, EngineServer() as b:
        async with started(a, b) as engines:
            pushed = await DiskTransfer(engines, tmp_path / "w").push(Learner(3), "1.1")
            assert [state.version for state in engines.states] == ["1.1", "1.1"]
    assert pushed.loaded.good == (a.url, b.url)
    assert 0 < pushed.prepared <= pushed.seconds
    assert a.path == b.path == str(tmp_path / "w" / "1.1")
    assert load_file(tmp_path / "w/1.1/model.safetensors")["w"].tolist() == [3] * 4
    assert names(tmp_path / "w") == ["1.1"]


async def test_engines_that_run_as_somebody_else_can_read_them(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = publish(Learner().write, tmp_path, "1.1")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


async def test_the_version_before_is_removed_once_no_usable_engine_reports_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "0.9").mkdir()
    (tmp_path / ".0.10.part").mkdir()
    (tmp_path / "mine").mkdir()
    with EngineServer() as engine:
        async with started(engine) as engines:
            transfer = DiskTransfer(engines, tmp_path)
            await transfer.push(Learner(), "1.1")
            assert names(tmp_path) == ["1.1", "mine"]
            await transfer.push(Learner(), "1.2")
            assert names(tmp_path) == ["1.2", "mine"]


async def test_as_many_versions_stay_as_are_to_be_kept(tmp_path: Path) -> None:
    with EngineServer() as engine:
        async with started(engine) as engines:
            transfer = DiskTransfer(engines, tmp_path, keep=3)
            for step in range(9, 14):
                await transfer.push(Learner(), f"1.{step}")
    assert names(tmp_path) == ["1.11", "1.12", "1.13"]


REFUSALS: dict[str, Any] = {
    "a refusal": (400, {"success": False, "message": "shapes differ"}),
    "no success": {"success": False, "message": "shapes differ"},
    "an error": (500, b"shapes differ"),
}


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS.keys())
async def test_an_engine_that_fails_an_update_is_out_until_it_has_the_weights(
    tmp_path: Path, answer: Any
) -> None:
    with EngineServer() as good, EngineServer() as bad:
        async with started(good, bad) as engines:
            bad.faults["/update_weights_from_disk"] = [says(answer)]
            pushed = await DiskTransfer(engines, tmp_path).push(Learner(), "1.1")
            assert pushed.loaded.good == (good.url,)
            assert "shapes differ" in pushed.loaded.failed[bad.url]
            assert usable(engines) == [True, False]
            await until(lambda: usable(engines) == [True, True])
            assert bad.version == "1.1"
    assert "default" not in bad.drawn_with


async def test_an_engine_that_says_it_has_them_and_reports_others_is_out(tmp_path: Path) -> None:
    with EngineServer() as good, EngineServer() as bad:
        async with started(good, bad) as engines:
            bad.always["/update_weights_from_disk"] = says({"success": True, "message": "done"})
            pushed = await DiskTransfer(engines, tmp_path).push(Learner(), "1.1")
            assert "took weights 1.1 and then reported default" in pushed.loaded.failed[bad.url]
            # Nor is it believed when it is looked at again.
            await until(lambda: bad.asked["/update_weights_from_disk"] == 3)
            assert usable(engines) == [True, False]


async def test_an_engine_that_hangs_in_an_update_holds_the_others_up_no_longer_than_one_request(
    tmp_path: Path,
) -> None:
    with EngineServer() as good, EngineServer() as bad:
        async with started(good, bad, requestSeconds=1) as engines:
            bad.faults["/update_weights_from_disk"] = [hangs]
            pushed = await DiskTransfer(engines, tmp_path).push(Learner(), "1.1")
            assert "no answer within 1 s" in pushed.loaded.failed[bad.url]
            assert pushed.loaded.seconds < 3
            assert {v for c in await drawn(engines) for v in c.versions} == {"1.1"}


async def test_without_any_engine_that_takes_them_the_run_ends(tmp_path: Path) -> None:
    with EngineServer() as engine:
        async with started(engine, waitSeconds=0.8) as engines:
            engine.always["/update_weights_from_disk"] = says((400, {"message": "no"}))
            with pytest.raises(EngineError, match="no engine is usable"):
                await DiskTransfer(engines, tmp_path).push(Learner(), "1.1")


async def test_a_cancelled_update_leaves_no_engine_out_for_good(tmp_path: Path) -> None:
    with EngineServer() as engine:
        async with started(engine, requestSeconds=30) as engines:
            engine.faults["/update_weights_from_disk"] = [hangs]
            pushing = asyncio.create_task(DiskTransfer(engines, tmp_path).push(Learner(), "1.1"))
            await until(lambda: engine.asked["/update_weights_from_disk"] == 1)
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            await until(lambda: usable(engines) == [True])
            assert engine.version == "1.1"


async def test_versions_only_grow(tmp_path: Path) -> None:
    with EngineServer() as engine:
        async with started(engine) as engines:
            transfer = DiskTransfer(engines, tmp_path)
            await transfer.push(Learner(), "2.10")
            for older in ("2.9", "1.11"):
                with pytest.raises(EngineError, match=f"{older} are not newer than 2.10"):
                    await transfer.push(Learner(), older)
            with pytest.raises(WeightsError, match="written once"):
                await transfer.push(Learner(), "2.10")
            await transfer.push(Learner(), "3.0")


async def test_a_full_disk_is_told_and_the_engines_go_on_with_what_they_have(
    tmp_path: Path,
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with EngineServer() as engine:
        async with started(engine) as engines:
            transfer = DiskTransfer(engines, tmp_path)
            await transfer.push(Learner(), "1.1")
            with pytest.raises(WeightsError) as raised:
                await transfer.push(Learner(fails=full), "1.2")
            assert names(tmp_path) == ["1.1"]
            assert {v for c in await drawn(engines) for v in c.versions} == {"1.1"}
            # Once there is room, the same version can be written.
            await transfer.push(Learner(), "1.2")
    said = str(raised.value)
    assert f"weights 1.2 could not be written to {tmp_path}" in said
    assert "No space left on device" in said and "MiB free" in said
    assert "rollout.weights.directory" in said


async def test_a_file_that_was_cut_short_never_reaches_an_engine_which_would_die_of_it(
    tmp_path: Path,
) -> None:
    class CutsShort(Learner):
        def write(self, folder: Path) -> None:
            super().write(folder)
            path = folder / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-1])

    class Nothing(Learner):
        def write(self, folder: Path) -> None:
            """Writes nothing."""

    with EngineServer() as engine:
        async with started(engine) as engines:
            for source, said in ((CutsShort(), "incomplete|Incomplete"), (Nothing(), "no \\*")):
                with pytest.raises(WeightsError, match=said):
                    await DiskTransfer(engines, tmp_path).push(source, "1.1")
    assert engine.asked["/update_weights_from_disk"] == 0
    assert names(tmp_path) == []


async def test_a_version_is_not_removed_while_an_engine_that_came_back_may_be_reading_it(
    tmp_path: Path,
) -> None:
    """SGLang dies of files that vanish while it reads them."""
    with EngineServer() as a, EngineServer() as b:
        async with started(a, b, requestSeconds=20) as engines:
            transfer = DiskTransfer(engines, tmp_path)
            b.faults["/update_weights_from_disk"] = [says((400, {"message": "no"})), hangs]
            await transfer.push(Learner(), "1.1")
            await until(lambda: b.asked["/update_weights_from_disk"] == 2)
            await transfer.push(Learner(), "1.2")
            assert names(tmp_path) == ["1.1", "1.2"]
            b.released.set()
            await until(lambda: usable(engines) == [True, True])
            assert b.version == "1.2"
            await transfer.push(Learner(), "1.3")
            assert names(tmp_path) == ["1.3"]


async def test_where_a_broadcast_fails_the_engines_read_files_and_the_reason_is_told(
    tmp_path: Path,
) -> None:
    with EngineServer() as engine:
        async with started(engine) as engines:
            transfer = BroadcastTransfer(
                engines, tmp_path, device=torch.device("cpu"), seconds=1, bucket_bytes=64
            )
            pushed = await transfer.push(Learner(5), "1.1")
            assert "/server_info: HTTP 404" in pushed.fallback
            assert pushed.loaded.good == (engine.url,)
            assert {v for c in await drawn(engines) for v in c.versions} == {"1.1"}
    assert load_file(tmp_path / "1.1/model.safetensors")["w"].tolist() == [5] * 4


async def test_an_engine_that_joins_later_gets_broadcast_weights_from_files(
    tmp_path: Path,
) -> None:
    with EngineServer() as a, EngineServer() as b:
        b.down()
        async with started(a, b) as engines:
            transfer = BroadcastTransfer(
                engines, tmp_path, device=torch.device("cpu"), seconds=1, bucket_bytes=64
            )
            await transfer.push(Learner(), "1.1")
            b.up()
            await until(lambda: usable(engines) == [True, True])
            assert (b.version, b.path) == ("1.1", str(tmp_path / "1.1"))


def test_a_write_that_the_system_cuts_off_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """With a real limit of the system, since safetensors has errors of its own."""
    script = f"""
        import resource, signal
        from pathlib import Path
        import numpy
        from safetensors.numpy import save_file
        from assay_trainer.weights import WeightsError, publish
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        def write(folder):
            save_file({{"w": numpy.zeros(1 << 20)}}, folder / "model.safetensors")
        try:
            publish(write, Path({str(tmp_path)!r}), "1.1")
        except WeightsError as reason:
            print(reason)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "could not be written" in done.stdout and "File too large" in done.stdout
    assert names(tmp_path) == []


def test_buckets_hold_every_tensor_once_each_where_its_type_may_begin() -> None:
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "odd": ((3,), torch.bfloat16),
        "scalar": ((), torch.float32),
        "large": ((40, 40), torch.float32),
        "flags": ((5,), torch.uint8),
        "wide": ((7,), torch.float64),
    }
    weights = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    found = list(parts(weights, 100))
    assert sorted(name for names in found for name in names) == sorted(weights)
    assert ["large"] in found
    for names in found:
        bucket = packed(weights, names, torch.device("cpu"))
        at = 0
        for name, dtype, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True):
            tensor = weights[name]
            assert (getattr(torch, dtype), shape) == (tensor.dtype, list(tensor.shape))
            assert at % tensor.element_size() == 0
            size = tensor.numel() * tensor.element_size()
            again = bucket.flat[at : at + size].view(tensor.dtype).reshape(shape)
            assert torch.equal(again, tensor)
            at += size
        assert at == bucket.flat.numel()
