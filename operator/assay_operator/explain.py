"""Draws the last hour of a service that scales itself, and says why it is as it is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from assay_operator.autoscaling.state import Point, State
from assay_operator.conditions import by_type
from assay_operator.inference.observation import parse_time
from assay_operator.inference.scaling_status import remembered
from assay_operator.plan import Json

_LEVELS = "▁▂▃▄▅▆▇█"
_COLUMN_S = 60.0
_COLUMNS = 60
_MARGIN = 16
_CONDITIONS = ("ScalingActive", "ObjectiveUnreachable")

Column = Sequence[Point]
"""The points of a minute, none where nothing was seen of it."""


def explain(service: Json, now: datetime) -> str:
    """The last decision about a service's replicas in words and numbers, after a picture.

    Args:
        service: the InferenceService as the API server has it.
        now: the time, with a zone.

    Raises:
        ValueError: it does not scale itself.
    """
    spec, status = service.get("spec") or {}, service.get("status") or {}
    scaling, told = spec.get("autoscaling"), status.get("autoscaling")
    name = service["metadata"]["name"]
    if not scaling:
        raise ValueError(f"{name} has no spec.autoscaling: it has spec.replicas, always")
    lines = [_head(name, scaling, status)]
    if not told or "time" not in told:
        return "\n".join([*lines, "Nothing was measured yet."])
    lines += [_since(told, now), f"  {told.get('message', '')}"]
    lines += [f"  It changes {each}." for each in told.get("changes") or ()]
    lines += ["", *_picture(remembered(status)), ""]
    lines += _numbers(told)
    conditions = by_type(status)
    for kind in _CONDITIONS:
        if found := conditions.get(kind):
            lines.append(f"{kind} {found['status']} ({found['reason']}): {found['message']}")
    return "\n".join(lines)


def _head(name: str, scaling: Json, status: Json) -> str:
    goals = scaling["objectives"]
    said = [f"{goal.removesuffix('Ms')} {value} ms" for goal, value in _times(goals)]
    if said:
        said.append(f"for {goals.get('attainment', 0.95):.1%} of the requests")
    if "concurrency" in goals:
        said.append(f"{goals['concurrency']} requests a replica")
    bounds = f"{scaling.get('min', 1)} to {scaling['max']}"
    driver = scaling.get("driver", "builtin")
    return (
        f"{name}: {status.get('routable', '0/0')} replicas ready, {bounds} by driver {driver}; "
        f"objectives: {', '.join(said)}"
    )


def _times(goals: Json) -> Iterator[tuple[str, int]]:
    return ((goal, goals[goal]) for goal in ("ttftMs", "itlMs") if goal in goals)


def _since(told: Json, now: datetime) -> str:
    time = parse_time(told["time"])
    ago = f" ({max(0, (now - time).total_seconds()):.0f} s ago)" if time else ""
    scaled = f"; the number last changed at {told['scaled']}" if told.get("scaled") else ""
    return f"{told['time']}{ago}: {told.get('reason')}{scaled}"


def _picture(state: State) -> Iterator[str]:
    columns = list(_columns(state))
    if not any(columns):
        yield "There is no history yet."
        return
    yield _row("requests/s", columns, _rate, "{:.3g}")
    yield _row("wanted", columns, lambda column: column[-1].replicas, "{:.0f}")
    yield _row("ready", columns, lambda column: column[-1].ready, "{:.0f}")
    yield _row("waiting", columns, lambda column: max(each.waiting for each in column), "{:.3g}")
    yield _row("within goals", columns, _within, "{:.1%}")
    ago = f"{_COLUMNS * _COLUMN_S / 60:.0f} min ago"
    yield " " * _MARGIN + ago + "last look".rjust(_COLUMNS - len(ago))


def _columns(state: State) -> Iterator[Column]:
    """The points by their minute, counted back from the last look."""
    for number in reversed(range(_COLUMNS)):
        end = state.clock - number * _COLUMN_S
        yield [
            point
            for point in state.history
            if end - _COLUMN_S <= point.start + point.seconds / 2 < end
        ]


def _rate(column: Column) -> float | None:
    seconds = sum(point.seconds - point.unknown for point in column)
    return sum(point.arrivals for point in column) / seconds if seconds > 0 else None


def _within(column: Column) -> float | None:
    return min((point.within for point in column if point.within is not None), default=None)


def _row(
    name: str, columns: Sequence[Column], value: Callable[[Column], float | None], form: str
) -> str:
    """One line of the picture: from 0 to the highest value; where nothing is known it is blank."""
    values = [value(column) if column else None for column in columns]
    known = [each for each in values if each is not None]
    if not known:
        return f"{name:<{_MARGIN}}not measured"
    most = max(known)
    drawn = "".join(" " if each is None else _level(each, most) for each in values)
    low, high, last = (form.format(each) for each in (min(known), most, known[-1]))
    return f"{name:<{_MARGIN}}{drawn}  {low} to {high}, now {last}"


def _level(value: float, most: float) -> str:
    return _LEVELS[round(value / most * (len(_LEVELS) - 1))] if most > 0 else _LEVELS[0]


def _numbers(told: Json) -> Iterator[str]:
    if formula := told.get("formula"):
        yield "How it was worked out:"
        yield from (f"  {part}" for part in formula.split("; "))
    for title, name in (("What was seen:", "inputs"), ("What a replica does:", "capacity")):
        if found := told.get(name):
            yield title
            yield "  " + ", ".join(f"{key} {value:g}" for key, value in found.items())
