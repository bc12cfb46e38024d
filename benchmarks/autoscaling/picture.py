"""Two pictures: what each policy costs for what it gives, and what it did over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.autoscaling.compare import FORESIGHT, OURS, STATIC, Outcome, Setup, front

_COLOURS = (
    "#b3261e",
    "#f28b82",
    "#0072b2",
    "#56b4e9",
    "#d97706",
    "#00795a",
    "#cc79a7",
    "#767676",
    "#222222",
)
_BIN_S = 10.0
_INK = "#222222"
Steps = tuple[Sequence[float], Sequence[int]]
"""From each time on, so many replicas."""


def fronts(
    cases: Mapping[tuple[float, str], tuple[Sequence[Outcome], Mapping[str, Outcome]]],
    path: Path,
) -> None:
    """Share within the objective over GPU-hours, both judged, one field for each case.

    A line joins a policy's settings than which none of its own is both better and cheaper, in
    hindsight; the big mark is the one that tuning had chosen beforehand.

    Args:
        cases: outcomes and chosen ones, by start-up time in seconds and objective's name.
        path: of the PNG.
    """
    starts = sorted({start for start, _ in cases})
    names = list(dict.fromkeys(name for _, name in cases))
    figure = Figure(figsize=(4.3 * len(starts), 3.6 * len(names)), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(starts), squeeze=False, sharex=True, sharey="row")
    for row, name in enumerate(names):
        for column, start in enumerate(starts):
            axis = axes[row][column]
            _front(axis, *cases[start, name])
            axis.set_title(f"{name}; replicas start in {start:g} s", fontsize=10, color=_INK)
            if not column:
                axis.set_ylabel("requests within the objective")
            if row == len(names) - 1:
                axis.set_xlabel("GPU-hours")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path)


def _front(axis: Axes, outcomes: Sequence[Outcome], chosen: Mapping[str, Outcome]) -> None:
    for colour, (policy, one) in zip(_COLOURS, chosen.items(), strict=True):
        best = front([each for each in outcomes if each.policy == policy])
        bound = policy in {STATIC, FORESIGHT}
        axis.plot(
            [each.judged.gpu_hours for each in best],
            [each.judged.attained for each in best],
            color=colour,
            linewidth=2 if policy == OURS else 1,
            linestyle=":" if bound else "-",
            marker=".",
            markersize=4,
            label=policy,
            zorder=3 if policy == OURS else 2,
        )
        axis.plot(
            one.judged.gpu_hours,
            one.judged.attained,
            marker="s" if bound else "o",
            markersize=9,
            color=colour,
            markeredgecolor="white",
            zorder=4,
        )
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(color="#e5e5e5")


def timeline(setup: Setup, lines: Mapping[str, Steps], title: str, path: Path) -> None:
    """Arrivals above, and below, one strip a policy, the replicas that it wanted.

    Args:
        setup: whose trace and parts are shown.
        lines: wanted replicas, by the policy's name.
        title: of the picture.
        path: of the PNG.
    """
    figure = Figure(figsize=(12, 1.6 + 1.05 * len(lines)), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    heights = [1.6, *([1.0] * len(lines))]
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    end = setup.end
    counts = [0] * (int(end / _BIN_S) + 1)
    for request in setup.trace:
        if request.at < end:
            counts[int(request.at / _BIN_S)] += 1
    minutes = [index * _BIN_S / 60 for index in range(len(counts))]
    axes[0].fill_between(
        minutes, [count / _BIN_S for count in counts], step="post", color="#999999"
    )
    axes[0].set_ylabel("requests/s")
    axes[0].set_title(title, fontsize=11, color=_INK)
    highest = max(max(values) for _, values in lines.values())
    for axis, colour, (name, (times, values)) in zip(
        axes[1:], _COLOURS, lines.items(), strict=False
    ):
        axis.fill_between([at / 60 for at in times], values, step="post", color=colour, alpha=0.6)
        axis.set_ylim(0, highest * 1.1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    for axis in axes:
        axis.axvline(setup.split / 60, color=_INK, linewidth=0.8, linestyle="--")
        axis.set_xlim(0, end / 60)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("minutes; left of the dashed line settings were tuned, right of it judged")
    figure.tight_layout()
    figure.savefig(path)
