"""Tokens from logits: those that sorting every row in float64 would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from assay_kernels.registry import Uses
from assay_kernels.sampler import reference
from assay_kernels.sampler.op import OP, score
from tests.kernels.draws import draw, same
from tests.kernels.heads import DEVICE

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("vocabulary", [1, 5, 128, 129, 3_000])
def test_without_filters_any_token_may_be_drawn(vocabulary: int) -> None:
    requests = draw(4, vocabulary)
    before = OP.uses().fused
    same(requests.drawn(), requests.true())
    assert OP.uses().fused == before + 1


def test_a_row_of_several_chunks_is_put_together_from_them() -> None:
    """A chunk is 16,384 tokens."""
    requests = draw(2, 40_001, spread=0.5)
    same(requests.drawn(), requests.true())


@pytest.mark.parametrize(
    "filters",
    [
        {"top_ks": [1, 2, 10, 40, 700, 2_999]},
        {"top_ps": [0.01, 0.1, 0.3, 0.6, 0.9, 0.999]},
        {"min_ps": [0.9, 0.5, 0.2, 0.05, 0.01, 1.0]},
        {
            "top_ks": [3, 50, 50, 2_000, 20, 5],
            "top_ps": [0.9, 0.5, 0.95, 0.7, 0.05, 0.99],
            "min_ps": [0.0, 0.01, 0.3, 0.0, 0.1, 0.02],
        },
    ],
    ids="+".join,
)
@pytest.mark.parametrize("spread", [0.3, 4.0], ids=["flat", "peaked"])
def test_filters_leave_out_what_ranks_too_low(filters: dict[str, Any], spread: float) -> None:
    requests = draw(6, 3_000, spread=spread, seed=1).asking(**filters)
    same(requests.drawn(), requests.true())


def test_of_equal_logits_the_first_tokens_rank_highest() -> None:
    """Five values in all, so that top-k and top-p cut through groups of equal ones."""
    requests = draw(6, 500, seed=2)
    coarse = requests.logits.clamp(-2, 2).round()
    requests = replace(requests, logits=coarse).asking(
        top_ks=[1, 3, 40, 200, 500, 500], top_ps=[1.0, 1.0, 1.0, 1.0, 0.4, 0.0]
    )
    found = requests.drawn()
    same(found, requests.true())
    for row, most in enumerate((1, 3, 40)):
        order = coarse[row].sort(descending=True, stable=True).indices[:most]
        assert found.tokens[row] in order


def test_a_row_is_drawn_alike_whatever_its_batch_is_and_whatever_the_others_ask_for() -> None:
    requests = draw(5, 700, spread=1.0).asking(
        top_ks=[0, 20, 0, 5, 0], top_ps=[1.0, 0.5, 0.9, 1.0, 1.0], min_ps=[0.0, 0.0, 0.0, 0.0, 0.1]
    )
    together = requests.drawn()
    for row in range(5):
        alone = requests.only([row]).drawn()
        assert torch.equal(alone.tokens, together.tokens[row : row + 1])
        assert torch.equal(alone.log_probs, together.log_probs[row : row + 1])
    bare = replace(requests.only([0]), top_ks=None, top_ps=None, min_ps=None).drawn()
    assert torch.equal(bare.log_probs, together.log_probs[:1])


def test_seed_position_and_token_decide_and_nothing_else() -> None:
    one = draw(1, 100, spread=0.1)
    many = one.only([0] * 16)
    assert many.drawn().tokens.unique().numel() == 1
    for name in ("seeds", "positions"):
        changed = replace(many, **{name: torch.arange(16, device=DEVICE)})
        assert changed.drawn().tokens.unique().numel() > 8


def test_over_many_seeds_tokens_come_as_often_as_they_are_probable() -> None:
    """The reference's draws, which the other tests hold the kernels to."""
    rows, vocabulary = 40_000, 6
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -4.0], device=DEVICE).expand(rows, vocabulary)
    counting = torch.arange(rows, device=DEVICE)
    found = reference.sample(
        logits,
        torch.ones(rows, device=DEVICE),
        counting // 200,
        counting % 200,
        top_ks=torch.full((rows,), 5, device=DEVICE),
    )
    seen = torch.bincount(found.tokens, minlength=vocabulary).double()
    probable = logits[0, :5].double().softmax(-1) * rows
    assert not seen[5]
    chi_squared = float(((seen[:5] - probable) ** 2 / probable).sum())
    assert chi_squared < 18.5  # 4 degrees of freedom: exceeded once in 1,000 times


