"""What all children of a service share, and its pods' templates, as plain data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from assay_operator.api.engine import Resources
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.merge import strategic_merge
from assay_operator.inference.observation import ENGINE_PORT, METRICS_PORT, ROUTER_PORT
from assay_operator.inference.profiles import EngineProfile
from assay_operator.plan import MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL, Json

USER_ID = 65532
MODEL_MOUNT = "/models"
CHECKPOINTS_MOUNT = "/checkpoints"
POINTER_MOUNT = "/etc/assay/pointer"
WORKERS_MOUNT = "/etc/assay/workers"
WORKERS_FILE = "workers.json"
VERSION_ANNOTATION = "assay.dev/version"
WORKERS_ANNOTATION = "assay.dev/workers"
DRAIN_SECONDS = 8
"""From a pod's deletion to its SIGTERM. In it the operator takes the engine out of the list of
workers and the router drains it, which was measured as 5.2 s; the engine still accepts requests."""
FINISH_SECONDS = 180
"""From SIGTERM to SIGKILL: requests in flight run to their end."""
_PROBE_PERIOD = 5
_MOUNTED_AS = {MODEL_MOUNT: "model", CHECKPOINTS_MOUNT: "checkpoints"}
"""How the volume of each place is called, in this order."""

Layout = Mapping[str, str]
"""What an engine's pod sees: by the place in its container, the volume's key (`volume_key`)."""


@dataclass(frozen=True)
class Identity:
    """The names of a service and its children."""

    name: str
    namespace: str

    @property
    def engine(self) -> str:
        return f"{self.name}-engine"

    @property
    def router(self) -> str:
        return f"{self.name}-router"

    @property
    def activator(self) -> str:
        return f"{self.name}-activator"

    @property
    def routers(self) -> str:
        """The Service that always points to the routers."""
        return f"{self.name}-routers"

    @property
    def pointer(self) -> str:
        return f"{self.name}-pointer"

    @property
    def workers(self) -> str:
        return f"{self.name}-workers"

    @property
    def url(self) -> str:
        return f"http://{self.name}.{self.namespace}.svc/v1"

    def selector(self, component: str) -> dict[str, str]:
        """The labels by which the pods of a component are found; they never change."""
        return {
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": component,
            MANAGED_BY_LABEL: MANAGED_BY,
        }

    def labels(self, component: str) -> dict[str, str]:
        """The labels of a component's objects."""
        return {
            **self.selector(component),
            "app.kubernetes.io/part-of": "assay",
            OWNER_LABEL: f"inferenceservice.{self.name}",
        }


@dataclass(frozen=True)
class Source:
    """Where weights come from, parsed.

    Attributes:
        volume: the pod's volume that holds them, without its name.
        path: where they lie in the engine's container.
        version: the name by which the engine reports them. Weights that a user points to were not
            weighed and have no digest; until then their version is the name of their place.
    """

    volume: Json
    path: str
    version: str

    @property
    def key(self) -> str:
        """Of the volume."""
        return volume_key(self.volume) or ""


def volume_key(volume: Json) -> str | None:
    """`pvc/CLAIM` or `oci/IMAGE`; None for a volume of another kind, as only overrides bring it."""
    if claim := volume.get("persistentVolumeClaim"):
        return f"pvc/{claim['claimName']}"
    if image := volume.get("image"):
        return f"oci/{image['reference']}"
    return None


def volume_of(key: str) -> Json:
    """The volume, without its name, of a key."""
    kind, _, name = key.partition("/")
    if kind == "oci":
        return {"image": {"reference": name}}
    return {"persistentVolumeClaim": {"claimName": name}}


def parse_source(source: str) -> Source:
    """Parses `pvc://CLAIM/PATH` and `oci://IMAGE`, which the CRD's rules have checked."""
    scheme, _, rest = source.partition("://")
    mark = fingerprint(source)[:8]
    if scheme == "oci":
        image = rest.rsplit("/", 1)[-1]
        _, _, digest = rest.partition("@sha256:")
        version = f"sha256:{digest[:12]}" if digest else f"{image}-{mark}"
        return Source({"image": {"reference": rest}}, MODEL_MOUNT, version)
    claim, _, path = rest.partition("/")
    leaf = path.rstrip("/").rsplit("/", 1)[-1] or claim
    folder = f"{MODEL_MOUNT}/{path}".rstrip("/")
    return Source({"persistentVolumeClaim": {"claimName": claim}}, folder, f"{leaf}-{mark}")


