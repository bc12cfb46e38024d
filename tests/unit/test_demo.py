"""`make demo`: what its folder asks of a cluster, and how it tells what is seen there."""

from __future__ import annotations

import importlib.util
import io
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.inference.memory import recall
from assay_operator.inference.observation import Observation
from assay_operator.inference.places import additions, layout_for
from assay_operator.inference.targets import choose
from assay_operator.training.jobfile import job_file
from assay_trainer.job import Job
from assay_verifiers.suites import load_suite
from examples import looks, tamper, telling
from examples.looks import Look
from examples.picture import Mark, draw, marks, served_line
from examples.stage import FOLDER, JOB, SERVICE, SUITE, brought, client
from examples.story import TASK
from examples.telling import Teller
from tests.assay import ENGINE_MOUNT, Assay
from tests.cluster import Cluster
from tests.cluster.settings import REPOSITORY, Cache
from tests.unit.plan_fleet import checkpoint, digest

Json = dict[str, Any]
SEEDED = REPOSITORY / "examples/train-demo/items.py"


def script(path: Path) -> ModuleType:
    """A script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(name: str) -> Json:
    found: Json = yaml.safe_load((REPOSITORY / FOLDER / f"{name}.yaml").read_text())
    return found


# --- what is applied ----------------------------------------------------------------------------


def test_the_suite_is_what_its_script_prints() -> None:
    items = script(SEEDED)
    written = (REPOSITORY / FOLDER / "suite.yaml").read_text()
    assert written == items.config_map(SUITE, items.SEED)


def test_no_held_out_item_asks_for_numbers_that_are_trained_on() -> None:
    items = script(SEEDED)
    trained, held_out = items.questions(items.SEED)
    assert len(held_out) == items.HELD_OUT
    assert not {items.answer(one) for one in trained} & {items.answer(one) for one in held_out}


def test_the_wrong_way_round_is_never_right() -> None:
    items = script(SEEDED)
    trained, _ = items.questions(items.SEED)
    assert all(items.answer(one) != items.answer(one, downwards=True) for one in trained)


def test_the_suite_can_be_asked(tmp_path: Path) -> None:
    file = tmp_path / "suite.jsonl"
    file.write_text(manifest("suite")["data"][file.name])
    suite = load_suite(file)
    assert len(suite.items) == 200
    longest = max(len(str(item.reference["value"]).split()) for item in suite.items)
    assert all((item.maxTokens or 0) > longest for item in suite.items), "and its end"


def test_job_and_service_are_about_the_same_model_and_items() -> None:
    job = VerifiedRLJobSpec.model_validate(manifest("job")["spec"])
    service = InferenceServiceSpec.model_validate(manifest("service")["spec"])
    assert service.model.follow and service.model.follow.job == manifest("job")["metadata"]["name"]
    assert service.model.source == job.model.source == f"pvc://models/{TASK}/model"
    assert job.evaluation and job.evaluation.suite.configMap == SUITE
    assert service.rollout.gate and service.rollout.gate.suite.configMap == SUITE
    assert manifest("suite")["metadata"]["name"] == SUITE
    assert (manifest("job")["metadata"]["name"], manifest("service")["metadata"]["name"]) == (
        JOB,
        SERVICE,
    )


def test_the_trainer_takes_the_job() -> None:
    spec = VerifiedRLJobSpec.model_validate(manifest("job")["spec"])
    file = Job.model_validate(json.loads(json.dumps(job_file(JOB, "default", spec))))
    assert file.trainer.steps >= 2 * file.checkpoint.every, "more than one checkpoint"


def test_no_pod_is_made_anew_to_see_what_the_job_writes() -> None:
    service, job = manifest("service"), manifest("job")
    metadata = {"namespace": "default", "uid": "uid-rl"}
    job["metadata"] |= metadata
    service["metadata"] |= metadata
    found = Observation(
        service, followed=job, checkpoints=(checkpoint("good", step=10, claim="models"),)
    )
    choice = choose(found, InferenceServiceSpec.model_validate(service["spec"]), recall({}))
    assert choice.target and choice.target.path == f"/models/{JOB}/checkpoints/step-000010"
    before = layout_for(choice.target, {})
    assert additions(before, choice.others) == {}


def test_what_is_brought_is_weighed_as_the_service_would_serve_it() -> None:
    spec = CheckpointSpec.model_validate(brought("worse", 0.2, digest("good"))["spec"])
    service = InferenceServiceSpec.model_validate(manifest("service")["spec"])
    assert spec.evaluation and spec.evaluation.engine == service.engine
    assert spec.digest == digest("good")
    assert CheckpointSpec.model_validate(brought("worse", 0.2)["spec"]).digest is None


def test_the_clients_pod_sees_models_items_and_the_environment() -> None:
    cache = Cache(Path("/nowhere"))
    (container,) = client(Assay(Cluster.named("demo", cache), cache))["spec"]["containers"]
    seen = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert seen == {"/models", "/suite", ENGINE_MOUNT}


# --- what is seen -------------------------------------------------------------------------------


def condition(kind: str, reason: str, message: str, status: str = "True") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def rollout(phase: str, name: str = "solver-rl-1-10", content: str = "good") -> Json:
    to = {"name": name, "version": digest(content)}
    return {"phase": phase, "to": to, "message": f"{phase}: {name}."}


def weighed(name: str, reason: str, status: str, message: str) -> Json:
    """A Checkpoint that somebody brought."""
    told = [condition(kind, reason, message, status) for kind in ("Intact", "Verified")]
    return {
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {"source": f"pvc://models/{name}"},
        "status": {"conditions": told},
    }


def test_a_look_finds_job_service_and_checkpoints_in_their_order() -> None:
    items = [
        {"kind": "VerifiedRLJob", "metadata": {"name": JOB}, "status": {"phase": "Training"}},
        {"kind": "VerifiedRLJob", "metadata": {"name": "other"}, "status": {"phase": "Failed"}},
        {"kind": "InferenceService", "metadata": {"name": SERVICE}, "status": {"routable": "2/2"}},
        weighed("brought", "Weighing", "False", ""),
        checkpoint("good", step=20),
        checkpoint("bad", step=10),
    ]
    seen = looks.look(items, JOB, SERVICE, 7, 1)
    assert (seen.job["phase"], seen.service["routable"]) == ("Training", "2/2")
    assert [looks.name_of(item) for item in seen.checkpoints] == [
        "solver-rl-1-10",
        "solver-rl-1-20",
        "brought",
    ]
    assert (seen.answers, seen.failed) == (7, 1)


def test_an_object_without_a_status_is_seen_too() -> None:
    seen = looks.look([{"kind": "VerifiedRLJob", "metadata": {"name": JOB}}], JOB, SERVICE, 0, 0)
    assert looks.news(Look(), seen) == []
    assert not looks.trained_and_served(seen)


def test_news_is_what_changed_since_the_look_before() -> None:
    ready = condition("EnginesReady", "Starting", "0 of 1 engines are ready.", "False")
    starting = Look(job={"phase": "Starting", "conditions": [ready]})
    assert looks.news(Look(), starting) == ["Job Starting. 0 of 1 engines are ready."]
    assert looks.news(starting, starting) == []
    verified = Look(job=starting.job, checkpoints=(checkpoint("good", step=10),))
    assert looks.news(starting, verified) == ["Checkpoint solver-rl-1-10: Weighed."]
    assert looks.news(verified, verified) == []


def test_a_checkpoint_is_news_once_there_is_a_verdict() -> None:
    before = Look(checkpoints=(weighed("worse", "Weighing", "False", "A Job reads it."),))
    after = Look(checkpoints=(weighed("worse", "OtherDigest", "False", "The digest is another."),))
    assert looks.news(Look(), before) == []
    assert looks.news(before, after) == ["Checkpoint worse: The digest is another."]
    assert looks.verdict(after.checkpoint("worse"), "Intact")["status"] == "False"
    assert looks.verdict(after.checkpoint("nobody")) == {}


def test_each_phase_of_a_rollout_is_news_and_its_other_words_are_not() -> None:
    gating = Look(service={"rollout": rollout("Gating")})
    waiting = Look(service={"rollout": {**rollout("Gating"), "message": "Gating: it waits."}})
    done = Look(service={"rollout": rollout("Done")})
    other = Look(service={"rollout": rollout("Done", "solver-rl-1-20")})
    assert looks.news(gating, waiting) == []
    assert looks.news(waiting, done) == ["Done: solver-rl-1-10."]
    assert looks.news(done, other) == ["Done: solver-rl-1-20."]


def test_all_is_shown_when_something_is_verified_first_and_when_a_rollout_ends() -> None:
    good = checkpoint("good", step=10)
    unverified = Look(checkpoints=(checkpoint("bad", step=10, verified=False),))
    assert not looks.is_turn(Look(), unverified)
    assert looks.is_turn(unverified, Look(checkpoints=(good,)))
    assert not looks.is_turn(
        Look(checkpoints=(good,)), Look(checkpoints=(good, checkpoint("next", step=20)))
    )
    gating, failed = (Look(service={"rollout": rollout(phase)}) for phase in ("Gating", "Failed"))
    assert looks.is_turn(gating, failed)
    assert not looks.is_turn(failed, failed)
    assert not looks.is_turn(Look(), Look(service={"rollout": rollout("Done")})), "it just began"


def over(phase: str, served: str, **more: Any) -> Look:
    """A job that is over, with a good checkpoint as its best."""
    service = {"rollout": rollout(phase), "served": {"version": digest(served)}, **more}
    job = {"phase": "Complete", "best": "solver-rl-1-10"}
    return Look(job, service, (checkpoint("good", step=10),))


def test_the_chapter_ends_when_the_best_is_served_or_was_turned_away() -> None:
    assert looks.trained_and_served(over("Done", "good"))
    assert not looks.trained_and_served(over("Done", "base")), "it is still to come"
    assert not looks.trained_and_served(over("Waving", "good")), "not yet by all"
    refused = [{"version": digest("good"), "reason": "GateFailed"}]
    assert looks.trained_and_served(over("Failed", "base", refused=refused))
    assert looks.trained_and_served(Look(job={"phase": "Failed"})), "there is nothing to wait for"
    assert not looks.trained_and_served(Look(job={"phase": "Training", "best": "x"}))


def test_progress_says_where_training_checkpoints_service_and_users_are() -> None:
    job = {"progress": "12/30", "reward": 0.314, "score": 0.5, "eta": "48s", "message": "drawing"}
    bad = checkpoint("bad", step=5, score=0.3, verified=False)
    seen = Look(
        job, {"rollout": rollout("Gating")}, (bad, checkpoint("good", step=10, score=0.61)), 9, 0
    )
    assert looks.progress(seen) == [
        ("training", "step 12/30, reward 0.31, score 0.50, 48s left, drawing"),
        ("checkpoints", "solver-rl-1-5 0.300 not verified, solver-rl-1-10 0.610 verified"),
        ("service", "Gating: solver-rl-1-10."),
        ("users", "9 requests, 0 failed"),
    ]


def test_progress_of_what_has_not_begun_says_so() -> None:
    told = dict(looks.progress(Look()))
    assert (told["training"], told["checkpoints"]) == ("waits", "none yet")


# --- who answered -------------------------------------------------------------------------------


def answered(at: float, version: str | None) -> Json:
    return {"at": at, "s": 0.1, "error": None if version else "URLError()", "version": version}


HISTORY = [
    {
        "version": "w",
        "name": "worse",
        "result": "RolledBack",
        "reason": "GateFailed",
        "finished": "2026-11-25T12:00:30Z",
    },
    {
        "version": "a",
        "name": "solver-rl-1-10",
        "result": "Served",
        "reason": "RolloutDone",
        "finished": "2026-11-25T12:00:10Z",
    },
]


def test_only_weights_that_came_to_be_served_may_have_answered() -> None:
    good = [answered(1, "base"), answered(2, "a"), answered(3, None)]
    assert looks.strangers(good, HISTORY, "base") == 0
    assert looks.strangers([*good, answered(4, "w"), answered(5, "x")], HISTORY, "base") == 2


def test_answers_are_counted_by_the_weights_that_made_them() -> None:
    lines = [answered(3, "a"), answered(1, "base"), answered(2, "base"), answered(4, None)]
    names = {**looks.names(HISTORY), "base": "the base model"}
    assert looks.by_version(lines, names) == [("the base model", 2), ("solver-rl-1-10", 1)]


# --- the picture --------------------------------------------------------------------------------


def test_changes_are_marked_in_their_order_with_their_scores() -> None:
    first, second = marks(HISTORY, {"solver-rl-1-10": 0.7})
    assert (first.name, first.score, first.served) == ("solver-rl-1-10", 0.7, True)
    assert (second.name, second.score, second.served) == ("worse", None, False)
    assert second.at - first.at == pytest.approx(20)


def test_users_get_new_scores_only_from_what_is_served() -> None:
    changes = [Mark(10, "a", 0.7, True), Mark(20, "w", 0.5, False), Mark(30, "b", 0.9, True)]
    times, scores = served_line(0.3, changes, 0, 40)
    assert list(zip(times, scores, strict=True)) == [
        (0, 0.3),
        (10, 0.3),
        (10, 0.7),
        (30, 0.7),
        (30, 0.9),
        (40, 0.9),
    ]


def test_the_picture_is_drawn_from_the_trainers_own_lines(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = [
        {"step": step, "time": 100.0 + step, "reward/mean": step / 30} for step in range(1, 30)
    ]
    weighing = {"evaluation/score": 0.4, "evaluation/low": 0.3, "evaluation/high": 0.5}
    lines[9] |= weighing
    changes = [Mark(115, "solver-rl-1-10", 0.4, True), Mark(125, "worse", 0.2, False)]
    path = tmp_path / "new" / "curve.png"
    draw(lines, changes, first=0.1, began=90, ended=140, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")


# --- bad checkpoints ----------------------------------------------------------------------------


def test_a_spoilt_copy_differs_in_some_bytes_and_in_nothing_else(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    content = bytes(range(256)) * 8
    (good / "model.safetensors").write_bytes(content)
    (good / "config.json").write_text("{}")
    tamper.spoil(good, bad)
    made = (bad / "model.safetensors").read_bytes()
    assert len(made) == len(content)
    assert sum(a != b for a, b in zip(made, content, strict=True)) == tamper.SPOILT_BYTES
    assert (bad / "config.json").read_text() == "{}"
    assert (good / "model.safetensors").read_bytes() == content


def test_a_mixture_lies_between_two_models_by_its_share() -> None:
    one = {"w": np.array([1.0, 3.0], np.float32)}
    other = {"w": np.array([5.0, 3.0], np.float32)}
    (made,) = tamper.mixed(one, other, 0.75).values()
    assert made.tolist() == [4.0, 3.0]
    assert made.dtype == np.float32, "engines load in place only what has the same type"


def test_models_of_other_shapes_cannot_be_mixed() -> None:
    one, other = {"w": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="not of one shape"):
        tamper.mixed(one, other, 0.5)


# --- how it is told -----------------------------------------------------------------------------


def teller() -> tuple[Teller, io.StringIO]:
    """One that writes where nothing can be drawn over."""
    out = io.StringIO()
    return Teller(Console(file=out, width=60)), out


def test_times_are_minutes_and_seconds() -> None:
    assert [telling.clock(seconds) for seconds in (0.9, 61, 600)] == ["0:00", "1:01", "10:00"]


def test_long_lines_and_commands_stay_one_line_each() -> None:
    told, out = teller()
    told.say("word " * 30)
    told.command("kubectl get infsvc " + "-o " * 30)
    told.output("NAME [bold]  READY\n")
    assert len(out.getvalue().splitlines()) == 3
    assert "NAME [bold]  READY" in out.getvalue(), "brackets are not ours to read"


def test_chapters_are_numbered_and_their_seconds_kept() -> None:
    told, out = teller()
    for title in ("First", "Second"):
        with told.chapter(title, "Why."):
            pass
    assert [title for title, _ in told.chapters] == ["First", "Second"]
    assert "1. First" in out.getvalue() and "2. Second" in out.getvalue()


def test_where_nothing_can_be_drawn_over_progress_is_printed_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told, out = teller()
    with told.progress() as shown:
        shown.show([("training", "step 1/30")])
        now += telling.PLAIN_SECONDS + 1
        shown.show([("training", "step 2/30"), ("users", "9 requests")])
        shown.show([("training", "step 3/30")])
    assert out.getvalue().splitlines() == ["... training: step 2/30; users: 9 requests"]


def test_a_log_is_never_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.delenv("CI", raising=False)
    assert telling.can_draw(terminal)
    assert not telling.can_draw(Console(file=io.StringIO()))
    monkeypatch.setenv("CI", "true")
    assert not telling.can_draw(terminal)
