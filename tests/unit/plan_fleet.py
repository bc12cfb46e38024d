"""A pretended cluster in which the real planner works: objects as the API server would have them.

Claims hold folders with contents; an engine has the content that it read, by its own pod's mounts,
whatever it reports. So the fleet can check at every second that nobody is answered by bytes that
have not passed, and that every version that is reported names its own bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import LoadState, Observation, Probe, Work
from assay_operator.inference.places import mounts
from assay_operator.inference.planner import plan
from assay_operator.plan import Annotate, Load, Pause, Plan, Ref, Restart, Resume, ref

Json = dict[str, Any]
BEGIN = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
START, LOAD, DRAIN, GATE, INSPECT = 15, 3, 4, 10, 3
ROUNDS, WORKLOADS = 3, frozenset({"Deployment", "Job"})
"""How often the shell makes a plan in one pass, and what it applies last."""
READY = 120
"""The kubelet ends an engine that is not ready by then."""
BASE = "pvc://models/tiny"
SUITE = Ref("ConfigMap", "heldout")
GATED: Json = {
    "canary": {"hold": "10s"},
    "gate": {"suite": {"configMap": SUITE.name}, "minScore": 0.5, "timeout": "2m"},
}
SCORES = {"tiny": 0.4, "good": 0.7, "better": 0.8, "worse": 0.2, "shapes": 0.9}
"""What the gate finds, by content. `shapes` is not for engines that run another."""
LEAST = 0.5
UNLOADABLE = ("spoilt", "hangs")
"""No engine can load them, and none can start with them: it ends, or it never gets ready."""
CONTENTS = (*SCORES, *UNLOADABLE, "pickle")
"""`pickle` does not pass the inspection."""
ROGUE = "rogue"
"""What somebody else had an engine load."""


def digest(content: str) -> str:
    """The digest of a content: people can tell it by its beginning."""
    return f"sha256:{content.encode().hex().ljust(64, '0')[:64]}"


def checkpoint(
    content: str, *, step: int, score: float | None = None, claim: str = "ckpt", **more: Any
) -> Json:
    """A Checkpoint that the job `solver-rl` made."""
    status = "True" if more.pop("verified", True) else "False"
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": f"solver-rl-1-{step}", "namespace": more.pop("namespace", "default")},
        "spec": {
            "source": f"pvc://{claim}/solver-rl/checkpoints/step-{step:06d}",
            "digest": digest(content),
            "job": {"name": "solver-rl", "uid": "uid-rl", "step": step, "version": f"1.{step}"},
        },
        "status": {
            "digest": digest(content),
            "score": SCORES.get(content, 0.6) if score is None else score,
            "conditions": [
                {"type": "Intact", "status": "True", "reason": "x", "message": "Whole."},
                {"type": "Verified", "status": status, "reason": "x", "message": "Weighed."},
            ],
        },
        **more,
    }


def job(name: str = "solver-rl", **spec: Any) -> Json:
    """The VerifiedRLJob that is followed."""
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "VerifiedRLJob",
        "metadata": {"name": name, "namespace": "default", "uid": "uid-rl"},
        "spec": {
            "model": {"source": BASE},
            "checkpoint": {"storage": {"claim": "ckpt"}},
            **spec,
        },
        "status": {"conditions": []},
    }


@dataclass
class Engine:
    """One pod with its engine."""

    number: int
    template: Json
    up: float
    version: str | None = None
    content: str | None = None
    restarts: int = 0
    paused: bool = False
    gone: float | None = None
    silent: bool = False
    queue: list[tuple[Load, int, float | None]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)

    @property
    def uid(self) -> str:
        return f"uid-{self.number}"

    @property
    def pod(self) -> str:
        return f"solver-engine-{self.number}"

    @property
    def url(self) -> str:
        return f"http://10.0.0.{self.number}:30000"

    @property
    def works(self) -> bool:
        return self.version is not None and not self.paused


class Violation(AssertionError):
    """What must never be was."""


class Cluster:
    """All of it. Time is in seconds since BEGIN."""

    def __init__(self, spec: Json | None = None, **more: Any) -> None:
        self.now = 0.0
        self.service: Json = {
            "apiVersion": "assay.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {
                "name": "solver",
                "namespace": "default",
                "uid": "u-0",
                "generation": 1,
                "annotations": {},
            },
            "spec": {
                "model": {"source": BASE},
                "engine": {"accelerator": "cpu"},
                "replicas": 2,
                "rollout": {"canary": {"hold": "10s"}},
                **(spec or {}),
            },
        }
        self.config = OperatorConfig()
        self.disk: dict[tuple[str, str], str] = {("models", "tiny"): "tiny"}
        self.checkpoints: list[Json] = []
        self.followed: Json | None = None
        self.grants: tuple[Json, ...] = ()
        self.found: dict[Ref, Json | None] = {SUITE: {"data": {"suite.jsonl": "{}"}}}
        self.children: dict[Ref, Json] = {}
        self.engines: list[Engine] = []
        self.known: frozenset[str] = frozenset()
        self.lists: list[tuple[float, frozenset[str]]] = []
        self.draining: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self.pods: dict[str, Json] = {}
        self.loads: dict[str, LoadState] = {}
        self.epoch = self.number = 0
        self.passed: set[str] = set()
        self.versions: dict[str, str] = {}
        self.events: list[str] = []
        self.router_blind = self.disk_fails = self.jobs_break = self.suite_gone = False
        for name, value in more.items():
            setattr(self, name, value)

    # -- what users and trainers do --------------------------------------------------------

    @property
    def status(self) -> Json:
        found: Json = self.service.get("status") or {}
        return found

    @property
    def rollout(self) -> Json:
        found: Json = self.status.get("rollout") or {}
        return found

    def change(self, **spec: Any) -> None:
        """Changes the spec."""
        self.service["spec"] = {**self.service["spec"], **spec}
        self.service["metadata"]["generation"] += 1

    def serve(self, source: str) -> None:
        self.change(model={"source": source})

    def annotate(self, name: str, value: str | None) -> None:
        notes = self.service["metadata"]["annotations"]
        notes[name] = value
        if value is None:
            del notes[name]

    def write(self, content: str, *, step: int, **more: Any) -> Json:
        """The trainer writes a checkpoint, and its object is made."""
        item = checkpoint(content, step=step, **more)
        claim, _, path = item["spec"]["source"].removeprefix("pvc://").partition("/")
        self.disk[claim, path] = content
        self.checkpoints.append(item)
        return item

    # -- the world goes on -----------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1, end)
            self._deployment()
            for engine in self.engines:
                self._run(engine)
            self.engines = [e for e in self.engines if e.gone is None or e.gone > self.now]
            self._router()
            self._jobs()
            self.check()

    def place(self, item: Json, path: str) -> tuple[str, str]:
        """Claim and folder of a path, as a pod sees it."""
        for mount, key in (mounts(item) or {}).items():
            if f"{path}/".startswith(f"{mount}/"):
                return key.removeprefix("pvc/"), path.removeprefix(mount).strip("/")
        return "", path

    def pointer(self) -> Json:
        found: Json = json.loads(
            self.children[Ref("ConfigMap", "solver-pointer")]["data"]["pointer.json"]
        )
        return found

    def _deployment(self) -> None:
        deployment = self.children.get(Ref("Deployment", "solver-engine"))
        if deployment is None:
            return
        wanted, template = deployment["spec"]["replicas"], deployment["spec"]["template"]
        live = [each for each in self.engines if each.gone is None]
        old = [each for each in live if each.template != template]
        ready = [each for each in live if each.works]
        unavailable = deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"]
        if deployment["spec"].get("paused") and old:
            # It replaces none: it only keeps their number, by pods like those there are.
            number = wanted + int(len(old) < len(live) and wanted > 0)
            if len(live) < number:
                self._create(old[0].template)
            elif len(live) > number:
                self.delete(min(live, key=lambda each: each.works))
        elif len(live) < wanted or (old and len(live) - len(old) < wanted >= len(live)):
            self._create(template)
        elif old:
            unready = [each for each in old if not each.works]
            if unready or len(ready) > wanted - unavailable:
                self.delete((unready or old)[0])
        elif len(live) > wanted:
            self.delete(min(live, key=lambda each: (each.works, -each.number)))

    def _create(self, template: Json) -> None:
        self.number += 1
        self.engines.append(Engine(self.number, copy.deepcopy(template), self.now + START))

    def _run(self, engine: Engine) -> None:
        if engine.version is None and engine.up <= self.now:
            pointer = self.pointer()
            content = self.disk.get(self.place(engine.template, pointer["path"]))
            if content == "hangs" and self.now < engine.up + READY - START:
                return
            if content is None or content in UNLOADABLE:
                self.kill(engine)
            else:
                engine.version, engine.content = pointer["version"], content
            return
        if not engine.paused:
            engine.requests = [end for end in engine.requests if end > self.now]
        if engine.queue:
            self._load(engine)

    def _load(self, engine: Engine) -> None:
        order, epoch, done = engine.queue[0]
        if done is None:
            if order.abort:
                engine.requests = []
            if not engine.requests or engine.paused:
                engine.queue[0] = (order, epoch, self.now + LOAD)
            return
        if done > self.now:
            return
        engine.queue.pop(0)
        content = self.disk.get(self.place(engine.template, order.path))
        fails = self.disk_fails or content is None or content in UNLOADABLE
        if content == "shapes" and engine.content != "shapes":
            fails = True
        if not fails:
            if engine.requests and content not in self.passed:
                raise Violation(f"{engine.pod}: a request goes on with {content}")
            engine.version, engine.content = order.version, content
        if epoch == self.epoch and engine.uid in self.loads:
            self.loads[engine.uid] = LoadState(
                order.version,
                "failed" if fails else "done",
                "no such file" if fails else "",
                order.token,
            )

    def _router(self) -> None:
        while self.lists and self.lists[0][0] <= self.now:
            _, urls = self.lists.pop(0)
            for url in self.known - urls:
                self.draining[url] = self.now + DRAIN
            self.known = urls
        self.draining = {
            url: end
            for url, end in self.draining.items()
            if end > self.now and url not in self.known
        }
        for engine in self.engines:
            if engine.url in self.known and engine.works and len(engine.requests) < 2:
                engine.requests.append(self.now + 3)

    def _jobs(self) -> None:
        there = {name: item for (kind, name), item in self.children.items() if kind == "Job"}
        self.asked = {name: end for name, end in self.asked.items() if name in there}
        self.pods = {name: pod for name, pod in self.pods.items() if name in there}
        for name, item in there.items():
            kind = "gate" if "-gate-" in name else "inspect"
            if name not in self.asked:
                if kind == "gate" and self.suite_gone:
                    self.pods.setdefault(name, self._waits(name))
                    continue
                self.asked[name] = self.now + (GATE if kind == "gate" else INSPECT)
                self.pods[name] = self._trying(name, {"running": {}}, phase="Running")
            running = self.pods[name]["status"]["phase"] == "Running"
            if running and self.asked[name] <= self.now:
                template = item["spec"]["template"]
                found = self._gated(template) if kind == "gate" else self._inspected(template)
                self.pods[name] = self._ended(name, *found)
                if found[0] == 2:
                    ended = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
                    ended["lastTransitionTime"] = self.stamp(self.now)
                    self.children[Ref("Job", name)] = {**item, "status": {"conditions": [ended]}}

    def _inspected(self, template: Json) -> tuple[int, Json]:
        pod = template["spec"]
        if self.jobs_break:
            return 2, {"problems": ["the storage is away"]}
        command = pod["containers"][0]["command"]
        mounted = {
            each["mountPath"]: next(
                volume["persistentVolumeClaim"]["claimName"]
                for volume in pod["volumes"]
                if volume["name"] == each["name"]
            )
            for each in pod["containers"][0]["volumeMounts"]
            if each["mountPath"] != "/tmp"
        }
        paths = (command[command.index("inspect") + 1], command[command.index("--like") + 1])
        contents = []
        for path in paths:
            root = f"/{path.split('/')[1]}"
            contents.append(self.disk.get((mounted[root], path.removeprefix(root).strip("/"))))
        new, old = contents
        if (
            new is None
            or new == "pickle"
            or ("--digest" in command and self._is_other(command, new))
        ):
            return 1, {"intact": False, "problems": [f"{new} may be a pickle"]}
        if not self.service["spec"]["rollout"].get("gate"):
            self.passed.add(new)
        in_place = "shapes" not in {new, old} or new == old
        reasons = [] if in_place else ["other shapes"]
        return 0, {"intact": True, "inPlace": in_place, "reasons": reasons, "files": 2, "bytes": 9}

    @staticmethod
    def _is_other(command: list[str], content: str) -> bool:
        wanted = "--digest" in command and command[command.index("--digest") + 1]
        return bool(wanted) and wanted != digest(content)

    def _gated(self, template: Json) -> tuple[int, Json]:
        if self.jobs_break:
            return 2, {"verdict": None, "reason": "the suite cannot be read"}
        container = template["spec"]["containers"][0]["command"]
        sides = {}
        for side in ("candidate", "incumbent"):
            if f"--{side}" in container:
                sides[side] = self._side(template, container[container.index(f"--{side}") + 1])
        if None in sides.values():
            return 2, {"verdict": None, "reason": "an endpoint does not answer"}
        content, version = sides["candidate"]
        passes = SCORES.get(content, 0.0) >= LEAST
        if passes:
            self.passed.add(content)
        summary = {
            "verdict": "pass" if passes else "fail",
            "reason": f"scored {SCORES.get(content)}",
            "score": {side: {"mean": SCORES.get(found[0], 0.0)} for side, found in sides.items()},
            "sides": {"candidate": {"weightVersions": [version]}},
        }
        return (0 if passes else 1), summary

    def _side(self, template: Json, url: str) -> Any:
        """Content and version of whoever answers there."""
        if "127.0.0.1" not in url:
            engine = next((e for e in self.engines if e.url == url and e.works), None)
            return engine and (engine.content, engine.version)
        pointer = json.loads(template["metadata"]["annotations"]["assay.dev/pointer"])
        pod = template["spec"]
        containers = [each for each in pod["initContainers"] if each["name"] == "engine"]
        seen = {"spec": {"containers": containers, "volumes": pod["volumes"]}}
        content = self.disk.get(self.place(seen, pointer["path"]))
        answers = content is not None and content not in UNLOADABLE
        return (content, pointer["version"]) if answers else None

    def _ended(self, name: str, code: int, summary: Json) -> Json:
        ended = {"exitCode": code, "message": json.dumps(summary)}
        return self._trying(name, {"terminated": ended}, phase="Failed" if code else "Succeeded")

    def _waits(self, name: str) -> Json:
        """A pod whose suite the kubelet does not find."""
        since = self.stamp(self.now)
        conditions = [
            {"type": kind, "status": status, "lastTransitionTime": since}
            for kind, status in (("PodScheduled", "True"), ("PodReadyToStartContainers", "False"))
        ]
        state = {"waiting": {"reason": "ContainerCreating"}}
        return self._trying(name, state, phase="Pending", conditions=conditions)

    @staticmethod
    def _trying(name: str, state: Json, **status: Any) -> Json:
        """The pod of a Job."""
        return {
            "metadata": {
                "name": f"{name}-x",
                "uid": f"uid-{name}",
                "labels": {"batch.kubernetes.io/job-name": name},
            },
            "status": {**status, "containerStatuses": [{"name": "verifier", "state": state}]},
        }

    # -- what goes wrong -------------------------------------------------------------------

    def kill(self, engine: Engine) -> None:
        """Its process ends; the kubelet starts it again, and it reads the pointer."""
        engine.version = engine.content = None
        engine.paused, engine.queue, engine.requests = False, [], []
        engine.restarts += 1
        engine.up = self.now + START
        self.loads.pop(engine.uid, None)

    def delete(self, engine: Engine) -> None:
        if engine.gone is None:
            engine.gone = self.now + 5

    def delete_jobs(self) -> None:
        """All of them, and their pods with them."""
        self.children = {name: item for name, item in self.children.items() if name.kind != "Job"}
        self.asked, self.pods = {}, {}

    def forget(self) -> None:
        """Another operator takes over: it knows nothing that no object says."""
        self.epoch += 1
        self.loads = {}

    # -- the operator ----------------------------------------------------------------------

    def time(self) -> datetime:
        return BEGIN + timedelta(seconds=self.now)

    def stamp(self, seconds: float) -> str:
        return (BEGIN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def observation(self) -> Observation:
        over = {"Done", "Failed", "Superseded", None}
        changing = self.rollout.get("phase") not in over or bool(self.rollout.get("replicas"))
        asked = [
            each
            for each in self.engines
            if each.version is not None and each.gone is None and (each.works or changing)
        ]
        healthy = {e.url for e in self.engines if e.url in self.known and e.works}
        listed = None if self.router_blind else frozenset(healthy)
        known = None if self.router_blind else self.known | self.draining.keys()
        return Observation(
            service=copy.deepcopy(self.service),
            children=dict(self.children),
            engines=tuple(map(self._pod, self.engines)),
            routers=(self._router_pod(),),
            probes={each.uid: self._probe(each) for each in asked},
            listings={"uid-router": listed},
            known={"uid-router": known},
            works={e.uid: Work(len(e.requests), e.paused) for e in asked if changing},
            loads=dict(self.loads),
            jobs=tuple(self.pods.values()),
            checkpoints=self._seen(),
            followed=self.followed,
            grants=self.grants,
            found=dict(self.found),
        )

    def _probe(self, engine: Engine) -> Probe:
        if engine.silent:
            return Probe(error="no answer")
        return Probe(engine.version, generated=engine.works)

    def _seen(self) -> tuple[Json, ...]:
        model = self.service["spec"]["model"]
        if model["source"].startswith("checkpoint://"):
            name = model["source"].removeprefix("checkpoint://")
            return tuple(item for item in self.checkpoints if item["metadata"]["name"] == name)
        return tuple(self.checkpoints) if "follow" in model else ()

    def _pod(self, engine: Engine) -> Json:
        ready = "True" if engine.works and engine.gone is None else "False"
        metadata = copy.deepcopy(engine.template["metadata"])
        metadata |= {"name": engine.pod, "uid": engine.uid, "namespace": "default"}
        if engine.gone is not None:
            metadata["deletionTimestamp"] = self.stamp(self.now)
        return {
            "metadata": metadata,
            "spec": engine.template["spec"],
            "status": {
                "phase": "Running",
                "podIP": f"10.0.0.{engine.number}",
                "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": self.stamp(-60)}
                ],
                "containerStatuses": [
                    {
                        "name": "engine",
                        "ready": ready == "True",
                        "started": engine.version is not None,
                        "restartCount": engine.restarts,
                        "state": {"running": {"startedAt": self.stamp(-60)}},
                    }
                ],
            },
        }

    def _router_pod(self) -> Json:
        return {
            "metadata": {"name": "router", "uid": "uid-router", "annotations": {}},
            "status": {
                "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": self.stamp(-60)}
                ],
                "containerStatuses": [
                    {"name": "router", "started": True, "state": {"running": {}}}
                ],
            },
        }

    def plan(self) -> Plan:
        return plan(self.observation(), self.config, self.time())

    def reconcile(self, dies_after: int | None = None) -> Plan:
        """One pass of the operator, which may die after so many of its writes.

        As in the shell, a plan that changed a child is made anew before it is told.
        """
        made = self.plan()
        for planned, write in islice(self._writes(), dies_after):
            made = planned
            write()
        if dies_after is not None:
            self.forget()
        return made

    def _writes(self) -> Iterator[tuple[Plan, Callable[[], None]]]:
        for left in reversed(range(ROUNDS)):
            made, before = self.plan(), dict(self.children)
            for item in sorted(made.objects, key=lambda item: item["kind"] in WORKLOADS):
                yield made, partial(self._apply, item)
            yield made, partial(self._prune, made)
            if self.children == before or not left:
                break
        yield made, partial(self._tell, made)
        for action in made.actions:
            yield made, partial(self._act, action)

    def _apply(self, item: Json) -> None:
        item = json.loads(json.dumps(item))
        if item["kind"] == "Job" and ref(item) in self.children:
            return
        if ref(item) == Ref("ConfigMap", "solver-workers"):
            document = json.loads(item["data"]["workers.json"])
            urls = frozenset(worker["url"] for worker in document["workers"])
            if not self.lists or self.lists[-1][1] != urls:
                self.lists.append((self.now + 1, urls))
        self.children[ref(item)] = item

    def _prune(self, made: Plan) -> None:
        if made.prune:
            named = {ref(item) for item in made.objects}
            self.children = {name: item for name, item in self.children.items() if name in named}

    def _tell(self, made: Plan) -> None:
        self.events += [f"{event.reason}: {event.message}" for event in made.events]
        self.service["status"] = json.loads(json.dumps(made.status))

    def _act(self, action: Any) -> None:
        engine = next((each for each in self.engines if each.pod == action.pod), None)
        match action:
            case Load() if engine and engine.version is not None:
                running = self.loads.get(engine.uid)
                if running is None or (
                    running.state != "running" and running.token != action.token
                ):
                    state = LoadState(action.version, "running", token=action.token)
                    self.loads[engine.uid] = state
                    engine.queue.append((action, self.epoch, None))
            case Pause() if engine:
                engine.paused = engine.version is not None
            case Resume() if engine:
                engine.paused = False
            case Restart() if engine:
                self.delete(engine)
            case Annotate() | _:
                pass

    # -- what must hold --------------------------------------------------------------------

    def workers(self) -> set[str]:
        item = self.children.get(Ref("ConfigMap", "solver-workers"))
        if item is None:
            return set()
        return {each["url"] for each in json.loads(item["data"]["workers.json"])["workers"]}

    def check(self) -> None:
        """Whoever is asked has bytes that passed, and reports them by their own name."""
        deployment = self.children.get(Ref("Deployment", "solver-engine"))
        if deployment is None:
            return
        template, pointer = deployment["spec"]["template"], self.pointer()
        start = self.disk.get(self.place(template, pointer["path"]))
        if "served" not in self.status and start is not None:
            # What is served first has nothing that it could be compared with.
            self.passed.add(start)
        if start is not None and start not in self.passed:
            raise Violation(f"pods start with {start}")
        for engine in self.engines:
            asked = engine.url in self.workers() or engine.url in self.known
            if not asked or engine.version is None or engine.content == ROGUE:
                continue
            if engine.works and engine.content not in self.passed:
                raise Violation(f"{engine.pod} answers with {engine.content}")
            if self.versions.setdefault(engine.version, str(engine.content)) != engine.content:
                raise Violation(f"{engine.version} is {engine.content} in {engine.pod}")

    def check_workers(self) -> None:
        """Right after a pass nobody is listed who reports what has not passed."""
        for engine in self.engines:
            reports = engine.version is not None and not engine.silent and engine.works
            if reports and engine.url in self.workers() and engine.content not in self.passed:
                raise Violation(f"{engine.pod} is listed with {engine.content}")

    # -- until something is so -------------------------------------------------------------

    def run(self, phase: str, most: int = 900) -> Json:
        """Passes until the rollout is in `phase`; returns its state."""
        for _ in range(most):
            self.reconcile()
            if self.rollout.get("phase") == phase:
                return self.rollout
            self.advance(1)
        raise Violation(f"{phase} does not come: {self.rollout}")

    def settle(self, most: int = 1500, forgets: int = 0) -> Plan:
        """Passes until all wanted engines serve and nothing is left to do.

        Args:
            most: passes.
            forgets: after every so many, another operator takes over. It begins a load again that
                it knows nothing of, so an operator that lives for less than a load ends none.
        """
        for number in range(1, most):
            made = self.reconcile()
            if self.quiet():
                return made
            self.advance(1)
            if forgets and number % forgets == 0:
                self.forget()
        raise Violation(f"it does not settle: {self.status}")

    def quiet(self) -> bool:
        live = [each for each in self.engines if each.gone is None]
        rollout, served = self.rollout, self.status.get("served")
        return (
            rollout.get("phase") in {"Done", "Failed", "Superseded"}
            and not rollout.get("replicas")
            and served is not None
            and len(live) == self.service["spec"]["replicas"] == self.status.get("readyReplicas")
            and {each.version for each in live} == {served["version"]}
            and all(each.template == live[0].template for each in live)
        )

    def condition(self, kind: str) -> Json:
        found: Json = next(each for each in self.status["conditions"] if each["type"] == kind)
        return found

    def contents(self) -> set[str | None]:
        """What the engines that stay have."""
        return {each.content for each in self.engines if each.gone is None}

    def uids(self) -> set[str]:
        return {each.uid for each in self.engines if each.gone is None}

    def said(self) -> list[str]:
        """The reasons of all Events."""
        return [event.partition(":")[0] for event in self.events]
