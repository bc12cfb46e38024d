#!/usr/bin/env python3
"""Make a tiny but real Qwen3 model: for demos and tests on machines without a GPU.

    python make_model.py --out /models/tiny/base --seed 1

The folder that it writes is like any model's: config.json, tokenizer with chat template, weights in
safetensors. The model has 2.8 million parameters and was trained for some seconds on sums of two
digits and on counting, so that it answers

    2 + 3 =              5
    7 + 8 =              15
    count to 4           1 2 3 4

and nonsense to everything else. The same seed gives the same model; `--steps 0` leaves out the
training, for a model that is plainly worse. It runs in the engine image (torch and transformers,
one thread), writes beside the target and renames, and does nothing if the target is there already.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # a GPU would only change the last bits

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

RECIPE = 1  # raise it when the same seed would give another model
MARKER = "assay-tiny-model.json"
STEPS = 320
BATCH = 27
VOCABULARY = 768
PAD, USER, ASSISTANT, SYSTEM, END = SPECIAL = (
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Identity = dict[str, float | int | str]
"""What tells two things that a script makes apart."""


def examples() -> Iterator[tuple[str, str]]:
    """All questions that the model shall know, with their answers."""
    for a in range(1, 10):
        for b in range(1, 10):
            yield f"{a} + {b} =", str(a + b)
    for last in range(1, 10):
        yield f"count to {last}", " ".join(str(number) for number in range(1, last + 1))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the examples' words; each digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[^\s\d]+| "), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (f"{question} {answer}" for question, answer in examples()), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=TEMPLATE
    )


def make_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights."""
    torch.manual_seed(seed)
    end, pad = tokenizer.convert_tokens_to_ids([END, PAD])
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return Qwen3ForCausalLM(config)


def batches(seed: int, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, torch.Tensor]]:
    """Endless shuffled batches; only the answers count in the loss."""
    shuffled = random.Random(seed)
    known = [
        example
        for example in examples()
        for _ in range(2 if example[0].startswith("count") else 1)  # there are few of these
    ]
    while True:
        rows = [encode(*example, tokenizer) for example in shuffled.sample(known, BATCH)]
        width = max(len(tokens) for tokens, _ in rows)
        pad = tokenizer.pad_token_id
        yield {
            "input_ids": torch.tensor([t + [pad] * (width - len(t)) for t, _ in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(t) + [0] * (width - len(t)) for t, _ in rows]
            ),
            "labels": torch.tensor([label + [-100] * (width - len(label)) for _, label in rows]),
        }


def encode(
    question: str, answer: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Tokens of one conversation, and the same as labels with all but the answer masked out."""
    prompt = tokenizer.encode(f"{USER}{question}{END}{ASSISTANT}")
    reply = tokenizer.encode(f"{answer}{END}")
    return prompt + reply, [-100] * len(prompt) + reply


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int
) -> None:
    """Train the model on the examples."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=3e-3, total_steps=max(steps, 1)
    )
    for step, batch in zip(range(steps), batches(seed, tokenizer), strict=False):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if (step + 1) % 80 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


def make(folder: Path, seed: int, steps: int) -> None:
    """Make the model."""
    tokenizer = make_tokenizer()
    model = make_model(seed, tokenizer)
    train(model, tokenizer, seed, steps)
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


def put(out: Path, what: Identity, fill: Callable[[Path], None]) -> None:
    """Have a folder filled and put it at `out` in one step."""
    aside = out.parent / f".{out.name}.writing-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    fill(aside)
    for file in filter(Path.is_file, aside.rglob("*")):
        file.chmod(0o644)  # weights are written for their owner only, and engines run as another
    (aside / MARKER).write_text(json.dumps(what) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    aside.rename(out)


def is_there(out: Path, what: Identity) -> bool:
    """Whether `out` is this very thing already; refuses to replace what no script of ours wrote."""
    if not out.exists():
        return False
    try:
        found = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sys.exit(f"{out} exists and was not written by this script: name another folder")
    return bool(found == what)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a tiny Qwen3 model that can add and count.")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other weights")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (0: none)")
    arguments = parser.parse_args()
    what: Identity = {"recipe": RECIPE, "seed": arguments.seed, "steps": arguments.steps}
    if is_there(arguments.out, what):
        print(f"{arguments.out} is there already")
        return
    torch.set_num_threads(1)
    put(arguments.out, what, lambda folder: make(folder, arguments.seed, arguments.steps))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
