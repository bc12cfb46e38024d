"""What a service shall serve: by its source, a pin, a job that it follows, or a user's word."""

from __future__ import annotations

from typing import Any

import pytest

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.memory import recall
from assay_operator.inference.objects import engine_template, parse_source
from assay_operator.inference.observation import Observation
from assay_operator.inference.places import (
    ANY,
    layout_for,
    mounts,
    overridden,
    provides,
    really,
)
from assay_operator.inference.profiles import resolve
from assay_operator.inference.rollout_world import Target
from assay_operator.inference.targets import ROLLBACK_ANNOTATION, Choice, choose
from assay_operator.plan import Ref
from tests.unit.plan_fleet import BASE, GATED, SUITE, checkpoint, digest, job
from tests.unit.worlds import IDENTITY

Json = dict[str, Any]
VERSION = parse_source(BASE).version
SOURCE = Target(VERSION, "/models/tiny", BASE, "pvc/models")
FOLLOW: Json = {"source": BASE, "follow": {"job": "solver-rl"}}
PIN: Json = {"source": "checkpoint://solver-rl-1-20"}
ACROSS: Json = {
    "source": BASE,
    "follow": {"job": "solver-rl", "namespace": "lab", "claim": "mirror"},
}
CHECKPOINTS: Json = {"/models": "pvc/models", "/checkpoints": "pvc/ckpt"}


def folder(step: int) -> str:
    return f"/checkpoints/solver-rl/checkpoints/step-{step:06d}"


def weights(content: str, step: int, volume: str = "pvc/ckpt") -> Target:
    return Target(digest(content), folder(step), f"solver-rl-1-{step}", volume)


def plain(target: Target) -> Json:
    return {name: getattr(target, name) for name in ("version", "path", "name", "volume")}


def status(
    served: Target = SOURCE,
    to: Target | None = None,
    *,
    phase: str = "Done",
    **more: Any,
) -> Json:
    """The status of a service that serves `served`, with its rollout, last or under way."""
    time = "2026-11-24T11:00:00Z"
    state = {
        "id": "1a2b3c4d",
        "phase": phase,
        "strategy": "InPlace",
        "from": plain(served),
        "to": plain(to or served),
        "startedAt": time,
        "since": time,
        "template": VERSION,
        "home": VERSION,
        "progress": time,
        "notes": {"layouts": {VERSION: CHECKPOINTS}, **more.pop("notes", {})},
        **more.pop("state", {}),
    }
    return {"served": plain(served), "rollout": state, **more}


def chosen(model: Json, had: Json | None = None, **world: Any) -> Choice:
    """What is chosen for a spec, a status and a world."""
    service: Json = {
        "metadata": {
            "name": "solver",
            "namespace": "default",
            "annotations": world.pop("annotations", {}),
        },
        "status": had or {},
    }
    spec = {"model": model, "rollout": world.pop("rollout", {})}
    return choose(
        Observation(service, **world),
        InferenceServiceSpec.model_validate(spec),
        recall(had or {}),
    )


def reason(choice: Choice) -> tuple[bool | None, str]:
    return choice.verdict.holds, choice.verdict.reason


# --- the spec's own source --------------------------------------------------------------------


def test_a_source_names_a_place_and_its_volume() -> None:
    made = chosen({"source": BASE})
    assert made.target == SOURCE and made.others == {"/models": "pvc/models"}
    assert reason(made) == (True, "Source")


def test_an_image_is_a_volume_too() -> None:
    made = chosen({"source": "oci://registry.example/m/x:v1"})
    assert made.target and made.target.volume == "oci/registry.example/m/x:v1"
    assert made.target.path == "/models"


def test_a_claim_that_pods_see_elsewhere_is_read_there() -> None:
    """The volume with the checkpoints is in place already: no pod has to be made anew for it."""
    made = chosen({"source": "pvc://ckpt/other"}, status())
    assert made.target and made.target.path == "/checkpoints/other"


# --- a pin ------------------------------------------------------------------------------------


