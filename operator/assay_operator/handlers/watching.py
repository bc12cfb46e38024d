"""kopf's part: watches over custom resources, their children and our own Lease.

No handler of kopf's that detects changes and no daemon is used, so kopf writes neither annotations
nor finalizers, and nothing depends on an event having been seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, cast

import kopf
from kubernetes.aio.client import Configuration

from assay_operator.cluster.audit import CHILDREN, OWNERS, SELECTOR
from assay_operator.cluster.client import KINDS, Resource, jittered
from assay_operator.plan import Json

Seen = Callable[[str, Json, bool], None]
"""Called with the kind, the object, and whether it is gone."""


class _Backoffs:
    """Delays for ever: with kopf's finite ones a watch ends for good after a longer outage."""

    def __iter__(self) -> Iterator[float]:
        delay = 0.25
        while True:
            yield jittered(delay)
            delay = min(5.0, delay * 2)


class _NoEssence(kopf.DiffBaseStorage):
    """kopf copies every object that it sees to find what changed, even where no handler asks for
    it. That was half of the operator's CPU time under many services."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


def settings(lease_name: str) -> kopf.OperatorSettings:
    """How kopf is to watch: label-scoped, without posting, scanning or peering."""
    made = kopf.OperatorSettings()
    made.persistence.diffbase_storage = _NoEssence()
    made.posting.enabled = False
    made.scanning.disabled = True
    made.peering.standalone = True
    made.process.ultimate_exiting_timeout = 10
    made.queueing.idle_timeout = 0.5
    made.queueing.exit_timeout = 0.5
    made.networking.error_backoffs = _Backoffs()
    made.networking.connect_timeout = 5
    made.networking.request_timeout = 60
    made.watching.chunk_size = 500
    for kind in CHILDREN:
        made.watching.label_selectors[_selector(KINDS[kind])] = SELECTOR
    made.watching.field_selectors[_selector(KINDS["Lease"])] = f"metadata.name={lease_name}"
    return made


def registry(
    seen: Seen, log_in: Callable[[], Awaitable[Configuration]], with_lease: bool
) -> kopf.OperatorRegistry:
    """The handlers: every event goes to `seen`; credentials come from `log_in`."""
    made = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(await log_in())

    kopf.on.login(registry=made)(login)
    for kind in (*OWNERS, *CHILDREN, *(["Lease"] if with_lease else [])):
        resource = KINDS[kind]
        kopf.on.event(
            resource.group, resource.version, resource.plural, registry=made, id=f"see-{kind}"
        )(_handler(kind, seen))
    return made


def _handler(kind: str, seen: Seen) -> Callable[..., Awaitable[None]]:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        item: Any = event["object"]
        item.setdefault("kind", kind)
        seen(kind, item, event["type"] == "DELETED")

    return handle


def _selector(resource: Resource) -> tuple[str, str, str]:
    return (resource.group, resource.version, resource.plural)


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Our client's credentials in kopf's words."""
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    scheme, _, token = (header or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy or None,
        trust_env=not configuration.proxy,
    )


async def start(
    made: kopf.OperatorRegistry,
    made_settings: kopf.OperatorSettings,
    namespaces: Collection[str],
) -> Collection[Any]:
    """Starts the watches; `run` drives them."""
    # kopf would ask for the user's name, and a container's user has none.
    identity: Any = "assay"
    tasks: Collection[Any] = await kopf.spawn_tasks(
        registry=made,
        settings=made_settings,
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        identity=identity,
    )
    return tasks


async def run(tasks: Collection[Any], others: Collection[Any]) -> None:
    """Returns or raises when kopf ends, which it does not do by itself.

    Args:
        tasks: from `start`.
        others: tasks of ours that kopf must leave alone at its end.
    """
    await kopf.run_tasks(tasks, ignored=others)
