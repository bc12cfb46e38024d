"""Hardening: which requests are refused, in which words, and which are not.

On the real server the same is tried in tests/engine/test_plugin_server.py.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from assay_kernels.integrations import grammars, hardening
from assay_kernels.integrations.hardening import Limits, Refused

LIMITS = Limits(vocabulary=768, context=2048)
NAN, INFINITY = float("nan"), float("inf")

BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": NAN}, "temperature must be a finite number, not nan"),
    ({"temperature": "hot"}, "temperature must be a finite number, not 'hot'"),
    ({"temperature": True}, "temperature must be a finite number, not True"),
    ({"temperature": 10**400}, "temperature must be a finite number"),
    ({"top_p": INFINITY}, "top_p must be a finite number, not inf"),
    ({"frequency_penalty": [1]}, "frequency_penalty must be a finite number, not [1]"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty must be at least 1e-06, not 5e-324"),
    ({"top_k": 2**31}, "top_k must be -1 or a whole number up to 2147483647, not 2147483648"),
    ({"top_k": 1.5}, "top_k must be -1 or a whole number up to 2147483647, not 1.5"),
    ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number in [0, 2147483647], not 1.5"),
    ({"max_new_tokens": 2**70}, "max_new_tokens must be a whole number in [0, 2147483647]"),
    ({"min_new_tokens": -1}, "min_new_tokens must be a whole number in [0, 2147483647], not -1"),
    ({"stream_interval": 0}, "stream_interval must be a whole number in [1, 2147483647], not 0"),
    ({"beam_width": 4}, "beam_width must be a whole number in [1, 1], not 4"),
    ({"min_new_tokens": 4096}, "min_new_tokens must be in [0, 2048], not 4096"),
    ({"ignore_eos": "yes"}, "ignore_eos must be true or false, not 'yes'"),
    ({"sampling_seed": 2**63}, "sampling_seed must be a whole number of 64 bits"),
    ({"logit_bias": [1]}, "logit_bias must be an object of token ids and numbers"),
    ({"logit_bias": {"768": 1}}, "logit_bias has the token '768', which is outside the vocabulary"),
    ({"logit_bias": {"-1": 1}}, "logit_bias has the token '-1', which is outside the vocabulary"),
    ({"logit_bias": {"x": 1}}, "logit_bias has the token 'x', which is outside the vocabulary"),
    ({"logit_bias": {"5": NAN}}, "logit_bias must have numbers in [-1e+09, 1e+09], not nan"),
    ({"logit_bias": {"5": 1e39}}, "logit_bias must have numbers in [-1e+09, 1e+09], not 1e+39"),
    ({"stop_token_ids": [768]}, "stop_token_ids has 768, which is no token of the vocabulary"),
    ({"stop_token_ids": ["4"]}, "stop_token_ids has '4', which is no token of the vocabulary"),
    ({"stop_token_ids": 4}, "stop_token_ids must be a list of token ids"),
    ({"stop": 5}, "stop must be a string or a list of strings"),
    ({"stop": [5]}, "stop must be a string or a list of strings"),
    ({"regex": 5}, "regex must be a string"),
    ({"json_schema": {"type": "string"}}, "json_schema must be a string"),
]
GOOD_SAMPLING: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0.1, "max_new_tokens": 128},
    {"temperature": None, "max_new_tokens": None, "stop": None, "logit_bias": None},
    {"logit_bias": {"5": -100, "767": 100.0, 7: 1}, "stop_token_ids": [4, None]},
    {"stop": ["\n", "User:"], "stop_regex": r"answer: \d+", "sampling_seed": -(2**63)},
    {"json_schema": json.dumps({"type": "object", "properties": {"a": {"type": "number"}}})},
    {"json_schema": "$$ANY$$"},
    {"regex": r"(\d{3}-){2}\d{4}|[A-Z]{2,100}", "ebnf": ""},
]


@pytest.mark.parametrize(("params", "message"), BAD_SAMPLING, ids=lambda value: str(value)[:40])
def test_sampling_parameters_that_end_an_engine_are_refused(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        hardening.check_sampling(params, LIMITS)


@pytest.mark.parametrize("params", GOOD_SAMPLING, ids=lambda value: str(value)[:40])
def test_what_people_ask_for_is_served(params: dict[str, Any]) -> None:
    hardening.check_sampling(params, LIMITS)


def test_min_p_is_refused_where_the_sampler_would_fail_on_it() -> None:
    hardening.check_sampling({"min_p": 0.1}, LIMITS)
    with pytest.raises(Refused, match="min_p cannot be had from this engine"):
        hardening.check_sampling({"min_p": 0.1}, Limits(768, 2048, seeded=True))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt has no tokens"),
        ([1, 768], "input_ids has the token 768, which is outside the vocabulary of 768"),
        ([1, -2, 900], "input_ids has the token -2, which is outside the vocabulary of 768"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        hardening.check_tokens(ids, LIMITS)


def test_the_first_and_the_last_token_of_the_vocabulary_are_served() -> None:
    hardening.check_tokens([0, 767], LIMITS)
    hardening.check_tokens(None, LIMITS)


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True, 10**9])
def test_an_absurd_number_of_samples_is_refused(n: Any) -> None:
    with pytest.raises(Refused, match=re.escape("n must be a whole number in [1, 1024]")):
        hardening.check_shape("hello", None, {"n": n})


def test_prompts_times_samples_have_a_bound_too() -> None:
    hardening.check_shape(["a"] * 64, None, {"n": 256})
    with pytest.raises(Refused, match="16384 sequences, not for 65 times 256"):
        hardening.check_shape(["a"] * 65, None, {"n": 256})


@pytest.mark.parametrize(
    ("text", "ids", "sampling", "message"),
    [
        ([], None, None, "text must not be empty"),
        ([None], None, None, "text must be one prompt or a list of prompts"),
        (None, [], None, "input_ids must not be empty"),
        (None, [[1], []], None, "input_ids must not be empty"),
        (None, [[1], 2], None, "input_ids must be one prompt or a list of prompts"),
        ("a", None, [], "sampling_params is an empty list"),
        ("a", None, [3], "sampling_params must be an object"),
        ("a", None, "x", "sampling_params must be an object"),
    ],
)
def test_a_request_of_no_shape_is_refused(text: Any, ids: Any, sampling: Any, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        hardening.check_shape(text, ids, sampling)


@pytest.mark.parametrize(
    ("start", "top", "message"),
    [
        (-7, 0, "logprob_start_len must be -1 or a position, not -7"),
        (0.5, 0, "logprob_start_len must be -1 or a position, not 0.5"),
        (-1, 769, "top_logprobs_num must be in [0, 768], not 769"),
        (-1, -1, "top_logprobs_num must be in [0, 768], not -1"),
    ],
)
def test_log_probs_that_cannot_be_had_are_refused(start: Any, top: Any, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        hardening.check_log_probs(start, top, LIMITS)


def test_labels_that_the_metrics_do_not_have_are_refused() -> None:
    """The metrics' library raises, where the answers to all requests are handled."""
    hardening.check_labels(None, ())
    hardening.check_labels({"team": "a"}, ["team"])
    for labels in ({"id": "s"}, {"team": 1}, ["team"]):
        with pytest.raises(Refused, match="custom_labels"):
            hardening.check_labels(labels, ["team"])


