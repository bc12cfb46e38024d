"""`rms_norm`, `silu_mul` and `qk_norm_rope` beside SGLang's, torch.compile's and Liger's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from assay_kernels.qk_norm_rope.op import qk_norm_rope
from assay_kernels.rms_norm.op import add_rms_norm, rms_norm
from assay_kernels.silu_mul.op import silu_mul
from benchmarks.common import Json, Row, say
from benchmarks.kernels.graphs import Step, against, installed, timed
from benchmarks.kernels.measure import Ceilings, Timing, rows

TITLE = "Norms, SwiGLU and rotary positions, [8,192, 4,096] in bf16"
PACKAGES = ("torch", "triton", "sglang", "liger_kernel")
ROWS, WIDTH = 8192, 4096
Q_HEADS, K_HEADS, HEAD, POSITIONS = 32, 8, 128, 32_768
EPS = 1e-6
TIMES = 4
OURS, NATIVE, COMPILED = "ours", "SGLang, deterministic", "torch.compile"
CUDA, LIGER = "SGLang, normal mode", "Liger"
TRITON_NORM = "SGLang's batch-invariant RMSNorm, rotation in PyTorch"
CUDA_NORM = "flashinfer's RMSNorm, SGLang's CUDA rotation"
FASTER, SHARE = 6.0, 0.85
ELEMENT = 2 * ROWS * WIDTH
"""Bytes of one such tensor."""
HEADS = 2 * ROWS * (Q_HEADS + K_HEADS) * HEAD

Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One computation.

    Attributes:
        inputs: makes its tensors, anew for each arm.
        functions: of those tensors, by arm.
        moved: bytes that it has to move.
        backward: whether gradients of all inputs are computed too.
        goal: whether the goals are about it.
    """

    inputs: Callable[[], list[Tensor]]
    functions: dict[str, Callable[[], Function]]
    moved: int
    backward: bool = False
    goal: bool = False


def run(rounds: int, ceiling: Ceilings) -> tuple[list[Row], list[str], Json]:
    """The table's rows, its notes and all figures."""
    found: list[Row] = []
    raw: Json = {}
    notes = list(NOTES)
    for what, case in _cases().items():
        say(what)
        steps = {name: partial(_step, case, make) for name, make in case.functions.items()}
        arms, timings, said = timed(steps, OURS, rounds, TIMES)
        found += rows(what, arms, timings, flops=0, moved=case.moved, ceiling=ceiling)
        if case.goal:
            found += against(what, OURS, NATIVE, timings, FASTER)
            found += _of_bandwidth(what, timings, case.moved, ceiling)
        raw[what] = {name: timing.as_json() for name, timing in timings.items()}
        notes += [f"{what}: {text}" for text in said]
        del arms
        torch.cuda.empty_cache()
    return found, [*notes, installed(["flashinfer-python"])], raw


NOTES = (
    f"{ROWS:,} rows of {WIDTH:,}; {ROWS:,} tokens of {Q_HEADS} + {K_HEADS} heads of {HEAD}; all in "
    "bf16, angles in float32. The roofline reads inputs and writes results once. "
    f"{TIMES} calls in one CUDA graph; memory is that of one, above the inputs.",
    "SGLang, deterministic: what its layers run in PyTorch or batch-invariant Triton in "
    "deterministic mode, SwiGLU as under RL; SGLang, normal mode: its CUDA kernels, of which "
    "RMSNorm after an addition works in place, as the CUDA rotation does.",
    "Gradients are of all inputs, weights too.",
)


def _of_bandwidth(
    what: str, timings: dict[str, Timing], moved: int, ceiling: Ceilings
) -> list[Row]:
    if OURS not in timings:
        return []
    share = ceiling.floor(0, moved) / timings[OURS].median
    return [
        Row(
            f"{what}: ours, share of the bandwidth of a copy",
            f"{share:.0%}",
            f">= {SHARE:.0%}",
            share >= SHARE,
        )
    ]


