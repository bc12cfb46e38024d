"""What a service shall serve: the spec's source, a pinned Checkpoint, a job's best, or what a user
takes back. Pure.

Where the spec names what cannot be had, what is served goes on being served, and the condition
`Target` says why.
"""

from __future__ import annotations

import json
from dataclasses import replace

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.sources import CHECKPOINT_SCHEME
from assay_operator.conditions import Verdict
from assay_operator.inference.children import POINTER_FILE
from assay_operator.inference.memory import Memory
from assay_operator.inference.objects import CHECKPOINTS_MOUNT, Identity
from assay_operator.inference.observation import Observation, has_key
from assay_operator.inference.places import ANY, Place, mount_of, mounts, place_of
from assay_operator.inference.rollout_words import RETRY_ANNOTATION, short
from assay_operator.inference.rollout_world import Target
from assay_operator.inference.targets_case import Case, Choice, goes, holds, names, said
from assay_operator.inference.targets_follow import followed
from assay_operator.inference.targets_rollback import ROLLBACK_ANNOTATION, taken_back
from assay_operator.plan import Json, Ref

__all__ = ["ROLLBACK_ANNOTATION", "Choice", "choose", "suite_missing"]


def choose(observation: Observation, spec: InferenceServiceSpec, memory: Memory) -> Choice:
    """What a service shall serve.

    Args:
        observation: what is seen of it.
        spec: what the user wants.
        memory: what its status says.
    """
    annotations = observation.service["metadata"].get("annotations") or {}
    case = Case(observation, spec, memory)
    case = replace(case, retry=_retried(case, annotations), pointer=_pointed(case))
    made = replace(_by_spec(case), retry=case.retry)
    if asked := annotations.get(ROLLBACK_ANNOTATION):
        made = taken_back(case, asked, made)
    made = replace(made, target=_unmoved(case, made.target), pointer=case.pointer)
    return _with_suite(case, made)


def _retried(case: Case, annotations: Json) -> str | None:
    """The version that the user asks for again. It may be named as people see it, and before it
    was refused: then it is not tried twice."""
    asked: str | None = annotations.get(RETRY_ANNOTATION)
    if not asked:
        return None
    offers = map(case.of_checkpoint, case.observation.checkpoints)
    seen = [(each.name, each.version) for each in (case.source, *offers) if each]
    refused = [(each.get("name"), str(each.get("version"))) for each in case.memory.refused]
    for known in (seen, refused):
        found = {version for name, version in known if asked == name or names(asked, version)}
        if found:
            return found.pop() if len(found) == 1 else asked
    return asked


def _pointed(case: Case) -> Target | None:
    """What the checkpoint pointer names as it stands in the cluster.

    Which volume that is on does not stand there: the engines' pod template tells.
    """
    metadata = case.observation.service["metadata"]
    identity = Identity(metadata["name"], metadata["namespace"])
    pointer = case.observation.children.get(Ref("ConfigMap", identity.pointer), {})
    try:
        named = json.loads(pointer["data"][POINTER_FILE])
        path, version = str(named["path"]), str(named["version"])
    except (KeyError, TypeError, ValueError):
        return None
    offers = (case.of_checkpoint(item) for item in case.observation.checkpoints)
    for target in (*case.memory.known, case.source, *offers):
        if target is not None and (target.version, target.path) == (version, path):
            return target
    deployment = case.observation.children.get(Ref("Deployment", identity.engine), {})
    seen = mounts((deployment.get("spec") or {}).get("template") or {}) or {}
    found = Target(version, path, version, "")
    mount = mount_of(found)
    volume = seen.get(mount, ANY)
    if volume == ANY:
        volume = case.of_source.get(mount, "")
    return replace(found, volume=volume) if volume else None


def _by_spec(case: Case) -> Choice:
    model = case.spec.model
    if model.source.startswith(CHECKPOINT_SCHEME):
        return _pinned(case, model.source.removeprefix(CHECKPOINT_SCHEME))
    if model.follow:
        return followed(case, model.follow)
    verdict = Verdict(True, "Source", f"spec.model.source names {model.source}.")
    return Choice(case.source, verdict, case.of_source)


