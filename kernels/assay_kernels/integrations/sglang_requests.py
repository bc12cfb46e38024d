"""Puts `hardening` before SGLang's handling of requests, in the process that serves HTTP.

Three places see every request, whatever endpoint it came to: where its shape is worked out, where a
prompt is checked, and where it is made ready for the process that runs the model. That process
decodes what it gets by declared types and ends where one is wrong; so the last hook decodes first.

One hook is in the process that runs the model: a grammar may leave no token at all, which nobody
can know before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from assay_kernels.integrations import hardening
from assay_kernels.integrations.gates import Patch, Signature, resolve
from assay_kernels.integrations.hardening import Limits, Refused

_log = logging.getLogger(__name__)
_MANAGERS = "sglang.srt.managers"
FAR = 1e30
_CODEC = f"{_MANAGERS}.io_struct.msgpack_encode", f"{_MANAGERS}.io_struct.msgpack_decode"
_OPAQUE = ("mm_inputs", "positional_embed_overrides", "time_stats")
"""Fields that travel pickled: they are made by SGLang, not by whoever sent the request."""
_WRONG_KINDS = (TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError)


def scheduler_patches() -> list[Patch]:
    """The hook in a process that runs the model."""
    return [
        Patch(
            "sglang.srt.layers.sampler.Sampler._preprocess_logits",
            Signature(("self", "logits", "sampling_info")),
            preprocess,
        )
    ]


def preprocess(
    original: Callable[..., Any], self: Any, logits: Tensor, sampling_info: Any
) -> Tensor:
    """Around the last step before tokens are drawn.

    Where a grammar leaves no token, all logits of a row are -inf, their probabilities NaN, and
    torch.multinomial fails, on a GPU beyond repair. With numbers that SGLang itself puts there when
    it is told to sanitise, any token is drawn, the grammar refuses it, and that request fails.
    """
    logits = original(self, logits, sampling_info)
    if sampling_info.grammars:
        torch.nan_to_num_(logits, nan=-FAR, posinf=FAR, neginf=-FAR)
    return logits


def patches() -> list[Patch]:
    """The hooks in the process that serves HTTP."""
    manager = f"{_MANAGERS}.tokenizer_manager.TokenizerManager"
    return [
        Patch(
            f"{_MANAGERS}.io_struct.GenerateReqInput.normalize_batch_and_arguments",
            Signature(("self",)),
            normalize,
        ),
        Patch(
            f"{_MANAGERS}.io_struct.GenerateReqInput.__getitem__",
            Signature(("self", "i")),
            _plainly,
        ),
        Patch(
            f"{manager}._validate_one_request", Signature(("self", "obj", "input_ids")), validate
        ),
        Patch(
            f"{manager}._create_tokenized_object",
            Signature(
                (*("self", "obj", "input_text", "input_ids", "input_embeds"), "mm_inputs"),
                ("token_type_ids",),
            ),
            create,
            needs=_CODEC,
        ),
    ]


def normalize(original: Callable[..., Any], self: Any) -> None:
    """Around the step that works out how many prompts and samples there are."""
    # Internal: SGLang sets it later, for outputs of several HTTP processes.
    if getattr(self, "http_worker_ipc", None) is not None:
        raise Refused("http_worker_ipc is not for requests")
    hardening.check_shape(self.text, self.input_ids, self.sampling_params)
    _plainly(original, self)
    names = [self.rid] if self.is_single else self.rid
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused("rid must be a string, or a list of one for each prompt")


def validate(original: Callable[..., Any], self: Any, obj: Any, input_ids: Any) -> Any:
    """Around the check of one prompt's length."""
    limits = limits_of(self)
    hardening.check_tokens(obj.input_ids, limits)
    # A processor of pictures puts placeholders among the tokens, which may be any number.
    processed = obj.contains_mm_input() and getattr(self, "mm_processor", None) is not None
    if not processed or not input_ids:
        hardening.check_tokens(input_ids, limits)
    length = 0 if input_ids is None else len(input_ids)
    for name in ("multi_item_delimiter_indices", "token_indices_to_pool"):
        hardening.check_places(getattr(obj, name, None), length, name)
    labels = getattr(self.server_args, "tokenizer_metrics_allowed_custom_labels", None)
    hardening.check_labels(getattr(obj, "custom_labels", None), labels or ())
    _check_embeddings(self, obj)
    if hasattr(obj, "logprob_start_len"):
        hardening.check_log_probs(obj.logprob_start_len, obj.top_logprobs_num, limits)
    hardening.check_sampling(obj.sampling_params or {}, limits)
    return _plainly(original, self, obj, input_ids)


def create(original: Callable[..., Any], self: Any, *arguments: Any, **named: Any) -> Any:
    """Around the step that makes a request ready for the process that runs the model."""
    made = _plainly(original, self, *arguments, **named)
    encode, decode = (resolve(path) for path in _CODEC)
    empty = {name: None for name in _OPAQUE if hasattr(made, name)}
    try:
        decode(encode(msgspec.structs.replace(made, **empty)))
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        raise Refused(f"a field of the request is of a wrong kind: {error}") from error
    return made


def limits_of(manager: Any) -> Limits:
    """What the engine behind a TokenizerManager can take."""
    arguments = manager.server_args
    return Limits(
        vocabulary=manager.model_config.vocab_size,
        context=manager.context_len,
        seeded=bool(getattr(arguments, "enable_deterministic_inference", False)),
    )


def _check_embeddings(manager: Any, obj: Any) -> None:
    overrides = getattr(obj, "positional_embed_overrides", None)
    if overrides is not None and type(overrides).__name__ != "PositionalEmbeds":
        raise Refused("positional_embed_overrides is not for requests")
    rows = getattr(obj, "input_embeds", None)
    if rows is None:
        return
    width = manager.model_config.hidden_size
    if not isinstance(rows, list) or not rows:
        raise Refused("input_embeds must be a list of rows")
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            raise Refused(f"input_embeds must have rows of {width} numbers")
        if not all(isinstance(x, int | float) and abs(x) < hardening.LARGEST for x in row):
            raise Refused("input_embeds must have finite numbers")


def _plainly(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Calls SGLang's own code; what it trips over in a request becomes a refusal."""
    try:
        return original(*arguments, **named)
    except _WRONG_KINDS as error:
        _log.warning("a request was refused", exc_info=True)
        raise Refused(f"the request cannot be read: {type(error).__name__}: {error}") from error
