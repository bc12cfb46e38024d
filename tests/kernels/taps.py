"""What the trainer's operations give of some tokens, beside what `served.Served` gives of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from assay_trainer import exact
from assay_trainer.model import Policy
from tests.kernels.served import Taps


@contextmanager
def tapped(policy: Policy, count: int, taps: Taps) -> Iterator[None]:
    """Takes what the trainer's operations give of the first tokens of a pass, under the names that
    `Served` has for them.

    Args:
        policy: as `trainers` makes it.
        count: how many tokens.
        taps: takes it.
    """

    def tap(name: str, value: Tensor) -> None:
        rows = value.detach().reshape(-1, *value.shape[2:]) if value.shape[0] == 1 else value
        taps.setdefault(name, []).append(rows[:count].clone())

    def after(name: str) -> Any:
        return lambda module, arguments, output: tap(name, output)

    def before(name: str) -> Any:
        return lambda module, arguments: tap(name, arguments[0])

    # As a module's attribute, which the trainer looks up at each call.
    module: Any = exact
    heads, layer = module.qk_norm_rope, itertools.count()

    def watched(*arguments: Any) -> Any:
        number, found = next(layer), heads(*arguments)
        for name, value in zip("qk", found, strict=True):
            tap(f"{number:02} {name}", value[None])
        return found

    handles = []
    for i, one in enumerate(policy.layers()):
        parts: dict[str, Any] = {
            "input_layernorm": one.input_layernorm,
            "v": one.self_attn.v_proj,
            "o_proj": one.self_attn.o_proj,
            "post_attention_layernorm": one.post_attention_layernorm,
            "mlp": one.mlp,
        }
        handles += [m.register_forward_hook(after(f"{i:02} {n}")) for n, m in parts.items()]
        handles.append(one.self_attn.o_proj.register_forward_pre_hook(before(f"{i:02} attention")))
    handles.append(policy.model.base_model.norm.register_forward_hook(after("norm")))
    module.qk_norm_rope = watched
    try:
        yield
    finally:
        module.qk_norm_rope = heads
        for handle in handles:
            handle.remove()


def first_difference(one: Taps, other: Taps, prompt: int) -> str:
    """The first operation that gives other bits, in words.

    Args:
        one: of the engine, whose order counts.
        other: of the trainer.
        prompt: how many tokens the prompt has.
    """
    for name, parts in one.items():
        mine, theirs = torch.cat(other[name]), torch.cat(parts)
        wrong = (mine != theirs).flatten(1).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            return (
                f"{name}: {int(wrong.sum())} of {len(wrong)} tokens, the first at position {row} "
                f"({'decoded' if row >= prompt else 'prompt'}), by "
                f"{float((mine.float() - theirs.float()).abs().max()):.3g} at most"
            )
    return "none"
