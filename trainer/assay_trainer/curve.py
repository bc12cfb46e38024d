"""`curve.png`: one picture from which a person sees whether a run goes well.

Above, a sentence and the scores: what training earns, and what the held-out items say with their
interval. Below, where the time goes, and three signs of health. Drawn without pyplot and so without
global state: any thread may draw.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
    PercentFormatter,
)
from numpy.typing import NDArray

from assay_trainer.job import Job
from assay_trainer.metrics import Metrics
from assay_trainer.watch import Alarm, mismatch_bound
from assay_verifiers.answers import write_atomically

Line = tuple[NDArray[np.float64], NDArray[np.float64]]

SCORE = "evaluation/score"
SAMPLE = "evaluation/sample@1"
TIMES = ("rollout", "verify", "train", "push", "evaluate")
"""In the order of a step; what else is measured as seconds/... comes after them."""
SECONDS = "seconds/"
WALL = "seconds/step"
"""From one finished step to the next, by the clock."""
WITHIN = {"seconds/verify-hidden", "seconds/push/write", "seconds/waited"}
"""Are parts of others."""
LEFT, RIGHT = 0.055, 0.98
_INK, _GREY, _GOOD, _BAD, _DOUBT = "#222222", "#767676", "#00795a", "#b3261e", "#9a6700"
_REWARD, _HELD_OUT, _SAMPLED = "#0072b2", "#00795a", "#d97706"
_STACK = ("#56b4e9", "#f0c05a", "#0072b2", "#cc79a7", "#7fc8ac", "#b5b5b5", "#d9d9d9")


def draw(history: Sequence[Metrics], path: Path, job: Job, alarms: Sequence[Alarm] = ()) -> None:
    """Draws the run so far, 1200 x 800 pixels, and replaces the file in one move.

    Args:
        history: the lines of metrics.jsonl.
        path: of the PNG.
        job: whose length, bounds and folder's name are shown.
        alarms: what is wrong now, the worst first.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(12, 8), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    at = max((line["step"] for line in history), default=0.0)
    # A run that has just begun would be a dash at the left edge of its whole length.
    end = min(float(job.trainer.steps), max(3 * at, 1.0))
    _headline(figure, history, at, job, alarms)
    grid = figure.add_gridspec(
        2,
        1,
        height_ratios=(2.2, 1),
        left=LEFT,
        right=RIGHT,
        top=0.78 if alarms else 0.825,
        bottom=0.05,
        hspace=0.42,
    )
    _scores(figure.add_subplot(grid[0]), history, end, job)
    # The empty column holds the legend of the one before it.
    small = grid[1].subgridspec(1, 5, width_ratios=(1.45, 0.5, 1, 1, 1), wspace=0.32)
    _times(figure.add_subplot(small[0]), history, end)
    _entropy(figure.add_subplot(small[2]), history, end)
    _mismatch(figure.add_subplot(small[3]), history, end, mismatch_bound(job))
    _shares(figure.add_subplot(small[4]), history, end)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


def line_of(history: Sequence[Metrics], name: str) -> Line:
    """The steps at which a number is known, and the number."""
    known = [line for line in history if math.isfinite(line.get(name, math.nan))]
    return (
        np.array([line["step"] for line in known], dtype=np.float64),
        np.array([line[name] for line in known], dtype=np.float64),
    )


