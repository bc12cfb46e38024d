"""The policy says what the plain model says, packed, in chunks and in little memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Gemma2Config, MambaConfig, Qwen3Config

from assay_trainer.attention import NAME
from assay_trainer.model import ModelError, Policy, load_policy, random_policy
from assay_trainer.packing import layout
from tests.trainer.models import SIZES, VOCABULARY, policy, sequences

ASKED = sequences(seed=2, groups=4, size=3)


def plain(made: Policy, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies by the model as transformers wrote it, one sequence at a time."""
    made.model.set_attn_implementation("eager")
    found, spread = [], []
    for prompt, completion in ASKED:
        logits = made.model(input_ids=torch.tensor([[*prompt, *completion]])).logits
        logs = functional.log_softmax(logits[0, len(prompt) - 1 : -1].float() / temperature, -1)
        found.append(logs.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1))
        spread.append(-(logs.exp() * logs).sum(-1))
    made.model.set_attn_implementation(NAME)
    return torch.cat(found), torch.cat(spread)


def gradients(made: Policy, value: Tensor) -> dict[str, Tensor]:
    made.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


def weighted(log_probs: Tensor) -> Tensor:
    """Any number that depends on each token in its own way."""
    return (log_probs * torch.linspace(-1, 1, len(log_probs))).sum()


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, by each tensor's largest value."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in one)


MODELS: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama"},
    "qwen3": {"kind": "qwen3"},
    "one key head": {"num_key_value_heads": 1},
    "as many key heads": {"num_key_value_heads": 4},
    "tied": {"tie_word_embeddings": True},
    "sliding": {
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "dropout": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_log_probs_and_gradients_are_those_of_the_plain_model(
    changes: dict[str, Any], temperature: float
) -> None:
    made = policy(**changes, temperature=temperature)
    said = made(layout(ASKED, padded=True))
    packed = gradients(made, weighted(said.log_probs))
    made.eval()
    log_probs, entropy = plain(made, temperature)
    torch.testing.assert_close(said.log_probs, log_probs, atol=5e-6, rtol=1e-6)
    torch.testing.assert_close(said.entropy, entropy, atol=5e-6, rtol=1e-6)
    assert apart(packed, gradients(made, weighted(log_probs))) < 2e-5


def test_the_entropy_has_a_gradient_where_it_is_to_be_learned_and_none_else() -> None:
    made = policy()
    watched = made(layout(ASKED, padded=True))
    assert not watched.entropy.requires_grad
    said = made(layout(ASKED, padded=True), "learned")
    packed = gradients(made, weighted(said.entropy) + said.log_probs.sum())
    log_probs, entropy = plain(made)
    assert apart(packed, gradients(made, weighted(entropy) + log_probs.sum())) < 2e-5


def test_a_sequence_has_the_same_log_probs_whatever_lies_beside_it() -> None:
    made = policy()
    together = made(layout(ASKED, padded=True)).log_probs
    alone = [made(layout([one], padded=True)).log_probs for one in ASKED]
    torch.testing.assert_close(together, torch.cat(alone), atol=5e-6, rtol=1e-6)


def test_the_same_pass_gives_the_same_bits() -> None:
    made = policy()
    one, other = (made(layout(ASKED, padded=True)).log_probs for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_size_of_chunks_does_not_change_the_result(chunk: int) -> None:
    made = policy()
    wanted = made(layout(ASKED, padded=True)).log_probs
    before = gradients(made, weighted(wanted))
    made.chunk = chunk
    got = made(layout(ASKED, padded=True)).log_probs
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-6)
    assert apart(gradients(made, weighted(got)), before) < 1e-5


def test_recomputed_activations_give_the_same_bits() -> None:
    made = policy()
    before = gradients(made, weighted(made(layout(ASKED, padded=True)).log_probs))
    made.checkpoint_activations()
    after = gradients(made, weighted(made(layout(ASKED, padded=True)).log_probs))
    assert all(torch.equal(after[name], before[name]) for name in before)


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


def test_logits_of_more_than_a_chunk_of_tokens_are_never_in_memory() -> None:
    wide = 5003
    made = policy(vocab_size=wide)
    placed = layout(ASKED, padded=True)
    assert len(placed.targets) > 10 * made.chunk
    with Largest() as largest:
        weighted(made(placed).log_probs).backward()
    head = wide * SIZES["hidden_size"]
    assert made.chunk * wide <= largest.numbers <= max(head, made.chunk * wide)


def test_bf16_passes_are_near_and_their_gradients_are_fp32() -> None:
    made, exact = policy(), policy()
    made.run_in_half(compiled=False)
    said, wanted = (one(layout(ASKED, padded=True)).log_probs for one in (made, exact))
    assert said.dtype == torch.float32
    assert 1e-5 < float((said - wanted).detach().abs().mean()) < 0.1
    near, true = (gradients(m, weighted(v)) for m, v in ((made, said), (exact, wanted)))
    for name, gradient in near.items():
        assert gradient.dtype == torch.float32
        assert functional.cosine_similarity(gradient.flatten(), true[name].flatten(), 0) > 0.99


# What cannot be trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy().model.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_the_model_that_was_saved_in_it(folder: Path) -> None:
    loaded = load_policy(folder, chunk=7)
    one, other = (m(layout(ASKED, padded=True)).log_probs for m in (loaded, policy()))
    assert torch.equal(one, other)


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_policy(folder)


def test_missing_weights_files_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        load_policy(folder)


def test_a_cut_off_weights_file_is_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded: SafetensorError"):
        load_policy(folder)


def test_a_weight_that_is_missing_is_not_drawn_at_random(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing_keys: model\.layers\.1\.mlp\.up_proj"):
        load_policy(folder)


def test_weights_of_another_size_are_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
    with pytest.raises(ModelError, match=r"cannot be loaded|mismatched_keys"):
        load_policy(folder)


def test_an_unknown_architecture_is_told_and_its_code_is_not_run(folder: Path) -> None:
    mark = folder / "ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(folder)
    assert not mark.exists()


def test_a_recurrent_architecture_is_refused() -> None:
    small = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="architecture mamba"):
        random_policy(small)


def test_an_architecture_whose_attention_is_more_than_softmax_is_refused() -> None:
    small = Gemma2Config(**SIZES, attn_logit_softcapping=50.0, query_pre_attn_scalar=8)
    with pytest.raises(ModelError, match=r"architecture gemma2 cannot be packed.*softcap"):
        random_policy(small)


def test_an_architecture_that_does_more_with_logits_is_refused() -> None:
    small = Gemma2Config(
        **SIZES,
        attn_logit_softcapping=None,
        final_logit_softcapping=0.05,
        initializer_range=0.3,
        query_pre_attn_scalar=8,
    )
    with pytest.raises(ModelError, match="architecture gemma2 cannot be packed: log-probs"):
        random_policy(small)


def test_random_policies_of_one_seed_are_the_same_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, other = (random_policy(Qwen3Config(**SIZES), seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)
