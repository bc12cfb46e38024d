"""What is decided about one Checkpoint: one of a job, and one that somebody brings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay_operator.checkpoints.observation import Observation, digests_of, looked_up
from assay_operator.checkpoints.planner import (
    AGAIN_SECONDS,
    SETTLED_SECONDS,
    WAITING_SECONDS,
    plan,
)
from assay_operator.config import OperatorConfig
from assay_operator.plan import Plan, Ref, ref
from tests.unit.worlds import NOW, ago

Json = dict[str, Any]
CONFIG = OperatorConfig()
DIGEST, OTHER = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
CLAIM, SUITE = Ref("PersistentVolumeClaim", "ckpt"), Ref("ConfigMap", "heldout")
JOB, POLICY = Ref("Job", "mine-weigh"), Ref("NetworkPolicy", "mine-weigh")
THERE: dict[Ref, Json | None] = {CLAIM: {}, SUITE: {"data": {"suite.jsonl": "{}"}}}
EVALUATION: Json = {
    "suite": {"configMap": "heldout", "key": "suite.jsonl"},
    "minScore": 0.6,
    "engine": {"accelerator": "cpu"},
}
INTACT: Json = {"intact": True, "digest": DIGEST, "files": 4, "bytes": 120, "problems": []}
PASSED: Json = {
    "verdict": "pass",
    "reason": "score 0.8 on 200 items, at least 0.75, limit 0.6",
    "score": {"candidate": {"mean": 0.8, "items": 200, "interval": [0.74, 0.85]}},
}


def checkpoint(spec: Json, status: Json | None = None, note: Json | str | None = None) -> Json:
    text = note if isinstance(note, str) or note is None else json.dumps(note)
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {
            "name": "mine",
            "namespace": "default",
            "uid": "u-1",
            "generation": 1,
            "annotations": {"assay.dev/evaluation": text} if text else {},
        },
        "spec": {"source": "pvc://ckpt/solver-rl/checkpoints/step-000020", **spec},
        **({"status": status} if status else {}),
    }


def trained(note: Json | str | None = None, status: Json | None = None) -> Json:
    job = {"name": "solver-rl", "uid": "u-job", "step": 20, "version": "1.20"}
    return checkpoint({"digest": DIGEST, "job": job}, status, note)


def brought(status: Json | None = None, **spec: Any) -> Json:
    return checkpoint({"evaluation": EVALUATION, **spec}, status)


def decide(item: Json, **seen: Any) -> Plan:
    return plan(Observation(item, **{"found": THERE, **seen}), CONFIG, NOW)


def condition(made: Plan, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    (found,) = (item for item in made.status["conditions"] if item["type"] == kind)
    return found["status"], found["reason"]


def message(made: Plan, kind: str) -> str:
    (found,) = (item for item in made.status["conditions"] if item["type"] == kind)
    return str(found["message"])


def with_job(
    inspection: Json | None = None, gate: Json | None = None, *, codes: tuple[int, int] = (0, 0)
) -> Json:
    """A world in which the Job's one pod has said so much."""
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(5)}]
    status: Json = {"phase": "Running", "conditions": conditions}
    for kind, container, said, code in (
        ("initContainerStatuses", "inspect", inspection, codes[0]),
        ("containerStatuses", "verifier", gate, codes[1]),
    ):
        if said is not None:
            ended = {"exitCode": code, "message": json.dumps(said)}
            status[kind] = [{"name": container, "state": {"terminated": ended}}]
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": "mine-weigh-x",
            "uid": "p",
            "labels": {"batch.kubernetes.io/job-name": JOB.name},
            "creationTimestamp": ago(10),
        },
        "status": status,
    }
    return {"children": {JOB: a_job()}, "pods": (pod,)}


def a_job(ended: str = "", since: float = 30) -> Json:
    end = {"type": ended, "status": "True", "lastTransitionTime": ago(since)}
    return {
        "kind": "Job",
        "metadata": {
            "name": JOB.name,
            "uid": "j",
            "labels": {"app.kubernetes.io/component": "weigh"},
        },
        "status": {"startTime": ago(60), "conditions": [end] if ended else []},
    }


NOTE: Json = {
    "verified": True,
    "suite": "heldout",
    "score": 0.81,
    "low": 0.75,
    "high": 0.86,
    "items": 200,
    "why": "0.810 on 200 items, at least 0.75",
    "time": "2026-11-24T11:00:00+00:00",
}