def test_a_pinned_checkpoint_is_served_once_it_is_verified() -> None:
    made = chosen(PIN, checkpoints=(checkpoint("good", step=20),))
    assert made.target == weights("good", 20)
    assert made.others == {"/checkpoints": "pvc/ckpt"}
    assert reason(made) == (True, "Pinned")


def test_a_pinned_checkpoint_on_the_claim_of_the_model_needs_no_second_mount() -> None:
    made = chosen(PIN, status(), checkpoints=(checkpoint("good", step=20, claim="models"),))
    assert made.target and made.target.path == "/models/solver-rl/checkpoints/step-000020"


UNFIT = [
    ((), {}, "CheckpointNotFound"),
    ((checkpoint("good", step=20, verified=False),), {}, "CheckpointNotVerified"),
    ((checkpoint("good", step=20),), {Ref("PersistentVolumeClaim", "ckpt"): None}, "ClaimMissing"),
]


@pytest.mark.parametrize(("there", "found", "why"), UNFIT)
def test_a_checkpoint_that_cannot_be_served_leaves_what_is_served(
    there: tuple[Json, ...], found: Json, why: str
) -> None:
    made = chosen(PIN, status(), checkpoints=there, found=found)
    assert made.target == SOURCE and reason(made) == (False, why)
    assert f"{BASE} is served meanwhile." in made.verdict.message


def test_damaged_files_are_said_before_their_score() -> None:
    item = checkpoint("good", step=20)
    item["status"]["conditions"][0] |= {"status": "False", "message": "model.bin is a pickle."}
    made = chosen(PIN, status(), checkpoints=(item,))
    assert reason(made) == (False, "CheckpointNotIntact")
    assert "model.bin is a pickle." in made.verdict.message


def test_without_a_checkpoint_and_nothing_served_there_is_nothing_to_start() -> None:
    made = chosen(PIN)
    assert made.target is None and reason(made) == (False, "CheckpointNotFound")


# --- following --------------------------------------------------------------------------------


def test_until_there_is_a_checkpoint_the_source_is_served() -> None:
    made = chosen(FOLLOW, followed=job())
    assert made.target == SOURCE and reason(made) == (True, "NoCheckpoint")
    unweighed = (checkpoint("good", step=20, verified=False),)
    assert chosen(FOLLOW, status(), followed=job(), checkpoints=unweighed).target == SOURCE


def test_the_highest_score_is_followed_and_among_equal_ones_the_newest() -> None:
    offers = (
        checkpoint("good", step=20, score=0.7),
        checkpoint("better", step=100, score=0.8),
        checkpoint("shapes", step=60, score=0.8),
        checkpoint("worse", step=120, score=0.9, verified=False),
    )
    made = chosen(FOLLOW, status(), followed=job(), checkpoints=offers)
    assert made.target == weights("better", 100) and reason(made) == (True, "Following")


@pytest.mark.parametrize(("score", "step"), [(0.69, 20), (0.7, 20), (0.71, 40)])
def test_what_is_served_gives_way_only_to_what_is_strictly_better(score: float, step: int) -> None:
    offers = (checkpoint("good", step=20, score=0.7), checkpoint("better", step=40, score=score))
    made = chosen(FOLLOW, status(weights("good", 20)), followed=job(), checkpoints=offers)
    assert made.target and made.target.name == f"solver-rl-1-{step}"


def test_what_is_not_of_the_job_gives_way_to_any_of_its_verified_ones() -> None:
    other = Target(digest("other"), "/models/other", "other", "pvc/models")
    made = chosen(FOLLOW, status(other), followed=job(), checkpoints=(checkpoint("good", step=20),))
    assert made.target == weights("good", 20)


def test_what_is_served_stays_though_its_checkpoint_is_gone() -> None:
    made = chosen(FOLLOW, status(weights("good", 20)), followed=job())
    assert made.target == weights("good", 20) and reason(made) == (True, "NoCheckpoint")


def test_of_another_job_it_does_not() -> None:
    other = Target(digest("good"), "/checkpoints/other-rl/checkpoints/step-000020", "x", "pvc/ckpt")
    assert chosen(FOLLOW, status(other), followed=job()).target == SOURCE


