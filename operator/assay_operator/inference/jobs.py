"""The Jobs that stand between a checkpoint and its users, as plain data.

An *inspection* reads a checkpoint's files, a *gate* asks engines a suite's items, and a *weighing*
does both with an engine of its own. Their pods hold no token, satisfy the Pod Security level
`restricted` and reach nothing but what they ask. `job_result` reads what they found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import POD_SECURITY
from assay_operator.inference.observation import ENGINE_PORT
from assay_operator.inference.policies import DNS, policy, to_engines
from assay_operator.inference.results import (
    COMPONENT_LABEL,
    INSPECT,
    VERIFIER,
    JobResult,
    job_result,
    waits,
)
from assay_operator.inference.verifierpods import (
    SCRATCH,
    Mount,
    OwnEngine,
    Questions,
    asking,
    inspection,
    near,
    overridden,
    read_only,
    suite,
    verifier,
    volumes,
    with_engine,
)
from assay_operator.plan import OWNER_LABEL, Json

__all__ = [
    "GATE",
    "INSPECT",
    "OWN_ENGINE",
    "WEIGH",
    "JobResult",
    "Mount",
    "Named",
    "OwnEngine",
    "Questions",
    "gate_job",
    "inspection_job",
    "job_result",
    "network_policy",
    "waits",
    "weighing_job",
]

GATE = "gate"
WEIGH = "weigh"
OWN_ENGINE = f"http://127.0.0.1:{ENGINE_PORT}"
"""Where a pod's own engine is asked."""
INSPECTION_SECONDS = 3600
"""Hundreds of gigabytes are read in that time from storage that an engine could be served from."""
_MEMORY = "2Gi"
_INSPECTION_VERDICTS = [1, 2]
_GATE_VERDICTS = [1, 2, 3]


