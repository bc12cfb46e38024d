"""Objects of users that no label marks: asked for when a plan needs them, and soon asked again.

Only absence and content of a few named ConfigMaps and claims are needed, so no watch is kept: it
would hold every ConfigMap of the cluster in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

from assay_operator.cluster.client import ApiError, Client
from assay_operator.cluster.view import Place
from assay_operator.plan import Json, Ref

PRESENT_SECONDS = 15.0
ABSENT_SECONDS = 2.0
"""What is missing is often about to be made, and somebody waits for it."""

log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    item: Json | None
    until: float


class Lookups:
    """Asks the API server, and remembers answers for some seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._answers: dict[Place, _Answer] = {}

    async def find(self, namespace: str, names: Iterable[Ref]) -> dict[Ref, Json | None]:
        """What there is under each of these names, None where there is nothing.

        What could not be asked for is left out: nothing is known of it.
        """
        now = time.monotonic()
        self._answers = {
            where: answer for where, answer in self._answers.items() if answer.until > now
        }
        wanted = sorted(set(names))
        asked = [name for name in wanted if Place(namespace, name) not in self._answers]
        await asyncio.gather(*(self._ask(Place(namespace, name)) for name in asked))
        answers = ((name, self._answers.get(Place(namespace, name))) for name in wanted)
        return {name: answer.item for name, answer in answers if answer}

    async def _ask(self, where: Place) -> None:
        try:
            item = await self._client.get(where.ref.kind, where.namespace, where.ref.name)
        except ApiError as error:
            if error.status != 404:
                log.warning("%s %s could not be looked up: %s", *where.ref, error)
                return
            self._answers[where] = _Answer(None, time.monotonic() + ABSENT_SECONDS)
            return
        self._answers[where] = _Answer(item, time.monotonic() + PRESENT_SECONDS)
