"""A thin asynchronous client of the API server: JSON in, JSON out, one kind of error."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import (
    list_kube_config_contexts,
    load_incluster_config,
    load_kube_config,
)

from assay_operator import telemetry
from assay_operator.api.meta import GROUP, VERSION
from assay_operator.plan import Json

FIELD_MANAGER = "assay"
CONNECTIONS = 64
PAGE = 500
_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_ATTEMPTS = 4
_FIRST_DELAY = 0.2
_BY_US = {"fieldManager": FIELD_MANAGER}
_JSON = "application/json"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Resource:
    """Where a kind lives in the API."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """The URL path of a collection, an object or a subresource."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [f"{root}/{self.version}"]
        if namespace is not None:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, sub) if part]
        return "/".join(parts)


KINDS: dict[str, Resource] = {
    "InferenceService": Resource(GROUP, VERSION, "inferenceservices"),
    "VerifiedRLJob": Resource(GROUP, VERSION, "verifiedrljobs"),
    "Checkpoint": Resource(GROUP, VERSION, "checkpoints"),
    "CheckpointGrant": Resource(GROUP, VERSION, "checkpointgrants"),
    "Deployment": Resource("apps", "v1", "deployments"),
    "StatefulSet": Resource("apps", "v1", "statefulsets"),
    "Job": Resource("batch", "v1", "jobs"),
    "PersistentVolumeClaim": Resource("", "v1", "persistentvolumeclaims"),
    "NetworkPolicy": Resource("networking.k8s.io", "v1", "networkpolicies"),
    "Service": Resource("", "v1", "services"),
    "ConfigMap": Resource("", "v1", "configmaps"),
    "PodDisruptionBudget": Resource("policy", "v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": Resource("autoscaling", "v2", "horizontalpodautoscalers"),
    "ScaledObject": Resource("keda.sh", "v1alpha1", "scaledobjects"),
    "Pod": Resource("", "v1", "pods"),
    "Event": Resource("", "v1", "events"),
    "Lease": Resource("coordination.k8s.io", "v1", "leases"),
}


@dataclass(frozen=True)
class Request:
    """One request; `seconds` bounds each of its `attempts`. The answer is JSON, or `text`."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Json | None = None
    content_type: str = _JSON
    seconds: float = _ANSWER_SECONDS
    attempts: int = _ATTEMPTS
    text: bool = False


class ApiError(Exception):
    """The API server refused a request, or could not be reached.

    Attributes:
        status: the HTTP status, 0 where there was no answer.
        reason: one word, such as NotFound or Conflict.
        message: the API server's sentence.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return self.status in (0, 401, 408, 409, 429) or self.status >= 500


def jittered(seconds: float) -> float:
    """`seconds`, somewhere between 75% and 125%, so that many waiters do not return at once."""
    return seconds * random.uniform(0.75, 1.25)


def in_cluster() -> bool:
    """Whether this process runs in a pod that has a service account."""
    return _NAMESPACE_FILE.exists()


def own_namespace() -> str:
    """The namespace of this pod, `default` outside a cluster."""
    return _NAMESPACE_FILE.read_text().strip() if in_cluster() else "default"


async def load_configuration(kubeconfig: str | None, context: str | None) -> Configuration:
    """Where the API server is and who we are.

    A pod's service account is taken unless a kubeconfig or a context is named; its token is read
    anew every minute, as the kubelet rotates it.

    Raises:
        ConfigException: there is neither a service account nor a usable kubeconfig.
    """
    configuration = Configuration()
    if kubeconfig is None and context is None and in_cluster():
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, context=context, client_configuration=configuration
        )
    configuration.connection_pool_maxsize = CONNECTIONS
    return configuration


async def look_up(
    kind: str, name: str, *, namespace: str | None, kubeconfig: str | None, context: str | None
) -> Json:
    """One object, for a command: of the kubeconfig's own namespace where none is named.

    Raises:
        ApiError: it cannot be had.
        ConfigException: no way to an API server is configured.
    """
    client = Client(await load_configuration(kubeconfig, context))
    try:
        return await client.get(kind, namespace or _namespace(kubeconfig, context), name)
    finally:
        await client.close()


def _namespace(kubeconfig: str | None, context: str | None) -> str:
    if kubeconfig is None and context is None and in_cluster():
        return own_namespace()
    contexts, current = list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


