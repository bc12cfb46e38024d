"""SGLang's sampler on our op: tokens and their log-probs in two launches instead of many passes.

A request's seed and the position of its token say what is drawn; in normal mode, where SGLang asks
for no seeds, they come from the device's generator, which SGLang keeps alike on all ranks. Tokens
drawn are those of SGLang's seeded sampler but for rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay_kernels.integrations.gates import Calls, Patch, Signature, resolve

_MODULE = "sglang.srt.layers.sampler"
_SEEDS = 2**63 - 1
ARGMAX = "all requests are greedy and want no log-probs: one argmax"


@functools.cache
def _before_temperature() -> bool:
    """Whether this SGLang was told to give log-probs as they are before the temperature."""
    return bool(resolve(f"{_MODULE}.SGLANG_RETURN_ORIGINAL_LOGPROB"))


def misfit(sampler: Any, info: Any, return_logprob: bool, logprob_logits: Tensor | None) -> str:
    """What of a batch the op does not do; empty where nothing.

    Args:
        sampler: SGLang's Sampler.
        info: its SamplingBatchInfo.
        return_logprob: whether log-probs are wanted.
        logprob_logits: logits before a watermark, of which log-probs are.
    """
    gates = (
        (
            sampler.rl_on_policy_target is not None,
            "rl-on-policy-target has a sampler of its own",
        ),
        (sampler.use_ascend_backend, "the backend is for Ascend"),
        (any(info.return_sampling_masks or ()), "a request asks for its sampling mask"),
        (logprob_logits is not None, "tokens carry a watermark"),
        (info.is_all_greedy and not return_logprob, ARGMAX),
        (
            return_logprob and not info.is_all_greedy and _before_temperature(),
            "log-probs are asked for before the temperature",
        ),
    )
    return next((why_not for shut, why_not in gates if shut), "")


def sampler(calls: Calls) -> Patch:
    """Sampler.forward."""
    from assay_kernels.sampler import op  # noqa: PLC0415 (where it is used)

    def around(  # noqa: PLR0917 (as SGLang's)
        original: Callable[..., Any],
        self: Any,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int] | None],
        positions: Tensor,
        *,
        logprob_logits: Tensor | None = None,
    ) -> Any:
        logits, info = logits_output.next_token_logits, sampling_info
        why_not = misfit(self, info, return_logprob, logprob_logits)
        if not why_not and not logits.numel():
            why_not = "there are no rows"
        if why_not:
            calls.passed(why_not)
            more = {} if logprob_logits is None else {"logprob_logits": logprob_logits}
            return original(
                *(self, logits_output, info, return_logprob),
                *(top_logprobs_nums, token_ids_logprobs, positions),
                **more,
            )
        if info.has_custom_logit_processor:
            logits = self._preprocess_logits(logits, info)
        temperatures = info.temperatures.view(-1)
        drawn = op.sample(
            logits,
            # SGLang's log-probs of a greedy batch are at temperature 1; the op's so at 0.
            torch.zeros_like(temperatures) if info.is_all_greedy else temperatures,
            _seeds(info, logits),
            positions,
            info.top_ks if info.need_top_k_sampling else None,
            info.top_ps if info.need_top_p_sampling else None,
            info.min_ps if info.need_min_p_sampling else None,
        )
        tokens = drawn.tokens if info.is_all_greedy else drawn.tokens.to(torch.int32)
        if return_logprob:
            if any(top_logprobs_nums) or any(ids is not None for ids in token_ids_logprobs):
                scaled = logits if info.is_all_greedy else logits / info.temperatures
                self.output_logprob_processor.compute_logprobs(
                    *(torch.log_softmax(scaled, dim=-1), top_logprobs_nums),
                    *(token_ids_logprobs, tokens),
                ).write_output_to(logits_output)
            logits_output.next_token_logprobs = drawn.log_probs
        self._sync_token_ids_across_tp(tokens, info)
        return tokens

    signature = Signature(
        (
            *("self", "logits_output", "sampling_info", "return_logprob"),
            *("top_logprobs_nums", "token_ids_logprobs", "positions"),
        ),
        ("logprob_logits",),
    )
    return Patch(f"{_MODULE}.Sampler.forward", signature, around)


def _seeds(info: Any, logits: Tensor) -> Tensor:
    """[B] int64: the requests' own, or new ones where SGLang asks for none."""
    seeds: Tensor | None = info.sampling_seed
    if seeds is not None:
        return seeds
    return torch.randint(_SEEDS, (len(logits),), dtype=torch.int64, device=logits.device)