def test_checkpoints_of_an_earlier_job_count_only_where_this_one_goes_on_with_its_folder() -> None:
    earlier = checkpoint("good", step=20)
    earlier["spec"]["job"]["uid"] = "uid-earlier"
    assert chosen(FOLLOW, status(), followed=job(), checkpoints=(earlier,)).target == weights(
        "good", 20
    )
    elsewhere = job(checkpoint={"storage": {"claim": "new"}})
    assert chosen(FOLLOW, status(), followed=elsewhere, checkpoints=(earlier,)).target == SOURCE


def test_a_rollout_under_way_goes_to_its_end_before_a_better_one_is_taken() -> None:
    offers = (checkpoint("good", step=20), checkpoint("better", step=40))
    had = status(SOURCE, weights("good", 20), phase="Gating")
    made = chosen(FOLLOW, had, followed=job(), checkpoints=offers)
    assert made.target == weights("good", 20)
    unverified = (checkpoint("good", step=20, verified=False), offers[1])
    made = chosen(FOLLOW, had, followed=job(), checkpoints=unverified)
    assert made.target == weights("better", 40)


def test_the_claim_is_mounted_as_soon_as_it_is_sure_to_be_there() -> None:
    assert chosen(FOLLOW, followed=job()).others == {"/models": "pvc/models"}
    trains = job() | {"status": {"conditions": [{"type": "Training", "status": "True"}]}}
    assert chosen(FOLLOW, followed=trains).others == CHECKPOINTS
    offers = (checkpoint("good", step=20, verified=False),)
    assert chosen(FOLLOW, followed=job(), checkpoints=offers).others == CHECKPOINTS
    made_for_it = job(checkpoint={"storage": {"size": "1Gi"}}) | {"status": trains["status"]}
    others = chosen(FOLLOW, followed=made_for_it).others
    assert others["/checkpoints"] == "pvc/solver-rl-checkpoints"


def test_a_job_that_does_not_exist_leaves_what_is_served() -> None:
    made = chosen(FOLLOW, status(weights("good", 20)), checkpoints=(checkpoint("good", step=20),))
    assert made.target == weights("good", 20) and reason(made) == (False, "JobNotFound")
    assert chosen(FOLLOW).target == SOURCE
    going = job()
    going["metadata"]["deletionTimestamp"] = "2026-11-24T11:00:00Z"
    assert reason(chosen(FOLLOW, followed=going)) == (False, "JobNotFound")


LOOPS = [
    {"model": {"source": "pvc://ckpt/solver-rl/checkpoints/step-000020"}},
    {"verifiers": [{"type": "http", "url": "http://solver/v1"}]},
    {"verifiers": [{"type": "all", "parts": [{"url": "http://solver.default.svc:80/v1/x"}]}]},
    {"verifiers": [{"type": "http", "url": "http://solver.default.svc.cluster.local"}]},
]


@pytest.mark.parametrize("spec", LOOPS)
def test_a_circle_is_refused(spec: Json) -> None:
    """A job that begins with what it makes, or is judged by who serves it."""
    offers = (checkpoint("good", step=20),)
    made = chosen(FOLLOW, status(), followed=job(**spec), checkpoints=offers)
    assert made.target == SOURCE and reason(made) == (False, "Loop")


@pytest.mark.parametrize(
    "url", ["http://judge.default.svc", "http://solver.lab.svc", "https://solver.example.com", "["]
)
def test_other_judges_make_no_circle(url: str) -> None:
    spec = {"verifiers": [{"type": "http", "url": url}]}
    assert chosen(FOLLOW, followed=job(**spec)).verdict.holds


def grant(**spec: Any) -> Json:
    return {"metadata": {"name": "g"}, "spec": {"from": [{"namespace": "default"}], **spec}}


MIRROR: Json = {Ref("PersistentVolumeClaim", "mirror"): {"kind": "PersistentVolumeClaim"}}


def test_across_namespaces_the_files_are_read_from_the_services_own_claim() -> None:
    made = chosen(
        ACROSS,
        followed=job(),
        checkpoints=(checkpoint("good", step=20, namespace="lab"),),
        grants=(grant(),),
        found=MIRROR,
    )
    assert made.target == weights("good", 20, "pvc/mirror")
    assert made.others["/checkpoints"] == "pvc/mirror"


