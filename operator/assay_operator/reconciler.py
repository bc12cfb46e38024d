"""One pass over an InferenceService: observe, plan, apply, tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from assay_operator.actor import Slots
from assay_operator.cluster.apply import Applier
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.view import Key, View
from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import Observation, Probe, is_ready, labels_of
from assay_operator.inference.planner import plan
from assay_operator.plan import Json, Plan
from assay_operator.sglang.client import SGLang

COMPONENT_LABEL = "app.kubernetes.io/component"
TERMINATING_SECONDS = 30.0
_ROUNDS = 3
"""How often a plan is made anew in one pass because the last one changed the world."""

Planner = Callable[[Observation, OperatorConfig, datetime], Plan]
Answers = tuple[dict[str, Probe], dict[str, frozenset[str] | None]]


class Reconciler:
    """The pass that actors drive.

    Args:
        view: what is known of the cluster.
        applier: carries out plans.
        sglang: asks engines and routers.
        config: the administrator's defaults.
        planner: decides.
    """

    def __init__(
        self,
        view: View,
        applier: Applier,
        sglang: SGLang,
        config: OperatorConfig,
        planner: Planner = plan,
    ) -> None:
        self._view = view
        self._applier = applier
        self._sglang = sglang
        self._config = config
        self._planner = planner
        self._slots = Slots()

    async def __call__(self, key: Key) -> float | None:
        """Looks at one object and does what is due.

        Returns:
            seconds until the next look, None where the object is gone.

        Raises:
            ApiError: something could not be written; the pass is to be repeated.
        """
        service = self._view.owner(key)
        if service is None:
            self._applier.forget(key)
            return None
        if service["metadata"].get("deletionTimestamp"):
            return TERMINATING_SECONDS
        # HTTP takes as long as the slowest pod: no slot is held meanwhile.
        answers = await self._ask(key)
        async with self._slots:
            return await self._act(key, answers)

    async def complain(self, key: Key, error: Exception) -> None:
        """Says in the object's status that it could not be worked on, if that can be written."""
        service = self._view.owner(key)
        if service is None or isinstance(error, ApiError):
            return
        message = f"The operator failed on this object: {type(error).__name__}: {error}"
        status = with_condition(service.get("status") or {}, message, datetime.now(UTC))
        await self._applier.status(key, service, status)

    async def _ask(self, key: Key) -> Answers:
        ready = [pod for pod in self._view.pods(key) if is_ready(pod)]
        probes, listings = await asyncio.gather(
            self._sglang.probes(_component(ready, "engine")),
            self._sglang.listings(_component(ready, "router")),
        )
        return probes, listings

    async def _act(self, key: Key, answers: Answers) -> float | None:
        for left in reversed(range(_ROUNDS)):
            service = self._view.owner(key)
            if service is None:
                return 0.0
            now = datetime.now(UTC)
            made = self._planner(self._observe(key, service, answers), self._config, now)
            outcome = await self._applier.children(key, service, made)
            # What changed is seen at once, so that the status is written once and says it all.
            if not outcome.changed or not left:
                await self._applier.tell(key, service, made, now)
                break
        if outcome.errors:
            raise outcome.errors[0]
        retry = self._applier.retry_in(key)
        return made.next_look if retry is None else min(made.next_look, retry)

    def _observe(self, key: Key, service: Json, answers: Answers) -> Observation:
        pods = self._view.pods(key)
        probes, listings = answers
        return Observation(
            service=service,
            children=self._view.children(key),
            engines=tuple(_component(pods, "engine")),
            routers=tuple(_component(pods, "router")),
            probes=probes,
            listings=listings,
            rejections=self._applier.rejections(key),
        )


def _component(pods: list[Json], component: str) -> list[Json]:
    return [pod for pod in pods if labels_of(pod).get(COMPONENT_LABEL) == component]


def with_condition(status: Json, message: str, now: datetime) -> Json:
    """`status` with the condition Applied made false because of an error of the operator's own."""
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    before = conditions.get("Applied", {})
    since = before.get("lastTransitionTime") if before.get("status") == "False" else None
    conditions["Applied"] = {
        "type": "Applied",
        "status": "False",
        "reason": "InternalError",
        "message": message,
        "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {**status, "conditions": list(conditions.values())}
