"""`demo/curve.png`: what a job learned and what users got of it, over one clock.

Above all that the trainer's own curve.png shows of scores, from the same file, with the service
beside it: when which weights came into its engines, how good they are, and what was turned away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from assay_operator.inference.observation import parse_time
from assay_trainer.curve import SCORE, line_of, smooth
from assay_trainer.metrics import Metrics
from examples.looks import Json
from examples.telling import clock

_GREY, _INK, _BAD = "#767676", "#222222", "#b3261e"
_REWARD, _HELD_OUT, _SERVED = "#0072b2", "#00795a", "#d97706"
_SMOOTHED = 5
"""Steps over which the reward's mean is drawn."""


@dataclass(frozen=True)
class Mark:
    """A change of the service's weights that is over.

    Attributes:
        at: when, in seconds since the epoch.
        name: of the weights.
        score: theirs; None where nobody knows it.
        served: whether they are served since; else they were turned away.
    """

    at: float
    name: str
    score: float | None
    served: bool


def marks(history: Sequence[Json], scores: dict[str, float]) -> list[Mark]:
    """The changes that status.history tells of, in their order.

    Args:
        history: of the service, the newest first.
        scores: by the names of weights.
    """
    found = []
    for each in reversed(history):
        finished = parse_time(each.get("finished"))
        if finished is not None:
            name = str(each.get("name") or each["version"])
            served = each["result"] == "Served"
            found.append(Mark(finished.timestamp(), name, scores.get(name), served))
    return found


def served_line(
    first: float, changes: Sequence[Mark], begin: float, end: float
) -> tuple[list[float], list[float]]:
    """The score of what was served, as the corners of a line of steps.

    Args:
        first: the score of what was served at the beginning.
        changes: of the weights, in their order. What was turned away, or has no score, makes none.
        begin: of the line, in seconds since the epoch.
        end: of it.
    """
    times, scores = [begin], [first]
    for change in changes:
        if change.served and change.score is not None:
            times += [change.at, change.at]
            scores += [scores[-1], change.score]
    return [*times, end], [*scores, scores[-1]]


def draw(
    lines: Sequence[Metrics],
    changes: Sequence[Mark],
    *,
    first: float,
    began: float,
    ended: float,
    path: Path,
) -> None:
    """Draws the story, 1200 x 700 pixels.

    Args:
        lines: of the trainer's metrics.jsonl.
        changes: of the service's weights, in their order.
        first: the score of what was served at the beginning.
        began: when the story did, in seconds since the epoch: the left edge.
        ended: the right edge.
        path: of the PNG; its folder is made.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(12, 7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.09, 0.92, 0.73))
    _plain(axes, ended - began)
    _training(axes, lines, began)
    times, scores = served_line(first, changes, began, ended)
    axes.plot(
        [at - began for at in times],
        scores,
        color=_SERVED,
        linewidth=3,
        label="score that users got",
    )
    _changes(axes, changes, began)
    figure.text(
        0.06,
        0.93,
        f"What users got: held-out score {scores[0]:.2f} → {scores[-1]:.2f}",
        fontsize=21,
        fontweight="bold",
        color=_INK,
    )
    axes.legend(loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=3, frameon=False, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def _training(axes: Axes, lines: Sequence[Metrics], began: float) -> None:
    timed = [{**line, "step": line["time"] - began} for line in lines]
    at, rewards = line_of(timed, "reward/mean")
    axes.plot(at, rewards, color=_REWARD, alpha=0.25, linewidth=1)
    axes.plot(
        at,
        smooth(rewards, _SMOOTHED),
        color=_REWARD,
        linewidth=2,
        label="reward in training (thin: each step)",
    )
    weighed, scores = line_of(timed, SCORE)
    axes.errorbar(
        weighed,
        scores,
        yerr=np.abs(
            [
                scores - line_of(timed, "evaluation/low")[1],
                line_of(timed, "evaluation/high")[1] - scores,
            ]
        ),
        color=_HELD_OUT,
        linewidth=2,
        elinewidth=1.2,
        marker="o",
        markersize=6,
        label="held-out score in training",
    )


def _changes(axes: Axes, changes: Sequence[Mark], began: float) -> None:
    for change in changes:
        colour = _SERVED if change.served else _BAD
        at = change.at - began
        axes.axvline(at, color=colour, linewidth=1.2, linestyle=":")
        if not change.served and change.score is not None:
            axes.plot(
                [at], [change.score], color=_BAD, marker="x", markersize=11, markeredgewidth=3
            )
        told = f"{change.name} {'is served' if change.served else 'is turned away'}"
        axes.annotate(
            told,
            (at, 0.015),
            xytext=(-4, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom",
            color=colour,
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def _plain(axes: Axes, seconds: float) -> None:
    """Axes from 0 to 1, over minutes."""
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MultipleLocator(60))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: clock(at)))
    axes.set_xlabel("minutes of the demo", color=_GREY, loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors=_GREY, labelsize=9.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