def _pinned(case: Case, name: str) -> Choice:
    """The Checkpoint that the source names, once it is verified."""
    item = next((each for each in case.observation.checkpoints if not goes(each)), None)
    if item is None:
        return _not_pinned(
            case,
            "CheckpointNotFound",
            f"Checkpoint {name} does not exist in this namespace: create it, or correct "
            "spec.model.source.",
        )
    claim = item["spec"]["source"].removeprefix("pvc://").partition("/")[0]
    if case.lacks("PersistentVolumeClaim", claim):
        return _not_pinned(
            case,
            "ClaimMissing",
            f"Checkpoint {name} lies on PersistentVolumeClaim {claim}, which does not exist in "
            "this namespace: create it.",
            waits=True,
        )
    others = {CHECKPOINTS_MOUNT: f"pvc/{claim}"}
    for kind in ("Intact", "Verified"):
        if not holds(item, kind):
            told = f"Checkpoint {name} is not {kind.lower()}: {said(item, kind)}"
            return _not_pinned(case, f"CheckpointNot{kind}", told)
    target = case.of_checkpoint(item)
    if target is None:
        told = (
            f"Checkpoint {name} has no digest yet: it is found when its files are read, or give it "
            "as spec.digest."
        )
        return _not_pinned(case, "CheckpointNotIntact", told)
    verdict = Verdict(True, "Pinned", f"spec.model.source pins Checkpoint {name}.")
    return Choice(target, verdict, others)


def _not_pinned(case: Case, reason: str, message: str, *, waits: bool = False) -> Choice:
    stays = case.stays()
    told = f"{message} {stays.name} is served meanwhile." if stays else message
    return Choice(stays, Verdict(False, reason, told), waits=waits)


def _unmoved(case: Case, target: Target | None) -> Target | None:
    """The target, at the place that is known of it already.

    Engines loaded a version from one place. Another one where the same bytes lie is no reason to
    touch them, and they must not look for it where it was meanwhile.
    """
    if target is None:
        return None
    served, under_way = case.memory.served, case.memory.under_way
    if served and served.version == target.version:
        return served
    if under_way and under_way.target.version == target.version:
        known = under_way.target
        if known.volume == target.volume and place_of(known) == place_of(target):
            return known
    # Where it is seen may have changed since it was served.
    return replace(target, path=_seen(case, place_of(target), mount_of(target)))


def _seen(case: Case, place: Place, otherwise: str) -> str:
    return place.path(case.layout, otherwise)


def _with_suite(case: Case, made: Choice) -> Choice:
    """Nothing is begun that waits for a suite which is not there."""
    served, under_way = case.memory.served, case.memory.under_way
    target = made.target
    why = suite_missing(case.observation, case.spec)
    if not why or target is None or served is None or target.version == served.version:
        return made
    if not made.gated or (under_way and under_way.target.version == target.version):
        return made
    told = (
        f"{target.name} ({short(target.version)}) is not tried: {why} {served.name} is served "
        "meanwhile."
    )
    return replace(made, target=served, verdict=Verdict(False, "SuiteMissing", told), waits=True)


def suite_missing(observation: Observation, spec: InferenceServiceSpec) -> str:
    """Why the gate's suite cannot be asked, empty where nothing is known against it."""
    gate = spec.rollout.gate
    if gate is None:
        return ""
    name, key = gate.suite.configMap, gate.suite.key
    found = observation.found.get(Ref("ConfigMap", name), {"data": {key: ""}})
    if found is None:
        return (
            f"ConfigMap {name}, which spec.rollout.gate.suite names, does not exist in this "
            "namespace: create it."
        )
    if has_key(found, key):
        return ""
    return (
        f"ConfigMap {name} has no key {key}: it shall hold the suite that spec.rollout.gate.suite "
        "names."
    )
