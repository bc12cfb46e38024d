"""New weights to the engines by broadcast from the trainer: NCCL between GPUs, gloo between CPUs.

Trainer and engines form a process group in which the trainer is rank 0 and every rank of every
engine follows. It is formed anew when the set of usable engines changes. Whatever fails on the way
leaves engines with parts of two versions, so all of them then read the new one from files.

An engine runs on another GPU than the trainer: NCCL refuses two ranks on one.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch.distributed import PrefixStore, TCPStore

# Private, and the same that SGLang makes its side of the group with: the names of the store's keys
# come from it, so that both sides meet whatever torch's version makes of them.
from torch.distributed.distributed_c10d import _new_process_group_helper

from assay_trainer.engine import LOOK_SECONDS, Engine, EngineFailure
from assay_trainer.engines import Engines
from assay_trainer.settings import Rollout
from assay_trainer.versions import Weights
from assay_trainer.weights import (
    DiskTransfer,
    Pushed,
    Source,
    Transfer,
    WeightsError,
    load_from,
    publish,
    tidy,
)

T = TypeVar("T")
BUCKET_BYTES = 512 << 20
_FORMING = timedelta(seconds=60)
"""How long forming a group may take."""

_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class _Group:
    """Trainer and engines that can be broadcast to."""

    name: str
    members: tuple[Engine, ...]
    process_group: Any
    # The others keep asking it while the group lives.
    store: Any


@dataclass(frozen=True)
class Bucket:
    """Some tensors as one, which is faster than one by one.

    Attributes:
        flat: their bytes.
        names: of each.
        dtypes: of each, in torch's words.
        shapes: of each.
    """

    flat: torch.Tensor
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class BroadcastTransfer:
    """By broadcast; files only for engines that come back, and where a broadcast fails.

    Args:
        engines: who gets them.
        directory: where such files lie; the engines see it by the same path.
        device: where the trainer's tensors are broadcast from.
        seconds: for one step of it.
        bucket_bytes: what is in memory twice while it is sent.
    """

    def __init__(
        self,
        engines: Engines,
        directory: Path,
        *,
        device: torch.device,
        seconds: float,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._engines, self._directory = engines, directory.absolute()
        self._device, self._seconds, self._bucket_bytes = device, seconds, bucket_bytes
        self._group: _Group | None = None
        self._groups = 0
        self._fallback = ""

    async def push(self, source: Source, version: str) -> Pushed:
        """See Transfer."""
        began = time.monotonic()
        weights = dict(await asyncio.to_thread(source.weights))
        prepared = time.monotonic() - began
        writing = asyncio.Lock()

        async def place() -> Path:
            async with writing:
                folder = self._directory / version
                if not folder.exists():
                    try:
                        await asyncio.to_thread(self._write, weights, version)
                    except WeightsError as reason:
                        raise EngineFailure(str(reason)) from reason
                return folder

        async def update(members: Sequence[Engine]) -> Mapping[Engine, str]:
            if not members:
                return {}
            try:
                await self._broadcast(tuple(members), weights, version)
                return {}
            except (EngineFailure, RuntimeError, OSError) as reason:
                self._fallback = f"{type(reason).__name__}: {reason}"
            await self._give_up(members)
            try:
                folder = await place()
            except EngineFailure as reason:
                return dict.fromkeys(members, str(reason))
            return await load_from(folder, version)(members)

        self._fallback = ""
        loaded = await self._engines.renew(Weights(version, place), update)
        seconds = time.monotonic() - began
        return Pushed(version, seconds, prepared, loaded, self._fallback)

    async def close(self) -> None:
        """Dissolves the group."""
        if self._group:
            await self._give_up(self._group.members)

    def _write(self, weights: Mapping[str, torch.Tensor], version: str) -> None:
        def write(folder: Path) -> None:
            whole = {name: tensor.contiguous() for name, tensor in weights.items()}
            save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})

        publish(write, self._directory, version)
        tidy(self._directory, 1, self._engines.versions_in_use)

    async def _broadcast(
        self, members: tuple[Engine, ...], weights: Mapping[str, torch.Tensor], version: str
    ) -> None:
        group = self._group
        if group is None or group.members != members:
            if group:
                await self._give_up(group.members)
            group = await self._formed(members)
        await _all(engine.order("/begin_weight_update", {}) for engine in members)
        sizes = list(parts(weights, self._bucket_bytes))
        for number, names in enumerate(sizes, 1):
            last = number == len(sizes)
            bucket = await asyncio.to_thread(packed, weights, names, self._device)
            body = {
                "names": bucket.names,
                "dtypes": bucket.dtypes,
                "shapes": bucket.shapes,
                "group_name": group.name,
                "load_format": "flattened_bucket",
                "flush_cache": last,
                # Only now all of it is there.
                "weight_version": version if last else None,
            }
            received = asyncio.ensure_future(
                _all(engine.order("/update_weights_from_distributed", body) for engine in members)
            )
            try:
                # In a thread: the first one waits until all have joined.
                async with asyncio.timeout(self._seconds):
                    work = await asyncio.to_thread(group.process_group.broadcast, bucket.flat, 0)
                await self._finished(work, received)
                await received
            finally:
                received.cancel()
                await asyncio.gather(received, return_exceptions=True)
        await _all(engine.order("/end_weight_update", {}) for engine in members)

    async def _finished(self, work: Any, received: asyncio.Future[Any]) -> None:
        """Waits for a broadcast, but not for an engine that has failed meanwhile.

        NCCL itself would wait for a dead engine, and then end this process.
        """
        deadline = time.monotonic() + self._seconds
        while not work.is_completed():
            if received.done() and received.exception():
                return
            if time.monotonic() > deadline:
                raise EngineFailure(f"a broadcast took longer than {self._seconds:g} s")
            await asyncio.sleep(_POLL_SECONDS)
        # It is over; what it raises is how it went.
        work.wait()

    async def _formed(self, members: tuple[Engine, ...]) -> _Group:
        ranks = await _all(self._ranks(engine) for engine in members)
        world = 1 + sum(ranks)
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        self._groups += 1
        # No two groups of any run share a name: engines keep theirs when a trainer is killed.
        name = f"assay-{time.time_ns()}-{self._groups}"
        address = _address(members[0].host)
        store = TCPStore(address, 0, world, True, timeout=_FORMING, wait_for_workers=False)
        # NCCL ends a process that waits longer than its group may; `_finished` is before it.
        waiting = _FORMING if backend == "gloo" else timedelta(seconds=2 * self._seconds)
        joined = asyncio.ensure_future(
            _all(
                engine.order(
                    "/init_weights_update_group",
                    {
                        "master_address": address,
                        "master_port": store.port,
                        "rank_offset": 1 + sum(ranks[:number]),
                        "world_size": world,
                        "group_name": name,
                        "backend": backend,
                    },
                )
                for number, engine in enumerate(members)
            )
        )
        try:
            process_group, _ = await asyncio.to_thread(
                _new_process_group_helper,
                world,
                0,
                [],
                backend,
                PrefixStore(name, store),
                group_name=name,
                timeout=waiting,
            )
            await joined
        finally:
            joined.cancel()
            await asyncio.gather(joined, return_exceptions=True)
        self._group = _Group(name, members, process_group, store)
        return self._group

    async def _ranks(self, engine: Engine) -> int:
        """How many ranks of an engine join."""
        info = await engine.call("/server_info", seconds=LOOK_SECONDS)
        told = info if isinstance(info, dict) else {}
        if told.get("dp_size", 1) != 1 or told.get("pp_size", 1) != 1:
            raise EngineFailure(
                f"{engine.shown} has data or pipeline parallel ranks, which cannot be broadcast "
                "to: set rollout.weights.transfer to disk"
            )
        ranks = told.get("tp_size")
        if not isinstance(ranks, int) or ranks < 1:
            raise EngineFailure(f"{engine.shown} does not tell its tp_size at /server_info")
        return ranks

    async def _give_up(self, members: Sequence[Engine]) -> None:
        """Ends the group on both sides. Engines that do not answer are found out later."""
        group, self._group = self._group, None
        if group:
            with suppress(RuntimeError):
                await asyncio.to_thread(group.process_group.abort)

        async def forget(engine: Engine) -> None:
            with suppress(EngineFailure):
                await engine.call("/end_weight_update", {}, seconds=LOOK_SECONDS)
            if group:
                with suppress(EngineFailure):
                    await engine.call(
                        "/destroy_weights_update_group",
                        {"group_name": group.name},
                        seconds=LOOK_SECONDS,
                    )

        await asyncio.gather(*(forget(engine) for engine in members))


def transfer(
    settings: Rollout, engines: Engines, run_folder: Path, device: torch.device
) -> Transfer:
    """The way that a job names."""
    directory = settings.weights.directory or run_folder / "weights"
    if settings.weights.transfer == "disk":
        return DiskTransfer(engines, directory)
    return BroadcastTransfer(engines, directory, device=device, seconds=settings.requestSeconds)


def parts(weights: Mapping[str, torch.Tensor], most: int) -> Iterator[list[str]]:
    """Names in buckets of at most so many bytes; a larger tensor has one of its own."""
    # The widest types first: so each tensor begins where its type may begin.
    names = sorted(weights, key=lambda name: -weights[name].element_size())
    part: list[str] = []
    size = 0
    for name in names:
        bytes_ = weights[name].numel() * weights[name].element_size()
        if part and size + bytes_ > most:
            yield part
            part, size = [], 0
        part.append(name)
        size += bytes_
    if part:
        yield part


def packed(
    weights: Mapping[str, torch.Tensor], names: Sequence[str], device: torch.device
) -> Bucket:
    """Some tensors as one on a device."""
    tensors = [weights[name] for name in names]
    flat = torch.cat([t.contiguous().flatten().view(torch.uint8) for t in tensors])
    return Bucket(
        flat.to(device),
        list(names),
        [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
        [list(tensor.shape) for tensor in tensors],
    )


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """What all return; the first failure ends the waiting for the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _address(host: str) -> str:
    """This machine's address as that host sees it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        address: str = probe.getsockname()[0]
    return address
