"""Where a service's requests go, and in which order its last replicas leave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_operator.inference.activation import (
    DIVERTED_SECONDS,
    LEAVING_SECONDS,
    Before,
    Move,
    Phase,
    Scene,
    last_wake,
    read,
    step,
)
from tests.unit.worlds import NOW

SERVING = Scene(NOW, enabled=True, wanted=1, engines=1, routable=1, routers=1, activators=1)
LONG_AGO = NOW - timedelta(hours=1)
JUST_NOW = NOW - timedelta(seconds=1)
DIVERTED = NOW - timedelta(seconds=DIVERTED_SECONDS)


def before(phase: Phase, since: object = LONG_AGO) -> Before:
    return Before(phase, since)  # type: ignore[arg-type]


def told(move: Move) -> tuple[str, str, int, bool]:
    return move.phase, move.service, move.engines, move.routers


# --- with replicas --------------------------------------------------------------------------


def test_with_a_routable_replica_requests_go_straight_to_the_routers() -> None:
    assert told(step(SERVING)) == ("Serving", "router", 1, True)
    assert step(SERVING).activator, "it stands by"


@pytest.mark.parametrize("phase", ["Serving", "Leaving", "Closing", "Away", "Waking"])
def test_while_none_is_routable_requests_wait(phase: Phase) -> None:
    scene = replace(SERVING, routable=0, before=before(phase))
    assert told(step(scene)) == ("Waking", "activator", 1, True)


def test_a_service_that_is_new_takes_requests_before_its_first_replica() -> None:
    scene = Scene(NOW, enabled=True, wanted=1, activators=1)
    assert told(step(scene)) == ("Waking", "activator", 1, True)


def test_where_nobody_could_take_them_requests_stay_with_the_routers() -> None:
    """The routers may be well, and only the operator did not reach them."""
    assert step(replace(SERVING, routable=0, activators=0)).service == "router"


def test_a_service_that_always_has_a_replica_has_no_activator() -> None:
    for routable in (0, 1):
        move = step(replace(SERVING, enabled=False, routable=routable))
        assert told(move) == ("Serving", "router", 1, True)
        assert not move.activator
        assert move.as_status() is None


def test_one_that_is_stopped_stops_at_once() -> None:
    scene = replace(SERVING, enabled=False, wanted=0)
    assert told(step(scene)) == ("Serving", "router", 0, False)


def test_an_activator_is_kept_until_requests_go_elsewhere() -> None:
    """min was raised from 0 while requests waited."""
    scene = replace(SERVING, enabled=False, routable=0, before=before("Away"))
    assert told(step(scene)) == ("Waking", "activator", 1, True)
    assert step(scene).activator
    assert not step(replace(scene, routable=1, before=before("Waking"))).activator


# --- the last replica leaves ----------------------------------------------------------------


def test_first_the_service_turns_to_the_activator() -> None:
    move = step(replace(SERVING, wanted=0, quiet=True))
    assert told(move) == ("Leaving", "activator", 1, True)
    assert move.since == NOW


def test_then_what_still_comes_by_older_ways_is_waited_for() -> None:
    leaving = replace(SERVING, wanted=0, before=before("Leaving", JUST_NOW), quiet=True)
    assert step(leaving).phase == "Leaving", "not every node has heard of it yet"
    heard = replace(leaving, before=before("Leaving", DIVERTED))
    assert step(heard).phase == "Closing"
    for quiet in (False, None):
        assert step(replace(heard, quiet=quiet)).phase == "Leaving"
    forever = before("Leaving", NOW - timedelta(seconds=LEAVING_SECONDS))
    assert step(replace(heard, quiet=None, before=forever)).phase == "Closing"


def test_then_the_routers_go_and_the_engines_last() -> None:
    """A client that keeps its connection to a router finds an engine behind it to the end."""
    closing = replace(SERVING, wanted=0, before=before("Closing", JUST_NOW), routable=0)
    assert told(step(closing)) == ("Closing", "activator", 1, False)
    assert told(step(replace(closing, routers=0))) == ("Away", "activator", 0, False)


def test_a_router_that_never_goes_holds_up_nothing_for_ever() -> None:
    stuck = before("Closing", NOW - timedelta(seconds=LEAVING_SECONDS))
    assert step(replace(SERVING, wanted=0, before=stuck)).phase == "Away"


def test_a_clock_that_is_set_back_holds_up_nothing_until_it_has_caught_up() -> None:
    """As if the phase had lasted for long enough: nobody knows for how long it has."""
    ahead = NOW + timedelta(hours=2)
    leaving = replace(SERVING, wanted=0, quiet=False, before=before("Leaving", ahead))
    assert step(leaving).phase == "Closing"
    assert step(replace(leaving, before=before("Closing", ahead))).phase == "Away"


@pytest.mark.parametrize("phase", ["Leaving", "Closing"])
def test_a_request_that_comes_meanwhile_turns_it_back(phase: Phase) -> None:
    scene = replace(SERVING, before=before(phase, JUST_NOW))
    assert told(step(scene)) == ("Serving", "router", 1, True)


@pytest.mark.parametrize("phase", ["Serving", "Leaving", "Closing", "Waking"])
def test_a_loading_replica_is_never_scaled_away(phase: Phase) -> None:
    scene = replace(SERVING, wanted=0, loading=1, routable=0, before=before(phase))
    assert told(step(scene)) == ("Waking", "activator", 1, True)


def test_weights_that_are_being_changed_are_not_interrupted() -> None:
    assert told(step(replace(SERVING, wanted=0, rollout=True))) == ("Serving", "router", 1, True)


def test_without_an_activator_that_is_ready_the_replicas_stay() -> None:
    assert told(step(replace(SERVING, wanted=0, activators=0))) == ("Serving", "router", 1, True)


def test_at_zero_the_service_points_to_the_activator_even_while_that_restarts() -> None:
    """It may be back sooner than the operator."""
    away = Scene(NOW, enabled=True, wanted=0, before=before("Away"))
    assert told(step(away)) == ("Away", "activator", 0, False)


# --- what is kept and told ------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["Serving", "Leaving", "Closing", "Away", "Waking"])
def test_the_status_is_all_that_the_next_operator_needs(phase: Phase) -> None:
    known = Before(phase, LONG_AGO, 31.2)
    move = step(replace(SERVING, before=known))
    status = move.as_status()
    assert status is not None
    assert read(status) == Before(move.phase, move.since, 31.2)
    assert read(None) == read({"phase": "Elsewhere"}) == Before()


def test_the_first_requests_wait_is_told_and_kept() -> None:
    heard = step(replace(SERVING, wait_s=12.34))
    assert (heard.as_status() or {})["firstRequestWaitSeconds"] == 12.3
    later = step(replace(SERVING, before=Before("Serving", LONG_AGO, 12.3)))
    assert (later.as_status() or {})["firstRequestWaitSeconds"] == 12.3, "after its restart"


def test_a_wake_is_told_once_with_its_wait() -> None:
    waking = replace(SERVING, wait_s=31.24, before=before("Waking"))
    (event,) = step(waking).events
    assert (event.reason, "31.2 s" in event.message) == ("Woken", True)
    assert step(replace(waking, before=Before("Serving", LONG_AGO, 31.2))).events == ()


def test_a_wake_is_told_whoever_finds_the_replica_first() -> None:
    """The activator looks for itself: it may let requests through before we know, or after."""
    earlier = step(replace(SERVING, wait_s=31.24, routable=0, before=before("Waking")))
    assert (earlier.phase, earlier.events, earlier.wait_s) == ("Waking", (), None)
    after = Before(earlier.phase, earlier.since, earlier.wait_s)
    assert [event.reason for event in step(replace(SERVING, wait_s=31.24, before=after)).events]
    first = step(replace(SERVING, before=before("Waking")))
    assert (first.phase, first.events) == ("Serving", ())
    later = step(replace(SERVING, wait_s=31.24, before=before("Serving")))
    assert [event.reason for event in later.events] == ["Woken"]


def test_of_several_activators_the_longest_wait_counts() -> None:
    """While one takes the place of another, both answer; or neither, or only the new one."""
    assert last_wake([{"lastWakeSeconds": 3.0}, {"lastWakeSeconds": 4.0}, None]) == 4.0
    assert last_wake([{"lastWakeSeconds": None}, None]) is None
    assert last_wake([]) is None


# --- any course of events -------------------------------------------------------------------

EVENTS = ("wants", "wants none", "loaded", "crashed", "routers gone", "quiet", "busy", "restart")


@dataclass
class Course:
    """A service as a cluster would have it, moved on by `step` every second.

    `diverted` is for how long the Service has pointed to the activator.
    """

    now: object = NOW
    wanted: int = 1
    engines: int = 0
    loaded: bool = False
    routers: int = 0
    activators: int = 1
    quiet: bool | None = None
    diverted: float = 0.0
    status: object = None
    moves: list[Move] = field(default_factory=list)

    def scene(self) -> Scene:
        return Scene(
            now=self.now,  # type: ignore[arg-type]
            enabled=True,
            wanted=self.wanted,
            engines=self.engines,
            loading=self.engines if not self.loaded else 0,
            routable=self.engines if self.loaded and self.routers else 0,
            routers=self.routers,
            activators=self.activators,
            quiet=self.quiet,
            before=read(self.status),  # type: ignore[arg-type]
        )

    def tick(self) -> None:
        """A second passes, with a pass of the operator at its end."""
        self.now += timedelta(seconds=1)  # type: ignore[operator]
        scene = self.scene()
        move = step(scene)
        self.check(scene, move)
        self.diverted = self.diverted + 1 if move.service == "activator" else 0.0
        if move.engines != self.engines:
            self.loaded = self.loaded and 0 < move.engines <= self.engines
            self.engines = move.engines
        # Routers come at once, and take their time to go.
        self.routers = max(self.routers, int(move.routers))
        self.status = move.as_status()
        self.moves.append(move)

    def check(self, scene: Scene, move: Move) -> None:
        if scene.loading:
            assert move.engines >= min(scene.engines, 1), "a loading pod is never scaled away"
        if scene.wanted:
            assert move.engines == scene.wanted and move.routers
        if move.service == "router" and scene.activators:
            assert scene.routable, "requests go where somebody takes them"
        if move.engines == 0 and scene.engines:
            assert move.service == "activator" and self.diverted >= DIVERTED_SECONDS
            gone = scene.routers == 0
            assert gone or self.diverted >= LEAVING_SECONDS, "engines go after their routers"
        if not move.routers and scene.before.phase not in {"Closing", "Away"} and scene.engines:
            assert self.diverted >= DIVERTED_SECONDS
            assert scene.quiet or self.diverted >= LEAVING_SECONDS

    def happen(self, event: str, number: int) -> None:
        match event:
            case "wants":
                self.wanted = 1 + number % 2
            case "wants none":
                self.wanted = 0
            case "loaded":
                self.loaded = bool(self.engines)
            case "crashed":
                self.loaded = False
            case "routers gone":
                self.routers = 0 if self.moves and not self.moves[-1].routers else self.routers
            case "quiet" | "busy":
                self.quiet = event == "quiet"
            case "restart":
                self.activators = number % 2
        for _ in range(number):
            self.tick()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=40))
def test_whatever_happens_nobody_is_sent_where_nobody_is(events: list[tuple[str, int]]) -> None:
    course = Course()
    for event, number in events:
        course.happen(event, number)
    # And from anywhere it comes to rest: with replicas, and without.
    course.activators = 1
    for event in ("wants", "loaded", "quiet"):
        course.happen(event, 2)
    assert course.moves[-1].phase == "Serving"
    for event in ("wants none", "routers gone", "routers gone"):
        course.happen(event, 9)
    assert told(course.moves[-1]) == ("Away", "activator", 0, False)
