"""A small cluster for the tests of training: it does what Kubernetes and a trainer would do.

Objects are plain data as the API server has them. Time goes on in ticks; in each one, containers
start, trainers finish a step, controllers act, and then an operator without any memory looks once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from assay_operator.cluster.due import is_dismissible, owned, superfluous, without_nulls
from assay_operator.config import OperatorConfig
from assay_operator.inference.kernels import Kernels
from assay_operator.plan import Event, Json, Plan, Ref, ref
from assay_operator.training.observation import (
    Observation,
    TrainerAnswer,
    generation_of,
    to_ask,
)
from assay_operator.training.planner import plan

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
TICK = 10.0
CONFIG = OperatorConfig()
INDEX = "batch.kubernetes.io/job-completion-index"
SPEC: Json = {
    "model": {"source": "pvc://models/base"},
    "data": {"source": "reasoning-gym://number_sorting?seed=7"},
    "verifiers": [{"type": "math"}],
    "rollout": {"engine": {"accelerator": "cpu"}},
    "trainer": {"accelerator": "cpu", "steps": 6, "promptsPerStep": 4},
    "checkpoint": {"every": 2, "keep": 2, "storage": {"claim": "ckpt"}},
    "evaluation": {
        "every": 2,
        "suite": {"configMap": "heldout"},
        "minScore": 0.1,
    },
    "progressDeadline": "3m",
}


def merged(base: Json, over: Json) -> Json:
    """`base` with `over` laid over it, key by key; None removes a key."""
    out = dict(base)
    for key, value in over.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def vrl(spec: Json | None = None, status: Json | None = None) -> Json:
    """A VerifiedRLJob called solver-rl."""
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "VerifiedRLJob",
        "metadata": {
            "name": "solver-rl",
            "namespace": "default",
            "uid": "u-job",
            "generation": 1,
        },
        "spec": merged(copy.deepcopy(SPEC), spec or {}),
        **({"status": status} if status else {}),
    }


def digest(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()


@dataclass
class Storage:
    """What a trainer leaves on the claim: it outlives every pod."""

    attempt: int = 0
    saved: list[Json] = field(default_factory=list)

    def save(self, step: int, keep: int, pins: set[str]) -> None:
        """Writes a checkpoint, and deletes as the trainer's keep-policy does."""
        version = f"{self.attempt}.{step}"
        score = round(0.1 + step / 20, 3)
        self.saved.insert(
            0,
            {
                "step": step,
                "path": f"/checkpoints/solver-rl/checkpoints/step-{step:06d}.{self.attempt}",
                "digest": digest(version),
                "version": version,
                "parent": self.saved[0]["digest"] if self.saved else None,
                "score": score,
                "verified": True,
                "evaluation": {
                    "score": score,
                    "interval": [score - 0.05, score + 0.05],
                    "items": 40,
                    "why": f"verified: score {score}",
                },
                "time": "2026-11-24T12:00:00+00:00",
            },
        )
        best = max(self.saved, key=lambda each: each["score"])
        self.saved = [
            each
            for at, each in enumerate(self.saved)
            if at < keep or each is best or each["digest"] in pins
        ]

    @property
    def step(self) -> int:
        return self.saved[0]["step"] if self.saved else 0


@dataclass
class Trainer:
    """The process in the pod of index 0. What it has to do it reads once, from the job file."""

    step: int
    of: int
    every: int
    keep: int
    phase: str = "rollout"
    alarms: list[Json] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    hangs: bool = False
    mute: bool = False

    def tells(self, storage: Storage) -> Json:
        return {
            "name": "solver-rl",
            "phase": self.phase,
            "phaseDone": 0,
            "step": self.step,
            "of": self.of,
            "reward": 0.25 + self.step / 100,
            "score": 0.1 + self.step / 20,
            "secondsPerStep": TICK,
            "etaSeconds": TICK * (self.of - self.step),
            "checkpoints": list(storage.saved),
            "alarms": self.alarms,
            "doubts": self.doubts,
            "message": "",
            "metrics": {},
        }


