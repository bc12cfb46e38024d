"""Batch-invariant `matmul` beside SGLang's and cuBLAS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from assay_kernels.matmul.op import matmul
from benchmarks.common import Json, Row, say
from benchmarks.kernels.graphs import Step, against, timed
from benchmarks.kernels.measure import Ceilings, rows

TITLE = "x W^T with the same bits for a row in every batch"
PACKAGES = ("torch", "triton", "sglang")
OURS, TRITON, DEFAULT, CUBLAS = (
    "ours",
    "SGLang, batch-invariant Triton",
    "SGLang, batch-invariant, its choice",
    "cuBLAS (not batch-invariant)",
)
FASTER = 2.0
CACHE = 300 * 2**20
"""Weights that take turns are larger than any cache together."""


@dataclass(frozen=True)
class Shape:
    """Rows, columns, depth, whether the result is float32, and whether the goal is about it."""

    rows: int
    columns: int = 4096
    depth: int = 4096
    fine: bool = False
    counts: bool = True

    def __str__(self) -> str:
        kind = "float32" if self.fine else "bf16"
        return f"M {self.rows:,}, N {self.columns:,}, K {self.depth:,}, bf16 to {kind}"

    @property
    def moved(self) -> int:
        out = 4 if self.fine else 2
        factors = (self.rows + self.columns) * self.depth
        return 2 * factors + out * self.rows * self.columns

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.columns * self.depth


SHAPES = (
    *(Shape(rows) for rows in (1, 8, 16, 32, 64)),
    Shape(256, counts=False),
    Shape(2048, counts=False),
    Shape(8192, counts=False),
    Shape(64, columns=12_288, counts=False),
    Shape(64, depth=12_288, counts=False),
    Shape(64, columns=151_936, fine=True, counts=False),
)


def run(rounds: int, ceiling: Ceilings) -> tuple[list[Row], list[str], Json]:
    """The table's rows, its notes and all figures."""
    found: list[Row] = []
    raw: Json = {}
    notes = list(NOTES)
    for shape in SHAPES:
        what = str(shape)
        say(what)
        steps, products = _steps(shape)
        arms, timings, said = timed(steps, OURS, rounds, 1, inside=products)
        found += rows(what, arms, timings, flops=shape.flops, moved=shape.moved, ceiling=ceiling)
        if shape.counts:
            found += against(what, OURS, TRITON, timings, FASTER)
        raw[what] = {name: timing.as_json() for name, timing in timings.items()}
        notes += [f"{what}: {text}" for text in said]
        del arms, steps
        torch.cuda.empty_cache()
    return found, notes, raw


NOTES = (
    "Weights take turns in one CUDA graph, 300 MiB of them, so that none is in a cache; time is "
    "that of one product.",
    "SGLang's choice is DeepGEMM where it is installed and the shape fits, else its Triton kernel; "
    "both give bf16, also where the others give float32.",
)


def _steps(shape: Shape) -> tuple[dict[str, Callable[[], Step]], int]:
    """Steps, and how many products each has."""
    torch.manual_seed(7)
    times = max(1, CACHE // (2 * shape.columns * shape.depth))
    make = partial(torch.empty, device="cuda", dtype=torch.bfloat16)
    x = make(shape.rows, shape.depth).normal_()
    weights = [
        make(shape.columns, shape.depth).normal_(std=shape.depth**-0.5) for _ in range(times)
    ]
    made: dict[str, Callable[[], Step]] = {
        OURS: lambda: partial(_ours, shape, x, weights),
        TRITON: partial(_sglang, x, weights, plain=True),
        DEFAULT: partial(_sglang, x, weights, plain=False),
        CUBLAS: lambda: partial(_cublas, shape, x, weights),
    }
    return made, times


def _ours(shape: Shape, x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        matmul(x, weight, out_dtype=torch.float32 if shape.fine else None)


def _cublas(shape: Shape, x: Tensor, weights: list[Tensor]) -> None:
    for weight in weights:
        if shape.fine:
            torch.mm(x, weight.t(), out_dtype=torch.float32)
        else:
            torch.mm(x, weight.t())


def _sglang(x: Tensor, weights: list[Tensor], *, plain: bool) -> Step:
    from sglang.srt.batch_invariant_ops import batch_invariant_ops as ops  # noqa: PLC0415

    multiply: Callable[..., Tensor] = (
        ops._matmul_persistent_triton if plain else ops.matmul_persistent
    )

    def step() -> None:
        for weight in weights:
            multiply(x, weight.t())

    return step