class Client:
    """Requests to the API server over a bounded pool of connections.

    Every method raises `ApiError`. Transient failures are retried a few times, with back-off and
    jitter, where saying the same thing twice does no harm.
    """

    def __init__(
        self,
        configuration: Configuration,
        log_in: Callable[[], Awaitable[Configuration]] | None = None,
    ) -> None:
        """
        Args:
            configuration: where the API server is and who we are.
            log_in: gets credentials anew when the API server does not know them any more.
        """
        self.configuration = configuration
        self._log_in = log_in
        self._api = ApiClient(configuration)
        self.may_write: Callable[[], bool] = lambda: True
        """Asked before every write: a leader whose lease ran out must not write any more."""

    async def close(self) -> None:
        await self._api.rest_client.close()

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        found: Json = await self._send(Request("GET", KINDS[kind].path(namespace, name)))
        return found

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> list[Json]:
        """All objects of `kind`, fetched page by page. `namespace` None means all of them."""
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        items: list[Json] = []
        resource = KINDS[kind]
        version = f"{resource.group}/{resource.version}".lstrip("/")
        while True:
            page = await self._send(Request("GET", resource.path(namespace), query))
            # The API server leaves version and kind out of the items of a list.
            items += ({"apiVersion": version, "kind": kind, **item} for item in page["items"])
            token = page["metadata"].get("continue")
            if not token:
                return items
            query = {**query, "continue": token}

    async def apply(self, item: Json, sub: str | None = None, force: bool = True) -> Json:
        """Server-side apply of `item`, or of its subresource `sub`, as `FIELD_MANAGER`.

        Without `force` a field that somebody else set to another value is a 409.
        """
        query = {**_BY_US, "force": "true" if force else "false"}
        return await self._write("apply", item, Request("PATCH", "", query, item, _APPLY), sub)

    async def annotate(self, kind: str, namespace: str, name: str, notes: dict[str, str]) -> Json:
        """Sets annotations by a merge patch."""
        item = {"kind": kind, "metadata": {"namespace": namespace, "name": name}}
        body = {"metadata": {"annotations": notes}}
        return await self._write("patch", item, Request("PATCH", "", _BY_US, body, _MERGE))

    async def merge(self, item: Json) -> Json:
        """A JSON merge patch with all of `item`: its lists replace those that are there."""
        return await self._write("patch", item, Request("PATCH", "", _BY_US, item, _MERGE))

    async def create(self, item: Json) -> Json:
        return await self._write("create", item, Request("POST", "", _BY_US, item))

    async def replace(self, item: Json, seconds: float) -> Json:
        """Writes `item` if nobody wrote it since it was read; one attempt within `seconds`."""
        request = Request("PUT", "", _BY_US, item, seconds=seconds, attempts=1)
        return await self._write("update", item, request)

    async def delete(self, item: Json) -> None:
        """Deletes exactly this object: a newer one of the same name stays. Gone is fine."""
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Background",
            "preconditions": {"uid": item["metadata"]["uid"]},
        }
        try:
            await self._write("delete", item, Request("DELETE", "", body=body))
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def proxy(
        self, pod: Json, port: int, path: str, body: Json | None, seconds: float, *, text: bool
    ) -> Any:
        """Asks a pod's port through the API server, once: POST where there is a body, else GET."""
        metadata = pod["metadata"]
        target = KINDS["Pod"].path(metadata["namespace"]) + f"/{metadata['name']}:{port}/proxy"
        method = "GET" if body is None else "POST"
        return await self._send(
            Request(method, target + path, body=body, seconds=seconds, attempts=1, text=text)
        )

    async def _write(self, verb: str, item: Json, request: Request, sub: str | None = None) -> Json:
        """Sends a write of `item`, whose path is worked out here."""
        metadata, kind = item["metadata"], item["kind"]
        if kind != "Lease" and not self.may_write():
            raise ApiError(0, "NotLeader", "the lease is not held any more")
        telemetry.API_WRITES.labels(verb, f"{kind}/{sub}" if sub else kind).inc()
        name = None if verb == "create" else metadata["name"]
        path = KINDS[kind].path(metadata["namespace"], name, sub)
        answer: Json = await self._send(replace(request, path=path))
        return answer

    async def _send(self, request: Request) -> Any:
        for attempt in range(1, request.attempts + 1):
            try:
                return await self._once(request)
            except ApiError as error:
                expired = error.status == 401 and await self._renewed()
                if attempt == request.attempts or error.status == 409:
                    raise
                if not (expired or error.transient):
                    raise
                delay = jittered(_FIRST_DELAY * 2**attempt)
                await asyncio.sleep(max(delay, error.retry_after))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _renewed(self) -> bool:
        """Whether other credentials than those that were refused could be had."""
        if self._log_in is None:
            return False
        fresh = (await self._log_in()).api_key
        changed: bool = fresh != self.configuration.api_key
        self.configuration.api_key.update(fresh)
        return changed

    async def _once(self, request: Request) -> Any:
        headers = {
            "Content-Type": request.content_type,
            "Accept": "application/json",
            "User-Agent": FIELD_MANAGER,
        }
        token = await self.configuration.get_api_key_with_prefix("BearerToken", "authorization")
        if token:
            headers["Authorization"] = token
        query = f"?{urlencode(request.query)}" if request.query else ""
        url = self.configuration.host + request.path + query
        limits = aiohttp.ClientTimeout(
            total=request.seconds, sock_connect=min(_CONNECT_SECONDS, request.seconds)
        )
        try:
            answer = await self._api.call_api(
                request.method, url, headers, request.body, _request_timeout=limits
            )
            content = await answer.response.read()
        except TimeoutError as error:
            raise ApiError(0, "Timeout", f"no answer within {request.seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, "Unreachable", str(error) or type(error).__name__) from error
        if answer.status >= 400:
            raise _api_error(answer.status, content, answer.headers.get("Retry-After"))
        return content.decode(errors="replace") if request.text else _json(content)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content) if content else {}
    except ValueError as error:
        raise ApiError(0, "NotJSON", content[:200].decode(errors="replace")) from error


def _api_error(status: int, content: bytes, retry_after: str | None) -> ApiError:
    """The error that a refusing answer tells of; proxies in between may answer plain text."""
    wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    try:
        told = json.loads(content)
        return ApiError(status, told.get("reason") or "Unknown", told.get("message") or "", wait)
    except (ValueError, AttributeError):
        return ApiError(status, "Unknown", content[:200].decode(errors="replace"), wait)
