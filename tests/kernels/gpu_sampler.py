"""`sample` on a GPU: every dtype, odd and huge vocabularies, all filters, compile and graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from assay_kernels.sampler.op import OP, sample
from tests.kernels.draws import Requests, draw, same

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VOCABULARIES = [1, 127, 1_000, 32_000, 50_257, 151_936, 262_145]
CLOSE = 0.02
"""Of the rows, at most as many as that may have two tokens of as good as the same score, or one on
the edge of a filter."""

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def mixed(requests: Requests, seed: int = 5) -> Requests:
    """With filters of all kinds and sizes, and none in some rows."""
    rows, vocabulary = requests.logits.shape
    source = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, none: float) -> torch.Tensor:
        made = low + torch.rand(rows, generator=source) * (high - low)
        return torch.where(torch.rand(rows, generator=source) < 0.5, made, none)

    return requests.asking(
        top_ks=torch.exp(some(0.0, torch.tensor(float(vocabulary)).log().item(), -9.0)).int(),
        top_ps=some(0.0, 1.0, 1.0),
        min_ps=some(0.0, 0.3, 0.0),
    )


@every_dtype
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("spread", [0.5, 4.0], ids=["flat", "peaked"])
def test_tokens_are_those_of_sorting_in_float64(
    dtype: torch.dtype, vocabulary: int, spread: float
) -> None:
    requests = draw(64, vocabulary, spread=spread, dtype=dtype)
    before = OP.uses().fused
    same(requests.drawn(), requests.true(), but=CLOSE)
    filtered = mixed(requests)
    same(filtered.drawn(), filtered.true(), but=CLOSE)
    assert OP.uses().fused == before + 2


@pytest.mark.parametrize("most", [1, 2, 20, 1_000, 40_000])
def test_no_token_outside_the_filters_is_ever_drawn(most: int) -> None:
    """All rows have the same logits, full of equal ones, and every seed its own draw."""
    logits = draw(1, 151_936, spread=1.0).logits.mul(16).round().div(16)
    requests = replace(draw(512, 8, seed=9), logits=logits.expand(512, -1)).asking(top_ks=most)
    order = logits[0].sort(descending=True, stable=True).indices[:most]
    assert torch.isin(requests.drawn().tokens, order).all()


@every_dtype
def test_a_row_has_the_same_bits_in_batches_of_1_to_2048(dtype: torch.dtype) -> None:
    requests = mixed(draw(2_048, 32_000, spread=2.0, dtype=dtype))
    whole = requests.drawn()
    for size in (1, 8, 64, 257, 2_047):
        some = requests.only(slice(2_048 - size, None)).drawn()
        assert torch.equal(some.tokens, whole.tokens[-size:])
        assert torch.equal(some.log_probs, whole.log_probs[-size:])
    alone = requests.only(slice(0, 8))
    bare = alone.asking(top_ks=0, top_ps=1.0, min_ps=0.0)
    none = replace(alone, top_ks=None, top_ps=None, min_ps=None)
    assert torch.equal(bare.drawn().log_probs, none.drawn().log_probs)


def test_draws_come_as_often_as_tokens_are_probable() -> None:
    rows, vocabulary = 200_000, 40
    logits = draw(1, vocabulary, spread=1.0).logits.expand(rows, -1).contiguous()
    counting = torch.arange(rows, device="cuda")
    ones = torch.ones(rows, device="cuda")
    found = sample(logits, ones, counting // 1_000, counting % 1_000)
    probable = logits[0].double().softmax(-1) * rows
    seen = torch.bincount(found.tokens, minlength=vocabulary)
    chi_squared = float(((seen - probable) ** 2 / probable).sum())
    assert chi_squared < 73  # 39 degrees of freedom: exceeded once in 1,000 times


def test_more_logits_than_32_bits_can_count_are_read_at_their_places() -> None:
    """15,000 rows of 151,936 logits are 2.3e9 of them."""
    logits = torch.empty(15_000, 151_936, dtype=torch.bfloat16, device="cuda").normal_()
    requests = mixed(replace(draw(15_000, 8), logits=logits))
    whole, last = requests.drawn(), requests.only(slice(-20, None)).drawn()
    assert torch.equal(whole.tokens[-20:], last.tokens)
    assert torch.equal(whole.log_probs[-20:], last.log_probs)


def test_it_compiles_as_a_whole_and_runs_in_a_cuda_graph() -> None:
    requests = mixed(draw(16, 5_000))
    wanted = requests.drawn()
    compiled = torch.compile(sample, fullgraph=True)(*requests.arguments())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = requests.drawn()
    graph.replay()
    for found in (compiled, captured):
        assert torch.equal(found.tokens, wanted.tokens)
        assert torch.equal(found.log_probs, wanted.log_probs)
