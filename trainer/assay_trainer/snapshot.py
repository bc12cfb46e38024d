"""The learner's state as plain tensors: fp32 weights, AdamW's moments, random state, updates done.

    updates                  int64
    parameter/NAME           fp32, whole
    exp_avg/NAME             likewise, once there was an update
    exp_avg_sq/NAME
    random/cpu, random/cuda  torch's generators

The learning rate is a function of the number of updates, so that there is no scheduler to keep.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from assay_trainer.processes import World, put, whole

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by the names that torch gives them."""

Named = Mapping[str, torch.nn.Parameter]


class StateError(RuntimeError):
    """A state is not of this model."""


def taken(
    named: Named, optimizer: torch.optim.Optimizer, updates: int, world: World
) -> dict[str, Tensor]:
    """Copies on the CPU; all processes must ask, and process 0 gets them, the others nothing."""
    found = {"updates": torch.tensor(updates), "random/cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        found["random/cuda"] = torch.cuda.get_rng_state(world.device)
    for name, parameter in named.items():
        moments = optimizer.state.get(parameter) or {}
        kept = {"parameter": parameter} | {m: moments[m] for m in MOMENTS if m in moments}
        for kind, tensor in kept.items():
            full = whole(tensor)
            if not world.rank:
                found[f"{kind}/{name}"] = full.to("cpu", copy=True)
    return {} if world.rank else found


def restored(
    state: Mapping[str, Tensor] | None,
    named: Named,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> int:
    """Puts a state into weights, optimiser and generators; all processes must call.

    Args:
        state: what `taken` returned; None in processes other than 0.
        named: the parameters.
        optimizer: of them.
        world: where this process stands.

    Returns:
        The updates that were done.

    Raises:
        StateError: it is of another model.
    """
    if state is not None:
        _check(state, named)
    done = torch.zeros((), dtype=torch.int64) if state is None else state["updates"].clone()
    if world.size > 1:
        dist.broadcast(done, 0)
    updates = int(done)
    optimizer.state.clear()
    for name, parameter in named.items():
        put(parameter, state and state[f"parameter/{name}"])
        if updates:
            own = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            for moment, tensor in own.items():
                put(tensor, state and state[f"{moment}/{name}"])
            step = torch.tensor(float(updates), device=parameter.device)
            optimizer.state[parameter] = {"step": step, **own}
    if state is not None:
        torch.set_rng_state(state["random/cpu"])
        if "random/cuda" in state and world.device.type == "cuda":
            torch.cuda.set_rng_state(state["random/cuda"], world.device)
    return updates


def _check(state: Mapping[str, Tensor], named: Named) -> None:
    if "updates" not in state or "random/cpu" not in state:
        raise StateError("this is no state of a learner: it lacks updates or random/cpu")
    kinds = ("parameter", *(MOMENTS if int(state["updates"]) else ()))
    wanted = {f"{kind}/{name}": p.shape for kind in kinds for name, p in named.items()}
    wrong = [n for n, shape in wanted.items() if n not in state or state[n].shape != shape]
    if wrong:
        raise StateError(f"the state is of another model: {', '.join(wrong[:4])}")
