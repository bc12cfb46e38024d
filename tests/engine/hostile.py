"""Requests to SGLang's /generate that end a server, or might: by name, and at random."""

from __future__ import annotations

import random
from typing import Any

Body = dict[str, Any]
PROMPT = "2 + 3 ="


def _sampling(**params: Any) -> Body:
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": 4, **params}}


def _request(**fields: Any) -> Body:
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}, **fields}


def _tokens(*ids: Any) -> Body:
    return {"input_ids": list(ids), "sampling_params": {"max_new_tokens": 4}}


REFUSED: dict[str, Body] = {
    "a token above the vocabulary": _tokens(1, 2, 10**6),
    "the first token above the vocabulary": _tokens(1, 768),
    "a negative token": _tokens(1, -2),
    "a token of more than 64 bits": _tokens(2**70),
    "one bad prompt of two": _tokens([1, 2], [1, 768]),
    "an empty text": {"text": "", "sampling_params": {}},
    "an empty text and a picture": {"text": "", "sampling_params": {}, "image_data": "x"},
    "an empty list of texts": {"text": [], "sampling_params": {}},
    "no tokens": _tokens(),
    "an empty prompt of two": _tokens([1], []),
    "rows of embeddings": {"input_embeds": [[0.1] * 3], "sampling_params": {}},
    "a temperature that is no number": _sampling(temperature=float("nan")),
    "a temperature beyond float32": _sampling(temperature=1e300),
    "a temperature in words": _sampling(temperature="hot"),
    "top_k beyond 32 bits": _sampling(top_k=2**31),
    "a broken top_k": _sampling(top_k=1.5),
    "a top_p that is no number": _sampling(top_p=float("nan")),
    "a penalty that float32 takes for 0": _sampling(repetition_penalty=5e-324),
    "an infinite penalty": _sampling(frequency_penalty=float("inf")),
    "a billion samples": _sampling(n=10**9),
    "no samples": _sampling(n=0),
    "samples in words": _sampling(n="3"),
    "tokens beyond 64 bits": _sampling(max_new_tokens=2**70),
    "tokens beyond 32 bits": _sampling(max_new_tokens=2**40),
    "more least tokens than fit": _sampling(min_new_tokens=2**20, max_new_tokens=None),
    "a search with beams": _sampling(beam_width=64),
    "a bias that is no number": _sampling(logit_bias={"5": float("nan")}),
    "a bias beyond float32": _sampling(logit_bias={"5": 1e39}),
    "a bias outside the vocabulary": _sampling(logit_bias={"100000": 1}),
    "a bias of a negative token": _sampling(logit_bias={"-1": 1}),
    "biases in a list": _sampling(logit_bias=[1]),
    "a stop token outside the vocabulary": _sampling(stop_token_ids=[10**6], min_new_tokens=2),
    "a negative stop token": _sampling(stop_token_ids=[-5], min_new_tokens=2),
    "a flag in words": _sampling(ignore_eos="yes"),
    "an unknown parameter": _sampling(foo=1),
    "parameters of a kind that cannot travel": _sampling(custom_params={"a": {"b": {"c": 1}}}),
    "a seed beyond 64 bits": _sampling(sampling_seed=2**64),
    "an expression that repeats a billion times": _sampling(regex="((a{1,999}){1,999}){1,999}"),
    "an expression that does not end": _sampling(regex="("),
    "a stop expression that takes for ever": _sampling(stop_regex="(a+)+$"),
    "a schema that is no JSON": _sampling(json_schema="{"),
    "a schema of 3,000 levels": _sampling(json_schema='{"a":' * 3000 + "1" + "}" * 3000),
    "a schema of a billion characters": _sampling(
        json_schema='{"type": "string", "minLength": 1000000000}'
    ),
    "more best tokens than there are": _request(return_logprob=True, top_logprobs_num=10**6),
    "fewer best tokens than none": _request(return_logprob=True, top_logprobs_num=-1),
    "log-probs from before the prompt": _request(return_logprob=True, logprob_start_len=-7),
    "log-probs of a token outside the vocabulary": _request(
        return_logprob=True, token_ids_logprob=[10**6]
    ),
    "embeddings in the midst": _request(positional_embed_overrides={"a": 1}),
    "items that end outside the prompt": _request(multi_item_delimiter_indices=[10**9]),
    "places outside the prompt": _request(token_indices_to_pool=[10**9]),
    "another process to answer to": _request(http_worker_ipc="ipc:///tmp/nobody"),
    "labels that the metrics do not have": _request(custom_labels={"id": "s"}),
    "two names for one request": _request(rid=["a", "b"]),
    "a session that is none": _request(session_params={"foo": 1}),
}

SERVED: dict[str, Body] = {
    "all tokens of the vocabulary": _tokens(*range(0, 768, 8)),
    "a hot request": _sampling(temperature=100.0),
    "an almost greedy one": _sampling(temperature=1e-5),
    "the longest top_k": _sampling(top_k=2**31 - 1),
    "biases": _sampling(logit_bias={"5": -100, "6": 100}),
    "a repetition penalty": _sampling(repetition_penalty=1.3),
    "stop tokens": _sampling(stop_token_ids=[4, 5], min_new_tokens=2),
    "several samples": _sampling(n=3),
    "a schema": _sampling(json_schema='{"type": "object"}', max_new_tokens=16),
    "an expression": _sampling(regex="[0-9]{1,3}"),
    "a stop expression": _sampling(stop_regex=r"\d+"),
    "a first best token": _request(return_logprob=True, top_logprobs_num=1, logprob_start_len=0),
    "all best tokens": _request(return_logprob=True, top_logprobs_num=768),
}

