"""What would be applied for custom resources in YAML files, worked out without a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.api.checkpoint_grant import CheckpointGrantSpec
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.meta import API_VERSION
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.checkpoints import observation as of_checkpoint
from assay_operator.checkpoints import planner as checkpoints
from assay_operator.checkpoints.results import UNDER_WAY
from assay_operator.conditions import wrong_fields
from assay_operator.config import OperatorConfig
from assay_operator.inference import observation as of_service
from assay_operator.inference import planner as inference
from assay_operator.inference.references import is_made_by, references
from assay_operator.plan import Json, Plan
from assay_operator.training import observation as of_job
from assay_operator.training import planner as training

SPECS: dict[str, type[BaseModel]] = {
    "InferenceService": InferenceServiceSpec,
    "VerifiedRLJob": VerifiedRLJobSpec,
    "Checkpoint": CheckpointSpec,
    "CheckpointGrant": CheckpointGrantSpec,
}
_ABSENT = " A plan without a cluster sees only what stands in the files."


class Resource(NamedTuple):
    """A custom resource and the name of the file that it stands in."""

    file: str
    item: Json


def resources(file: str, text: str) -> Iterator[Resource]:
    """The custom resources in a YAML text, with the defaults that the API server would set.

    Raises:
        ValueError: one is not valid; the message names file, object and field.
    """
    for item in yaml.safe_load_all(text):
        if not isinstance(item, dict) or item.get("apiVersion") != API_VERSION:
            continue
        model = SPECS.get(item.get("kind", ""))
        if model is None:
            continue
        told = item.get("metadata") or {}
        if not told.get("name"):
            raise ValueError(f"{file}: {item['kind']}: metadata.name is missing")
        metadata = {"namespace": "default", "generation": 1, "uid": "", **told}
        try:
            spec = model.model_validate(item.get("spec") or {})
        except ValidationError as error:
            lines = [f"{file}: {metadata['name']}: {each}" for each in wrong_fields(error)]
            raise ValueError("\n".join(lines)) from error
        defaulted = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        yield Resource(file, {**item, "metadata": metadata, "spec": defaulted})


def objects(found: Sequence[Resource], config: OperatorConfig, now: datetime) -> Iterator[Json]:
    """The children of custom resources of which nothing has been seen but each other.

    A Checkpoint that would be weighed first is taken for one that passed: it is then that the
    services which pin it get their children.

    Args:
        found: all that there is.
        config: the administrator's defaults.
        now: the time, with a zone.

    Raises:
        ValueError: some cannot be planned; the message has a line for each, which says why.
    """
    there = [_passed(resource.item, config, now) for resource in found]
    plans = [_plan(resource.item, there, config, now) for resource in found]
    refusals = [
        f"{file}: {item['metadata']['name']}: {why}"
        for (file, item), made in zip(found, plans, strict=True)
        if (why := _refusal(made))
    ]
    if refusals:
        raise ValueError("\n".join(refusals))
    for made in plans:
        yield from made.objects


def _plan(item: Json, there: Sequence[Json], config: OperatorConfig, now: datetime) -> Plan:
    match item["kind"]:
        case "InferenceService":
            return inference.plan(_service(item, there), config, now)
        case "VerifiedRLJob":
            return training.plan(of_job.Observation(item), config, now)
        case "Checkpoint":
            return checkpoints.plan(of_checkpoint.Observation(item), config, now)
    return Plan()


def _service(service: Json, there: Sequence[Json]) -> of_service.Observation:
    """What a service sees of the others: the Checkpoint that it pins, the job that it follows."""
    refers = references(service)
    if refers.job is None:
        pinned = _of(there, "Checkpoint", service["metadata"]["namespace"], refers.pinned)
        return of_service.Observation(service, checkpoints=pinned)
    where, job = refers.namespace, refers.job
    made = (each for each in _of(there, "Checkpoint", where) if is_made_by(each, job))
    return of_service.Observation(
        service,
        checkpoints=tuple(made),
        followed=next(iter(_of(there, "VerifiedRLJob", where, job)), None),
        grants=_of(there, "CheckpointGrant", where),
    )


def _of(there: Sequence[Json], kind: str, namespace: str, *names: str | None) -> tuple[Json, ...]:
    """The objects of a kind in a namespace, all or those of a name."""
    return tuple(
        each
        for each in there
        if each["kind"] == kind
        and each["metadata"]["namespace"] == namespace
        and (not names or each["metadata"]["name"] in names)
    )


def _passed(item: Json, config: OperatorConfig, now: datetime) -> Json:
    """A Checkpoint with its status, as that will be if it passes; what else it is as it is."""
    if item["kind"] != "Checkpoint":
        return item
    status = checkpoints.plan(of_checkpoint.Observation(item), config, now).status
    conditions = [
        {**each, "status": "True"} if each["reason"] in UNDER_WAY else each
        for each in status["conditions"]
    ]
    return {**item, "status": {**status, "conditions": conditions}}


def _refusal(made: Plan) -> str:
    """Why nothing is planned, empty where all is."""
    for each in made.status.get("conditions") or []:
        refused = not made.prune or each["reason"] == "UnsupportedProfile"
        if refused and each["status"] == "False":
            hint = _ABSENT if each["reason"] == "CheckpointNotFound" else ""
            return f"{each['message']}{hint}"
    return ""
