#!/usr/bin/env python3
"""Make the small real task that `make train-demo` trains on: a tiny model, and items to sort.

    python make_task.py --out FOLDER [--seed 1] [--family qwen3]

    sort 41 7 30 12 49 8        7 8 12 30 41 49

FOLDER gets `model`, a Hugging Face folder that SGLang serves, and two suites, `train.jsonl` and
`heldout.jsonl`. No held-out question has the numbers of one that is trained on, in any order. The
model has 0.4 million parameters and a word-level tokenizer of its own; a short supervised warm-up
ends as soon as one in sixteen of its answers, sampled, would be right: enough for groups of sixteen
to tell good from bad, and far from done. The rest is for reinforcement learning.

The same seed gives the same task. It runs in the engine environment (torch and transformers, one
thread), writes beside the target and renames, and does nothing if the target is there already.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny-model"))
import torch
from make_model import ASSISTANT, END, PAD, SPECIAL, TEMPLATE, USER, Identity, is_there, put
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

RECIPE = 1  # raise it when the same seed would give another task
FAMILIES = {"qwen3": Qwen3Config, "llama": LlamaConfig}
UNKNOWN = "<|unknown|>"
NUMBERS = [str(number) for number in range(50)]
LENGTH = 6
TRAINED, HELD_OUT = 8192, 200
VERIFIER = {"type": "regex", "mode": "full", "pattern": "([0-9 ]+)", "group": 1}
START = 1 / 16
RATE = 2e-3
BATCH = 128
MOST_STEPS = 600

Question = tuple[str, ...]
"""Different numbers, in the order in which they are given."""


def prompt(question: Question) -> str:
    """What the user says."""
    return f"sort {' '.join(question)}"


def answer(question: Question) -> str:
    """The one right answer."""
    return " ".join(sorted(question, key=int))


def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """Those that are trained on, and those held out: disjoint by their answers."""
    drawn = random.Random(seed)
    held_out: dict[str, Question] = {}
    while len(held_out) < HELD_OUT:
        question = tuple(drawn.sample(NUMBERS, LENGTH))
        held_out.setdefault(answer(question), question)
    trained: dict[Question, None] = {}
    while len(trained) < TRAINED:
        question = tuple(drawn.sample(NUMBERS, LENGTH))
        if answer(question) not in held_out:
            trained[question] = None
    return list(trained), list(held_out.values())


def write_suite(path: Path, found: list[Question]) -> None:
    """A suite of assay_verifiers: the header names the judge of all items."""
    lines: list[dict[str, Any]] = [{"suite": f"sorting-{path.stem}", "verifier": VERIFIER}]
    lines += [
        {"id": "-".join(one), "prompt": prompt(one), "reference": {"value": answer(one)}}
        for one in found
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word that there is."""
    words = [*SPECIAL, UNKNOWN, "sort", *NUMBERS]
    known = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        chat_template=TEMPLATE,
    )


def make_model(family: str, seed: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model with random weights. Another architecture is another line in FAMILIES."""
    torch.manual_seed(seed)
    config = FAMILIES[family](
        vocab_size=64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def batches(
    seed: int, known: list[Question], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, int]]:
    """Endless batches of conversations, all of one length, and how long their answers are."""
    shuffled = random.Random(seed)
    while True:
        texts = [
            (f"{USER}{prompt(one)}{END}{ASSISTANT}", f"{answer(one)}{END}")
            for one in shuffled.sample(known, BATCH)
        ]
        rows = [tokenizer.encode(asked) + tokenizer.encode(reply) for asked, reply in texts]
        yield torch.tensor(rows), len(tokenizer.encode(texts[0][1]))


def warm_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, known: list[Question]
) -> None:
    """Supervised steps until a sampled answer to a new question is right with probability START.

    Measured and not counted in steps, so that every seed and family starts from the same place.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    endless = batches(seed, known, tokenizer)
    for step in range(MOST_STEPS):
        ids, length = next(endless)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20)
        logits = model(input_ids=ids).logits[:, -length - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, ids[:, -length:, None])[..., 0]
        # There is one right answer, so its probability is what sampling would find.
        right = log_probs.sum(-1).exp().mean().item()
        if step % 20 == 0 or right >= START:
            print(f"warm-up step {step}: right with probability {right:.3f}", flush=True)
        if right >= START:
            return
        (-log_probs.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    sys.exit(f"after {MOST_STEPS} steps the model is still right with probability {right:.3f} only")


def make(folder: Path, family: str, seed: int) -> None:
    """Make the task."""
    trained, held_out = questions(seed)
    write_suite(folder / "train.jsonl", trained)
    write_suite(folder / "heldout.jsonl", held_out)
    tokenizer = make_tokenizer()
    model = make_model(family, seed, tokenizer)
    warm_up(model, tokenizer, seed, trained)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a tiny model and numbers for it to sort.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--seed", type=int, default=1, help="of weights, warm-up and items")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3", help="of the model")
    arguments = parser.parse_args()
    what: Identity = {"recipe": RECIPE, "seed": arguments.seed, "family": arguments.family}
    if is_there(arguments.out, what):
        print(f"{arguments.out} is there already")
        return
    torch.set_num_threads(1)
    put(arguments.out, what, lambda folder: make(folder, arguments.family, arguments.seed))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