def test_noise_is_the_hash_that_sglang_uses() -> None:
    """MurmurHash3 of the 16 bytes of seed, position and token, worked out by a separate program."""
    words = [0xDEADBEEF12345678, 77, 151_000]
    seed = torch.tensor([words[0] - 2**64])
    found = reference.noise(seed, torch.tensor([words[1]]), torch.tensor([words[2]]))
    data = b"".join(n.to_bytes(size, "little") for n, size in zip(words, (8, 4, 4), strict=True))
    hashed = _murmur(data)
    assert float(found) == pytest.approx(-torch.tensor(hashed / (2**32 - 1)).double().log().item())


def _murmur(data: bytes) -> int:
    def turned(word: int, by: int) -> int:
        return (word << by | word >> (32 - by)) % 2**32

    state = 0
    for place in range(0, len(data), 4):
        word = int.from_bytes(data[place : place + 4], "little") * 0xCC9E2D51 % 2**32
        state ^= turned(word, 15) * 0x1B873593 % 2**32
        state = (turned(state, 13) * 5 + 0xE6546B64) % 2**32
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor % 2**32
    return state ^ state >> 16


BAD: dict[str, tuple[str, Any, str]] = {
    "a temperature of 0": ("temperatures", 0.0, "first"),
    "a negative temperature": ("temperatures", -1.0, "first"),
    "an infinite temperature": ("temperatures", INF, "first"),
    "a temperature that is no number": ("temperatures", NAN, "first"),
    "a tiny temperature": ("temperatures", 1e-38, "first"),
    "top-k 0": ("top_ks", 0, "any"),
    "a negative top-k": ("top_ks", -1, "any"),
    "a top-k beyond the vocabulary": ("top_ks", 2**30, "any"),
    "top-p 0": ("top_ps", 0.0, "first"),
    "a negative top-p": ("top_ps", -INF, "first"),
    "a top-p above 1": ("top_ps", 1.5, "any"),
    "a top-p that is no number": ("top_ps", NAN, "any"),
    "a negative min-p": ("min_ps", -1.0, "any"),
    "a min-p above 1": ("min_ps", 2.0, "first"),
    "a min-p that is no number": ("min_ps", NAN, "any"),
}
"""What is set, and whether then only the first-ranked token may be drawn, or any."""


def test_settings_out_of_range_leave_the_first_token_or_leave_out_nothing() -> None:
    """One row each, in one batch."""
    requests = draw(len(BAD), 300, spread=1.0, seed=3).asking(top_ks=0, top_ps=1.0, min_ps=0.0)
    bad: dict[str, Tensor] = {
        name: getattr(requests, name).clone()
        for name in ("temperatures", "top_ks", "top_ps", "min_ps")
    }
    for row, (name, value, _) in enumerate(BAD.values()):
        bad[name][row] = value
    found = replace(requests, **bad).drawn()
    same(found, replace(requests, **bad).true())
    wanted = {"first": requests.logits.argmax(-1), "any": requests.drawn().tokens}
    for row, (what, (_, _, meaning)) in enumerate(BAD.items()):
        assert found.tokens[row] == wanted[meaning][row], what


def test_logits_that_are_no_numbers_are_never_drawn_and_infinite_ones_win() -> None:
    requests = draw(6, 200, seed=4)
    logits = requests.logits.clone()
    logits[0, ::2] = NAN
    logits[1] = NAN
    logits[2] = -INF
    logits[3, 17] = logits[3, 90] = INF
    logits[4, 5:] = -INF
    logits[5, 199] = NAN
    requests = replace(requests, logits=logits).asking(top_ps=[0.9, 0.9, 1.0, 1.0, 0.99, 0.5])
    found = requests.drawn()
    same(found, requests.true())
    assert found.tokens[1:3].tolist() == [0, 0]
    assert found.log_probs[1:3].isnan().all()
    assert int(found.tokens[3]) in (17, 90)
    assert int(found.tokens[4]) < 5
    assert int(found.tokens[0]) % 2 == 1


def test_no_requests_draw_nothing() -> None:
    found = draw(0, 10).drawn()
    assert list(found.tokens.shape) == list(found.log_probs.shape) == [0]