_POOLS: dict[str, tuple[Any, ...]] = {
    "flag": (True, False),
    "integer": (
        *(0, 1, -1, 2, 3, 7, 64, 767, 768, 2**15, 2**31 - 1, 2**31, 2**53, 2**63 - 1, -(2**63)),
    ),
    "number": (
        *(0.0, 0.5, 1.0, 1, 2.0, -1.0, 1e-7, 1e-5, 1e-30, 5e-324, 1e30, 1e38, 1e39, 1e300, -1e300),
    ),
    "text": ("", "x", "5", " ", "\x00", "\ud83d\ude00", "a" * 5_000),
    "texts": (["5"], [], ["", "x"], ["a"] * 40),
    "tokens": ([], [0], [1, 2, 3], [767], [768], [-1], [2**31], [5] * 1_500, [5] * 3_000),
    "biases": ({}, {"5": 1}, {"5": 1e30}, {"768": 1}, {"0": -1e9, "1": 1e9}, {"05": 1, "5": 2}),
    "object": ({}, {"a": 1}, {"a": None}, {"id": "s"}, {"id": "s", "rid": "r", "offset": -4}),
    "regex": ("(", "a*", "(a|b)*", "[^a]{2,9}", "(a{9}){9}", ".", "", "\\d+|x", "[", "a{3,1}"),
    "ebnf": ("root ::= [a-z]", "root ::= root", "root ::= a", 'root ::= "a"{3,1}', "x"),
    "schema": (
        *('{"type": "string"}', "{}", "true", "false", "3", '{"$ref": "#"}', '{"enum": []}'),
        *('{"type": "number", "minimum": 5, "maximum": 1}', '{"anyOf": []}', '{"const": {}}'),
        *('{"type": "array", "items": {"$ref": "#"}}', '{"$ref": "#/$defs/none"}', '{"type": 5}'),
    ),
}
_PARAMS = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "frequency_penalty"), "number"),
    **dict.fromkeys(("presence_penalty", "repetition_penalty"), "number"),
    **dict.fromkeys(("top_k", "n", "max_new_tokens", "min_new_tokens", "beam_width"), "integer"),
    **dict.fromkeys(("sampling_seed", "stream_interval"), "integer"),
    **dict.fromkeys(("ignore_eos", "skip_special_tokens", "no_stop_trim"), "flag"),
    **{"spaces_between_special_tokens": "flag", "stop": "texts", "stop_token_ids": "tokens"},
    **{"stop_regex": "regex", "regex": "regex", "ebnf": "ebnf", "json_schema": "schema"},
    **{"structural_tag": "schema", "logit_bias": "biases", "custom_params": "object"},
}
_FIELDS = {
    **dict.fromkeys(("return_logprob", "return_sampling_mask", "stream", "no_logs"), "flag"),
    **dict.fromkeys(("return_text_in_logprobs", "return_flat_raw_top_logprobs"), "flag"),
    **dict.fromkeys(("return_hidden_states", "return_routed_experts", "return_entropy"), "flag"),
    **dict.fromkeys(
        ("return_indexer_topk", "require_reasoning", "return_prompt_token_ids"), "flag"
    ),
    **dict.fromkeys(
        ("logprob_start_len", "top_logprobs_num", "routed_experts_start_len"), "integer"
    ),
    **dict.fromkeys(("priority", "routed_dp_rank", "disagg_prefill_dp_rank"), "integer"),
    **dict.fromkeys(("bootstrap_port", "bootstrap_room", "max_thinking_tokens"), "integer"),
    **dict.fromkeys(("rid", "session_id", "routing_key", "conversation_id", "text"), "text"),
    **dict.fromkeys(("extra_key", "cache_salt", "lora_path", "lora_id", "image_data"), "text"),
    **dict.fromkeys(("bootstrap_host", "custom_logit_processor", "video_data"), "text"),
    **dict.fromkeys(("input_ids", "token_ids_logprob", "token_indices_to_pool"), "tokens"),
    **dict.fromkeys(("multi_item_delimiter_indices",), "tokens"),
    **dict.fromkeys(("session_params", "kv_hints", "custom_labels"), "object"),
}


def mutated(draw: random.Random) -> Body:
    """A request with up to four fields and parameters changed to something else.

    Values are mostly of the right kind, since others are refused before anyone looks at them: the
    ends of integers, numbers just beyond a range, lists that are too long, expressions that say
    nothing. One in twenty is of a wrong kind.
    """
    params: Body = {"max_new_tokens": draw.randint(1, 6), "temperature": draw.choice((0, 1))}
    body: Body = {"text": PROMPT, "sampling_params": params}
    for _ in range(draw.randint(1, 4)):
        place, kinds = draw.choice(((params, _PARAMS), (body, _FIELDS)))
        name = draw.choice(sorted(kinds))
        kind = draw.choice(sorted(_POOLS)) if draw.random() < 0.05 else kinds[name]
        place[name] = draw.choice(_POOLS[kind])
    if "input_ids" in body:
        del body["text"]
    return body
