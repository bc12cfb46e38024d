"""Following a job: which of its checkpoints a service shall serve. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from assay_operator.api.checkpoint_grant import CheckpointGrantSpec
from assay_operator.api.inference_service import Follow
from assay_operator.conditions import Verdict
from assay_operator.inference.objects import CHECKPOINTS_MOUNT
from assay_operator.inference.places import place_of
from assay_operator.inference.rollout_world import Target
from assay_operator.inference.targets_case import Case, Choice, digest_of, goes, holds
from assay_operator.plan import Json, Ref

_RUNNING = ("EnginesReady", "Training", "CheckpointReady")
"""Conditions of a job of which one is enough to know that its claim is there and mounted."""


@dataclass(frozen=True)
class _Offer:
    """One checkpoint that may be served."""

    target: Target
    score: float
    order: tuple[int, int]


def followed(case: Case, follow: Follow) -> Choice:
    """The best verified checkpoint of the job; what is served already unless it is better."""
    where = follow.namespace or case.namespace
    granted = where == case.namespace or _is_granted(case, follow.job)
    if not granted:
        return _stays(
            case,
            "NotGranted",
            f"No CheckpointGrant of namespace {where} allows services of {case.namespace} to "
            f"follow its VerifiedRLJob {follow.job}: create one there, with "
            f"spec.from [{{namespace: {case.namespace}}}].",
        )
    job = case.observation.followed
    if job is None or goes(job):
        return _stays(
            case,
            "JobNotFound",
            f"VerifiedRLJob {follow.job} does not exist in namespace {where}: create it, or "
            "correct spec.model.follow.",
        )
    if why := _loop(case, job):
        return _stays(case, "Loop", why)
    claim = follow.claim or _claim(job)
    if case.lacks("PersistentVolumeClaim", claim):
        return _stays(
            case,
            "ClaimMissing",
            f"PersistentVolumeClaim {claim} does not exist in this namespace: create it, so that "
            f"it shows the checkpoints of VerifiedRLJob {follow.job}.",
            waits=True,
        )
    return _best(case, follow, job)


def _stays(case: Case, reason: str, message: str, *, waits: bool = False) -> Choice:
    stays = case.stays()
    told = f" {stays.name} is served meanwhile." if stays else ""
    return Choice(stays, Verdict(False, reason, message + told), case.of_source, waits=waits)


def _is_granted(case: Case, job: str) -> bool:
    for grant in case.observation.grants:
        try:
            spec = CheckpointGrantSpec.model_validate(grant["spec"])
        except ValidationError:
            continue
        if not goes(grant) and spec.allows(case.namespace, job):
            return True
    return False


def _loop(case: Case, job: Json) -> str:
    """Why following the job goes in a circle; empty where it does not."""
    name = job["metadata"]["name"]
    source = ((job.get("spec") or {}).get("model") or {}).get("source") or ""
    if f"{source}/".startswith(_folder(job)):
        return (
            f"VerifiedRLJob {name} begins with {source}, which is one of its own checkpoints: it "
            "would be trained from what it makes. Give its spec.model.source a model of its own."
        )
    for url in _urls((job.get("spec") or {}).get("verifiers")):
        if _is_this(case, job, url):
            return (
                f"A verifier of VerifiedRLJob {name} asks {url}, which is this service: it would "
                "judge the weights that it is to serve. Let another service judge, or follow "
                "another job."
            )
    return ""


def _urls(data: Any) -> Iterator[str]:
    """The URLs in a job's verifiers, however deep."""
    if isinstance(data, dict):
        url = data.get("url")
        if isinstance(url, str):
            yield url
        for value in data.values():
            yield from _urls(value)
    elif isinstance(data, list):
        for value in data:
            yield from _urls(value)


def _is_this(case: Case, job: Json, url: str) -> bool:
    """Whether a URL, as the job's pods resolve it, is that of this service."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    name, _, rest = host.partition(".")
    namespace, _, domain = rest.partition(".")
    if name != case.observation.service["metadata"]["name"]:
        return False
    in_cluster = domain in {"", "svc"} or domain.startswith("svc.")
    return in_cluster and (namespace or job["metadata"]["namespace"]) == case.namespace


def _claim(job: Json) -> str:
    """The claim that a job's checkpoints lie on."""
    storage = (job["spec"].get("checkpoint") or {}).get("storage") or {}
    return storage.get("claim") or f"{job['metadata']['name']}-checkpoints"


def _folder(job: Json) -> str:
    """The source that the sources of all of a job's checkpoints begin with."""
    return f"pvc://{_claim(job)}/{job['metadata']['name']}/"


