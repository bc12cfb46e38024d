"""The plugin's hooks where SGLang handles requests: what reaches SGLang, and what does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from assay_kernels.integrations import sglang_requests as hooks
from assay_kernels.integrations.hardening import Refused


def request(**fields: Any) -> SimpleNamespace:
    """As SGLang's GenerateReqInput, after its shape was worked out."""
    return SimpleNamespace(
        **{
            "text": "2 + 3 =",
            "input_ids": None,
            "sampling_params": {"max_new_tokens": 4},
            "is_single": True,
            "rid": "a",
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
            "contains_mm_input": lambda: False,
            **fields,
        }
    )


def manager(**server: Any) -> SimpleNamespace:
    """As SGLang's TokenizerManager, of a model with 768 tokens and rows of 4 numbers."""
    return SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=768, hidden_size=4),
        context_len=2048,
        server_args=SimpleNamespace(**server),
    )


def served(*_: Any, **__: Any) -> str:
    """SGLang's own code, which runs."""
    return "served"


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("SGLang's own code must not see this")


def trips(*_: Any, **__: Any) -> None:
    raise TypeError("unhashable type: 'list'")


def test_a_request_of_a_good_shape_is_normalised_by_sglang() -> None:
    seen: list[Any] = []
    hooks.normalize(seen.append, request())
    assert len(seen) == 1


@pytest.mark.parametrize(
    "fields", [{"http_worker_ipc": "ipc:///x"}, {"sampling_params": {"n": 10**9}}, {"text": []}]
)
def test_a_request_of_a_bad_shape_never_reaches_it(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        hooks.normalize(never, request(**fields))


def test_names_of_a_wrong_kind_are_refused_before_they_are_looked_up() -> None:
    for rid, single in ((["a"], True), ("a", False), ([["a"]], False)):
        with pytest.raises(Refused, match="rid must be a string"):
            hooks.normalize(served, request(rid=rid, is_single=single))


def test_what_sglang_trips_over_is_a_refusal_with_its_words() -> None:
    message = "the request cannot be read: TypeError: unhashable type: 'list'"
    with pytest.raises(Refused, match=message):
        hooks.validate(trips, manager(), request(), [1])
    with pytest.raises(Refused, match=message):
        hooks.create(trips, manager(), request(), None, [1])


def test_a_good_prompt_is_checked_by_sglang_too() -> None:
    assert hooks.validate(served, manager(), request(), [0, 767]) == "served"


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        ({}, [768]),
        ({}, []),
        ({"input_ids": [768]}, [1]),
        ({"sampling_params": {"top_k": 2**31}}, [1]),
        ({"top_logprobs_num": 10**6}, [1]),
        ({"multi_item_delimiter_indices": [1]}, [1]),
        ({"token_indices_to_pool": [-1]}, [1]),
        ({"positional_embed_overrides": {"a": 1}}, [1]),
        ({"input_embeds": [[0.1] * 3]}, None),
        ({"input_embeds": [[0.1] * 3 + [float("nan")]]}, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_prompt_never_reaches_it(fields: dict[str, Any], ids: list[int] | None) -> None:
    with pytest.raises(Refused):
        hooks.validate(never, manager(), request(**fields), ids)


def test_what_a_processor_made_of_pictures_is_not_taken_for_tokens() -> None:
    """It puts placeholders there, which may be any number; what the client sent is checked."""
    with_picture, sees = request(contains_mm_input=lambda: True), manager()
    sees.mm_processor = object()
    assert hooks.validate(served, sees, with_picture, [10**9]) == "served"
    with pytest.raises(Refused, match="the prompt has no tokens"):
        hooks.validate(never, sees, with_picture, [])
    with_picture.input_ids = [10**9]
    with pytest.raises(Refused):
        hooks.validate(never, sees, with_picture, [10**9])


def test_a_picture_for_a_model_that_sees_none_is_no_way_past_the_checks() -> None:
    with_picture = request(contains_mm_input=lambda: True)
    for ids in ([], [10**9]):
        with pytest.raises(Refused):
            hooks.validate(never, manager(), with_picture, ids)


def test_min_p_is_refused_in_deterministic_mode_alone() -> None:
    asks = request(sampling_params={"min_p": 0.1})
    assert hooks.validate(served, manager(), asks, [1]) == "served"
    with pytest.raises(Refused, match="min_p"):
        hooks.validate(never, manager(enable_deterministic_inference=True), asks, [1])


class Ready(msgspec.Struct, kw_only=True):
    """As what SGLang sends to the process that runs the model."""

    count: int
    names: list[str]
    time_stats: Any = None


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's encoder and decoder."""
    decoder = msgspec.msgpack.Decoder(Ready)
    codec = {"msgpack_encode": msgspec.msgpack.Encoder().encode, "msgpack_decode": decoder.decode}
    monkeypatch.setattr(hooks, "resolve", lambda path: codec[path.rpartition(".")[2]])


@pytest.mark.usefixtures("wire")
def test_what_can_be_decoded_is_sent_as_it_is() -> None:
    made = Ready(count=1, names=["a"], time_stats=object())
    assert hooks.create(lambda *_: made, manager(), request(), None, [1]) is made


@pytest.mark.usefixtures("wire")
@pytest.mark.parametrize(
    "made",
    [
        Ready(count="1", names=[]),  # type: ignore[arg-type]
        Ready(count=1, names=[["a"]]),  # type: ignore[list-item]
        Ready(count=2**70, names=[]),
        Ready(count=1, names=[object()]),  # type: ignore[list-item]
    ],
    ids=["a number in words", "a list in a list", "too many bits", "nothing that can travel"],
)
def test_what_the_other_process_could_not_decode_is_refused(made: Ready) -> None:
    with pytest.raises(Refused, match="a field of the request is of a wrong kind"):
        hooks.create(lambda *_: made, manager(), request(), None, [1])


def test_a_grammar_that_leaves_no_token_leaves_no_probabilities_that_are_none() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[1, 3] = 2.0
    info = SimpleNamespace(grammars=[object(), None])
    found = hooks.preprocess(lambda self, logits, info: logits, None, logits, info)
    assert found.softmax(-1).isfinite().all()
    assert found.softmax(-1)[1, 3] == 1


def test_without_grammars_logits_stay_as_they_are() -> None:
    logits = torch.tensor([[-torch.inf, 1.0]])
    info = SimpleNamespace(grammars=None)
    found = hooks.preprocess(lambda self, logits, info: logits, None, logits, info)
    assert found is logits and found[0, 0] == -torch.inf
