"""The peer of `end_to_end` outside SGLang: transformers' generate, on the same model and load.

    python -m benchmarks.kernels.generating MODEL static|continuous PROMPT OUTPUT CONCURRENCY...

Prints a JSON object: output tokens a second by concurrency. Static batches are one `generate` for
all requests of a round; continuous ones are `generate_batch`, which fills free places.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def prompts(vocabulary: int, count: int, length: int, seed: int) -> list[list[int]]:
    """Random prompts of one length, so that static batches need no padding."""
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def config(output: int) -> GenerationConfig:
    """Samples at temperature 1, and makes all tokens of an answer whatever they are."""
    return GenerationConfig(
        max_new_tokens=output,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=-1,
        pad_token_id=0,
    )


def static(model: Any, rows: list[list[int]], output: int) -> int:
    """Makes all answers in one batch; returns how many tokens were made."""
    ids = torch.tensor(rows, device=model.device)
    made = model.generate(ids, generation_config=config(output))
    return int(made.shape[1] - ids.shape[1]) * len(rows)


def continuous(model: Any, rows: list[list[int]], output: int) -> int:
    """Makes all answers by continuous batching; returns how many tokens were made."""
    found = model.generate_batch(inputs=rows, generation_config=config(output), progress_bar=False)
    return sum(len(each.generated_tokens) for each in found.values())


def main(arguments: list[str]) -> int:
    """Command line."""
    folder, way, *numbers = arguments
    prompt, output, *concurrencies = map(int, numbers)
    # generate_batch puts its paged cache behind the same attention by itself.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map="cuda", attn_implementation="sdpa"
    ).eval()
    make = static if way == "static" else continuous
    vocabulary = model.config.vocab_size
    speeds: dict[int, float] = {}
    # Not inference_mode: generate_batch works in a thread of its own, which would not be in it.
    with torch.no_grad():
        make(model, prompts(vocabulary, 2, prompt, 0), 8)
        for concurrency in concurrencies:
            # Continuous batches have a second round to fill places with; static ones wait anyway.
            count = concurrency if way == "static" else 2 * concurrency
            rows = prompts(vocabulary, count, prompt, concurrency)
            torch.cuda.synchronize()
            begun = time.perf_counter()
            made = make(model, rows, output)
            torch.cuda.synchronize()
            if not made:
                raise RuntimeError(f"{way}, {concurrency} at a time: no token was made")
            speeds[concurrency] = made / (time.perf_counter() - begun)
            print(f"{way} {concurrency}: {speeds[concurrency]:.0f}", file=sys.stderr, flush=True)
    print(json.dumps(speeds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