class TestOfAJob:
    """It was weighed in training, and needs no Job."""

    def test_a_good_one_is_verified_by_what_training_found(self) -> None:
        made = decide(trained(NOTE))
        assert made.objects == () and made.next_look == SETTLED_SECONDS
        assert condition(made, "Verified") == ("True", "EvaluatedInTraining")
        assert message(made, "Verified") == NOTE["why"]
        assert condition(made, "Intact") == ("True", "WrittenByTraining")
        assert made.status["digest"] == DIGEST
        assert made.status["shortDigest"] == "a" * 12
        assert (made.status["score"], made.status["interval"]) == (0.81, [0.75, 0.86])
        [evaluation] = made.status["evaluations"]
        assert evaluation == {
            **{name: NOTE[name] for name in ("suite", "score", "low", "high", "items")},
            "by": "Training",
            "time": "2026-11-24T11:00:00Z",
        }
        assert [(event.reason, event.type) for event in made.events] == [("Verified", "Normal")]

    def test_one_with_a_poor_score_is_not(self) -> None:
        made = decide(trained({"verified": False, "score": 0.2}))
        assert condition(made, "Verified") == ("False", "ScoreTooLow")
        assert "0.200" in message(made, "Verified")
        assert made.status["score"] == 0.2
        assert [(event.reason, event.type) for event in made.events] == [("ScoreTooLow", "Normal")]

    def test_one_that_was_not_weighed_is_not_and_says_so_without_alarm(self) -> None:
        made = decide(trained())
        assert condition(made, "Verified") == ("False", "NotEvaluated")
        assert "score" not in made.status and made.events == ()

    @pytest.mark.parametrize("note", ["{", "[]", '{"verified": "perhaps"}', '{"score": 0.9}'])
    def test_a_note_that_no_job_writes_verifies_nothing(self, note: str) -> None:
        assert condition(decide(trained(note)), "Verified") == ("False", "NotEvaluated")

    def test_planning_again_says_the_same_and_nothing_new(self) -> None:
        first = decide(trained(NOTE))
        again = decide(trained(NOTE, first.status))
        assert again.status == first.status and again.events == ()

    def test_who_serves_it_is_told(self) -> None:
        services = tuple(
            {"metadata": {"namespace": space, "name": name}}
            for space, name in (("team-b", "chat"), ("default", "solver"))
        )
        made = decide(trained(), serving=services)
        assert made.status["servedBy"] == ["default/solver", "team-b/chat"]
        assert "servedBy" not in decide(trained()).status


