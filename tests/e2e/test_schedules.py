"""Real rollouts between verified checkpoints, each disturbed at a named moment.

A service with two replicas answers users all the time. What holds through every schedule: no router
lists, and nobody is answered by, weights that have not passed the gate in this very rollout; at
least one replica is listed, but for those that the fault itself ends; no request fails, but for
those that such a fault ends; and in the end both replicas serve the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.assay import Assay
from tests.e2e import plays
from tests.e2e.clients import Load, wait_reported
from tests.e2e.operators import wait_operators
from tests.e2e.rollouts import digest_of, make_models, suite_config_map, wait_verdict
from tests.e2e.scene import (
    GOOD,
    MODELS,
    NAME,
    POOR,
    REPLICAS,
    TWIN,
    Role,
    Scene,
    brought_to_rest,
    checkpoints,
    fleet,
    make_poor,
    make_third,
    twin,
)
from tests.e2e.watching import Lookout, Story, seconds_short, unadmitted, unexcused
from tests.kube import Kube, NotYet

LEAST_LISTED = 1
"""Of two replicas, of which a rollout may take one out of service."""
ROUTER_SECONDS = 45
"""Until a router that was killed has its workers again: its container may have to wait for its
turn to be started."""
ENGINE_SECONDS = 150
"""Until an engine that was killed answers again."""


@dataclass(frozen=True)
class Schedule:
    """A rollout, what befalls it, and how it has to end.

    Attributes:
        play: orders it and disturbs it.
        to: the weights that the last rollout of the schedule is to.
        ends: the phase in which that one is over.
        reason: why it failed.
        refused: whether that is held against its weights.
        outage: seconds from a blow to an engine or a router for which requests may fail.
        gap: seconds in which fewer replicas may be listed, since the fault itself took them.
    """

    play: plays.Play
    to: Role = "next"
    ends: str = "Done"
    reason: str = ""
    refused: bool = False
    outage: float = 0
    gap: float = 0

    @property
    def serves(self) -> Role:
        """What is served in the end."""
        return self.to if self.ends == "Done" else "first"


SCHEDULES: Mapping[str, Schedule] = {
    "the operator is killed while files are inspected and again while the gate asks": Schedule(
        plays.operator_killed(("Inspecting", ""), ("Gating", ""))
    ),
    "the operator is killed while the canary loads and again while the last replica does": Schedule(
        plays.operator_killed(("Canary", "Loading"), ("Waving", "Loading"))
    ),
    "the operator is killed in the hold and the router in the waves": Schedule(
        plays.operator_then_router_killed, outage=ROUTER_SECONDS, gap=ROUTER_SECONDS
    ),
    "the operator is killed while weights that failed the gate are taken back": Schedule(
        plays.operator_killed(("Returning", ""), to="poor"),
        to="poor",
        ends="Failed",
        reason="GateFailed",
        refused=True,
    ),
    "the operator dies after each thing that it writes": Schedule(
        plays.operator_dies_after_each_write
    ),
    "the canary's engine is killed in the middle of its load": Schedule(
        plays.engine_killed_while_it_loads("Canary")
    ),
    "the canary's pod is deleted while the gate asks": Schedule(plays.canary_deleted),
    "the last replica's engine is killed in the middle of its load": Schedule(
        plays.engine_killed_while_it_loads("Waving")
    ),
    "the only engine that serves is killed while the gate asks": Schedule(
        plays.bystander_killed, outage=ENGINE_SECONDS, gap=ENGINE_SECONDS
    ),
    "the router is killed and the suite deleted while the gate asks": Schedule(
        plays.router_killed_and_suite_deleted, outage=ROUTER_SECONDS, gap=ROUTER_SECONDS
    ),
    "the suite is deleted before the gate asks": Schedule(
        plays.suite_deleted_before_the_gate, ends="Failed", reason="GateBroken"
    ),
    "the gate's process is killed": Schedule(plays.gate_killed),
    "the API server is silent for half a minute while the canary loads": Schedule(
        plays.api_server_away
    ),
    "other weights are wanted while the gate asks": Schedule(
        plays.wanted_at("Gating", "third"), to="third"
    ),
    "other weights are wanted in the waves": Schedule(
        plays.wanted_at("Waving", "third"), to="third"
    ),
    "the first weights are wanted back while the canary holds": Schedule(
        plays.wanted_at("Holding", "first"), ends="Superseded", reason="Superseded"
    ),
    "two different weights are wanted at once": Schedule(plays.wanted_twice_at_once, to="third"),
    "it is paused while the canary loads and goes on later": Schedule(plays.paused_for_a_while),
    "another service gets new weights at the same time": Schedule(plays.two_services_at_once),
    "a shard became corrupt after it was weighed": Schedule(
        plays.files_changed(plays.CORRUPT),
        to="poor",
        ends="Failed",
        reason="InspectionFailed",
        refused=True,
    ),
    "others' weights lie under the candidate's name": Schedule(
        plays.files_changed(plays.OTHERS),
        to="poor",
        ends="Failed",
        reason="InspectionFailed",
        refused=True,
    ),
    "the storage cannot be read any more when the canary loads": Schedule(
        plays.files_unreadable_in_the_load,
        to="poor",
        ends="Failed",
        reason="LoadFailed",
        refused=True,
    ),
}


@pytest.fixture(scope="module")
def digests(
    assay: Assay, kube: Kube, model: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Of verified checkpoints, by their names."""
    make_models(assay, kube.namespace, tmp_path_factory.mktemp("models") / "log", MODELS)
    make_third(kube)
    make_poor(kube)
    kube.apply(suite_config_map(), *checkpoints())
    for name in (*GOOD, POOR):
        assert wait_verdict(kube, name, "Verified")["status"] == "True"
    return {name: digest_of(kube, name) for name in (*GOOD, POOR)}


