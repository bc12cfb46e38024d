"""The policy: a Hugging Face causal language model that takes packed passes and gives log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from assay_trainer import kernels
from assay_trainer.attention import NAME, packed_attention, rows
from assay_trainer.halves import run_in_half
from assay_trainer.head import log_probs
from assay_trainer.packing import Layout, layout

AttentionInterface.register(NAME, packed_attention)

NEAR = 2e-3
"""The farthest that a log-prob of the packed model may be from the plain one's, in fp32. Rounding
makes 1e-6 to 1e-4; a token that sees another sequence, or a position that is wrong, far more."""

Entropy = Literal["watched", "learned"]
Head = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
"""Log-probs and entropies, [R] fp32 each, from hidden states [R, H], the head's weight [V, H],
targets [R], and whether entropies have a gradient."""


class ModelError(RuntimeError):
    """A model cannot be loaded, or cannot be trained here; the message says why."""


@dataclass(frozen=True)
class Predicted:
    """What the policy says of a pass's completion tokens, each [R] fp32.

    Attributes:
        log_probs: of the tokens.
        entropy: of the distributions that they were drawn from.
    """

    log_probs: Tensor
    entropy: Tensor


class Policy(nn.Module):  # type: ignore[misc]
    """A causal language model whose attention is packed.

    Attributes:
        model: transformers' own.
        temperature: divides the logits.
        chunk: tokens whose logits are in memory at one time.
        head: what makes log-probs of hidden states.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float, chunk: int) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.chunk = chunk
        self.head: Head = self._stock
        for module in model.modules():
            # Log-probs are to be those that the engine samples with.
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.train()

    def forward(
        self,
        pass_: Layout,
        entropy: Entropy = "watched",
        use: Callable[[Tensor, Tensor], Any] | None = None,
    ) -> Any:
        """Log-probs of all completion tokens of a pass, or what else is made of its hidden states.

        Args:
            pass_: on the model's device.
            entropy: whether entropies have a gradient.
            use: takes hidden states [R, H] of what predicts them and the head's weight [V, H]. Here
                and not outside, since the weight of a sharded model is whole only here.

        Returns:
            `Predicted`, or what `use` returns.
        """
        hidden = self.model.base_model(
            input_ids=pass_.ids[None],
            position_ids=pass_.positions[None],
            use_cache=False,
            layout=pass_,
        ).last_hidden_state[0]
        some, weight = rows(hidden, pass_.sources), self.model.get_output_embeddings().weight
        if use is not None:
            return use(some, weight)
        return Predicted(*self.head(some, weight, pass_.targets, entropy == "learned"))

    def run_with_kernels(self, way: kernels.Way) -> None:
        """Computes with assay_kernels; comes last, when the model is where it computes.

        Args:
            way: fused or exact.

        Raises:
            KernelError: exact is not known of this model.
        """
        if way == "exact":
            # Not at the top: it needs assay_kernels, which not every image has.
            from assay_trainer.exact import replace  # noqa: PLC0415

            replace(self.model)
        self.head = kernels.head(way, temperature=self.temperature, chunk=self.chunk)

    def _stock(
        self, rows: Tensor, weight: Tensor, targets: Tensor, learns: bool
    ) -> tuple[Tensor, Tensor]:
        return log_probs(
            rows,
            weight,
            targets,
            temperature=self.temperature,
            chunk=self.chunk,
            entropy_learns=learns,
        )

    def layers(self) -> Iterator[nn.Module]:
        """The decoder's layers: what is sharded, checkpointed and compiled one by one."""
        kinds = set(self.model._no_split_modules or ())
        return (m for m in self.model.modules() if type(m).__name__ in kinds)

    def checkpoint_activations(self) -> None:
        """Keeps only what goes into each layer; the rest is computed again in the backward pass."""
        # There is no dropout, so no random state has to be kept.
        options = {"use_reentrant": False, "preserve_rng_state": False}
        self.model.gradient_checkpointing_enable(options)

    def compile_layers(self) -> None:
        """Fuses what a layer does between its matrix products; pays on GPUs.

        One compiled layer serves all, of any number of tokens.
        """
        for layer in self.layers():
            layer.compile(dynamic=True)

    def run_in_half(self, compiled: bool) -> None:
        """Calculates in bf16 with the fp32 weights, where there is only one process.

        Args:
            compiled: as in `compile_layers`.
        """
        layers = list(self.layers())
        inside = {id(module) for layer in layers for module in layer.modules()}
        for layer in layers:
            run_in_half(layer, _compiled if compiled else lambda run: run)
        head = self.model.get_output_embeddings()
        for module in self.model.modules():
            # What is left is the norm, for the embeddings are rounded when they come into a layer
            # and the head is when log-probs are made.
            left = id(module) not in inside and not isinstance(module, nn.Embedding)
            if left and module is not head and [*module.parameters(recurse=False)]:
                run_in_half(module)


