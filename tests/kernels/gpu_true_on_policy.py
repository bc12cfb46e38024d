"""Log-probs of trainer and engine are equal bit for bit: on a Qwen3-0.6B shape, random weights.

    pytest -o python_files=gpu_*.py --confcutdir tests/kernels tests/kernels/gpu_true_on_policy.py
    python -m tests.kernels.gpu_true_on_policy                                the first test alone
    python -m tests.kernels.gpu_true_on_policy --server URL --model FOLDER    beside a real SGLang

Without a server the engine is `served.Served`. At least 100,000 tokens are drawn in batches from 1
to 256, and scored by the trainer in passes of two sizes with prompts shared. Where bits differ, the
first operation of the first layer that gives others is named. Needs a Hopper GPU and sgl_kernel.
The server must run in deterministic mode with our plugin and the weights of the folder; started
with --enable-return-hidden-states, it also tells whether its layers or its head differ.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from assay_trainer import exact
from assay_trainer.attention import NAME
from assay_trainer.batch import Completion, Sample
from assay_trainer.model import Policy
from assay_trainer.packing import layout, plan
from benchmarks.learner_batch import QWEN3_06B
from tests.kernels.served import Served, Taps
from tests.kernels.taps import first_difference, tapped

GPU = torch.device("cuda")
TOKENS = 100_000
BATCHES = (1, 3, 16, 64, 256)
"""Sequences that are begun together. Each has a length of its own, so that batches shrink."""
GROUP = 4
"""Completions of a prompt, which the trainer lets share its tokens."""
PROMPT, COMPLETION = (5, 300), (100, 500)
PASSES = (16_384, 5_000)
TEMPERATURE = 0.9


@dataclass(frozen=True)
class Drawn:
    """What an engine drew of a prompt: tokens and their log-probs, as it told them."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


def random_model() -> Qwen3ForCausalLM:
    """In fp32, with logits that are far from uniform."""
    torch.manual_seed(1)
    with GPU:
        return Qwen3ForCausalLM(Qwen3Config(**{**QWEN3_06B, "initializer_range": 0.05}))


def trainers(model: Any) -> Policy:
    """The policy as the learner makes it where the job says deterministic."""
    model.set_attn_implementation(NAME)
    made = Policy(model, temperature=TEMPERATURE, chunk=2048)
    made.run_in_half(False)
    made.to(GPU).run_with_kernels("exact")
    return made


def requests(vocabulary: int) -> Iterator[list[tuple[list[int], int]]]:
    """Prompts and how many tokens are drawn of each, batch by batch."""
    source = random.Random(3)
    for size in BATCHES:
        batch: list[tuple[list[int], int]] = []
        while len(batch) < size:
            prompt = source.choices(range(vocabulary), k=source.randint(*PROMPT))
            batch += [(prompt, source.randint(*COMPLETION)) for _ in range(GROUP)]
        yield batch[:size]


def drawn_by(engine: Served, vocabulary: int) -> list[Drawn]:
    """All that `requests` asks for."""
    found = []
    for number, batch in enumerate(requests(vocabulary)):
        asked = engine.placed(batch, seed=number)
        engine.run(asked, TEMPERATURE)
        found += [Drawn(tuple(r.prompt), tuple(r.tokens), tuple(r.log_probs)) for r in asked]
    return found


def scored_by(policy: Policy, drawn: Sequence[Drawn], budget: int) -> Tensor:
    """The trainer's log-probs of all tokens, in their order; passes as the learner makes them."""
    samples = [_sample(one) for one in drawn]
    found: dict[int, Tensor] = {}
    for pass_ in plan(samples, range(len(samples)), budget)[0]:
        some = [drawn[i] for i in pass_.samples]
        placed = layout([(one.prompt, one.tokens) for one in some], padded=False).to(GPU)
        with torch.no_grad():
            said = policy(placed).log_probs
        found |= zip(pass_.samples, said.split([len(one.tokens) for one in some]), strict=True)
    return torch.cat([found[i] for i in range(len(drawn))])


def _sample(one: Drawn) -> Sample:
    completion = Completion(one.tokens, one.log_probs, ("1",) * len(one.tokens), "length")
    return Sample("", 0, 0, one.prompt, completion, 0.0, "ok", True)


