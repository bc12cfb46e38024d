"""What the learner benchmark's arms share: the model's shape, the recorded batch, the optimiser.

No torch here: the process that drives the arms draws the same batch as they do, from its seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CLIP = (0.2, 0.28)
PEAK = 989.4e12
"""bf16 operations a second that an H100 or H200 (SXM) is sold with, without sparsity."""

QWEN3_06B: Mapping[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
TINY: Mapping[str, Any] = {
    **QWEN3_06B,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    # Wide enough that log-probs differ from token to token.
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Optimiser:
    """AdamW as every arm runs it: weights, moments and gradients in fp32."""

    rate: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = 0.0
    clip: float = 1.0


OPTIMISER = Optimiser()


@dataclass(frozen=True)
class Setting:
    """What a batch looks like.

    Attributes:
        name: in the tables.
        groups: prompts.
        size: completions of each.
        prompt: shortest and longest prompt; drawn evenly.
        completion: shortest and longest completion; log-normal around `median`, cut at the longest.
        median: of the completions. None: all are of the longest.
        shared: whether the completions of a group have one prompt; else each has its own.
        per_pass: sequences that TRL puts through the model together; ours takes as many tokens as
            those have with their padding.
        seed: the same one gives the same batch.
    """

    name: str
    groups: int
    size: int
    prompt: tuple[int, int]
    completion: tuple[int, int]
    median: int | None = None
    shared: bool = True
    per_pass: int = 8
    seed: int = 7

    @property
    def sequences(self) -> int:
        return self.groups * self.size

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Setting:
        """The setting that `as_json` wrote."""
        pairs = {key: tuple(data[key]) for key in ("prompt", "completion")}
        return cls(**{**data, **pairs})


@dataclass(frozen=True)
class Recorded:
    """A batch as it was recorded: one entry a sequence in each field.

    Attributes:
        prompts: token ids.
        completions: token ids.
        old: the log-probs of each completion's tokens before the update.
        advantages: one number a sequence.
        group: the prompt that it was drawn for.
    """

    prompts: tuple[Sequence[int], ...]
    completions: tuple[Sequence[int], ...]
    old: tuple[Sequence[float], ...]
    advantages: tuple[float, ...]
    group: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Without padding."""
        return sum(len(p) + len(c) for p, c in zip(self.prompts, self.completions, strict=True))

    @property
    def slots(self) -> int:
        """With the padding to the longest prompt and the longest completion."""
        longest = max(map(len, self.prompts)) + max(map(len, self.completions))
        return longest * len(self.prompts)


def record(setting: Setting, shape: Mapping[str, Any]) -> Recorded:
    """Draws a batch: ids evenly from the vocabulary, without the first two (padding, end of text).

    The old log-probs are around what an untrained model gives, so that both bounds act on some
    tokens and neither on most.

    Args:
        setting: its lengths.
        shape: the model's.
    """
    mean = typical(shape)
    source = random.Random(setting.seed)
    prompts: list[Sequence[int]] = []
    completions: list[Sequence[int]] = []
    old: list[Sequence[float]] = []
    advantages: list[float] = []
    ids = range(2, shape["vocab_size"])
    for group in range(setting.groups):
        # The longest prompt and completion are there in any case: padding must not be left to luck.
        length = setting.prompt[1] if group == 0 else source.randint(*setting.prompt)
        prompt = source.choices(ids, k=length)
        for number in range(setting.size):
            long = setting.median is None or (group == 0 and number == 0)
            many = setting.completion[1] if long else _length(source, setting)
            prompts.append(prompt if setting.shared else source.choices(ids, k=length))
            completions.append(source.choices(ids, k=many))
            old.append([mean + source.gauss(0, 0.2) for _ in range(many)])
        advantages += _standard([source.random() for _ in range(setting.size)])
    members = tuple(g for g in range(setting.groups) for _ in range(setting.size))
    columns = (tuple(prompts), tuple(completions), tuple(old), tuple(advantages))
    return Recorded(*columns, group=members)


def _length(source: random.Random, setting: Setting) -> int:
    shortest, longest = setting.completion
    drawn = round((setting.median or longest) * source.lognormvariate(0, 0.8))
    return min(longest, max(shortest, drawn))


def _standard(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / deviation, as GRPO has it; 1 for a single one, which has nothing beside it."""
    if len(rewards) < 2:
        return [1.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    return [(r - mean) / deviation for r in rewards]


def operations(batch: Recorded, shape: Mapping[str, Any], shared: bool) -> float:
    """What an update of the batch must calculate, in floating-point operations.

    Forward and twice as much backward, without recomputation and without padding: 6 a weight and
    token in the layers; 6 a weight of the head and completion token; causal attention
    6 * layers * heads * head_dim * length^2 a sequence (half of the square, two products, three
    times).

    Args:
        batch: its lengths.
        shape: the model's.
        shared: whether a prompt that several completions have is calculated once.
    """
    hidden, heads, size = (shape[k] for k in ("hidden_size", "num_attention_heads", "head_dim"))
    layers, inner = shape["num_hidden_layers"], shape["intermediate_size"]
    weights = layers * (
        hidden * size * 2 * (heads + shape["num_key_value_heads"]) + 3 * hidden * inner
    )
    tokens, squares = 0, 0
    known: set[tuple[int, ...]] = set()
    for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
        length, key = len(prompt) + len(completion), tuple(prompt)
        again = len(prompt) if shared and key in known else 0
        known.add(key)
        tokens += length - again
        squares += length**2 - again**2
    head = sum(map(len, batch.completions)) * hidden * shape["vocab_size"]
    return 6.0 * (weights * tokens + head + layers * heads * size * squares)


def typical(shape: Mapping[str, Any]) -> float:
    """The mean log-prob that a model of the shape gives to any token before it was trained.

    Its hidden states have mean square 1, so its logits are normal with this deviation.
    """
    deviation: float = shape["initializer_range"] * math.sqrt(shape["hidden_size"])
    return -math.log(shape["vocab_size"]) - deviation**2 / 2
