"""The engines of a service as its rollout sees them, and which the router shall use. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from assay_operator.inference.failures import Failure, kernels_failure, pod_failure
from assay_operator.inference.kernels import asks_for_fused
from assay_operator.inference.objects import (
    VERSION_ANNOTATION,
    WORKERS_ANNOTATION,
    WORKERS_FILE,
    Identity,
)
from assay_operator.inference.observation import (
    Observation,
    Probe,
    Work,
    engine_url,
    is_over,
    is_ready,
    is_terminating,
    ready_since,
)
from assay_operator.inference.places import provides, really
from assay_operator.inference.results import ENGINE
from assay_operator.inference.rollout_world import Replica, Step, Target
from assay_operator.plan import Annotate, Json, Ref

ROUTED_SECONDS = 3
"""From a router pod's readiness until every node's kube-proxy sends the Service's requests there.
Nothing tells when that is so; a service that were called ready before could refuse a connection."""


@dataclass(frozen=True)
class Fleet:
    """All that the engines of a service are judged by.

    Attributes:
        observation: what is seen of it.
        identity: the service's names.
        target: what shall be served.
        known: weights that engines may report.
        free: places where overrides mount volumes of their own.
        now: the time, with a zone.
    """

    observation: Observation
    identity: Identity
    target: Target
    known: tuple[Target, ...]
    free: frozenset[str]
    now: datetime

    def replicas(self) -> tuple[Replica, ...]:
        """All engine pods."""
        listed = routed(self.observation, self.now)
        named = _workers(self.observation, self.identity)
        return tuple(self._replica(pod, listed, named) for pod in self.observation.engines)

    def _replica(self, pod: Json, listed: frozenset[str] | None, named: frozenset[str]) -> Replica:
        uid, url = pod["metadata"]["uid"], engine_url(pod)
        probe, work = self.observation.probes.get(uid), self.observation.works.get(uid, Work())
        version = probe.version if probe else None
        failure = pod_failure(pod, ENGINE, self.now) or probe_failure(pod, probe)
        versions = (self.target, *self.known)
        provided = provides(pod, self.target, self.free)
        return Replica(
            uid=uid,
            pod=pod["metadata"]["name"],
            version=None if version is None else really(pod, version, versions, self.free),
            generated=bool(probe and probe.generated),
            listed=_listed(self.observation, url),
            named=url in named,
            routable=listed is not None and is_ready(pod) and url in listed,
            requests=work.requests,
            paused=work.paused,
            load=self.observation.loads.get(uid),
            terminating=is_over(pod),
            error=failure.message if failure else None,
            restarts=_restarts(pod),
            volumes=frozenset([self.target.volume] if provided else []),
            template=annotation(pod, VERSION_ANNOTATION) or "",
        )


def probe_failure(pod: Json, probe: Probe | None) -> Failure | None:
    """What is wrong with an engine that the kubelet finds ready and that gets no requests."""
    if not probe or not is_ready(pod):
        return None
    if inactive := kernels_failure(pod, probe.kernels):
        return inactive
    if not probe.error:
        return None
    return Failure(
        f"pod/{pod['metadata']['name']}",
        "ProbeFailed",
        f"The engine is up and failed a probe: {probe.error}. See `kubectl logs`.",
        fatal=False,
    )


def lacks_kernels(observation: Observation, pod: Json) -> bool:
    """Whether an engine says that it does not run the kernels that it was asked to run."""
    probe = observation.probes.get(pod["metadata"]["uid"])
    return bool(probe and probe.kernels and not probe.kernels.active)


def owes_kernels(observation: Observation, pod: Json) -> bool:
    """Whether an engine that was asked to run kernels has not told whether it does."""
    probe = observation.probes.get(pod["metadata"]["uid"])
    return asks_for_fused(pod) and not (probe and probe.kernels)


def annotation(item: Json, key: str) -> str | None:
    """An annotation of an object, None where it has none of that name."""
    value: str | None = (item["metadata"].get("annotations") or {}).get(key)
    return value


def _restarts(pod: Json) -> int:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return sum(status.get("restartCount", 0) for status in statuses)


def routed(observation: Observation, now: datetime) -> frozenset[str] | None:
    """The URLs that every router which is reached and answers finds healthy; None where none
    does."""
    routers = {pod["metadata"]["uid"] for pod in observation.routers if _is_reached(pod, now)}
    listings = observation.listings.items()
    answers = [urls for uid, urls in listings if urls is not None and uid in routers]
    return frozenset.intersection(*answers) if answers else None


def _is_reached(router: Json, now: datetime) -> bool:
    """Whether requests to the Service can be expected to arrive at this router."""
    since = ready_since(router)
    return since is not None and (now - since).total_seconds() >= ROUTED_SECONDS


def _listed(observation: Observation, url: str | None) -> bool | None:
    """Whether any router knows an engine; None where one that runs does not say."""
    if any(urls and url in urls for urls in observation.known.values()):
        return True
    routers = (pod for pod in observation.routers if _routes(pod))
    silent = any(observation.known.get(pod["metadata"]["uid"]) is None for pod in routers)
    return None if silent else False


def _routes(router: Json) -> bool:
    """Whether a router may still hand requests on: also one on its way out, which is not asked."""
    statuses = router.get("status", {}).get("containerStatuses") or []
    return any(
        status.get("started") and "running" in status.get("state", {}) for status in statuses
    )


@dataclass(frozen=True)
class Membership:
    """Which engines the router shall use, and which it does use.

    Attributes:
        members: uid -> URL of the engines that belong into the list of workers.
        routable: uids of the members that every router that answers lists as healthy.
        awaited: whether an answer that may change this is still missing.
    """

    members: Mapping[str, str]
    routable: frozenset[str]
    awaited: bool


def membership(
    observation: Observation, identity: Identity, found: Iterable[Replica], step: Step
) -> Membership:
    """Decides the list of workers from probes and readiness.

    An engine becomes a member once it is ready, reports a version that may be served and has
    generated a token, unless the rollout has its hands on it. A member that merely could not be
    asked stays one: silence is unknown, not broken. A pod on its way out is no member from the
    moment of its deletion.

    Args:
        observation: what is seen of the service.
        identity: its names.
        found: all its engines.
        step: says which of them may be used.
    """
    named = _workers(observation, identity)
    by_uid = {each.uid: each for each in found}
    members: dict[str, str] = {}
    awaited = False
    for pod in observation.engines:
        url, replica = engine_url(pod), by_uid[pod["metadata"]["uid"]]
        if not url or not is_ready(pod) or replica.uid in step.excluded:
            continue
        version = replica.version
        if version is not None and replica.generated and step.admits(replica.uid, version):
            members[replica.uid] = url
            continue
        awaited = True
        if version is None and url in named:
            members[replica.uid] = url
    routable = frozenset(uid for uid in members if by_uid[uid].routable)
    return Membership(members, routable, awaited or len(routable) < len(members))


def _workers(observation: Observation, identity: Identity) -> frozenset[str]:
    """The list of workers as it stands in the cluster."""
    config_map = observation.children.get(Ref("ConfigMap", identity.workers), {})
    document = (config_map.get("data") or {}).get(WORKERS_FILE)
    if not document:
        return frozenset()
    return frozenset(worker["url"] for worker in json.loads(document)["workers"])


def nudges(observation: Observation, document: str) -> tuple[Annotate, ...]:
    """A changed annotation makes the kubelet refresh the router's ConfigMap volume at once.

    Without it the refresh was measured to take 67 s, with it 0.3 to 0.8 s.
    """
    return tuple(
        Annotate(pod["metadata"]["name"], WORKERS_ANNOTATION, document)
        for pod in observation.routers
        if not is_terminating(pod) and annotation(pod, WORKERS_ANNOTATION) != document
    )