def told(drawn: Sequence[Drawn]) -> Tensor:
    """The engine's log-probs of all tokens."""
    return torch.tensor([value for one in drawn for value in one.log_probs], device=GPU)


def differences(drawn: Sequence[Drawn], mine: Tensor) -> list[str]:
    """Which tokens have other bits, in words; empty where none has."""
    theirs = told(drawn)
    wrong = mine != theirs
    if not wrong.any():
        return []
    places = torch.tensor([i for one in drawn for i in range(len(one.tokens))], device=GPU)
    first = places == 0
    where = int(wrong.nonzero()[0])
    return [
        f"{int(wrong.sum()):,} of {len(wrong):,} log-probs differ, by "
        f"{float((mine - theirs).abs().max()):.3g} at most",
        f"of first tokens, which a prefill gave, {int((wrong & first).sum())} of "
        f"{int(first.sum())}; of decoded ones {int((wrong & ~first).sum()):,}",
        f"the first: token {int(places[where])} of a completion, engine {float(theirs[where])!r}, "
        f"trainer {float(mine[where])!r}",
    ]


def looked_into(policy: Policy, engine: Served, others: Sequence[Drawn]) -> list[str]:
    """Where bits of one sequence part, alone and among others, in words."""
    asked = [(one.prompt, len(one.tokens)) for one in others]
    lines = []
    alone: Taps = {}
    for size in (1, len(asked)):
        placed, taps = engine.placed(asked[:size], seed=9), alone if size == 1 else {}
        engine.run(placed, TEMPERATURE, taps)
        request = placed[0]
        pairs = [(r.prompt, r.tokens) for r in placed]
        count = len(request.prompt) + len(request.tokens) - 1
        mine: Taps = {}
        with torch.no_grad(), tapped(policy, count, mine):
            policy(layout(pairs[:1], padded=False).to(GPU))
        prompt = len(request.prompt)
        where = "alone" if size == 1 else f"in a batch of {size}"
        lines.append(f"engine {where} against trainer: {first_difference(taps, mine, prompt)}")
        if size > 1:
            lines.append(f"engine {where} and alone: {first_difference(taps, alone, prompt)}")
            among: Taps = {}
            with torch.no_grad(), tapped(policy, count, among):
                policy(layout(pairs, padded=False).to(GPU))
            lines.append(f"trainer among {size} and alone: {first_difference(among, mine, prompt)}")
    return lines


# Without a server


def compared(say: Any = lambda line: None) -> list[str]:
    """All differences between trainer and `Served`, in words; empty where bits are equal."""
    model = random_model()
    vocabulary = model.config.vocab_size
    table = exact.angles(
        model.config.head_dim,
        model.config.rope_parameters["rope_theta"],
        model.config.max_position_embeddings,
        GPU,
    )
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    engine = Served(model.config, half, table, slots=2**17)
    policy = trainers(model)
    say("drawing")
    with torch.no_grad():
        drawn = drawn_by(engine, vocabulary)
    count = sum(len(one.tokens) for one in drawn)
    assert count >= TOKENS, count
    say(f"scoring {count:,} tokens")
    wrong: list[str] = []
    for budget in PASSES:
        found = differences(drawn, scored_by(policy, drawn, budget))
        wrong += [f"passes of {budget:,} tokens: {line}" for line in found]
        say(f"passes of {budget:,} tokens: {(len(found) and found[0]) or 'all bits are equal'}")
    if wrong:
        with torch.no_grad():
            wrong += looked_into(policy, engine, drawn[-64:])
    return wrong


def test_log_probs_of_trainer_and_engine_are_equal_bit_for_bit() -> None:
    assert compared(print) == []


