"""What is looked at for a Checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from assay_operator.checkpoints.observation import Observation, digests_of, looked_up
from assay_operator.checkpoints.planner import plan
from assay_operator.cluster.topics import Topic
from assay_operator.cluster.view import Key, place
from assay_operator.plan import Json, Plan
from assay_operator.reconcilers.shell import Decide, Shell


class Checkpoints:
    """Looks for Checkpoints.

    Args:
        shell: what is looked with.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def look(self, key: Key, owner: Json) -> Decide:
        """See Kind."""
        shell = self._shell
        found = await shell.lookups.find(key.namespace, looked_up(owner))

        def decide(checkpoint: Json, now: datetime) -> Plan:
            topics = {Topic("InferenceService", digest) for digest in digests_of(checkpoint)}
            shell.view.watch(key, topics)
            observation = Observation(
                checkpoint=checkpoint,
                children=shell.view.children(key),
                pods=tuple(shell.view.pods(key)),
                serving=_each_once(
                    service for topic in topics for service in shell.view.find(topic)
                ),
                found=found,
                rejections=shell.applier.rejections(key),
            )
            return plan(observation, shell.config, now)

        return decide


def _each_once(items: Iterable[Json]) -> tuple[Json, ...]:
    return tuple({place(item): item for item in items}.values())
