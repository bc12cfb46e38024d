"""Puts the parts together and runs them until a signal, or until one of them fails."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kubernetes.aio.client import Configuration

from assay_operator import health, metrics_api, telemetry
from assay_operator.actor import Actors
from assay_operator.cluster.apply import Applier
from assay_operator.cluster.audit import OWNERS, Audit
from assay_operator.cluster.client import (
    ApiError,
    Client,
    in_cluster,
    load_configuration,
    own_namespace,
)
from assay_operator.cluster.lease import Election, Heartbeat
from assay_operator.cluster.lookups import Lookups
from assay_operator.cluster.view import Key, View
from assay_operator.config import OperatorConfig
from assay_operator.handlers import watching
from assay_operator.plan import Json
from assay_operator.reconciler import Reconciler
from assay_operator.reconcilers.autoscaling import Scalers
from assay_operator.reconcilers.checkpoint import Checkpoints
from assay_operator.reconcilers.inference import Services
from assay_operator.reconcilers.shell import Kind, Shell
from assay_operator.reconcilers.training import Jobs
from assay_operator.sglang.activators import Activators
from assay_operator.sglang.client import SGLang
from assay_operator.sglang.control import Control
from assay_operator.sglang.reach import ApiServerReach, PodReach, Reach

RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        kubeconfig: a file, None for the pod's service account or the current kubeconfig.
        context: of the kubeconfig.
        namespaces: to work in; empty for all.
        reach: how engines and routers are asked.
        port: of the operator's own endpoints.
        lease_namespace: None for the operator's own.
        metrics_api: folder with the certificate of the API for HorizontalPodAutoscalers; None: it
            is not served.
        metrics_api_port: of that API.
        lease_name: shared by the replicas of one installation.
        election: False for a single process that needs no Lease.
    """

    kubeconfig: str | None = None
    context: str | None = None
    namespaces: tuple[str, ...] = ()
    reach: Literal["auto", "pods", "apiserver"] = "auto"
    port: int = 8080
    metrics_api: Path | None = None
    metrics_api_port: int = 6443
    lease_namespace: str | None = None
    lease_name: str = "assay-operator"
    election: bool = True

    def lease_place(self) -> str:
        """The Lease's namespace. kopf must watch it, so it is one of those that are worked in.

        Raises:
            ValueError: the namespace asked for is not watched.
        """
        wanted = self.lease_namespace or own_namespace()
        if not self.namespaces or wanted in self.namespaces:
            return wanted
        if self.lease_namespace is None:
            return self.namespaces[0]
        raise ValueError(
            f"--lease-namespace {wanted} must be one of the namespaces given by --namespace"
        )


