"""Requests that would end an engine are refused: what is looked for, as pure functions.

SGLang checks much of a request in the process that serves HTTP, but not all, and an exception in
the process that runs the model ends the whole server. So one request with a token id outside the
vocabulary is a denial of service to everybody. Each function here raises `Refused`, which SGLang
turns into a 400 with the message. What is checked was found by reading 0.5.23 and by a fuzzer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay_kernels.integrations import grammars

MOST_SAMPLES = 1_024
"""Samples of one prompt."""
MOST_SEQUENCES = 16_384
"""Sequences that one request asks for: prompts times samples."""
LARGEST_BIAS = 1e9
"""Of a logit: far beyond any, and far from where float32 ends."""
LEAST_PENALTY = 1e-6
"""For repetitions: logits are divided by it, and by a temperature as small."""
MOST_TOP = 1_024
"""Log-probs asked for at one position."""
LARGEST = 1e30
"""Of any number: far from where float32 ends, also after a division by a small temperature."""
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1

_NUMBERS = (
    *("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty"),
    "repetition_penalty",
)
_COUNTS = {
    "max_new_tokens": (0, _INT32),
    "min_new_tokens": (0, _INT32),
    "stream_interval": (1, _INT32),
    # SGLang asserts that a beam finds free places, which other requests may have taken.
    "beam_width": (1, 1),
}
_FLAGS = (
    *("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"),
    "ebnf_full_assistant",
)


class Refused(ValueError):
    """A request is not served; the message says why, in words for whoever sent it."""


@dataclass(frozen=True)
class Limits:
    """What an engine can take.

    Attributes:
        vocabulary: token ids are below it.
        context: tokens of a sequence.
        seeded: whether it samples by seeds, as in deterministic mode: SGLang's sampler then ends
            the engine where min-p is asked for.
    """

    vocabulary: int
    context: int
    seeded: bool = False


def check_shape(text: Any, input_ids: Any, sampling: Any) -> None:
    """Raises where a request asks for too many sequences, or is not of a shape that is one.

    Args:
        text: a prompt, or a list of prompts, or None.
        input_ids: token ids of a prompt, or a list of those, or None.
        sampling: its sampling parameters, or a list of those, or None.
    """
    prompts = 1
    if text is not None:
        prompts = _prompts(text, str, "text")
    elif input_ids is not None:
        prompts = _prompts(input_ids, int, "input_ids")
    each = sampling if isinstance(sampling, list) else [sampling]
    if not each:
        raise Refused("sampling_params is an empty list")
    for params in each:
        if params is not None and not isinstance(params, Mapping):
            raise Refused("sampling_params must be an object")
        n = 1 if params is None or params.get("n") is None else params["n"]
        if not _whole(n) or not 1 <= n <= MOST_SAMPLES:
            raise Refused(f"n must be a whole number in [1, {MOST_SAMPLES}], not {_short(n)}")
        if prompts * n > MOST_SEQUENCES:
            raise Refused(
                f"a request may ask for {MOST_SEQUENCES} sequences, not for {prompts} times {n}"
            )


def _prompts(value: Any, kind: type, name: str) -> int:
    """How many prompts there are."""
    if isinstance(value, str):
        return 1
    if not isinstance(value, list) or not value:
        raise Refused(f"{name} must not be empty")
    if kind is int and _whole(value[0]):
        return 1
    for prompt in value:
        if not isinstance(prompt, str if kind is str else list):
            raise Refused(f"{name} must be one prompt or a list of prompts")
        if kind is int and not prompt:
            raise Refused(f"{name} must not be empty")
    return len(value)


def check_tokens(input_ids: Sequence[int] | None, limits: Limits) -> None:
    """Raises where a prompt has no tokens, or one that is outside the vocabulary."""
    if input_ids is None:
        return
    if not len(input_ids):
        raise Refused("the prompt has no tokens")
    least, most = min(input_ids), max(input_ids)
    if least < 0 or most >= limits.vocabulary:
        wrong = least if least < 0 else most
        raise Refused(
            f"input_ids has the token {wrong}, which is outside the vocabulary of "
            f"{limits.vocabulary}"
        )


def check_log_probs(start: Any, top: Any, limits: Limits) -> None:
    """Raises where log-probs are asked for that cannot be had.

    Args:
        start: position from which on those of the prompt are wanted; -1 for none.
        top: how many at a position.
        limits: of the engine.
    """
    if start is not None and (not _whole(start) or not -1 <= start <= _INT32):
        raise Refused(f"logprob_start_len must be -1 or a position, not {_short(start)}")
    most = min(MOST_TOP, limits.vocabulary)
    if top is not None and (not _whole(top) or not 0 <= top <= most):
        raise Refused(f"top_logprobs_num must be in [0, {most}], not {_short(top)}")


def check_places(places: Any, length: int, name: str) -> None:
    """Raises where a list of positions leads out of the prompt."""
    if places is None:
        return
    if not isinstance(places, list) or not all(
        _whole(place) and 0 <= place < length for place in places
    ):
        raise Refused(f"{name} must be positions in the prompt of {length} tokens")


def check_labels(labels: Any, allowed: Sequence[str]) -> None:
    """Raises where a request brings labels for metrics that the metrics do not have."""
    if labels is None:
        return
    if not isinstance(labels, Mapping) or not set(labels) <= set(allowed):
        raise Refused(f"custom_labels may be {', '.join(allowed) or 'none'} at this engine")
    if not all(isinstance(value, str) for value in labels.values()):
        raise Refused("custom_labels must be strings")


def check_sampling(params: Mapping[str, Any], limits: Limits) -> None:
    """Raises where sampling parameters are of wrong kinds, not finite or out of range."""
    for name in _NUMBERS:
        value = params.get(name)
        if value is not None and not _finite(value):
            raise Refused(f"{name} must be a finite number, not {_short(value)}")
    penalty = params.get("repetition_penalty")
    if penalty is not None and penalty < LEAST_PENALTY:
        raise Refused(f"repetition_penalty must be at least {LEAST_PENALTY:g}, not {penalty}")
    for name, (least, most) in _COUNTS.items():
        value = params.get(name)
        if value is not None and (not _whole(value) or not least <= value <= most):
            raise Refused(
                f"{name} must be a whole number in [{least}, {most}], not {_short(value)}"
            )
    for name in _FLAGS:
        value = params.get(name)
        if value is not None and not isinstance(value, bool):
            raise Refused(f"{name} must be true or false, not {_short(value)}")
    top_k, seed = params.get("top_k"), params.get("sampling_seed")
    if top_k is not None and (not _whole(top_k) or not -1 <= top_k <= _INT32):
        raise Refused(f"top_k must be -1 or a whole number up to {_INT32}, not {_short(top_k)}")
    if seed is not None and (not _whole(seed) or not -_INT64 - 1 <= seed <= _INT64):
        raise Refused(f"sampling_seed must be a whole number of 64 bits, not {_short(seed)}")
    if limits.seeded and params.get("min_p"):
        raise Refused("min_p cannot be had from this engine: it samples by seeds")
    _check_min_tokens(params, limits)
    _check_bias(params.get("logit_bias"), limits)
    _check_stop(params, limits)
    _check_grammar(params)


def _check_min_tokens(params: Mapping[str, Any], limits: Limits) -> None:
    least = params.get("min_new_tokens")
    if least is not None and least > limits.context:
        raise Refused(f"min_new_tokens must be in [0, {limits.context}], not {least}")


def _check_bias(bias: Any, limits: Limits) -> None:
    if bias is None:
        return
    if not isinstance(bias, Mapping):
        raise Refused("logit_bias must be an object of token ids and numbers")
    for token, value in bias.items():
        written = str(token)
        if not written.isascii() or not written.isdigit() or int(written) >= limits.vocabulary:
            raise Refused(
                f"logit_bias has the token {written[:40]!r}, which is outside the vocabulary of "
                f"{limits.vocabulary}"
            )
        if not _finite(value) or abs(value) > LARGEST_BIAS:
            raise Refused(
                f"logit_bias must have numbers in [{-LARGEST_BIAS:g}, {LARGEST_BIAS:g}], not "
                f"{_short(value)}"
            )


def _check_stop(params: Mapping[str, Any], limits: Limits) -> None:
    tokens = params.get("stop_token_ids")
    if tokens is not None:
        if not isinstance(tokens, list | tuple | set):
            raise Refused("stop_token_ids must be a list of token ids")
        for token in tokens:
            if token is not None and (not _whole(token) or not 0 <= token < limits.vocabulary):
                raise Refused(
                    f"stop_token_ids has {_short(token)}, which is no token of the vocabulary of "
                    f"{limits.vocabulary}"
                )
    for name in ("stop", "stop_regex"):
        value = params.get(name)
        if value is None:
            continue
        each = [value] if isinstance(value, str) else value
        if not isinstance(each, list) or not all(isinstance(text, str) for text in each):
            raise Refused(f"{name} must be a string or a list of strings")
        if name == "stop_regex":
            _refuse(next((f for text in each if (f := grammars.stop_regex_fault(text))), ""))


def _check_grammar(params: Mapping[str, Any]) -> None:
    for name, fault in (
        ("json_schema", grammars.schema_fault),
        ("regex", grammars.regex_fault),
        ("ebnf", grammars.ebnf_fault),
        ("structural_tag", lambda text: grammars.schema_fault(text, "structural_tag")),
    ):
        value = params.get(name)
        if not value:
            continue
        if not isinstance(value, str):
            raise Refused(f"{name} must be a string")
        _refuse(fault(value))


def _refuse(fault: str) -> None:
    if fault:
        raise Refused(fault)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -LARGEST < value < LARGEST


def _short(value: Any) -> str:
    """A value as it is shown to whoever sent it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
