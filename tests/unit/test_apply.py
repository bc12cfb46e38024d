"""Carrying out a plan: only what is due, each thing by itself, never over what is not ours."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest

from assay_operator.cluster.apply import Applier
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.due import (
    Applied,
    event_object,
    is_due,
    other_writer,
    owned,
    status_is_due,
    superfluous,
    without_nulls,
)
from assay_operator.cluster.view import Key, View
from assay_operator.plan import (
    Annotate,
    Event,
    Json,
    Load,
    Pause,
    Plan,
    Ref,
    Restart,
    Resume,
)

NOW = datetime(2026, 11, 24, tzinfo=UTC)
KEY = Key("inferenceservice", "team", "solver")
OWNER: Json = {
    "apiVersion": "assay.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {
        "name": "solver",
        "namespace": "team",
        "uid": "owner-uid",
        "resourceVersion": "1",
        "generation": 1,
    },
}


def config_map(name: str = "a", **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(replicas: int = 1) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {"replicas": replicas},
    }


def claim(kept: bool = True, **labels: str) -> Json:
    labels |= {"assay.dev/keep": "true"} if kept else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "solver-checkpoints", "labels": labels},
    }


def checkpoint(name: str = "solver-1-20", digest: str = "sha256:aa") -> Json:
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name, "labels": {"assay.dev/keep": "true"}},
        "spec": {"digest": digest},
    }


class FakeClient:
    """An API server in memory: versions, generations, conflicts and refusals."""

    def __init__(self) -> None:
        self.leads = True
        self.objects: dict[tuple[str, str], Json] = {}
        self.writes: list[str] = []
        self.refuse: dict[str, ApiError] = {}
        self._version = 100

    def foreign(self, item: Json, **metadata: Any) -> Json:
        """Somebody else writes `item`."""
        stored = copy.deepcopy(item)
        stored["metadata"] |= {"namespace": "team", "uid": f"uid-{item['metadata']['name']}"}
        stored["metadata"] |= metadata
        return self._store(stored)

    def may_write(self) -> bool:
        return self.leads

    async def apply(self, item: Json, sub: str | None = None, force: bool = True) -> Json:
        name = item["metadata"]["name"]
        self.writes.append(f"apply {item['kind']}/{name}" + (f"/{sub}" if sub else ""))
        if name in self.refuse:
            raise self.refuse[name]
        there = self.objects.get((item["kind"], name))
        if there and not force and there.get("data") != item.get("data"):
            raise ApiError(409, "Conflict", "conflict with kubectl")
        merged = {**copy.deepcopy(there or {}), **copy.deepcopy(item)}
        merged["metadata"] = {"uid": f"uid-{name}", **(there or {}).get("metadata", {})}
        merged["metadata"] |= copy.deepcopy(item["metadata"])
        return there if merged == there and there else self._store(merged)

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        if (kind, name) not in self.objects:
            raise ApiError(404, "NotFound", f"{name} not found")
        return copy.deepcopy(self.objects[kind, name])

    async def delete(self, item: Json) -> None:
        self.writes.append(f"delete {item['kind']}/{item['metadata']['name']}")
        del self.objects[item["kind"], item["metadata"]["name"]]

    async def create(self, item: Json) -> Json:
        self.writes.append(f"create {item['kind']}")
        if (item["kind"], item["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", "exists")
        return self._store(item)

    async def merge(self, item: Json) -> Json:
        self.writes.append(f"merge {item['kind']}/{item['metadata']['name']}")
        there = self.objects[item["kind"], item["metadata"]["name"]]
        merged = {**copy.deepcopy(there), **copy.deepcopy(item)}
        merged["metadata"] = {**there["metadata"], **copy.deepcopy(item["metadata"])}
        return self._store(merged)

    async def annotate(self, kind: str, namespace: str, name: str, notes: Json) -> Json:
        self.writes.append(f"annotate {kind}/{name}")
        item = copy.deepcopy(self.objects[kind, name])
        item["metadata"]["annotations"] = notes
        return self._store(item)

    def _store(self, item: Json) -> Json:
        before = self.objects.get((item["kind"], item["metadata"]["name"]), {})
        self._version += 1
        stored = copy.deepcopy(item)
        stored["metadata"]["resourceVersion"] = str(self._version)
        if "spec" in item:
            old = before.get("metadata", {}).get("generation", 0)
            moved = before.get("spec") != item["spec"]
            stored["metadata"]["generation"] = old + 1 if moved else old
        self.objects[item["kind"], item["metadata"]["name"]] = stored
        return copy.deepcopy(stored)


class FakeEngines:
    """Writes down what it is asked for."""

    def __init__(self, writes: list[str]) -> None:
        self.writes = writes

    def load(self, pod: Json, action: Load) -> None:
        self.writes.append(f"load {action.version} into {pod['metadata']['name']}")

    async def pause(self, pod: Json) -> None:
        self.writes.append(f"pause {pod['metadata']['name']}")

    async def resume(self, pod: Json) -> None:
        self.writes.append(f"resume {pod['metadata']['name']}")


def made(client: FakeClient, view: View) -> Applier:
    return Applier(client, view, FakeEngines(client.writes))  # type: ignore[arg-type]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def view() -> View:
    made = View()
    made.put(copy.deepcopy(OWNER))
    return made


@pytest.fixture
def applier(client: FakeClient, view: View) -> Applier:
    return made(client, view)


async def carry_out(applier: Applier, *objects: Json, **more: Any) -> bool:
    outcome = await applier.children(KEY, OWNER, Plan(objects, **more))
    assert not outcome.errors
    return outcome.changed


class TestDue:
    def test_a_missing_child_is(self) -> None:
        assert is_due(owned(deployment(), OWNER), None, None)

    def test_a_child_is_not_while_neither_it_nor_the_wish_moved(self) -> None:
        wish, live = self.pair(deployment(), generation=3)
        assert not is_due(wish, live, Applied.of(wish, live))

    def test_a_child_is_after_a_restart_as_nothing_is_known_of_the_last_apply(self) -> None:
        assert is_due(*self.pair(deployment(), generation=3), None)

    def test_it_is_when_something_else_is_wished(self) -> None:
        wish, live = self.pair(deployment(), generation=3)
        assert is_due(owned(deployment(2), OWNER), live, Applied.of(wish, live))

    def test_a_status_that_moves_no_generation_does_not_count(self) -> None:
        wish, live = self.pair(deployment(), generation=3)
        last = Applied.of(wish, live)
        live["metadata"]["resourceVersion"] = "99"
        assert not is_due(wish, live, last)
        live["metadata"]["generation"] = 4
        assert is_due(wish, live, last)

    def test_a_kind_without_generation_is_told_by_its_version(self) -> None:
        wish, live = self.pair(config_map(k="v"))
        last = Applied.of(wish, live)
        live["metadata"]["resourceVersion"] = "99"
        assert is_due(wish, live, last)

    @pytest.mark.parametrize("part", ["labels", "ownerReferences"])
    def test_metadata_moves_no_generation_and_is_compared(self, part: str) -> None:
        wish, live = self.pair(deployment(), generation=3)
        last = Applied.of(wish, live)
        live["metadata"][part] = type(live["metadata"][part])()
        assert is_due(wish, live, last)

    @staticmethod
    def pair(item: Json, **metadata: Any) -> tuple[Json, Json]:
        wish = owned(item, OWNER)
        live = copy.deepcopy(wish)
        live["metadata"] |= {"resourceVersion": "7", **metadata}
        return wish, live


class TestChildren:
    async def test_they_get_owner_and_labels(self, applier: Applier, client: FakeClient) -> None:
        await carry_out(applier, config_map())
        metadata = client.objects["ConfigMap", "a"]["metadata"]
        assert metadata["namespace"] == "team"
        assert metadata["labels"] == {
            "app.kubernetes.io/managed-by": "assay",
            "assay.dev/owner": "inferenceservice.solver",
        }
        [reference] = metadata["ownerReferences"]
        assert reference["controller"] and not reference["blockOwnerDeletion"]
        assert reference["uid"] == "owner-uid"

    async def test_they_are_written_once(self, applier: Applier, client: FakeClient) -> None:
        assert await carry_out(applier, config_map(), deployment())
        assert not await carry_out(applier, config_map(), deployment())
        assert client.writes == ["apply ConfigMap/a", "apply Deployment/a"]

    async def test_a_restart_costs_one_apply_each_and_changes_nothing(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        await carry_out(applier, config_map())
        before = client.objects["ConfigMap", "a"]["metadata"]["resourceVersion"]
        second = made(client, view)
        assert not await carry_out(second, config_map())
        assert not await carry_out(second, config_map())
        assert client.writes == ["apply ConfigMap/a"] * 2
        assert client.objects["ConfigMap", "a"]["metadata"]["resourceVersion"] == before

    async def test_drift_is_reverted(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        await carry_out(applier, config_map(k="v"))
        drifted = copy.deepcopy(client.objects["ConfigMap", "a"])
        drifted["data"] = {"k": "somebody's"}
        view.put(client.foreign(drifted, uid="uid-a"), watched=True)
        await carry_out(applier, config_map(k="v"))
        assert client.objects["ConfigMap", "a"]["data"] == {"k": "v"}

    async def test_who_changed_a_child_is_told_until_it_is_put_right(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        await carry_out(applier, deployment(1))
        assert applier.drifted(KEY) == []
        scaled = copy.deepcopy(client.objects["Deployment", "a"])
        scaled["spec"]["replicas"] = 5
        scaled["metadata"]["generation"] += 1
        view.put(client.foreign(scaled, uid="uid-a"), watched=True)
        assert applier.drifted(KEY) == [Ref("Deployment", "a")]
        await carry_out(applier, deployment(1))
        assert applier.drifted(KEY) == []

    async def test_somebody_elses_autoscaler_of_the_same_name_is_not_taken(
        self, applier: Applier, client: FakeClient
    ) -> None:
        theirs = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"},
        }
        client.foreign(theirs)
        await carry_out(applier, theirs)
        assert client.writes == []
        assert Ref("HorizontalPodAutoscaler", "a") in applier.rejections(KEY)

    async def test_what_others_made_invalid_is_replaced(
        self, applier: Applier, client: FakeClient
    ) -> None:
        """Server-side apply leaves what others added to a list; a merge patch does not."""
        await carry_out(applier, config_map())
        client.foreign(client.objects["ConfigMap", "a"])
        client.refuse["a"] = ApiError(422, "Invalid", 'Duplicate value: "http"')
        await carry_out(applier, config_map(k="v2"))
        assert client.writes[-2:] == ["apply ConfigMap/a", "merge ConfigMap/a"]
        assert client.objects["ConfigMap", "a"]["data"] == {"k": "v2"}

    async def test_a_job_is_made_once_though_a_new_release_would_make_another(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"a": 1}}
        await carry_out(applier, job)
        assert not await carry_out(made(client, view), job | {"spec": {"a": 2}})
        assert client.writes == ["apply Job/j"]

    async def test_what_the_plan_does_not_name_is_deleted(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, config_map("a"), config_map("b"))
        assert not await carry_out(applier, config_map("a"), prune=False)
        assert await carry_out(applier, config_map("a"))
        assert client.writes[-1] == "delete ConfigMap/b"

    def test_only_our_own_is_ever_deleted(self) -> None:
        ours, theirs = owned(config_map("a"), OWNER), config_map("b")
        leaving = owned(config_map("c"), OWNER)
        leaving["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
        assert superfluous([ours, theirs, leaving], [], "owner-uid") == [ours]
        assert superfluous([ours], [Ref("ConfigMap", "a")], "owner-uid") == []
        assert superfluous([ours], [], "uid of a namesake") == []

    async def test_an_object_of_somebody_else_is_not_taken(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.foreign(config_map(k="theirs"))
        assert await carry_out(applier, config_map(k="ours"))
        assert client.objects["ConfigMap", "a"]["data"] == {"k": "theirs"}
        assert "is not this object's" in applier.rejections(KEY)[Ref("ConfigMap", "a")]

    async def test_the_child_of_another_object_of_ours_is_not_taken(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        """Both have one field manager, so the API server would let each take it from the other."""
        other = {**OWNER, "metadata": {**OWNER["metadata"], "name": "other", "uid": "other-uid"}}
        view.put(client.foreign(owned(config_map(k="theirs"), other)))
        await carry_out(applier, config_map(k="theirs"))
        assert client.writes == []
        assert "is not this object's" in applier.rejections(KEY)[Ref("ConfigMap", "a")]

    async def test_what_is_ours_is_taken_though_the_view_did_not_know_it(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.foreign(owned(config_map(k="older"), OWNER))
        await carry_out(applier, config_map(k="ours"))
        assert client.objects["ConfigMap", "a"]["data"] == {"k": "ours"}


class TestWhatOutlivesItsOwner:
    """Claims and Checkpoints hold what cannot be made again."""

    async def test_it_has_the_label_and_no_reference(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, claim())
        assert not await carry_out(applier, claim())
        metadata = client.objects["PersistentVolumeClaim", "solver-checkpoints"]["metadata"]
        assert metadata["labels"]["assay.dev/owner"] == "inferenceservice.solver"
        assert "ownerReferences" not in metadata
        assert client.writes == ["apply PersistentVolumeClaim/solver-checkpoints"]

    async def test_no_plan_prunes_it(self, applier: Applier, client: FakeClient) -> None:
        keeps = config_map("b")
        keeps["metadata"]["labels"] = {"assay.dev/keep": "true"}
        await carry_out(applier, claim(), checkpoint(), keeps)
        assert not await carry_out(applier)
        assert len(client.objects) == 3

    async def test_a_claim_that_goes_with_its_owner_is_not_pruned_either(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, claim(kept=False))
        [stored] = client.objects.values()
        assert stored["metadata"]["ownerReferences"][0]["uid"] == "owner-uid"
        assert not await carry_out(applier)
        assert client.objects

    @pytest.mark.parametrize("item", [claim(), claim(kept=False), checkpoint()])
    async def test_somebody_elses_is_not_taken_even_if_it_is_the_same(
        self, applier: Applier, client: FakeClient, item: Json
    ) -> None:
        theirs = copy.deepcopy(item)
        theirs["metadata"]["labels"] = {}
        client.foreign(theirs)
        await carry_out(applier, item)
        assert client.writes == []
        [message] = applier.rejections(KEY).values()
        assert "is not this object's" in message

    async def test_an_owner_that_is_made_anew_goes_on_with_it(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.foreign(owned(claim(), {**OWNER, "metadata": {**OWNER["metadata"], "uid": "past"}}))
        await carry_out(applier, claim(size="more"))
        assert applier.rejections(KEY) == {}
        assert client.writes == ["apply PersistentVolumeClaim/solver-checkpoints"]

    async def test_what_shall_go_with_the_owner_after_all_gets_its_reference(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, claim())
        await carry_out(applier, claim(kept=False))
        [stored] = client.objects.values()
        assert stored["metadata"]["ownerReferences"][0]["uid"] == "owner-uid"

    async def test_a_custom_resource_goes_when_the_plan_names_it(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        await carry_out(applier, checkpoint("old"), checkpoint("new"))
        gone = (Ref("Checkpoint", "old"), Ref("Checkpoint", "never-was"))
        assert await carry_out(applier, checkpoint("new"), delete=gone)
        assert set(client.objects) == {("Checkpoint", "new")}
        assert not await carry_out(applier, checkpoint("new"), delete=gone)

    async def test_it_goes_though_something_else_is_refused(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, checkpoint("old"))
        client.refuse["a"] = ApiError(422, "Invalid", "no")
        await carry_out(applier, config_map("a"), delete=(Ref("Checkpoint", "old"),))
        assert client.objects == {}

    async def test_one_of_somebody_elses_stays_though_a_plan_names_it(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        theirs = checkpoint("theirs")
        view.put(client.foreign(theirs))
        await carry_out(applier, delete=(Ref("Checkpoint", "theirs"),))
        assert client.writes == []

    async def test_making_one_wakes_its_own_actor(self, applier: Applier, view: View) -> None:
        woken: list[Key] = []
        view.wake = woken.append
        await carry_out(applier, config_map(), checkpoint())
        assert woken == [Key("checkpoint", "team", "solver-1-20")]


class TestOtherWriters:
    """Who wrote a field, as the API server keeps it."""

    def item(self, *entries: Json) -> Json:
        return {"metadata": {"managedFields": list(entries)}}

    def entry(self, manager: str, time: str = "2026-11-24T12:00:00Z", **more: Any) -> Json:
        return {
            "manager": manager,
            "time": time,
            "fieldsV1": {"f:spec": {"f:replicas": {}, "f:model": {"f:source": {}}}},
            **more,
        }

    def test_the_last_one_is_named_with_the_way_that_was_taken(self) -> None:
        found = self.item(
            self.entry("helm", "2026-11-23T12:00:00Z"),
            self.entry("kubectl", subresource="scale"),
        )
        assert other_writer(found, "spec", "replicas") == "kubectl (by the subresource scale)"

    def test_we_are_no_other_and_neither_is_one_who_wrote_something_else(self) -> None:
        other = self.entry("kubectl", fieldsV1={"f:spec": {"f:model": {}}})
        assert other_writer(self.item(self.entry("assay"), other), "spec", "replicas") is None
        assert other_writer({"metadata": {}}, "spec", "replicas") is None


class TestRefusals:
    async def test_one_is_recorded_and_stops_no_other_child(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.refuse["a"] = ApiError(403, "Forbidden", "exceeded quota")
        assert await carry_out(applier, config_map("a"), config_map("b"))
        assert applier.rejections(KEY) == {Ref("ConfigMap", "a"): "exceeded quota"}
        assert ("ConfigMap", "b") in client.objects
        assert 0 < (applier.retry_in(KEY) or 0) < 5

    async def test_it_is_not_sent_again_at_once_unless_it_changed(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.refuse["a"] = ApiError(422, "Invalid", "spec is wrong")
        await carry_out(applier, config_map("a"))
        assert not await carry_out(applier, config_map("a"))
        assert len(client.writes) == 1
        del client.refuse["a"]
        assert await carry_out(applier, config_map("a", mended="yes"))
        assert applier.rejections(KEY) == {}
        assert applier.retry_in(KEY) is None

    async def test_nothing_is_deleted_while_something_is_refused(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await carry_out(applier, config_map("old"))
        client.refuse["new"] = ApiError(422, "Invalid", "no")
        await carry_out(applier, config_map("new"))
        assert ("ConfigMap", "old") in client.objects

    async def test_a_passing_failure_is_no_refusal(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.refuse["a"] = ApiError(503, "ServiceUnavailable", "later")
        outcome = await applier.children(KEY, OWNER, Plan((config_map("a"), config_map("b"))))
        assert [error.status for error in outcome.errors] == [503]
        assert applier.rejections(KEY) == {}
        assert ("ConfigMap", "b") in client.objects


class TestTelling:
    async def test_the_status_is_written_only_when_it_differs(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        client.foreign(OWNER, uid="owner-uid")
        status = {"replicas": 1, "url": None}
        await applier.tell(KEY, OWNER, Plan(status=status), NOW)
        now = view.owner(KEY)
        assert now and now["status"] == {"replicas": 1}
        await applier.tell(KEY, now, Plan(status=status), NOW)
        assert client.writes == ["apply InferenceService/solver/status"]

    def test_what_others_add_to_the_status_causes_no_loop(self) -> None:
        desired, live = {"replicas": 1}, {"replicas": 1, "theirs": True}
        assert status_is_due(desired, live, None)
        assert not status_is_due(desired, live, (desired, live))
        assert not status_is_due({}, live, None)

    def test_nulls_are_no_keys(self) -> None:
        data = {"a": None, "b": [{"c": None, "d": 1}], "e": False}
        assert without_nulls(data) == {"b": [{"d": 1}], "e": False}

    async def test_an_event_is_said_once_even_by_the_next_leader(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        told = Plan(events=(Event("Ready", "it answers"),))
        await applier.tell(KEY, OWNER, told, NOW)
        await made(client, view).tell(KEY, OWNER, told, NOW)
        assert len([kind for kind, _ in client.objects if kind == "Event"]) == 1

    def test_the_same_event_after_another_status_is_told_again(self) -> None:
        event = Event("Ready", "it answers")
        again = {**OWNER, "status": {"replicas": 0}}
        names = {event_object(event, owner, NOW)["metadata"]["name"] for owner in (OWNER, again)}
        assert len(names) == 2

    async def test_a_pod_is_annotated_only_if_the_value_differs(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        pod: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        view.put(client.foreign(owned(pod, OWNER)))
        nudge = Plan(actions=(Annotate("p", "assay.dev/workers", "x"),))
        await applier.tell(KEY, OWNER, nudge, NOW)
        await applier.tell(KEY, OWNER, nudge, NOW)
        assert client.writes == ["annotate Pod/p"]
        await applier.tell(KEY, OWNER, Plan(actions=(Annotate("gone", "k", "v"),)), NOW)


class TestEngineActions:
    """What changes engines is done once the status says so."""

    ACTIONS = (Pause("p"), Load("p", "/models/b", "v2"), Resume("p"), Restart("q"))

    @pytest.fixture(autouse=True)
    def pods(self, client: FakeClient, view: View) -> None:
        for name in ("p", "q"):
            pod: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}}
            view.put(client.foreign(owned(pod, OWNER)))
        client.foreign(OWNER, uid="owner-uid")

    async def test_they_come_in_order_and_after_the_status(
        self, applier: Applier, client: FakeClient
    ) -> None:
        nudge = Annotate("p", "assay.dev/workers", "x")
        made = Plan(status={"replicas": 1}, actions=(*self.ACTIONS, nudge))
        await applier.tell(KEY, OWNER, made, NOW)
        assert client.writes == [
            *("annotate Pod/p", "apply InferenceService/solver/status"),
            *("pause p", "load v2 into p", "resume p", "delete Pod/q"),
        ]

    async def test_they_wait_for_a_status_that_could_not_be_written(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.refuse["solver"] = ApiError(503, "ServiceUnavailable", "later")
        with pytest.raises(ApiError):
            await applier.tell(KEY, OWNER, Plan(status={"replicas": 1}, actions=self.ACTIONS), NOW)
        client.refuse["solver"] = ApiError(404, "NotFound", "gone")
        await applier.tell(KEY, OWNER, Plan(status={"replicas": 1}, actions=self.ACTIONS), NOW)
        assert set(client.writes) == {"apply InferenceService/solver/status"}

    async def test_a_status_that_stands_is_not_written_again_for_them(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await applier.tell(KEY, OWNER, Plan(actions=(Pause("p"),)), NOW)
        assert client.writes == ["pause p"]

    async def test_a_process_that_does_not_lead_any_more_touches_no_engine(
        self, applier: Applier, client: FakeClient
    ) -> None:
        client.leads = False
        for action in self.ACTIONS:
            with pytest.raises(ApiError, match="lease"):
                await applier.tell(KEY, OWNER, Plan(actions=(action,)), NOW)
        assert client.writes == []

    async def test_a_pod_on_its_way_out_is_not_deleted_again(
        self, applier: Applier, client: FakeClient, view: View
    ) -> None:
        going = copy.deepcopy(client.objects["Pod", "q"])
        going["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
        view.put(client.foreign(going, uid="uid-q"))
        await applier.tell(KEY, OWNER, Plan(actions=(Restart("q"),)), NOW)
        assert client.writes == []

    async def test_a_pod_that_is_gone_is_no_error(
        self, applier: Applier, client: FakeClient
    ) -> None:
        await applier.tell(KEY, OWNER, Plan(actions=(Restart("gone"), Pause("gone"))), NOW)
        assert client.writes == []