class Operator:
    """One process of the operator.

    Args:
        options: what the command line says.
        config: the administrator's defaults.
        configuration: where the API server is.
    """

    def __init__(
        self, options: Options, config: OperatorConfig, configuration: Configuration
    ) -> None:
        self._options = options
        self._client = Client(configuration, self._log_in)
        self._lease_client = Client(configuration, self._log_in)
        self._view = View()
        self._heartbeat = Heartbeat()
        self._audit = Audit(self._client, self._view, options.namespaces or (None,))
        self._reach = _reach(options, self._client)
        self._sglang = SGLang(self._reach)
        self._control = Control(self._reach)
        self._activators = Activators(self._reach)
        self._scalers = Scalers(self._view, self._reach, self._activators, self._sglang)
        applier = Applier(self._client, self._view, self._control)
        self._kinds = _kinds(
            Shell(
                self._view,
                applier,
                Lookups(self._client),
                self._reach,
                self._sglang,
                self._control,
                self._scalers,
                config,
            )
        )
        reconciler = Reconciler(self._view, applier, self._kinds)
        self._actors = Actors(reconciler, reconciler.complain)
        self._view.wake = self._control.wake = self._wake
        self._activators.wake = self._scalers.wake = self._wake
        self._last_seen: dict[str, float] = {}
        self._standing = self._watching = self._synced = False
        self._election = self._candidate() if options.election else None

    async def run(self) -> int:
        """Works until SIGTERM or SIGINT; returns the process's exit code."""
        stop = asyncio.Event()
        _on_signals(stop)
        api = metrics_api.MetricsApi(partial(self._client.get, "InferenceService"))
        made = health.application(self._alive, self._ready, self._refresh, api.plain())
        server = await health.serve(made, self._options.port)
        folder, port = self._options.metrics_api, self._options.metrics_api_port
        aggregated = await metrics_api.serve(api, folder, port) if folder else None
        # kopf puts handlers of its own on the signals when it starts: ours go over them.
        jobs = [_job(self._served(stop)), _job(stop.wait())]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            if jobs[1] in done:
                log.info("a signal came: stopping")
                return 0
            jobs[0].result()
            return 1
        finally:
            await self._actors.stop()
            if self._election:
                await self._election.release()
            jobs[1].cancel()
            jobs[0].cancel()
            await asyncio.wait(jobs, timeout=3)
            await server.cleanup()
            if aggregated:
                await aggregated.cleanup()
            self._scalers.close()
            self._activators.close()
            self._control.close()
            await self._reach.close()
            await self._client.close()
            await self._lease_client.close()

    async def _served(self, stop: asyncio.Event) -> None:
        """Stands by until this process leads, then works; returns when leadership is lost.

        A standby watches nothing: its watches would cost as much as the leader's, and a first list
        takes less time than the Lease of a dead leader takes to run out.
        """
        await self._wait_for_api()
        self._standing = True
        elected = asyncio.Event()
        lead, chosen = _job(self._lead(elected)), _job(elected.wait())
        try:
            await asyncio.wait((lead, chosen), return_when=asyncio.FIRST_COMPLETED)
            if chosen.done():
                await self._work(stop, lead)
            else:
                lead.result()
        finally:
            for job in (lead, chosen):
                job.cancel()
            await asyncio.wait((lead, chosen))

    async def _work(self, stop: asyncio.Event, lead: asyncio.Task[None]) -> None:
        """Watches and acts until leadership, a watch or the audit ends; raises what fails."""
        telemetry.LEADER.set(1)
        self._heartbeat.begin()
        self._watching = True
        tasks = await watching.start(
            watching.registry(self._seen, self._log_in, self._options.election),
            watching.settings(self._options.lease_name),
            self._options.namespaces,
        )
        _on_signals(stop)
        act, audit = _job(self._act()), _job(self._audit.run())
        watch = _job(watching.run(tasks, asyncio.all_tasks() - set(tasks)))
        jobs = (watch, act, audit)
        try:
            done, _ = await asyncio.wait((*jobs, lead), return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)

    async def _lead(self, elected: asyncio.Event) -> None:
        """Stands for election, says when it is won, and returns when leadership is lost."""
        if self._election is None:
            elected.set()
            await asyncio.Event().wait()
        else:
            await self._election.run(elected.set)

    async def _act(self) -> None:
        """Fills the view, then lets the actors work."""
        while not self._synced:
            try:
                await self._audit.sync()
                self._synced = True
            except ApiError as error:
                log.warning("the first list failed and is repeated: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
        self._actors.start(key for key in self._view.owners() if key.kind in self._kinds)
        await asyncio.Event().wait()

    async def _wait_for_api(self) -> None:
        """Until the API server answers and knows our custom resources.

        kopf looks for them only once, at its start.
        """
        namespace = self._options.namespaces[0] if self._options.namespaces else None
        for kind in OWNERS:
            while True:
                try:
                    await self._client.list(kind, namespace)
                    break
                except ApiError as error:
                    told = "is its CRD installed?" if error.status == 404 else str(error)
                    log.warning("%s cannot be listed yet: %s", kind, told)
                    await asyncio.sleep(RETRY_SECONDS)

    def _wake(self, key: Key) -> None:
        """Wakes the object's actor. A grant has none: who looks at it is woken for it."""
        if key.kind in self._kinds:
            self._actors.wake(key)

    def _candidate(self) -> Election:
        me = f"{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        place, name = self._options.lease_place(), self._options.lease_name
        election = Election(self._lease_client, place, name, me, self._heartbeat)
        self._client.may_write = election.leads
        return election

    def _seen(self, kind: str, item: Json, gone: bool) -> None:
        """An event of a watch."""
        self._last_seen[kind] = time.monotonic()
        if kind == "Lease":
            if self._election and item["metadata"]["namespace"] == self._election.namespace:
                self._election.look(item)
        elif gone:
            self._view.remove(item)
            if kind == "Pod":
                self._sglang.forget(item["metadata"]["uid"])
                self._control.forget(item["metadata"]["uid"])
                self._activators.forget(item["metadata"]["uid"])
        else:
            self._view.put(item, watched=True)

    async def _log_in(self) -> Configuration:
        return await load_configuration(self._options.kubeconfig, self._options.context)

    def _alive(self) -> list[str]:
        return health.sick(self._heartbeat, self._audit.dead) if self._watching else []

    def _ready(self) -> list[str]:
        if self._watching:
            return [] if self._synced else ["the first list of everything is not complete"]
        return [] if self._standing else ["the API server does not answer, or knows no CRD of ours"]

    def _refresh(self) -> None:
        now = time.monotonic()
        for kind, seen in self._last_seen.items():
            telemetry.WATCH_AGE.labels(kind).set(now - seen)
        telemetry.VIEW_OBJECTS.set(len(self._view))


async def run(options: Options, config: OperatorConfig) -> int:
    """Runs the operator; returns the process's exit code.

    Raises:
        ConfigException: no way to an API server is configured.
        OSError: the port is taken.
    """
    configuration = await load_configuration(options.kubeconfig, options.context)
    return await Operator(options, config, configuration).run()


def _kinds(shell: Shell) -> dict[str, Kind]:
    """The kinds that have an actor, by their name in a `Key`."""
    return {
        "inferenceservice": Services(shell),
        "verifiedrljob": Jobs(shell),
        "checkpoint": Checkpoints(shell),
    }


def _reach(options: Options, client: Client) -> Reach:
    direct = in_cluster() if options.reach == "auto" else options.reach == "pods"
    return PodReach() if direct else ApiServerReach(client)


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def _job(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)
