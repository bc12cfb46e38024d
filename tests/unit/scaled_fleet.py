"""The pretended cluster with a service that scales itself: requests come, and are decided on.

What the shell does with pages is done here with numbers: how many requests are under way at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.autoscaling.decision import decide
from assay_operator.autoscaling.model import Policy, Prior, Sample
from assay_operator.autoscaling.state import State
from assay_operator.inference.observation import Observation, OtherWriter, Seen
from assay_operator.inference.profiles import resolve
from assay_operator.inference.scaling import SCRAPE_SECONDS, interval, policy_of, standing
from assay_operator.inference.scaling_status import remembered
from assay_operator.plan import Json, Ref
from tests.unit.plan_fleet import START, Cluster

SCALING: Json = {"min": 1, "max": 5, "objectives": {"concurrency": 8}}
UnderWay = Callable[[float], float]
"""Requests under way at a time, in seconds since the beginning."""


class Scaled(Cluster):
    """The cluster.

    Args:
        load: of the service.
        scaling: spec.autoscaling.
        spec: the rest of the spec.
        more: as for `Cluster`.
    """

    def __init__(
        self, load: UnderWay, scaling: Json | None = None, spec: Json | None = None, **more: Any
    ) -> None:
        wanted = {"replicas": 1, **(spec or {}), "autoscaling": scaling or SCALING}
        super().__init__(wanted, **more)
        self.load = load
        self.state = State()
        self.seen: Seen | None = None
        self.other: OtherWriter | None = None
        self.looked = -SCRAPE_SECONDS
        self.again = 0.0
        self.unknown = False
        self.activator_works = True
        self.held = 0
        """Requests that wait at the activator."""
        self.told: list[Json] = []

    @property
    def scaling(self) -> Json:
        found: Json = self.status.get("autoscaling") or {}
        return found

    @property
    def phase(self) -> str:
        """Of `status.activation`."""
        return str((self.status.get("activation") or {}).get("phase"))

    @property
    def deployed(self) -> int:
        """Engines that the Deployment has."""
        return self.replicas("solver-engine")

    def replicas(self, name: str) -> int:
        """Of a Deployment."""
        return int(self.children[Ref("Deployment", name)]["spec"]["replicas"])

    @property
    def policy(self) -> Policy:
        spec = self._spec()
        profile = resolve("auto", "cpu", "throughput", None)
        made = policy_of(spec, profile)
        # Tests do not wait for five minutes, even of a pretended clock.
        prior = Prior(startup_s=float(START))
        return replace(made, prior=prior, down_window_s=40.0, up_window_s=20.0, step_s=20.0)

    def observation(self) -> Observation:
        found = super().observation()
        there = {name.name for name, item in self.children.items() if item["kind"] == "Deployment"}
        holds = self._router_pod() | {"metadata": {"name": "activator", "uid": "uid-activator"}}
        holds_any = self.activator_works and "solver-activator" in there
        routes = self.replicas("solver-router") if "solver-router" in there else 1
        return replace(
            found,
            routers=found.routers if routes else (),
            activators=(holds,) if holds_any else (),
            seen=self.seen,
            other=self.other,
        )

    @property
    def scales_to_zero(self) -> bool:
        return bool(self.service["spec"]["autoscaling"]["min"] == 0)

    def forget(self) -> None:
        """Another operator takes over: it goes on from the status, and has seen nothing yet."""
        super().forget()
        self.state, self.seen = remembered(self.status), None

    def live(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Time passes, second by second; the operator looks and works as it does."""
        end = self.now + seconds
        while self.now < end and not until():
            before = self._pods()
            self.advance(1)
            looks = self.now - self.looked >= interval(self._spec(), self.status)
            if looks:
                self.look()
            if looks or self._pods() != before or self.now >= self.again:
                made = self.reconcile()
                # What was decided is written now, and carried out by the next pass.
                if made.next_look < 1:
                    made = self.reconcile()
                self.again = self.now + made.next_look

    def _pods(self) -> list[object]:
        """What a watch would tell of."""
        return [(each.number, each.works, each.gone) for each in self.engines]

    def _spec(self) -> InferenceServiceSpec:
        return InferenceServiceSpec.model_validate(self.service["spec"])

    def look(self) -> None:
        """Looks once, and decides."""
        spec = self._spec()
        stands = standing(super().observation(), spec, self.policy, self.time())
        load = self.load(self.now)
        told = Sample(
            now=self.now,
            seconds=self.now - self.looked,
            arrivals=None if self.unknown else load,
            running=None if self.unknown else min(load, 8.0 * len(stands.ready)),
            queued=None if self.unknown else max(0.0, load - 8.0 * len(stands.ready)),
            held=self.held,
            ready=len(stands.ready),
            warm=len(stands.warm),
            starting=stands.starting,
            failed=stands.failed,
            away=stands.away,
            oldest_ready_s=stands.oldest_ready_s,
            rollout=stands.rollout,
        )
        decision = decide(self.policy, self.state, told)
        known = self.seen.unknown_s if self.seen else 0.0
        unknown_s = 0.0 if told.known else known + told.seconds
        answer = {"held": self.held, "requests": 0}
        answers = ({**answer, "lastWakeSeconds": None},) if self.scales_to_zero else ()
        self.seen = Seen(decision, unknown_s, load == 0, answers)
        self.state = decision.state
        self.looked = self.now

    def _tell(self, made: Any) -> None:
        before = copy.deepcopy(self.status)
        super()._tell(made)
        if self.status != before:
            self.told.append(self.status)


def step(low: float, high: float, begin: float, end: float) -> UnderWay:
    return lambda now: high if begin <= now < end else low
