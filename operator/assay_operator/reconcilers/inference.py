"""What is looked at for an InferenceService."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from assay_operator.checkpoints.observation import claim_of
from assay_operator.cluster.due import other_writer
from assay_operator.cluster.topics import Topic, is_at_rest
from assay_operator.cluster.view import Key, Place
from assay_operator.config import OperatorConfig
from assay_operator.inference.drivers import KINDS as DRIVERS
from assay_operator.inference.observation import (
    Observation,
    OtherWriter,
    Probe,
    Seen,
    Work,
    is_ready,
    labels_of,
)
from assay_operator.inference.planner import plan
from assay_operator.inference.references import References, is_made_by, references
from assay_operator.plan import Json, Plan, Ref
from assay_operator.reconcilers.shell import (
    COMPONENT_LABEL,
    Decide,
    Shell,
    has_started,
    of_component,
)
from assay_operator.sglang.client import Listing

Planner = Callable[[Observation, OperatorConfig, datetime], Plan]


@dataclass(frozen=True)
class _Answers:
    """What engines, routers and the API server said to one look."""

    probes: Mapping[str, Probe] = field(default_factory=dict)
    listings: Mapping[str, Listing | None] = field(default_factory=dict)
    works: Mapping[str, Work] = field(default_factory=dict)
    found: Mapping[Ref, Json | None] = field(default_factory=dict)
    seen: Seen | None = None
    other: OtherWriter | None = None


class Services:
    """Looks for InferenceServices.

    Args:
        shell: what is looked with.
        planner: decides.
    """

    def __init__(self, shell: Shell, planner: Planner = plan) -> None:
        self._shell = shell
        self._planner = planner

    async def look(self, key: Key, owner: Json) -> Decide:
        """See Kind."""
        refers = references(owner)
        self._shell.view.watch(key, _topics(refers, key.namespace))
        # A pod that is up and not ready is asked only while the weights change, be it of one engine
        # that is put right: it may answer late or never, and in a quiet time there is nothing that
        # it could add.
        rollout = (owner.get("status") or {}).get("rollout") or {}
        changing = not is_at_rest(rollout) or bool(rollout.get("replicas"))
        asked = [
            pod
            for pod in self._shell.view.pods(key)
            if is_ready(pod) or (changing and has_started(pod))
        ]
        (probes, works), listings, found, seen, other = await asyncio.gather(
            self._engines(of_component(asked, "engine"), changing),
            self._shell.sglang.listings(of_component(asked, "router")),
            self._shell.lookups.find(key.namespace, {*refers.names, *self._claims(key, refers)}),
            self._shell.scaling.look(key, owner),
            self._scaled(key, owner),
        )
        answers = _Answers(probes, listings, works, found, seen, other)

        def decide(service: Json, now: datetime) -> Plan:
            observation = self._observe(key, service, answers)
            return self._planner(observation, self._shell.config, now)

        return decide

    async def _engines(
        self, engines: tuple[Json, ...], changing: bool
    ) -> tuple[dict[str, Probe], dict[str, Work]]:
        """Asks engines what they have, and while that changes what they are at.

        One that cannot generate now, paused or loading, is not asked to; nor one that the kubelet
        finds unready, since a sick one would keep the others waiting.
        """
        works = await self._shell.control.works(engines) if changing else {}
        loads = self._shell.control.loads(engines)
        busy = {pod["metadata"]["uid"] for pod in engines if not is_ready(pod)}
        busy |= {uid for uid, work in works.items() if work.paused}
        busy |= {uid for uid, load in loads.items() if load.state == "running"}
        return await self._shell.sglang.probes(engines, busy), works

    def _observe(self, key: Key, service: Json, answers: _Answers) -> Observation:
        view, refers = self._shell.view, references(service)
        pods = view.pods(key)
        engines = of_component(pods, "engine")
        followed = refers.job and view.owner(Key("verifiedrljob", refers.namespace, refers.job))
        grants = view.find(Topic("CheckpointGrant", refers.namespace)) if refers.job else []
        return Observation(
            service=service,
            children=view.children(key),
            engines=engines,
            routers=of_component(pods, "router"),
            probes=answers.probes,
            listings={
                uid: found.healthy if found else None for uid, found in answers.listings.items()
            },
            known={uid: found.known if found else None for uid, found in answers.listings.items()},
            rejections=self._shell.applier.rejections(key),
            works=answers.works,
            loads=self._shell.control.loads(engines),
            jobs=tuple(pod for pod in pods if not _serves(pod)),
            checkpoints=self._checkpoints(key, refers),
            followed=followed or None,
            grants=tuple(grants),
            found=answers.found,
            activators=of_component(pods, "activator"),
            seen=answers.seen,
            other=answers.other,
        )

    async def _scaled(self, key: Key, owner: Json) -> OtherWriter | None:
        """Who else writes the number of replicas of a service that scales itself.

        Of a ScaledObject no watch tells, for a cluster without KEDA does not know them: it is
        looked up, so that one that is not wanted any more is seen and goes.
        """
        driver = ((owner.get("spec") or {}).get("autoscaling") or {}).get("driver")
        stood = (owner.get("status") or {}).get("autoscaling") or {}
        if "keda" in (driver, stood.get("driver")):
            await self._look_up(key, Ref(DRIVERS["keda"], key.name))
        if driver != "builtin":
            return None
        engines = Ref("Deployment", f"{key.name}-engine")
        suspects = [engines] if engines in self._shell.applier.drifted(key) else []
        noted, asked = stood.get("specReplicas"), owner["spec"].get("replicas")
        if noted and asked and noted != asked:
            suspects = [Ref("InferenceService", key.name), *suspects]
        if not suspects:
            return None
        found = await self._shell.lookups.find(key.namespace, suspects)
        for where, item in found.items():
            writer = other_writer(item, "spec", "replicas") if item else None
            if item and writer:
                return OtherWriter(where, writer, item["spec"]["replicas"])
        return None

    async def _look_up(self, key: Key, name: Ref) -> None:
        """Brings the view up to date with what no watch tells of."""
        view, found = self._shell.view, await self._shell.lookups.find(key.namespace, [name])
        known = view.item(Place(key.namespace, name))
        if there := found.get(name):
            view.put(there, by=key)
        elif name in found and known:
            view.remove(known, by=key)

    def _claims(self, key: Key, refers: References) -> set[Ref]:
        """The claims of its own namespace that weights which it may serve lie on."""
        own = (
            item
            for item in self._checkpoints(key, refers)
            if item["metadata"]["namespace"] == key.namespace
        )
        return {Ref("PersistentVolumeClaim", claim_of(item["spec"]["source"])) for item in own}

    def _checkpoints(self, key: Key, refers: References) -> tuple[Json, ...]:
        """The Checkpoint that is pinned, or those of the job that is followed."""
        view = self._shell.view
        if refers.pinned:
            pinned = view.owner(Key("checkpoint", key.namespace, refers.pinned))
            return (pinned,) if pinned else ()
        if not refers.job:
            return ()
        found = view.find(Topic("Checkpoint", refers.namespace))
        return tuple(item for item in found if is_made_by(item, refers.job))


def _topics(refers: References, own: str) -> frozenset[Topic]:
    """What must wake a service in the namespace `own`."""
    found = {Topic("Checkpoint", own)} if refers.pinned else set()
    if refers.job:
        kinds = ("Checkpoint", "VerifiedRLJob", "CheckpointGrant")
        found |= {Topic(kind, refers.namespace) for kind in kinds}
    return frozenset(found)


def _serves(pod: Json) -> bool:
    return labels_of(pod).get(COMPONENT_LABEL) in ("engine", "router", "activator")