def _step(case: Case, make: Callable[[], Function]) -> Step:
    function, inputs = make(), case.inputs()
    if not case.backward:
        quiet: Step = torch.no_grad()(lambda: function(*inputs))
        return quiet
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point()]
    with torch.no_grad():
        said = function(*inputs)
    slopes = [torch.randn_like(x) for x in (said if isinstance(said, tuple) else (said,))]

    def step() -> object:
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.autograd.grad(outputs, leaves, slopes, allow_unused=True)

    return step


def _matrix(width: int = WIDTH) -> Tensor:
    return torch.randn(ROWS, width, device="cuda", dtype=torch.bfloat16)


def _weight(width: int = WIDTH) -> Tensor:
    return torch.randn(width, device="cuda", dtype=torch.bfloat16)


def _heads() -> list[Tensor]:
    packed = torch.randn(ROWS, (Q_HEADS + 2 * K_HEADS) * HEAD, device="cuda", dtype=torch.bfloat16)
    q, k, _ = packed.split((Q_HEADS * HEAD, K_HEADS * HEAD, K_HEADS * HEAD), -1)
    return [
        q.unflatten(-1, (Q_HEADS, HEAD)),
        k.unflatten(-1, (K_HEADS, HEAD)),
        _weight(HEAD),
        _weight(HEAD),
    ]


def _cases() -> dict[str, Case]:
    added = {
        OURS: lambda: partial(add_rms_norm, eps=EPS),
        NATIVE: lambda: _native_add_norm(deterministic=True),
        "SGLang's PyTorch, not deterministic": lambda: _native_add_norm(deterministic=False),
        COMPILED: lambda: torch.compile(_native_add_norm(deterministic=False)),
        CUDA: _cuda_add_norm,
        LIGER: _liger_add_norm,
    }
    alone = {
        OURS: lambda: partial(rms_norm, eps=EPS),
        NATIVE: _triton_norm,
        "PyTorch": lambda: _plain_norm,
        COMPILED: lambda: torch.compile(_plain_norm),
        CUDA: _cuda_norm,
        LIGER: _liger_norm,
    }
    silu = {
        OURS: lambda: silu_mul,
        NATIVE: lambda: _native_silu,
        COMPILED: lambda: torch.compile(_native_silu),
        CUDA: _cuda_silu,
        LIGER: _liger_silu,
    }
    turned = {
        OURS: _our_heads,
        TRITON_NORM: lambda: _native_heads(deterministic=True),
        COMPILED: lambda: torch.compile(_native_heads(deterministic=False)),
        CUDA_NORM: _cuda_heads,
    }

    def without(functions: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: make for name, make in functions.items() if name not in names}

    two = [_matrix, _matrix]
    return {
        "add_rms_norm": Case(
            lambda: [*(m() for m in two), _weight()], added, 4 * ELEMENT, goal=True
        ),
        "add_rms_norm, forward and backward": Case(
            lambda: [*(m() for m in two), _weight()],
            without(added, NATIVE, CUDA),
            8 * ELEMENT,
            backward=True,
        ),
        "rms_norm": Case(lambda: [_matrix(), _weight()], alone, 2 * ELEMENT),
        "rms_norm, forward and backward": Case(
            lambda: [_matrix(), _weight()],
            without(alone, NATIVE, CUDA),
            5 * ELEMENT,
            backward=True,
        ),
        "silu_mul": Case(lambda: [_matrix(2 * WIDTH)], silu, 3 * ELEMENT),
        "silu_mul, forward and backward": Case(
            lambda: [_matrix(2 * WIDTH)], without(silu, CUDA), 8 * ELEMENT, backward=True
        ),
        "qk_norm_rope": Case(_heads, turned, 2 * HEADS),
        "qk_norm_rope, forward and backward": Case(
            lambda: [x.clone() for x in _heads()],
            without(turned, TRITON_NORM, CUDA_NORM),
            5 * HEADS,
            backward=True,
        ),
    }


