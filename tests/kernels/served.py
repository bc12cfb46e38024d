"""A Qwen3 as an engine in deterministic mode runs it: paged keys, prefills, decodes of any batch.

The operations, and how they are called, are those of SGLang 0.5.17 with its FlashAttention 3
backend and our plugin, so that what differs from the trainer's forward pass can be found without a
server, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from assay_kernels.matmul.op import matmul
from assay_kernels.qk_norm_rope.op import qk_norm_rope
from assay_kernels.rms_norm.op import add_rms_norm, rms_norm
from assay_kernels.sampler.op import sample
from assay_kernels.silu_mul.op import silu_mul

Taps = dict[str, list[Tensor]]
"""What operations gave of one sequence's tokens, [tokens, ...] of each step, by operation in the
order in which they run."""


@dataclass
class Request:
    """A prompt and what was drawn of it so far.

    Attributes:
        prompt: token ids.
        most: how many tokens are drawn.
        seed: of the draw.
        slots: [prompt + most] int64, where its keys lie.
        tokens: what was drawn.
        log_probs: of those.
    """

    prompt: Sequence[int]
    most: int
    seed: int
    slots: Tensor
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class Served:
    """The model and its cache.

    Args:
        config: transformers', of a Qwen3.
        state: its weights in bf16 on a GPU, under transformers' names.
        table: [P, D] cosines and sines.
        slots: tokens that the cache holds.
    """

    def __init__(self, config: Any, state: Mapping[str, Tensor], table: Tensor, slots: int) -> None:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache  # noqa: PLC0415 (needs a GPU)

        self._attend = flash_attn_with_kvcache
        self._config, self._table, self._slots = config, table, slots
        self._embeddings = state["model.embed_tokens.weight"]
        self._head = state.get("lm_head.weight", self._embeddings)
        self._norm = state["model.norm.weight"]
        self._layers = [
            _layer({k.removeprefix(f"model.layers.{i}."): v for k, v in state.items()})
            for i in range(config.num_hidden_layers)
        ]
        shape = (slots, 1, config.num_key_value_heads, config.head_dim)
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
            taps: takes what each operation gives of the first sequence.
        """
        begins = torch.cat((counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)))
        longest = int(counts.max())
        eps = self._config.rms_norm_eps
        heads, groups = self._config.num_attention_heads, self._config.num_key_value_heads
        width = self._config.head_dim

        def tap(name: str, value: Tensor) -> Tensor:
            if taps is not None:
                taps.setdefault(name, []).append(value[: int(counts[0])].clone())
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
            tap(f"{i:02} v", v)
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
            tap(f"{i:02} attention", out.flatten(1))
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

    def placed(self, asked: Sequence[tuple[Sequence[int], int]], seed: int) -> list[Request]:
        """Requests for prompts and numbers of tokens, with keys anywhere in the cache.

        Raises:
            ValueError: the cache is too small for all of them.
        """
        source = torch.Generator().manual_seed(seed)
        counts = [len(prompt) + most for prompt, most in asked]
        if sum(counts) > self._slots:
            raise ValueError(f"{sum(counts)} tokens are asked for, but {self._slots} fit")
        places = torch.randperm(self._slots, generator=source)[: sum(counts)].split(counts)
        return [
            Request(prompt, most, 1000 * seed + number, slots)
            for number, ((prompt, most), slots) in enumerate(zip(asked, places, strict=True))
        ]

    def run(
        self, requests: Sequence[Request], temperature: float, taps: Taps | None = None
    ) -> None:
        """Prefills the requests together, then decodes until each has all its tokens; the batch
        shrinks when one of them ends.

        Args:
            requests: all of them new.
            temperature: of the draw.
            taps: takes what each operation gives of the first request.
        """
        left = list(requests)
        while left:
            ids = [r.tokens[-1:] or r.prompt for r in left]
            counts = [len(some) for some in ids]
            lengths = [len(r.prompt) + len(r.tokens) for r in left]
            slots = [r.slots[n - c : n] for r, n, c in zip(left, lengths, counts, strict=True)]
            pages = pad_sequence([r.slots[:n] for r, n in zip(left, lengths, strict=True)], True)
            places = [torch.arange(n - c, n) for n, c in zip(lengths, counts, strict=True)]
            logits = self.logits(
                self._on([i for some in ids for i in some]),
                torch.cat(places).to(self._table.device),
                torch.cat(slots).to(self._table.device),
                pages.to(self._table.device, torch.int32),
                self._on(lengths, torch.int32),
                self._on(counts, torch.int32),
                taps if left[0] is requests[0] else None,
            )
            drawn = sample(
                logits,
                self._on([temperature] * len(left), torch.float32),
                self._on([r.seed for r in left]),
                self._on(lengths),
            )
            columns = zip(left, drawn.tokens.tolist(), drawn.log_probs.tolist(), strict=True)
            for one, token, log_prob in columns:
                one.tokens.append(token)
                one.log_probs.append(log_prob)
            left = [r for r in left if len(r.tokens) < r.most]

    def _on(self, numbers: Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(numbers, dtype=dtype, device=self._table.device)


def _layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A layer's weights, with those side by side that SGLang keeps so."""
    found = {n.removesuffix(".weight"): w for n, w in state.items() if not n.startswith("model.")}
    found["qkv"] = torch.cat([found[f"self_attn.{part}_proj"] for part in "qkv"])
    found["gate_up"] = torch.cat([found[f"mlp.{part}_proj"] for part in ("gate", "up")])
    return found
