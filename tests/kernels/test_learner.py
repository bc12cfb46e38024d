"""The trainer's learner on the kernels: steps are those of plain PyTorch, to float32's rounding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig, Qwen2Config

from assay_trainer import exact
from assay_trainer.kernels import KernelError
from assay_trainer.learner import Learner
from assay_trainer.model import random_policy
from assay_trainer.packing import layout
from assay_trainer.processes import World
from tests.kernels.heads import DEVICE
from tests.trainer.learners import OBJECTIVES, apart, first_gradients
from tests.trainer.models import SIZES, batch, config, job, policy, sequences

MADE = batch(seed=1, groups=3, size=2, unjudged=1, same=1)
FUSED: dict[str, Any] = {"trainer__kernels": "fused"}
EXACT: dict[str, Any] = {"trainer__deterministic": True, "trainer__kernels": "auto"}
OF_TIME = {"seconds/train", "tokens/passed"}
SMALL: dict[str, Any] = {"num_hidden_layers": 1}

in_float32 = pytest.mark.skipif(
    DEVICE.type == "cuda",
    reason="a GPU computes it in bf16 only, with heads of 128: gpu_true_on_policy.py",
)
every_kind = pytest.mark.parametrize(
    "kind", [FUSED, pytest.param(EXACT, marks=in_float32)], ids=["fused", "deterministic"]
)


def learner(**changes: Any) -> Learner:
    """Of one layer: the interpreter takes its time."""
    made = job(**{"trainer__kernels": "stock", "algorithm__groupSize": 2, **changes})
    reference = policy(seed=5, **SMALL) if made.algorithm.kl.coef else None
    return Learner(
        made, World(device=DEVICE), policy(temperature=made.rollout.temperature, **SMALL), reference
    )


def largest(gradients: dict[str, Tensor]) -> float:
    return max(float(gradient.abs().max()) for gradient in gradients.values())


def alike(made: Learner, told: dict[str, float], other: Learner, again: dict[str, float]) -> None:
    """The same gradients and metrics."""
    wanted = first_gradients(made)
    assert apart(first_gradients(other), wanted) < 2e-5 * largest(wanted)
    for name in {name for name in told if not name.startswith("kernels/")} - OF_TIME:
        assert again[name] == pytest.approx(told[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((FUSED, changes) for changes in OBJECTIVES.values()),
        (FUSED, {"rollout__temperature": 0.7}),
        # Here log-probs and entropies come in another way, and their gradients; the loss does not.
        pytest.param(
            EXACT, {**OBJECTIVES["entropy"], "rollout__temperature": 0.7}, marks=in_float32
        ),
    ],
    ids=[*OBJECTIVES, "temperature", "deterministic"],
)
def test_a_step_has_the_loss_the_gradient_and_the_metrics_of_plain_pytorch(
    kind: dict[str, Any], changes: dict[str, Any]
) -> None:
    plain, made = learner(**changes), learner(**kind, **changes)
    alike(plain, plain.learn(MADE), made, made.learn(MADE))


@pytest.mark.parametrize("loss", ["clip", "gspo"])
def test_later_updates_of_a_step_are_those_of_plain_pytorch(loss: str) -> None:
    """GSPO with old log-probs needs whole sequences, so head and loss are two steps there."""
    more = {
        "trainer__updatesPerStep": 2,
        "algorithm__loss": loss,
        # A rate at which AdamW does not blow the rounding of gradients near 0 up.
        "trainer__learningRate": 1e-4,
    }
    plain, made = learner(**more), learner(**FUSED, **more)
    told, again = plain.learn(batch(groups=4, size=2)), made.learn(batch(groups=4, size=2))
    for name in {name for name in told if not name.startswith("kernels/")} - OF_TIME:
        assert again[name] == pytest.approx(told[name], rel=1e-3, abs=1e-4), name


@every_kind
def test_what_passes_add_up_to_does_not_depend_on_how_a_batch_is_cut(kind: dict[str, Any]) -> None:
    whole, cut = learner(**kind), learner(**kind, trainer__tokensPerMicroBatch=36)
    told, again = whole.learn(MADE), cut.learn(MADE)
    heads = "kernels/linear_policy_loss" if kind is FUSED else "kernels/policy_loss"
    assert again[heads] > told[heads]
    alike(whole, told, cut, again)
    if kind is EXACT:
        # Two passes forward, one back, of one layer and the norm that follows it.
        assert told["kernels/qk_norm_rope"] == told["kernels/silu_mul"] == 2 + 1
        assert told["kernels/rms_norm"] == (2 + 1) * 3
        # Gradients of products are PyTorch's; the head goes chunk by chunk.
        assert told["kernels/matmul"] >= 2 * (7 + 1)
        # And so do log-probs, whose sums are those of the engine's sampler.
        assert told["kernels/sampler"] >= 2
    assert told["kernels/fallbacks"] == 0


def test_metrics_tell_how_often_each_kernel_ran_in_a_step() -> None:
    made = learner(**FUSED)
    told = made.learn(MADE)
    # One pass with a gradient; one without, of the group whose rewards are all alike.
    assert told["kernels/linear_policy_loss"] == 1
    assert told["kernels/linear_logprob"] == 1
    assert told["kernels/policy_loss"] == 1
    assert told["kernels/fallbacks"] == 0
    assert made.learn(MADE)["kernels/linear_policy_loss"] == 1
    assert not any(name.startswith("kernels/") for name in learner().learn(MADE))


@in_float32
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_deterministic_model_says_what_the_plain_one_says(kind: str) -> None:
    pairs = sequences(groups=2)
    plain, made = (policy(kind, **SMALL).to(DEVICE) for _ in range(2))
    made.run_with_kernels("exact")
    placed = layout(pairs, padded=True).to(DEVICE)
    with torch.no_grad():
        wanted, found = plain(placed), made(placed)
    assert torch.allclose(found.log_probs, wanted.log_probs, atol=1e-4)
    assert torch.allclose(found.entropy, wanted.entropy, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Qwen2Config(**SIZES), r"architecture qwen2 is none of llama, qwen3"),
        (config(hidden_act="gelu"), r"the activation gelu is not done"),
        (
            config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            r"rotary positions of type linear are not done",
        ),
        (
            config(use_sliding_window=True, sliding_window=8, max_window_layers=0),
            r"sliding windows are not done",
        ),
    ],
    ids=["architecture", "activation", "positions", "windows"],
)
def test_a_model_whose_operations_are_not_known_is_refused_with_the_reason(
    model: PretrainedConfig, what: str
) -> None:
    made = random_policy(model, temperature=1.0, chunk=7)
    with pytest.raises(KernelError, match=what):
        Learner(job(**EXACT, trainer__precision="bf16"), World(device=DEVICE), made)


@pytest.mark.parametrize(
    ("capability", "what"),
    [
        ((9, 0), r"heads are 8 wide: .* only those of 128"),
        ((8, 0), r"the GPU has compute capability 8\.0: .* on Hopper alone \(9\.x\)"),
        ((10, 3), r"the GPU has compute capability 10\.3: .* on Hopper alone \(9\.x\)"),
    ],
)
def test_a_gpu_on_which_attention_is_not_known_to_be_exact_is_refused(
    capability: tuple[int, int], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    on_gpu: Any = SimpleNamespace(config=config(), device=torch.device("cuda"))
    with pytest.raises(KernelError, match=what):
        exact.replace(on_gpu)
