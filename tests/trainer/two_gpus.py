"""Learners of two processes on two GPUs beside one of a single process, on the same batches.

    torchrun --nproc-per-node 2 -m tests.trainer.two_gpus

Prints one JSON object and ends with 1 if they differ more than rounding explains. test_processes
does the same on CPUs, more closely; here it is about NCCL, the varlen kernel and compiled layers.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import torch

from assay_trainer.learner import Learner
from assay_trainer.processes import Group, World, follow, joined
from tests.trainer.models import batch, job, policy

WIDE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
CHANGES: dict[str, Any] = {
    "trainer__learningRate": 1e-4,
    "trainer__gradientClip": 1.0,
    "trainer__tokensPerMicroBatch": 500,
    "trainer__activationCheckpointing": True,
    "trainer__logProbChunk": 512,
    "algorithm__groupSize": 8,
}
STEPS = tuple(batch(seed=seed, groups=16, size=8) for seed in (1, 2, 3))
WATCHED = ("loss", "grad/norm", "entropy", "ratio/mean", "mismatch/mean")
CLOSE = {"fp32": 1e-4, "bf16": 5e-2}
"""The largest relative difference of a gradient's length. Two processes round their weights and
gradients where one does, but add up passes of other samples."""
LOSS = {"fp32": 1e-5, "bf16": 2e-2}
"""Of a loss, which is about 0 with advantages that are: not relative."""

Precision = Literal["fp32", "bf16"]


def learner(world: World, precision: Precision) -> Learner:
    """One with weights that are the same in all processes."""
    made = policy(**WIDE)
    made.chunk = CHANGES["trainer__logProbChunk"]
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    return Learner(job(**CHANGES, trainer__precision=precision), world, made)


def compared(world: World, precision: Precision) -> dict[str, Any] | None:
    """What both told of each step, and how far apart they ended; process 0 knows."""
    made = learner(world, precision)
    if world.rank:
        follow(world, made)
        return None
    group = Group(world, made)
    told = [group.learn(each) for each in STEPS]
    weights = group.weights()
    share = resting(made)
    group.close()
    alone = learner(World(device=world.device), precision)
    before = alone.weights()
    wanted = [alone.learn(each) for each in STEPS]
    ended = alone.weights()
    moved = sum(float((ended[n].float() - before[n].float()).square().sum()) for n in ended)
    apart = sum(float((ended[n].float() - weights[n].float()).square().sum()) for n in ended)
    return {
        "two": [{n: step[n] for n in WATCHED if n in step} for step in told],
        "one": [{n: step[n] for n in WATCHED if n in step} for step in wanted],
        "bytes of one's share / of all": share / resting(alone),
        "weights apart / moved": (apart / moved) ** 0.5 if moved else float("nan"),
    }


def resting(made: Learner) -> int:
    """Bytes of fp32 weights and AdamW's moments that this process keeps between steps."""
    tensors = [*made.policy.parameters()]
    for state in made._optimizer.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    local = (t.to_local() if hasattr(t, "to_local") else t for t in tensors)
    return sum(t.numel() * t.element_size() for t in local)


def agree(found: dict[str, Any], precision: Precision) -> bool:
    """Whether losses and gradients of all steps are the same but for rounding."""
    pairs = list(zip(found["two"], found["one"], strict=True))
    return all(
        abs(two["loss"] - one["loss"]) <= LOSS[precision]
        and abs(two["grad/norm"] / one["grad/norm"] - 1) <= CLOSE[precision]
        for two, one in pairs
    )


def main() -> int:
    found: dict[str, Any] = {}
    with joined() as world:
        for precision in CLOSE:
            result = compared(world, precision)
            if result is not None:
                found[precision] = result | {"agree": agree(result, precision)}
    if found:
        print(json.dumps({"device": str(world.device), "torch": torch.__version__, **found}))
    return 0 if all(each["agree"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
