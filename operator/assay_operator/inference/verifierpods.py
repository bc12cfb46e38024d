"""The parts of the pods that inspect and ask: containers, volumes, an engine of their own. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from assay_operator.config import OperatorConfig
from assay_operator.inference.kernels import asks_for_fused
from assay_operator.inference.merge import strategic_merge
from assay_operator.inference.objects import (
    CONTAINER_SECURITY,
    POINTER_MOUNT,
    VERSION_ANNOTATION,
)
from assay_operator.inference.results import COMPONENT_LABEL, ENGINE, INSPECT, VERIFIER
from assay_operator.plan import OWNER_LABEL, Json
from assay_verifiers.config import GateLimits

SUITE_MOUNT = "/etc/assay/suite"
SUITE_FILE = "suite.jsonl"
POINTER_ANNOTATION = "assay.dev/pointer"
SCRATCH: Json = {"name": "scratch", "emptyDir": {}}
"""Not the engine's /tmp: what the verifier notes there is nobody else's to change."""
_OWN_POINTER = {"fieldPath": f"metadata.annotations['{POINTER_ANNOTATION}']"}
_TERMINATION_LOG = "/dev/termination-log"
_WORKERS = 4
_NEAR_WEIGHT = 100

# Of an engine's pod, what says who it is, what it runs and how it ends: that is ours here.
_NOT_TAKEN = frozenset(
    {
        *("containers", "initContainers", "volumes", "topologySpreadConstraints"),
        *("shareProcessNamespace", "terminationGracePeriodSeconds", "restartPolicy"),
    }
)


@dataclass(frozen=True)
class Mount:
    """A place in the pod that is read from a volume.

    Attributes:
        name: the volume's within the pod. Mounts of one name are of one volume.
        source: the volume, without its name.
        path: where it is seen.
    """

    name: str
    source: Json
    path: str


@dataclass(frozen=True)
class Questions:
    """What is asked, and what has to come out.

    Attributes:
        config_map: that holds the suite, under `key`.
        limits: to pass.
        items: of the first look; None: all at once.
        max_tokens: of an answer, where the item does not say.
        timeout_seconds: of all the asking.
    """

    config_map: str
    key: str
    limits: GateLimits
    items: int | None
    max_tokens: int
    timeout_seconds: int


@dataclass(frozen=True)
class OwnEngine:
    """An engine within the pod that asks it, so that nobody else can reach it.

    Attributes:
        template: a pod template as `engine_template` makes it, all overrides included.
        path: of the weights, within its container.
        version: that it shall report.
        startup_seconds: how long it may take to start.
    """

    template: Json
    path: str
    version: str
    startup_seconds: int


def read_only(volume: str, path: str) -> Json:
    """A volume's mount."""
    return {"name": volume, "mountPath": path, "readOnly": True}


def volumes(mounts: Iterable[Mount]) -> list[Json]:
    """The volumes of mounts, each once.

    Raises:
        ValueError: two of them have one name.
    """
    found: dict[str, Json] = {}
    for mount in mounts:
        volume = {"name": mount.name, **mount.source}
        if found.setdefault(mount.name, volume) != volume:
            raise ValueError(f"two volumes are called {mount.name}")
    return list(found.values())


def suite(questions: Questions) -> Json:
    """The volume with the suite's file."""
    items = [{"key": questions.key, "path": SUITE_FILE}]
    return {"name": "suite", "configMap": {"name": questions.config_map, "items": items}}


def inspection(folder: str, incumbent: str | None, digest: str | None, code: bool) -> list[str]:
    """The command that inspects a folder; `inspection_job` says what is what."""
    return [
        *("python3", "-m", "assay_trainer", "inspect", folder),
        *(("--digest", digest) if digest else ()),
        *(("--like", incumbent) if incumbent else ()),
        *(("--code",) if code else ()),
        *("--summary", _TERMINATION_LOG),
    ]


