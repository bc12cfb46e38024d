"""Checkpoint objects of a job: made of what its trainer reports, and deleted with it. Pure.

The trainer keeps the newest `spec.checkpoint.keep` folders, the best verified one, and those whose
digest it is told is pinned: the job's ConfigMap NAME-pins has a key for each such digest and is
mounted into the trainer (`pods.PINS_MOUNT`). The objects follow the folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from assay_operator.api.meta import API_VERSION
from assay_operator.api.training import Evaluation
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.inference.observation import condition_of, labels_of
from assay_operator.plan import (
    EVALUATION_ANNOTATION,
    KEEP_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    OWNER_LABEL,
    Json,
    Ref,
)
from assay_operator.training.jobfile import CHECKPOINTS_MOUNT, run_folder, suite_key
from assay_operator.training.progress import Saved

_KIND = "Checkpoint"
_DIGEST = "sha256:"
_FOLDER = re.compile(r"checkpoints/step-\d{6,}(\.\d+)?")


@dataclass(frozen=True)
class Best:
    """The best verified checkpoint."""

    name: str
    score: float
    digest: str


@dataclass(frozen=True)
class Kept:
    """The Checkpoint objects of a job.

    Attributes:
        apply: all that shall be there, complete but for what every child gets.
        delete: those that shall go.
        newest: the name of the newest; None where there is none.
        best: the best verified one; None where there is none.
        problems: what was reported and cannot be an object, with what to do.
    """

    apply: tuple[Json, ...] = ()
    delete: tuple[Ref, ...] = ()
    newest: str | None = None
    best: Best | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """One checkpoint: what is reported of it, or what its object has kept."""

    name: str
    order: tuple[int, int]
    digest: str
    verified: bool
    score: float | None
    item: Json


def claim_of(job: str, spec: VerifiedRLJobSpec) -> str:
    """The claim that a job's checkpoints lie on."""
    return spec.checkpoint.storage.claim or f"{job}-checkpoints"


def checkpoints(
    job: Json,
    spec: VerifiedRLJobSpec,
    reported: tuple[Saved, ...] | None,
    existing: Iterable[Json],
    pinned: frozenset[str] = frozenset(),
    *,
    complete: bool = True,
) -> Kept:
    """Which Checkpoints a job shall have.

    One that the trainer does not report any more goes, unless its digest is pinned, or it is the
    best verified of all: then its folder may be damaged, which is for a person to look at.

    Args:
        job: the VerifiedRLJob.
        spec: its spec.
        reported: what the trainer says is there; None where it does not say: then all stay.
        existing: the Checkpoints of the namespace; those that this job did not make are left alone.
        pinned: digests of weights that are served or on their way, with or without `sha256:`.
        complete: whether `reported` is all that the trainer has; else none goes.
    """
    there = {item["metadata"]["name"]: item for item in existing}
    ours = {name: item for name, item in there.items() if _is_ours(item, job, spec)}
    found = {name: _known(item) for name, item in ours.items()}
    told: dict[str, _Known] = {}
    problems: list[str] = []
    for saved in reported or ():
        made = _reported(job, spec, saved)
        if isinstance(made, str):
            problems.append(made)
        elif made.name not in there:
            told[made.name] = made
        elif made.name in ours and found[made.name].digest == made.digest:
            told[made.name] = _over(made, ours[made.name])
        else:
            problems.append(
                f"Checkpoint {made.name} is there already, and is not what the trainer has under "
                "that name: it is of another run, or somebody made it. Delete it, and the "
                "trainer's gets its name"
            )
    best = _best([*told.values(), *(each for each in found.values() if each.name not in told)])
    goes = [
        name
        for name, each in found.items()
        if reported is not None and complete and name not in told and _may_go(each, best, pinned)
    ]
    stays = {**{name: each for name, each in found.items() if name not in goes}, **told}
    in_order = sorted(stays.values(), key=lambda each: each.order)
    return Kept(
        apply=tuple(_child(each.item, spec) for each in in_order),
        delete=tuple(Ref(_KIND, name) for name in sorted(goes)),
        newest=in_order[-1].name if in_order else None,
        best=best,
        problems=tuple(problems),
    )


def pins(kept: Kept, pinned: frozenset[str]) -> frozenset[str]:
    """The digests, in hexadecimal, that the trainer must not delete."""
    digests = {item["spec"]["digest"].removeprefix(_DIGEST) for item in kept.apply}
    return frozenset(digests & {each.removeprefix(_DIGEST) for each in pinned})


def _is_ours(item: Json, job: Json, spec: VerifiedRLJobSpec) -> bool:
    """Whether a Checkpoint is of this job's folder. Those of an earlier job of the same name are
    where the claim is the same: then the trainer goes on with that one's folder."""
    labels, name = labels_of(item), job["metadata"]["name"]
    owner, place = f"verifiedrljob.{name}", f"pvc://{claim_of(name, spec)}/{name}/"
    return (
        labels.get(MANAGED_BY_LABEL) == MANAGED_BY
        and labels.get(OWNER_LABEL) == owner
        and item["spec"]["source"].startswith(place)
        and not item["metadata"].get("deletionTimestamp")
    )