def _best(case: Case, follow: Follow, job: Json) -> Choice:
    ours = [item for item in case.observation.checkpoints if _is_of(item, job)]
    others = _others(case, follow, job, bool(ours))
    offers = [offer for item in ours if (offer := _offer(case, follow, item))]
    by_version = {offer.target.version: offer for offer in offers}
    under_way = case.memory.under_way
    if under_way and under_way.target.version in by_version:
        # It goes to its end before a better one is taken: else none would ever come to it where
        # they are written faster than they are weighed.
        return _chosen(follow, by_version[under_way.target.version], others)
    served = case.memory.served
    mine = served is not None and _is_served(case, follow, job, ours, served)
    if not offers:
        return _none(case, follow, ours, others, served if mine else case.source)
    best = max(offers, key=lambda offer: (offer.score, offer.order))
    if served is None and case.pointer and case.pointer.version in by_version:
        # Engines start with it already.
        best = by_version[case.pointer.version]
    if served is None or not mine:
        return _chosen(follow, best, others)
    score = _score_of(ours, served.version)
    if best.target.version != served.version and (score is None or best.score > score):
        return _chosen(follow, best, others)
    told = "" if score is None else f", with a score of {score:.3f}"
    verdict = Verdict(
        True,
        "Following",
        f"{served.name} of VerifiedRLJob {follow.job}{told}: none that may be served is better.",
    )
    return Choice(served, verdict, others)


def _chosen(follow: Follow, offer: _Offer, others: dict[str, str]) -> Choice:
    verdict = Verdict(
        True,
        "Following",
        f"Checkpoint {offer.target.name} of VerifiedRLJob {follow.job}, with a score of "
        f"{offer.score:.3f}.",
    )
    return Choice(offer.target, verdict, others)


def _none(
    case: Case, follow: Follow, ours: list[Json], others: dict[str, str], stays: Target | None
) -> Choice:
    """Where no checkpoint may be served: what is, if it is one of the job's, else the source."""
    verified = [item for item in ours if holds(item, "Verified")]
    if verified:
        why = f"All {len(verified)} verified checkpoints of it were refused: see status.refused."
    else:
        why = f"Of its {len(ours)} checkpoints none is verified." if ours else "It has none yet."
    told = f" Until then {stays.name} is served." if stays else ""
    message = f"VerifiedRLJob {follow.job} has no checkpoint to serve. {why}{told}"
    target = stays or case.stays()
    return Choice(target, Verdict(True, "NoCheckpoint", message), others)


def _is_of(item: Json, job: Json) -> bool:
    """Whether a Checkpoint is of this job: made by it, or by an earlier one whose folder it goes on
    with."""
    made_by, metadata = item["spec"].get("job") or {}, job["metadata"]
    if made_by.get("name") != metadata["name"]:
        return False
    same = made_by.get("uid") == metadata.get("uid")
    return bool(same or item["spec"]["source"].startswith(_folder(job)))


def _is_served(case: Case, follow: Follow, job: Json, ours: list[Json], served: Target) -> bool:
    """Whether what is served is of this job, though its Checkpoint may be gone by now."""
    if any(digest_of(item) == served.version for item in ours):
        return True
    place = place_of(served)
    claim = follow.claim or _claim(job)
    folder = f"{job['metadata']['name']}/"
    return place.volume == f"pvc/{claim}" and place.within.startswith(folder)


def _offer(case: Case, follow: Follow, item: Json) -> _Offer | None:
    """A Checkpoint as one that may be served; None where it may not."""
    target = case.of_checkpoint(item, follow.claim)
    score = (item.get("status") or {}).get("score")
    if target is None or score is None or goes(item):
        return None
    if not (holds(item, "Verified") and holds(item, "Intact")):
        return None
    if _is_refused(case, target.version):
        return None
    return _Offer(target, score, _order(item))


def _is_refused(case: Case, version: str) -> bool:
    """Whether it was found wanting, and was not asked for again since."""
    rollout = case.memory.rollout
    used = rollout is not None and rollout.over and rollout.retried == case.retry
    if version == case.retry and not used:
        return False
    return any(each.get("version") == version for each in case.memory.refused)


def _order(item: Json) -> tuple[int, int]:
    """ATTEMPT and STEP, by which a job's checkpoints follow each other."""
    version = str((item["spec"].get("job") or {}).get("version", ""))
    attempt, _, step = version.partition(".")
    return (int(attempt), int(step)) if attempt.isdigit() and step.isdigit() else (0, 0)


def _score_of(ours: list[Json], version: str) -> float | None:
    for item in ours:
        if digest_of(item) == version:
            score: float | None = (item.get("status") or {}).get("score")
            return score
    return None


def _others(case: Case, follow: Follow, job: Json, has_some: bool) -> dict[str, str]:
    """What engines shall mount for it: the job's claim as soon as it is sure to be there."""
    claim = follow.claim or _claim(job)
    if follow.claim:
        there = case.found.get(Ref("PersistentVolumeClaim", claim)) is not None
    else:
        there = has_some or any(holds(job, kind) for kind in _RUNNING)
    return {**case.of_source, **({CHECKPOINTS_MOUNT: f"pvc/{claim}"} if there else {})}
