"""Scale to zero: where a service's requests go, and when its last replicas may leave. Pure.

A service that may have no replica (`autoscaling.min: 0`) has an activator: a small pod that holds
requests until a replica is routable. It is in the path only while the Service points to it:

    Serving   the Service points to the routers
    Leaving   no replica is wanted: the Service points to the activator, and what still comes over
              older connections or runs is served to its end
    Closing   the routers go, with the engines still behind them
    Away      the engines go, then none is there
    Waking    replicas are wanted and none is routable yet

Leaving and Closing turn back at once where replicas are wanted again, so a request that arrives
while the last replica is about to go finds that replica, or waits at the activator for the next.

At zero nobody has to look every second, which a thousand services would not bear: the shell keeps
one long question open at each activator (`Activators.attend`), whose answer wakes the actor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from assay_operator.conditions import stamp
from assay_operator.inference.observation import parse_time
from assay_operator.plan import Event, Json

Phase = Literal["Serving", "Leaving", "Closing", "Away", "Waking"]
Component = Literal["router", "activator"]

DIVERTED_SECONDS = 5.0
"""From the Service's change until every node's kube-proxy sends new connections elsewhere, with
room. Nothing tells when that is so."""
LEAVING_SECONDS = 180.0
"""So long it is waited for routers and engines that are not at rest, or do not say so. A pod that
is deleted after that still runs its requests to their end."""
LOOK_SECONDS = 1.0
AT_REST_SECONDS = 30.0
_LOADING = "No replica is wanted, but one is loading, which is not broken off."
_CHANGING = "No replica is wanted, but weights are being changed."
_NO_ACTIVATOR = "No replica is wanted, but no activator is ready to take the requests."


def last_wake(answers: Iterable[Json | None]) -> float | None:
    """How long the first request had waited when requests were last let through after a wait.

    Args:
        answers: what each of a service's activators says, as `Activators.ask` has it.
    """
    waits = [answer["lastWakeSeconds"] for answer in answers if answer]
    return max((wait for wait in waits if wait is not None), default=None)


@dataclass(frozen=True)
class Before:
    """What the last pass left: the phase, since when, and how long the last first request waited.

    `since` is None before the first pass.
    """

    phase: Phase = "Serving"
    since: datetime | None = None
    wait_s: float | None = None


@dataclass(frozen=True)
class Scene:
    """What decides where requests go.

    Attributes:
        now: the time, with a zone.
        enabled: whether the spec allows no replica (`autoscaling.min` is 0).
        wanted: replicas that are asked for, by whoever decides that.
        engines: engine pods that are not on their way out, those of a rollout's surge left out.
        loading: engine pods that start and have not failed: they are never scaled away.
        rollout: whether weights are being changed.
        routable: replicas that are routable.
        routers: router pods that exist, those on their way out included.
        activators: activator pods that are ready.
        quiet: whether routers and engines had nothing under way in this pass and got nothing since
            the one before; None where one of them does not say.
        wait_s: how long the first request waited, as the activators say; None where they do not.
        before: what the last pass left.
    """

    now: datetime
    enabled: bool
    wanted: int
    engines: int = 0
    loading: int = 0
    rollout: bool = False
    routable: int = 0
    routers: int = 0
    activators: int = 0
    quiet: bool | None = None
    wait_s: float | None = None
    before: Before = Before()


@dataclass(frozen=True)
class Move:
    """What follows.

    Attributes:
        phase: see above.
        since: when it began.
        engines: replicas of the engines' Deployment, a rollout's surge left out.
        routers: whether routers shall run.
        service: what the Service points to.
        activator: whether the activator shall run.
        message: what is going on, for people.
        wait_s: how long the first request of the last wake waited, to a tenth of a second.
        events: what just happened.
        look: seconds until it is to be looked at again.
    """

    phase: Phase
    since: datetime
    engines: int
    routers: bool
    service: Component
    activator: bool
    message: str
    wait_s: float | None
    events: tuple[Event, ...]
    look: float

    def as_status(self) -> Json | None:
        """`status.activation`: phase, since, message and firstRequestWaitSeconds; None where the
        service has no activator."""
        if not self.activator:
            return None
        told: Json = {
            "phase": self.phase,
            "since": stamp(self.since),
            "message": self.message,
        }
        if self.wait_s is not None:
            told["firstRequestWaitSeconds"] = self.wait_s
        return told


def read(status: Json | None) -> Before:
    """What `Move.as_status` wrote; Serving where there is nothing."""
    data = status or {}
    if data.get("phase") not in get_args(Phase):
        return Before()
    return Before(data["phase"], parse_time(data.get("since")), data.get("firstRequestWaitSeconds"))


def step(scene: Scene) -> Move:
    """Where requests go from now on, and what may go or has to stay."""
    if scene.wanted > 0:
        return _up(scene, scene.wanted, "")
    if not scene.enabled:
        return _move(scene, "Serving", 0, "No replica is wanted.", routers=False)
    if scene.engines == 0 or scene.before.phase == "Away":
        return _away(scene)
    stays = _stays(scene)
    return _up(scene, scene.engines, stays) if stays else _leave(scene)


def _stays(scene: Scene) -> str:
    """Why replicas stay that nobody wants; empty where nothing speaks against it."""
    if scene.loading:
        return _LOADING
    if scene.rollout:
        return _CHANGING
    under_way = scene.before.phase in {"Leaving", "Closing"}
    return "" if under_way or scene.activators else _NO_ACTIVATOR


def _up(scene: Scene, engines: int, why: str) -> Move:
    """Replicas are to be there; without one that is routable, requests wait."""
    apart = scene.before.phase != "Serving"
    if scene.routable or not (scene.enabled or apart):
        return _move(scene, "Serving", engines, why or "Requests go straight to the routers.")
    # A look that merely did not reach the routers takes nobody away from them, unless there is
    # somebody else to take the requests.
    service: Component = "activator" if apart or scene.activators else "router"
    told = why or "The activator holds requests until a replica is routable."
    return _move(scene, "Waking", engines, told, service=service)


def _leave(scene: Scene) -> Move:
    """First the Service turns, then the routers go, and last the engines."""
    before, seconds = scene.before, _seconds(scene)
    if before.phase == "Closing":
        if scene.routers == 0 or seconds >= LEAVING_SECONDS:
            return _away(scene)
    elif before.phase != "Leaving" or not (
        seconds >= LEAVING_SECONDS or (seconds >= DIVERTED_SECONDS and scene.quiet)
    ):
        told = "No replica is wanted. What still comes or runs is served to its end."
        return _move(scene, "Leaving", scene.engines, told, service="activator")
    told = "No replica is wanted. The routers go, then the engines."
    return _move(scene, "Closing", scene.engines, told, routers=False, service="activator")


def _away(scene: Scene) -> Move:
    told = "No replica runs. The activator holds the next request until one does."
    return _move(scene, "Away", 0, told, routers=False, service="activator")


def _move(
    scene: Scene,
    phase: Phase,
    engines: int,
    message: str,
    *,
    routers: bool = True,
    service: Component = "router",
) -> Move:
    before = scene.before
    same = before.phase == phase and before.since is not None
    wait = before.wait_s
    if phase == "Serving" and scene.wait_s is not None:
        # The activator may let requests through some looks before or after we find a replica
        # routable: in either case its word counts from then on, and is told once.
        wait = round(scene.wait_s, 1)
    woken = wait != before.wait_s
    told = f"A replica is routable; the first request waited {wait} s for it."
    return Move(
        phase=phase,
        since=before.since if same and before.since else scene.now,
        engines=engines,
        routers=routers,
        service=service,
        activator=scene.enabled or service == "activator",
        message=message,
        wait_s=wait,
        events=(Event("Woken", told),) if woken else (),
        look=AT_REST_SECONDS if phase in {"Serving", "Away"} else LOOK_SECONDS,
    )


def _seconds(scene: Scene) -> float:
    """For how long the phase has lasted; for its longest where a clock that was set back says that
    it has not begun."""
    since = scene.before.since
    span = (scene.now - since).total_seconds() if since else 0.0
    return span if span >= 0 else LEAVING_SECONDS
