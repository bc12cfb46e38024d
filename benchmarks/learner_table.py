"""The learner benchmark's table: figures in, rows and notes out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import Row, quantile

GIB = 2**30
CLOSE = 0.05
"""How far an arm's first loss and gradient may be from TRL's, relatively, in bf16."""

NAMES = {
    "ours": "ours",
    "ours-stock": "ours, kernels stock",
    "ours-512": "ours, logProbChunk 512",
    "ours-exact": "ours, deterministic",
    "trl": "TRL",
    "trl-liger": "TRL + Liger's layers",
    "trl-liger-loss": "TRL + Liger's layers and loss",
    "trl-compiled": "TRL, layers compiled",
}
WHAT = {
    "mixed": "completions of mixed length, shared prompts",
    "equal": "equal lengths, no prompt shared",
}

ABOUT = {
    "": "An update: forward, backward, gradient clip (1.0), AdamW; DAPO's loss (average over "
    "tokens, clip 0.2/0.28, no KL, no importance correction), temperature 1. Weights, gradients "
    "and AdamW's moments are fp32 in all arms, and activations are checkpointed layer by layer.",
    "ours": "Ours: `Learner`'s own passes. Weights and activations are cast to bf16, the residual "
    "stream too; decoder layers go through torch.compile; sequences are packed, and a prompt that "
    "completions share goes through once a pass; varlen FlashAttention; head and loss are "
    "assay_kernels' linear_policy_loss, logits of 2,048 tokens in memory at one time. A pass has "
    "at most as many tokens as TRL's with padding. Planning and laying out the passes on the host "
    "is in the time.",
    "ours-stock": "Ours, kernels stock: the same with head and loss in PyTorch, the head's softmax "
    "through torch.compile.",
    "ours-512": "Ours, logProbChunk 512: the same with log-probs in chunks of 512 tokens.",
    "ours-exact": "Ours, deterministic: the forward pass of the operations that an engine in "
    "deterministic mode runs, without torch.compile.",
    "trl": "TRL: `GRPOTrainer.train()` with its defaults: bf16 autocast (residual stream fp32), "
    "sdpa attention, no torch.compile, log-probs and entropy in chunks by its own Triton kernels, "
    "the batch padded to its longest prompt and completion, 8 sequences a pass. The recorded batch "
    "lies padded on the GPU before the time begins; the metrics that TRL takes in its loss are in "
    "the time, logging is not.",
    "trl-liger": "TRL + Liger's layers: `use_liger_kernel=True`, which in this TRL is RMSNorm, "
    "SwiGLU and RoPE only.",
    "trl-liger-loss": "TRL + Liger's layers and loss: LigerFusedLinearGRPOLoss in place of TRL's "
    "head and loss, bound as older TRLs did.",
    "trl-compiled": "TRL, layers compiled: TRL as above, each decoder layer given to torch.compile "
    "as ours.",
}
MFU = (
    "tokens/s: of all prompts and completions, without padding, a prompt counted for each "
    "completion. MFU: 6 * (layer weights * tokens + head weights * completion tokens + layers * "
    "heads * head_dim * sum of length^2) operations, neither padding nor recomputation counted, "
    "over time and {peak:.0f} TFLOP/s (dense bf16, data sheet); for ours a shared prompt counts "
    "once, as it is calculated."
)
LONGEST = (
    "Longest sequence: one sequence (512 of it prompt) in one update{where}, torch's "
    "allocator held to the limit; tried until a length that fits and one that does not are within "
    "3 %, or time was up. What the allocator keeps in pieces that fit nothing counts, so that the "
    "peak in use is below the limit; its settings are the default ones in all arms."
)

Json = Mapping[str, Any]


def rows(figures: Json) -> list[Row]:
    """All rows that there are figures for."""
    found = []
    for name, updates in figures.get("updates", {}).items():
        found += _updates(WHAT[name], updates, figures["peak"], "ours" in updates["steps"])
    if "longest" in figures:
        found += _longest(figures["longest"])
    return found


def _updates(what: str, updates: Json, peak: float, goals: bool) -> list[Row]:
    found = []
    medians, memory = {}, {}
    for arm, steps in updates["steps"].items():
        if not steps:
            continue
        seconds = [step["seconds"] for step in steps]
        medians[arm] = statistics.median(seconds)
        needed = updates["operations_shared" if arm.startswith("ours") else "operations"]
        value = (
            f"{updates['tokens'] / medians[arm]:,.0f} tokens/s; {medians[arm] * 1000:,.0f} ms "
            f"({quantile(seconds, 0.25) * 1000:,.0f} to {quantile(seconds, 0.75) * 1000:,.0f}, "
            f"{len(seconds)} updates); MFU {needed / medians[arm] / peak:.1%}"
        )
        if "peak" in steps[0]:
            memory[arm] = max(step["peak"] for step in steps)
            resting = steps[-1]["resting"]
            value += f"; peak {memory[arm] / GIB:.2f} GiB, of which {resting / GIB:.2f} at rest"
        found.append(Row(f"{what}: {NAMES[arm]}", value))
    if goals and "ours" in medians and not all(arm.startswith("ours") for arm in medians):
        for arm in (arm for arm in medians if arm.startswith("ours")):
            name = f"{NAMES[arm]} / best of the others"
            found.append(_goal(f"{what}: time, {name}", medians, arm))
            if memory:
                found.append(_goal(f"{what}: peak memory, {name}", memory, arm, less=True))
    found.append(_first(what, updates["warmups"]))
    return found


def _goal(name: str, values: Mapping[str, float], own: str, less: bool = False) -> Row:
    others = {arm: value for arm, value in values.items() if not arm.startswith("ours")}
    best = min(others, key=lambda arm: others[arm])
    ratio = values[own] / others[best]
    met = ratio < 1 if less else ratio <= 1
    return Row(name, f"{ratio:.2f} ({NAMES[best]})", "< 1" if less else "<= 1", met)


def _first(what: str, warmups: Mapping[str, Sequence[Json]]) -> Row:
    """Whether the arms do the same: loss and gradient of the setting's first update."""
    firsts = {arm: steps[0] for arm, steps in warmups.items() if steps}
    value = ", ".join(
        f"{NAMES[arm]} {s['loss']:.5f} / {s['norm']:.4f}" for arm, s in firsts.items()
    )
    base = firsts.get("trl") or next(iter(firsts.values()), None)
    apart = [
        abs(step[key] - base[key]) / abs(base[key])
        for step in firsts.values()
        for key in ("loss", "norm")
        if base
    ]
    goal = f"within {CLOSE:.0%} of TRL"
    # Each of them, for nothing is far from NaN.
    close = all(each <= CLOSE for each in apart)
    return Row(f"{what}: first update's loss / gradient norm", value, goal, close)


