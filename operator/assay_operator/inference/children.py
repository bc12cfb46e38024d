"""The children that an InferenceService shall have at all times, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import NetworkPolicies, OperatorConfig
from assay_operator.inference.activation import Component, Move
from assay_operator.inference.activator import (
    ACTIVATOR,
    activator_policy,
    activator_template,
    routers_service,
)
from assay_operator.inference.jobs import GATE
from assay_operator.inference.objects import WORKERS_FILE, Identity, router_template
from assay_operator.inference.observation import ENGINE_PORT, METRICS_PORT, ROUTER_PORT
from assay_operator.inference.policies import DNS, operator_pods, pods, policy, tcp, to_engines
from assay_operator.inference.profiles import EngineProfile
from assay_operator.inference.rollout_world import Target
from assay_operator.inference.templates import marked
from assay_operator.plan import Json

POINTER_FILE = "pointer.json"
_NO_DEADLINE = 2**31 - 1
"""Of a Deployment's progress, as Kubernetes has it."""
_NEVER_AVAILABLE = _NO_DEADLINE - 1
"""Seconds that no pod is ready for; the API server wants a deadline beyond them."""


def desired(
    identity: Identity,
    spec: InferenceServiceSpec,
    profile: EngineProfile,
    config: OperatorConfig,
    *,
    template: Json,
    pointer: Target,
    workers: str,
    move: Move,
    surge: int = 0,
    halted: bool = False,
) -> tuple[Json, ...]:
    """All these children of one service, in the order in which they are to be applied.

    Args:
        identity: the names.
        spec: what the user wants.
        profile: the resolved engine profile.
        config: the administrator's defaults.
        template: of the engines' pods.
        pointer: what engines that start load.
        workers: the router's list of workers, as `workers_document` writes it.
        move: how many engines there are to be, and where requests go.
        surge: engine pods above that.
        halted: whether no engine pod gives way to one of another template.
    """
    document = json.dumps({"path": pointer.path, "version": pointer.version})
    return (
        _config_map(identity, identity.pointer, "engine", {POINTER_FILE: document}),
        _config_map(identity, identity.workers, "router", {WORKERS_FILE: workers}),
        _deployment(
            identity,
            identity.engine,
            "engine",
            replicas=move.engines + surge,
            unavailable=spec.max_unavailable,
            template=marked(template),
            progress_seconds=profile.startup_seconds + 600,
            paused=halted,
        ),
        _deployment(
            identity,
            identity.router,
            "router",
            replicas=spec.router.replicas if move.routers else 0,
            unavailable=int(move.routers and spec.router.replicas > 1),
            template=router_template(identity, spec, config),
            progress_seconds=600,
        ),
        _service(identity, move.service),
        _disruption_budget(identity, identity.engine, "engine"),
        _disruption_budget(identity, identity.router, "router"),
        *(_network_policies(identity, config.networkPolicy) if config.networkPolicy else ()),
        *(_activator(identity, spec, profile, config) if move.activator else ()),
    )


def _activator(
    identity: Identity, spec: InferenceServiceSpec, profile: EngineProfile, config: OperatorConfig
) -> Iterator[Json]:
    """What takes requests while no replica can."""
    yield _deployment(
        identity,
        identity.activator,
        ACTIVATOR,
        replicas=1,
        unavailable=0,
        template=activator_template(identity, spec, profile, config),
        progress_seconds=600,
    )
    yield routers_service(identity)
    if config.networkPolicy:
        yield activator_policy(identity, config.networkPolicy)


def _metadata(identity: Identity, name: str, component: str) -> Json:
    return {
        "name": name,
        "namespace": identity.namespace,
        "labels": identity.labels(component),
    }


def _config_map(identity: Identity, name: str, component: str, data: dict[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(identity, name, component),
        "data": data,
    }


def _service(identity: Identity, component: Component) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(identity, identity.name, "router"),
        "spec": {
            "type": "ClusterIP",
            "selector": identity.selector(component),
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    }


def _disruption_budget(identity: Identity, name: str, component: str) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(identity, name, component),
        "spec": {
            "maxUnavailable": 1,
            # A pod that serves nobody must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": identity.selector(component)},
        },
    }


def _network_policies(identity: Identity, access: NetworkPolicies) -> tuple[Json, Json]:
    """Who may reach the engines and the routers.

    Engines reach nothing: their weights lie on volumes that the kubelet mounts, and a request must
    not have them fetch a picture from a place that only the cluster reaches.
    """
    engines, routers = identity.selector("engine"), identity.selector("router")
    watching = [operator_pods(access), *access.metricsFrom]
    asking = [pods(routers), pods(identity.selector(GATE)), *watching]
    return (
        policy(
            _metadata(identity, identity.engine, "engine"),
            engines,
            ingress=[{"from": asking, "ports": tcp(ENGINE_PORT)}],
            egress=[DNS],
        ),
        policy(
            _metadata(identity, identity.router, "router"),
            routers,
            ingress=[
                {"ports": tcp(ROUTER_PORT)},
                {"from": watching, "ports": tcp(METRICS_PORT)},
            ],
            egress=[DNS, to_engines(engines)],
        ),
    )


def _deployment(
    identity: Identity,
    name: str,
    component: str,
    *,
    replicas: int,
    unavailable: int,
    template: Json,
    progress_seconds: int,
    paused: bool = False,
) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(identity, name, component),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": _NO_DEADLINE if paused else progress_seconds,
            **({"paused": True} if paused else {}),
            # The operator needs a moment to prove a new replica and to route to it before an old
            # one goes. A paused Deployment is still scaled, and its controller ends all old pods
            # once as many new ones are available as there are to be: of a lone replica, the one.
            "minReadySeconds": _NEVER_AVAILABLE if paused else 10,
            "strategy": {
                "type": "RollingUpdate",
                # A lone replica is replaced without a gap. Of several, one may go first: where
                # no GPU is spare, waiting for a surge pod would never end.
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": unavailable},
            },
            "selector": {"matchLabels": identity.selector(component)},
            "template": template,
        },
    }
