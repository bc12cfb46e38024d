"""`policy_loss`, forward and backward with all metrics, beside eager, torch.compile and Liger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from assay_kernels.policy_loss.op import policy_loss
from assay_trainer.algorithms.loss import Packed, Totals
from assay_trainer.algorithms.loss import policy_loss as plain
from assay_trainer.algorithms.settings import Algorithm
from benchmarks.common import Json, Row, say
from benchmarks.kernels.measure import Arm, Ceilings, goals, measure, rows

TITLE = "The policy loss of 65,536 packed tokens"
PACKAGES = ("torch", "triton", "liger_kernel")
TOKENS, SEQUENCES = 65_536, 64
ALGORITHMS: dict[str, dict[str, Any]] = {
    "clip, TIS, k3": {"loss": "clip", "kl": {"coef": 0.01, "estimator": "k3"}},
    "GSPO, IcePop": {"loss": "gspo", "importanceCorrection": "icepop"},
}
BYTES = 58
"""Of a token: forward reads 5 float32, an int64 and a bool, backward 4 of the former and the latter
two; it writes 1 float32."""


@dataclass(frozen=True)
class Inputs:
    """What all arms compute on: packed for ours, padded for Liger's."""

    packed: Packed
    totals: Totals
    padded: dict[str, Tensor]

    @classmethod
    def draw(cls) -> Inputs:
        """Sequences of 256 tokens and more, some four times as long as others."""
        torch.manual_seed(7)
        shares = torch.rand(SEQUENCES)
        lengths = 256 + ((TOKENS - 256 * SEQUENCES) * shares / shares.sum()).long()
        lengths[-1] += TOKENS - int(lengths.sum())
        sequence = torch.repeat_interleave(torch.arange(SEQUENCES), lengths)
        old = -torch.empty(TOKENS).exponential_(1.0)

        def near() -> Tensor:
            return (old + 0.1 * torch.randn(TOKENS)).cuda()

        packed = Packed(
            log_probs=near().requires_grad_(),
            sampler=near(),
            advantages=torch.randn(SEQUENCES).cuda(),
            sequence=sequence.cuda(),
            mask=(torch.rand(TOKENS) < 0.97).cuda(),
            old=old.cuda(),
            reference=near(),
            entropy=torch.rand(TOKENS).cuda().requires_grad_(),
        )
        split = lengths.tolist()
        padded = {
            name: pad_sequence(getattr(packed, name).detach().split(split), batch_first=True)
            for name in ("log_probs", "sampler", "mask", "old", "reference")
        }
        padded["log_probs"].requires_grad_()
        return cls(packed, Totals.of(packed.sequence, packed.mask), padded)

    def forget(self) -> None:
        self.packed.log_probs.grad = self.padded["log_probs"].grad = None
        if self.packed.entropy is not None:
            self.packed.entropy.grad = None


def run(rounds: int, ceiling: Ceilings) -> tuple[list[Row], list[str], Json]:
    """The table's rows, its notes and all figures."""
    inputs = Inputs.draw()
    found: list[Row] = []
    raw: Json = {}
    notes = list(NOTES)
    for what, settings in ALGORITHMS.items():
        algorithm = Algorithm.model_validate(settings)
        say(what)
        arms = _arms(inputs, algorithm)
        timings, failed = measure(arms, rounds, inputs.forget)
        found += rows(what, arms, timings, flops=0, moved=BYTES * TOKENS, ceiling=ceiling)
        found += goals(what, arms, timings, faster=1.0, memory=1.0, held=0)
        raw[what] = {name: timing.as_json() for name, timing in timings.items()}
        notes += [f"Not run ({what}): {name}: {why}" for name, why in failed.items()]
    return found, notes, raw


NOTES = (
    f"{TOKENS:,} tokens in {SEQUENCES} sequences of mixed length, all fields in float32, all of "
    "the trainer's metrics, forward and backward. Launches from Python are in the time, except in "
    "the arms with a CUDA graph.",
    "Liger: `ppo_loss_fn` of its fused linear GRPO loss, on log-probs padded to the longest "
    "sequence, with its own two or three metrics; the weights for the sampler are made for it "
    "before the time begins.",
)


def _arms(inputs: Inputs, algorithm: Algorithm) -> list[Arm]:
    steps: dict[str, Callable[[], Callable[[], object]]] = {
        "ours": partial(_step, inputs, algorithm, policy_loss),
        "eager": partial(_step, inputs, algorithm, plain),
        "torch.compile": partial(_compiled, inputs, algorithm),
    }
    arms = [Arm(name, make, ours=name == "ours") for name, make in steps.items()]
    arms += [
        Arm("Liger", partial(_liger, inputs, algorithm, compiled=False)),
        Arm("Liger, torch.compile", partial(_liger, inputs, algorithm, compiled=True)),
    ]
    return arms + [
        Arm(f"{name}, CUDA graph", partial(_graph, inputs, make), name == "ours", counts=False)
        for name, make in steps.items()
        if name != "torch.compile"
    ]


def _step(
    inputs: Inputs, algorithm: Algorithm, function: Callable[..., Any]
) -> Callable[[], object]:
    def step() -> None:
        function(inputs.packed, algorithm, inputs.totals).value.backward()

    return step


def _compiled(inputs: Inputs, algorithm: Algorithm) -> Callable[[], object]:
    packed, totals = inputs.packed, inputs.totals

    @torch.compile  # type: ignore[untyped-decorator]
    def loss(log_probs: Tensor, entropy: Tensor) -> Any:
        said = plain(replace(packed, log_probs=log_probs, entropy=entropy), algorithm, totals)
        return said.value, said.metrics

    def step() -> None:
        loss(packed.log_probs, packed.entropy)[0].backward()

    return step


def _liger(inputs: Inputs, algorithm: Algorithm, *, compiled: bool) -> Callable[[], object]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction  # noqa: PLC0415

    padded, low, high = inputs.padded, *algorithm.clip
    function = LigerFusedLinearGRPOFunction.ppo_loss_fn
    if compiled:
        function = torch.compile(function)
    weights = (padded["old"] - padded["sampler"]).exp().clamp(max=2.0)
    whole = algorithm.loss == "gspo"
    mask = padded["mask"].float()

    def step() -> None:
        value, _ = function(
            padded["log_probs"],
            mask,
            inputs.packed.advantages,
            mask,
            ref_per_token_logps=padded["reference"],
            old_per_token_logps=padded["old"],
            epsilon_low=low,
            epsilon_high=high,
            beta=algorithm.kl.coef,
            loss_type="grpo" if whole else "dapo",
            importance_sampling_level="sequence" if whole else "token",
            vllm_is_ratio=weights,
        )
        value.backward()

    return step


def _graph(inputs: Inputs, make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    step = make()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
            inputs.forget()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], object] = graph.replay
    return replay
