"""Tiny models and batches of judged samples for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from assay_trainer.batch import Batch, Completion, Sample
from assay_trainer.job import Job
from assay_trainer.model import Policy, random_policy
from tests.trainer.jobs import with_fields

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ARCHITECTURES = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def config(kind: str = "qwen3", **changes: Any) -> PretrainedConfig:
    """A model of 20,000 parameters with two query heads for each key head."""
    return ARCHITECTURES[kind](**{**SIZES, **changes})


def policy(kind: str = "qwen3", seed: int = 1, temperature: float = 1.0, **changes: Any) -> Policy:
    """One whose logits are far from uniform, so that a mistake shows."""
    made = random_policy(config(kind, **changes), temperature=temperature, chunk=7)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return made


def sequences(seed: int = 0, groups: int = 4, size: int = 3) -> list[tuple[list[int], list[int]]]:
    """Prompts of 1 to 20 tokens with `size` completions of 1 to 12 tokens each."""
    source = random.Random(seed)

    def draw(longest: int) -> list[int]:
        return [source.randrange(VOCABULARY) for _ in range(source.randint(1, longest))]

    return [(prompt, draw(12)) for _ in range(groups) for prompt in [draw(20)] for _ in range(size)]


def batch(
    seed: int = 0, groups: int = 4, size: int = 3, *, unjudged: int = 0, same: int = 0
) -> Batch:
    """Judged samples.

    Args:
        seed: of everything in it.
        groups: prompts.
        size: completions of each.
        unjudged: how many samples, from the second on, each third is not judged.
        same: how many groups, from the last back, have the same reward everywhere.
    """
    source = random.Random(seed + 1000)
    samples = []
    for i, (prompt, completion) in enumerate(sequences(seed, groups, size)):
        group = i // size
        judged = not (i % 3 == 1 and i // 3 < unjudged)
        drawn = Completion(
            ids=tuple(completion),
            log_probs=tuple(-source.uniform(0.1, 6) for _ in completion),
            versions=("1.0",) * len(completion),
            finish="stop",
        )
        samples.append(
            Sample(
                item=f"item-{group}",
                number=group,
                group=group,
                prompt=tuple(prompt),
                completion=drawn,
                reward=0.5 if group >= groups - same else source.random(),
                status="ok" if judged else "timeout",
                judged=judged,
            )
        )
    return Batch(step=1, samples=tuple(samples), position=groups)


def job(folder: Path | None = None, **changes: Any) -> Job:
    """A job for them: fp32, no activation checkpointing, gradients that are not clipped.

    Args:
        folder: with the model; none is needed where the policy is given.
        **changes: fields by their paths, with two underscores for each point.
    """
    fields: dict[str, Any] = {
        "model.path": str(folder or "model"),
        "data.maxPromptTokens": 24,
        "rollout.maxTokens": 12,
        "algorithm.groupSize": 3,
        "trainer.steps": 10,
        "trainer.promptsPerStep": 4,
        "trainer.learningRate": 1e-2,
        "trainer.gradientClip": 1e6,
        "trainer.precision": "fp32",
        "trainer.tokensPerMicroBatch": 4096,
        "trainer.activationCheckpointing": False,
        "trainer.logProbChunk": 7,
        "checkpoint.every": 10,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    return Job.model_validate(with_fields(fields))
