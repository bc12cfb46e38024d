"""The other drivers of autoscaling: what the operator makes for them, and what they say. Pure.

Both write spec.replicas through the scale subresource, as `kubectl scale` does, and go by the
number of replicas that the objectives require. A HorizontalPodAutoscaler reads it as an external
metric, KEDA asks the operator for it: see metrics_api.py.
"""

from __future__ import annotations

from assay_operator.api.autoscaling import Autoscaling
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.meta import API_VERSION, seconds
from assay_operator.conditions import Verdict
from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import Identity
from assay_operator.inference.observation import Observation
from assay_operator.plan import MANAGED_BY_LABEL, OWNER_LABEL, Json, Ref

REQUIRED_METRIC = "assay_required_replicas"
SERVICE_LABEL = "service"
KINDS = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}
"""What does it, by driver."""
_SINGLE = "1"
"""The metric counts replicas: one for each."""
_COOL_DOWN_SECONDS = 30
"""KEDA's own wait before the last replica goes, after ours."""
_POLL_SECONDS = 5
_EXCLUDED_LABELS = "scaledobject.keda.sh/hpa-excluded-labels"
"""Annotation: labels that KEDA does not copy to the HorizontalPodAutoscaler that it makes."""
_NO_METRIC = "FailedGetExternalMetric"
_NOT_SERVED = ("could not find the requested resource", "404 page not found")
"""What API servers say of a kind: of one that a group of theirs lacks, and of a group they lack."""


def driver_objects(
    identity: Identity, spec: InferenceServiceSpec, config: OperatorConfig
) -> tuple[Json, ...]:
    """What the driver of a service needs; nothing where the operator sets the number itself."""
    scaling = spec.autoscaling
    if scaling is None or scaling.driver == "builtin":
        return ()
    metadata = {
        "name": identity.name,
        "namespace": identity.namespace,
        "labels": identity.labels("autoscaler"),
    }
    target = {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "name": identity.name,
    }
    if scaling.driver == "hpa":
        return (_horizontal(metadata, target, scaling),)
    if config.metricsUrl is None:
        return ()
    url = f"{config.metricsUrl}/autoscaling/{identity.namespace}/{identity.name}"
    return (_scaled_object(metadata, target, url, scaling),)


def _behavior(scaling: Autoscaling) -> Json:
    """How hesitantly a HorizontalPodAutoscaler scales; as it does by itself where the user says
    nothing of that."""
    if scaling.scaleDownAfter is None:
        return {}
    window = {"stabilizationWindowSeconds": seconds(scaling.scaleDownAfter)}
    return {"behavior": {"scaleDown": window}}


def _horizontal(metadata: Json, target: Json, scaling: Autoscaling) -> Json:
    metric = {
        "name": REQUIRED_METRIC,
        "selector": {"matchLabels": {SERVICE_LABEL: target["name"]}},
    }
    wanted = {"type": "AverageValue", "averageValue": _SINGLE}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": KINDS["hpa"],
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": scaling.min,
            "maxReplicas": scaling.max,
            "metrics": [{"type": "External", "external": {"metric": metric, "target": wanted}}],
            **_behavior(scaling),
        },
    }


def _scaled_object(metadata: Json, target: Json, url: str, scaling: Autoscaling) -> Json:
    behavior = _behavior(scaling)
    trigger = {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {"url": url, "valueLocation": "required", "targetValue": _SINGLE},
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": KINDS["keda"],
        # By these we would take it for ours.
        "metadata": {
            **metadata,
            "annotations": {_EXCLUDED_LABELS: f"{MANAGED_BY_LABEL},{OWNER_LABEL}"},
        },
        "spec": {
            "scaleTargetRef": target,
            "minReplicaCount": scaling.min,
            "maxReplicaCount": scaling.max,
            "pollingInterval": _POLL_SECONDS,
            "cooldownPeriod": _COOL_DOWN_SECONDS,
            "triggers": [trigger],
            **({"advanced": {"horizontalPodAutoscalerConfig": behavior}} if behavior else {}),
        },
    }


def driver_ref(observation: Observation, driver: str) -> Ref:
    """The object that does it for a service."""
    return Ref(KINDS[driver], observation.service["metadata"]["name"])


def driver_verdict(observation: Observation, driver: str, config: OperatorConfig) -> Verdict:
    """Whether the driver that is not ours scales, as far as the API server and it itself say."""
    what = driver_ref(observation, driver)
    if driver == "keda" and config.metricsUrl is None:
        return Verdict(
            False,
            "DriverNotConfigured",
            "KEDA could not reach this operator, which was not told its own address: set "
            "metricsUrl in its configuration, or use driver builtin.",
        )
    if refused := observation.rejections.get(what):
        if any(told in refused for told in _NOT_SERVED):
            return Verdict(
                False,
                "DriverMissing",
                f"The cluster knows no {what.kind}: install KEDA, or use driver builtin or hpa. "
                "The number of replicas stays.",
            )
        return Verdict(False, "DriverRejected", f"{what.kind} {what.name}: {refused}")
    child = observation.children.get(what)
    if child is None:
        return Verdict(None, "DriverStarting", f"{what.kind} {what.name} is being created.")
    return _told(driver, what, child)


def _told(driver: str, what: Ref, child: Json) -> Verdict:
    """What an autoscaler that is there says of itself."""
    conditions = (child.get("status") or {}).get("conditions") or ()
    if driver == "keda" and not conditions:
        return Verdict(
            None,
            "DriverStarting",
            f"KEDA has not said anything of {what.kind} {what.name} yet. Does it run?",
        )
    for condition in conditions:
        if condition["type"] in {"AbleToScale", "ScalingActive", "Ready"} and (
            condition["status"] == "False"
        ):
            said = f"{condition.get('reason')}: {condition.get('message')}"
            advice = _advice(driver, condition.get("reason"))
            return Verdict(False, "DriverFails", f"{what.kind} {what.name} says {said}{advice}")
    return Verdict(
        True,
        "DriverScales",
        f"{what.kind} {what.name} sets spec.replicas by what the objectives require.",
    )


def _advice(driver: str, reason: str | None) -> str:
    """What helps where an autoscaler's own words do not say it."""
    if (driver, reason) != ("hpa", _NO_METRIC):
        return ""
    return (
        ". The metric comes from this operator with metricsApi.enabled in its chart's values. "
        "Where KEDA or another adapter serves external.metrics.k8s.io, use driver keda or builtin."
    )
