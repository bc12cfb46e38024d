"""What is looked at for a VerifiedRLJob."""

from __future__ import annotations

import asyncio
from datetime import datetime

from assay_operator.checkpoints.observation import digests_of
from assay_operator.cluster.topics import Topic
from assay_operator.cluster.view import Key
from assay_operator.inference.observation import is_ready
from assay_operator.plan import Json, Plan
from assay_operator.reconcilers.shell import Decide, Shell, of_component
from assay_operator.sglang.reach import ProbeError, Question
from assay_operator.training.jobfile import STATUS_PORT
from assay_operator.training.observation import Observation, TrainerAnswer, to_ask
from assay_operator.training.planner import looked_up, plan

_STATUS = Question(STATUS_PORT, "/status")


class Jobs:
    """Looks for VerifiedRLJobs.

    Args:
        shell: what is looked with.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def look(self, key: Key, owner: Json) -> Decide:
        """See Kind."""
        shell = self._shell
        pods = shell.view.pods(key)
        asked = to_ask(of_component(pods, "trainer"))
        found, said, kernels = await asyncio.gather(
            shell.lookups.find(key.namespace, looked_up(owner)),
            asyncio.gather(*map(self._ask, asked)),
            shell.sglang.kernels(filter(is_ready, of_component(pods, "engine"))),
        )
        answers = {pod["metadata"]["uid"]: answer for pod, answer in zip(asked, said, strict=True)}

        def decide(job: Json, now: datetime) -> Plan:
            pods = shell.view.pods(key)
            checkpoints = tuple(shell.view.find(Topic("Checkpoint", key.namespace)))
            observation = Observation(
                job=job,
                children=shell.view.children(key),
                trainers=of_component(pods, "trainer"),
                engines=of_component(pods, "engine"),
                answers=answers,
                kernels=kernels,
                found=found,
                checkpoints=checkpoints,
                pinned=self._pinned(key, checkpoints),
                rejections=shell.applier.rejections(key),
            )
            return plan(observation, shell.config, now)

        return decide

    def _pinned(self, key: Key, checkpoints: tuple[Json, ...]) -> frozenset[str]:
        """Which of these services serve; from now on the job is woken when that changes."""
        view = self._shell.view
        digests = {digest for item in checkpoints for digest in digests_of(item)}
        served = {digest: Topic("InferenceService", digest) for digest in digests}
        view.watch(key, {Topic("Checkpoint", key.namespace), *served.values()})
        return frozenset(digest for digest, topic in served.items() if view.find(topic))

    async def _ask(self, trainer: Json) -> TrainerAnswer:
        try:
            status = await self._shell.reach.ask(trainer, _STATUS)
        except ProbeError as error:
            return TrainerAnswer(error=str(error))
        if not isinstance(status, dict):
            return TrainerAnswer(error=f"{_STATUS.path}: the answer is no JSON object")
        return TrainerAnswer(status)
