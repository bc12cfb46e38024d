"""The view: what is known of the cluster, whoever brought it."""

from __future__ import annotations

from typing import Any

import pytest

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