def test_places_must_lie_in_the_prompt() -> None:
    hardening.check_places(None, 4, "token_indices_to_pool")
    hardening.check_places([0, 3], 4, "token_indices_to_pool")
    for places in ([4], [-1], ["x"], 3):
        with pytest.raises(Refused, match="must be positions in the prompt of 4 tokens"):
            hardening.check_places(places, 4, "token_indices_to_pool")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (grammars.regex_fault("((a{1,500}){1,500}){1,500}"), "regex repeats a part more than"),
        (grammars.regex_fault("a{100000}"), "regex repeats a part more than 10000 times"),
        (grammars.regex_fault("(a{200}b){60}"), "regex repeats a part more than 10000 times"),
        (grammars.regex_fault("(" * 100 + ")" * 100), "more than 64 levels of parentheses"),
        (grammars.regex_fault("a" * 5000), "regex has 5000 characters, more than 4096"),
        (grammars.ebnf_fault('root ::= ("a"{1,500}){1,500}'), "ebnf repeats a part more than"),
        (grammars.schema_fault("{"), "json_schema is not JSON"),
        (grammars.schema_fault('"' * 65_000), "json_schema is not JSON"),
        (grammars.schema_fault('{"a":' * 65 + "1" + "}" * 65), "more than 64 levels"),
        (grammars.schema_fault("[" * 50_000), "json_schema has more than 64 levels"),
        (grammars.schema_fault(" " * 70_000), "json_schema has 70000 characters"),
        (grammars.schema_fault('{"minLength": 1000000000}'), "minLength in json_schema must be in"),
        (grammars.schema_fault('{"a": [{"maxItems": -1}]}'), "maxItems in json_schema must be in"),
        (grammars.schema_fault('{"pattern": "(a{999}){999}"}'), "pattern in json_schema repeats"),
        (
            grammars.schema_fault('{"patternProperties": {"(a{999}){999}": {}}}'),
            "pattern in json_schema repeats",
        ),
        (grammars.schema_fault('{"$ref": "http://x/y"}'), "$ref in json_schema must stay in it"),
        (grammars.stop_regex_fault("(a+)+$"), "stop_regex can take too long"),
        (grammars.stop_regex_fault("(a|ab)*c"), "stop_regex can take too long"),
        (grammars.stop_regex_fault("((a)(b*))*"), "stop_regex can take too long"),
        (grammars.stop_regex_fault("a*a*a*b"), "stop_regex can take too long"),
        (grammars.stop_regex_fault("("), "stop_regex cannot be compiled"),
    ],
)
def test_grammars_that_take_an_engines_memory_or_minutes_are_refused(
    fault: str, message: str
) -> None:
    assert message in fault


@pytest.mark.parametrize(
    "fault",
    [
        grammars.regex_fault(r"\{\d{1,3}\}(x{10}){10}"),
        grammars.regex_fault(r"a{1,100}b{1,100}c{1,100}"),
        grammars.ebnf_fault('root ::= "{" [a-z]+ "}"'),
        grammars.schema_fault('{"enum": ["[[[", "}}}"], "maxLength": 10000}'),
        grammars.schema_fault('{"a": "' + "\\\\" * 32_000 + '"}'),
        grammars.schema_fault('{"properties": {"minLength": {"type": "number"}}}'),
        grammars.schema_fault('{"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}'),
        grammars.stop_regex_fault(r"(foo|bar) [+*]+\(a+\)?\s*\d+"),
        grammars.stop_regex_fault(r"([ab*]c)+"),
    ],
)
def test_grammars_of_some_size_are_served(fault: str) -> None:
    assert fault == ""