@pytest.mark.parametrize(
    "grants",
    [
        (),
        ({"metadata": {}, "spec": {"from": [{"namespace": "other"}]}},),
        (grant(jobs=["other-rl"]),),
        ({"metadata": {}, "spec": {"from": []}},),
        ({**grant(), "metadata": {"deletionTimestamp": "2026-11-24T11:00:00Z"}},),
    ],
)
def test_across_namespaces_a_grant_has_to_allow_it(grants: tuple[Json, ...]) -> None:
    offers = (checkpoint("good", step=20, namespace="lab"),)
    made = chosen(ACROSS, status(), followed=job(), checkpoints=offers, grants=grants, found=MIRROR)
    assert made.target == SOURCE and reason(made) == (False, "NotGranted")
    assert "spec.from [{namespace: default}]" in made.verdict.message
    allowed = (grant(jobs=["solver-rl"]),)
    made = chosen(
        ACROSS, status(), followed=job(), checkpoints=offers, grants=allowed, found=MIRROR
    )
    assert made.verdict.holds


def test_a_missing_claim_is_said_and_looked_for_again() -> None:
    made = chosen(
        ACROSS,
        status(),
        followed=job(),
        checkpoints=(checkpoint("good", step=20, namespace="lab"),),
        grants=(grant(),),
        found=dict.fromkeys(MIRROR),
    )
    assert made.target == SOURCE and made.waits and reason(made) == (False, "ClaimMissing")


# --- what was refused -------------------------------------------------------------------------


def refused(content: str, step: int) -> Json:
    return {"version": digest(content), "name": f"solver-rl-1-{step}", "reason": "GateFailed"}


OFFERS = (checkpoint("good", step=20), checkpoint("better", step=40))
BETTER_REFUSED = {"refused": [refused("better", 40)]}


def test_what_was_refused_is_not_followed_again() -> None:
    had = status(**BETTER_REFUSED)
    assert chosen(FOLLOW, had, followed=job(), checkpoints=OFFERS).target == weights("good", 20)
    made = chosen(FOLLOW, had, followed=job(), checkpoints=OFFERS[1:])
    assert made.target == SOURCE and "All 1 verified" in made.verdict.message


@pytest.mark.parametrize("asked", [digest("better"), digest("better")[:20], "solver-rl-1-40"])
def test_until_a_user_asks_for_it_again_once(asked: str) -> None:
    annotations = {"assay.dev/retry": asked}
    had = status(**BETTER_REFUSED)
    made = chosen(FOLLOW, had, followed=job(), checkpoints=OFFERS, annotations=annotations)
    assert made.target == weights("better", 40) and made.retry == digest("better")
    used = status(**BETTER_REFUSED, phase="Failed", state={"retried": digest("better")})
    made = chosen(FOLLOW, used, followed=job(), checkpoints=OFFERS, annotations=annotations)
    assert made.target == weights("good", 20)


def test_a_pin_stays_the_target_though_it_was_refused() -> None:
    """Why it is not tried stands in the rollout's message."""
    had = status(refused=[refused("good", 20)])
    assert chosen(PIN, had, checkpoints=OFFERS[:1]).target == weights("good", 20)


# --- back by hand -----------------------------------------------------------------------------


def served(version: str, name: str, before: str | None = None) -> Json:
    entry = {"version": version, "name": name, "result": "Served"}
    return {**entry, "from": before} if before else entry


GOOD = weights("good", 20)
HISTORY = [
    {**served(digest("worse"), "solver-rl-1-60", digest("better")), "result": "RolledBack"},
    served(digest("better"), "solver-rl-1-40", digest("good")),
    served(digest("good"), "solver-rl-1-20", VERSION),
    served(VERSION, BASE),
]
PLACES = {
    VERSION: {"path": "/models/tiny", "name": BASE, "volume": "pvc/models"},
    digest("good"): {"path": folder(20), "name": "solver-rl-1-20", "volume": "pvc/ckpt"},
}
HAD: Json = {"history": HISTORY, "notes": {"places": PLACES}}