def test_gradients_are_those_of_the_stock_learner_to_bf16() -> None:
    """FlashAttention 2 takes its gradients from what FlashAttention 3 gave."""
    shape = {**QWEN3_06B, "num_hidden_layers": 4, "vocab_size": 4096, "initializer_range": 0.05}
    source = random.Random(5)
    prompt = source.choices(range(4096), k=150)
    pairs = [(prompt, source.choices(range(4096), k=200)) for _ in range(4)]
    placed = layout(pairs, padded=False).to(GPU)
    found = []
    for way in ("stock", "exact"):
        torch.manual_seed(1)
        with GPU:
            model = Qwen3ForCausalLM(Qwen3Config(**shape))
        if way == "exact":
            policy = trainers(model)
        else:
            model.set_attn_implementation(NAME)
            policy = Policy(model, temperature=TEMPERATURE, chunk=2048)
            policy.run_in_half(False)
            policy.to(GPU)
        said = policy(placed, "learned")
        (said.log_probs.mean() + 0.1 * said.entropy.mean()).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, plain in found[0].items():
        alike = torch.nn.functional.cosine_similarity(
            plain.flatten(), found[1][name].flatten(), dim=0
        )
        assert float(alike) > 0.99, (name, float(alike))


# Beside a server


def asked_of(url: str, vocabulary: int) -> list[Drawn]:
    """What a server draws, of all requests at the same time, then of some one after the other."""
    asked = [request for batch in requests(vocabulary) for request in batch]

    def one(number: int) -> Drawn:
        prompt, most = asked[number]
        answer = generate(url, prompt, most, seed=number)
        told_ = answer["meta_info"]["output_token_logprobs"]
        return Drawn(tuple(prompt), tuple(t[1] for t in told_), tuple(t[0] for t in told_))

    with ThreadPoolExecutor(256) as pool:
        found = list(pool.map(one, range(len(asked))))
    return found + [one(number) for number in range(0, len(asked), 100)]


def generate(url: str, prompt: Sequence[int], most: int, seed: int, **more: Any) -> Any:
    """One request of /generate."""
    body = {
        "input_ids": list(prompt),
        "sampling_params": {
            "temperature": TEMPERATURE,
            "max_new_tokens": most,
            "ignore_eos": True,
            "sampling_seed": seed,
        },
        "return_logprob": True,
        **more,
    }
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def beside(url: str, folder: Path, say: Any) -> list[str]:
    """All differences between trainer and a server, in words."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(GPU)
    policy = trainers(model)
    drawn = asked_of(url, model.config.vocab_size - 2)
    count = sum(len(one.tokens) for one in drawn)
    say(f"{count:,} tokens were drawn by {url}")
    assert count >= TOKENS, count
    mine = scored_by(policy, drawn, PASSES[0])
    wrong = differences(drawn, mine)
    if wrong:
        with suppress(OSError, KeyError, TypeError, ValueError):
            wrong += hidden_states(url, policy, drawn[0])
    return wrong


def hidden_states(url: str, policy: Policy, one: Drawn) -> list[str]:
    """Whether a server's last hidden states are the trainer's, so that what follows differs."""
    answer = generate(url, one.prompt, 16, seed=0, return_hidden_states=True)
    tokens = [t[1] for t in answer["meta_info"]["output_token_logprobs"]]
    rows = []
    for part in answer["meta_info"]["hidden_states"]:
        value = torch.tensor(part, dtype=torch.bfloat16, device=GPU)
        rows.append(value if value.dim() == 2 else value[None])
    theirs = torch.cat(rows)
    taps: Taps = {}
    count = len(one.prompt) + len(tokens) - 1
    with torch.no_grad(), tapped(policy, count, taps):
        policy(layout([(one.prompt, tokens)], padded=False).to(GPU))
    (mine,) = taps["norm"]
    some = min(len(mine), len(theirs))
    wrong = (mine[-some:] != theirs[-some:]).any(1)
    return [
        f"last hidden states: {int(wrong.sum())} of {some} tokens differ; prompt "
        f"{len(one.prompt)}, differing at {wrong.nonzero().flatten().tolist()[:20]}"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.gpu_true_on_policy")
    parser.add_argument("--server", default="", help="of a SGLang in deterministic mode")
    parser.add_argument("--model", type=Path, help="the folder that it serves")
    options = parser.parse_args()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:.0f} s] {line}", flush=True)

    wrong = beside(options.server, options.model, say) if options.server else compared(say)
    for line in wrong:
        say(line)
    say("bits differ" if wrong else "all bits are equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
