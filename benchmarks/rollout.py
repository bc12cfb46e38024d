"""New weights in running engines, and by a rolling restart, under clients that never stop.

Ten rollouts into two replicas, each timed from its checkpoint's `Verified`; then the same change of
weights by a plain Deployment of the same engines. A client records every request, and each answer
says which weights made it. A little less than 20 minutes on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle

from benchmarks.common import say, versions, write
from benchmarks.rollout_inplace import SERVICE, Weights, bring
from benchmarks.rollout_plain import (
    PLAIN,
    Restarts,
    plain_objects,
    replace_by,
    restart_with,
    wait_rolled,
    wait_settled,
)
from benchmarks.rollout_requests import answers
from benchmarks.rollout_table import InPlace, Plain, least_margin, raw, rows
from tests.assay import Assay
from tests.cluster.settings import Cache
from tests.e2e.clients import CLIENT, Load, client_pod
from tests.e2e.rollouts import (
    ROLLOUT,
    checkpoint,
    digest_of,
    engine_uids,
    make_models,
    suite_config_map,
    wait_verdict,
)
from tests.e2e.watching import Story
from tests.kube import Json, Kube

NAMESPACE = "bench-rollout"
REPLICAS = 2
MODELS: dict[str, tuple[str, ...]] = {"tiny": (), "tiny-next": ("--seed", "11")}
STILL_AFTER = frozenset({3, 7})
"""The rounds after which nothing is rolled out for as long as the last one took."""
THREADS = 4
PAUSE = 0.15
FIRST_ANSWERS = 20
RESTARTS = (
    Restarts(surge=0, unavailable=1, rounds=3),
    Restarts(surge=1, unavailable=0, rounds=2),
)


def make_weights(assay: Assay, kube: Kube) -> list[Weights]:
    """Two models, and what they are known by once a Job has weighed each."""
    make_models(assay, kube.namespace, Cache.default().logs / "bench-model.log", MODELS)
    kube.apply(suite_config_map(), *(checkpoint(folder, folder, 0.5) for folder in MODELS))
    for folder in MODELS:
        found = wait_verdict(kube, folder, "Verified")
        assert found["status"] == "True", found["message"]
    return [Weights(folder, digest_of(kube, folder)) for folder in MODELS]


def in_place(kube: Kube, turns: Iterator[Weights], rounds: int) -> InPlace:
    """The rollouts, after a first one that nobody watches."""
    with Story(kube, SERVICE) as story:
        first = next(turns)
        bring(kube, story, first, 0)
        pods, changes, still = engine_uids(kube, SERVICE), [], []
        with Load(kube, SERVICE, THREADS, PAUSE) as load:
            load.wait_for_answers(FIRST_ANSWERS)
            for number in range(1, rounds + 1):
                changes.append(bring(kube, story, next(turns), number))
                if number in STILL_AFTER:
                    still.append(nothing_for(changes[-1].seconds))
            load.wait_for_answers(FIRST_ANSWERS)
        new = len(engine_uids(kube, SERVICE) - pods)
    return InPlace(answers(load.lines), first.version, changes, still, new)


def nothing_for(seconds: float) -> tuple[float, float]:
    """A stretch of time in which nothing is rolled out."""
    say(f"{seconds:.0f} s without a rollout")
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def restarted(kube: Kube, turns: Iterator[Weights], restarts: Restarts) -> Plain:
    """Rolling restarts of the plain Deployment."""
    say(restarts.name)
    replace_by(kube, restarts)
    changes = []
    with Load(kube, PLAIN, THREADS, PAUSE) as load:
        load.wait_for_answers(FIRST_ANSWERS)
        for _ in range(restarts.rounds):
            changes.append(restart_with(kube, next(turns).folder))
            wait_settled(kube, REPLICAS)
        load.wait_for_answers(FIRST_ANSWERS)
    return Plain(restarts, answers(load.lines), changes)


def engine_template(kube: Kube) -> Json:
    """That of the service's engine pods."""
    found = kube.get("deployment", f"{SERVICE}-engine")
    assert found
    template: Json = found["spec"]["template"]
    return template


def notes(rolled: InPlace, plains: list[Plain]) -> list[str]:
    least = least_margin(rolled)
    counts = " and ".join(str(len(plain.changes)) for plain in plains)
    return [
        f"{REPLICAS} replicas, two models of 2.8 M parameters by turns (A, B, A, ...), gate of 49 "
        "sums asked of candidate and incumbent, hold of the canary 5 s, maxUnavailable 1.",
        f"The client: {THREADS} threads, each asks for 8 tokens over a new connection, waits "
        f"{PAUSE:g} s after the answer and asks again; it never retries. Pauses are of the client "
        "as a whole: the longest time in which none of its threads got an answer. Median and worst "
        "are over the rounds.",
        "Verified: both folders were weighed by a Job before. Each round brings one of them under "
        "a new Checkpoint as training jobs have them, which the service is told to serve before it "
        "is verified. It becomes so by the note of its evaluation, which the benchmark writes in "
        "the operator's place: so no engine for weighing runs beside the rollout. The digests are "
        "those of two rounds before, and are inspected and gated again.",
        "Verified is the condition's own time, in whole seconds: up to 1 s too early. All other "
        "times are of the arrival of the service's statuses on the machine that runs everything. "
        "All serve: the rollout is Done; afterwards both engines report the new digest.",
        "Who answered is what SGLang writes into each answer (`metadata.weight_version`). Weights "
        "may answer a request that was sent after they passed the gate of this very rollout, and "
        "until all replicas serve the next. The first request that the new ones answered was sent "
        + (f"{least:.1f} s or more after the gate." if least is not None else "in no rollout."),
        f"Rolling restarts: {counts}, of a Deployment with image, arguments, resources, preStop "
        "pause and grace period of Assay's engines, readiness by /health, behind a plain Service "
        "without a router. `kubectl set env` changes the model's path. Nothing is inspected, asked "
        "or held there: in place, that is part of the time. The stretches of the restarts are as "
        "long as the restarts.",
        "Client, API server, operators, router, gate and engines share the cores. The weights are "
        "small: in place as well as at a start, reading them costs next to nothing.",
    ]


def measure(assay: Assay, kube: Kube, rounds: int) -> None:
    """Both ways, and the table."""
    say("two models, each weighed by a Job")
    kube.apply(client_pod(assay.engine_image))
    pair = make_weights(assay, kube)
    kube.kubectl("wait", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=120s")
    say(f"a service of {REPLICAS} replicas")
    with kube.service(SERVICE, {"replicas": REPLICAS, "rollout": ROLLOUT}):
        kube.wait_ready(SERVICE, replicas=REPLICAS)
        template = engine_template(kube)
        # What it serves already is the first folder, under the name of its place.
        rolled = in_place(kube, cycle(reversed(pair)), rounds)
    say("a plain Deployment of the same engines")
    turns = cycle(pair)
    kube.apply(*plain_objects(template, SERVICE, next(turns).folder, REPLICAS))
    wait_rolled(kube)
    plains = [restarted(kube, turns, restarts) for restarts in RESTARTS]
    write(
        "rollout",
        "New weights: in place, and by a rolling restart",
        rows(rolled, plains),
        notes=notes(rolled, plains),
        about=versions(assay.cluster, assay.environment),
        raw=raw(rolled, plains),
    )


def run(assay: Assay, rounds: int = 10) -> None:
    """Measures and writes the table."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    try:
        measure(assay, Kube(assay.cluster, NAMESPACE), rounds)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")
