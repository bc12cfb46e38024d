"""What the cluster's fault schedules are judged by, itself judged."""

from __future__ import annotations

import json

import pytest

from tests.e2e import lookout
from tests.e2e.watching import LATE_SECONDS, Told, seconds_short, unadmitted, unexcused
from tests.kube import Json

METRICS = """
# TYPE smg_worker_health gauge
smg_worker_health{worker="http://10.1.0.7:30000"} 1
smg_worker_health{worker="http://10.1.0.8:30000/"} 0
smg_worker_health_checks_total{worker_type="regular",result="success"} 2
"""


def told(at: float, phase: str, served: str = "old", **rollout: object) -> Told:
    places = {"from": {"version": "old"}, "to": {"version": "new"}}
    state = {"phase": phase, **places, **rollout}
    return Told(at, {"served": {"version": served}, "rollout": state})


class Router:
    """One router and its engines, as HTTP; `away` URLs do not answer."""

    def __init__(self, *pages: str) -> None:
        self.pages = list(pages)
        self.away: set[str] = set()

    def __call__(self, url: str) -> str:
        if url in self.away:
            raise ConnectionRefusedError
        if url.endswith("/metrics"):
            return self.pages.pop(0)
        return json.dumps({"weight_version": "of " + url.split("/")[2]})


class TestWhatIsAdmitted:
    @pytest.mark.parametrize(
        ("status", "versions"),
        [
            (told(0, "Inspecting"), {"old"}),
            (told(0, "Gating"), {"old"}),
            (told(0, "Holding", passed=True), {"old", "new"}),
            (told(0, "Waving", "new", passed=True, committed=True), {"old", "new"}),
            (told(0, "Waving", "new", committed=True, older=["older"]), {"old", "new", "older"}),
            (told(0, "Returning"), {"old"}),
            (told(0, "Failed"), {"old"}),
            (told(0, "Done", "new", passed=True), {"new"}),
            (Told(0, {"served": {"version": "old"}}), {"old"}),
        ],
    )
    def test_the_candidate_only_once_it_passed(self, status: Told, versions: set[str]) -> None:
        assert status.admitted == versions

    def test_a_candidate_that_is_used_before_it_passed_is_found(self) -> None:
        story = [told(0, "Done", "old"), told(10, "Gating"), told(20, "Holding", passed=True)]
        (wrong,) = unadmitted(story, [(1, "old"), (15, "new"), (21, "new")])
        assert wrong == "15.0: new in phase Gating"

    def test_what_was_served_in_an_earlier_rollout_has_to_pass_again(self) -> None:
        """Else nothing could go wrong between two versions that take turns."""
        before = told(0, "Done", "old", **{"from": {"version": "new"}, "to": {"version": "old"}})
        assert unadmitted([before, told(10, "Canary")], [(11, "new")])

    def test_news_may_come_a_little_late(self) -> None:
        story = [told(0, "Gating"), told(20, "Holding", passed=True)]
        assert unadmitted(story, [(20 - LATE_SECONDS, "new")]) == []
        assert unadmitted(story, [(19.9 - LATE_SECONDS, "new")]) != []

    def test_what_passed_once_may_be_used_until_it_is_gone(self) -> None:
        story = [told(0, "Holding", passed=True), told(10, "Returning")]
        assert unadmitted(story, [(15, "new")]) == []


class TestWhoIsListed:
    def test_time_with_too_few_workers_is_counted(self) -> None:
        def look(at: float, *urls: str) -> Json:
            return {"at": at, "listed": dict.fromkeys(urls, "old")}

        silent: Json = {"at": 6.0, "listed": None}
        looks = [look(0, "a", "b"), look(1, "a"), look(2), look(3.5, "a"), silent, look(8, "a")]
        assert seconds_short(looks, 1) == 1.5
        assert seconds_short(looks, 0) == 0
        assert seconds_short(looks, 2) == pytest.approx(1 + 1.5 + 2.5)

    def test_all_workers_count_whether_they_are_well_or_not(self) -> None:
        assert lookout.workers(METRICS) == ["http://10.1.0.7:30000", "http://10.1.0.8:30000"]

    def test_each_is_asked_what_it_has(self) -> None:
        router = Router(METRICS, METRICS)
        router.away = {"http://10.1.0.8:30000/model_info"}
        assert lookout.look("10.1.0.2", router) == {
            "http://10.1.0.7:30000": "of 10.1.0.7:30000",
            "http://10.1.0.8:30000": None,
        }

    def test_who_left_the_list_while_it_was_asked_does_not_count(self) -> None:
        later = METRICS.replace('smg_worker_health{worker="http://10.1.0.7:30000"} 1', "")
        assert lookout.look("10.1.0.2", Router(METRICS, later)) == {
            "http://10.1.0.8:30000": "of 10.1.0.8:30000"
        }

    def test_a_silent_router_is_not_one_that_lists_nobody(self) -> None:
        router = Router("", "")
        assert lookout.look("10.1.0.2", router) == {}
        router.away = {"http://10.1.0.2:29000/metrics"}
        assert lookout.look("10.1.0.2", router) is None


class TestFailures:
    def test_only_those_that_a_fault_explains_are_excused(self) -> None:
        def line(at: float, seconds: float = 0.1) -> Json:
            return {"at": at, "s": seconds, "error": "refused"}

        before, during, long, after = line(8), line(12), line(9, 3), line(31)
        lines = [before, during, long, after]
        assert unexcused(lines, [10.0], 20) == [before, after]
        assert unexcused(lines, [], 20) == lines