def back(asked: str, had: Json | None = None, **world: Any) -> Choice:
    return chosen(
        FOLLOW,
        had or status(weights("better", 40), **HAD),
        followed=job(),
        checkpoints=OFFERS,
        annotations={ROLLBACK_ANNOTATION: asked},
        **world,
    )


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("previous", "solver-rl-1-20"),
        (digest("good"), "solver-rl-1-20"),
        (digest("good")[: len("sha256:") + 6], "solver-rl-1-20"),
        (digest("good").removeprefix("sha256:")[:6], "solver-rl-1-20"),
        ("solver-rl-1-20", "solver-rl-1-20"),
        (VERSION, BASE),
        (BASE, BASE),
    ],
)
def test_whatever_was_served_here_can_be_taken_back(asked: str, name: str) -> None:
    made = back(asked)
    assert made.target and made.target.name == name and reason(made) == (True, "RolledBack")
    assert made.gated is False, "it passed here before"
    assert made.rollback and made.rollback.asked == asked


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("good", "RollbackUnknown"),
        (digest("good").removeprefix("sha256:")[:5], "RollbackUnknown"),
        ("solver-rl-1-60", "RollbackUnknown"),
        (digest("worse"), "RollbackUnknown"),
    ],
)
def test_what_never_passed_here_cannot_and_nothing_moves_meanwhile(asked: str, why: str) -> None:
    made = back(asked)
    assert made.target == weights("better", 40) and reason(made) == (False, why)
    assert "solver-rl-1-20" in made.verdict.message


def test_a_beginning_that_is_anothers_too_is_not_enough() -> None:
    twin = f"{digest('good')[:20]}{'f' * 51}"
    history = [served(twin, "twin"), *HISTORY]
    had = status(weights("better", 40), history=history, notes={"places": PLACES})
    assert reason(back(digest("good")[:20], had)) == (False, "RollbackAmbiguous")


def test_a_place_that_nobody_remembers_is_said() -> None:
    had = status(weights("better", 40), history=HISTORY)
    made = back(VERSION, had, rollout={})
    assert made.target and made.target.same_place(SOURCE), "the spec tells it"
    other = parse_source("pvc://gone/x").version
    had = status(weights("better", 40), history=[served(other, "pvc://gone/x")])
    assert "nobody remembers" in back(other, had).verdict.message


def test_previous_means_the_same_for_as_long_as_it_stands() -> None:
    """Else it would mean the other one as soon as it has been followed."""
    first = back("previous")
    assert first.rollback and first.target
    history = [served(digest("good"), "solver-rl-1-20", digest("better")), *HISTORY]
    remembered = {"asked": "previous", "target": plain(first.target)}
    notes = {"places": PLACES, "rollback": remembered}
    again = back("previous", status(GOOD, history=history, notes=notes))
    assert again.target and again.target.version == GOOD.version


@pytest.mark.parametrize("phase", ["Canary", "Waving", "Returning"])
def test_previous_of_a_rollout_under_way_is_what_it_leaves(phase: str) -> None:
    had = status(GOOD, weights("better", 40), phase=phase, **HAD)
    made = back("previous", had)
    assert made.target and made.target.version == GOOD.version


def test_what_is_taken_back_is_tried_though_it_was_once_refused() -> None:
    had = status(weights("better", 40), **HAD, refused=[refused("good", 20)])
    made = back("previous", had)
    assert made.target and made.retry == digest("good")


def test_without_the_annotation_nothing_is_remembered_of_it() -> None:
    notes = {"rollback": {"asked": "previous", "target": plain(GOOD)}}
    made = chosen(FOLLOW, status(GOOD, notes=notes), followed=job(), checkpoints=OFFERS)
    assert made.rollback is None and made.target == weights("better", 40)


