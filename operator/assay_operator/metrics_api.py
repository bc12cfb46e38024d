"""What other autoscalers read of a service: the number of replicas that its objectives require.

For KEDA's `metrics-api` trigger as JSON, and for a HorizontalPodAutoscaler as an external metric,
which the API server asks for on its behalf (an aggregated API). Both are answered from the status
in the API server, so that it does not matter which of the operator's pods is asked.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

from assay_operator import health
from assay_operator.cluster.client import ApiError
from assay_operator.inference.drivers import REQUIRED_METRIC, SERVICE_LABEL
from assay_operator.plan import Json

GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
RENEWED_SECONDS = 60.0
"""How often it is looked whether the certificate was renewed."""
_GROUP = f"/apis/{GROUP_VERSION}"

Find = Callable[[str, str], Awaitable[Json]]
"""The InferenceService of a namespace and name; raises ApiError."""

log = logging.getLogger(__name__)


class MetricsApi:
    """The answers.

    Args:
        find: looks a service up.
    """

    def __init__(self, find: Find) -> None:
        self._find = find

    def plain(self) -> list[web.RouteDef]:
        """For KEDA: `GET /autoscaling/NAMESPACE/NAME` answers `{"required": N}`."""
        return [web.get("/autoscaling/{namespace}/{name}", self._answer)]

    def aggregated(self) -> web.Application:
        """For the API server."""
        made = web.Application()
        made.router.add_get(_GROUP, self._resources)
        made.router.add_get(f"{_GROUP}/namespaces/{{namespace}}/{{metric}}", self._external)
        return made

    async def _answer(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        try:
            found = await self._find(namespace, name)
        except ApiError as error:
            return web.json_response({"error": error.message}, status=error.status or 503)
        number = required(found)
        if number is None:
            return web.json_response({"error": "the load is not known"}, status=503)
        return web.json_response({"required": number})

    async def _resources(self, _: web.Request) -> web.Response:
        one = {
            "name": REQUIRED_METRIC,
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        return web.json_response(
            {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": GROUP_VERSION,
                "resources": [one],
            }
        )

    async def _external(self, request: web.Request) -> web.Response:
        if request.match_info["metric"] != REQUIRED_METRIC:
            return _refused(404, "NotFound", f"the only metric is {REQUIRED_METRIC}")
        key, _, name = request.query.get("labelSelector", "").partition("=")
        if key != SERVICE_LABEL or not name or "," in name:
            wanted = f"{SERVICE_LABEL}=NAME"
            return _refused(400, "BadRequest", f"the selector must be {wanted}")
        try:
            found = await self._find(request.match_info["namespace"], name)
        except ApiError as error:
            return _refused(error.status or 503, error.reason, error.message)
        number, autoscaling = required(found), (found.get("status") or {}).get("autoscaling") or {}
        value = {
            "metricName": REQUIRED_METRIC,
            "metricLabels": {SERVICE_LABEL: name},
            "timestamp": autoscaling.get("time"),
            "value": str(number),
        }
        return web.json_response(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": GROUP_VERSION,
                "metadata": {},
                "items": [] if number is None else [value],
            }
        )


def required(service: Json) -> int | None:
    """Replicas that the load requires, None while that is not known."""
    told = (service.get("status") or {}).get("autoscaling") or {}
    number: int | None = None if "unknownSince" in told else told.get("required")
    return number


def _refused(status: int, reason: str, message: str) -> web.Response:
    answer = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": status,
    }
    return web.json_response(answer, status=status)


async def serve(api: MetricsApi, folder: Path, port: int) -> web.AppRunner:
    """Serves the aggregated API with `tls.crt` and `tls.key` of a folder; `cleanup` of what is
    returned ends it.

    Raises:
        OSError: the port is taken, or the certificate cannot be used.
    """
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(tls, folder)
    made = api.aggregated()

    async def renewed(_: web.Application) -> AsyncIterator[None]:
        job = asyncio.create_task(_renew(tls, folder))
        yield
        job.cancel()

    made.cleanup_ctx.append(renewed)
    return await health.serve(made, port, tls)


def _load(tls: ssl.SSLContext, folder: Path) -> None:
    tls.load_cert_chain(folder / "tls.crt", folder / "tls.key")


async def _renew(tls: ssl.SSLContext, folder: Path) -> None:
    """Takes up a renewed certificate, for ever."""
    known = _stamp(folder)
    while True:
        await asyncio.sleep(RENEWED_SECONDS)
        try:
            if (now := _stamp(folder)) != known:
                _load(tls, folder)
                known = now
        except OSError as error:
            log.warning("the renewed certificate could not be taken up: %s", error)


def _stamp(folder: Path) -> float:
    return (folder / "tls.crt").stat().st_mtime
