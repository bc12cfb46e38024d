"""The view: what is known of the cluster, whoever brought it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from assay_operator.cluster.topics import Topic, versions
from assay_operator.cluster.view import Key, View, key_of
from assay_operator.plan import Json, Ref

SOLVER = Key("inferenceservice", "team", "solver")


def child(kind: str, name: str, version: int, owner: str = "solver", **more: Any) -> Json:
    labels = {"assay.dev/owner": f"inferenceservice.{owner}"} if owner else {}
    metadata = {"namespace": "team", "name": name, "labels": labels, "uid": f"uid-{name}"}
    metadata |= {"resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def service(version: int) -> Json:
    metadata = {"namespace": "team", "name": "solver", "resourceVersion": str(version)}
    return {"apiVersion": "assay.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata}


@pytest.fixture
def woken() -> list[Key]:
    return []


@pytest.fixture
def view(woken: list[Key]) -> View:
    return View(woken.append)


def test_an_object_belongs_to_the_owner_that_its_label_names() -> None:
    assert key_of(child("ConfigMap", "a", 1)) == SOLVER
    assert key_of(service(1)) == SOLVER
    assert key_of(child("ConfigMap", "a", 1, owner="")) is None


def test_children_and_pods_are_found_by_owner(view: View) -> None:
    view.put(service(1))
    view.put(child("ConfigMap", "a", 2))
    view.put(child("Pod", "p2", 3))
    view.put(child("Pod", "p1", 4))
    view.put(child("ConfigMap", "b", 5, owner="other"))
    assert view.owners() == [SOLVER]
    assert view.owner(SOLVER) == service(1)
    assert set(view.children(SOLVER)) == {Ref("ConfigMap", "a")}
    assert [pod["metadata"]["name"] for pod in view.pods(SOLVER)] == ["p1", "p2"]


def test_news_wakes_the_owner_once(view: View, woken: list[Key]) -> None:
    assert view.put(child("ConfigMap", "a", 2), watched=True)
    assert not view.put(child("ConfigMap", "a", 2), watched=True)
    assert woken == [SOLVER]


def test_our_own_writes_wake_nobody_and_their_echo_is_no_news(view: View, woken: list[Key]) -> None:
    view.put(child("ConfigMap", "a", 7), by=SOLVER)
    view.put(child("ConfigMap", "a", 7), watched=True)
    assert woken == []


def test_the_newer_version_wins_whoever_brings_it(view: View) -> None:
    view.put(child("ConfigMap", "a", 10, data={"k": "ours"}), by=SOLVER)
    view.put(child("ConfigMap", "a", 9, data={"k": "old"}), watched=True)
    assert view.children(SOLVER)[Ref("ConfigMap", "a")]["data"] == {"k": "ours"}
    view.put(child("ConfigMap", "a", 11, data={"k": "theirs"}), watched=True)
    assert view.children(SOLVER)[Ref("ConfigMap", "a")]["data"] == {"k": "theirs"}


def test_versions_are_numbers_and_not_texts(view: View) -> None:
    view.put(child("ConfigMap", "a", 9))
    assert view.put(child("ConfigMap", "a", 10))


def test_a_deletion_removes_and_wakes(view: View, woken: list[Key]) -> None:
    view.put(child("ConfigMap", "a", 2))
    assert view.remove(child("ConfigMap", "a", 3))
    assert view.children(SOLVER) == {}
    assert woken == [SOLVER, SOLVER]
    assert not view.remove(child("ConfigMap", "a", 3))


def test_a_late_answer_does_not_bring_back_what_was_deleted(view: View) -> None:
    view.put(child("ConfigMap", "a", 2), watched=True)
    view.remove(child("ConfigMap", "a", 4))
    assert not view.put(child("ConfigMap", "a", 3), by=SOLVER)
    assert view.put(child("ConfigMap", "a", 5), by=SOLVER), "but it may be made anew"


def test_an_old_deletion_does_not_remove_what_was_made_anew(view: View) -> None:
    view.put(child("ConfigMap", "a", 9))
    assert not view.remove(child("ConfigMap", "a", 5))
    assert Ref("ConfigMap", "a") in view.children(SOLVER)


def test_a_child_that_changes_hands_wakes_both_owners(view: View, woken: list[Key]) -> None:
    view.put(child("ConfigMap", "a", 2))
    view.put(child("ConfigMap", "a", 3, owner="other"))
    assert view.children(SOLVER) == {}
    assert set(woken[1:]) == {SOLVER, Key("inferenceservice", "team", "other")}


def test_bulky_bookkeeping_is_not_kept(view: View) -> None:
    item = child("ConfigMap", "a", 2)
    item["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    view.put(item)
    assert "managedFields" not in view.children(SOLVER)[Ref("ConfigMap", "a")]["metadata"]


class TestAcrossObjects:
    """What others serve or made wakes whoever looks at it, and is found by the same topic."""

    WATCHER = Key("inferenceservice", "other", "chat")

    @staticmethod
    def resource(kind: str, name: str, version: int, **more: Any) -> Json:
        metadata = {"namespace": "team", "name": name, "resourceVersion": str(version)}
        return {
            "apiVersion": "assay.dev/v1alpha1",
            "kind": kind,
            "metadata": metadata | {"labels": {"assay.dev/owner": "verifiedrljob.solver"}},
            **more,
        }

    def test_a_custom_resource_is_nobodys_child(self, view: View) -> None:
        view.put(self.resource("Checkpoint", "c", 1))
        assert view.children(Key("verifiedrljob", "team", "solver")) == {}
        assert view.owners() == [Key("checkpoint", "team", "c")]

    def test_a_checkpoint_tells_all_its_news(self, view: View, woken: list[Key]) -> None:
        view.watch(self.WATCHER, [Topic("Checkpoint", "team")])
        own = Key("checkpoint", "team", "c")
        view.put(self.resource("Checkpoint", "c", 1))
        view.put(self.resource("Checkpoint", "c", 2, status={"score": 0.5}))
        view.remove(self.resource("Checkpoint", "c", 3))
        assert woken.count(self.WATCHER) == woken.count(own) == 3

    def test_its_own_writer_is_not_woken_and_others_are(self, view: View, woken: list[Key]) -> None:
        view.watch(self.WATCHER, [Topic("Checkpoint", "team")])
        view.put(self.resource("Checkpoint", "c", 1), by=Key("checkpoint", "team", "c"))
        assert woken == [self.WATCHER]

    def test_a_job_tells_only_that_it_is_there(self, view: View, woken: list[Key]) -> None:
        view.watch(self.WATCHER, [Topic("VerifiedRLJob", "team")])
        view.put(self.resource("VerifiedRLJob", "solver", 1))
        view.put(self.resource("VerifiedRLJob", "solver", 2, status={"step": 7}))
        assert woken.count(self.WATCHER) == 1

    def test_a_service_tells_who_serves_what(self, view: View, woken: list[Key]) -> None:
        watcher, topic = Key("checkpoint", "team", "c"), Topic("InferenceService", "sha256:aa")
        view.watch(watcher, [topic])
        service = partial(self.resource, "InferenceService", "chat")
        view.put(service(1, status={"checkpoint": "base-1"}))
        assert watcher not in woken and view.find(topic) == []
        view.put(service(2, status={"checkpoint": "base-1, sha256:aa"}))
        assert woken.count(watcher) == 1 and len(view.find(topic)) == 1
        view.put(service(3, status={"checkpoint": "sha256:aa", "routable": "1/1"}))
        assert woken.count(watcher) == 1, "that it goes on is no news"
        view.remove(service(4))
        assert woken.count(watcher) == 2 and view.find(topic) == []

    def test_who_looks_elsewhere_is_not_woken_any_more(self, view: View, woken: list[Key]) -> None:
        view.watch(self.WATCHER, [Topic("Checkpoint", "team"), Topic("CheckpointGrant", "team")])
        view.watch(self.WATCHER, [Topic("CheckpointGrant", "team")])
        view.put(self.resource("Checkpoint", "c", 1))
        assert self.WATCHER not in woken
        view.put(self.resource("CheckpointGrant", "g", 2))
        assert self.WATCHER in woken

    def test_what_is_under_a_topic_comes_in_order(self, view: View) -> None:
        for number, name in enumerate(("b", "a")):
            view.put(self.resource("Checkpoint", name, number + 1))
        names = [item["metadata"]["name"] for item in view.find(Topic("Checkpoint", "team"))]
        assert names == ["a", "b"]
        assert view.find(Topic("Checkpoint", "other")) == []


class TestVersions:
    """What a service serves, so that nobody deletes it."""

    def test_it_is_what_is_served_and_what_a_rollout_brings(self) -> None:
        status = {
            "checkpoint": "a, b",
            "served": {"version": "c"},
            "rollout": {
                "phase": "Gating",
                "to": {"version": "d"},
                "replicas": [{"version": "e"}],
                "older": ["f"],
            },
            "refused": [{"version": "g"}],
        }
        assert versions({"status": status}) == {"a", "b", "c", "d", "e", "f"}

    @pytest.mark.parametrize("phase", ["Done", "Failed", "Superseded"])
    def test_a_rollout_that_is_over_brings_nothing(self, phase: str) -> None:
        status = {"served": {"version": "a"}, "rollout": {"phase": phase, "to": {"version": "b"}}}
        assert versions({"status": status}) == {"a"}

    def test_a_new_service_serves_nothing(self) -> None:
        assert versions({}) == frozenset()
