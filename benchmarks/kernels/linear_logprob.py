"""`linear_logprob` and `linear_policy_loss`, forward and backward, beside other fused heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from assay_kernels.linear_logprob.folded import Drawn, linear_policy_loss
from assay_kernels.linear_logprob.op import linear_logprob
from assay_kernels.linear_logprob.passes import SCRATCH
from assay_kernels.linear_logprob.reference import linear_logprob as plain
from assay_trainer import head
from assay_trainer.algorithms.loss import Totals
from assay_trainer.algorithms.settings import Algorithm
from benchmarks.common import Json, Row, say
from benchmarks.kernels.measure import Arm, Ceilings, goals, measure, rows

TITLE = "Log-probs and their gradients straight from hidden states"
PACKAGES = ("torch", "triton", "liger_kernel", "cut_cross_entropy")
FASTER, MEMORY = 1.2, 1.1
SPREAD = 4.0
"""The logits' standard deviation: entropies then are near 4 nats, as a model's may be."""
TIGHT = SCRATCH // 2
_CHUNK = 1024


@dataclass(frozen=True)
class Shape:
    """Tokens, width and vocabulary."""

    tokens: int = 8192
    width: int = 4096
    vocabulary: int = 151_936

    @property
    def product(self) -> int:
        """Operations of one product of all tokens with the head."""
        return 2 * self.tokens * self.width * self.vocabulary

    def moved(self, backward: bool) -> int:
        """Bytes of bf16 that must be moved: inputs, and gradients of the same size."""
        return 2 * (1 + backward) * self.width * (self.tokens + self.vocabulary)

    def __str__(self) -> str:
        return f"T {self.tokens:,}, H {self.width:,}, V {self.vocabulary:,}, bf16"


class Inputs:
    """What all arms compute on."""

    def __init__(self, shape: Shape, sequences: int = 8) -> None:
        torch.manual_seed(7)
        make = partial(torch.empty, device="cuda", dtype=torch.bfloat16)
        self.hidden = make(shape.tokens, shape.width).normal_()
        self.weight = make(shape.vocabulary, shape.width).normal_(
            std=SPREAD / math.sqrt(shape.width)
        )
        self.targets = torch.cat([self._draw(part) for part in self.hidden.split(_CHUNK)])
        self.hidden.requires_grad_()
        self.weight.requires_grad_()
        with torch.no_grad():
            said = linear_logprob(self.hidden, self.weight, self.targets)
        each = shape.tokens // sequences
        sequence = torch.arange(shape.tokens, device="cuda") // each
        sampler = said.log_prob + 0.05 * torch.randn_like(said.log_prob)
        mask = torch.ones(shape.tokens, dtype=torch.bool, device="cuda")
        advantages = torch.randn(int(sequence[-1]) + 1, device="cuda")
        self.drawn = Drawn(sampler, advantages, sequence, mask)
        self.totals = Totals(shape.tokens, len(advantages))
        self.each = each

    def _draw(self, hidden: Tensor) -> Tensor:
        logits = (hidden @ self.weight.t()).float()
        return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)

    def forget(self) -> None:
        self.hidden.grad = self.weight.grad = None


def run(rounds: int, ceiling: Ceilings) -> tuple[list[Row], list[str], Json]:
    """The table's rows, its notes and all figures."""
    shape = Shape()
    inputs = Inputs(shape)
    held = 2 * shape.width * (shape.tokens + shape.vocabulary)
    found: list[Row] = []
    raw: Json = {"shape": str(shape)}
    notes = [f"{shape}. Memory is above the inputs ({held / 1e9:.2f} GB)."]
    for what, arms, products, backward in (
        ("forward and backward", _training(inputs), 3, True),
        ("forward", _forward(inputs), 1, False),
        ("forward and backward, float32 weight", _masters(inputs), 3, True),
    ):
        say(what)
        timings, failed = measure(arms, rounds, inputs.forget)
        flops, moved = products * shape.product, shape.moved(backward)
        found += rows(what, arms, timings, flops=flops, moved=moved, ceiling=ceiling)
        if what == "forward and backward":
            found += goals(what, arms, timings, faster=FASTER, memory=MEMORY, held=held)
        raw[what] = {name: timing.as_json() for name, timing in timings.items()}
        notes += [f"Not run ({what}): {name}: {why}" for name, why in failed.items()]
    return found, [*notes, *NOTES], raw


