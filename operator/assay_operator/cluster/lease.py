"""Leader election by a Lease, and the proof that watches live which its heartbeat gives.

Clocks of different hosts are never compared: how long a record stands unchanged is measured by the
clock of the one who looks, as client-go does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from assay_operator.cluster.client import ApiError, Client
from assay_operator.plan import Json

LEASE_SECONDS = 8
RENEW_SECONDS = 2.0
RETRY_SECONDS = 0.5
GIVE_UP_SECONDS = 6.0
"""Leadership ends after this time without a renewal: well before anybody else may take over."""
ECHO_SECONDS = 30.0
"""How long a renewal may take to arrive through the watch before the watch counts as dead."""
_REQUEST_SECONDS = 3.0
_OUTAGE_SECONDS = 10.0

log = logging.getLogger(__name__)


def decide(spec: Json, me: str, unchanged: float) -> Literal["renew", "take", "wait"]:
    """What a candidate does about a Lease.

    Args:
        spec: the Lease's spec.
        me: the candidate's identity.
        unchanged: for how many seconds the candidate has seen this very spec.
    """
    holder = spec.get("holderIdentity")
    if holder == me:
        return "renew"
    if not holder or unchanged > spec.get("leaseDurationSeconds", LEASE_SECONDS):
        return "take"
    return "wait"


def held(spec: Json, me: str, now: datetime) -> Json:
    """The spec of the Lease once `me` holds it from `now` on."""
    stamp = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = spec.get("holderIdentity") == me
    return {
        **spec,
        "holderIdentity": me,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": stamp,
        "acquireTime": spec.get("acquireTime", stamp) if mine else stamp,
        "leaseTransitions": spec.get("leaseTransitions", -1) + (0 if mine else 1),
    }


@dataclass
class Heartbeat:
    """Compares the renewals that the API server tells of with those that the watch brings.

    An outage of the API server alone proves nothing about the watch, so only the time is counted
    in which direct answers kept coming.
    """

    _waiting: tuple[str, float] | None = None
    _echoed: str = ""
    _answered: tuple[str, float] | None = None

    def begin(self) -> None:
        """The watch starts now: renewals of before were never to arrive through it."""
        self._waiting = None

    def answered(self, renew_time: str, now: float) -> None:
        """A direct answer of the API server at `now` (monotonic seconds) told of a renewal."""
        if self._answered and now - self._answered[1] > _OUTAGE_SECONDS:
            self._waiting = None
        self._answered = (renew_time, now)
        if self._waiting is None and renew_time > self._echoed:
            self._waiting = (renew_time, now)

    def echoed(self, renew_time: str) -> None:
        """The watch brought a renewal."""
        self._echoed = max(self._echoed, renew_time)
        if self._waiting and self._answered and renew_time >= self._waiting[0]:
            newer = self._answered[0] > renew_time
            self._waiting = self._answered if newer else None

    def silence(self) -> float:
        """For how many seconds the watch has owed us a renewal."""
        if self._waiting is None or self._answered is None:
            return 0.0
        return self._answered[1] - self._waiting[1]


class Election:
    """A candidate for the Lease.

    Args:
        client: writes the Lease, over connections of its own: a renewal must not queue behind
            other requests.
        namespace: where the Lease lives.
        name: its name.
        me: this candidate's identity, unlike any other's.
        heartbeat: told of every renewal that the API server confirms.
    """

    def __init__(
        self, client: Client, namespace: str, name: str, me: str, heartbeat: Heartbeat
    ) -> None:
        self.namespace, self.name, self._me = namespace, name, me
        self._client = client
        self._heartbeat = heartbeat
        self._record: Json = {}
        self._lease: Json | None = None
        self._seen = 0.0
        self._renewed: float | None = None
        self._poke = asyncio.Event()
        self._over = False

    def leads(self) -> bool:
        """Whether the Lease is surely still held: true until it was not renewed for too long."""
        if self._over or self._renewed is None:
            return False
        return time.monotonic() - self._renewed < GIVE_UP_SECONDS

    def look(self, lease: Json) -> None:
        """The watch brought the Lease: a released one is taken at once."""
        spec = lease.get("spec") or {}
        self._heartbeat.echoed(spec.get("renewTime") or "")
        if not spec.get("holderIdentity"):
            self._poke.set()

    async def run(self, elected: Callable[[], None]) -> None:
        """Stands for election, calls `elected` once, and returns when leadership is lost."""
        while not self._over:
            was_leader, pause = self._renewed is not None, RENEW_SECONDS
            try:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    await self._round()
            except (ApiError, TimeoutError) as error:
                told = str(error) or f"no answer within {_REQUEST_SECONDS:g} s"
                log.warning("Lease %s/%s: %s", self.namespace, self.name, told)
                # What we hold is out of date: somebody else wrote it, or we do not know.
                self._lease = None
                pause = RETRY_SECONDS
            if was_leader and not self.leads() and not self._over:
                log.error("leadership is lost: the lease could not be renewed")
                return
            if not was_leader and self.leads():
                log.info("this process leads now", extra={"identity": self._me})
                elected()
            await self._pause(pause)

    async def release(self) -> None:
        """Gives the Lease back, so that the next leader need not wait until it runs out.

        A renewal may be on its way, or just cancelled and yet arrive: what counts is the Lease as
        it stands, read anew after each conflict.
        """
        self._over = True
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                while not await self._given_back():
                    log.info("the lease was written meanwhile: looking again")
        except (ApiError, TimeoutError) as error:
            log.warning("the lease was not released and will run out: %s", error)

    async def _given_back(self) -> bool:
        """Whether the Lease is not ours any more; False if it was written as we wrote it."""
        lease = await self._client.get("Lease", self.namespace, self.name)
        if lease["spec"].get("holderIdentity") != self._me:
            return True
        spec = {**lease["spec"], "holderIdentity": None, "leaseDurationSeconds": 1}
        try:
            await self._client.replace({**lease, "spec": spec}, _REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    async def _round(self) -> None:
        started = time.monotonic()
        lease = self._lease if self._renewed is not None else None
        lease = lease or await self._read()
        spec, now = lease.get("spec") or {}, time.monotonic()
        if spec != self._record:
            self._record, self._seen = spec, now
        if spec.get("renewTime"):
            self._heartbeat.answered(spec["renewTime"], now)
        choice = decide(spec, self._me, now - self._seen)
        if choice == "wait":
            self._renewed = None
            return
        mine = {**lease, "spec": held(spec, self._me, datetime.now(UTC))}
        self._lease = await self._client.replace(mine, _REQUEST_SECONDS)
        self._record, self._seen = self._lease["spec"], now
        self._renewed = started
        self._heartbeat.answered(self._lease["spec"]["renewTime"], time.monotonic())

    async def _read(self) -> Json:
        try:
            return await self._client.get("Lease", self.namespace, self.name)
        except ApiError as error:
            if error.status != 404:
                raise
        return await self._client.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": {},
            }
        )

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):  # wait_for may lose a cancellation
                await self._poke.wait()
        except TimeoutError:
            return
        self._poke.clear()
