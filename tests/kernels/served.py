"""A Qwen3 as an engine in deterministic mode runs it: paged keys, prefills, decodes of any batch.

The operations, and how they are called, are those of SGLang 0.5.17 with its FlashAttention 3 backend
and our plugin, so that what differs from the trainer's forward pass can be found without a server,
layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay_kernels.matmul.op import matmul
from assay_kernels.qk_norm_rope.op import qk_norm_rope
from assay_kernels.rms_norm.op import add_rms_norm, rms_norm
from assay_kernels.sampler.op import sample
from assay_kernels.silu_mul.op import silu_mul

Taps = dict[str, list[Tensor]]
"""By operation, in the order in which they run: [tokens, ...] of each step."""


@dataclass
class Sequence_:
    """One request.

    Attributes:
        prompt: token ids.
        most: how many tokens are drawn.
        slots: [prompt + most] int32, where its keys lie.
        tokens: what was drawn so far.
        log_probs: of those.
    """

    prompt: list[int]
    most: int
    slots: Tensor
    tokens: list[int]
    log_probs: list[float]


class Served:
    """The model and its cache.

    Args:
        model: transformers' Qwen3 in bf16 on a GPU; its weights are copied.
        table: [P, D] cosines and sines.
        slots: tokens that the cache holds.
    """

    def __init__(self, model: Any, table: Tensor, slots: int) -> None:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache  # noqa: PLC0415 (needs a GPU)

        self._attend = flash_attn_with_kvcache
        self._config, self._table = model.config, table
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self._embeddings = state["model.embed_tokens.weight"]
        self._head = state.get("lm_head.weight", self._embeddings)
        self._norm = state["model.norm.weight"]
        self._layers = [
            _layer({k.removeprefix(f"model.layers.{i}."): v for k, v in state.items()})
            for i in range(model.config.num_hidden_layers)
        ]
        shape = (slots, 1, model.config.num_key_value_heads, model.config.head_dim)
        self._cache = [
            tuple(torch.zeros(shape, dtype=torch.bfloat16, device=table.device) for _ in range(2))
            for _ in self._layers
        ]

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        pages: Tensor,
        lengths: Tensor,
        counts: Tensor,
        taps: Taps | None = None,
    ) -> Tensor:
        """[B, V] float32 of each sequence's last token; keys of all tokens are kept.

        Args:
            ids: [T] the tokens of B sequences.
            positions: [T].
            slots: [T] where their keys go.
            pages: [B, longest] int32, where each sequence's keys lie.
            lengths: [B] int32 keys of each, these tokens' among them.
            counts: [B] int32 tokens of each in `ids`.
            taps: takes what each operation gives.
        """
        begins = torch.cat((counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)))
        longest = int(counts.max())
        eps = self._config.rms_norm_eps
        heads, groups = self._config.num_attention_heads, self._config.num_key_value_heads
        width = self._config.head_dim

        def tap(name: str, value: Tensor) -> Tensor:
            if taps is not None:
                taps.setdefault(name, []).append(value.clone())
            return value

        hidden, residual = self._embeddings[ids], None
        for i, (layer, (keys, values)) in enumerate(zip(self._layers, self._cache, strict=True)):
            if residual is None:
                residual, hidden = hidden, rms_norm(hidden, layer["input_layernorm"], eps)
            else:
                hidden, residual = add_rms_norm(hidden, residual, layer["input_layernorm"], eps)
            tap(f"{i:02} input_layernorm", hidden)
            packed = matmul(hidden, layer["qkv"])
            q, k, v = packed.split((heads * width, groups * width, groups * width), -1)
            q, k = qk_norm_rope(
                q.view(-1, heads, width),
                k.view(-1, groups, width),
                layer["self_attn.q_norm"],
                layer["self_attn.k_norm"],
                self._table,
                positions,
                eps,
            )
            tap(f"{i:02} q", q)
            tap(f"{i:02} k", k)
            tap(f"{i:02} v", v.reshape(-1, groups, width))
            keys[slots, 0], values[slots, 0] = k, v.view(-1, groups, width)
            out = self._attend(
                q=q.contiguous(),
                k_cache=keys,
                v_cache=values,
                page_table=pages,
                cache_seqlens=lengths,
                cu_seqlens_q=begins,
                max_seqlen_q=longest,
                softmax_scale=width**-0.5,
                causal=True,
                num_splits=1,
            )
            tap(f"{i:02} attention", out)
            hidden = tap(f"{i:02} o_proj", matmul(out.flatten(1), layer["self_attn.o_proj"]))
            hidden, residual = add_rms_norm(
                hidden, residual, layer["post_attention_layernorm"], eps
            )
            tap(f"{i:02} post_attention_layernorm", hidden)
            hidden = silu_mul(matmul(hidden, layer["gate_up"]))
            hidden = tap(f"{i:02} mlp", matmul(hidden, layer["mlp.down_proj"]))
        hidden, _ = add_rms_norm(hidden, residual, self._norm, eps)
        tap("norm", hidden)
        return matmul(hidden[begins[1:].long() - 1], self._head).float()

    def run(
        self, sequences: Sequence[Sequence_], temperature: float, taps: Taps | None = None
    ) -> None:
        """Prefills the sequences together, then decodes until each has all its tokens; a batch
        shrinks when one of them ends."""
        device = self._table.device
        left, step = list(sequences), 0
        while left:
            fresh = step == 0
            ids = [s.prompt if fresh else s.tokens[-1:] for s in left]
            lengths = [len(s.prompt) + len(s.tokens) for s in left]
            places = [
                torch.arange(n - len(some), n) for n, some in zip(lengths, ids, strict=True)
            ]
            pages = torch.stack([_to(s.slots, max(lengths)) for s in left])
            slots = [s.slots[place] for s, place in zip(left, places, strict=True)]
            logits = self.logits(
                torch.tensor([i for some in ids for i in some], device=device),
                torch.cat(places).to(device),
                torch.cat(slots).long().to(device),
                pages.to(device),
                torch.tensor(lengths, dtype=torch.int32, device=device),
                torch.tensor([len(some) for some in ids], dtype=torch.int32, device=device),
                taps,
            )
            rows = len(left)
            drawn = sample(
                logits,
                torch.full((rows,), temperature, device=device),
                torch.tensor([hash(tuple(s.prompt)) for s in left], device=device),
                torch.tensor(lengths, device=device),
            )
            columns = zip(left, drawn.tokens.tolist(), drawn.log_probs.tolist(), strict=True)
            for one, token, log_prob in columns:
                one.tokens.append(token)
                one.log_probs.append(log_prob)
            left = [s for s in left if len(s.tokens) < s.most]
            step += 1


def _to(slots: Tensor, count: int) -> Tensor:
    """The first slots, filled up with the first one."""
    return torch.cat((slots, slots[:1].expand(max(0, count - len(slots)))))[:count]


def _layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's weights, with those side by side that SGLang keeps so."""
    found = {n.removesuffix(".weight"): w for n, w in state.items() if not n.startswith("model.")}
    found["qkv"] = torch.cat([found[f"self_attn.{part}_proj"] for part in "qkv"])
    found["gate_up"] = torch.cat([found[f"mlp.{part}_proj"] for part in ("gate", "up")])
    return found
