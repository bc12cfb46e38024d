"""What is looked at for each kind before its planner decides, and what wakes it again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from assay_operator.cluster.audit import ACTING
from assay_operator.cluster.topics import Topic
from assay_operator.cluster.view import Key, View
from assay_operator.config import OperatorConfig
from assay_operator.inference.kernels import Kernels
from assay_operator.inference.observation import LoadState, Observation, OtherWriter, Probe, Work
from assay_operator.plan import Json, Plan, Ref
from assay_operator.reconcilers import checkpoint as of_checkpoint
from assay_operator.reconcilers import training as of_training
from assay_operator.reconcilers.checkpoint import Checkpoints
from assay_operator.reconcilers.inference import Services
from assay_operator.reconcilers.shell import Shell
from assay_operator.reconcilers.training import Jobs
from assay_operator.runtime import _kinds
from assay_operator.sglang.client import Listing
from assay_operator.sglang.reach import ProbeError, Question
from tests.unit.worlds import NOW

SERVICE = Key("inferenceservice", "team", "solver")
JOB = Key("verifiedrljob", "lab", "solver-rl")
CHECKPOINT = Key("checkpoint", "lab", "solver-rl-1-20")
DIGEST = f"sha256:{'a' * 64}"
URL = frozenset({"http://10.0.0.1:30000"})


SCALES: Json = {
    "model": {"source": "pvc://a/b"},
    "autoscaling": {"driver": "builtin", "max": 4, "objectives": {"concurrency": 8}},
}


def written_by(manager: str, item: Json) -> Json:
    """The same as the API server tells it, with who wrote its replicas."""
    entry = {
        "manager": manager,
        "time": "2026-11-24T12:00:00Z",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    return {**item, "metadata": {**item["metadata"], "managedFields": [entry]}}


def resource(kind: str, key: Key, spec: Json | None = None, status: Json | None = None) -> Json:
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": f"uid-{key.name}"},
        "spec": spec or {},
        "status": status or {},
    }


def pod(key: Key, name: str, component: str, *, ready: bool = True, started: bool = True) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": key.namespace,
            "uid": f"uid-{name}",
            "labels": {
                "assay.dev/owner": key.label,
                "app.kubernetes.io/component": component,
                "batch.kubernetes.io/job-completion-index": "0",
            },
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": component, "started": started}],
        },
    }


class Fakes:
    """Everything that a look asks: it answers the same always, and notes who was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[str]] = {}
        self.busy: set[str] = set()
        self.loading: dict[str, LoadState] = {}
        self.working: dict[str, Work] = {}
        self.status: Any = {"name": "solver-rl", "step": 3}
        self.moved: list[Ref] = []
        self.there: dict[Ref, Json] = {}

    def note(self, what: str, pods: Iterable[Json]) -> list[str]:
        names = [item["metadata"]["uid"] for item in pods]
        self.asked[what] = names
        return names

    async def probes(self, pods: Iterable[Json], busy: Iterable[str]) -> dict[str, Probe]:
        self.busy = set(busy)
        return {uid: Probe("v") for uid in self.note("probes", pods)}

    async def kernels(self, pods: Iterable[Json]) -> dict[str, Kernels]:
        return {uid: Kernels(active=True) for uid in self.note("kernels", pods)}

    async def listings(self, pods: Iterable[Json]) -> dict[str, Listing | None]:
        return {uid: Listing(URL, URL | {"x"}) for uid in self.note("listings", pods)}

    async def works(self, pods: Iterable[Json]) -> dict[str, Work]:
        return {uid: self.working.get(uid, Work()) for uid in self.note("works", pods)}

    def loads(self, pods: Iterable[Json]) -> dict[str, LoadState]:
        return self.loading

    async def find(self, namespace: str, names: Iterable[Ref]) -> dict[Ref, Json | None]:
        self.asked["names"] = [f"{namespace}/{name.kind}/{name.name}" for name in sorted(names)]
        return {name: self.there.get(name) for name in names}

    async def ask(self, item: Json, question: Question) -> Any:
        self.note(question.path, [item])
        if isinstance(self.status, Exception):
            raise self.status
        return self.status

    def rejections(self, key: Key) -> dict[Ref, str]:
        return {Ref("Job", "x"): "no"}

    def drifted(self, key: Key) -> list[Ref]:
        return self.moved

    async def look(self, key: Key, owner: Json) -> None:
        """Of no service is any load known."""


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def shell(view: View, fakes: Fakes) -> Shell:
    fake: Any = fakes
    return Shell(view, fake, fake, fake, fake, fake, fake, OperatorConfig())