NOTES = (
    "TFLOP/s and the roofline count what the task needs: 6THV forward and backward, 2THV forward. "
    "Arms that make the logits twice do 8THV.",
    "`linear_policy_loss` gives the loss (DAPO's clip, truncated importance sampling), log-probs, "
    "entropies and metrics; `linear_logprob` log-probs, log-sum-exp and entropies, here with a "
    "weighted sum of the log-probs as its loss. Liger's CuTe kernel gives NLL and entropies of "
    "each token; all other peers give a mean cross-entropy and nothing else.",
    "Liger's Triton head takes groups of 256 rows by default, of 1,024 with `chunk_mem_const=4`.",
    "Float32 weight: masters, as the trainer has them; each arm rounds them to bf16 and gives "
    "their gradient in float32.",
    "cut-cross-entropy by default leaves out gradients of blocks whose probabilities are all below "
    "2^-12; `filter_eps=None` computes all of them, as all other arms do. Only that one counts.",
)


def _training(inputs: Inputs) -> list[Arm]:
    return [
        Arm("ours, loss folded in", partial(_folded, inputs), ours=True),
        Arm("ours, loss folded in, scratch 112 MiB", partial(_folded, inputs, TIGHT), ours=True),
        Arm("ours, two steps", partial(_two_steps, inputs), ours=True, counts=False),
        Arm("Liger, Triton", partial(_liger, inputs)),
        Arm("Liger, Triton, chunk_mem_const=4", partial(_liger, inputs, chunk_mem_const=4)),
        Arm("Liger, CuTe", partial(_mean_of, inputs, _liger_cute)),
        Arm("Liger, fused GRPO", partial(_liger_grpo, inputs), counts=False),
        Arm("cut-cross-entropy", partial(_cce, inputs, filter_eps="high"), counts=False),
        Arm("cut-cross-entropy, filter_eps=None", partial(_cce, inputs, filter_eps=None)),
        Arm("torch.compile", partial(_compiled, inputs)),
        Arm("eager, 1,024 rows", partial(_mean_of, inputs, _eager)),
        Arm("the trainer's head, 1,024 rows", partial(_mean_of, inputs, _head)),
    ]


def _masters(inputs: Inputs) -> list[Arm]:
    """Arms that take a weight finer than the hidden states, as the trainer has them."""

    def finer(make: Callable[[Inputs], Callable[[], object]]) -> Callable[[], object]:
        if inputs.weight.dtype != torch.float32:
            inputs.weight = inputs.weight.detach().float().requires_grad_()
        return make(inputs)

    return [
        Arm("ours, loss folded in", partial(finer, _folded), ours=True),
        Arm("ours, two steps", partial(finer, _two_steps), ours=True),
        Arm("the trainer's head, 1,024 rows", partial(finer, lambda i: _mean_of(i, _head))),
    ]


def _forward(inputs: Inputs) -> list[Arm]:
    def quiet(make: Callable[[Inputs], Callable[[], object]]) -> Callable[[], object]:
        return torch.no_grad()(make(inputs))  # type: ignore[no-any-return]

    return [
        Arm("ours", partial(quiet, _ours_quiet), ours=True),
        Arm("Liger, Triton", partial(quiet, _liger_quiet)),
        Arm("Liger, CuTe", partial(quiet, lambda i: partial(_liger_cute()[0], i))),
        Arm("cut-cross-entropy", partial(quiet, _cce_quiet)),
        Arm("eager, 1,024 rows", partial(quiet, lambda i: partial(_eager()[0], i))),
        Arm("the trainer's head, 1,024 rows", partial(quiet, lambda i: partial(_head()[0], i))),
    ]


Scores = Callable[[Inputs], Tensor]
"""Log-probs of the targets, up to their sign."""


def _folded(inputs: Inputs, scratch: int = SCRATCH) -> Callable[[], object]:
    algorithm = Algorithm(loss="clip")

    def step() -> None:
        folded = linear_policy_loss(
            inputs.hidden,
            inputs.weight,
            inputs.targets,
            inputs.drawn,
            algorithm,
            inputs.totals,
            scratch=scratch,
        )
        folded.loss.value.backward()

    return step