@dataclass(frozen=True)
class Named:
    """Where a Job stands, and whose it is.

    Attributes:
        labels: the owner's; which component it is, the Job adds itself.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]

    def labelled(self, component: str) -> dict[str, str]:
        """The labels of the Job and of its pods."""
        return {**self.labels, COMPONENT_LABEL: component}

    def selector(self, component: str) -> dict[str, str]:
        """By which the pods are found: owners of two kinds may have one name."""
        return {OWNER_LABEL: self.labels[OWNER_LABEL], COMPONENT_LABEL: component}


def inspection_job(
    named: Named,
    config: OperatorConfig,
    *,
    candidate: str,
    incumbent: str | None,
    mounts: Sequence[Mount],
    engine_template: Json,
    digest: str | None = None,
    code: bool = False,
    timeout_seconds: int = INSPECTION_SECONDS,
) -> Json:
    """A Job that says whether a folder is whole, and whether running engines may load it.

    Args:
        candidate: the folder, as the pod sees it.
        incumbent: the one that is served, to compare with.
        mounts: what both lie on.
        engine_template: of the engines that read the same volumes: the pod may read what theirs may
            read, tolerates what theirs tolerate, and comes near them, since a volume may be
            mounted on one node only.
        digest: that the candidate must have, `sha256:` and 64 digits.
        code: whether Python files may lie beside the weights (spec.model.trustRemoteCode).
    """
    container = verifier(
        VERIFIER,
        config,
        inspection(candidate, incumbent, digest, code),
        [read_only(mount.name, mount.path) for mount in mounts],
        memory=_MEMORY,
    )
    theirs = engine_template.get("spec", {})
    pod: Json = {
        "securityContext": {**POD_SECURITY, **theirs.get("securityContext", {})},
        **{key: theirs[key] for key in ("tolerations", "imagePullSecrets") if key in theirs},
        **near(engine_template),
        "containers": [container],
        "volumes": [*volumes(mounts), SCRATCH],
    }
    return _job(
        named,
        config,
        INSPECT,
        pod,
        seconds=timeout_seconds,
        retries=2,
        verdicts={VERIFIER: _INSPECTION_VERDICTS},
    )


def gate_job(
    named: Named,
    config: OperatorConfig,
    questions: Questions,
    *,
    candidate: str,
    incumbent: str | None,
    engine: OwnEngine | None = None,
) -> Json:
    """A Job that asks a candidate, and beside it the incumbent, a suite's items.

    Args:
        candidate: URL of an engine that has the candidate's weights; OWN_ENGINE with `engine`.
        incumbent: URL of one that has the incumbent's. Without it only the score counts.
        engine: started in the pod for the candidate, where no running engine can load it.
    """
    pod: Json = {
        "containers": [asking(config, questions, candidate, incumbent, engine)],
        "volumes": [suite(questions), SCRATCH],
    }
    annotations: dict[str, str] = {}
    seconds = questions.timeout_seconds
    if engine:
        pod, annotations = with_engine(pod, engine)
        seconds += engine.startup_seconds
    return _job(
        named,
        config,
        GATE,
        pod,
        annotations,
        seconds=seconds,
        retries=1,
        verdicts={VERIFIER: _GATE_VERDICTS},
    )


def weighing_job(
    named: Named,
    config: OperatorConfig,
    questions: Questions,
    *,
    digest: str | None,
    mounts: Sequence[Mount],
    engine: OwnEngine,
    code: bool = False,
) -> Json:
    """A Job that inspects a checkpoint that a user brings, then asks it a suite's items.

    Args:
        digest: that the folder must have.
        mounts: where it lies, as the engine's pod sees it too.
        engine: serves it, to this pod alone.
        code: as in `inspection_job`.
    """
    inspect = verifier(
        INSPECT,
        config,
        inspection(engine.path, None, digest, code),
        [read_only(mount.name, mount.path) for mount in mounts],
        memory=_MEMORY,
    )
    pod: Json = {
        "initContainers": [inspect],
        "containers": [asking(config, questions, OWN_ENGINE, None, engine)],
        "volumes": [*volumes(mounts), suite(questions), SCRATCH],
    }
    pod, annotations = with_engine(pod, engine)
    return _job(
        named,
        config,
        WEIGH,
        pod,
        annotations,
        seconds=INSPECTION_SECONDS + engine.startup_seconds + questions.timeout_seconds,
        retries=1,
        verdicts={INSPECT: _INSPECTION_VERDICTS, VERIFIER: _GATE_VERDICTS},
    )


def network_policy(
    named: Named, component: str, *, engines: Mapping[str, str] | None = None
) -> Json:
    """What a Job's pods may reach: nothing; with `engines`, DNS and the pods of those labels.

    Nobody may reach them either. What a suite's own judges need (`http`, `reward-model`) another
    NetworkPolicy may add.
    """
    egress = [] if engines is None else [DNS, to_engines(engines)]
    metadata = {
        "name": named.name,
        "namespace": named.namespace,
        "labels": named.labelled(component),
    }
    return policy(metadata, named.selector(component), egress=egress)


def _job(
    named: Named,
    config: OperatorConfig,
    component: str,
    pod: Json,
    annotations: Mapping[str, str] | None = None,
    *,
    seconds: int,
    retries: int,
    verdicts: Mapping[str, list[int]],
) -> Json:
    """A Job whose verdicts are final, while a pod that was merely lost is made again.

    Args:
        seconds: after which it is ended.
        retries: after failures that are no verdict.
        verdicts: by container, the exit codes that are.
    """
    final = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": name, "operator": "In", "values": codes},
        }
        for name, codes in verdicts.items()
    ]
    template = {
        "metadata": {
            "labels": named.labelled(component),
            "annotations": dict(annotations or {}),
        },
        "spec": {
            "securityContext": POD_SECURITY,
            **pod,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 30,
        },
    }
    lost = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": named.name,
            "namespace": named.namespace,
            "labels": named.labelled(component),
        },
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": retries,
            "activeDeadlineSeconds": seconds,
            "podFailurePolicy": {"rules": [*final, lost]},
            "template": overridden(template, config),
        },
    }
