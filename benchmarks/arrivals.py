"""When objects arrive at somebody who watches: one watch a kind, which costs the API server little.

Asking for them again and again would tell the same, and would be most of what the API server has
to do meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from kubernetes.aio import watch
from kubernetes.aio.client import (
    ApiClient,
    AppsV1Api,
    Configuration,
    CoreV1Api,
    CustomObjectsApi,
    NetworkingV1Api,
    PolicyV1Api,
)

from assay_operator.api.meta import GROUP, VERSION
from benchmarks.common import Json

OWNER = "app.kubernetes.io/instance"
SELECTOR = "app.kubernetes.io/managed-by=assay"


class Arrivals:
    """What has been seen since the watches began.

    Attributes:
        children: by the name of their InferenceService, when each child was first seen.
        told: by name, when an InferenceService was first seen with conditions in its status.

    Times are those of `time.monotonic`, in seconds.
    """

    def __init__(self) -> None:
        self.children: dict[str, dict[str, float]] = {}
        self.told: dict[str, float] = {}

    def see(self, kind: str, item: Json) -> None:
        now, metadata = time.monotonic(), item["metadata"]
        if kind == "InferenceService":
            if "conditions" in item.get("status", {}):
                self.told.setdefault(metadata["name"], now)
        else:
            seen = self.children.setdefault(metadata["labels"][OWNER], {})
            seen.setdefault(f"{kind}/{metadata['name']}", now)

    def complete(self, services: int, each: int) -> bool:
        """Whether so many services have told their status and have so many children each."""
        whole = sum(len(seen) >= each for seen in self.children.values())
        return whole >= services and len(self.told) >= services


@asynccontextmanager
async def arrivals(configuration: Configuration, namespace: str) -> AsyncIterator[Arrivals]:
    """Watches InferenceServices and their children in an empty namespace for a `with` block."""
    seen = Arrivals()
    async with ApiClient(configuration) as api:
        core, custom = CoreV1Api(api), CustomObjectsApi(api)
        labelled: dict[str, Callable[..., Any]] = {
            "ConfigMap": core.list_namespaced_config_map,
            "Service": core.list_namespaced_service,
            "Deployment": AppsV1Api(api).list_namespaced_deployment,
            "PodDisruptionBudget": PolicyV1Api(api).list_namespaced_pod_disruption_budget,
            "NetworkPolicy": NetworkingV1Api(api).list_namespaced_network_policy,
        }

        async def follow(kind: str, source: Callable[..., Any], *words: str, **more: str) -> None:
            watched = watch.Watch(return_type="object")  # type: ignore[no-untyped-call]
            async with watched.stream(source, *words, **more) as events:  # type: ignore[no-untyped-call]
                async for event in events:
                    if event["type"] != "DELETED":
                        seen.see(kind, event["raw_object"])

        tasks = [
            asyncio.create_task(follow(kind, source, namespace, label_selector=SELECTOR))
            for kind, source in labelled.items()
        ]
        owners = (GROUP, VERSION, namespace, "inferenceservices")
        tasks.append(
            asyncio.create_task(
                follow("InferenceService", custom.list_namespaced_custom_object, *owners)
            )
        )
        await asyncio.sleep(1)
        try:
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError):
                raise RuntimeError("a watch ended by itself") from error
