"""Whether a learner goes through assay_kernels, head and loss by them, and how often they ran.

Three ways to the same numbers. `stock`: PyTorch alone, as everywhere without a GPU. `fused`: the
head's logits become their gradient while they are in memory (`linear_policy_loss`). `exact`: every
operation is the one that an engine in deterministic mode runs, so that log-probs are the engine's
bit for bit: see `exact`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from assay_trainer.algorithms.loss import Loss, Packed, Totals
from assay_trainer.algorithms.settings import Algorithm
from assay_trainer.settings import Trainer
from assay_trainer.work import Work

Way = Literal["stock", "fused", "exact"]

OPS: Mapping[Way, tuple[str, ...]] = {
    "stock": (),
    "fused": ("linear_logprob", "linear_policy_loss", "policy_loss"),
    "exact": (
        *("linear_logprob", "matmul", "policy_loss", "qk_norm_rope", "rms_norm", "sampler"),
        "silu_mul",
    ),
}
"""What each way runs; the names are those of assay_kernels' registry."""


class KernelError(RuntimeError):
    """Kernels were asked for and cannot run here; the message says which and why."""


def way(settings: Trainer, device: torch.device) -> Way:
    """How the learner computes.

    Raises:
        KernelError: what the job asks for cannot run on the device.
    """
    if settings.deterministic:
        wanted = "trainer.deterministic: true"
        if settings.kernels == "stock":
            raise KernelError(f"{wanted} is made of kernels, but trainer.kernels is stock")
        if device.type == "cuda" and settings.precision != "bf16":
            raise KernelError(f"{wanted} needs trainer.precision bf16 on a GPU, as engines have it")
        _demand("exact", device, wanted, "set it to false")
        return "exact"
    if settings.kernels == "fused":
        _demand("fused", device, "trainer.kernels: fused", "set it to auto or stock")
        return "fused"
    if settings.kernels == "auto" and device.type == "cuda" and not obstacles("fused", device):
        return "fused"
    return "stock"


def _demand(wanted: Way, device: torch.device, asked: str, instead: str) -> None:
    if found := obstacles(wanted, device):
        told = "; ".join(f"{name}: {why}" for name, why in found.items())
        raise KernelError(f"{asked}, but kernels cannot run on {device} ({told}): {instead}")


def obstacles(wanted: Way, device: torch.device) -> dict[str, str]:
    """What keeps a way's ops from running on a device, by op; empty where nothing does."""
    if importlib.util.find_spec("assay_kernels") is None:
        return dict.fromkeys(OPS[wanted], "assay_kernels is not installed")
    from assay_kernels.registry import ops  # noqa: PLC0415 (an image may come without it)

    known = ops()
    found = {name: known[name].obstacle(device) for name in OPS[wanted]}
    return {name: why for name, why in found.items() if why is not None}


def head(wanted: Way, *, temperature: float, chunk: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Log-probs of targets and entropies from hidden states, as `head.log_probs`, without stock's.

    The function takes rows [R, H], the head's weight [V, H], targets [R] and whether entropies
    have a gradient, and gives two [R] fp32.

    Args:
        wanted: fused or exact.
        temperature: divides the logits.
        chunk: rows whose logits are in memory at one time.
    """

    def fused(
        rows: Tensor, weight: Tensor, targets: Tensor, entropy_learns: bool
    ) -> tuple[Tensor, Tensor]:
        from assay_kernels.linear_logprob.op import linear_logprob  # noqa: PLC0415

        scratch = _scratch(rows, weight, chunk)
        said = linear_logprob(rows, weight, targets, temperature=temperature, scratch=scratch)
        return said.log_prob, said.entropy if entropy_learns else said.entropy.detach()

    def exact(
        rows: Tensor, weight: Tensor, targets: Tensor, entropy_learns: bool
    ) -> tuple[Tensor, Tensor]:
        from assay_trainer.exact import log_probs  # noqa: PLC0415

        said, entropy = log_probs(rows, weight, targets, temperature=temperature, chunk=chunk)
        return said, entropy if entropy_learns else entropy.detach()

    return exact if wanted == "exact" else fused


def folded(
    rows: Tensor,
    weight: Tensor,
    work: Work,
    algorithm: Algorithm,
    totals: Totals,
    *,
    temperature: float,
    chunk: int,
) -> Loss:
    """A pass's share of the loss straight from hidden states, where it learns.

    Args:
        rows: [R, H] hidden states of what predicts the pass's completion tokens.
        weight: [V, H] the head's.
        work: the pass.
        algorithm: the job's.
        totals: of the whole batch.
        temperature: divides the logits.
        chunk: rows whose logits are in memory at one time.
    """
    from assay_kernels.linear_logprob.folded import Drawn, linear_policy_loss  # noqa: PLC0415

    drawn = Drawn(
        work.sampler,
        work.advantages,
        work.layout.sequence,
        work.mask,
        work.old,
        work.reference,
    )
    return linear_policy_loss(
        rows,
        weight,
        work.layout.targets,
        drawn,
        algorithm,
        totals,
        temperature=temperature,
        scratch=_scratch(rows, weight, chunk),
    ).loss


def policy_loss(batch: Packed, algorithm: Algorithm, totals: Totals) -> Loss:
    """`algorithms.loss.policy_loss` in two launches."""
    from assay_kernels.policy_loss.op import policy_loss as run  # noqa: PLC0415

    return run(batch, algorithm, totals)


def _scratch(rows: Tensor, weight: Tensor, chunk: int) -> int:
    """Bytes of a chunk's logits."""
    each: int = len(weight) * rows.element_size()
    return chunk * each


class Counted:
    """How often a way's ops ran since the last look.

    Args:
        wanted: whose ops.
    """

    def __init__(self, wanted: Way) -> None:
        self._names = OPS[wanted]
        self._before: Counter[str] = Counter()
        self.told()

    def told(self) -> dict[str, float]:
        """Metrics: kernels/NAME, runs of each op by its kernels, and kernels/fallbacks, runs of all
        of them by plain PyTorch instead. None for stock."""
        if not self._names:
            return {}
        from assay_kernels.registry import ops  # noqa: PLC0415

        now: Counter[str] = Counter()
        for name in self._names:
            uses = ops()[name].uses()
            now[f"kernels/{name}"] = uses.fused
            now["kernels/fallbacks"] += sum(uses.fallbacks.values())
        since = {name: float(count - self._before[name]) for name, count in now.items()}
        self._before = now
        return since
