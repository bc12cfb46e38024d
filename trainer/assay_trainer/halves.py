"""bf16 passes over fp32 weights in one process, without copies of the weights that last.

Each layer casts its weights when it runs and again when it is recomputed; gradients come out of the
casts in fp32 and are added up there. It is what FSDP's mixed precision does, without what only
several processes need: its hooks take a quarter of a step's time where the model is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

HALF = torch.bfloat16


def cast(thing: Any) -> Any:
    """Float tensors, however nested, in bf16."""

    def one(leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(HALF) if floats else leaf

    return tree_map(one, thing)


class _Halved(nn.Module):  # type: ignore[misc]
    """A module's forward, with its weights and arguments in bf16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **named: Any) -> Any:
        # The class's, since the module's own is replaced by `run`.
        return type(self.module).forward(self.module, *arguments, **named)

    def run(self, *arguments: Any, **named: Any) -> Any:
        weights = {f"module.{name}": p.to(HALF) for name, p in self.module.named_parameters()}
        return functional_call(self, weights, cast(arguments), cast(named))


def run_in_half(module: nn.Module, wrap: Callable[[Any], Any] = lambda run: run) -> None:
    """Makes a module calculate in bf16; its parameters stay as they are.

    Args:
        module: whose parameters are its own alone.
        wrap: around what it runs: torch.compile, say.
    """
    module.forward = wrap(_Halved(module).run)
