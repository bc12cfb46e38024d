"""What is done to a rollout under way: each play orders new weights and then strikes."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.e2e.clients import reported
from tests.e2e.nodes import api_server, silence
from tests.e2e.operators import aimed_at_leader, no_operators, own_operator
from tests.e2e.rollouts import SUITE, patch, wait_rollout
from tests.e2e.scene import GOOD, POOR_FOLDER, TWIN, Role, Scene, asking, pod_at

OUTAGE_SECONDS = 30
PAUSE_SECONDS = 4
LOADING_SECONDS = 0.1
"""Into a load, of an engine that is slowed down."""
FEWEST_DEATHS = 8
FILE = f"{POOR_FOLDER}/model.safetensors"
CORRUPT = f"printf spoilt.. | dd of={FILE} bs=1 conv=notrunc seek=$(($(stat -c %s {FILE}) - 8))"
"""A few bytes of a weight."""
OTHERS = f"cp {GOOD['two']}/model.safetensors {FILE}"
"""Whole and good, and not what was weighed under that name."""

Play = Callable[[Scene], None]

# --- What befalls the operator --------------------------------------------------------------------


def operator_killed(*moments: tuple[str, str], to: Role = "next") -> Play:
    """With SIGKILL, at one moment after the other; the other replica takes over each time."""

    def play(scene: Scene) -> None:
        for number, moment in enumerate(moments):
            kill = aimed_at_leader(scene.kube)
            if number == 0:
                scene.order(to)
            scene.at(*moment)
            kill()

    return play


def operator_then_router_killed(scene: Scene) -> None:
    kill, router = aimed_at_leader(scene.kube), scene.router()
    scene.order("next")
    scene.at("Holding")
    kill()
    scene.at("Waving")
    scene.strike(router)


def operator_dies_after_each_write(scene: Scene) -> None:
    """One operator after the other, each killed as soon as it has written where the rollout is."""
    deaths = 0
    with no_operators(scene.kube):
        scene.order("next")
        while not (deaths and scene.latest.is_over):
            with own_operator(scene.kube, scene.config):
                scene.until_changed()
            deaths += 1
    assert deaths >= FEWEST_DEATHS


# --- What befalls engines and routers -------------------------------------------------------------


def engine_killed_while_it_loads(phase: str) -> Play:
    """It is slowed down before, so that it is hit in the middle of a load."""

    def play(scene: Scene) -> None:
        scene.order("next")
        engine = scene.engine(pod_at(scene.at(phase, "Out"), "Out"))
        engine.slow_down()
        scene.at(phase, "Loading")
        time.sleep(LOADING_SECONDS)
        engine.send("KILL")

    return play


def bystander_killed(scene: Scene) -> None:
    scene.order("next")
    scene.at_gate()
    scene.strike(scene.bystander())


def canary_deleted(scene: Scene) -> None:
    scene.order("next")
    scene.at_gate()
    scene.kube.delete("pod", scene.latest.rollout["canary"]["pod"])


def router_killed_and_suite_deleted(scene: Scene) -> None:
    router = scene.router()
    scene.order("next")
    scene.at_gate()
    scene.kube.delete("configmap", SUITE)
    scene.strike(router)


# --- What befalls the gate and the API server -----------------------------------------------------


def gate_killed(scene: Scene) -> None:
    scene.order("next")
    scene.gate().send("KILL")


def suite_deleted_before_the_gate(scene: Scene) -> None:
    scene.order("next")
    scene.at("Canary")
    scene.kube.delete("configmap", SUITE)


def api_server_away(scene: Scene) -> None:
    server = api_server(scene.kube.cluster)
    scene.order("next")
    scene.at("Canary", "Loading")
    silence(server, OUTAGE_SECONDS)


# --- What users do meanwhile ----------------------------------------------------------------------


def wanted_at(phase: str, role: Role) -> Play:
    """Other weights are wanted in mid-rollout."""

    def play(scene: Scene) -> None:
        scene.order("next")
        scene.at(phase)
        scene.order(role)

    return play


def wanted_twice_at_once(scene: Scene) -> None:
    scene.order("next")
    scene.order("third")


def paused_for_a_while(scene: Scene) -> None:
    scene.order("next")
    scene.at("Canary", "Loading")
    scene.pause(True)
    stands = scene.until(lambda told: told.rollout.get("paused"))
    time.sleep(PAUSE_SECONDS)
    assert scene.latest.phase == stands.phase
    scene.pause(False)


def two_services_at_once(scene: Scene) -> None:
    served = ((scene.kube.get("infsvc", TWIN) or {})["status"])["served"]["name"]
    other = next(name for name in GOOD if name != served)
    version = scene.digests[other]
    scene.order("next")
    patch(scene.kube, TWIN, asking(other, version))
    wait_rollout(scene.kube, TWIN, "Done", version)
    assert reported(scene.kube, TWIN) == {version}


# --- What befalls the weights' files --------------------------------------------------------------


def files_changed(script: str) -> Play:
    """After they were weighed, and before the rollout."""

    def play(scene: Scene) -> None:
        scene.models.run(script)
        scene.order("poor")

    return play


def files_unreadable_in_the_load(scene: Scene) -> None:
    scene.order("poor")
    scene.at("Canary", "Out")
    scene.models.run(f"chmod 000 {POOR_FOLDER}")
