"""Anti-entropy: now and then everything is listed, and what the watches missed is made good.

A list shows what is; a watch that lives has said the same a moment later. So a list is taken into
the view at once, and a minute later it is seen whether the watch knows it, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from assay_operator import telemetry
from assay_operator.cluster.client import ApiError, Client, jittered
from assay_operator.cluster.view import Place, View, place, version
from assay_operator.plan import MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL, Json

SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY},{OWNER_LABEL}"
"""The labels by which children are listed and watched."""
ACTING = ("InferenceService", "VerifiedRLJob", "Checkpoint")
"""The custom resources that have an actor."""
OWNERS = (*ACTING, "CheckpointGrant")
"""All custom resources. A grant has no actor: that it is there or not is all there is to it."""
CHILDREN = (
    "Deployment",
    "StatefulSet",
    "Job",
    "Service",
    "ConfigMap",
    "PersistentVolumeClaim",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "Pod",
)
"""Not ScaledObjects: a cluster without KEDA does not know them, and a list would fail. Whoever has
one looks it up (reconcilers/inference.py)."""
PERIOD_SECONDS = 300.0
FIRST_SECONDS = 30.0
GRACE_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass
class Suspicion:
    """What a list showed and the watch had not said by then.

    Attributes:
        stale: version of each object that is there.
        gone: objects that were known and are not there any more.
    """

    stale: dict[Place, int] = field(default_factory=dict)
    gone: dict[Place, int] = field(default_factory=dict)


def take_in(view: View, kind: str, items: Iterable[Json], before: dict[Place, Json]) -> Suspicion:
    """Feeds a complete list of a kind into the view, and returns what the watch owes.

    Args:
        view: is brought up to date.
        kind: what was listed.
        items: the list.
        before: what the view knew of this kind before the list was asked for: only of this can be
            said that it is gone, as whatever came later may be younger than the list.
    """
    suspicion = Suspicion()
    there = set()
    for item in items:
        where = place(item)
        there.add(where)
        view.put(item)
        if view.watched_version(where) < version(item):
            suspicion.stale[where] = version(item)
    for where, item in before.items():
        now = view.known(kind).get(where) if where not in there else None
        if now is not None and version(now) == version(item):
            suspicion.gone[where] = version(item)
            view.remove(item)
    return suspicion


def missed(view: View, suspicion: Suspicion) -> list[Place]:
    """What the watch still has not said of a list that is by now old."""
    return [
        where for where, number in suspicion.stale.items() if view.watched_version(where) < number
    ]


class Audit:
    """Lists every kind once in a while.

    Args:
        client: lists.
        view: is compared and corrected.
        namespaces: where to look, `[None]` for everywhere.
    """

    def __init__(self, client: Client, view: View, namespaces: Sequence[str | None]) -> None:
        self._client = client
        self._view = view
        self._namespaces = namespaces
        self.dead: dict[str, str] = {}
        """Kinds whose watch missed something, and what."""

    async def sync(self) -> dict[str, Suspicion]:
        """Lists everything into the view.

        Raises:
            ApiError: a list failed.
        """
        kinds = (*OWNERS, *CHILDREN)
        found = await asyncio.gather(*map(self._list, kinds))
        telemetry.VIEW_OBJECTS.set(len(self._view))
        return dict(zip(kinds, found, strict=True))

    async def run(self) -> None:
        """Syncs and judges for ever; errors wait for the next time."""
        pause = FIRST_SECONDS
        while True:
            await asyncio.sleep(jittered(pause))
            pause = PERIOD_SECONDS
            try:
                suspicions = await self.sync()
            except ApiError as error:
                log.warning("the audit could not list: %s", error)
                continue
            await asyncio.sleep(GRACE_SECONDS)
            for kind, suspicion in suspicions.items():
                self.judge(kind, suspicion)

    def judge(self, kind: str, suspicion: Suspicion) -> None:
        """Counts what the watch missed, and notes whether it lives."""
        late = missed(self._view, suspicion)
        count = len(late) + len(suspicion.gone)
        if count:
            telemetry.WATCH_MISSED.labels(kind).inc(count)
        if not late:
            # A deletion alone may fall into the gap between two watches of one that lives.
            self.dead.pop(kind, None)
            return
        first = late[0]
        self.dead[kind] = f"{first.ref.name} in {first.namespace}"
        log.error("the watch of %s missed %d states, first %s", kind, count, self.dead[kind])

    async def _list(self, kind: str) -> Suspicion:
        before = self._view.known(kind)
        selector = SELECTOR if kind in CHILDREN else ""
        pages = await asyncio.gather(
            *(self._client.list(kind, namespace, selector) for namespace in self._namespaces)
        )
        return take_in(self._view, kind, [item for page in pages for item in page], before)