def workers_document(urls: Iterable[str]) -> str:
    """The router's worker list: the file that smg's file discovery reads."""
    return json.dumps({"version": 1, "workers": [{"url": url} for url in sorted(urls)]})


def fingerprint(document: str) -> str:
    """A short name for a document's content, for annotations."""
    return hashlib.sha256(document.encode()).hexdigest()[:16]


POD_SECURITY: Json = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Json = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""With these a pod satisfies the Pod Security level `restricted`."""


def pod_template(
    identity: Identity, component: str, spec: Json, annotations: dict[str, str]
) -> Json:
    """A pod template with what every pod of ours has: no token, no privilege, spread out."""
    return {
        "metadata": {"labels": identity.labels(component), "annotations": annotations},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": POD_SECURITY,
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": identity.selector(component)},
                }
            ],
            **spec,
        },
    }


def _http_probe(path: str, period: int, timeout: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _liveness(path: str, timeout: int) -> Json:
    """A process that has stopped answering is not going to finish requests: it ends soon."""
    return {
        **_http_probe(path, 10, timeout, 3),
        "terminationGracePeriodSeconds": DRAIN_SECONDS + 20,
    }


def engine_arguments(
    identity: Identity, spec: InferenceServiceSpec, profile: EngineProfile
) -> list[str]:
    """SGLang's arguments, the user's own last. The launcher adds model path and version."""
    return [
        *("--served-model-name", spec.model.servedName or identity.name),
        *("--host", "0.0.0.0"),
        *("--port", str(ENGINE_PORT)),
        "--enable-metrics",
        *(["--trust-remote-code"] if spec.model.trustRemoteCode else []),
        *profile.args,
        *spec.engine.extraArgs,
    ]


def resources(wanted: Resources | None, profile: EngineProfile) -> Json:
    """A container's requests and limits: those of the profile, the user's over them, its GPUs."""
    limits: dict[str, Any] = dict((wanted and wanted.limits) or {})
    # As in Kubernetes itself, a limit without a request is the request too: otherwise a limit
    # below the profile's request would be refused.
    requests = {**profile.requests, **limits, **((wanted and wanted.requests) or {})}
    if profile.resource:
        requests[profile.resource] = limits[profile.resource] = str(profile.gpus)
    return {"requests": requests, "limits": limits}


def engine_template(
    identity: Identity,
    spec: InferenceServiceSpec,
    profile: EngineProfile,
    config: OperatorConfig,
    *,
    version: str | None = None,
    layout: Layout | None = None,
) -> Json:
    """The engine's pod template: ours, then the administrator's overrides, then the user's.

    Args:
        identity: the names.
        spec: what the user wants.
        profile: the resolved engine profile.
        config: the administrator's defaults.
        version: that the pods are made for. Default: that of spec.model.source.
        layout: what they mount. Default: spec.model.source.
    """
    if version is None or layout is None:
        source = parse_source(spec.model.source)
        version, layout = version or source.version, layout or {MODEL_MOUNT: source.key}
    weights, seen = _weights(layout)
    accelerator_class = spec.engine.accelerator.partition("-")[0]
    mounts = [
        *seen,
        {"name": "pointer", "mountPath": POINTER_MOUNT, "readOnly": True},
        {"name": "cache", "mountPath": "/cache"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    container = {
        "name": "engine",
        "image": config.engine.images[accelerator_class],
        "imagePullPolicy": config.imagePullPolicy,
        "command": ["assay-engine"],
        "args": engine_arguments(identity, spec, profile),
        "env": [{"name": key, "value": value} for key, value in sorted(profile.env.items())],
        "ports": [{"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        "resources": resources(spec.engine.resources, profile),
        "volumeMounts": mounts,
        "startupProbe": _http_probe(
            "/health", _PROBE_PERIOD, 5, math.ceil(profile.startup_seconds / _PROBE_PERIOD)
        ),
        # /health answers while generation is paused, /ready does not: a paused engine gets no
        # request, and is not killed for being paused.
        "livenessProbe": _liveness("/health", 10),
        "readinessProbe": _http_probe("/ready", _PROBE_PERIOD, 5, 2),
        "lifecycle": {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    pod: Json = {
        "containers": [container],
        "volumes": [
            *weights,
            {"name": "pointer", "configMap": {"name": identity.pointer}},
            {"name": "cache", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shm}},
        ],
        "terminationGracePeriodSeconds": DRAIN_SECONDS + FINISH_SECONDS,
        # As PID 1 a process without a handler never gets its SIGTERM: an engine that is deleted
        # while it loads, before SGLang sets one, would stay for the whole grace period.
        "shareProcessNamespace": True,
        **placement(profile),
    }
    template = pod_template(identity, "engine", pod, {VERSION_ANNOTATION: version})
    template = strategic_merge(template, config.engine.templates.get(accelerator_class, {}))
    return strategic_merge(template, spec.template or {})


def _weights(layout: Layout) -> tuple[list[Json], list[Json]]:
    """The volumes of a layout and their mounts. One volume in two places is one volume: a kubelet
    may wait for ever for the second."""
    names: dict[str, str] = {}
    mounts = []
    for place, name in _MOUNTED_AS.items():
        if key := layout.get(place):
            mounted = {"name": names.setdefault(key, name), "mountPath": place, "readOnly": True}
            mounts.append(mounted)
    return [{"name": name, **volume_of(key)} for key, name in names.items()], mounts


def placement(profile: EngineProfile) -> Json:
    """Where GPU pods may run: on nodes of the right product, tainted ones included."""
    if not profile.resource:
        return {}
    placement: Json = {
        "tolerations": [{"key": profile.resource, "operator": "Exists", "effect": "NoSchedule"}]
    }
    if profile.products:
        term = {
            "matchExpressions": [
                {
                    "key": "nvidia.com/gpu.product",
                    "operator": "In",
                    "values": list(profile.products),
                }
            ]
        }
        placement["affinity"] = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}
            }
        }
    return placement


# Whoever can reach smg's control plane can point the router at workers of their own, and every pod
# that may ask the model reaches it. So each start has a key that nobody knows: the list of workers
# comes from the file alone.
ROUTER_START = (
    "import os, secrets, sys; os.execv(sys.executable, [sys.executable, '-m', 'smg', 'launch', "
    "*sys.argv[1:], '--control-plane-api-keys', 'none:none:admin:' + secrets.token_urlsafe(32)])"
)


def router_arguments(spec: InferenceServiceSpec) -> list[str]:
    """smg's arguments: workers come from a file, so that they survive a restart of anything."""
    return [
        *("--host", "0.0.0.0"),
        *("--port", str(ROUTER_PORT)),
        *("--policy", spec.router.policy),
        *("--discovery-provider", "file"),
        *("--discovery-file", f"{WORKERS_MOUNT}/{WORKERS_FILE}"),
        *("--discovery-check-interval-secs", "1"),
        *("--health-check-interval-secs", "5"),
        *("--health-check-timeout-secs", "3"),
        *("--health-failure-threshold", "2"),
        *("--health-success-threshold", "1"),
        *("--prometheus-host", "0.0.0.0"),
        *("--prometheus-port", str(METRICS_PORT)),
    ]


def router_template(identity: Identity, spec: InferenceServiceSpec, config: OperatorConfig) -> Json:
    """The router's pod template: ours, then the administrator's overrides."""
    container = {
        "name": "router",
        "image": config.router.image,
        "imagePullPolicy": config.imagePullPolicy,
        "command": ["python3", "-c", ROUTER_START],
        "args": router_arguments(spec),
        "ports": [
            {"name": "http", "containerPort": ROUTER_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "2Gi"},
        },
        "volumeMounts": [
            {"name": "workers", "mountPath": WORKERS_MOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "startupProbe": _http_probe("/liveness", 1, 2, 60),
        "livenessProbe": _liveness("/liveness", 5),
        "readinessProbe": _http_probe("/readiness", 1, 2, 2),
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    pod: Json = {
        "containers": [container],
        "volumes": [
            {"name": "workers", "configMap": {"name": identity.workers}},
            {"name": "tmp", "emptyDir": {}},
        ],
        "terminationGracePeriodSeconds": FINISH_SECONDS,
    }
    return strategic_merge(pod_template(identity, "router", pod, {}), config.router.template)
