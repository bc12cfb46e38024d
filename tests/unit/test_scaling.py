"""A service that scales itself: what becomes of its replicas, and what its status says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.inference.observation import OtherWriter
from assay_operator.inference.planner import AT_ONCE_SECONDS
from assay_operator.inference.profiles import resolve
from assay_operator.inference.scaling import is_stopped, policy_of, standing, wanted
from assay_operator.inference.scaling_status import OTHERS_SECONDS, WRITE_SECONDS
from assay_operator.plan import Json, Ref
from tests.unit.scaled_fleet import SCALING, Scaled, step
from tests.unit.worlds import NOW, SOURCE, ago, pod, serving

ZERO: Json = {**SCALING, "min": 0, "scaleToZeroAfter": "60s"}
AUTO = ("auto", "cpu", "throughput")
PROFILE = resolve(*AUTO, None)


def spec_of(scaling: Json | None = None, **more: Any) -> InferenceServiceSpec:
    body: Json = {"model": {"source": SOURCE}, "engine": {"accelerator": "cpu"}}
    return InferenceServiceSpec.model_validate(
        {**body, "autoscaling": {**SCALING, **(scaling or {})}, **more}
    )


def steady(load: float = 4.0, **more: Any) -> Scaled:
    """A service that serves under a constant load."""
    cluster = Scaled(lambda _: load, **more)
    cluster.live(60)
    return cluster


class TestPolicies:
    def test_the_spec_says_what_is_wanted_and_the_profile_what_is_assumed(self) -> None:
        goals = {"ttftMs": 500, "itlMs": 40, "attainment": 0.9}
        made = policy_of(
            spec_of(
                {
                    "min": 0,
                    "scaleToZeroAfter": "4m",
                    "scaleDownAfter": "90s",
                    "objectives": goals,
                }
            ),
            PROFILE,
        )
        assert (made.min, made.max) == (0, 5)
        assert (made.scale_to_zero_after, made.down_window_s) == (240, 90)
        assert (made.ttft_s, made.itl_s, made.attainment) == (0.5, 0.04, 0.9)
        assert made.prior.startup_s == 40 and made.prior.itl_s == pytest.approx(0.007)

    def test_defaults(self) -> None:
        made = policy_of(spec_of({"min": 0}), PROFILE)
        assert (made.scale_to_zero_after, made.down_window_s) == (900, 300)
        assert (made.attainment, made.concurrency) == (0.95, 8)

    @pytest.mark.parametrize(("driver", "acts"), [("builtin", True), ("hpa", False)])
    def test_only_the_builtin_driver_starts_replicas(self, driver: str, acts: bool) -> None:
        assert policy_of(spec_of({"driver": driver}), PROFILE).acts == acts

    def test_what_is_learned_is_kept_for_each_kind_of_engine(self) -> None:
        kinds = {
            policy_of(spec, PROFILE).profile
            for spec in (
                spec_of(),
                spec_of(model={"source": "pvc://models/other"}),
                spec_of(engine={"accelerator": "cpu", "extraArgs": ["--dtype", "bfloat16"]}),
            )
        }
        kinds.add(policy_of(spec_of(), resolve(*AUTO, None, kernels="fused")).profile)
        assert len(kinds) == 4 and all(kind.startswith("cpu-") for kind in kinds)
        followed = {"source": SOURCE, "follow": {"job": "solver-rl"}}
        assert policy_of(spec_of(model=followed), PROFILE) == policy_of(spec_of(), PROFILE)

    @pytest.mark.parametrize(
        ("arguments", "slots"),
        [
            ([], 64),
            (["--max-running-requests=16"], 16),
            (["--max-running-requests", "8"], 8),
            (["--max-running-requests"], 64),
        ],
    )
    def test_an_engine_runs_as_many_requests_as_its_arguments_say(
        self, arguments: list[str], slots: int
    ) -> None:
        engine = {"accelerator": "cpu", "extraArgs": arguments}
        assert policy_of(spec_of(engine=engine), PROFILE).prior.slots == slots


class TestWanted:
    @pytest.mark.parametrize(
        ("replicas", "told", "number"),
        [
            (1, None, 1),
            (9, None, 5),
            (2, {"driver": "builtin", "replicas": 3}, 3),
            (2, {"driver": "builtin", "replicas": 9}, 5),
            (2, {"driver": "hpa", "replicas": 4}, 2),
            (0, {"driver": "builtin", "replicas": 3}, 0),
        ],
    )
    def test_a_decision_counts_once_it_is_written_and_within_bounds(
        self, replicas: int, told: Json | None, number: int
    ) -> None:
        assert wanted(spec_of(replicas=replicas), {"autoscaling": told}) == number

    def test_other_drivers_write_the_spec_and_it_counts(self) -> None:
        told = {"driver": "hpa", "replicas": 4}
        assert wanted(spec_of({"driver": "hpa"}, replicas=2), {"autoscaling": told}) == 2

    def test_a_service_may_have_none_and_begins_with_one(self) -> None:
        rests = spec_of({"min": 0})
        assert wanted(rests, {}) == 1
        assert wanted(rests, {"autoscaling": {"driver": "builtin", "replicas": 0}}) == 0

    @pytest.mark.parametrize(
        ("driver", "told", "stopped"),
        [
            ("builtin", None, True),
            ("builtin", {"driver": "builtin", "replicas": 3}, True),
            ("builtin", {"driver": "builtin", "replicas": 3, "specReplicas": 2}, True),
            ("builtin", {"driver": "keda", "replicas": 0}, False),
            ("builtin", {"driver": "builtin", "replicas": 0, "specReplicas": 0}, False),
            ("keda", None, False),
        ],
    )
    def test_zero_stops_a_service_unless_it_was_written_by_keda(
        self, driver: str, told: Json | None, stopped: bool
    ) -> None:
        status = {"autoscaling": told}
        assert is_stopped(spec_of({"driver": driver, "min": 0}, replicas=0), status) == stopped
        assert is_stopped(spec_of({"driver": driver, "min": 1}, replicas=0), status)
        assert not is_stopped(spec_of({"driver": driver, "min": 0}, replicas=1), status)


class TestStandings:
    def test_a_replica_is_warm_after_a_while_with_the_weights_that_it_has(self) -> None:
        fresh = pod("b", "10.0.0.2")
        fresh["status"]["conditions"][0]["lastTransitionTime"] = ago(10)
        world = serving(pod("a", "10.0.0.1"), fresh)
        spec, policy = spec_of(replicas=2), policy_of(spec_of(), PROFILE)
        found = standing(world, spec, policy, NOW)
        assert found.ready == {"uid-a", "uid-b"} and found.warm == {"uid-a"}
        assert found.oldest_ready_s == 300
        changed = {"history": [{"finished": ago(5)}]}
        service = {**world.service, "status": changed}
        assert not standing(replace(world, service=service), spec, policy, NOW).warm

    def test_what_is_asked_for_and_not_there_is_starting(self) -> None:
        world = serving(pod("a", "10.0.0.1"), pod("b", "10.0.0.2", ready=False))
        told = {"autoscaling": {"driver": "builtin", "replicas": 4}}
        service = {**world.service, "status": told}
        policy = policy_of(spec_of(), PROFILE)
        assert standing(replace(world, service=service), spec_of(), policy, NOW).starting == 3
        assert standing(world, spec_of(), policy, NOW).starting == 1, "it exists"

    def test_a_replica_that_failed_is_not_starting(self) -> None:
        """It ends again and again, or no node takes it: nobody waits for it."""
        crashes, pending = (pod(name, "10.0.0.2", ready=False) for name in ("b", "c"))
        ended = {"exitCode": 1, "message": "boom"}
        (status,) = crashes["status"]["containerStatuses"]
        status |= {"restartCount": 9, "lastState": {"terminated": ended}}
        pending["status"]["conditions"] = [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        ]
        pending["status"]["containerStatuses"] = []
        world = serving(pod("a", "10.0.0.1"), crashes, pending)
        service = {**world.service, "status": {"autoscaling": {"driver": "builtin", "replicas": 4}}}
        policy = policy_of(spec_of(), PROFILE)
        found = standing(replace(world, service=service), spec_of(), policy, NOW)
        assert (len(found.ready), found.failed, found.starting) == (1, 2, 1)

    def test_an_engine_in_the_hands_of_a_rollout_is_away_and_not_starting(self) -> None:
        cluster = steady()
        cluster.disk["models", "next"] = "good"
        cluster.serve("pvc://models/next")
        cluster.change(rollout={"maxUnavailable": 1, "canary": {"hold": "10s"}})
        cluster.live(60, until=lambda: bool(cluster.rollout.get("replicas")))
        found = standing(cluster.observation(), cluster._spec(), cluster.policy, cluster.time())
        assert (found.away, found.starting, found.rollout) == (1, 0, True)


class TestScaling:
    def test_replicas_follow_the_load_up_and_down(self) -> None:
        cluster = Scaled(step(4, 20, 60, 160))
        cluster.live(160)
        assert cluster.deployed == cluster.scaling["replicas"] >= 3
        assert cluster.status["routable"] == f"{cluster.deployed}/{cluster.deployed}"
        cluster.live(300, until=lambda: cluster.deployed == 1)
        said = [event.partition(":")[0] for event in cluster.events if "Scaled" in event]
        assert set(said) == {"ScaledUp", "ScaledDown"}
        assert said == sorted(said, reverse=True), "up, then down, and not to and fro"

    def test_a_decision_is_written_before_it_is_carried_out(self) -> None:
        """Whoever dies in between is followed by one who goes on from it."""
        cluster = steady()
        cluster.load = lambda _: 20.0
        while cluster.scaling["replicas"] == 1:
            cluster.advance(5)
            cluster.look()
            made = cluster.reconcile()
        assert made.next_look == AT_ONCE_SECONDS
        assert cluster.deployed == 1, "it is written, and no more"
        number = cluster.scaling["replicas"]
        cluster.forget()
        cluster.reconcile()
        assert cluster.deployed == number

    def test_the_next_operator_goes_on_from_what_was_learned(self) -> None:
        cluster = steady(20.0)
        before = cluster.state
        cluster.forget()
        assert cluster.state.replicas == before.replicas
        assert cluster.state.recent and cluster.state.history
        cluster.live(30)
        assert cluster.deployed == cluster.scaling["replicas"] == before.replicas

    def test_the_status_is_not_written_while_nothing_changes(self) -> None:
        cluster = steady()
        cluster.live(2 * WRITE_SECONDS)
        written = len(cluster.told)
        cluster.live(3 * WRITE_SECONDS)
        assert len(cluster.told) == written

    def test_mere_history_is_written_once_a_minute(self) -> None:
        cluster = steady()
        cluster.load = lambda now: 4.0 + now % 3
        cluster.live(30)
        written = len(cluster.told)
        cluster.live(3 * WRITE_SECONDS)
        assert len(cluster.told) - written <= 4

    def test_the_state_is_small_and_can_be_read(self) -> None:
        cluster = steady()
        assert json.loads(cluster.scaling["state"])["history"]
        assert len(cluster.scaling["state"]) < 4000

    def test_bounds_that_change_count_at_once(self) -> None:
        cluster = steady()
        cluster.change(autoscaling={**SCALING, "min": 2})
        cluster.reconcile()
        assert cluster.deployed == 2
        cluster.live(40)
        assert cluster.scaling["replicas"] == 2

    def test_without_autoscaling_nothing_is_told_of_it(self) -> None:
        cluster = steady()
        cluster.service["spec"].pop("autoscaling")
        cluster.seen = None
        cluster.reconcile()
        assert "autoscaling" not in cluster.status
        assert not {each["type"] for each in cluster.status["conditions"]} & {
            "ScalingActive",
            "ObjectiveUnreachable",
        }


class TestRollouts:
    def test_a_rollout_goes_on_while_replicas_are_added_and_none_is_taken_away_meanwhile(
        self,
    ) -> None:
        cluster = steady(20.0)
        before = cluster.deployed
        cluster.disk["models", "next"] = "good"
        cluster.serve("pvc://models/next")
        cluster.live(60, until=lambda: cluster.rollout.get("phase") == "Holding")
        cluster.load = lambda _: 36.0
        cluster.live(20)
        assert cluster.deployed > before
        cluster.load = lambda _: 1.0
        during = cluster.deployed
        cluster.live(300, until=lambda: cluster.rollout["phase"] == "Done")
        assert cluster.contents() == {"good"} and cluster.deployed >= during
        cluster.live(200, until=lambda: cluster.deployed < during)

    def test_a_service_that_grew_is_rolled_out_as_one_of_its_size(self) -> None:
        """With one replica a surge replica is made; with more, one may be out of service."""
        cluster = steady(20.0)
        assert cluster.deployed > 1
        cluster.disk["models", "next"] = "good"
        cluster.serve("pvc://models/next")
        cluster.live(60, until=lambda: cluster.rollout.get("phase") == "Holding")
        assert not cluster.rollout.get("surge")


class TestZero:
    """Where requests go meanwhile: test_activator_moves.py. Here: how it goes with the rest."""

    def asleep(self) -> Scaled:
        """A service whose last replica went since nobody asked."""
        cluster = Scaled(step(4, 0, 40, 9999), ZERO)
        cluster.live(300, until=lambda: cluster.phase == "Away")
        return cluster

    def test_after_silence_the_last_replica_goes_and_the_service_can_still_be_asked(self) -> None:
        cluster = self.asleep()
        assert cluster.phase == "Away" and cluster.now > 100
        assert (cluster.deployed, cluster.replicas("solver-router")) == (0, 0)
        assert cluster.status["routable"] == "0/0"
        ready = cluster.condition("Ready")
        assert (ready["status"], ready["reason"]) == ("True", "ScaledToZero")
        said = [event.partition(":")[0] for event in cluster.events if "Scaled" in event]
        assert said == ["ScaledToZero"]
        assert not any(event.startswith("NotReady") for event in cluster.events)

    def test_the_first_request_brings_a_replica_back(self) -> None:
        cluster = self.asleep()
        cluster.held = 1
        cluster.advance(1)
        cluster.look()
        cluster.reconcile()
        cluster.reconcile()
        assert cluster.deployed == 1 and cluster.replicas("solver-router") == 1
        assert cluster.phase == "Waking"
        assert cluster.condition("Ready")["reason"] == "Waking"
        cluster.load = lambda _: 1.0
        cluster.live(60, until=lambda: cluster.phase == "Serving")
        cluster.held = 0
        assert cluster.status["routable"] == "1/1"
        assert cluster.condition("Ready")["reason"] == "Serving"
        assert any(event.startswith("ScaledFromZero") for event in cluster.events)

    def test_new_weights_that_come_while_the_last_replica_leaves_are_tried_on_it(self) -> None:
        cluster = Scaled(step(4, 0, 40, 9999), ZERO)
        cluster.live(300, until=lambda: cluster.phase == "Leaving")
        cluster.disk["models", "next"] = "good"
        cluster.serve("pvc://models/next")
        cluster.live(30)
        assert cluster.rollout["phase"] != "Done" and cluster.deployed >= 1
        cluster.live(200, until=lambda: cluster.rollout["phase"] == "Done")
        assert cluster.contents() == {"good"}
        cluster.live(200, until=lambda: cluster.phase == "Away")
        assert cluster.rollout["phase"] == "Done" and cluster.deployed == 0

    def test_one_that_was_stopped_holds_no_requests(self) -> None:
        cluster = self.asleep()
        cluster.change(replicas=0)
        cluster.reconcile()
        assert "activation" not in cluster.status
        assert cluster.condition("Ready")["reason"] == "NoReplicas"

    def test_without_an_activator_that_is_ready_it_is_not_ready(self) -> None:
        cluster = self.asleep()
        cluster.activator_works = False
        cluster.reconcile()
        ready = cluster.condition("Ready")
        assert (ready["status"], ready["reason"]) == ("False", "NoActivator")


class TestOtherDrivers:
    """What they read, and how soon. Their objects: test_drivers.py."""

    def test_more_is_told_at_once_and_less_soon(self) -> None:
        cluster = Scaled(lambda _: 4.0, {**SCALING, "driver": "hpa"})
        cluster.live(60)
        assert cluster.scaling["required"] == 1
        cluster.load = lambda _: 36.0
        cluster.live(30, until=lambda: cluster.scaling["required"] > 1)
        assert cluster.scaling["required"] > 1 and cluster.deployed == 1
        cluster.change(replicas=3)
        cluster.live(5)
        assert cluster.deployed == 3, "the number that the HPA wrote"
        cluster.load = lambda _: 1.0
        cluster.live(120, until=lambda: cluster.scaling["required"] == 1)
        assert cluster.scaling["required"] == 1 and cluster.deployed == 3

    def test_keda_may_take_the_last_replica_after_silence_and_brings_one_for_a_request(
        self,
    ) -> None:
        cluster = Scaled(step(4, 0, 40, 9999), {**ZERO, "driver": "keda"})
        cluster.live(200, until=lambda: cluster.scaling.get("required") == 0)
        assert cluster.scaling["required"] == 0 and cluster.deployed == 1
        cluster.change(replicas=0)
        cluster.live(120, until=lambda: cluster.phase == "Away")
        assert cluster.deployed == 0
        cluster.held = 1
        cluster.advance(1)
        cluster.look()
        cluster.reconcile()
        assert cluster.scaling["required"] == 1
        cluster.change(replicas=1)
        cluster.reconcile()
        assert (cluster.deployed, cluster.phase) == (1, "Waking")

    def test_back_at_builtin_a_service_that_keda_took_to_zero_rests_and_wakes(self) -> None:
        cluster = Scaled(step(4, 0, 40, 9999), {**ZERO, "driver": "keda"})
        cluster.live(200, until=lambda: cluster.scaling.get("required") == 0)
        cluster.change(replicas=0)
        cluster.live(120, until=lambda: cluster.phase == "Away")
        cluster.change(autoscaling={**ZERO, "driver": "builtin"})
        cluster.live(60)
        assert (cluster.phase, cluster.deployed, cluster.scaling["replicas"]) == ("Away", 0, 0)
        cluster.held = 1
        cluster.advance(1)
        cluster.look()
        cluster.reconcile()
        cluster.reconcile()
        assert (cluster.deployed, cluster.phase) == (1, "Waking")
        cluster.change(replicas=1)
        cluster.reconcile()
        cluster.change(replicas=0)
        cluster.reconcile()
        assert cluster.condition("ScalingActive")["reason"] == "Stopped"


class TestConditions:
    def active(self, cluster: Scaled) -> tuple[str, str]:
        found = cluster.condition("ScalingActive")
        return found["status"], found["reason"]

    def test_it_is_unknown_until_something_was_measured(self) -> None:
        cluster = Scaled(lambda _: 4.0)
        cluster.reconcile()
        assert self.active(cluster) == ("Unknown", "NotMeasured")
        cluster.live(30)
        assert self.active(cluster) == ("True", "Scaling")

    def test_no_replicas_by_hand_stop_the_service_until_one_is_asked_for(self) -> None:
        cluster = steady(20.0)
        number = cluster.deployed
        cluster.change(replicas=0)
        cluster.reconcile()
        assert cluster.deployed == 0
        assert self.active(cluster) == ("False", "Stopped")
        assert cluster.condition("EnginesReady")["reason"] == "NoReplicas"
        cluster.change(replicas=1)
        cluster.reconcile()
        assert cluster.deployed == number and self.active(cluster)[0] == "True"

    def test_metrics_that_do_not_come_are_told_and_take_nobody_away(self) -> None:
        cluster = steady(20.0)
        number = cluster.deployed
        cluster.unknown = True
        cluster.live(60)
        assert self.active(cluster) == ("False", "MetricsUnknown")
        assert cluster.deployed == number
        assert any(event.startswith("MetricsUnknown") for event in cluster.events)
        cluster.unknown = False
        cluster.live(10)
        assert self.active(cluster) == ("True", "Scaling")

    def test_an_objective_below_the_floor_is_told_with_the_floor(self) -> None:
        cluster = steady()
        assert cluster.seen
        decision = replace(cluster.seen.decision, unreachable="41 ms at best")
        cluster.seen = replace(cluster.seen, decision=decision)
        cluster.reconcile()
        found = cluster.condition("ObjectiveUnreachable")
        assert (found["status"], found["message"]) == ("True", "41 ms at best")
        assert "ObjectiveUnreachable: 41 ms at best" in cluster.events
        assert self.active(cluster) == ("True", "Scaling")


class TestOthers:
    def test_a_number_that_somebody_writes_is_told_and_has_no_effect(self) -> None:
        cluster = steady()
        cluster.change(replicas=4)
        where = Ref("InferenceService", "solver")
        cluster.other = OtherWriter(where, "kubectl (by the subresource scale)", 4)
        cluster.reconcile()
        found = cluster.condition("ScalingActive")
        assert (found["status"], found["reason"]) == ("True", "OthersScale")
        assert "kubectl (by the subresource scale) set the replicas" in found["message"]
        assert "set spec.replicas back to 1" in found["message"]
        assert cluster.deployed == 1
        cluster.live(60)
        assert sum(event.startswith("OthersScale") for event in cluster.events) == 1
        cluster.change(replicas=1)
        cluster.other = None
        cluster.reconcile()
        assert cluster.condition("ScalingActive")["reason"] == "Scaling"

    def test_one_who_scales_the_deployment_is_told_of_for_a_while(self) -> None:
        cluster = steady()
        where = Ref("Deployment", "solver-engine")
        cluster.other = OtherWriter(where, "kube-controller-manager", 5)
        cluster.reconcile()
        cluster.other = None
        cluster.reconcile()
        found = cluster.condition("ScalingActive")
        assert found["reason"] == "OthersScale"
        assert "the operator put them right" in found["message"]
        cluster.now += OTHERS_SECONDS
        cluster.reconcile()
        assert cluster.condition("ScalingActive")["reason"] == "Scaling"

    def test_a_fight_is_not_written_every_time(self) -> None:
        """It goes on in every pass; written is a minute's history, and no more."""
        cluster = steady()
        where = Ref("Deployment", "solver-engine")
        cluster.other = OtherWriter(where, "kube-controller-manager", 5)
        cluster.reconcile()
        written = len(cluster.told)
        cluster.live(45)
        assert len(cluster.told) <= written + 1