def smooth(values: NDArray[np.float64], over: int) -> NDArray[np.float64]:
    """The mean of each value and its neighbours, `over` of them where there are as many.

    It looks to both sides: a mean of what came before would make a rise look later than it was.
    """
    sums = np.concatenate(([0.0], np.cumsum(values)))
    here = np.arange(len(values))
    begins = np.maximum(0, here - over // 2)
    ends = np.minimum(len(values), here + over // 2 + 1)
    result: NDArray[np.float64] = (sums[ends] - sums[begins]) / (ends - begins)
    return result


def judgement(history: Sequence[Metrics]) -> tuple[str, str]:
    """What the held-out items say of the whole run, in words, and the colour for it.

    A score rose above the first one, or fell below the best one, only where their intervals lie
    apart: that is stricter than a test of the difference.
    """
    weighed = [line for line in history if math.isfinite(line.get(SCORE, math.nan))]
    if not weighed:
        return "Not weighed yet", _GREY
    first, last = weighed[0], weighed[-1]
    best = max(weighed, key=lambda line: line[SCORE])
    if len(weighed) == 1:
        return f"Held-out score {last[SCORE]:.2f}, weighed once so far", _GREY
    if last["evaluation/high"] < best["evaluation/low"]:
        at = f" (best: step {best['step']:.0f})"
        return f"Worse: held-out score {best[SCORE]:.2f} → {last[SCORE]:.2f}{at}", _BAD
    told = f"held-out score {first[SCORE]:.2f} → {last[SCORE]:.2f}"
    if last["evaluation/low"] > first["evaluation/high"]:
        return f"Better: {told}", _GOOD
    return f"No sure change: {told}", _DOUBT


def _headline(
    figure: Figure, history: Sequence[Metrics], at: float, job: Job, alarms: Sequence[Alarm]
) -> None:
    words, colour = judgement(history)
    if alarms and alarms[0].stop:
        words, colour = f"Stopped.  {words}", _BAD
    figure.text(LEFT, 0.942, words, fontsize=21, fontweight="bold", color=colour)
    folder = "/".join(job.checkpoint.directory.parts[-2:])
    figure.text(RIGHT, 0.95, folder, fontsize=13, color=_GREY, ha="right")
    facts = [f"step {at:.0f} of {job.trainer.steps}", *_facts(history)]
    figure.text(LEFT, 0.905, "  ·  ".join(facts), fontsize=11.5, color=_INK)
    if alarms:
        worst = alarms[0]
        more = f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
        told = f"{worst.reason[:1].upper()}{worst.reason[1:]}{more}"
        figure.text(
            LEFT,
            0.89,
            "\n".join(textwrap.wrap(told, 140, max_lines=2, placeholder=" …")),
            fontsize=11,
            color=_BAD if worst.stop else _DOUBT,
            va="top",
        )


def _facts(history: Sequence[Metrics]) -> list[str]:
    facts = []
    rewards = line_of(history, "reward/mean")[1]
    if len(rewards):
        over = _window(rewards)
        facts.append(f"reward {rewards[:over].mean():.2f} → {rewards[-over:].mean():.2f}")
    for line in reversed(history):
        if math.isfinite(line.get(SCORE, math.nan)):
            low, high = line["evaluation/low"], line["evaluation/high"]
            facts.append(f"held-out {line[SCORE]:.2f} ({low:.2f} to {high:.2f})")
            if SAMPLE in line:
                facts.append(f"sample@1 {line[SAMPLE]:.2f}")
            facts.append("verified" if line.get("evaluation/verified") else "not verified")
            break
    return facts


def _window(values: NDArray[np.float64]) -> int:
    return max(1, len(values) // 12)


def _scores(axes: Axes, history: Sequence[Metrics], end: float, job: Job) -> None:
    _plain(axes, end)
    at, rewards = line_of(history, "reward/mean")
    axes.plot(at, rewards, color=_REWARD, alpha=0.28, linewidth=1)
    axes.plot(
        at,
        smooth(rewards, _window(rewards)),
        color=_REWARD,
        linewidth=2.2,
        label="reward in training (thin: each step)",
    )
    sampled_at, sampled = line_of(history, SAMPLE)
    if len(sampled):
        axes.plot(
            sampled_at,
            sampled,
            color=_SAMPLED,
            linewidth=2,
            linestyle=(0, (4, 1.5)),
            marker="s",
            markersize=5,
            clip_on=False,
            label="held-out sample@1",
        )
    weighed = [line for line in history if math.isfinite(line.get(SCORE, math.nan))]
    scores = line_of(weighed, SCORE)
    low, high = line_of(weighed, "evaluation/low")[1], line_of(weighed, "evaluation/high")[1]
    if weighed:
        axes.fill_between(scores[0], low, high, color=_HELD_OUT, alpha=0.14, linewidth=0)
        axes.plot(
            *scores,
            color=_HELD_OUT,
            linewidth=2.5,
            marker="o",
            markersize=6.5,
            clip_on=False,
            label="held-out score, greedy (band: its interval)",
        )
        # A band of one evaluation has no width.
        axes.vlines(
            scores[0], low, high, color=_HELD_OUT, alpha=0.4, linewidth=1.4, clip_on=False, zorder=5
        )
    highest = max((float(v.max()) for v in (rewards, sampled, high) if len(v)), default=1.0)
    top = 1.02 if highest > 0.4 else max(0.1, 1.25 * highest)
    bar = job.evaluation.minScore if job.evaluation else None
    if bar is not None and bar <= top:
        axes.axhline(bar, color=_GREY, linewidth=1.2, linestyle=":")
        axes.annotate(
            f"verified from {bar:g}",
            (1, bar),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=_GREY,
            fontsize=9.5,
        )
    axes.set_ylim(0, top)
    axes.set_xlabel("step", color=_GREY, loc="right", labelpad=0)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=3, frameon=False, fontsize=11
        )


def _times(axes: Axes, history: Sequence[Metrics], end: float) -> None:
    lines = [line for line in history if line["step"] > 0]
    named = {name for line in lines for name in line if name.startswith(SECONDS)}
    names = [SECONDS + name for name in TIMES if SECONDS + name in named]
    names += sorted(named - {*names, *WITHIN, WALL})
    # What overlaps, as drawing and training do, is stacked all the same.
    wall = line_of(lines, WALL)[1]
    clock = f"{np.median(wall):.2g} by the clock" if len(wall) else ""
    _small(axes, end, "Seconds of a step", clock)
    raw = np.nan_to_num(np.array([[line.get(name, 0.0) for line in lines] for name in names]))
    whole = float(raw.sum())
    if not whole:
        return
    values = [smooth(row, max(1, len(lines) // 25)) for row in raw]
    areas = axes.stackplot([line["step"] for line in lines], values, colors=_STACK, linewidth=0)
    # Single steps, the first above all, take many times longer and would flatten the others.
    total = np.sum(values, axis=0)
    axes.set_ylim(0, 1.15 * max(min(float(total.max()), 2 * float(np.median(total))), 1e-9))
    shares = [
        f"{name.removeprefix(SECONDS)} {row.sum() / whole:.0%}"
        for name, row in zip(names, raw, strict=True)
    ]
    axes.legend(
        areas[::-1],
        shares[::-1],
        loc="upper left",
        bbox_to_anchor=(0.99, 1.04),
        frameon=False,
        fontsize=9,
        handlelength=0.9,
        handleheight=0.9,
        labelspacing=0.4,
        borderpad=0.2,
    )


def _entropy(axes: Axes, history: Sequence[Metrics], end: float) -> None:
    _small(axes, end, "Entropy", "nats a token")
    at, values = line_of(history, "entropy")
    axes.plot(at, values, color=_REWARD, linewidth=1.5)
    axes.set_ylim(0, max(1.1 * float(values.max()) if len(values) else 1.0, 1e-9))


def _mismatch(axes: Axes, history: Sequence[Metrics], end: float, bound: float) -> None:
    """On a logarithmic axis of whole decades, up to the bound at least: near or far is what
    counts."""
    _small(axes, end, "Engine against trainer", "nats a token; dotted: too far")
    at, values = line_of(history, "mismatch/mean")
    at, values = at[values > 0], values[values > 0]
    axes.set_yscale("log")
    low = float(values.min()) if len(values) else bound / 10
    high = max(bound, float(values.max()) if len(values) else bound)
    axes.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** (math.ceil(math.log10(high)) + 0.5))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhline(bound, color=_BAD, linewidth=1.2, linestyle=":")
    axes.plot(at, values, color=_REWARD, linewidth=1.5)


def _shares(axes: Axes, history: Sequence[Metrics], end: float) -> None:
    _small(axes, end, "Not learned from", "")
    named = {
        "groups alike": ("groups/uniform", _REWARD),
        "cut off": ("samples/truncated", _SAMPLED),
        "not judged": ("samples/masked", _BAD),
    }
    for label, (name, colour) in named.items():
        axes.plot(*line_of(history, name), color=colour, linewidth=1.5, label=label)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_locator(MultipleLocator(0.25))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.05, 0.97),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor="linecolor",
        handlelength=0.0,
        handletextpad=0.0,
        columnspacing=0.6,
    )


def _small(axes: Axes, end: float, title: str, below: str) -> None:
    _plain(axes, end)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=18)
    axes.annotate(
        below,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=9,
        color=_GREY,
    )


def _plain(axes: Axes, end: float) -> None:
    """Axes without decoration."""
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=_GREY, labelsize=9.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