class TestBrought:
    """Somebody brings it: it is inspected and weighed by a Job."""

    def test_a_job_is_made_whose_pod_reaches_nothing(self) -> None:
        made = decide(brought())
        assert {ref(item) for item in made.objects} == {POLICY, JOB}
        policy, job = made.objects
        assert policy["spec"]["egress"] == []
        pod = job["spec"]["template"]["spec"]
        assert [item["name"] for item in pod["initContainers"]] == ["inspect", "engine"]
        assert pod["initContainers"][1]["restartPolicy"] == "Always"
        command = pod["containers"][0]["command"]
        assert command[command.index("--min-score") + 1] == "0.6"
        for kind in ("Intact", "Verified"):
            assert condition(made, kind) == ("False", "Weighing")
        assert made.events == ()

    def test_the_digest_that_it_is_given_by_is_asked_for(self) -> None:
        made = decide(brought(digest=DIGEST))
        inspect = made.objects[1]["spec"]["template"]["spec"]["initContainers"][0]
        assert inspect["command"][inspect["command"].index("--digest") + 1] == DIGEST

    def test_everything_carries_the_label_by_which_the_operator_sees_it(self) -> None:
        for item in decide(brought()).objects:
            assert item["metadata"]["labels"]["assay.dev/owner"] == "checkpoint.mine"

    def test_one_that_passes_is_verified(self) -> None:
        made = decide(brought(), **with_job(INTACT, PASSED))
        assert condition(made, "Intact") == ("True", "Inspected")
        assert condition(made, "Verified") == ("True", "Weighed")
        assert (made.status["digest"], made.status["score"]) == (DIGEST, 0.8)
        [evaluation] = made.status["evaluations"]
        assert evaluation["by"] == "Weighing" and evaluation["suite"] == "heldout"
        assert [event.reason for event in made.events] == ["Verified"]

    def test_the_job_stays_until_the_status_says_what_it_found_and_is_never_made_again(
        self,
    ) -> None:
        first = decide(brought(), **with_job(INTACT, PASSED))
        assert JOB in {ref(item) for item in first.objects}
        again = decide(brought(first.status), **with_job(INTACT, PASSED))
        assert again.objects == () and again.prune
        assert again.status == first.status and again.events == ()
        assert decide(brought(first.status), found={}).status == first.status

    def test_one_that_is_too_weak_is_not_verified_for_good(self) -> None:
        failed = {**PASSED, "verdict": "fail", "reason": "score 0.3, at most 0.36, limit 0.6"}
        made = decide(brought(), **with_job(INTACT, failed, codes=(0, 1)))
        assert condition(made, "Verified") == ("False", "ScoreTooLow")
        assert message(made, "Verified") == failed["reason"]
        assert condition(made, "Intact") == ("True", "Inspected")
        assert decide(brought(made.status)).objects == ()

    def test_undecided_is_not_verified_and_says_what_would_decide(self) -> None:
        undecided = {**PASSED, "verdict": "undecided", "reason": "between 0.5 and 0.7, limit 0.6"}
        made = decide(brought(), **with_job(INTACT, undecided, codes=(0, 3)))
        assert condition(made, "Verified") == ("False", "Undecided")
        assert "more items" in message(made, "Verified")

    @pytest.mark.parametrize(
        ("given", "found", "problem", "reason"),
        [
            (OTHER, DIGEST, f"the digest is {DIGEST}, not {OTHER}", "OtherDigest"),
            (None, DIGEST, "pytorch_model.bin may be a pickle, which can run any code", "Unsafe"),
            (DIGEST, DIGEST, "modeling.py is code: take it out", "Unsafe"),
            (DIGEST, DIGEST, "model.safetensors is cut short", "Damaged"),
        ],
    )
    def test_wrong_files_are_named_and_never_weighed(
        self, given: str | None, found: str | None, problem: str, reason: str
    ) -> None:
        said = {"intact": False, "digest": found, "problems": [problem]}
        item = brought(**({"digest": given} if given else {}))
        made = decide(item, **with_job(said, codes=(1, 0)))
        for kind in ("Intact", "Verified"):
            assert condition(made, kind) == ("False", reason)
            assert problem in message(made, kind) and "delete this" in message(made, kind)
        assert [(event.reason, event.type) for event in made.events] == [(reason, "Warning")]
        assert decide(brought(made.status)).objects == (), "that is for good"

    def test_without_an_evaluation_it_is_only_inspected(self) -> None:
        made = decide(checkpoint({}))
        job = made.objects[1]["spec"]["template"]["spec"]
        assert "initContainers" not in job
        assert condition(made, "Intact") == ("False", "Inspecting")
        assert condition(made, "Verified") == ("False", "NotWeighed")
        seen = with_job(gate=INTACT)
        done = decide(checkpoint({}), **seen)
        assert condition(done, "Intact") == ("True", "Inspected")
        assert condition(done, "Verified") == ("False", "NotWeighed")
        assert done.status["digest"] == DIGEST
        assert decide(checkpoint({}, done.status), **seen).objects == ()


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("found", "reason", "says"),
        [
            ({**THERE, CLAIM: None}, "ClaimMissing", "PersistentVolumeClaim ckpt does not exist"),
            ({**THERE, SUITE: None}, "SuiteMissing", "ConfigMap heldout does not exist"),
            ({**THERE, SUITE: {"data": {}}}, "SuiteMissing", "has no key suite.jsonl"),
        ],
    )
    def test_it_is_named_before_any_pod_waits_for_it(
        self, found: Json, reason: str, says: str
    ) -> None:
        made = decide(brought(), found=found)
        assert made.objects == () and made.next_look == WAITING_SECONDS
        for kind in ("Intact", "Verified"):
            assert condition(made, kind) == ("False", reason)
            assert says in message(made, kind)
        assert [(event.reason, event.type) for event in made.events] == [(reason, "Warning")]

    def test_what_could_not_be_looked_up_holds_nothing_up(self) -> None:
        assert decide(brought(), found={}).objects

    def test_a_job_that_runs_is_not_taken_away_for_it(self) -> None:
        made = decide(brought(), found={**THERE, SUITE: None}, **with_job())
        assert made.objects

    def test_a_job_whose_pod_waits_for_it_goes_and_comes_again_when_it_is_there(self) -> None:
        seen = with_job()
        seen["pods"][0]["status"]["phase"] = "Pending"
        made = decide(brought(), found={**THERE, SUITE: None}, **seen)
        assert condition(made, "Verified") == ("False", "SuiteMissing")
        assert "ConfigMap heldout does not exist" in message(made, "Verified")
        assert made.objects == () and made.prune and made.next_look == WAITING_SECONDS
        assert {ref(item) for item in decide(brought(made.status)).objects} == {POLICY, JOB}

    def test_what_a_job_found_counts_though_its_suite_is_gone_since(self) -> None:
        weak = {**PASSED, "verdict": "fail", "reason": "score 0.3, at most 0.36, limit 0.6"}
        seen = with_job(INTACT, weak, codes=(0, 1))
        seen["pods"][0]["status"]["phase"] = "Failed"
        made = decide(brought(), found={**THERE, SUITE: None}, **seen)
        assert condition(made, "Verified") == ("False", "ScoreTooLow")

    def test_what_is_looked_up_is_what_the_spec_names(self) -> None:
        assert looked_up(brought()) == (CLAIM, SUITE)
        assert looked_up(checkpoint({})) == (CLAIM,)
        assert looked_up(trained()) == ()

    def test_an_engine_that_does_not_exist_is_said(self) -> None:
        engine = {"accelerator": "cpu", "profile": "deepseek-v4-pro"}
        made = decide(brought(evaluation={**EVALUATION, "engine": engine}))
        assert made.objects == ()
        assert condition(made, "Verified") == ("False", "UnsupportedProfile")

    def test_a_refused_job_is_said_in_the_api_servers_words(self) -> None:
        made = decide(brought(), rejections={JOB: "exceeded quota"})
        assert condition(made, "Intact") == ("False", "Rejected")
        assert "exceeded quota" in message(made, "Intact")
        assert made.objects, "it is tried again"

    def test_a_spec_that_an_older_crd_let_in_is_a_condition(self) -> None:
        made = decide(brought(evaluation={"minScore": 3}))
        assert condition(made, "Intact") == ("False", "InvalidSpec")
        assert made.objects == () and not made.prune