@pytest.fixture(scope="module")
def services(kube: Kube, digests: dict[str, str]) -> Iterator[Kube]:
    """The service and its neighbour."""
    kube.apply(fleet(), twin())
    kube.wait_ready(NAME, replicas=REPLICAS)
    kube.wait_ready(TWIN)
    yield kube
    for name in (NAME, TWIN):
        kube.delete("infsvc", name)
    for name in (NAME, TWIN):
        kube.wait_gone(name)


@pytest.fixture
def names(services: Kube) -> dict[Role, str]:
    """Who plays which part. All is in order, whatever a schedule before has left."""
    services.apply(suite_config_map())
    make_poor(services)
    wait_operators(services)
    try:
        first = brought_to_rest(services)
    except NotYet:
        services.delete("infsvc", NAME)
        services.wait_gone(NAME)
        services.apply(fleet())
        services.wait_ready(NAME, replicas=REPLICAS)
        first = brought_to_rest(services)
    after, last = (name for name in (*GOOD, *GOOD)[list(GOOD).index(first) + 1 :][:2])
    return {"first": first, "next": after, "third": last, "poor": POOR}


@pytest.mark.parametrize("sentence", SCHEDULES)
def test_only_what_was_weighed_answers_and_it_comes_to_rest_when(
    services: Kube,
    digests: dict[str, str],
    names: dict[Role, str],
    operator_config: Path,
    sentence: str,
) -> None:
    schedule, began = SCHEDULES[sentence], time.monotonic()
    with (
        Story(services, NAME) as story,
        Lookout(services, NAME) as lookout,
        Load(services, NAME, threads=2, pause=0.2) as load,
    ):
        load.wait_for_answers(4)
        scene = Scene(services, story, names, digests, operator_config)
        first, serves = scene.digest("first"), scene.digest(schedule.serves)
        schedule.play(scene)
        end = scene.end(schedule.to)
        ended = (end.phase, end.served, end.rollout.get("reason", ""))
        assert ended == (schedule.ends, serves, schedule.reason), story.tale()
        services.wait_ready(NAME, replicas=REPLICAS)

        wait_reported(services, NAME, serves)
        load.wait_for_answers(4)
    seconds = time.monotonic() - began
    told = f"{len(lookout.lines)} looks, {load.answers()} answers, {len(load.failures())} failed"
    print(f"{sentence}: {seconds:.0f} s, {told}{story.tale()}")

    refused = {each["version"] for each in end.status.get("refused", ())}
    assert (scene.digest(schedule.to) in refused) is schedule.refused

    answered = [(line["at"] + line["s"], line["version"]) for line in load.lines if line["version"]]
    assert unadmitted(story.told, [*lookout.listed(), *answered]) == []
    assert {first, serves} <= load.versions(), "each answer tells what made it"
    assert seconds_short(lookout.lines, LEAST_LISTED) <= schedule.gap
    assert len(lookout.lines) >= seconds / 4, "it was looked at all the time"
    assert unexcused(load.failures(), scene.struck, schedule.outage) == []