def asking(
    config: OperatorConfig,
    questions: Questions,
    candidate: str,
    incumbent: str | None,
    engine: OwnEngine | None = None,
) -> Json:
    """The container that asks; `gate_job` says what is what.

    An engine of its own nobody else reaches, so it is this container that asks for its kernels.
    """
    limits = questions.limits
    fused = engine is not None and asks_for_fused(engine.template)
    command = [
        *("python3", "-m", "assay_verifiers", "gate"),
        *("--suite", f"{SUITE_MOUNT}/{SUITE_FILE}"),
        *("--candidate", candidate),
        *(("--candidate-kernels", "fused") if fused else ()),
        *(("--incumbent", incumbent) if incumbent else ()),
        *(("--min-score", str(limits.minScore)) if limits.minScore is not None else ()),
        *("--max-regression", str(limits.maxRegression)),
        *("--confidence", str(limits.confidence)),
        *("--max-masked", str(limits.maxMasked)),
        *("--min-items", str(limits.minItems)),
        *("--looks", str(limits.looks)),
        *(("--items", str(questions.items)) if questions.items else ()),
        *("--max-tokens", str(questions.max_tokens)),
        # One worker a core would be as many as the node has cores, of which the pod gets a few.
        *("--workers", str(_WORKERS)),
        *("--out", "/tmp/answers"),
        *("--summary", _TERMINATION_LOG),
    ]
    return verifier(VERIFIER, config, command, [read_only("suite", SUITE_MOUNT)], memory="4Gi")


def verifier(
    name: str, config: OperatorConfig, command: list[str], mounts: list[Json], *, memory: str
) -> Json:
    """A container of the verifiers' image."""
    return {
        "name": name,
        "image": config.verifier.image,
        "imagePullPolicy": config.imagePullPolicy,
        "command": command,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"memory": memory},
        },
        "volumeMounts": [*mounts, {"name": SCRATCH["name"], "mountPath": "/tmp"}],
        "terminationMessagePath": _TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }


def near(template: Json) -> Json:
    """The affinity of a pod that prefers nodes with pods of a template, if that has any labels."""
    labels = template.get("metadata", {}).get("labels", {})
    theirs = {key: labels[key] for key in (OWNER_LABEL, COMPONENT_LABEL) if key in labels}
    if not theirs:
        return {}
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": theirs}}
    weighted = {"weight": _NEAR_WEIGHT, "podAffinityTerm": term}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}
    return {"affinity": {"podAffinity": preferred}}


def with_engine(pod: Json, engine: OwnEngine) -> tuple[Json, dict[str, str]]:
    """The pod with an engine that runs while the others ask, and the annotations that it needs.

    The engine reads the checkpoint pointer as always; here it is the pod's own annotation.
    """
    theirs = engine.template["spec"]
    container = next(item for item in theirs["containers"] if item["name"] == ENGINE)
    # Nobody's requests have to be drained, and if it hangs the asking says so.
    unneeded = {"lifecycle", "livenessProbe", "readinessProbe"}
    sidecar = {key: value for key, value in container.items() if key not in unneeded}
    pointer = {
        "name": _mounted_at(container, POINTER_MOUNT),
        "downwardAPI": {"items": [{"path": "pointer.json", "fieldRef": _OWN_POINTER}]},
    }
    found = {item["name"]: item for item in (*theirs["volumes"], pointer, *pod["volumes"])}
    given = engine.template.get("metadata", {}).get("annotations") or {}
    annotations = {key: value for key, value in given.items() if key != VERSION_ANNOTATION}
    document = json.dumps({"path": engine.path, "version": engine.version})
    whole = {
        **{key: value for key, value in theirs.items() if key not in _NOT_TAKEN},
        **pod,
        "initContainers": [
            *theirs.get("initContainers", []),
            *pod.get("initContainers", []),
            {**sidecar, "restartPolicy": "Always"},
        ],
        "volumes": list(found.values()),
    }
    return whole, {**annotations, POINTER_ANNOTATION: document}


def _mounted_at(container: Json, path: str) -> str:
    return str(
        next(item["name"] for item in container["volumeMounts"] if item["mountPath"] == path)
    )


def overridden(template: Json, config: OperatorConfig) -> Json:
    """A pod template with the administrator's overrides.

    Those of the container `verifier` hold for all containers of the verifiers' image.
    """
    patch = config.verifier.template
    spec = patch.get("spec", {})
    given: list[Json] = spec.get("containers", [])
    mine: Json = next((item for item in given if item.get("name") == VERIFIER), {})
    others = [item for item in given if item is not mine]

    def patched(container: Json) -> Json:
        if container["name"] not in {VERIFIER, INSPECT}:
            return container
        return {**strategic_merge(container, mine), "name": container["name"]}

    pod = dict(template["spec"])
    for kind in ("containers", "initContainers"):
        if kind in pod:
            pod[kind] = [patched(container) for container in pod[kind]]
    rest = {**patch, "spec": {**spec, "containers": others}}
    return strategic_merge({**template, "spec": pod}, rest)
