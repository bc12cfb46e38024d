"""What test_processes runs in an interpreter of its own: learners of two processes.

Forked, so that torch is imported once; for that nobody may have used autograd before.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import multiprocessing

from assay_trainer.batch import Batch
from assay_trainer.learner import Learner, LearnerError
from assay_trainer.processes import Group, ProcessError, World, follow, joined
from tests.trainer.models import batch, job, policy

CHANGES = {
    "trainer__learningRate": 1e-3,
    "trainer__tokensPerMicroBatch": 40,
    "trainer__updatesPerStep": 2,
    "trainer__gradientClip": 0.5,
    "algorithm__kl__coef": 0.01,
}
BATCHES = (batch(seed=1, unjudged=2, same=1), batch(seed=2), batch(seed=3, groups=2, size=1))


def learner(world: World, precision: str = "fp32", activations: bool = False) -> Learner:
    """A learner of all processes."""
    made = job(
        **CHANGES, trainer__precision=precision, trainer__activationCheckpointing=activations
    )
    return Learner(made, world, policy(), policy(seed=5))


def same_as_one(world: World, folder: Path) -> None:
    """Trains, and leaves what two processes made and what one makes."""
    for precision in ("fp32", "bf16"):
        made = learner(world, precision, activations=precision == "bf16")
        if world.rank:
            follow(world, made)
            continue
        group = Group(world, made)
        told = [group.learn(each) for each in BATCHES[:2]]
        state, weights = group.state(), group.weights()
        told.append(group.learn(BATCHES[2]))
        ended = group.state()
        group.load_state(state)
        group.learn(BATCHES[2])
        resumed = group.state()
        group.close()
        alone = learner(World(), precision)
        wanted = [alone.learn(each) for each in BATCHES[:2]]
        moved = policy().model.state_dict()
        torch.save(
            {
                "weights": weights,
                "alone": alone.weights(),
                "before": {name: moved[name] for name in weights},
                "state": state,
                "alone state": alone.state(),
                "ended": ended,
                "resumed": resumed,
                "told": told,
                "wanted": wanted,
            },
            folder / f"{precision}.pt",
        )


def one_fails(world: World, folder: Path) -> None:
    """The second process fails in the middle of a step."""
    made = learner(world)

    def broken(_: Batch) -> dict[str, float]:
        raise OSError("the GPU fell off the bus")

    if world.rank:
        made.learn = broken  # type: ignore[method-assign]
        try:
            follow(world, made)
        except OSError:
            return
    try:
        Group(world, made).learn(BATCHES[0])
    except ProcessError as reason:
        (folder / "reason").write_text(str(reason))


def all_fail(world: World, folder: Path) -> None:
    """All processes find the same number that is none."""
    made = learner(world)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.mul_(float("nan"))
    try:
        if world.rank:
            follow(world, made)
        else:
            Group(world, made).learn(BATCHES[0])
    except LearnerError as reason:
        (folder / f"reason{world.rank}").write_text(str(reason))


def _process(rank: int, port: int, part: Callable[[World, Path], None], folder: Path) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    with joined("cpu") as world:
        part(world, folder)


def main() -> None:
    """Runs each part in two processes; folders by their names."""
    for part in (same_as_one, one_fails, all_fail):
        folder = Path(sys.argv[1]) / part.__name__
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        multiprocessing.start_processes(_process, (port, part, folder), 2, start_method="fork")
    print(json.dumps("done"))


if __name__ == "__main__":
    main()
