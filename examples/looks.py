"""What is seen of the loop at a moment, and how that is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from assay_operator.checkpoints.results import UNDER_WAY
from assay_operator.conditions import by_type
from assay_operator.inference.rollout_state import OVER

Json = dict[str, Any]

ENDED = ("Complete", "Failed")
_WHY = {
    "Starting": "EnginesReady",
    "Training": "Training",
    "Complete": "Complete",
    "Failed": "Failed",
}
"""By a job's phase, the condition that says more of it."""


@dataclass(frozen=True)
class Look:
    """Job, service and checkpoints at a moment.

    Attributes:
        job: the VerifiedRLJob's status.
        service: the InferenceService's status.
        checkpoints: all Checkpoints, by the step at which they were made; others last.
        answers: requests of the load that are over, as far as they were counted.
        failed: those of them that failed.
    """

    job: Json = field(default_factory=dict)
    service: Json = field(default_factory=dict)
    checkpoints: tuple[Json, ...] = ()
    answers: int = 0
    failed: int = 0

    @property
    def rollout(self) -> Json:
        """The latest change of the weights, empty where there was none."""
        return self.service.get("rollout") or {}

    @property
    def target(self) -> str:
        """The name of what the latest change brings."""
        return str((self.rollout.get("to") or {}).get("name", ""))

    @property
    def served(self) -> str:
        """The version that is served."""
        return str((self.service.get("served") or {}).get("version", ""))

    def checkpoint(self, name: str) -> Json:
        """A Checkpoint, empty where there is none of that name."""
        return next((item for item in self.checkpoints if name_of(item) == name), {})


def look(items: Iterable[Json], job: str, service: str, answers: int, failed: int) -> Look:
    """What is seen.

    Args:
        items: what `kubectl get vrl,ckpt,infsvc -o json` lists.
        job: the VerifiedRLJob's name.
        service: the InferenceService's name.
        answers: see `Look`.
        failed: see `Look`.
    """
    status: dict[tuple[str, str], Json] = {}
    checkpoints = []
    for item in items:
        status[item["kind"], name_of(item)] = item.get("status") or {}
        if item["kind"] == "Checkpoint":
            checkpoints.append(item)
    return Look(
        status.get(("VerifiedRLJob", job), {}),
        status.get(("InferenceService", service), {}),
        tuple(sorted(checkpoints, key=_step)),
        answers,
        failed,
    )


def name_of(item: Json) -> str:
    """An object's name."""
    return str(item["metadata"]["name"])


def verdict(checkpoint: Json, kind: str = "Verified") -> Json:
    """A condition of a Checkpoint, empty while nothing is known of it."""
    found = by_type(checkpoint.get("status") or {}).get(kind, {})
    return found if found.get("reason") not in UNDER_WAY else {}


def _step(checkpoint: Json) -> float:
    made_by = checkpoint["spec"].get("job") or {}
    return float(made_by.get("step", float("inf")))


def news(before: Look, after: Look) -> list[str]:
    """What happened between two looks, a sentence each."""
    told = []
    phase = after.job.get("phase")
    if phase and phase != before.job.get("phase"):
        why = by_type(after.job).get(_WHY.get(phase, ""), {}).get("message", "")
        told.append(f"Job {phase}. {why}".rstrip())
    for item in after.checkpoints:
        found, known = verdict(item), verdict(before.checkpoint(name_of(item)))
        if found and found["reason"] != known.get("reason"):
            told.append(f"Checkpoint {name_of(item)}: {found['message']}")
    if (after.target, after.rollout.get("phase")) != (before.target, before.rollout.get("phase")):
        told.append(f"{after.rollout.get('message', '')}")
    return [line for line in told if line]


def is_turn(before: Look, after: Look) -> bool:
    """Whether it is time for a look at everything: the first checkpoint is verified, or a change
    of the weights is over."""
    first = bool(_verified(after)) and not _verified(before)
    began = bool(before.rollout) and before.rollout.get("phase") not in OVER
    return first or (began and after.rollout.get("phase") in OVER)


def _verified(seen: Look) -> list[str]:
    return [name_of(item) for item in seen.checkpoints if verdict(item).get("status") == "True"]


def trained_and_served(seen: Look) -> bool:
    """Whether the job is over, and its best checkpoint is served, or was refused; also where it
    has none."""
    if seen.job.get("phase") not in ENDED:
        return False
    best = seen.job.get("best")
    if not best:
        return True
    digest = seen.checkpoint(best).get("spec", {}).get("digest")
    refused = {each["version"] for each in seen.service.get("refused") or ()}
    return seen.rollout.get("phase") in OVER and digest in {seen.served, *refused}


def progress(seen: Look) -> list[tuple[str, str]]:
    """How far it is: pairs of a word and what is to be said."""
    job = seen.job
    done = [job.get("progress") and f"step {job['progress']}"]
    done += [f"{name} {job[name]:.2f}" for name in ("reward", "score") if name in job]
    done += [f"{job['eta']} left" if "eta" in job else "", job.get("message", "")]
    scored = [
        f"{name} {score:.3f}{_mark(seen.checkpoint(name))}" for name, score in scores(seen).items()
    ]
    users = f"{seen.answers} requests, {seen.failed} failed"
    return [
        ("training", ", ".join(part for part in done if part) or job.get("phase", "waits")),
        ("checkpoints", ", ".join(scored) or "none yet"),
        ("service", str(seen.rollout.get("message", ""))),
        ("users", users),
    ]


def _mark(checkpoint: Json) -> str:
    return {"True": " verified", "False": " not verified"}.get(
        verdict(checkpoint).get("status", ""), ""
    )


def strangers(answers: Iterable[Json], history: Iterable[Json], base: str) -> int:
    """How many requests were answered by weights that never came to be served.

    Args:
        answers: as `tests.e2e.clients.Load` notes them.
        history: status.history of the service.
        base: the version that was served at the beginning.
    """
    passed = {base} | {each["version"] for each in history if each["result"] == "Served"}
    return sum(1 for line in answers if line["version"] and line["version"] not in passed)


def by_version(answers: Iterable[Json], names: Mapping[str, str]) -> list[tuple[str, int]]:
    """How many requests were answered by which weights, in the order in which they first were.

    Args:
        answers: as `tests.e2e.clients.Load` notes them.
        names: of versions, for people.
    """
    counts: dict[str, int] = {}
    for line in sorted(answers, key=lambda line: float(line["at"])):
        if line["version"]:
            counts[line["version"]] = counts.get(line["version"], 0) + 1
    return [(names.get(version, version), count) for version, count in counts.items()]


def bar(share: float, width: int = 40) -> str:
    """A share as a bar."""
    return "█" * round(width * share)


def names(history: Iterable[Json]) -> dict[str, str]:
    """The names of weights by their versions, as far as status.history knows them."""
    return {each["version"]: each.get("name") or each["version"] for each in history}


def scores(seen: Look) -> dict[str, float]:
    """The scores of Checkpoints by their names, as far as they have one."""
    return {
        name_of(item): float(item["status"]["score"])
        for item in seen.checkpoints
        if "score" in (item.get("status") or {})
    }