def _two_steps(inputs: Inputs) -> Callable[[], object]:
    weights = torch.randn(len(inputs.targets), device="cuda") / len(inputs.targets)

    def step() -> None:
        said = linear_logprob(inputs.hidden, inputs.weight, inputs.targets)
        (said.log_prob @ weights).backward()

    return step


def _ours_quiet(inputs: Inputs) -> Callable[[], object]:
    return lambda: linear_logprob(inputs.hidden, inputs.weight, inputs.targets)


def _mean_of(inputs: Inputs, scores: Callable[[], tuple[Scores, float]]) -> Callable[[], object]:
    """The step whose loss is a mean cross-entropy made of single scores."""
    function, sign = scores()

    def step() -> None:
        (function(inputs).mean() * sign).backward()

    return step


def _liger(inputs: Inputs, **options: int) -> Callable[[], object]:
    from liger_kernel.ops.fused_linear_cross_entropy import (  # noqa: PLC0415
        LigerFusedLinearCrossEntropyFunction as Head,
    )

    rest = (None, None, -100, 0.0, 0.0, "mean", None, False, None, False, False, False, None, None)

    def step() -> None:
        loss = Head.apply(inputs.hidden, inputs.weight, inputs.targets, *rest, *options.values())[0]
        loss.backward()

    return step


def _liger_quiet(inputs: Inputs) -> Callable[[], object]:
    from liger_kernel.ops.fused_linear_cross_entropy import (  # noqa: PLC0415
        LigerFusedLinearCrossEntropyFunction as Head,
    )

    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    return lambda: Head.apply(hidden, weight, inputs.targets)


def _liger_cute() -> tuple[Scores, float]:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (  # noqa: PLC0415
        LigerFusedLinearScaledCrossEntropyFunction as Head,
    )

    def score(inputs: Inputs) -> Tensor:
        return Head.apply(inputs.hidden, inputs.weight, inputs.targets, 1.0, -100, 1, True)[0]

    return score, 1.0


def _liger_grpo(inputs: Inputs) -> Callable[[], object]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss  # noqa: PLC0415

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, epsilon_high=0.28, loss_type="dapo", use_ref_model=False
    )
    drawn, each = inputs.drawn, inputs.each

    def step() -> None:
        value, _ = loss(
            inputs.hidden.view(-1, each, inputs.hidden.shape[1]),
            inputs.weight,
            inputs.targets.view(-1, each),
            drawn.mask.view(-1, each).float(),
            drawn.advantages,
            old_per_token_logps=drawn.sampler.view(-1, each),
        )
        value.backward()

    return step


def _cce(inputs: Inputs, filter_eps: str | None) -> Callable[[], object]:
    from cut_cross_entropy import linear_cross_entropy  # noqa: PLC0415

    def step() -> None:
        linear_cross_entropy(
            inputs.hidden, inputs.weight, inputs.targets, filter_eps=filter_eps
        ).backward()

    return step


def _cce_quiet(inputs: Inputs) -> Callable[[], object]:
    from cut_cross_entropy import linear_cross_entropy  # noqa: PLC0415

    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    return lambda: linear_cross_entropy(hidden, weight, inputs.targets)


def _compiled(inputs: Inputs) -> Callable[[], object]:
    @torch.compile  # type: ignore[untyped-decorator]
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy((hidden @ weight.t()).float(), targets)

    return lambda: loss(inputs.hidden, inputs.weight, inputs.targets).backward()


def _eager() -> tuple[Scores, float]:
    def score(inputs: Inputs) -> Tensor:
        parts = [
            checkpoint(plain, rows, inputs.weight, targets, use_reentrant=False)[0]
            for rows, targets in zip(
                inputs.hidden.split(_CHUNK), inputs.targets.split(_CHUNK), strict=True
            )
        ]
        return torch.cat(parts)

    return score, -1.0


def _head() -> tuple[Scores, float]:
    def score(inputs: Inputs) -> Tensor:
        return head.log_probs(
            inputs.hidden, inputs.weight, inputs.targets, temperature=1.0, chunk=_CHUNK
        )[0]

    return score, -1.0