@pytest.mark.parametrize("view", ["every other column", "every other row"])
def test_logits_may_lie_in_memory_as_they_like(view: str) -> None:
    requests = draw(3, 150)
    wide = (
        requests.logits.repeat_interleave(2, 1)[:, ::2]
        if view == "every other column"
        else requests.logits.repeat_interleave(2, 0)[::2]
    )
    assert not wide.is_contiguous()
    same(replace(requests, logits=wide).drawn(), requests.true())


def test_logits_are_left_as_they_are() -> None:
    requests = draw(2, 150).asking(top_ps=0.5)
    before = requests.logits.clone()
    requests.drawn()
    assert torch.equal(requests.logits, before)


def test_float64_runs_by_the_reference_and_is_counted() -> None:
    requests = draw(2, 50)
    exact = replace(requests, logits=requests.logits.double())
    OP.forget()
    assert exact.drawn().log_probs.dtype == torch.float64
    assert OP.uses() == Uses(fused=0, fallbacks={"logits are torch.float64": 1})


@pytest.mark.parametrize(
    ("field", "value", "error", "says"),
    [
        ("logits", torch.zeros(3), ValueError, "logits must be"),
        ("logits", torch.zeros(3, 0), ValueError, "vocabulary is empty"),
        ("logits", torch.zeros(3, 4, dtype=torch.int64), TypeError, "float dtype"),
        ("temperatures", torch.ones(2), ValueError, r"temperatures must be \[3\]"),
        ("temperatures", torch.ones(3, dtype=torch.int64), TypeError, "temperatures must be of a"),
        ("seeds", torch.ones(3, dtype=torch.int32), TypeError, "seeds must be int64"),
        ("positions", torch.ones(3), TypeError, "positions must be int32 or int64"),
        ("top_ks", torch.ones(3), TypeError, "top_ks must be int32 or int64"),
        ("top_ps", torch.ones(4), ValueError, r"top_ps must be \[3\]"),
        ("min_ps", torch.ones(3, device="meta"), ValueError, "min_ps must be on"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    field: str, value: Tensor, error: type[Exception], says: str
) -> None:
    moved = value if value.device.type == "meta" else value.to(DEVICE)
    with pytest.raises(error, match=says):
        replace(draw(3, 4), **{field: moved}).drawn()


def test_torch_knows_its_shapes() -> None:
    requests = draw(2, 40).asking(top_ks=3)
    torch.library.opcheck(torch.ops.assay_kernels.sample.default, requests.arguments())


# Given tokens


@pytest.mark.parametrize("vocabulary", [1, 129, 40_001])
def test_a_given_token_has_the_log_prob_that_it_has_where_it_is_drawn_to_the_last_bit(
    vocabulary: int,
) -> None:
    requests = draw(5, vocabulary).asking(top_ks=[1, 5, 40, 0, 7])
    drawn = requests.drawn()
    before = OP.uses().fused
    said = score(requests.logits, requests.temperatures, drawn.tokens)
    assert OP.uses().fused == before + 1
    assert torch.equal(said.log_probs, drawn.log_probs)
    for i in range(5):
        one = requests.only(slice(i, i + 1))
        alone = score(one.logits, one.temperatures, drawn.tokens[i : i + 1])
        assert torch.equal(alone.log_probs, said.log_probs[i : i + 1])


def test_given_tokens_are_scored_as_by_log_softmax() -> None:
    requests = draw(6, 3_000)
    tokens = torch.tensor([0, 2_999, 17, 5, 1_000, 1], device=DEVICE)
    scaled = requests.logits.double() / requests.temperatures.double()[:, None]
    true = scaled.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    said = score(requests.logits, requests.temperatures, tokens)
    assert torch.allclose(said.log_probs.double(), true, rtol=1e-5, atol=1e-5)
    sums = scaled.logsumexp(-1)
    assert torch.allclose(said.log_sum_exps.double(), sums, rtol=1e-5, atol=1e-5)
    exact = score(requests.logits.double(), requests.temperatures, tokens)
    assert torch.allclose(exact.log_probs, true, rtol=1e-12)


def test_a_given_token_that_is_none_or_in_a_row_of_nothing_has_no_log_prob() -> None:
    logits = torch.zeros(4, 20, device=DEVICE)
    logits[3] = -INF
    tokens = torch.tensor([-1, 20, 3, 3], device=DEVICE)
    for kind in (torch.float32, torch.float64):
        said = score(logits.to(kind), torch.ones(4, device=DEVICE), tokens)
        assert said.log_probs.isnan().tolist() == [True, True, False, True]
    assert score(logits[:0], torch.ones(0, device=DEVICE), tokens[:0]).log_probs.shape == (0,)
