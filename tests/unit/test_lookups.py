"""Looking up what users made: absence is an answer, an error is none, and answers are kept."""

from __future__ import annotations

from typing import Any

import pytest

from assay_operator.cluster import lookups as module
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.lookups import Lookups
from assay_operator.plan import Json, Ref

SUITE, CLAIM = Ref("ConfigMap", "suite"), Ref("PersistentVolumeClaim", "models")


class FakeClient:
    """Has some objects, counts questions, and may fail."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Json] = {SUITE: {"data": {"suite.jsonl": ""}}}
        self.asked: list[str] = []
        self.error: ApiError | None = None

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        self.asked.append(f"{namespace}/{kind}/{name}")
        if self.error:
            raise self.error
        if Ref(kind, name) not in self.objects:
            raise ApiError(404, "NotFound", "not found")
        return self.objects[Ref(kind, name)]


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def lookups(client: FakeClient) -> Lookups:
    fake: Any = client
    return Lookups(fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


async def test_presence_and_absence_are_answers(lookups: Lookups, client: FakeClient) -> None:
    assert await lookups.find("team", [SUITE, CLAIM, SUITE]) == {
        SUITE: {"data": {"suite.jsonl": ""}},
        CLAIM: None,
    }
    assert sorted(client.asked) == ["team/ConfigMap/suite", "team/PersistentVolumeClaim/models"]


async def test_answers_are_kept_for_a_while_absence_for_less(
    lookups: Lookups, client: FakeClient, clock: list[float]
) -> None:
    await lookups.find("team", [SUITE, CLAIM])
    await lookups.find("team", [SUITE, CLAIM])
    assert len(client.asked) == 2
    clock[0] += module.ABSENT_SECONDS
    await lookups.find("team", [SUITE, CLAIM])
    assert client.asked[2:] == ["team/PersistentVolumeClaim/models"]
    clock[0] += module.PRESENT_SECONDS
    await lookups.find("team", [SUITE])
    assert client.asked[3:] == ["team/ConfigMap/suite"]


async def test_namespaces_do_not_share_answers(lookups: Lookups, client: FakeClient) -> None:
    await lookups.find("team", [SUITE])
    await lookups.find("other", [SUITE])
    assert client.asked == ["team/ConfigMap/suite", "other/ConfigMap/suite"]


async def test_an_error_says_nothing_about_the_object(lookups: Lookups, client: FakeClient) -> None:
    client.error = ApiError(503, "ServiceUnavailable", "later")
    assert await lookups.find("team", [SUITE]) == {}
    client.error = None
    assert await lookups.find("team", [SUITE]) == {SUITE: client.objects[SUITE]}


async def test_nothing_wanted_is_nothing_asked(lookups: Lookups, client: FakeClient) -> None:
    assert await lookups.find("team", []) == {}
    assert client.asked == []