class Cluster:
    """One namespace with one job.

    Args:
        spec: of the job, over `SPEC`.
        lag: ticks from a pod's deletion until it is gone, beyond its process's end.
        words: whether trainers leave their last words.
    """

    def __init__(self, spec: Json | None = None, *, lag: int = 0, words: bool = True) -> None:
        self.now = START
        self.job = vrl(spec)
        self.children: dict[Ref, Json] = {}
        self.checkpoints: dict[str, Json] = {}
        self.pods: list[Json] = []
        self.found: dict[Ref, Json | None] = {}
        self.pinned: frozenset[str] = frozenset()
        self.storage = Storage()
        self.trainers: dict[str, Trainer] = {}
        self.events: list[Event] = []
        self.lag, self.words = lag, words
        self.engines_start = True
        self.kernels: Kernels | None = None
        self.kernels_of: dict[str, Kernels] = {}
        self.last = Plan()
        self._count = 0
        self._orphans: set[int] = set()

    # --- what is there --------------------------------------------------------------------------

    @property
    def status(self) -> Json:
        status: Json = self.job.get("status") or {}
        return status

    @property
    def phase(self) -> str | None:
        return self.status.get("phase")

    def condition(self, kind: str) -> Json:
        found = {each["type"]: each for each in self.status.get("conditions", [])}
        return found.get(kind, {})

    def component(self, name: str) -> list[Json]:
        return [pod for pod in self.pods if pod["metadata"]["labels"][COMPONENT] == name]

    @property
    def trainer_pods(self) -> list[Json]:
        return self.component("trainer")

    @property
    def generations(self) -> set[int]:
        """Of the trainer pods that are there in any form."""
        return {generation_of(pod) for pod in self.trainer_pods}

    @property
    def jobs(self) -> list[str]:
        return sorted(name.name for name in self.children if name.kind == "Job")

    @property
    def trainer(self) -> Trainer:
        """The one that runs."""
        (running,) = self._running_trainers()
        return running

    def _running_trainers(self) -> list[Trainer]:
        pods = [pod for pod in self.trainer_pods if is_up(pod) and index_of(pod) == "0"]
        return [self.trainers[uid(pod)] for pod in pods]

    def observe(self) -> Observation:
        pods = self.trainer_pods
        answers = {}
        for pod in to_ask(pods):
            trainer = self.trainers[uid(pod)]
            answers[uid(pod)] = (
                TrainerAnswer(error="connection refused")
                if trainer.mute
                else TrainerAnswer(trainer.tells(self.storage))
            )
        return Observation(
            job=self.job,
            children=dict(self.children),
            trainers=tuple(pods),
            engines=tuple(self.component("engine")),
            answers=answers,
            kernels={
                uid(pod): said
                for pod in self.component("engine")
                if (said := self.kernels_of.get(pod["metadata"]["name"], self.kernels))
            },
            found=dict(self.found),
            checkpoints=tuple(self.checkpoints.values()),
            pinned=self.pinned,
        )

    # --- the operator ---------------------------------------------------------------------------

    def look(self, dies: str = "") -> Plan:
        """One pass of an operator that remembers nothing.

        Args:
            dies: `children`: after half of the children; `status`: before it writes the status.
        """
        made = plan(self.observe(), CONFIG, self.now)
        self.last = made
        objects = made.objects[: len(made.objects) // 2] if dies == "children" else made.objects
        for item in objects:
            self._apply(owned(item, self.job))
        if dies == "children":
            return made
        if made.prune:
            named = {ref(item) for item in made.objects}
            for item in superfluous(self.children.values(), named, "u-job"):
                self._delete(ref(item))
        for name in made.delete:
            if is_dismissible(self.checkpoints[name.name], "verifiedrljob.solver-rl"):
                del self.checkpoints[name.name]
        if dies == "status":
            return made
        self.events += made.events
        self.job["status"] = without_nulls(made.status)
        return made

    def _apply(self, item: Json) -> None:
        name = ref(item)
        if name.kind == "Checkpoint":
            there = self.checkpoints.get(name.name)
            assert there is None or there["spec"] == item["spec"], "its spec cannot be changed"
            self.checkpoints[name.name] = {**(there or {}), **item}
        elif name.kind == "Job":
            if name not in self.children:
                assert "selector" not in item["spec"], "the API server would refuse this"
                assert not self.trainer_pods, "a Job beside pods of another generation"
                selector = {"matchLabels": {"job": name.name}}
                self.children[name] = {**item, "spec": {**item["spec"], "selector": selector}}
        else:
            self.children[name] = item

    def _delete(self, name: Ref) -> None:
        item = self.children.pop(name)
        if name.kind == "Job":
            self._orphans.add(generation_of(item))

    # --- everybody else -------------------------------------------------------------------------

    def tick(self, dies: str = "") -> None:
        """Time goes on, and the operator looks, unless `dies` says that it is `absent`."""
        self.now += timedelta(seconds=TICK)
        self._run_engines()
        self._run_trainers()
        self._control_jobs()
        self._collect()
        if dies != "absent":
            self.look(dies)

    def until(self, *phases: str, ticks: int = 200) -> None:
        """Ticks until the job is in one of these phases."""
        for _ in range(ticks):
            if self.phase in phases:
                return
            self.tick()
        raise AssertionError(f"still {self.phase} and not {phases}: {self.status}")

    def until_pods(self, ticks: int = 20) -> None:
        """Ticks until there are trainer pods."""
        for _ in range(ticks):
            if self.trainer_pods:
                return
            self.tick()
        raise AssertionError(f"no trainer pod: {self.status}")

    def until_step(self, step: int, ticks: int = 100) -> None:
        """Ticks until the trainer has done so many steps."""
        for _ in range(ticks):
            if any(trainer.step >= step for trainer in self._running_trainers()):
                return
            self.tick()
        raise AssertionError(f"step {step} did not come: {self.status}")

    def until_restarted(self, ticks: int = 200) -> None:
        """Ticks until the next generation is there."""
        generation = self.status["generation"]
        for _ in range(ticks):
            if self.status["generation"] > generation:
                return
            self.tick()
        raise AssertionError(f"no further generation: {self.status}")

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.tick()

    def _run_engines(self) -> None:
        stateful = self.children.get(Ref("StatefulSet", "solver-rl-engine"))
        wanted = stateful["spec"]["replicas"] if stateful else 0
        there = self.component("engine")
        for pod in there[wanted:]:
            self.pods.remove(pod)
        for pod in there[:wanted]:
            set_ready(pod, self.engines_start, self.now)
        for index in range(len(there), wanted):
            assert stateful
            template = stateful["spec"]["template"]
            self.pods.append(self._pod(f"solver-rl-engine-{index}", template, "engine"))

    def _run_trainers(self) -> None:
        for pod in list(self.trainer_pods):
            if pod["status"]["phase"] == "Pending" and not leaving(pod):
                self._start(pod)
            elif is_up(pod) and leaving(pod):
                self._terminate(pod)
            elif is_up(pod):
                self._step(pod)

    def _start(self, pod: Json) -> None:
        pod["status"].update(phase="Running", podIP="10.0.0.9")
        container(pod)["state"] = {"running": {"startedAt": stamp(self.now)}}
        if index_of(pod) == "0":
            self.storage.attempt += 1
            job = json.loads(self.children[Ref("ConfigMap", "solver-rl-job")]["data"]["job.json"])
            steps, policy = job["trainer"]["steps"], job["checkpoint"]
            self.trainers[uid(pod)] = Trainer(
                self.storage.step, steps, policy["every"], policy["keep"]
            )

    def _step(self, pod: Json) -> None:
        if index_of(pod) != "0":
            if not any(is_up(each) for each in self.trainer_pods if index_of(each) == "0"):
                self.end(pod, 0)
            return
        trainer = self.trainers[uid(pod)]
        if trainer.hangs:
            return
        if trainer.step >= trainer.of:
            trainer.phase = "finished"
            self.end(pod, 0)
            return
        trainer.step += 1
        if trainer.step % trainer.every == 0 or trainer.step == trainer.of:
            self._save(trainer)
        if trainer.step == trainer.of:
            trainer.phase = "finished"

    def _save(self, trainer: Trainer) -> None:
        pins = self.children.get(Ref("ConfigMap", "solver-rl-pins"), {}).get("data", {})
        self.storage.save(trainer.step, trainer.keep, set(pins))

    def _terminate(self, pod: Json) -> None:
        trainer = self.trainers.get(uid(pod))
        if trainer and not trainer.hangs and trainer.step > self.storage.step:
            self._save(trainer)
        self.end(pod, 143 if trainer is None or trainer.step < trainer.of else 0)

    def end(self, pod: Json, code: int, message: str = "", reason: str = "Error") -> None:
        """A container's process ends."""
        if code == 0 and self.words and index_of(pod) == "0":
            message = json.dumps(
                {
                    "finished": True,
                    "step": self.storage.step,
                    "digest": self.storage.saved[0]["digest"],
                    "checkpoints": self.storage.saved[:2],
                }
            )
        pod["status"]["phase"] = "Failed" if code else "Succeeded"
        container(pod)["state"] = {
            "terminated": {
                "exitCode": code,
                "reason": reason if code else "Completed",
                "message": message,
                "finishedAt": stamp(self.now),
            }
        }

    def crash(self, code: int = 1, message: str = "assay-train: boom", **more: Any) -> None:
        """The trainer that runs ends itself."""
        for pod in self.trainer_pods:
            if is_up(pod) and index_of(pod) == "0":
                self.end(pod, code, message, **more)

    def evict(self, reason: str = "EvictionByEvictionAPI") -> None:
        """Pods that run are taken away by the cluster."""
        for pod in self.trainer_pods:
            if is_up(pod):
                pod["status"]["conditions"].append(
                    {"type": "DisruptionTarget", "status": "True", "reason": reason}
                )
                self._terminate(pod)

    def _control_jobs(self) -> None:
        for name, job in self.children.items():
            if name.kind != "Job":
                continue
            pods = [pod for pod in self.trainer_pods if generation_of(pod) == generation_of(job)]
            conditions = job.setdefault("status", {}).setdefault("conditions", [])
            if conditions:
                continue
            if any(pod["status"]["phase"] == "Failed" for pod in pods):
                conditions.append({"type": "Failed", "status": "True"})
                for pod in pods:
                    if pod["status"]["phase"] != "Failed":
                        self._mark_leaving(pod)
            elif pods and all(pod["status"]["phase"] == "Succeeded" for pod in pods):
                conditions.append({"type": "Complete", "status": "True"})
            elif not pods:
                for index in range(job["spec"]["completions"]):
                    pod_name = f"{name.name}-{index}-x"
                    pod = self._pod(pod_name, job["spec"]["template"], "trainer")
                    pod["metadata"]["labels"][INDEX] = str(index)
                    self.pods.append(pod)

    def _collect(self) -> None:
        """The garbage collector, and the kubelet's last word on pods."""
        there = {generation_of(job) for name, job in self.children.items() if name.kind == "Job"}
        for pod in list(self.trainer_pods):
            if generation_of(pod) in self._orphans - there:
                self._mark_leaving(pod)
            if not leaving(pod):
                continue
            if is_up(pod):
                continue
            left = pod["metadata"]["ticksLeft"]
            pod["metadata"]["ticksLeft"] = left - 1
            if left <= 0:
                self.pods.remove(pod)

    def _mark_leaving(self, pod: Json) -> None:
        if not leaving(pod):
            pod["metadata"]["deletionTimestamp"] = stamp(self.now)
            pod["metadata"]["ticksLeft"] = self.lag

    def _pod(self, name: str, template: Json, component: str) -> Json:
        self._count += 1
        return {
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"uid-{self._count}",
                "labels": dict(template["metadata"]["labels"]),
            },
            "spec": template["spec"],
            "status": {
                "phase": "Pending",
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "True",
                        "lastTransitionTime": stamp(self.now),
                    }
                ],
                "containerStatuses": [
                    {"name": component, "ready": False, "restartCount": 0, "state": {}}
                ],
            },
        }


COMPONENT = "app.kubernetes.io/component"


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def uid(pod: Json) -> str:
    name: str = pod["metadata"]["uid"]
    return name


def index_of(pod: Json) -> str:
    index: str = pod["metadata"]["labels"].get(INDEX, "")
    return index


def leaving(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def is_up(pod: Json) -> bool:
    up: bool = pod["status"]["phase"] == "Running"
    return up


def container(pod: Json) -> Json:
    status: Json = pod["status"]["containerStatuses"][0]
    return status


def set_ready(pod: Json, ready: bool, now: datetime) -> None:
    """What the kubelet says of an engine."""
    others = [each for each in pod["status"]["conditions"] if each["type"] != "Ready"]
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "lastTransitionTime": stamp(now),
    }
    pod["status"].update(phase="Running", podIP="10.0.1.1", conditions=[*others, condition])


def unschedulable(pod: Json, message: str = "0/3 nodes: Insufficient nvidia.com/gpu") -> None:
    """The scheduler finds no place for a pod."""
    pod["status"]["phase"] = "Pending"
    pod["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        }
    ]
