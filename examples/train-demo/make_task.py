#!/usr/bin/env python3
"""Make the small real task that `make train-demo` trains on: a tiny model, and items to sort.

    python make_task.py --out FOLDER [--seed 1] [--family qwen3] [--start 0.0625] [--downwards 0]

    sort 41 7 30 12 49 8        7 8 12 30 41 49

FOLDER gets `model`, a Hugging Face folder that SGLang serves, and two suites, `train.jsonl` and
`heldout.jsonl`. No held-out question has the numbers of one that is trained on, in any order. The
model has 0.4 million parameters and a word-level tokenizer of its own; a short supervised warm-up
ends as soon as one in sixteen of its answers, sampled, would be right: enough for groups of sixteen
to tell good from bad, and far from done. The rest is for reinforcement learning.

`--start` is where the warm-up ends, as the probability that a sampled answer is right.
`--downwards` is the share of its examples that are sorted the wrong way: such a model knows how to
sort, and not which way round, as if its teachers had not agreed.

The same options give the same task. It runs in the engine environment (torch and transformers, one
thread), writes beside the target and renames, and does nothing if the target is there already.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny-model"))
import torch
from items import NUMBERS, SEED, Question, answer, prompt, questions, suite
from make_model import ASSISTANT, END, PAD, SPECIAL, TEMPLATE, USER, Identity, is_there, put
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

RECIPE = 2  # raise it when the same seed would give another task
FAMILIES = {"qwen3": Qwen3Config, "llama": LlamaConfig}
UNKNOWN = "<|unknown|>"
START = 1 / 16
RATE = 2e-3
BATCH = 128
MOST_STEPS = 600


@dataclass(frozen=True)
class Task:
    """What is made.

    Attributes:
        seed: of weights, warm-up and items.
        family: of the model.
        start: the probability of a right answer, sampled, with which the warm-up ends.
        downwards: the share of the warm-up's examples that are sorted the wrong way.
    """

    seed: int
    family: str
    start: float
    downwards: float


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
    task: Task, known: list[Question], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of conversations, all of one length, and their right answers' tokens."""
    shuffled = random.Random(task.seed)
    while True:
        asked, taught, right = [], [], []
        for one in shuffled.sample(known, BATCH):
            # Without any that are wrong nothing is drawn for them: an old seed gives its old task.
            wrong = task.downwards > 0 and shuffled.random() < task.downwards
            asked.append(tokenizer.encode(f"{USER}{prompt(one)}{END}{ASSISTANT}"))
            taught.append(tokenizer.encode(f"{answer(one, downwards=wrong)}{END}"))
            right.append(tokenizer.encode(f"{answer(one)}{END}"))
        rows = [question + reply for question, reply in zip(asked, taught, strict=True)]
        yield torch.tensor(rows), torch.tensor(right)


def chance(model: PreTrainedModel, rows: torch.Tensor, replies: torch.Tensor) -> torch.Tensor:
    """The log-probability of each token of the replies, which end the rows."""
    length = replies.shape[1]
    logits = model(input_ids=rows).logits[:, -length - 1 : -1]
    return logits.log_softmax(-1).gather(-1, replies[..., None])[..., 0]


def warm_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task, known: list[Question]
) -> None:
    """Supervised steps until a sampled answer to a new question is right with probability `start`.

    Measured and not counted in steps, so that every seed and family starts from the same place.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    endless = batches(task, known, tokenizer)
    for step in range(MOST_STEPS):
        rows, answers = next(endless)
        length = answers.shape[1]
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20)
        taught = chance(model, rows, rows[:, -length:])
        # There is one right answer, so its probability is what sampling would find.
        if task.downwards:
            with torch.no_grad():
                found = chance(model, torch.cat([rows[:, :-length], answers], 1), answers)
        else:
            found = taught
        right = found.sum(-1).exp().mean().item()
        if step % 20 == 0 or right >= task.start:
            print(f"warm-up step {step}: right with probability {right:.3f}", flush=True)
        if right >= task.start:
            return
        (-taught.mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    sys.exit(f"after {MOST_STEPS} steps the model is still right with probability {right:.3f} only")


def make(folder: Path, task: Task) -> None:
    """Make the task."""
    trained, held_out = questions(task.seed)
    (folder / "train.jsonl").write_text(suite("train", trained), encoding="utf-8")
    (folder / "heldout.jsonl").write_text(suite("heldout", held_out), encoding="utf-8")
    tokenizer = make_tokenizer()
    model = make_model(task.family, task.seed, tokenizer)
    warm_up(model, tokenizer, task, trained)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a tiny model and numbers for it to sort.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--seed", type=int, default=SEED, help="of weights, warm-up and items")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3", help="of the model")
    parser.add_argument(
        "--start", type=float, default=START, help="how often a sampled answer is right at its end"
    )
    parser.add_argument(
        "--downwards", type=float, default=0.0, help="share of examples sorted the wrong way"
    )
    arguments = parser.parse_args()
    task = Task(arguments.seed, arguments.family, arguments.start, arguments.downwards)
    what: Identity = {"recipe": RECIPE, **asdict(task)}
    if is_there(arguments.out, what):
        print(f"{arguments.out} is there already")
        return
    torch.set_num_threads(1)
    put(arguments.out, what, lambda folder: make(folder, task))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
