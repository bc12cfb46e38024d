"""The children of a service that may have no replica: its activator and the way to its routers."""

from __future__ import annotations

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OUR_VERSION, NetworkPolicies, OperatorConfig
from assay_operator.inference.merge import strategic_merge
from assay_operator.inference.objects import (
    CONTAINER_SECURITY,
    FINISH_SECONDS,
    Identity,
    pod_template,
)
from assay_operator.inference.observation import (
    ACTIVATOR_PORT,
    ACTIVATOR_STATUS_PORT,
    ROUTER_PORT,
)
from assay_operator.inference.policies import DNS, operator_pods, pods, policy, tcp
from assay_operator.inference.profiles import EngineProfile
from assay_operator.plan import Json

ACTIVATOR = "activator"
_LEAVE_SECONDS = 5
"""From a pod's deletion to its SIGTERM: by then nobody sends it new connections any more."""


def activator_template(
    identity: Identity, spec: InferenceServiceSpec, profile: EngineProfile, config: OperatorConfig
) -> Json:
    """The activator's pod template: ours, then the administrator's overrides."""
    limits = config.activator
    status = {"port": "status"}
    container = {
        "name": ACTIVATOR,
        "image": limits.image or f"assay/operator:{OUR_VERSION}",
        "imagePullPolicy": config.imagePullPolicy,
        # Not the operator's own command line, which would load what only an operator needs.
        "command": ["python3", "-m", "assay_operator.activator"],
        "args": [
            *("--upstream", f"http://{identity.routers}.{identity.namespace}.svc"),
            *("--model", spec.model.servedName or identity.name),
            *("--port", str(ACTIVATOR_PORT)),
            *("--status-port", str(ACTIVATOR_STATUS_PORT)),
            *("--hold-seconds", str(limits.holdSeconds)),
            *("--start-seconds", f"{profile.expected.startup_s:g}"),
            *("--finish-seconds", str(FINISH_SECONDS)),
            *("--requests", str(limits.requests)),
            *("--megabytes", str(limits.megabytes)),
        ],
        "ports": [
            {"name": "http", "containerPort": ACTIVATOR_PORT, "protocol": "TCP"},
            {"name": "status", "containerPort": ACTIVATOR_STATUS_PORT, "protocol": "TCP"},
        ],
        "resources": {
            "requests": {"cpu": "10m", "memory": "48Mi"},
            "limits": {"memory": f"{limits.megabytes + 192}Mi"},
        },
        "readinessProbe": {
            "httpGet": {"path": "/readyz", **status},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", **status},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
            # One that has stopped answering is not going to finish anything.
            "terminationGracePeriodSeconds": _LEAVE_SECONDS + 10,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": _LEAVE_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    pod: Json = {
        "containers": [container],
        "terminationGracePeriodSeconds": _LEAVE_SECONDS + FINISH_SECONDS + 10,
    }
    return strategic_merge(pod_template(identity, ACTIVATOR, pod, {}), limits.template)


def routers_service(identity: Identity) -> Json:
    """The Service that leads to the routers wherever the service's own one points."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": identity.routers,
            "namespace": identity.namespace,
            "labels": identity.labels("router"),
        },
        "spec": {
            "type": "ClusterIP",
            "selector": identity.selector("router"),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def activator_policy(identity: Identity, access: NetworkPolicies) -> Json:
    """Everybody who may ask the model reaches it; it reaches the routers and nothing else."""
    routers = pods(identity.selector("router"))
    watching = [operator_pods(access), *access.metricsFrom]
    return policy(
        {
            "name": identity.activator,
            "namespace": identity.namespace,
            "labels": identity.labels(ACTIVATOR),
        },
        identity.selector(ACTIVATOR),
        ingress=[
            {"ports": tcp(ACTIVATOR_PORT)},
            {"from": watching, "ports": tcp(ACTIVATOR_STATUS_PORT)},
        ],
        egress=[DNS, {"to": [routers], "ports": tcp(ROUTER_PORT)}],
    )
