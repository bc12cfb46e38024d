"""The planner under generated schedules of faults: nobody is answered by what has not passed.

Engines, pods, routers, disks and Jobs fail at any moment, the operator dies between any two of its
writes, and users change their minds, volumes included. `Cluster.check` looks at every second at the
list of workers, at the bytes that engines really have, and at what pods start with.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from assay_operator.plan import ref
from tests.unit.plan_fleet import (
    BASE,
    CONTENTS,
    GATED,
    ROGUE,
    UNLOADABLE,
    Cluster,
    digest,
    job,
)

Json = dict[str, Any]
SCHEDULES = int(os.environ.get("ASSAY_PLANNER_SCHEDULES", "40"))
"""More than the default are drawn anew in each run."""
OTHER = dict(zip(CONTENTS, (*CONTENTS[1:], CONTENTS[0]), strict=True))
"""A second claim has the same folders with each other's contents: a path alone names no bytes."""
FOLLOWS: Json = {"source": BASE, "follow": {"job": "solver-rl"}}
MODELS: tuple[Json, ...] = (
    *({"source": f"pvc://models/{content}"} for content in ("good", "worse", "shapes", "pickle")),
    *({"source": f"pvc://models/{content}"} for content in UNLOADABLE),
    *({"source": f"pvc://other/{content}"} for content in ("tiny", "good", "shapes", "spoilt")),
    *({"source": f"checkpoint://solver-rl-1-{step}"} for step in (20, 40, 60)),
    FOLLOWS,
)
TRAINING: Json = {"conditions": [{"type": "Training", "status": "True", "message": ""}]}
FAULTS = ("router_blind", "disk_fails", "jobs_break")


class Schedule(RuleBasedStateMachine):
    """One cluster and what happens to it."""

    @initialize(
        replicas=st.integers(1, 3),
        gate=st.booleans(),
        rollout=st.fixed_dictionaries(
            {"inFlight": st.sampled_from(["Finish", "Continue"])},
            optional={"maxUnavailable": st.integers(0, 2)},
        ),
        first=st.sampled_from((FOLLOWS, *MODELS)),
        cold=st.booleans(),
        pace=st.sampled_from([1, 2, 3]),
    )
    def begin(self, replicas, gate, rollout, first, cold, pace) -> None:
        self.rollout = {**(GATED if gate else {"canary": {"hold": "5s"}}), **rollout}
        self.cluster = Cluster({"replicas": replicas, "rollout": self.rollout})
        self.cluster.disk = {
            **{("models", content): content for content in CONTENTS},
            **{("other", folder): content for folder, content in OTHER.items()},
        }
        self.cluster.followed = job() | {"status": TRAINING}
        if not cold:
            self.cluster.settle()
        self.cluster.write("good", step=20)
        self.cluster.write("worse", step=40, claim="models")
        self.cluster.write("better", step=60, claim="models")
        self.cluster.change(model=first)
        self.pace, self.step = pace, 60

    @invariant()
    def the_operator_works(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for _ in range(8):
            self.cluster.reconcile()
            self.cluster.check()
            self.cluster.check_workers()
            self.cluster.advance(self.pace)

    @rule(after=st.integers(0, 16), seconds=st.sampled_from([0, 2, 30]))
    def operator_dies_in_a_pass(self, after, seconds) -> None:
        self.cluster.reconcile(dies_after=after)
        self.cluster.advance(seconds)

    @rule(number=st.integers(0, 9))
    def engine_ends(self, number) -> None:
        if self.cluster.engines:
            self.cluster.kill(self.cluster.engines[number % len(self.cluster.engines)])

    @rule(number=st.integers(0, 9))
    def pod_is_deleted(self, number) -> None:
        if self.cluster.engines:
            self.cluster.delete(self.cluster.engines[number % len(self.cluster.engines)])

    @rule(number=st.integers(0, 9), silent=st.booleans())
    def engine_falls_silent(self, number, silent) -> None:
        if self.cluster.engines:
            self.cluster.engines[number % len(self.cluster.engines)].silent = silent

    @rule(number=st.integers(0, 9))
    def somebody_else_has_an_engine_load(self, number) -> None:
        if self.cluster.engines:
            engine = self.cluster.engines[number % len(self.cluster.engines)]
            if engine.version is not None:
                engine.version, engine.content = "rogue", ROGUE

    @rule(model=st.sampled_from(MODELS))
    def users_want_other_weights(self, model) -> None:
        self.cluster.change(model=model)

    @rule(content=st.sampled_from(CONTENTS), verified=st.booleans())
    def trainer_writes_a_checkpoint(self, content, verified) -> None:
        self.step += 20
        claim = "models" if self.step % 40 else "ckpt"
        self.cluster.write(content, step=self.step, verified=verified, claim=claim)

    @rule(asked=st.sampled_from(["previous", "solver-rl-1-20", BASE, digest("good"), None]))
    def users_go_back(self, asked) -> None:
        notes = self.cluster.service["metadata"]["annotations"]
        notes.pop("assay.dev/rollback", None)
        if asked:
            notes["assay.dev/rollback"] = asked

    @rule(asked=st.sampled_from([digest("worse"), "solver-rl-1-40"]))
    def users_ask_again(self, asked) -> None:
        self.cluster.annotate("assay.dev/retry", asked)

    @rule(paused=st.booleans(), strategy=st.sampled_from(["InPlace", "Recreate"]))
    def policy_changes(self, paused, strategy) -> None:
        in_flight = self.rollout["inFlight"] if strategy == "InPlace" else "Finish"
        changed = {"paused": paused, "strategy": strategy, "inFlight": in_flight}
        self.cluster.change(rollout={**self.rollout, **changed})

    @rule(replicas=st.integers(0, 3))
    def size_changes(self, replicas) -> None:
        self.cluster.change(replicas=replicas)

    @rule(fault=st.sampled_from(FAULTS), lasts=st.booleans())
    def fault_comes_or_goes(self, fault, lasts) -> None:
        setattr(self.cluster, fault, lasts)

    @rule()
    def jobs_are_deleted(self) -> None:
        self.cluster.delete_jobs()

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        for fault in FAULTS:
            setattr(cluster, fault, False)
        for engine in cluster.engines:
            engine.silent = False
        cluster.change(rollout=self.rollout, replicas=max(1, cluster.service["spec"]["replicas"]))
        if "served" not in cluster.status:
            # What is wanted first may be nothing that there is.
            cluster.serve(BASE)
        cluster.settle()
        cluster.reconcile()
        made = cluster.plan()
        assert json.loads(json.dumps(made.status)) == cluster.status
        assert {ref(item) for item in made.objects} == cluster.children.keys()
        assert not made.events


def test_nobody_is_answered_by_what_has_not_passed_under_generated_faults() -> None:
    run_state_machine_as_test(
        Schedule,
        settings=settings(
            max_examples=SCHEDULES,
            stateful_step_count=20,
            deadline=None,
            derandomize="ASSAY_PLANNER_SCHEDULES" not in os.environ,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
