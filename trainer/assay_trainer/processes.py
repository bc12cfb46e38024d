"""The processes of a run: one that drives and others that follow, as torchrun starts them.

Process 0 does everything that is not the learner. What it asks of the learner, all processes do at
the same time: `Group` tells them, and they sit in `follow`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from assay_trainer.batch import Batch
    from assay_trainer.learner import Learner
    from assay_trainer.model import Policy

PATIENCE = timedelta(days=1)
"""How long one process waits for another: as long as a batch may take to be drawn. One that died is
noticed at once, one that hangs by who watches the run's progress."""
FAILED = "assay/failed"

T = TypeVar("T")


class ProcessError(RuntimeError):
    """Another process of the run ended; the message says why, if it could."""


@dataclass(frozen=True)
class World:
    """Where this process stands.

    Attributes:
        rank: 0 is the one that drives.
        size: how many processes there are.
        device: what this one computes on.
        store: what all processes can read and write; None where there is only one.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store | None = None


@contextmanager
def joined(device: Literal["cpu", "cuda"] | None = None) -> Iterator[World]:
    """The process group that torchrun's variables describe; without them, this process alone.

    Args:
        device: what to compute on; None: a GPU where there is one.

    Yields:
        Where this process stands.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device("cpu")
    backend = "gloo"
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl" if size > 1 else "nccl"
    store: dist.Store
    if size > 1:
        store, rank, size = next(iter(dist.rendezvous("env://", rank, size, timeout=PATIENCE)))
    else:
        store = dist.HashStore()
    own = dist.PrefixStore("assay", store)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
        device_id=place if kind == "cuda" else None,
    )
    try:
        yield World(rank, size, place, own if size > 1 else None)
    finally:
        dist.destroy_process_group()


def shard(policy: Policy, world: World, precision: Literal["bf16", "fp32"]) -> None:
    """FSDP2 (arXiv:2304.11277): each process keeps its share of every parameter, in fp32.

    A layer's weights are gathered, in the precision of the passes, when they are needed; gradients
    are added up in fp32.
    """
    mixed = MixedPrecisionPolicy()
    if precision == "bf16":
        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in policy.layers():
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    fully_shard(policy, mesh=mesh, mp_policy=mixed)


def whole(tensor: Tensor) -> Tensor:
    """A parameter, gradient or norm with all its shares; all processes must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(tensor: Tensor, value: Tensor | None) -> None:
    """Sets a parameter or an optimiser's tensor to process 0's value, each process its share.

    Args:
        tensor: what is set.
        value: of the whole; only process 0's counts.
    """
    with torch.no_grad():
        if not isinstance(tensor, DTensor):
            assert value is not None
            tensor.copy_(value)
            return
        # All processes need a tensor of that shape, but only process 0's content is sent.
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        if value is not None:
            full.copy_(value)
        tensor.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements))


def add_up(sums: Tensor, largest: Tensor, world: World) -> None:
    """Sums and maxima over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(sums, dist.ReduceOp.SUM)
        dist.all_reduce(largest, dist.ReduceOp.MAX)


class Group:
    """The learner of all processes, for process 0.

    Its methods are the learner's. An error of another process ends the call here too, with what
    that process said.
    """

    def __init__(self, world: World, learner: Learner) -> None:
        self._world = world
        self._learner = learner

    def learn(self, batch: Batch) -> dict[str, float]:
        """See `Learner.learn`."""
        return self._together("learn", self._learner.learn, batch)

    def weights(self) -> dict[str, Tensor]:
        """See `Learner.weights`."""
        return self._together("weights", self._learner.weights)

    def write(self, folder: Path) -> None:
        """See `Learner.write`."""
        self._together("write", self._learner.write, folder)

    def state(self) -> dict[str, Tensor]:
        """See `Learner.state`."""
        return self._together("state", self._learner.state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See `Learner.load_state`."""
        # The others get their shares of the tensors and need no state of their own.
        _say(self._world, ("load_state", (None,)))
        _failing_together(self._world, lambda: self._learner.load_state(state))

    def close(self) -> None:
        """Lets the other processes end; one that has failed needs no word."""
        # What broke the connection is being told already, and must not be hidden by this.
        with suppress(RuntimeError):
            _say(self._world, None)

    def _together(self, name: str, function: Callable[..., T], *arguments: Any) -> T:
        _say(self._world, (name, arguments))
        return _failing_together(self._world, lambda: function(*arguments))


def follow(world: World, learner: Learner) -> None:
    """What a process other than 0 does: what process 0 does with the learner, until it closes.

    Raises:
        ProcessError: another process ended.
    """
    while True:
        command = _failing_together(world, lambda: _heard(world))
        if command is None:
            return
        name, arguments = command
        _failing_together(world, lambda: getattr(learner, name)(*arguments))  # noqa: B023


def agreed(world: World, value: T) -> T:
    """Process 0's value, in all processes."""
    box: list[Any] = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    agreement: T = box[0]
    return agreement


def _say(world: World, command: tuple[str, tuple[Any, ...]] | None) -> None:
    if world.size > 1:
        dist.broadcast_object_list([command], src=0, device=torch.device("cpu"))


def _heard(world: World) -> tuple[str, tuple[Any, ...]] | None:
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    command: tuple[str, tuple[Any, ...]] | None = box[0]
    return command


def _failing_together(world: World, function: Callable[[], T]) -> T:
    """Runs it; a failure is told to the others, whose connections will break next.

    Raises:
        ProcessError: another process failed first.
    """
    try:
        return function()
    except Exception as reason:
        if world.store is None:
            raise
        # What torch says when a connection breaks; errors of our own are of classes of their own.
        broken = type(reason) is RuntimeError or isinstance(reason, dist.DistError)
        if broken and world.store.check([FAILED]):
            raise ProcessError(world.store.get(FAILED).decode()) from reason
        world.store.set(FAILED, f"process {world.rank} of {world.size}: {reason}")
        raise