def _compiled(run: Any) -> Any:
    return torch.compile(run, dynamic=True)


def load_policy(folder: Path, *, temperature: float = 1.0, chunk: int = 2048) -> Policy:
    """The model in a folder, in fp32 on the CPU, and what it says when packed was compared.

    Only safetensors are read, and no code that comes with a model is run.

    Raises:
        ModelError: a file is missing or corrupt, weights are missing, or it cannot be packed.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: it is no Hugging Face folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as reason:
        raise ModelError(f"{folder} cannot be loaded: {_first_line(reason)}") from reason
    # transformers would go on with random numbers in their place.
    wrong = {
        name: sorted(map(str, report.get(name) or ()))
        for name in ("missing_keys", "mismatched_keys", "error_msgs")
    }
    if told := [f"{name}: {', '.join(keys[:4])}" for name, keys in wrong.items() if keys]:
        raise ModelError(f"{folder}: weights do not fit config.json: {'; '.join(told)}")
    return _checked(model, temperature, chunk)


def random_policy(
    config: PretrainedConfig | Path, *, temperature: float = 1.0, chunk: int = 2048, seed: int = 0
) -> Policy:
    """A policy with random weights, without files: for benchmarks and tests.

    Args:
        config: the architecture, or a folder with its config.json.
        temperature: divides the logits.
        chunk: tokens whose logits are in memory at one time.
        seed: of the weights.
    """
    if isinstance(config, Path):
        config = AutoConfig.from_pretrained(config, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _checked(model, temperature, chunk)


def _first_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {str(reason).strip().splitlines()[0] if str(reason) else ''}"


def _checked(model: PreTrainedModel, temperature: float, chunk: int) -> Policy:
    """The model as a policy, if packing changes nothing about it.

    Raises:
        ModelError: it does: sequences see each other, or the head is more than a matrix.
    """
    kind = model.config.model_type
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ModelError(f"architecture {kind}: its head is not a matrix alone")
    policy = Policy(model, temperature=temperature, chunk=chunk)
    several = _probe(model.config.get_text_config().vocab_size)
    model.eval()
    with torch.no_grad():
        plain = [_plain(model, prompt, completion, temperature) for prompt, completion in several]
        try:
            model.set_attn_implementation(NAME)
            packed = policy(layout(several, padded=True)).log_probs
        except Exception as reason:
            raise ModelError(
                f"architecture {kind} cannot be packed: {_first_line(reason)}"
            ) from reason
    model.train()
    apart = float((packed - torch.cat(plain)).abs().max())
    # Written so that NaN is refused too.
    if not apart <= NEAR:
        raise ModelError(
            f"architecture {kind} cannot be packed: log-probs of sequences side by side differ by "
            f"{apart:.2g} from those of each alone"
        )
    return policy


def _probe(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Two samples of one prompt and one of another."""
    ids = [(7 * i + 3) % vocabulary for i in range(24)]
    return [(ids[:5], ids[5:9]), (ids[:5], ids[9:16]), (ids[16:18], ids[18:24])]


def _plain(
    model: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float
) -> Tensor:
    """Log-probs of one completion by the model as transformers wrote it."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    logs = functional.log_softmax(logits / temperature, -1)
    return logs.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)


def count(module: nn.Module) -> int:
    """Parameters, each tied one once."""
    return sum(parameter.numel() for parameter in module.parameters())
