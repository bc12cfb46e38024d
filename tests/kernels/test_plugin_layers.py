"""The plugin's hooks on SGLang's layers and sampler: what they compute, and when they step aside.

The layers here are small copies of SGLang's, with the attributes that the hooks read; the real ones
run in tests/engine/test_plugin_server.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.integrations import sglang_layers, sglang_sampler
from assay_kernels.integrations.gates import Calls
from assay_kernels.qk_norm_rope import reference as heads
from assay_kernels.rms_norm import reference as norms
from assay_kernels.sampler import reference as samples
from assay_kernels.silu_mul import reference as gates
from tests.kernels.heads import DEVICE
from tests.kernels.steps import normal


def norm(width: int, **more: Any) -> SimpleNamespace:
    """As SGLang's RMSNorm."""
    return SimpleNamespace(
        **{
            "weight": torch.nn.Parameter(torch.linspace(0.5, 1.5, width)),
            "variance_epsilon": 1e-6,
            "variance_size_override": None,
            "cast_x_before_out_mul": False,
            "fp32_residual": False,
            "override_orig_dtype": None,
            "hidden_size": width,
            **more,
        }
    )


def stock(*_: Any, **__: Any) -> str:
    """SGLang's own code, which shall run or shall not."""
    return "stock"


def rows(*shape: int, seed: int = 0) -> Tensor:
    """On the CPU, where hooks do not ask SGLang for its mode."""
    return normal(*shape, seed=seed).cpu()


def test_a_norm_and_a_norm_after_an_addition_run_on_the_op() -> None:
    calls, layer, x, residual = Calls(), norm(8), rows(3, 8), rows(3, 8, seed=1)
    around = sglang_layers.rms_norm(calls, "forward_native").around
    torch.testing.assert_close(around(stock, layer, x), norms.rms_norm(x, layer.weight))
    normed, total = around(stock, layer, x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, norms.rms_norm(total, layer.weight))
    assert not normed.requires_grad
    assert calls.reasons() == {}


