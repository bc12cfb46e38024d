"""The learner: a batch of judged samples in, better weights out.

A step is `updatesPerStep` updates, each with its share of the prompts. An update is passes over
packed samples whose gradients add up, a clip and AdamW. The host waits for the device once an
update, for its numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from assay_trainer import kernels, snapshot
from assay_trainer.algorithms.advantage import ADVANTAGES, statistics
from assay_trainer.algorithms.loss import Loss, Packed, Totals, combine, policy_loss
from assay_trainer.attention import needs_padding
from assay_trainer.batch import Batch, Sample
from assay_trainer.folder import write_model
from assay_trainer.job import Job
from assay_trainer.model import Policy, load_policy
from assay_trainer.packing import Layout, plan
from assay_trainer.processes import World, add_up, shard, whole
from assay_trainer.schedule import rate
from assay_trainer.work import Work, over_updates, prepared, shares, silent_and_loud, totals

SHOWN = ("loss", "grad/norm", "ratio/max", "mismatch/max", "kl", "entropy")
"""Which metrics a failure tells."""


class LearnerError(RuntimeError):
    """Nothing can be learned from a batch: a loss or gradient is no finite number."""


class Learner:
    """One process's part in training; all processes must call the same methods with the same batch.

    Attributes:
        policy: what learns.
        updates: optimiser updates that were done.
    """

    def __init__(
        self, job: Job, world: World, policy: Policy, reference: Policy | None = None
    ) -> None:
        """Takes policies from the CPU, in fp32, to where they compute.

        Args:
            job: what to do.
            world: where this process stands.
            policy: what learns.
            reference: what kl.coef holds it to; needed where that is above 0.

        Raises:
            ValueError: the reference is missing.
            KernelError: kernels are asked for that cannot run here, or not with this model.
        """
        if job.algorithm.kl.coef and reference is None:
            raise ValueError("algorithm.kl.coef is above 0, but there is no reference model")
        self._job, self._world = job, world
        self.policy, self._reference = policy, reference
        self.updates = 0
        settings = job.trainer
        self._way = kernels.way(settings, world.device)
        self._counted = kernels.Counted(self._way)
        self._policy_loss = policy_loss if self._way == "stock" else kernels.policy_loss
        half = settings.precision == "bf16"
        self._padded = needs_padding(world.device, torch.bfloat16 if half else torch.float32)
        self._sharded = world.size > 1
        # A compiler's order of summing is not the engine's.
        compiled = half and world.device.type == "cuda" and self._way != "exact"
        for one in (policy, reference):
            if one is None:
                continue
            if self._sharded:
                if compiled:
                    one.compile_layers()
                shard(one, world, settings.precision)
            elif half:
                one.run_in_half(compiled)
            one.to(world.device)
            if self._way != "stock":
                one.run_with_kernels(self._way)
        if reference is not None:
            reference.requires_grad_(False)
        if settings.activationCheckpointing:
            policy.checkpoint_activations()
        self._named = dict(policy.model.named_parameters())
        matrices = [p for p in self._named.values() if p.dim() > 1]
        vectors = [p for p in self._named.values() if p.dim() <= 1]
        self._optimizer = torch.optim.AdamW(
            # Norms and biases are not held near 0: they do not grow as weights do.
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learningRate,
            betas=settings.betas,
            weight_decay=settings.weightDecay,
            fused=True,
        )

    @classmethod
    def load(cls, job: Job, world: World, folder: Path | None = None) -> Self:
        """A learner with the weights in a folder.

        Args:
            job: what to do.
            world: where this process stands.
            folder: a checkpoint; None: job.model.path.

        Raises:
            ModelError: a model cannot be loaded.
            KernelError: kernels are asked for that cannot run here, or not with this model.
        """
        kernels.way(job.trainer, world.device)  # Before anything is loaded.
        temperature, chunk = job.rollout.temperature, job.trainer.logProbChunk
        policy = load_policy(folder or job.model.path, temperature=temperature, chunk=chunk)
        reference = None
        if job.algorithm.kl.coef:
            reference = load_policy(job.model.path, temperature=temperature, chunk=chunk)
        return cls(job, world, policy, reference)

    def learn(self, batch: Batch) -> dict[str, float]:
        """Does the updates of one step.

        Returns:
            Metrics: those of `policy_loss` and `statistics`, grad/norm, lr, tokens/trained (that
            count), tokens/passed (of this process, through the model with a gradient), with kernels
            those of `kernels.Counted` (of this process), seconds/train. Of several updates they are
            means, largest and smallest values, or sums. Where nothing was judged there are only
            those of `statistics` and `Counted`, 0 tokens and the seconds.

        Raises:
            LearnerError: a loss or a gradient is not finite. The weights are as they were before
                that update.
        """
        began = time.monotonic()
        samples = batch.samples
        rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
        group = torch.tensor([sample.group for sample in samples])
        judged = torch.tensor([sample.judged for sample in samples])
        found = ADVANTAGES[self._job.algorithm.name](rewards, group, judged)
        advantages: list[float] = found.tolist()
        parts = shares(samples, self._job.trainer.updatesPerStep)
        # The first update needs no old log-probs: they are those of its own passes.
        known = [
            [self._with_old(work) for work in self._works(samples, part, advantages)]
            for part in parts[1:]
        ]
        works: list[Iterable[Work]] = [self._works(samples, parts[0], advantages), *known]
        told = [
            self._update(batch.step, some, totals(samples, part))
            for some, part in zip(works, parts, strict=True)
        ]
        metrics = {name: float(value) for name, value in statistics(rewards, group, judged).items()}
        metrics |= over_updates(told) | self._counted.told()
        return metrics | {"seconds/train": time.monotonic() - began}

    def _works(
        self, samples: Sequence[Sample], share: Sequence[int], advantages: Sequence[float]
    ) -> Iterator[Work]:
        """The passes of this process in an update, made while the device is busy with others."""
        world, budget = self._world, self._job.trainer.tokensPerMicroBatch
        silent, loud = silent_and_loud(samples, share, advantages, self._job.algorithm)
        for which, learns in ((silent, False), (loud, True)):
            for pass_ in plan(samples, which, budget, world.size)[world.rank]:
                work = prepared(
                    samples,
                    pass_,
                    advantages,
                    learns=learns,
                    padded=self._padded,
                    device=world.device,
                )
                if self._reference is not None:
                    work = replace(work, reference=self._quiet(self._reference, work.layout))
                yield work

    def _with_old(self, work: Work) -> Work:
        return replace(work, old=self._quiet(self.policy, work.layout))

    def _quiet(self, policy: Policy, placed: Layout) -> Tensor:
        """Log-probs without a gradient."""
        with torch.no_grad():
            log_probs = policy(placed).log_probs
        self._forget(policy)
        return log_probs

    def _forget(self, policy: Policy) -> None:
        """Drops what a pass without a backward pass leaves gathered: it would be stale later."""
        if self._sharded:
            policy.reshard()

    def _update(self, step: int, works: Iterable[Work], counts: Totals) -> dict[str, float]:
        """One optimiser update."""
        if not counts.tokens:
            return {"tokens/trained": 0.0}
        passed = 0
        parts = []
        try:
            for work in works:
                parts.append(self._pass(work, counts))
                passed += len(work.layout.ids) * work.learns
            numbers = self._numbers(self._gathered(combine(parts)))
            for name in ("loss", "grad/norm"):
                if not math.isfinite(numbers[name]):
                    raise LearnerError(_not_finite(step, name, numbers))
            lr = rate(self._job.trainer, self.updates + 1)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
            self.updates += 1
        finally:
            # After a failure, too; and while the next batch is drawn they would only take memory.
            self._optimizer.zero_grad()
        counted = {"tokens/trained": float(counts.tokens), "tokens/passed": float(passed)}
        return numbers | counted | {"lr": lr}

    def _pass(self, work: Work, counts: Totals) -> dict[str, Tensor]:
        """A pass's share of the update: gradients and metrics."""
        with torch.set_grad_enabled(work.learns):
            loss: Loss
            if self._way == "fused" and work.learns:
                loss = self.policy(work.layout, use=self._folding(work, counts))
            else:
                loss = self._loss(work, counts)
        if work.learns:
            # FSDP averages over the processes, but their shares are to be added.
            (loss.value * self._world.size).backward()
        else:
            self._forget(self.policy)
        return loss.metrics

    def _folding(self, work: Work, counts: Totals) -> Callable[[Tensor, Tensor], Loss]:
        return partial(
            kernels.folded,
            work=work,
            algorithm=self._job.algorithm,
            totals=counts,
            temperature=self.policy.temperature,
            chunk=self.policy.chunk,
        )

    def _loss(self, work: Work, counts: Totals) -> Loss:
        """Log-probs first, then their loss."""
        algorithm = self._job.algorithm
        predicted = self.policy(work.layout, "learned" if algorithm.entropy else "watched")
        packed = Packed(
            log_probs=predicted.log_probs,
            sampler=work.sampler,
            advantages=work.advantages,
            sequence=work.layout.sequence,
            mask=work.mask,
            old=work.old,
            reference=work.reference,
            entropy=predicted.entropy,
        )
        return self._policy_loss(packed, algorithm, counts)

    def _gathered(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        """The metrics of all processes together."""
        signs = {name: -1 if name.endswith("/min") else 1 for name in told}
        extreme = [name for name in told if name.endswith(("/max", "/min"))]
        summed = [name for name in told if name not in extreme]
        sums = torch.stack([told[name] for name in summed])
        largest = torch.stack([told[name] * signs[name] for name in extreme])
        add_up(sums, largest, self._world)
        found = dict(zip(summed, sums, strict=True))
        return found | {n: v * signs[n] for n, v in zip(extreme, largest, strict=True)}

    def _numbers(self, told: dict[str, Tensor]) -> dict[str, float]:
        """Clips the gradient and waits for the device: the metrics and the gradient's length."""
        for parameter in self._named.values():
            # Where nothing learned, AdamW still goes on as far as its momentum says.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        clip = self._job.trainer.gradientClip
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), clip)
        values = torch.stack([*told.values(), whole(norm)]).tolist()
        return dict(zip((*told, "grad/norm"), values, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """What the engines are to have: copies on the CPU, named as in Hugging Face files.

        In the dtype of the job's precision. Process 0 gets them; the others get nothing.
        """
        half = self._job.trainer.precision == "bf16"
        found = {}
        for name, parameter in self._named.items():
            tensor = whole(parameter)
            if not self._world.rank:
                found[name] = tensor.to("cpu", torch.bfloat16 if half else torch.float32, copy=True)
        if self._world.rank:
            return {}
        result: dict[str, Tensor] = revert_weight_conversion(self.policy.model, found)
        return result

    def write(self, folder: Path) -> None:
        """Writes a Hugging Face folder that SGLang can serve; process 0 does.

        Raises:
            OSError: it cannot be written.
        """
        weights = self.weights()
        if not self._world.rank:
            write_model(folder, self._job.model.path, weights)

    def state(self) -> dict[str, Tensor]:
        """All that resuming exactly needs (see `snapshot`); process 0 gets it."""
        return snapshot.taken(self._named, self._optimizer, self.updates, self._world)

    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Goes on exactly where `state` was asked for.

        Args:
            state: what it returned; None in processes other than 0.

        Raises:
            StateError: it is of another model.
        """
        self.updates = snapshot.restored(state, self._named, self._optimizer, self._world)


def _not_finite(step: int, name: str, numbers: Mapping[str, float]) -> str:
    what = "the loss" if name == "loss" else "the gradient"
    seen = ", ".join(f"{n} {v:.4g}" for n, v in numbers.items() if n in SHOWN)
    return (
        f"step {step}: {what} is {numbers[name]}; the weights were left as they are ({seen}). "
        "Lower trainer.learningRate, or look at the last batches' ratio and mismatch"
    )