def _native_add_norm(*, deterministic: bool) -> Function:
    """The operations of SGLang's RMSNorm in PyTorch; its mean in deterministic mode is Triton's."""
    mean: Callable[[Tensor], Tensor] = partial(torch.mean, dim=-1, keepdim=True)
    if deterministic:
        from sglang.srt.batch_invariant_ops import batch_invariant_ops as ops  # noqa: PLC0415

        mean = partial(ops.mean_dim, dim=-1, keepdim=True)

    def norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x.float() + residual.float()
        by = torch.rsqrt(mean(total.pow(2)) + EPS)
        return (total * by * weight).to(x.dtype), total.to(x.dtype)

    return norm


def _plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), weight, EPS)


def _triton_norm() -> Function:
    from sglang.srt.batch_invariant_ops import batch_invariant_ops as ops  # noqa: PLC0415

    return partial(ops.rms_norm_batch_invariant, eps=EPS)


def _cuda_add_norm() -> Function:
    from flashinfer.norm import fused_add_rmsnorm  # noqa: PLC0415

    return partial(fused_add_rmsnorm, eps=EPS)


def _cuda_norm() -> Function:
    from flashinfer.norm import rmsnorm  # noqa: PLC0415

    return partial(rmsnorm, eps=EPS)


def _liger_add_norm() -> Function:
    from liger_kernel.ops.fused_add_rms_norm import (  # noqa: PLC0415
        LigerFusedAddRMSNormFunction,
    )

    return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(
        x, residual, weight, EPS, 0.0, "llama", False
    )


def _liger_norm() -> Function:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # noqa: PLC0415

    return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)


def _native_silu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def _cuda_silu() -> Function:
    from sglang.kernels.ops.activation.activation import silu_and_mul  # noqa: PLC0415

    def run(x: Tensor) -> Tensor:
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        silu_and_mul(x, out)
        return out

    return run


def _liger_silu() -> Function:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction  # noqa: PLC0415

    apply: Function = LigerFusedGateUpSiLUMulFunction.apply
    return apply


def _table() -> Tensor:
    """Cosines and sines as models have them."""
    frequencies = 1e6 ** -(torch.arange(0, HEAD, 2, device="cuda") / HEAD)
    angles = torch.arange(POSITIONS, device="cuda")[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


def _positions() -> Tensor:
    return torch.randint(POSITIONS, (ROWS,), device="cuda")


def _our_heads() -> Function:
    table, positions = _table(), _positions()

    def run(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> Any:
        return qk_norm_rope(q, k, q_weight, k_weight, table, positions, EPS)

    return run


def _native_heads(*, deterministic: bool) -> Function:
    """RMSNorm of heads, and the operations of SGLang's rotary positions in PyTorch."""
    norm: Function = _plain_norm
    if deterministic:
        norm = _triton_norm()
    table, positions = _table(), _positions()

    def turned(x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        one, two = norm(x, weight).chunk(2, -1)
        c, s = cosine.unsqueeze(-2).to(x.dtype), sine.unsqueeze(-2).to(x.dtype)
        return torch.cat((one * c - two * s, two * c + one * s), -1)

    def run(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
        cosine, sine = table.index_select(0, positions).chunk(2, -1)
        return turned(q, q_weight, cosine, sine), turned(k, k_weight, cosine, sine)

    return run


def _cuda_heads() -> Function:
    from flashinfer.norm import rmsnorm  # noqa: PLC0415
    from sglang.kernels.ops.attention.rope import (  # noqa: PLC0415
        apply_rope_with_cos_sin_cache_inplace,
    )

    table, positions = _table(), _positions()

    def run(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (
            rmsnorm(x.reshape(-1, HEAD), weight, EPS).view(x.shape)
            for x, weight in ((q, q_weight), (k, k_weight))
        )
        apply_rope_with_cos_sin_cache_inplace(q, k, table, positions, is_neox=True)
        return q, k

    return run
