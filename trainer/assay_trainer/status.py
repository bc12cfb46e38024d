"""What a run is at, held so that any thread may read it, and whether that is well."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from assay_trainer.metrics import Metrics
from assay_trainer.watch import Alarm

Phase = Literal[
    "starting", "rollout", "train", "push", "evaluate", "checkpoint", "finished", "stopped"
]
"""finished: all steps are done. stopped: the run ended before that, for the reason in `message`."""

_RECENT_STEPS = 20


class EngineState(Protocol):
    """What is to be told of an engine."""

    @property
    def url(self) -> str: ...
    @property
    def usable(self) -> bool: ...
    @property
    def version(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class State:
    """What a run is at. Times are the clock's that `Status` was given.

    Attributes:
        name: of the run.
        of: how many steps it has.
        began: when this process began.
        progressed: when the last step was finished, or this process began.
        phase: what is going on.
        done: how much of the phase, where it can be counted; `total` of how much, 0 if it cannot.
        step: the last finished step.
        reward: the mean of its judged samples.
        weighed: the step of the last evaluation; None before the first one.
        score: its greedy score, `low` and `high` that one's interval.
        sample_at_1: its mean over samples.
        verified: whether it was good enough.
        tokens_per_second: drawn ones, in the last steps.
        seconds_per_step: in the last steps.
        eta_seconds: how long the rest will take at that pace.
        tokens: drawn since this process began.
        checkpoints: JSON data of each that is kept.
        engines: the state of each.
        alarms: what is wrong now, the worst first.
        doubts: what is allowed about the job and seldom meant.
        message: in words, for people.
        metrics: all numbers of the last step.
    """

    name: str
    of: int
    began: float
    progressed: float
    phase: Phase = "starting"
    done: int = 0
    total: int = 0
    step: int = 0
    reward: float | None = None
    weighed: int | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    sample_at_1: float | None = None
    verified: bool = False
    tokens_per_second: float | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    tokens: int = 0
    checkpoints: tuple[Mapping[str, Any], ...] = ()
    engines: tuple[EngineState, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    doubts: tuple[str, ...] = ()
    message: str = ""
    metrics: Metrics = field(default_factory=dict)


class Status:
    """Holds the state; any thread may read or change it.

    Args:
        name: of the run.
        of: how many steps it has.
        step: the one that it goes on from.
        on_change: told every new state, outside the lock, by the thread that changed it.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        of: int,
        *,
        step: int = 0,
        on_change: Callable[[State], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._on_change = on_change
        self.clock = clock
        now = clock()
        self._state = State(name, of, began=now, progressed=now, step=step)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT_STEPS)

    @property
    def state(self) -> State:
        """As it is now."""
        with self._lock:
            return self._state

    def update(self, **changes: Any) -> None:
        """Changes fields of the state by name. A new phase forgets the count of the one before.

        Raises:
            TypeError: there is no such field.
        """
        with self._lock:
            if changes.get("phase", self._state.phase) != self._state.phase:
                changes = {"done": 0, "total": 0, **changes}
            self._state = replace(self._state, **changes)
            state = self._state
        if self._on_change:
            self._on_change(state)

    def weighed(self, step: int, metrics: Metrics) -> None:
        """An evaluation is there, with its `evaluation/...`."""
        self.update(weighed=step, **_of_evaluation(metrics))

    def finished(self, line: Metrics) -> None:
        """A step is done; `line` is the one that metrics.jsonl gets."""
        now = self.clock()
        before = self.state
        tokens = line.get("tokens/completion", 0.0) + line.get("tokens/resampled", 0.0)
        self._recent.append((line.get("seconds/step", now - before.progressed), tokens))
        seconds = sum(seconds for seconds, _ in self._recent)
        pace = seconds / len(self._recent)
        step = int(line["step"])
        changes: dict[str, Any] = {
            "step": step,
            "progressed": now,
            "reward": line.get("reward/mean"),
            "seconds_per_step": pace,
            "eta_seconds": pace * (before.of - step),
            "tokens": before.tokens + int(tokens),
            "metrics": dict(line),
        }
        drawn = sum(tokens for _, tokens in self._recent)
        if seconds > 0 and drawn:
            changes["tokens_per_second"] = drawn / seconds
        if "evaluation/score" in line:
            changes |= {"weighed": step, **_of_evaluation(line)}
        self.update(**changes)


def _of_evaluation(metrics: Metrics) -> dict[str, Any]:
    return {
        "score": metrics["evaluation/score"],
        "low": metrics["evaluation/low"],
        "high": metrics["evaluation/high"],
        "sample_at_1": metrics.get("evaluation/sample@1"),
        "verified": bool(metrics.get("evaluation/verified", 0)),
    }


def sick(state: State, now: float, progress_seconds: float) -> str | None:
    """Why the run is not well; None where it is."""
    if state.phase == "finished":
        return None
    if state.phase == "stopped":
        return f"stopped at step {state.step} of {state.of}: {state.message}"
    silent = now - state.progressed
    if silent > progress_seconds:
        return (
            f"no step was finished for {silent:.0f} s, at most {progress_seconds:g} s are allowed "
            f"(status.progressSeconds); {state.step} of {state.of} are done, now: {state.phase}"
            + (f"; {state.message}" if state.message else "")
        )
    return None


def as_json(state: State, now: float) -> dict[str, Any]:
    """What /status tells."""
    return {
        "name": state.name,
        "phase": state.phase,
        "phaseDone": state.done,
        "phaseTotal": state.total,
        "step": state.step,
        "of": state.of,
        "reward": _known(state.reward),
        "score": _known(state.score),
        "interval": None if state.low is None else [state.low, state.high],
        "sample@1": _known(state.sample_at_1),
        "verified": state.verified,
        "weighedAtStep": state.weighed,
        "tokensPerSecond": _known(state.tokens_per_second),
        "secondsPerStep": _known(state.seconds_per_step),
        "etaSeconds": _known(state.eta_seconds),
        "secondsSinceProgress": now - state.progressed,
        "uptimeSeconds": now - state.began,
        "checkpoints": [dict(checkpoint) for checkpoint in state.checkpoints],
        "engines": [
            {name: getattr(engine, name) for name in ("url", "usable", "version", "reason")}
            for engine in state.engines
        ],
        "alarms": [asdict(alarm) for alarm in state.alarms],
        "doubts": list(state.doubts),
        "message": state.message,
        "metrics": {name: _known(value) for name, value in state.metrics.items()},
    }


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