def _may_go(known: _Known, best: Best | None, pinned: frozenset[str]) -> bool:
    plain = {digest.removeprefix(_DIGEST) for digest in pinned}
    return known.digest not in plain and (best is None or known.name != best.name)


def _best(all_: Iterable[_Known]) -> Best | None:
    """Of equal ones the newest, as the trainer's keep-policy has it."""
    verified = [each for each in all_ if each.verified and each.score is not None]
    best = max(verified, key=lambda each: (each.score, each.order), default=None)
    return Best(best.name, best.score, best.digest) if best and best.score is not None else None


def _reported(job: Json, spec: VerifiedRLJobSpec, saved: Saved) -> _Known | str:
    """The object of a checkpoint that the trainer reports, or why there can be none."""
    metadata = job["metadata"]
    attempt, step = saved.order
    name = f"{metadata['name']}-{attempt}-{step}"
    folder = f"{run_folder(metadata['name'])}/"
    if not saved.path.startswith(folder) or not _FOLDER.fullmatch(saved.path[len(folder) :]):
        return f"Checkpoint {name} has an odd place and gets no object: {saved.path!r}"
    within = saved.path.removeprefix(f"{CHECKPOINTS_MOUNT}/")
    provenance = {
        "name": metadata["name"],
        "uid": metadata["uid"],
        "step": saved.step,
        "version": saved.version,
        "parent": f"{_DIGEST}{saved.parent}" if saved.parent else None,
    }
    item: Json = {
        "apiVersion": API_VERSION,
        "kind": _KIND,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "annotations": _evaluation(saved, _suite(spec.evaluation)),
        },
        "spec": {
            "source": f"pvc://{claim_of(metadata['name'], spec)}/{within}",
            "digest": f"{_DIGEST}{saved.digest}",
            "job": {key: value for key, value in provenance.items() if value is not None},
        },
    }
    return _Known(name, saved.order, saved.digest, saved.verified, saved.score, item)


def _evaluation(saved: Saved, suite: str | None) -> dict[str, str]:
    """The annotation of a checkpoint that was weighed in training; none where it was not."""
    weighed = saved.evaluation
    if weighed is None and saved.score is None:
        return {}
    low, high = (weighed and weighed.interval) or (None, None)
    found = {
        "suite": suite,
        "score": saved.score,
        "low": low,
        "high": high,
        "items": weighed.items if weighed else None,
        "verified": saved.verified,
        "why": (weighed.why or None) if weighed else None,
        "time": saved.time,
    }
    return {EVALUATION_ANNOTATION: json.dumps(found, sort_keys=True)}


def _suite(evaluation: Evaluation | None) -> str | None:
    if evaluation is None:
        return None
    suite = evaluation.suite
    return suite.source or f"configmap/{suite.configMap}/{suite_key(evaluation)}"


def _known(item: Json) -> _Known:
    """A Checkpoint that is there, by what it says itself."""
    spec, status = item["spec"], item.get("status") or {}
    provenance = spec.get("job") or {}
    attempt, _, step = str(provenance.get("version", "0.0")).partition(".")
    verified = condition_of(item, "Verified")
    return _Known(
        name=item["metadata"]["name"],
        order=(int(attempt), int(step)),
        digest=(spec.get("digest") or "").removeprefix(_DIGEST),
        verified=verified is not None and verified["status"] == "True",
        score=status.get("score"),
        item=item,
    )


def _over(made: _Known, there: Json) -> _Known:
    """What is reported of a checkpoint that has its object.

    Its spec never changes: of an earlier job it has that one's uid. Nor does what it was weighed
    with, though the job's spec may name another suite by now.
    """
    annotations = dict(made.item["metadata"]["annotations"])
    before = _weighed(there)
    if before.get("suite") and annotations:
        weighed = {**json.loads(annotations[EVALUATION_ANNOTATION]), "suite": before["suite"]}
        annotations[EVALUATION_ANNOTATION] = json.dumps(weighed, sort_keys=True)
    metadata = {**made.item["metadata"], "annotations": annotations}
    return replace(made, item={**made.item, "metadata": metadata, "spec": there["spec"]})


def _weighed(item: Json) -> Json:
    """What a Checkpoint's annotation says; nothing where somebody broke it."""
    try:
        found = json.loads((item["metadata"].get("annotations") or {})[EVALUATION_ANNOTATION])
    except (KeyError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _child(item: Json, spec: VerifiedRLJobSpec) -> Json:
    """A Checkpoint as it is applied: what others wrote into it is not ours to send."""
    metadata = item["metadata"]
    notes = metadata.get("annotations") or {}
    kept = {key: notes[key] for key in (EVALUATION_ANNOTATION,) if key in notes}
    return {
        "apiVersion": API_VERSION,
        "kind": _KIND,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": {KEEP_LABEL: "true"} if spec.checkpoint.onDelete == "Retain" else {},
            **({"annotations": kept} if kept else {}),
        },
        "spec": item["spec"],
    }