def _longest(longest: Json) -> list[Row]:
    found, best = [], {}
    limit = longest["limit"]
    for arm, tries in longest["arms"].items():
        fit = [step["length"] for step in tries if not step["full"]]
        if len(tries) < 3 or not fit:
            continue
        full = [step["length"] for step in tries if step["full"] and step["length"] > max(fit)]
        best[arm] = max(fit)
        until = f", {min(full):,} did not" if full else ", more was not tried"
        peak = next(step["peak"] for step in tries if step["length"] == best[arm])
        value = f"{best[arm]:,} tokens fitted{until}; its peak {peak / GIB:.2f} GiB"
        found.append(Row(f"longest sequence in {limit / GIB:.0f} GiB: {NAMES[arm]}", value))
    if "ours" in best and len(best) > 1:
        others = [arm for arm in best if not arm.startswith("ours")] or [*best.keys() - {"ours"}]
        rival = max(others, key=lambda arm: best[arm])
        ratio = best["ours"] / best[rival]
        name = "longest sequence, ours / best of the others"
        found.append(Row(name, f"{ratio:.2f} ({NAMES[rival]})", ">= 1", ratio >= 1))
    return found


def _short(figures: Json) -> list[str]:
    """Where time was up before all rounds were over."""
    wanted = figures.get("rounds", 0)
    taken = {
        WHAT[name]: max(map(len, updates["steps"].values()))
        for name, updates in figures.get("updates", {}).items()
    }
    return [
        f"{what}: time was up after {rounds} of the {wanted} rounds asked for."
        for what, rounds in taken.items()
        if rounds < wanted
    ]


def line(tries: Sequence[Json]) -> tuple[float, float]:
    """Peak memory of the two longest that fitted, as a + b * length."""
    fitted = {step["length"]: step["peak"] for step in tries if not step["full"]}
    (first, low), (second, high) = sorted(fitted.items())[-2:]
    slope = (high - low) / (second - first)
    return low - slope * first, slope


def notes(figures: Json) -> list[str]:
    """What a reader must know."""
    told = []
    for name, updates in figures.get("updates", {}).items():
        setting = updates["setting"]
        prompt, completion = setting["prompt"], setting["completion"]
        median = f", log-normal around {setting['median']}" if setting["median"] else ""
        owned = "one prompt a group" if setting["shared"] else "each with a prompt of its own"
        told.append(
            f"{WHAT[name]}: {setting['groups']} groups of {setting['size']} ({owned}), prompts of "
            f"{prompt[0]} to {prompt[1]} tokens, completions of {completion[0]} to "
            f"{completion[1]}{median}; {updates['tokens']:,} tokens, {updates['slots']:,} with "
            "TRL's padding. Token ids are random; old log-probs and advantages were recorded."
        )
    every = figures.get("updates", {}).values()
    warm = max((len(steps) for u in every for steps in u["warmups"].values()), default=0)
    named = {arm for u in every for arm in u["steps"]}
    failed = figures.get("failed", {}).items()
    return [
        *told,
        *(ABOUT[arm] for arm in ("", *NAMES) if not arm or arm in named),
        MFU.format(peak=figures["peak"] / 1e12),
        "Each arm in its own process, which sees one GPU; by turns, another one first in each "
        f"round; {warm} warm-ups. Median with quartiles; host clock, device synchronised. "
        "Peak memory: torch's max_memory_allocated during the timed updates.",
        LONGEST.format(
            where=" on a second GPU of the host, while the first one timed updates"
            if figures.get("beside")
            else " while the other arms are idle"
        ),
        *_short(figures),
        *(f"{NAMES[arm]} did not run to its end: {why}" for arm, why in failed),
    ]
