"""The picture of a recorded run beside the simulated one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.autoscaling_real.course import Steps, each_second
from benchmarks.autoscaling_real.table import LATEST_S, Result

_REAL, _SIMULATED, _GREY, _INK = "#b3261e", "#0072b2", "#999999", "#222222"
_BIN_S = 10.0


def draw(result: Result, path: Path) -> None:
    """Arrivals, and below them replicas wanted and ready, real and simulated."""
    record, end = result.record, result.record.end_s
    figure = Figure(figsize=(10, 6.5), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1.2, 1.2])
    counts = [0] * (int(end / _BIN_S) + 1)
    for one in record.piece:
        counts[int(one.at / _BIN_S)] += 1
    axes[0].fill_between(
        [index * _BIN_S for index in range(len(counts))],
        [count / _BIN_S for count in counts],
        step="post",
        color=_GREY,
    )
    axes[0].set_ylabel("requests/s")
    for axis, name in zip(axes[1:], ("wanted", "ready"), strict=True):
        for course in result.courses[1:]:
            _line(axis, getattr(course, name), end, color=_SIMULATED, alpha=0.25)
        simulated = getattr(result.courses[0], name)
        _line(axis, simulated, end, color=_SIMULATED, label="simulated")
        _line(axis, getattr(record.course, name), end, color=_REAL, label="real")
        axis.set_ylabel(f"replicas {name}")
        axis.set_ylim(0, result.policy.max + 0.4)
        axis.set_yticks(range(result.policy.max + 1))
    axes[1].legend(loc="lower right", frameon=False)
    for axis in axes:
        axis.set_xlim(0, end)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(
        f"One trace, real and simulated; pale: the operator looks up to {LATEST_S:g} s later",
        fontsize=11,
        color=_INK,
    )
    axes[-1].set_xlabel("seconds since the trace began")
    figure.tight_layout()
    figure.savefig(path)


def _line(axis: Axes, steps: Steps, end: float, **style: Any) -> None:
    values = each_second(steps, end)
    axis.step(range(len(values)), values, where="post", linewidth=1.6, **style)
