"""TRL's arms of the learner benchmark: its own trainer, its own loop, a recorded batch.

`GRPOTrainer.train()` runs as it would for a user; only what it asks of the world is replaced:
instead of drawing completions and scoring them, `_prepare_inputs` hands out slices of a recorded
batch, padded and cut as TRL pads and cuts (the whole generation batch to its longest prompt and its
longest completion, then `per_device_train_batch_size` sequences a pass). A callback holds the loop
before each update until it is asked for one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Read when trl and datasets are imported: neither may ask anybody anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pyarrow
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad, split_tensor_dict

from benchmarks.learner_batch import CLIP, OPTIMISER, Recorded

ARMS: Mapping[str, tuple[bool, bool]] = {
    "trl": (False, False),
    "trl-liger": (True, False),
    "trl-liger-loss": (True, True),
    "trl-compiled": (False, False),
}
"""Liger's layers, Liger's loss. TRL 1.16 takes only the layers (use_liger_kernel) and computes
log-probs in chunks itself; older ones took the loss too, which the third arm still does."""

Tensors = dict[str, torch.Tensor]


class Prepared(GRPOTrainer):
    """TRL's trainer, fed with what was recorded.

    Attributes:
        pieces: the batch, one for each pass of an update.
        loss: of the last update, all passes together.
        grad_norm: of the last update, before clipping.
        full: whether the last update ended for want of memory.
    """

    pieces: list[Tensors]
    loss: torch.Tensor
    grad_norm: torch.Tensor
    full = False

    def load(self, batch: Recorded) -> None:
        """Takes another batch, of as many sequences as the trainer was made for."""
        tensors = padded(batch, self.accelerator.device)
        # What TRL divides by spans the generation batch: see its `_compute_loss`.
        windows = self.args.steps_per_generation / self.args.gradient_accumulation_steps
        tensors["num_items_in_batch"] = tensors["completion_mask"].sum() * windows
        self.pieces = split_tensor_dict(tensors, self.args.gradient_accumulation_steps)

    def _prepare_inputs(self, generation_batch: Any) -> Tensors:
        return self.pieces[self._step % len(self.pieces)]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        if self._step % len(self.pieces) == 0:
            self.full, self.loss = False, torch.zeros((), device=self.accelerator.device)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except torch.OutOfMemoryError:
            # The loop goes on, for another try with a shorter sequence.
            self.full = True
            model.zero_grad()
            self._step += 1
            return self.loss
        self.loss = self.loss + loss
        return loss

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        self.grad_norm = super()._clip_grad_norm(model)
        return self.grad_norm


class WithLigerLoss(Prepared):
    """The same with Liger's fused head and loss, bound as TRL bound it when it had it."""

    compiled = True

    def _compute_loss(self, model: Any, inputs: Tensors) -> torch.Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss  # noqa: PLC0415

        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        kept = inputs["completion_ids"].size(1)
        inner = self.accelerator.unwrap_model(model)
        fused = LigerFusedLinearGRPOLoss(
            beta=0.0,
            compiled=self.compiled,
            use_ref_model=False,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            loss_type=self.loss_type,
            temperature=self.temperature,
            max_completion_length=self.max_completion_length,
        )
        with self.accelerator.autocast():
            hidden = inner.model(input_ids=ids, attention_mask=mask, use_cache=False)
            loss, metrics = fused(
                hidden.last_hidden_state[:, :-1][:, -kept:],
                inner.lm_head.weight,
                inputs["completion_ids"],
                inputs["completion_mask"],
                inputs["advantages"],
                old_per_token_logps=inputs["old_per_token_logps"],
                num_items_in_batch=inputs["num_items_in_batch"],
            )
        self._metrics["train"]["clip_ratio"].append(metrics[-1].item())
        return loss


def padded(batch: Recorded, device: torch.device) -> Tensors:
    """The batch as TRL's `_generate_and_score_completions` would return it."""

    def left(rows: list[torch.Tensor]) -> torch.Tensor:
        return pad(rows, padding_value=0, padding_side="left").to(device)

    def right(rows: list[torch.Tensor]) -> torch.Tensor:
        return pad(rows, padding_value=0, padding_side="right").to(device)

    prompts = [torch.tensor(ids) for ids in batch.prompts]
    completions = [torch.tensor(ids) for ids in batch.completions]
    return {
        "prompt_ids": left(prompts),
        "prompt_mask": left([torch.ones_like(ids) for ids in prompts]),
        "completion_ids": right(completions),
        "completion_mask": right([torch.ones_like(ids) for ids in completions]),
        "old_per_token_logps": right([torch.tensor(values) for values in batch.old]),
        "advantages": torch.tensor(batch.advantages, device=device),
    }


def trainer(
    arm: str,
    folder: Path,
    *,
    sequences: int,
    per_pass: int,
    on_gpu: bool,
    callback: TrainerCallback,
    clip: float = OPTIMISER.clip,
) -> Prepared:
    """TRL's trainer, ready for `train()`.

    Args:
        arm: one of `ARMS`.
        folder: the model, as Hugging Face's libraries write it.
        sequences: of one update.
        per_pass: how many of them go through the model together.
        on_gpu: else on the CPU in fp32, without Liger's layers, which need a GPU.
        callback: told when an update begins and ends.
        clip: the longest gradient.
    """
    layers, loss = ARMS[arm]
    generation = max(sequences, 2)  # TRL wants a group of two at least, even where none is drawn.
    settings = GRPOConfig(
        output_dir=str(folder.parent / f"{arm}-out"),
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=sequences // per_pass,
        generation_batch_size=generation,
        num_generations=2,
        max_completion_length=1024,
        loss_type="dapo",
        epsilon=CLIP[0],
        epsilon_high=CLIP[1],
        beta=0.0,
        temperature=1.0,
        learning_rate=OPTIMISER.rate,
        lr_scheduler_type="constant",
        adam_beta1=OPTIMISER.betas[0],
        adam_beta2=OPTIMISER.betas[1],
        weight_decay=OPTIMISER.decay,
        max_grad_norm=clip,
        use_liger_kernel=layers and on_gpu,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        max_steps=100_000,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    made = (WithLigerLoss if loss else Prepared)(
        model=str(folder),
        reward_funcs=_no_reward,
        args=settings,
        # With a name, since some versions of pyarrow have things that it cannot be made from.
        train_dataset=Dataset(pyarrow.table({"prompt": ["x"] * 4096}), fingerprint="recorded"),
        processing_class=_tokenizer(),
        callbacks=[callback],
    )
    if isinstance(made, WithLigerLoss):
        made.compiled = on_gpu
    if arm == "trl-compiled":
        for layer in made.model.base_model.layers:
            layer.compile(dynamic=True)
    return made


def _no_reward(completions: list[str], **_: Any) -> list[float]:
    raise AssertionError("a recorded batch is not scored")


def _tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one; nothing is tokenised."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "x": 2}, unk_token="x"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
