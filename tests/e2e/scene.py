"""Where fault schedules take place: a service with two replicas, weights for it, a neighbour."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from assay_operator.inference.jobs import GATE
from assay_operator.inference.results import VERIFIER
from assay_operator.inference.rollout_words import RETRY_ANNOTATION
from tests.e2e.clients import Processes, engines, processes, routers
from tests.e2e.nodes import Folder, folder_of
from tests.e2e.rollouts import ROLLOUT, checkpoint, patch
from tests.e2e.watching import Story, Told
from tests.kube import Json, Kube, NotYet, infsvc, wait_for

NAME, TWIN, REPLICAS = "fleet", "fleet-twin", 2
GOOD = {"one": "tiny", "two": "tiny-next", "three": "tiny-third"}
"""Checkpoints of which one is as good as the other, and their folders."""
POOR, POOR_FOLDER, UNTRAINED = "poor", "tiny-poor", "tiny-untrained"
"""One that knows nothing, in a folder that may be spoilt: a copy of another."""
MODELS = {GOOD["two"]: ("--seed", "11"), UNTRAINED: ("--steps", "0")}
"""Those that are trained, or left untrained; the others are made of these."""
MOMENT_SECONDS = 150
END_SECONDS = 300
REST_SECONDS = 150

Role = Literal["first", "next", "third", "poor"]
"""first: what is served when a schedule begins; next and third: as good."""


def checkpoints() -> list[Json]:
    """All that the schedules go between."""
    good = [checkpoint(name, folder, 0.5) for name, folder in GOOD.items()]
    # Nothing is asked of it, so that it is the gate that has to stop it.
    return [*good, checkpoint(POOR, POOR_FOLDER, 0.0)]


def fleet() -> Json:
    """The service that everything happens to."""
    rollout = {**ROLLOUT, "canary": {"hold": "2s"}}
    source = {"source": f"checkpoint://{next(iter(GOOD))}"}
    return infsvc(NAME, {"replicas": REPLICAS, "model": source, "rollout": rollout})


def twin() -> Json:
    """A neighbour, which is content with new weights that are whole."""
    rollout = {"canary": {"hold": "1s"}, "maxUnavailable": 1}
    return infsvc(TWIN, {"model": fleet()["spec"]["model"], "rollout": rollout})


def asking(name: str, digest: str) -> Json:
    """The change that asks for a checkpoint: again where it failed in an earlier schedule."""
    return {
        "metadata": {"annotations": {RETRY_ANNOTATION: digest}},
        "spec": {"model": {"source": f"checkpoint://{name}"}},
    }


def make_third(kube: Kube) -> None:
    """Makes a third good model of the second: two of its numbers are changed a little."""
    second, third = GOOD["two"], GOOD["three"]
    file = f"{third}/model.safetensors"
    script = f"""rm -rf {third}; cp -r {second} {third}
    for place in 2 4; do
      printf '\\00'$place | dd of={file} bs=1 conv=notrunc seek=$(($(stat -c %s {file}) - place))
    done"""
    folder_of(kube, "models").run(script)


def make_poor(kube: Kube) -> None:
    """Puts the poor weights into their folder, as they were weighed."""
    script = f"rm -rf {POOR_FOLDER}; cp -r {UNTRAINED} {POOR_FOLDER}"
    folder_of(kube, "models").run(script)


def brought_to_rest(kube: Kube) -> str:
    """The name of the weights that all replicas serve, once nothing else is wanted of them.

    Raises:
        NotYet: they do not come to rest.
    """
    status = (kube.get("infsvc", NAME) or {}).get("status", {})
    served = str((status.get("served") or {}).get("name", ""))
    if not served:
        raise NotYet("nothing is served")
    nothing = {
        "metadata": {"annotations": {RETRY_ANNOTATION: None}},
        "spec": {"model": {"source": f"checkpoint://{served}"}, "rollout": {"paused": False}},
    }
    patch(kube, NAME, nothing)

    def rests() -> bool:
        told = Told(0, (kube.get("infsvc", NAME) or {}).get("status", {}))
        forgotten = not told.rollout.get("retried")
        return told.is_over and forgotten and told.status["served"]["name"] == served

    wait_for("a rollout that is over", rests, REST_SECONDS)
    kube.wait_ready(NAME, REST_SECONDS, REPLICAS)
    return served


@dataclass
class Scene:
    """One schedule under way.

    Attributes:
        kube: where it takes place.
        story: every status of the service since it began.
        names: of the checkpoints, by their role.
        digests: of the checkpoints, by their name.
        config: of an operator that runs in a shell.
        cursor: the status that the last look ended at.
        struck: when a fault hit an engine or a router that was in use.
    """

    kube: Kube
    story: Story
    names: Mapping[Role, str]
    digests: Mapping[str, str]
    config: Path
    cursor: int = 0
    struck: list[float] = field(default_factory=list)

    def digest(self, role: Role) -> str:
        return self.digests[self.names[role]]

    @property
    def latest(self) -> Told:
        """The service's status now."""
        return self.story.told[-1]

    @property
    def models(self) -> Folder:
        """Where all weights lie."""
        return folder_of(self.kube, "models")

    # --- What users do ------------------------------------------------------------------------

    def order(self, role: Role) -> None:
        """Asks for other weights."""
        patch(self.kube, NAME, asking(self.names[role], self.digest(role)))

    def pause(self, paused: bool) -> None:
        patch(self.kube, NAME, {"spec": {"rollout": {"paused": paused}}})

    # --- What is waited for -------------------------------------------------------------------

    def until(self, is_it: Callable[[Told], object], seconds: float = MOMENT_SECONDS) -> Told:
        """The next status that is what is waited for."""
        self.cursor = self.story.wait(lambda told: bool(is_it(told)), self.cursor, seconds)
        return self.story.told[self.cursor]

    def until_changed(self) -> None:
        """Until status.rollout is written."""
        self.cursor = len(self.story.told) - 1
        known = self.story.told[self.cursor].rollout
        self.until(lambda told: told.rollout != known)

    def at(self, phase: str, stage: str = "") -> Json:
        """status.rollout as soon as it is in a phase, with a replica at a stage."""
        return self.until(lambda told: told.is_at(phase, stage)).rollout

    def at_gate(self) -> str:
        """The pod that asks, once it runs."""
        self.at("Gating")
        selector = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component={GATE}"

        def running() -> str | None:
            for pod in self.kube.list("pods", selector):
                going = pod["metadata"].get("deletionTimestamp")
                if pod["status"].get("phase") == "Running" and not going:
                    return str(pod["metadata"]["name"])
            return None

        return wait_for("the gate's pod", running, MOMENT_SECONDS, every=0.3)

    def end(self, to: Role) -> Told:
        """The status in which a rollout of this schedule to some weights is over."""
        before, version = self.story.told[0].rollout.get("id"), self.digest(to)

        def is_it(told: Told) -> bool:
            rollout = told.rollout
            mine = rollout.get("id") != before and told.is_over
            return mine and bool(rollout["to"]["version"] == version)

        return self.until(is_it, END_SECONDS)

    # --- What is hit --------------------------------------------------------------------------

    def engine(self, pod: str) -> Processes:
        return processes(self.kube, pod, "engine")

    def bystander(self) -> Processes:
        """The engine that is not the canary's."""
        canary = self.latest.rollout["canary"]["pod"]
        names = (pod["metadata"]["name"] for pod in engines(self.kube, NAME))
        return self.engine(next(name for name in names if name != canary))

    def router(self) -> Processes:
        (pod,) = routers(self.kube, NAME)
        return processes(self.kube, pod["metadata"]["name"], "router")

    def gate(self) -> Processes:
        """The process that asks, once it runs."""
        return processes(self.kube, self.at_gate(), VERIFIER)

    def strike(self, victim: Processes) -> None:
        """SIGKILL to what users' requests may be in."""
        self.struck.append(time.time())
        victim.send("KILL")


def pod_at(rollout: Json, stage: str) -> str:
    """The pod that the rollout has at a stage."""
    return next(str(each["pod"]) for each in rollout["replicas"] if each["stage"] == stage)
