"""Leader election: who may take the Lease, and what its renewals prove about watches."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from assay_operator.cluster import lease as module
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.lease import LEASE_SECONDS, Election, Heartbeat, decide, held
from assay_operator.plan import Json

NOW = datetime(2026, 11, 24, 12, 0, 0, 5, tzinfo=UTC)


class TestDecision:
    def test_the_holder_renews(self) -> None:
        assert decide(held({}, "me", NOW), "me", unchanged=100) == "renew"

    @pytest.mark.parametrize("spec", [{}, {"holderIdentity": None}, {"holderIdentity": ""}])
    def test_a_free_lease_is_taken_at_once(self, spec: Json) -> None:
        assert decide(spec, "me", unchanged=0) == "take"

    def test_a_held_lease_is_taken_once_it_stood_still_for_its_duration(self) -> None:
        spec = held({}, "other", NOW)
        assert decide(spec, "me", unchanged=LEASE_SECONDS - 0.1) == "wait"
        assert decide(spec, "me", unchanged=LEASE_SECONDS + 0.1) == "take"

    def test_the_time_in_a_record_is_never_compared_with_our_clock(self) -> None:
        long_ago = held({}, "other", NOW - timedelta(days=1))
        assert decide(long_ago, "me", unchanged=0) == "wait"


class TestRecord:
    def test_taking_counts_a_transition_and_renewing_does_not(self) -> None:
        first = held({}, "a", NOW)
        assert first["leaseTransitions"] == 0
        assert held(first, "a", NOW)["leaseTransitions"] == 0
        assert held(first, "b", NOW)["leaseTransitions"] == 1

    def test_times_are_utc_with_microseconds(self) -> None:
        later = NOW + timedelta(seconds=2)
        spec = held(held({}, "a", NOW), "a", later)
        assert spec["acquireTime"] == "2026-11-24T12:00:00.000005Z"
        assert spec["renewTime"] == "2026-11-24T12:00:02.000005Z"


class TestHeartbeat:
    def test_an_echo_that_comes_is_no_silence(self) -> None:
        beat = Heartbeat()
        for second in range(0, 100, 2):
            beat.answered(f"{second:03}", second)
            beat.echoed(f"{second:03}")
        assert beat.silence() == 0

    def test_a_watch_that_says_nothing_is_silent_for_as_long_as_renewals_succeed(self) -> None:
        beat = Heartbeat()
        beat.answered("000", 0)
        beat.echoed("000")
        for second in range(2, 42, 2):
            beat.answered(f"{second:03}", second)
        assert beat.silence() == 38

    def test_a_standby_that_begins_to_watch_is_owed_nothing_of_before(self) -> None:
        beat = Heartbeat()
        for second in range(0, 60, 2):
            beat.answered(f"{second:03}", second)
        beat.begin()
        assert beat.silence() == 0
        beat.answered("060", 60)
        beat.answered("070", 70)
        assert beat.silence() == 10, "from then on it is"

    def test_an_outage_of_the_api_server_is_no_silence_of_the_watch(self) -> None:
        beat = Heartbeat()
        beat.answered("000", 0)
        beat.answered("600", 600)
        assert beat.silence() == 0
        beat.answered("602", 602)
        assert beat.silence() == 2, "from then on it is"

    def test_a_late_echo_shortens_the_silence(self) -> None:
        beat = Heartbeat()
        for second in (0, 2, 4):
            beat.answered(f"{second:03}", second)
        beat.echoed("002")
        assert beat.silence() == 0
        beat.answered("006", 6)
        assert beat.silence() == 2


class FakeLeases:
    """The API server's one Lease, with optimistic locking."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.broken = False
        self.before_next_write: Callable[[Json], Json] | None = None
        """Makes what another write, that arrives just before, leaves as the spec."""

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        self._check()
        if self.lease is None:
            raise ApiError(404, "NotFound", "no lease")
        return copy.deepcopy(self.lease)

    async def create(self, item: Json) -> Json:
        self._check()
        self.lease = copy.deepcopy(item)
        self.lease["metadata"]["resourceVersion"] = "1"
        return copy.deepcopy(self.lease)

    async def replace(self, item: Json, seconds: float) -> Json:
        self._check()
        assert self.lease is not None
        version = self.lease["metadata"]["resourceVersion"]
        if self.before_next_write:
            version = str(int(version) + 1)
            self.lease["spec"] = self.before_next_write(self.lease["spec"])
            self.lease["metadata"]["resourceVersion"] = version
            self.before_next_write = None
        if item["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.lease = copy.deepcopy(item)
        self.lease["metadata"]["resourceVersion"] = str(int(version) + 1)
        return copy.deepcopy(self.lease)

    def _check(self) -> None:
        if self.broken:
            raise ApiError(0, "Unreachable", "no route to host")


class TestElection:
    @pytest.fixture(autouse=True)
    def fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "RENEW_SECONDS", 0.02)
        monkeypatch.setattr(module, "GIVE_UP_SECONDS", 0.2)

    def candidate(self, leases: FakeLeases, me: str) -> Election:
        return Election(leases, "team", "lease", me, Heartbeat())  # type: ignore[arg-type]

    async def test_the_first_makes_the_lease_and_leads_and_the_second_waits(self) -> None:
        leases = FakeLeases()
        first, second = self.candidate(leases, "first"), self.candidate(leases, "second")
        led: list[str] = []
        one = asyncio.create_task(first.run(lambda: led.append("first")))
        await asyncio.sleep(0.05)
        two = asyncio.create_task(second.run(lambda: led.append("second")))
        await asyncio.sleep(0.1)
        assert led == ["first"]
        assert first.leads() and not second.leads()
        one.cancel()
        two.cancel()

    async def test_a_released_lease_is_taken_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        leases = FakeLeases()
        first, second = self.candidate(leases, "first"), self.candidate(leases, "second")
        one = asyncio.create_task(first.run(lambda: None))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(module, "RENEW_SECONDS", 60)
        two = asyncio.create_task(second.run(lambda: None))
        await asyncio.sleep(0.05)
        one.cancel()
        await first.release()
        assert not first.leads()
        assert leases.lease
        second.look(leases.lease)
        await asyncio.sleep(0.05)
        assert second.leads()
        two.cancel()

    async def test_a_lease_is_released_though_a_renewal_is_on_its_way(self) -> None:
        leases = FakeLeases()
        election = self.candidate(leases, "me")
        task = asyncio.create_task(election.run(lambda: None))
        await asyncio.sleep(0.05)
        leases.before_next_write = lambda spec: held(spec, "me", NOW)
        await election.release()
        await asyncio.wait_for(task, 1)
        assert leases.lease
        assert leases.lease["spec"]["holderIdentity"] is None
        assert not election.leads()

    async def test_leadership_ends_when_it_cannot_be_renewed(self) -> None:
        leases = FakeLeases()
        election = self.candidate(leases, "me")
        task = asyncio.create_task(election.run(lambda: None))
        await asyncio.sleep(0.05)
        leases.broken = True
        await asyncio.sleep(0.1)
        assert election.leads() and not task.done(), "a short outage costs nothing"
        await asyncio.wait_for(task, 1)
        assert not election.leads()

    async def test_leadership_ends_when_somebody_else_took_the_lease(self) -> None:
        leases = FakeLeases()
        election = self.candidate(leases, "me")
        task = asyncio.create_task(election.run(lambda: None))
        await asyncio.sleep(0.05)
        assert leases.lease
        leases.lease["spec"] = held(leases.lease["spec"], "other", NOW)
        leases.lease["metadata"]["resourceVersion"] = "1000"
        await asyncio.wait_for(task, 1)
        assert not election.leads()
