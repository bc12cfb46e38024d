"""Small worlds for the planner's tests: services and pods as the API server would have them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from assay_operator.inference.objects import VERSION_ANNOTATION, Identity, parse_source
from assay_operator.inference.observation import ROUTER_PORT, Observation, Probe, engine_url
from assay_operator.plan import Ref

Json = dict[str, Any]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
SOURCE = "pvc://models/tiny"
VERSION = parse_source(SOURCE).version
IDENTITY = Identity("solver", "default")


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def service(spec: Json | None = None, status: Json | None = None) -> Json:
    body: Json = {"model": {"source": SOURCE}, "engine": {"accelerator": "cpu"}}
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "solver", "namespace": "default", "uid": "u-0", "generation": 3},
        "spec": {**body, **(spec or {})},
        **({"status": status} if status else {}),
    }


def pod(name: str, ip: str, *, ready: bool = True, container: str = "engine") -> Json:
    """A pod whose container runs; `ready` is what the kubelet says."""
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "annotations": {VERSION_ANNOTATION: VERSION} if container == "engine" else {},
        },
        "status": {
            "podIP": ip,
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastTransitionTime": ago(300),
                },
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(320)},
            ],
            "containerStatuses": [
                {
                    "name": container,
                    "image": "assay/engine:test",
                    "ready": ready,
                    "started": ready,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": ago(310)}},
                }
            ],
        },
    }


def router(name: str = "router-0", *, ready: bool = True) -> Json:
    return pod(name, f"10.9.0.{ROUTER_PORT % 200}", ready=ready, container="router")


def set_container(item: Json, **fields: Any) -> Json:
    """`item` with its container's status changed."""
    item["status"]["containerStatuses"][0].update(fields)
    return item


GOOD = Probe(version=VERSION, generated=True)


def pointer() -> dict[Ref, Json]:
    """The checkpoint pointer that the engines started with."""
    named = json.dumps({"path": parse_source(SOURCE).path, "version": VERSION})
    return {Ref("ConfigMap", IDENTITY.pointer): {"data": {"pointer.json": named}}}


def serving(*engines: Json, spec: Json | None = None, **more: Any) -> Observation:
    """A world in which all ready engines are proven and the only router lists them."""
    gate = router()
    ready = [item for item in engines if item["status"]["conditions"][0]["status"] == "True"]
    fields: Json = {
        "service": service({"replicas": len(engines), **(spec or {})}),
        "children": pointer(),
        "engines": tuple(engines),
        "routers": (gate,),
        "probes": {item["metadata"]["uid"]: GOOD for item in ready},
        "listings": {gate["metadata"]["uid"]: frozenset(str(engine_url(item)) for item in ready)},
    }
    return Observation(**{**fields, **more})
