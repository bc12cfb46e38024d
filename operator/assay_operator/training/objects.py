"""The children that a VerifiedRLJob shall have, as plain data; Checkpoints are in `checkpoints`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.config import NetworkPolicies, OperatorConfig
from assay_operator.inference.kernels import asks_for_fused
from assay_operator.inference.objects import fingerprint, parse_source
from assay_operator.inference.observation import ENGINE_PORT
from assay_operator.inference.policies import DNS, operator_pods, pods, policy, tcp
from assay_operator.inference.profiles import EngineProfile, profile_of
from assay_operator.plan import KEEP_LABEL, Json
from assay_operator.training.checkpoints import claim_of
from assay_operator.training.jobfile import STATUS_PORT, job_file
from assay_operator.training.names import JobIdentity
from assay_operator.training.observation import GENERATION_LABEL
from assay_operator.training.pods import JOB_KEY, job_engine_template, trainer_template

PINS_ANNOTATION = "assay.dev/pins"
MADE_OF_ANNOTATION = "assay.dev/made-of"
"""On a trainer's Job: the fingerprint of its job file and of its pod template."""
_POINTER_KEY = "pointer.json"


def children(
    identity: JobIdentity,
    spec: VerifiedRLJobSpec,
    engine: EngineProfile,
    config: OperatorConfig,
    *,
    engines: int,
    pins: Iterable[str],
) -> tuple[Json, ...]:
    """All children but the claim, the trainer's Job and Checkpoints, in the order of applying.

    Args:
        identity: the names.
        spec: what the user wants.
        engine: the engines' profile.
        config: the administrator's defaults.
        engines: how many of them run now.
        pins: digests, in hexadecimal, that the trainer must not delete.
    """
    source = parse_source(spec.model.source)
    pointer = {"path": source.path, "version": source.version}
    template = job_engine_template(identity, spec, engine, config)
    document = json.dumps(_job_file(identity, spec, template), indent=1)
    job = {JOB_KEY: document, _POINTER_KEY: json.dumps(pointer)}
    return (
        _config_map(identity, identity.job, job),
        _config_map(identity, identity.pins, dict.fromkeys(sorted(pins), "")),
        _headless(identity, identity.engines, "engine", "http", ENGINE_PORT),
        _headless(identity, identity.trainer, "trainer", "status", STATUS_PORT),
        *(_network_policies(identity, config.networkPolicy) if config.networkPolicy else ()),
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": _metadata(identity, identity.engine, "engine"),
            "spec": {
                "replicas": engines,
                "serviceName": identity.engines,
                "podManagementPolicy": "Parallel",
                "revisionHistoryLimit": 3,
                "selector": {"matchLabels": identity.selector("engine")},
                "template": template,
            },
        },
    )


def claim(identity: JobIdentity, spec: VerifiedRLJobSpec) -> tuple[Json, ...]:
    """The claim that is made for the job, where its spec gives a size."""
    storage = spec.checkpoint.storage
    if storage.size is None:
        return ()
    metadata = _metadata(identity, claim_of(identity.name, spec), "trainer")
    if spec.checkpoint.onDelete == "Retain":
        metadata["labels"] = {**metadata["labels"], KEEP_LABEL: "true"}
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata,
            "spec": {
                "accessModes": [storage.access],
                "resources": {"requests": {"storage": storage.size}},
                **({"storageClassName": storage.className} if storage.className else {}),
            },
        },
    )


def trainer_job(
    identity: JobIdentity,
    spec: VerifiedRLJobSpec,
    profile: EngineProfile,
    config: OperatorConfig,
    generation: int,
) -> Json:
    """The Job of one generation of trainer pods. Any pod's failure fails it: the gang is one."""
    template = trainer_template(identity, spec, profile, config, generation)
    engines = job_engine_template(identity, spec, profile_of(spec.rollout.engine), config)
    document = json.dumps(_job_file(identity, spec, engines), sort_keys=True)
    # The generation is in the pods' names and labels, and says nothing about what is wanted.
    plain = trainer_template(identity, spec, profile, config, 0)
    made_of = fingerprint(document + json.dumps(plain, sort_keys=True))
    metadata = _metadata(identity, identity.gang(generation), "trainer")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **metadata,
            "labels": {**metadata["labels"], GENERATION_LABEL: str(generation)},
            "annotations": {MADE_OF_ANNOTATION: made_of},
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": spec.trainer.nodes,
            "parallelism": spec.trainer.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": template,
        },
    }


def _job_file(identity: JobIdentity, spec: VerifiedRLJobSpec, engines: Json) -> Json:
    """The job file, for engines that are made from a template."""
    fused = asks_for_fused(engines)
    return job_file(identity.name, identity.namespace, spec, fused=fused)


def as_it_stands(job: Json) -> Json:
    """A Job that is there, to be left as it is. It is named, so that it is not deleted, and never
    applied; were it gone by then, the API server would refuse what its controller wrote into it, so
    it cannot run again by accident."""
    metadata = job["metadata"]
    notes = metadata.get("annotations") or {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": metadata.get("labels") or {},
            "annotations": {key: notes[key] for key in (MADE_OF_ANNOTATION,) if key in notes},
        },
        "spec": job["spec"],
    }


def _network_policies(identity: JobIdentity, access: NetworkPolicies) -> tuple[Json, Json]:
    """Who may reach the engines and the trainers.

    Among trainers every port is open, since NCCL and gloo take any. They may reach anything: what
    judges a completion, at whatever address, is named by the spec or by an item of the data.
    """
    engines, trainers = identity.selector("engine"), identity.selector("trainer")
    gang = pods(trainers)
    return (
        policy(
            _metadata(identity, identity.engines, "engine"),
            engines,
            ingress=[{"from": [gang, *access.metricsFrom], "ports": tcp(ENGINE_PORT)}],
            egress=[DNS],
        ),
        policy(
            _metadata(identity, identity.trainer, "trainer"),
            trainers,
            ingress=[
                {"from": [gang]},
                {
                    "from": [operator_pods(access), *access.metricsFrom],
                    "ports": tcp(STATUS_PORT),
                },
            ],
        ),
    )


def _metadata(identity: JobIdentity, name: str, component: str) -> Json:
    return {
        "name": name,
        "namespace": identity.namespace,
        "labels": identity.labels(component),
    }


def _config_map(identity: JobIdentity, name: str, data: dict[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(identity, name, "trainer"),
        "data": data,
    }


def _headless(identity: JobIdentity, name: str, component: str, port: str, number: int) -> Json:
    """The names of a component's pods, which hold from before they are ready: trainers look for
    each other at their start, and a name that is not there yet is remembered as missing."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(identity, name, component),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": identity.selector(component),
            "ports": [{"name": port, "port": number, "targetPort": port, "protocol": "TCP"}],
        },
    }
