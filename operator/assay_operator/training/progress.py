"""What a trainer says about its run: at /status while it runs, in its last words when it ends.

The last words are the termination message of the container `trainer` in the pod of index 0, one
JSON object in at most 4096 bytes:

    {"finished": true, "step": 200, "digest": "5f1c...", "checkpoints": [...]}

`finished` says whether all steps are done, `step` and `digest` are those of the newest checkpoint;
`checkpoints` are those of /status, the newest first, as many as fit. Where a run
ended otherwise, `finished` is false, `code` is the exit code (torchrun's own says nothing) and
`message` is why, for people. A trainer that was killed leaves none: the kubelet then keeps the end
of its log instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from assay_operator.training.observation import TrainerAnswer

ENDED = frozenset({"finished", "stopped"})
"""Phases of a trainer in which nothing goes on any more."""
DOUBT = "doubt"


class _Said(BaseModel):
    """A part of what a trainer says. A newer trainer may say more."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, allow_inf_nan=False
    )


class Weighed(_Said):
    """How a checkpoint scored, as its manifest has it."""

    score: float | None = None
    interval: tuple[float, float] | None = None
    items: int | None = None
    why: str = ""


class Saved(_Said):
    """A checkpoint that is whole and durable.

    Attributes:
        step: after which it was taken.
        path: of its folder, in the trainer's container.
        digest: of the model's files.
        version: ATTEMPT.STEP of its weights.
        parent: the digest of the checkpoint that training went on from.
        score: of its evaluation.
        verified: whether that was enough.
        evaluation: all of it; None where there was none.
        time: when it was written, by the trainer's clock.
    """

    step: Annotated[int, Field(ge=0)]
    path: str
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    version: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$")]
    parent: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    score: float | None = None
    verified: bool = False
    evaluation: Weighed | None = None
    time: str | None = None

    @property
    def order(self) -> tuple[int, int]:
        """By which one checkpoint is newer than another: attempt, step."""
        attempt, step = self.version.split(".")
        return int(attempt), int(step)


class Alarm(_Said):
    """Something that a person should know."""

    kind: str
    stop: bool = False
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" + (f". {self.remedy}" if self.remedy else "")


class Progress(_Said):
    """A trainer's /status, as far as it matters here; docs/training.md has the fields."""

    name: str
    phase: str
    phase_done: int = 0
    step: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=0)]
    reward: float | None = None
    score: float | None = None
    seconds_per_step: float | None = None
    eta_seconds: float | None = None
    checkpoints: tuple[Saved, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    doubts: tuple[str, ...] = ()
    message: str = ""

    @property
    def warnings(self) -> list[str]:
        """What a person should know: alarms first, then what the job's own check warns of."""
        return [*map(str, self.alarms), *(f"{DOUBT}: {doubt}" for doubt in self.doubts)]

    @property
    def mark(self) -> str:
        """Changes with every bit of progress."""
        return f"{self.step} {self.phase} {self.phase_done} {len(self.checkpoints)}"


class Farewell(_Said):
    """A trainer's last words."""

    finished: bool
    step: Annotated[int, Field(ge=0)] = 0
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    checkpoints: tuple[Saved, ...] = ()
    code: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Marker:
    """That a run came to its end, and with which checkpoint."""

    step: int
    digest: str


def heard(answer: TrainerAnswer, name: str) -> Progress | str:
    """What an answer says, or why it says nothing.

    Args:
        answer: to one question.
        name: of the job: a pod's address may have gone to somebody else.
    """
    if answer.status is None:
        return answer.error or "the trainer said nothing"
    try:
        progress = Progress.model_validate(answer.status)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return (
            f"/status is none that this operator understands ({where}: {first['msg']}): the "
            "trainer's image must be of the operator's release (trainer.images in its "
            "configuration)"
        )
    if progress.name != name:
        return f"the run {progress.name!r} answers at this pod's address"
    return progress


def farewell(text: str) -> Farewell | None:
    """The last words in a termination message; None where it is something else, such as a log."""
    try:
        data: Any = json.loads(text)
        return Farewell.model_validate(data)
    except ValueError:
        return None


def end_of(progress: Progress | None, words: Farewell | None, steps: int) -> Marker | None:
    """The marker of the final checkpoint, if the trainer has told of it.

    That all steps are done is not enough: the last step's checkpoint must be among those that are
    there.

    Args:
        progress: the latest answer.
        words: the trainer's last ones.
        steps: how many there are to do.
    """
    if progress and progress.phase == "finished":
        for saved in progress.checkpoints:
            if saved.step == progress.step >= steps:
                return Marker(saved.step, saved.digest)
    if words and words.finished and words.digest and words.step >= steps:
        return Marker(words.step, words.digest)
    return None


def in_words(seconds: float) -> str:
    """A duration in its two largest units, such as 1h20m, and below an hour in one.

    No finer: it stands in the status, which would change all the time.
    """
    if seconds < 59.5:
        return f"{max(0, round(seconds))}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"
