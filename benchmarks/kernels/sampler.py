"""`sample` beside SGLang's samplers: the seeded one in PyTorch, and the one with flashinfer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from assay_kernels.sampler.op import sample
from benchmarks.common import Json, Row, say
from benchmarks.kernels.graphs import Step, against, installed, timed
from benchmarks.kernels.measure import Ceilings, rows

TITLE = "Tokens and their log-probs from logits"
PACKAGES = ("torch", "triton", "sglang")
VOCABULARY = 151_936
TIMES = 4
MANY = 1024
"""Rows of which torch.compile is asked too."""
OURS, SEEDED, FLASHINFER, COMPILED = (
    "ours",
    "SGLang, seeded, PyTorch",
    "SGLang, unseeded, flashinfer",
    "SGLang, seeded, torch.compile",
)
NO_LOG_PROBS = "SGLang, unseeded, flashinfer, without log-probs"


@dataclass(frozen=True)
class Filters:
    """What requests ask for; None where nobody does."""

    top_k: int | None = None
    top_p: float | None = None

    def __str__(self) -> str:
        words = [
            f"top-k {self.top_k}" if self.top_k else "",
            f"top-p {self.top_p}" if self.top_p else "",
        ]
        return ", ".join(word for word in words if word) or "no filters"


CASES = (
    (256, 4.0, Filters()),
    (MANY, 4.0, Filters()),
    (256, 4.0, Filters(top_p=0.95)),
    (MANY, 4.0, Filters(top_p=0.95)),
    (MANY, 4.0, Filters(top_k=50, top_p=0.9)),
    (256, 1.0, Filters(top_p=0.95)),
    (8, 4.0, Filters(top_p=0.95)),
)
"""Rows, standard deviation of the logits, and filters."""


class Inputs:
    """What all arms compute on."""

    def __init__(self, rows: int, spread: float, filters: Filters) -> None:
        torch.manual_seed(7)
        self.logits = torch.empty(rows, VOCABULARY, device="cuda").normal_(std=spread)
        self.temperatures = torch.full((rows,), 0.9, device="cuda")
        self.seeds = torch.randint(2**40, (rows,), device="cuda")
        self.positions = torch.randint(2**15, (rows,), device="cuda")
        self.filters = filters
        self.top_ks = self._all(filters.top_k, VOCABULARY).int()
        self.top_ps = self._all(filters.top_p, 1.0).float()

    def _all(self, value: float | None, none: float) -> Tensor:
        return torch.full_like(self.temperatures, none if value is None else value)

    def ours(self) -> Any:
        filters = self.filters
        return sample(
            self.logits,
            self.temperatures,
            self.seeds,
            self.positions,
            None if filters.top_k is None else self.top_ks,
            None if filters.top_p is None else self.top_ps,
        )


def run(rounds: int, ceiling: Ceilings) -> tuple[list[Row], list[str], Json]:
    """The table's rows, its notes and all figures."""
    found: list[Row] = []
    raw: Json = {}
    notes = list(NOTES)
    for count, spread, filters in CASES:
        what = f"B {count:,}, spread {spread:g}, {filters}"
        say(what)
        inputs = Inputs(count, spread, filters)
        arms, timings, said = timed(_steps(inputs), OURS, rounds, TIMES)
        moved = 4 * count * VOCABULARY
        found += rows(what, arms, timings, flops=0, moved=moved, ceiling=ceiling)
        found += against(what, OURS, SEEDED, timings, 5.0)
        found += against(what, OURS, FLASHINFER, timings, 1.0)
        raw[what] = {name: timing.as_json() for name, timing in timings.items()}
        notes += [f"{what}: {text}" for text in said]
        if SEEDED in timings and filters == Filters():
            same = int((_seeded(inputs)()[0] == inputs.ours().tokens).sum())
            notes.append(
                f"{what}: ours and SGLang's seeded sampler drew the same token in {same:,} rows."
            )
        del inputs, arms
        torch.cuda.empty_cache()
    return found, [*notes, installed(["flashinfer-python"])], raw


NOTES = (
    f"V {VOCABULARY:,}, float32 logits, temperature 0.9; normal logits of a standard deviation of "
    "4 have an entropy of about 4 nats, of 1 one of about 11. The roofline reads all logits once. "
    f"{TIMES} calls in one CUDA graph; memory is that of one, above the logits.",
    "Every arm gives the chosen tokens' log-probs at the temperature, but for the one without.",
    "SGLang's arms call the functions that its sampler calls, in its order; the copy of the "
    "probabilities over the logits is left out. Seeded, PyTorch: what deterministic mode runs, "
    "with its batch-invariant log-softmax. Unseeded, flashinfer: the default, which without "
    "filters draws with torch.multinomial.",
)


def _steps(inputs: Inputs) -> dict[str, Callable[[], Step]]:
    return {
        OURS: lambda: inputs.ours,
        SEEDED: partial(_seeded, inputs),
        **({COMPILED: partial(_compiled, inputs)} if len(inputs.logits) == MANY else {}),
        FLASHINFER: partial(_flashinfer, inputs, log_probs=True),
        NO_LOG_PROBS: partial(_flashinfer, inputs, log_probs=False),
    }


def _seeded(inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    from sglang.srt.batch_invariant_ops.batch_invariant_ops import log_softmax  # noqa: PLC0415
    from sglang.srt.layers import sampler  # noqa: PLC0415

    return partial(_as_sglang_does, inputs, log_softmax, sampler)


def _compiled(inputs: Inputs) -> Step:
    from sglang.srt.layers import sampler  # noqa: PLC0415

    log_softmax = partial(torch.log_softmax, dim=-1)
    compiled: Step = torch.compile(lambda: _as_sglang_does(inputs, log_softmax, sampler))
    return compiled


def _as_sglang_does(
    inputs: Inputs, log_softmax: Callable[[Tensor], Tensor], sampler: Any
) -> tuple[Tensor, Tensor]:
    """What SGLang's seeded sampler does; `sampler` is its module."""
    scaled = inputs.logits / inputs.temperatures[:, None]
    log_probs = log_softmax(scaled)
    probs = torch.softmax(scaled, -1)
    if inputs.filters == Filters():
        tokens = sampler.sampling_from_probs_torch(
            probs, sampling_seed=inputs.seeds, positions=inputs.positions
        )
    else:
        tokens = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
            probs,
            inputs.top_ks,
            inputs.top_ps,
            torch.zeros_like(inputs.top_ps),
            False,
            inputs.seeds,
            inputs.positions,
        )
    return tokens, log_probs.gather(1, tokens.long()[:, None])


def _flashinfer(inputs: Inputs, *, log_probs: bool) -> Step:
    from flashinfer.sampling import top_k_top_p_sampling_from_probs  # noqa: PLC0415

    def step() -> object:
        probs = torch.softmax(inputs.logits / inputs.temperatures[:, None], -1)
        if inputs.filters == Filters():
            tokens = torch.multinomial(probs, num_samples=1).view(-1)
        else:
            tokens = top_k_top_p_sampling_from_probs(
                probs, inputs.top_ks, inputs.top_ps, filter_apply_order="joint"
            )
        return torch.log(probs).gather(1, tokens.long()[:, None]) if log_probs else tokens

    return step
