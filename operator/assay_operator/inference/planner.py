"""From an InferenceService and what is seen of it to what shall be done: one pure function."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.conditions import validation_message
from assay_operator.config import OperatorConfig
from assay_operator.inference import status as report
from assay_operator.inference.objects import (
    VERSION_ANNOTATION,
    WORKERS_ANNOTATION,
    WORKERS_FILE,
    Identity,
    desired,
    fingerprint,
    parse_source,
    workers_document,
)
from assay_operator.inference.observation import (
    Observation,
    engine_url,
    is_ready,
    is_terminating,
    ready_since,
)
from assay_operator.inference.profiles import UnsupportedProfile, resolve
from assay_operator.plan import Annotate, Json, Plan, Ref

SETTLED_SECONDS = 30.0
"""How often a service in order is looked at: nothing tells us that an engine stopped answering."""
ROUTED_SECONDS = 3
"""From a router pod's readiness until every node's kube-proxy sends the Service's requests there.
Nothing tells when that is so; a service that were called ready before could refuse a connection."""
UNSETTLED_SECONDS = 1.0
"""How often while an answer over HTTP is awaited, which no watch announces."""


@dataclass(frozen=True)
class Membership:
    """Which engines the router shall use, and which it does use.

    Attributes:
        members: uid -> URL of the engines that belong into the list of workers.
        routable: uids of the members that every router that answers lists as healthy.
        awaited: whether an answer that may change this is still missing.
    """

    members: dict[str, str]
    routable: frozenset[str]
    awaited: bool


def membership(observation: Observation, identity: Identity, now: datetime) -> Membership:
    """Decides the list of workers from probes and readiness.

    An engine becomes a member once it is ready, reports the version that its pod was made for and
    has generated a token. A member that merely could not be asked stays one: silence is unknown,
    not broken. A pod on its way out is no member from the moment of its deletion.
    """
    listed = _listed_urls(observation, identity)
    members: dict[str, str] = {}
    awaited = False
    for pod in observation.engines:
        url = engine_url(pod)
        if not url or not is_ready(pod):
            continue
        uid = pod["metadata"]["uid"]
        probe = observation.probes.get(uid)
        wanted = _annotation(pod, VERSION_ANNOTATION)
        if probe and probe.generated and probe.version == wanted:
            members[uid] = url
        elif (probe is None or probe.version is None) and url in listed:
            members[uid] = url
            awaited = True
        else:
            awaited = True
    routable = _routable(observation, members, now)
    routers_wait = bool(members) and len(routable) < len(members)
    return Membership(members, routable, awaited or routers_wait)


def _listed_urls(observation: Observation, identity: Identity) -> frozenset[str]:
    """The list of workers as it stands in the cluster."""
    config_map = observation.children.get(Ref("ConfigMap", identity.workers), {})
    document = (config_map.get("data") or {}).get(WORKERS_FILE)
    if not document:
        return frozenset()
    return frozenset(worker["url"] for worker in json.loads(document)["workers"])


def _routable(observation: Observation, members: dict[str, str], now: datetime) -> frozenset[str]:
    routers = {pod["metadata"]["uid"] for pod in observation.routers if _is_reached(pod, now)}
    listings = observation.listings.items()
    answers = [urls for uid, urls in listings if urls is not None and uid in routers]
    if not answers:
        return frozenset()
    return frozenset(uid for uid, url in members.items() if all(url in urls for urls in answers))


def _is_reached(router: Json, now: datetime) -> bool:
    """Whether requests to the Service can be expected to arrive at this router."""
    since = ready_since(router)
    return since is not None and (now - since).total_seconds() >= ROUTED_SECONDS


def plan(observation: Observation, config: OperatorConfig, now: datetime) -> Plan:
    """What shall be done about one InferenceService.

    Args:
        observation: what is seen of it.
        config: the administrator's defaults.
        now: the time, with a zone.

    Returns:
        the complete children, status, Events and actions. A spec that cannot be carried out gives
        a plan that says so in status and touches no child.
    """
    metadata = observation.service["metadata"]
    identity = Identity(metadata["name"], metadata["namespace"])
    try:
        spec = InferenceServiceSpec.model_validate(observation.service["spec"])
        profile = resolve(
            spec.engine.profile,
            spec.engine.accelerator,
            spec.engine.tuning,
            spec.engine.parallelism,
        )
    except ValidationError as error:
        return _refused(observation, "InvalidSpec", validation_message(error), now)
    except UnsupportedProfile as error:
        return _refused(observation, "UnsupportedProfile", str(error), now)
    group = membership(observation, identity, now)
    document = workers_document(group.members.values())
    facts = report.Facts(
        identity=identity,
        spec=spec,
        target=parse_source(spec.model.source).version,
        served=_served_versions(observation, group.routable),
        routable=len(group.routable),
    )
    status = report.status(observation, facts, now)
    return Plan(
        objects=desired(identity, spec, profile, config, document),
        status=status,
        events=report.events(observation.service.get("status") or {}, status),
        actions=_nudges(observation, fingerprint(document)),
        next_look=UNSETTLED_SECONDS if group.awaited else SETTLED_SECONDS,
    )


def _refused(observation: Observation, reason: str, message: str, now: datetime) -> Plan:
    status = report.refused_status(observation, reason, message, now)
    return Plan(
        status=status,
        events=report.events(observation.service.get("status") or {}, status),
        next_look=SETTLED_SECONDS,
        prune=False,
    )


def _served_versions(observation: Observation, routable: frozenset[str]) -> tuple[str, ...]:
    versions = {
        pod["metadata"]["annotations"][VERSION_ANNOTATION]
        for pod in observation.engines
        if pod["metadata"]["uid"] in routable
    }
    return tuple(sorted(versions))


def _nudges(observation: Observation, document: str) -> tuple[Annotate, ...]:
    """A changed annotation makes the kubelet refresh the router's ConfigMap volume at once.

    Without it the refresh was measured to take 67 s, with it 0.3 to 0.8 s.
    """
    return tuple(
        Annotate(pod["metadata"]["name"], WORKERS_ANNOTATION, document)
        for pod in observation.routers
        if not is_terminating(pod) and _annotation(pod, WORKERS_ANNOTATION) != document
    )


def _annotation(item: Json, key: str) -> str | None:
    value: str | None = (item["metadata"].get("annotations") or {}).get(key)
    return value