# --- the gate's suite -------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [None, {"data": {"other.jsonl": ""}}, {}])
def test_nothing_is_begun_that_waits_for_a_suite_which_is_not_there(suite: Json | None) -> None:
    given = {"rollout": GATED, "found": {SUITE: suite}}
    made = chosen({"source": "pvc://models/next"}, status(), **given)
    assert made.target == SOURCE and made.waits and reason(made) == (False, "SuiteMissing")
    assert chosen({"source": BASE}, status(), **given).verdict.holds
    assert chosen({"source": "pvc://models/next"}, **given).verdict.holds, "the first is not gated"


def test_what_is_under_way_goes_on_and_what_passed_needs_none() -> None:
    given: Json = {"rollout": GATED, "found": {SUITE: None}}
    had = status(SOURCE, weights("good", 20), phase="Gating")
    assert chosen(PIN, had, checkpoints=OFFERS[:1], **given).target == weights("good", 20)
    assert back("previous", **given).verdict.holds


def test_what_could_not_be_looked_up_is_not_missing() -> None:
    made = chosen({"source": "pvc://models/next"}, status(), rollout=GATED)
    assert reason(made) == (True, "Source")


# --- where weights lie ------------------------------------------------------------------------


def test_what_is_served_stays_where_it_was_loaded_from() -> None:
    """The same bytes elsewhere are no reason to touch engines."""
    moved = checkpoint("good", step=20, claim="copy")
    made = chosen(PIN, status(GOOD), checkpoints=(moved,))
    assert made.target == GOOD


def pod_of(layout: Json, spec: Json | None = None) -> Json:
    service = InferenceServiceSpec.model_validate(
        {"model": {"source": BASE}, "engine": {"accelerator": "cpu"}, **(spec or {})}
    )
    profile = resolve("auto", "cpu", "throughput", None)
    return engine_template(IDENTITY, service, profile, OperatorConfig(), version="v", layout=layout)


def test_a_pod_shows_what_its_layout_says() -> None:
    assert mounts(pod_of(CHECKPOINTS)) == CHECKPOINTS
    assert mounts(pod_of({"/checkpoints": "pvc/ckpt"})) == {"/checkpoints": "pvc/ckpt"}
    twice = {"/models": "pvc/models", "/checkpoints": "pvc/models"}
    assert mounts(pod_of(twice)) == twice
    names = [volume["name"] for volume in pod_of(twice)["spec"]["volumes"]]
    assert "checkpoints" not in names, "one claim is one volume"
    assert mounts({"metadata": {}}) is None


def test_a_layout_has_room_for_two_volumes_and_names_none_twice() -> None:
    assert layout_for(SOURCE, {"/checkpoints": "pvc/ckpt"}) == CHECKPOINTS
    assert layout_for(GOOD, {"/models": "pvc/models", "/checkpoints": "pvc/x"}) == CHECKPOINTS
    assert layout_for(SOURCE, {"/checkpoints": "pvc/models"}) == {"/models": "pvc/models"}


def test_a_version_that_is_read_from_another_volume_is_not_that_version() -> None:
    here, elsewhere = pod_of({"/models": "pvc/models"}), pod_of({"/models": "pvc/other"})
    assert provides(here, SOURCE, frozenset()) and not provides(elsewhere, SOURCE, frozenset())
    assert really(here, VERSION, (SOURCE,), frozenset()) == VERSION
    assert really(elsewhere, VERSION, (SOURCE,), frozenset()) == "pvc/other/tiny"
    assert really(elsewhere, "unheard-of", (SOURCE,), frozenset()) == "unheard-of"
    assert not provides(here, GOOD, frozenset()), "it mounts no such volume at all"


def test_volumes_that_overrides_bring_are_the_users_affair() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "mine"}}
    host = {"persistentVolumeClaim": None, "hostPath": {"path": "/srv"}}
    for volume, key in ((claim, "pvc/mine"), (host, ANY)):
        spec = {"template": {"spec": {"volumes": [{"name": "model", **volume}]}}}
        pod = pod_of({"/models": "pvc/models"}, spec)
        assert mounts(pod) == {"/models": key}
        free = overridden(lambda layout, spec=spec: pod_of(dict(layout), spec))
        assert free == {"/models"} and provides(pod, SOURCE, free)
    assert overridden(lambda layout: pod_of(dict(layout))) == frozenset()