def test_every_kind_with_an_actor_has_somebody_who_looks(shell: Shell) -> None:
    assert set(_kinds(shell)) == {kind.lower() for kind in ACTING}


class Seen:
    """A planner that keeps what it was given."""

    def __init__(self) -> None:
        self.observations: list[Any] = []

    def __call__(self, observation: Any, config: OperatorConfig, now: Any) -> Plan:
        self.observations.append(observation)
        return Plan()


async def look(kind: Any, key: Key, view: View, seen: Seen) -> Any:
    """What the planner is given for an object that is in the view."""
    owner = view.owner(key)
    assert owner
    decide = await kind.look(key, owner)
    decide(owner, NOW)
    return seen.observations[-1]


class TestServices:
    @pytest.fixture
    def seen(self) -> Seen:
        return Seen()

    async def observed(self, shell: Shell, seen: Seen) -> Observation:
        found: Observation = await look(Services(shell, seen), SERVICE, shell.view, seen)
        return found

    async def test_ready_pods_are_asked_and_all_are_seen(
        self, shell: Shell, view: View, fakes: Fakes, seen: Seen
    ) -> None:
        view.put(resource("InferenceService", SERVICE, status={"rollout": {"phase": "Done"}}))
        for item in (
            pod(SERVICE, "e1", "engine"),
            pod(SERVICE, "e2", "engine", ready=False),
            pod(SERVICE, "r1", "router"),
            pod(SERVICE, "r2", "router", ready=False),
            pod(SERVICE, "g1", "gate", ready=False),
        ):
            view.put(item)
        made = await self.observed(shell, seen)
        assert fakes.asked["probes"] == ["uid-e1"] and fakes.asked["listings"] == ["uid-r1"]
        assert "works" not in fakes.asked
        assert [item["metadata"]["name"] for item in made.engines] == ["e1", "e2"]
        assert [item["metadata"]["name"] for item in made.jobs] == ["g1"]
        assert made.listings == {"uid-r1": URL} and made.known == {"uid-r1": URL | {"x"}}
        assert made.rejections

    @pytest.mark.parametrize(
        "rollout", [{"phase": "Waving"}, {"phase": "Done", "replicas": [{"uid": "uid-e2"}]}]
    )
    async def test_while_the_weights_change_all_that_are_up_are_asked_what_they_are_at(
        self, shell: Shell, view: View, fakes: Fakes, seen: Seen, rollout: Json
    ) -> None:
        """Also after the end, as long as one engine has to be put right."""
        view.put(resource("InferenceService", SERVICE, status={"rollout": rollout}))
        for name in ("e1", "e2", "e3"):
            view.put(pod(SERVICE, name, "engine"))
        view.put(pod(SERVICE, "e4", "engine", ready=False))
        view.put(pod(SERVICE, "e5", "engine", ready=False, started=False))
        view.put(pod(SERVICE, "r2", "router", ready=False))
        fakes.working["uid-e2"] = Work(0, paused=True)
        fakes.loading = {
            "uid-e1": LoadState("v", "done"),
            "uid-e3": LoadState("v", "running"),
        }
        made = await self.observed(shell, seen)
        up = ["uid-e1", "uid-e2", "uid-e3", "uid-e4"]
        assert fakes.asked["works"] == fakes.asked["probes"] == up
        assert fakes.asked["listings"] == ["uid-r2"]
        assert made.works["uid-e2"].paused and made.loads == fakes.loading
        assert fakes.busy == {"uid-e2", "uid-e3", "uid-e4"}, "these are not made to generate now"

    async def test_one_that_refers_to_nothing_sees_nothing_and_is_woken_by_nothing(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        view.put(resource("InferenceService", SERVICE, {"model": {"source": "pvc://a/b"}}))
        view.put(resource("Checkpoint", Key("checkpoint", "team", "c")))
        made = await self.observed(shell, seen)
        assert (made.checkpoints, made.followed, made.grants) == ((), None, ())
        assert fakes.asked["names"] == []
        assert self.woken_by(view, "Checkpoint", "team") is False

    async def test_one_that_pins_sees_that_checkpoint(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        source = {"source": "checkpoint://mine"}
        view.put(resource("InferenceService", SERVICE, {"model": source}))
        for name in ("mine", "other"):
            place = {"source": f"pvc://{name}/x"}
            view.put(resource("Checkpoint", Key("checkpoint", "team", name), place))
        made = await self.observed(shell, seen)
        assert [item["metadata"]["name"] for item in made.checkpoints] == ["mine"]
        assert made.found == {Ref("PersistentVolumeClaim", "mine"): None}
        assert self.woken_by(view, "Checkpoint", "team")

    async def test_one_that_follows_sees_the_jobs_checkpoints_and_grants(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        follow = {"job": "solver-rl", "namespace": "lab", "claim": "mirror"}
        gate = {"suite": {"configMap": "heldout"}}
        spec = {
            "model": {"source": "pvc://a/b", "follow": follow},
            "rollout": {"gate": gate},
        }
        view.put(resource("InferenceService", SERVICE, spec))
        view.put(resource("VerifiedRLJob", JOB))
        view.put(resource("CheckpointGrant", Key("checkpointgrant", "lab", "g")))
        for name, job in (("a", "solver-rl"), ("b", "another")):
            made_by = {"source": "pvc://x/y", "job": {"name": job}}
            view.put(resource("Checkpoint", Key("checkpoint", "lab", name), made_by))
        made = await self.observed(shell, seen)
        assert [item["metadata"]["name"] for item in made.checkpoints] == ["a"]
        assert made.followed and made.followed["metadata"]["name"] == "solver-rl"
        assert len(made.grants) == 1
        assert fakes.asked["names"] == [
            "team/ConfigMap/heldout",
            "team/PersistentVolumeClaim/mirror",
        ]
        for kind in ("Checkpoint", "CheckpointGrant", "VerifiedRLJob"):
            assert self.woken_by(view, kind, "lab"), kind

    @pytest.mark.parametrize(
        ("asked", "noted", "said"), [(4, 1, "kubectl"), (1, 1, None), (0, 1, None), (4, None, None)]
    )
    async def test_who_writes_replicas_beside_the_builtin_driver_is_looked_up(
        self,
        shell: Shell,
        view: View,
        seen: Seen,
        fakes: Fakes,
        asked: int,
        noted: int | None,
        said: str | None,
    ) -> None:
        """Asked is only where the number is another one than when the driver took over."""
        status = {"autoscaling": {"driver": "builtin", "specReplicas": noted}}
        item = resource("InferenceService", SERVICE, {**SCALES, "replicas": asked}, status)
        view.put(item)
        fakes.there[Ref("InferenceService", "solver")] = written_by("kubectl", item)
        other = (await self.observed(shell, seen)).other
        assert (other.by if other else None) == said

    async def test_who_scales_the_deployment_is_looked_up(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        view.put(resource("InferenceService", SERVICE, SCALES))
        engines = Ref("Deployment", "solver-engine")
        deployment = {"metadata": {"name": "solver-engine"}, "spec": {"replicas": 5}}
        fakes.there[engines] = written_by("kube-controller-manager", deployment)
        assert (await self.observed(shell, seen)).other is None
        fakes.moved = [engines]
        other = (await self.observed(shell, seen)).other
        assert other == OtherWriter(engines, "kube-controller-manager", 5)

    async def test_a_scaled_object_is_looked_up_since_no_watch_tells_of_it(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        """Also when the driver has just become another one: what is not seen is never pruned."""
        name = Ref("ScaledObject", "solver")
        child = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {
                "name": "solver",
                "namespace": "team",
                "resourceVersion": "5",
                "labels": {"assay.dev/owner": SERVICE.label},
            },
        }
        status = {"autoscaling": {"driver": "keda"}}
        view.put(resource("InferenceService", SERVICE, SCALES, status))
        fakes.there[name] = child
        assert name in (await self.observed(shell, seen)).children
        fakes.there.clear()
        assert name not in (await self.observed(shell, seen)).children

    @staticmethod
    def woken_by(view: View, kind: str, namespace: str) -> bool:
        """Whether a new object of this kind wakes the service."""
        woken: list[Key] = []
        view.wake = woken.append
        view.put(resource(kind, Key(kind.lower(), namespace, "another")))
        return SERVICE in woken


class TestCheckpoints:
    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> Seen:
        made = Seen()
        monkeypatch.setattr(of_checkpoint, "plan", made)
        return made

    async def test_who_serves_it_is_seen_wherever_that_is_and_wakes_it(
        self, shell: Shell, view: View, seen: Seen
    ) -> None:
        view.put(resource("Checkpoint", CHECKPOINT, {"digest": DIGEST}, {"digest": DIGEST}))
        view.put(resource("InferenceService", SERVICE, status={"served": {"version": DIGEST}}))
        made = await look(Checkpoints(shell), CHECKPOINT, view, seen)
        assert [item["metadata"]["name"] for item in made.serving] == ["solver"]
        woken: list[Key] = []
        view.wake = woken.append
        another = Key("inferenceservice", "elsewhere", "chat")
        view.put(resource("InferenceService", another, status={"checkpoint": DIGEST}))
        assert CHECKPOINT in woken

    async def test_what_its_job_needs_is_looked_up(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        evaluation = {"suite": {"configMap": "heldout"}}
        view.put(
            resource("Checkpoint", CHECKPOINT, {"source": "pvc://a/b", "evaluation": evaluation})
        )
        view.put(pod(CHECKPOINT, "w", "weigh"))
        made = await look(Checkpoints(shell), CHECKPOINT, view, seen)
        assert fakes.asked["names"] == ["lab/ConfigMap/heldout", "lab/PersistentVolumeClaim/a"]
        assert len(made.pods) == 1


class TestJobs:
    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> Seen:
        made = Seen()
        monkeypatch.setattr(of_training, "plan", made)
        return made

    @pytest.fixture(autouse=True)
    def world(self, view: View) -> None:
        view.put(resource("VerifiedRLJob", JOB))
        view.put(resource("Checkpoint", CHECKPOINT, {"digest": DIGEST}))
        view.put(pod(JOB, "t", "trainer", ready=False))
        view.put(pod(JOB, "e", "engine"))

    async def test_engines_that_are_ready_are_asked_for_their_kernels(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        view.put(pod(JOB, "loads", "engine", ready=False))
        made = await look(Jobs(shell), JOB, view, seen)
        assert fakes.asked["kernels"] == ["uid-e"] == list(made.kernels)

    async def test_its_trainer_is_asked_and_all_pods_are_seen(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes
    ) -> None:
        made = await look(Jobs(shell), JOB, view, seen)
        assert fakes.asked["/status"] == ["uid-t"]
        assert made.answers["uid-t"].status == fakes.status
        assert [item["metadata"]["name"] for item in made.trainers] == ["t"]
        assert [item["metadata"]["name"] for item in made.engines] == ["e"]

    @pytest.mark.parametrize("answer", [ProbeError("/status: no answer within 5 s"), [], None])
    async def test_silence_and_nonsense_are_told_apart_from_a_status(
        self, shell: Shell, view: View, seen: Seen, fakes: Fakes, answer: Any
    ) -> None:
        fakes.status = answer
        made = await look(Jobs(shell), JOB, view, seen)
        assert made.answers["uid-t"].status is None
        assert made.answers["uid-t"].error.startswith("/status: ")

    async def test_checkpoints_that_services_have_are_pinned_and_news_of_it_wakes(
        self, shell: Shell, view: View, seen: Seen
    ) -> None:
        made = await look(Jobs(shell), JOB, view, seen)
        assert len(made.checkpoints) == 1 and made.pinned == frozenset()
        woken: list[Key] = []
        view.wake = woken.append
        view.put(resource("InferenceService", SERVICE, status={"served": {"version": DIGEST}}))
        assert JOB in woken
        made = await look(Jobs(shell), JOB, view, seen)
        assert made.pinned == {DIGEST}

    async def test_a_checkpoint_that_goes_wakes_it(
        self, shell: Shell, view: View, seen: Seen
    ) -> None:
        await look(Jobs(shell), JOB, view, seen)
        woken: list[Key] = []
        view.wake = woken.append
        view.remove(resource("Checkpoint", CHECKPOINT))
        assert woken.count(JOB) == 1 and Topic("Checkpoint", "lab") in view._watchers
