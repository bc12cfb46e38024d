"""Whether the learner benchmark compares like with like: all arms' loss and gradients on one batch.

    python -m benchmarks.learner_check

A tiny model in fp32 on the CPU, two settings (shared prompts of mixed lengths; equal lengths), one
update of each arm from the same weights. Liger's layers need a GPU and are left out here: the
benchmark itself tells the first update's loss and gradient of every arm.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from assay_trainer.processes import joined
from benchmarks.learner import ON_CPU, SMALL
from benchmarks.learner_arms import make
from benchmarks.learner_batch import TINY, Setting, record
from benchmarks.learner_ours import FromRecords, job, samples
from benchmarks.learner_trl import trainer

CLOSE = 1e-4
"""The largest relative difference of a parameter's gradient, in fp32."""
NO_CLIP = 1e6

Update = tuple[float, dict[str, torch.Tensor]]


def ours(folder: Path, setting: Setting) -> Update:
    """Loss and gradients of our learner's first update."""
    batch = record(setting, TINY)
    with joined("cpu") as world:
        learner = FromRecords.load(job(folder, setting, on_gpu=False, clip=NO_CLIP), world)
        found: dict[str, torch.Tensor] = {}

        def look(*_: Any) -> None:
            found.update(gradients(learner.policy.model))

        hook = register_optimizer_step_pre_hook(look)
        told = learner.update(samples(batch), batch.advantages)
        hook.remove()
        return told["loss"], found


def theirs(arm: str, folder: Path, setting: Setting) -> Update:
    """Loss and gradients of TRL's first update."""

    class Look(TrainerCallback):
        found: Update

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            self.found = (float(made.loss), gradients(made.model))

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> Any:
            control.should_training_stop = True
            return control

    look = Look()
    made = trainer(
        arm,
        folder,
        sequences=setting.sequences,
        per_pass=setting.per_pass,
        on_gpu=False,
        callback=look,
        clip=NO_CLIP,
    )
    made.load(record(setting, TINY))
    made.train()
    return look.found


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's gradients."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def farthest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest relative difference of any parameter's gradient."""
    if one.keys() != other.keys():
        raise ValueError(f"not the same parameters: {sorted(one.keys() ^ other.keys())}")
    return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in one)


def main() -> int:
    apart = 0.0
    with tempfile.TemporaryDirectory(prefix="learner-") as temporary:
        folder = Path(temporary) / "model"
        make(folder, "tiny")
        for setting in SMALL:
            found = {
                arm: ours(folder, setting) if arm == "ours" else theirs(arm, folder, setting)
                for arm in ON_CPU
            }
            loss, base = found["trl"]
            for arm, (own, slopes) in found.items():
                far = max(farthest(slopes, base), abs(own - loss) / abs(loss))
                apart = max(apart, far)
                print(f"{setting.name}: {arm:15} loss {own:.9f}, farthest from trl {far:.1e}")
    print(f"farthest {apart:.1e}, allowed {CLOSE:.0e}")
    return 0 if apart <= CLOSE else 1


if __name__ == "__main__":
    sys.exit(main())