class TestNoVerdict:
    """A Job that says nothing says nothing about the Checkpoint."""

    @staticmethod
    def ended(since: float) -> Json:
        seen = with_job(INTACT, {"verdict": None, "reason": "line 3 is no JSON"}, codes=(0, 2))
        return {**seen, "children": {JOB: a_job("Failed", since)}}

    def test_it_is_told_and_the_digest_is_known_already(self) -> None:
        made = decide(brought(), **self.ended(30))
        assert condition(made, "Verified") == ("False", "NoVerdict")
        assert "line 3 is no JSON" in message(made, "Verified")
        assert condition(made, "Intact") == ("True", "Inspected")
        assert made.status["digest"] == DIGEST
        assert made.objects, "the Job stays for a while, to be looked at"

    def test_after_a_while_the_job_goes_and_another_is_made(self) -> None:
        made = decide(brought(), **self.ended(AGAIN_SECONDS + 1))
        assert made.objects == () and made.prune
        assert {ref(item) for item in decide(brought(made.status)).objects} == {POLICY, JOB}

    def test_one_that_came_to_its_deadline_is_done_again_too(self) -> None:
        late = a_job("Failed", AGAIN_SECONDS + 1)
        late["status"]["conditions"][0]["reason"] = "DeadlineExceeded"
        made = decide(brought(), children={JOB: late})
        assert condition(made, "Verified") == ("False", "NoVerdict")
        assert "done again" in message(made, "Verified")
        assert made.objects == () and made.prune and made.next_look > 1

    def test_one_that_is_stuck_is_left_to_come_right(self) -> None:
        missing = 'persistentvolumeclaim "ckpt" not found'
        seen = with_job()
        seen["pods"][0]["status"] = {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": missing,
                    "lastTransitionTime": ago(3600),
                }
            ],
        }
        made = decide(brought(), **seen)
        assert condition(made, "Intact") == ("False", "NoVerdict")
        assert "ckpt does not exist" in message(made, "Intact")
        assert made.objects


def test_services_know_it_by_what_the_spec_says_and_by_what_was_found() -> None:
    assert digests_of(brought()) == frozenset()
    assert digests_of(brought({"digest": OTHER}, digest=DIGEST)) == {DIGEST, OTHER}