@pytest.mark.parametrize(
    ("layer", "arguments", "why_not"),
    [
        (norm(8, variance_size_override=4), {}, "the mean is over a part of the row"),
        (
            norm(8, cast_x_before_out_mul=True),
            {},
            "the row is rounded before the weight multiplies it",
        ),
        (norm(8, fp32_residual=True), {}, "the sum is kept in float32"),
        (
            norm(8, override_orig_dtype=torch.float16),
            {},
            "the result has another dtype than the row",
        ),
        (norm(4), {}, "rows are of another width than the weight"),
        (norm(8), {"post_residual_addition": rows(3, 8)}, "three rows are added up"),
        (norm(8), {"residual": rows(3, 8).double()}, "the residual is of another dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_norm_of_another_kind_stays_sglangs(
    layer: SimpleNamespace, arguments: dict[str, Any], why_not: str
) -> None:
    calls = Calls()
    around = sglang_layers.rms_norm(calls, "forward_native").around
    assert around(stock, layer, rows(3, 8), **arguments) == "stock"
    assert calls.reasons() == {why_not: 1}


def test_no_rows_are_left_to_sglang() -> None:
    calls = Calls()
    assert (
        sglang_layers.rms_norm(calls, "forward_native").around(stock, norm(8), rows(0, 8))
        == "stock"
    )
    assert sglang_layers.silu_mul(calls, "forward_native").around(stock, None, rows(0, 8)) == (
        "stock"
    )
    assert calls.reasons() == {"there are no rows": 2}


def test_a_layer_gets_back_what_a_later_version_added_to_its_arguments() -> None:
    seen: list[Any] = []

    def original(*arguments: Any, **named: Any) -> None:
        seen.extend((len(arguments), named))

    around = sglang_layers.rms_norm(Calls(), "forward_native").around
    around(original, norm(8, fp32_residual=True), rows(3, 8), quant_linear=None)
    assert seen == [4, {"quant_linear": None}]


def test_swiglu_runs_on_the_op() -> None:
    x = rows(3, 8)
    found = sglang_layers.silu_mul(Calls(), "forward_native").around(stock, None, x)
    torch.testing.assert_close(found, gates.silu_mul(x[:, :4], x[:, 4:]))


class RotaryEmbedding(SimpleNamespace):
    """As SGLang's, by its name."""


class YarnScalingRotaryEmbedding(RotaryEmbedding):
    """A rotation of another kind."""


def attention(**more: Any) -> SimpleNamespace:
    """As SGLang's Qwen3Attention with 2 heads of queries and 1 of keys, 4 wide."""
    rotary = more.pop("rotary", RotaryEmbedding)
    return SimpleNamespace(
        **{
            "rotary_emb": rotary(is_neox_style=True, rotary_dim=4, cos_sin_cache=rows(9, 4)),
            "q_norm": norm(4),
            "k_norm": norm(4),
            "head_dim": 4,
            "q_size": 8,
            "kv_size": 4,
            "qkv_proj": lambda x: (x, None),
            **more,
        }
    )


def test_heads_are_normed_and_rotated_by_the_op_and_values_stay() -> None:
    calls, layer, packed, positions = Calls(), attention(), rows(3, 16), torch.tensor([8, 0, 3])
    q, k, v = sglang_layers.qk_norm_rope(calls)[0].around(stock, layer, positions, packed)
    wanted = heads.qk_norm_rope(
        *(packed[:, :8].view(3, 2, 4), packed[:, 8:12].view(3, 1, 4)),
        *(layer.q_norm.weight, layer.k_norm.weight, layer.rotary_emb.cos_sin_cache, positions),
    )
    torch.testing.assert_close((q, k), (wanted[0].view(3, 8), wanted[1].view(3, 4)))
    torch.testing.assert_close(v, packed[:, 12:])
    assert calls.reasons() == {}


def test_llamas_heads_are_rotated_alone() -> None:
    layer, packed, positions = attention(), rows(3, 16), torch.tensor([8, 0, 3])
    del layer.q_norm, layer.k_norm
    q, k, v = sglang_layers.qk_norm_rope(Calls())[1].around(stock, layer, positions, packed)
    wanted = heads.qk_norm_rope(
        *(packed[:, :8].view(3, 2, 4), packed[:, 8:12].view(3, 1, 4)),
        *(None, None, layer.rotary_emb.cos_sin_cache, positions),
    )
    torch.testing.assert_close((q, k), (wanted[0].flatten(1), wanted[1].flatten(1)))
    torch.testing.assert_close(v, packed[:, 12:])


@pytest.mark.parametrize(
    ("layer", "positions", "why_not"),
    [
        (
            attention(rotary=YarnScalingRotaryEmbedding),
            torch.tensor([1, 2, 3]),
            "positions are rotated by YarnScalingRotaryEmbedding",
        ),
        (attention(head_dim=8), torch.tensor([1]), "not whole heads are rotated, half by half"),
        (attention(), torch.zeros(3, 1), "a token has several positions"),
        (attention(), torch.tensor([]), "there are no tokens"),
        (
            attention(k_norm=norm(4, variance_epsilon=1e-5)),
            torch.tensor([1]),
            "queries and keys are normalised differently",
        ),
        (
            attention(q_norm=norm(4, cast_x_before_out_mul=True)),
            torch.tensor([1]),
            "heads are normalised in another way",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attention_of_another_kind_stays_sglangs(
    layer: SimpleNamespace, positions: Tensor, why_not: str
) -> None:
    calls = Calls()
    assert (
        sglang_layers.qk_norm_rope(calls)[0].around(stock, layer, positions, rows(3, 16)) == "stock"
    )
    assert calls.reasons() == {why_not: 1}


def test_products_run_on_the_op_where_its_kernel_does() -> None:
    """Where it does not they stay SGLang's: the reference is a torch.mm, which SGLang replaces."""
    calls, a, weight = Calls(), rows(3, 8).to(DEVICE), rows(5, 8, seed=1).to(DEVICE)
    persistent, to_dtype = (patch.around for patch in sglang_layers.matmul(calls))
    torch.testing.assert_close(persistent(stock, a, weight.t()), a @ weight.t())
    torch.testing.assert_close(to_dtype(stock, a, weight.t(), torch.float32), a @ weight.t())
    assert persistent(stock, a.double(), weight.double().t()) == "stock"
    assert persistent(stock, a, weight.t(), rows(3, 5).to(DEVICE)) == "stock"
    assert persistent(stock, a[:0], weight.t()) == "stock"
    assert to_dtype(stock, a, weight.t(), torch.float16) == "stock"
    assert calls.reasons() == {
        "x is torch.float64": 1,
        "the bias is no row": 1,
        "the product is empty": 1,
        "the result is torch.float16": 1,
    }


def batch(size: int, **more: Any) -> SimpleNamespace:
    """As SGLang's SamplingBatchInfo."""
    return SimpleNamespace(
        **{
            "temperatures": torch.full((size, 1), 0.7),
            "sampling_seed": torch.arange(size),
            "top_ks": torch.full((size,), 3, dtype=torch.int32),
            "top_ps": torch.full((size,), 0.9),
            "min_ps": torch.zeros(size),
            "need_top_k_sampling": False,
            "need_top_p_sampling": False,
            "need_min_p_sampling": False,
            "is_all_greedy": False,
            "has_custom_logit_processor": False,
            "return_sampling_masks": [False] * size,
            **more,
        }
    )


class Sampler(SimpleNamespace):
    """As SGLang's; `synced` is what it would give the other ranks."""

    def _sync_token_ids_across_tp(self, tokens: Tensor, _: Any) -> None:
        self.synced = tokens


def own_sampler(**more: Any) -> Sampler:
    return Sampler(
        **{"rl_on_policy_target": None, "use_ascend_backend": False, "synced": None, **more}
    )


def sample(
    info: SimpleNamespace, logits: Tensor, log_probs: bool, calls: Calls | None = None
) -> tuple[Any, SimpleNamespace]:
    size = len(logits)
    output = SimpleNamespace(next_token_logits=logits, next_token_logprobs=None)
    around = sglang_sampler.sampler(calls or Calls()).around
    positions = torch.arange(size) + 5
    sampler = own_sampler()
    tokens = around(stock, sampler, output, info, log_probs, [0] * size, [None] * size, positions)
    assert sampler.synced is (None if tokens == "stock" else tokens)
    return tokens, output


@pytest.fixture(autouse=True)
def no_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang is not there to be asked for its settings."""
    monkeypatch.setattr(sglang_sampler, "_before_temperature", lambda: False)


def test_tokens_and_log_probs_are_those_of_the_op() -> None:
    logits, info = rows(4, 50), batch(4, need_top_k_sampling=True, need_top_p_sampling=True)
    kept = logits.clone()
    tokens, output = sample(info, logits, True)
    wanted = samples.sample(
        *(logits, info.temperatures.view(-1), info.sampling_seed, torch.arange(4) + 5),
        *(info.top_ks, info.top_ps),
    )
    assert torch.equal(tokens, wanted.tokens) and tokens.dtype == torch.int32
    torch.testing.assert_close(output.next_token_logprobs, wanted.log_probs)
    assert torch.equal(logits, kept)


def test_a_filter_that_nobody_asked_for_is_not_applied() -> None:
    logits, info = rows(64, 50), batch(64)
    tokens, _ = sample(info, logits, False)
    best = logits.topk(3).indices
    assert not (tokens[:, None] == best).any(1).all()


def test_a_greedy_batch_has_the_best_tokens_and_their_log_probs_at_temperature_1() -> None:
    """As SGLang's own sampler, which does not look at temperatures there."""
    logits, info = rows(4, 50), batch(4, is_all_greedy=True)
    tokens, output = sample(info, logits, True)
    assert torch.equal(tokens, logits.argmax(-1))
    wanted = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(output.next_token_logprobs, wanted)


def test_without_seeds_each_call_draws_anew() -> None:
    logits, info = torch.zeros(64, 50), batch(64, sampling_seed=None)
    torch.manual_seed(3)
    first, _ = sample(info, logits, False)
    second, _ = sample(info, logits, False)
    torch.manual_seed(3)
    again, _ = sample(info, logits, False)
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("sampler", "info", "watermark", "why_not"),
    [
        (
            own_sampler(rl_on_policy_target="fsdp"),
            batch(1),
            None,
            "rl-on-policy-target has a sampler of its own",
        ),
        (own_sampler(use_ascend_backend=True), batch(1), None, "the backend is for Ascend"),
        (
            own_sampler(),
            batch(1, return_sampling_masks=[True]),
            None,
            "a request asks for its sampling mask",
        ),
        (own_sampler(), batch(1), rows(1, 5), "tokens carry a watermark"),
        (own_sampler(), batch(1, is_all_greedy=True), None, sglang_sampler.ARGMAX),
        (own_sampler(), batch(1), None, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_batches_of_another_kind_stay_sglangs(
    sampler: Sampler, info: SimpleNamespace, watermark: Tensor | None, why_not: str
) -> None:
    assert sglang_sampler.misfit(sampler, info, False, watermark) == why_not


def test_a_batch_that_stays_sglangs_is_counted() -> None:
    calls = Calls()
    assert sample(batch(2, is_all_greedy=True), rows(2, 9), False, calls)[0] == "stock"
    assert calls.reasons() == {sglang_sampler.ARGMAX: 1}
