"""The simulator of benchmarks/autoscaling: engines keep to their arithmetic, peers to theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.autoscaling import compare, fit, report, shapes
from benchmarks.autoscaling.engine import Engine, Replica, Served
from benchmarks.autoscaling.peers.aibrix import Apa
from benchmarks.autoscaling.peers.bounds import Foresight, Static
from benchmarks.autoscaling.peers.dynamo import TREND, Level, Planner
from benchmarks.autoscaling.peers.knative import Kpa
from benchmarks.autoscaling.peers.kubernetes import Behaviour, Hpa, by_pods, by_total
from benchmarks.autoscaling.policy import Objective, Sample
from benchmarks.autoscaling.score import gpu_hours, most_within, reversals, score
from benchmarks.autoscaling.simulate import Run, Scaling, World, simulate
from benchmarks.autoscaling.trace import (
    SYNTHETIC,
    Request,
    Trace,
    multiplied,
    poisson,
    read,
    stretched,
    synthetic,
)

ENGINE = fit.scaled(fit.fitted())
WORLD = World(ENGINE, start_s=60.0, most=8)
OBJECTIVE = Objective("4 s, 250 ms", 4.0, 0.25)
SMALL = replace(ENGINE, chunk=64, most_running=4, kv_tokens=600, warm_s=2.0, request_s=0.01)
"""Small enough that every limit is met."""

BURST = poisson(lambda at: 10.0 if 300 <= at < 420 else 1.0, 10.0, 900.0, seed=5)
"""One request a second, ten of them for two minutes."""

requests = st.lists(
    st.builds(Request, st.floats(0, 20), st.integers(1, 300), st.integers(1, 40)),
    min_size=1,
    max_size=30,
    unique_by=lambda request: request.at,
).map(lambda found: sorted(found, key=lambda request: request.at))


@dataclass
class Script:
    """Wants what it is told, one after another, and remembers what it saw."""

    wants: Sequence[int]
    period: float = 10.0
    seen: list[Sample] = field(default_factory=list)

    def observe(self, sample: Sample) -> int:
        self.seen.append(sample)
        return self.wants[min(len(self.seen), len(self.wants)) - 1]


def steady(rate: float, length_s: float, seed: int = 3) -> list[Request]:
    return poisson(lambda _: rate, rate, length_s, seed)


def one_by_one(engine: Engine, trace: Trace, warm_at: float) -> list[tuple[float, float]]:
    """First and last tokens by the plainest of loops: one iteration after another, one sequence
    after another, nothing summed up."""
    waiting = [[index, request.prompt, False] for index, request in enumerate(trace)]
    running: list[list[int]] = []
    first, last = [math.inf] * len(trace), [math.inf] * len(trace)
    reserved, now = 0, 0.0
    while waiting or running:
        room, batch = engine.chunk, 0
        done: list[int] = []
        while waiting and trace[waiting[0][0]].at <= now and room:
            index, left, admitted = waiting[0]
            needed = trace[index].prompt + trace[index].output
            if len(running) + len(done) >= engine.most_running:
                break
            if not admitted and reserved and reserved + needed > engine.kv_tokens:
                break
            if not admitted:
                reserved += needed
            part = min(room, left)
            room, batch = room - part, batch + part
            waiting[0] = [index, left - part, True]
            if waiting[0][1]:
                break
            done.append(index)
            waiting.pop(0)
        factor = engine.warm_factor if now < warm_at else 1.0
        if batch:
            now += engine.prefill(batch, len(done)) * factor
            for index in done:
                first[index] = now
                running.append([index, 1])
        elif running:
            context = sum(trace[index].prompt + made for index, made in running)
            now += engine.decode(len(running), context) * factor
            running = [[index, made + 1] for index, made in running]
        else:
            now = trace[waiting[0][0]].at
        for index, made in running:
            if made == trace[index].output:
                last[index] = now
                reserved -= trace[index].prompt + trace[index].output
        running = [[index, made] for index, made in running if made < trace[index].output]
    return list(zip(first, last, strict=True))


class TestEngine:
    @settings(max_examples=60, deadline=None)
    @given(requests)
    def test_many_steps_at_once_end_where_single_steps_end(self, trace: list[Request]) -> None:
        replica = Replica(SMALL, 0, ready_at=0.0)
        found = [Served(request) for request in trace]
        for served in found:
            replica.advance(served.request.at)
            replica.take(served, served.request.at)
        replica.advance(1e6)
        for served, (first, last) in zip(
            found, one_by_one(SMALL, trace, replica.warm_at), strict=True
        ):
            assert served.first == pytest.approx(first, abs=1e-9)
            assert served.finished == pytest.approx(last, abs=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(requests, st.floats(0.01, 3.0))
    def test_what_happens_does_not_depend_on_who_looks(
        self, trace: list[Request], every: float
    ) -> None:
        ends = []
        for looks in (math.inf, every):
            replica = Replica(SMALL, 0, ready_at=0.0)
            found = [Served(request) for request in trace]
            look = looks
            for served in found:
                while look < served.request.at:
                    replica.advance(look)
                    look += looks
                replica.advance(served.request.at)
                replica.take(served, served.request.at)
            replica.advance(1e6)
            ends.append([served.finished for served in found])
        assert ends[0] == pytest.approx(ends[1], abs=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(requests)
    def test_limits_hold_and_the_gauges_end_at_zero(self, trace: list[Request]) -> None:
        replica = Replica(SMALL, 0, ready_at=0.0)
        largest = max(request.prompt + request.output for request in trace)
        for request in trace:
            replica.advance(request.at)
            assert replica.running <= SMALL.most_running
            assert replica.context <= max(SMALL.kv_tokens, largest)
            replica.take(Served(request), request.at)
        replica.advance(1e6)
        assert (replica.load, replica.waiting_tokens, replica.context) == (0, 0, 0)

    @settings(max_examples=40, deadline=None)
    @given(requests)
    def test_counters_and_histograms_add_up(self, trace: list[Request]) -> None:
        replica = Replica(SMALL, 0, ready_at=0.0)
        for request in trace:
            replica.advance(request.at)
            replica.take(Served(request), request.at)
        replica.advance(1e6)
        news = replica.news
        outputs = [request.output for request in trace]
        assert news.prompt_tokens == sum(request.prompt for request in trace)
        assert news.output_tokens == sum(outputs)
        assert sum(times for _, times in news.gaps) == sum(outputs) - len(outputs)
        between = sum(served.finished - served.first for served in news.finished)
        assert sum(gap * times for gap, times in news.gaps) == pytest.approx(between, abs=1e-6)

    def test_a_new_replica_is_slow_at_first(self) -> None:
        times = []
        for ready_at in (0.0, -ENGINE.warm_s):
            replica = Replica(ENGINE, 0, ready_at)
            served = Served(Request(0.0, 1000, 10))
            replica.take(served, 0.0)
            replica.advance(100.0)
            times.append(served.finished)
        assert times[0] == pytest.approx(ENGINE.warm_factor * times[1])

    @pytest.mark.parametrize("point", fit.MEASURED)
    def test_the_fitted_engine_is_as_fast_as_the_measured_one(self, point: fit.Point) -> None:
        assert fit.throughput(fit.fitted(), point) == pytest.approx(point.tokens_s, rel=0.01)

    def test_the_form_of_the_fit_holds_over_two_orders_of_clients(self) -> None:
        base, each = fit.straight(fit.TINY)
        for point in fit.TINY:
            expected = point.clients / (base + each * point.clients)
            assert expected == pytest.approx(point.tokens_s, rel=0.1)


class TestReplay:
    @pytest.mark.parametrize("route", ["least-load", "round-robin"])
    def test_every_request_finishes_exactly_once(self, route: str) -> None:
        trace = BURST
        policy = Script([1, 5, 2, 6, 1, 3] * 30)
        run = simulate(trace, policy, replace(WORLD, route=route))
        assert [served.request for served in run.served] == trace
        assert all(served.times == 1 for served in run.served)
        for served in run.served:
            assert served.request.at <= served.routed < served.first <= served.finished

    def test_littles_law_holds_on_a_steady_load(self) -> None:
        trace = steady(2.0, 1500)
        policy = Script([2])
        run = simulate(trace, policy, replace(WORLD, first=2))
        inside = [served for served in run.served if 300 <= served.request.at < 1500]
        seen = [sample for sample in policy.seen if 300 < sample.now <= 1500]
        mean_time = sum(served.finished - served.request.at for served in inside) / len(inside)
        concurrency = sum(sample.concurrency for sample in seen) / len(seen)
        assert concurrency == pytest.approx(len(inside) / 1200 * mean_time, rel=0.02)

    def test_the_same_again_gives_the_same(self) -> None:
        trace = BURST
        runs = [simulate(trace, Kpa(4.0), WORLD) for _ in range(2)]
        assert runs[0].served == runs[1].served
        assert runs[0].scalings == runs[1].scalings

    def test_more_replicas_never_attain_less(self) -> None:
        trace = BURST
        shares = [
            score(
                simulate(trace, Static(replicas), replace(WORLD, first=replicas)),
                OBJECTIVE,
                0.0,
                900.0,
                replicas,
            ).attained
            for replicas in (2, 3, 4, 5, 6, 8)
        ]
        assert shares == sorted(shares)
        assert shares[0] < 0.5
        assert shares[-1] > 0.99

    def test_a_replica_serves_after_its_start_and_costs_from_the_moment_it_was_asked_for(
        self,
    ) -> None:
        trace = [Request(float(at), 100, 4) for at in range(0, 200)]
        policy = Script([2])
        run = simulate(trace, policy, WORLD)
        ready = {sample.now: sample.ready for sample in policy.seen}
        assert (ready[60.0], ready[70.0]) == (1, 2)
        assert [(one.at, one.before, one.after) for one in run.scalings] == [(10.0, 1, 2)]
        assert gpu_hours(run, 0.0, 100.0) == pytest.approx((100 + 90) / 3600)

    def test_a_replica_that_goes_gets_nothing_new_and_finishes_what_it_has(self) -> None:
        trace = [Request(at / 10, 500, 100) for at in range(0, 300)]
        policy = Script([1])
        run = simulate(trace, policy, replace(WORLD, first=2))
        went = run.lives[1]
        assert went.left == 10.0
        assert went.gone > 10.0
        assert all(served.times == 1 for served in run.served)
        ends = {served.finished for served in run.served}
        assert went.gone in ends

    def test_those_that_still_start_go_first(self) -> None:
        trace = [Request(float(at), 100, 4) for at in range(0, 100)]
        run = simulate(trace, Script([3, 1]), WORLD)
        assert [(life.asked, life.gone) for life in run.lives[1:]] == [(10.0, 20.0)] * 2

    def test_a_sample_counts_what_happened_since_the_one_before(self) -> None:
        trace = steady(3.0, 100)
        policy = Script([2])
        simulate(trace, policy, replace(WORLD, first=2))
        assert sum(sample.arrived for sample in policy.seen) == len(trace)
        assert sum(sample.prompt_tokens for sample in policy.seen) == sum(
            request.prompt for request in trace
        )
        finished = [one for sample in policy.seen for one in sample.finished]
        assert len(finished) == len(trace)
        assert policy.seen[-1].in_system == 0

    def test_wishes_beyond_the_bounds_are_held_within(self) -> None:
        trace = steady(1.0, 100)
        run = simulate(trace, Script([100, 0]), WORLD)
        assert [one.after for one in run.scalings] == [8, 1]


class TestScore:
    def test_a_request_must_keep_both_times(self) -> None:
        request = Request(10.0, 100, 11)
        good = Served(request, 10.0, 14.0, 16.5, 1)
        assert OBJECTIVE.met(good)
        assert not OBJECTIVE.met(replace(good, first=14.1))
        assert not OBJECTIVE.met(replace(good, finished=16.6))
        assert not OBJECTIVE.met(Served(request))

    def test_a_reversal_is_a_change_of_direction(self) -> None:
        numbers = [1, 3, 5, 4, 2, 6, 1]
        changes = [
            Scaling(100.0 * index, before, after)
            for index, (before, after) in enumerate(pairwise(numbers))
        ]
        assert reversals(changes) == [200.0, 400.0, 500.0]
        assert most_within([200.0, 400.0, 500.0], 300.0) == 2
        assert most_within([200.0, 400.0, 500.0], 301.0) == 3
        assert most_within([], 300.0) == 0

    def test_only_what_lies_between_the_moments_counts(self) -> None:
        served = [
            Served(Request(float(at), 1, 1), at, at + 1.0, at + 1.0, 1) for at in range(0, 100, 10)
        ]
        run = Run(served, [Scaling(5.0, 1, 4), Scaling(50.0, 4, 2)])
        found = score(run, OBJECTIVE, 20.0, 60.0, 1)
        assert (found.requests, found.attained, found.scalings) == (4, 1.0, 1)
        assert (found.peak, found.reversals) == (4, 0)

    def test_tuning_takes_the_cheapest_that_attains_enough_or_else_the_best(self) -> None:
        none = score(Run([]), OBJECTIVE, 0.0, 1.0, 1)

        def outcome(text: str, attained: float, hours: float) -> compare.Outcome:
            tuned = replace(none, attained=attained, gpu_hours=hours)
            return compare.Outcome("HPA", text, tuned, none)

        found = [outcome("a", 0.95, 5.0), outcome("b", 0.91, 4.0), outcome("c", 0.5, 1.0)]
        assert compare.choose(found, 0.9).text == "b"
        assert compare.choose(found, 0.99).text == "a"


class TestVerdicts:
    """What is said of a comparison, from made-up shares and GPU-hours."""

    NONE = score(Run([]), OBJECTIVE, 0.0, 1.0, 1)
    PEERS = dict.fromkeys(compare.PEERS, (0.99, 9.0))

    def case(self, **found: tuple[float, float]) -> report.Case:
        names = {"ours": compare.OURS, "untuned": compare.UNTUNED, "fixed": compare.STATIC}
        named = {names.get(name, name): each for name, each in found.items()}
        chosen = {
            name: compare.Outcome(
                name, "", self.NONE, replace(self.NONE, attained=share, gpu_hours=hours)
            )
            for name, (share, hours) in (self.PEERS | named).items()
        }
        return report.Case(60.0, OBJECTIVE, list(chosen.values()), chosen)

    def test_the_best_peer_is_the_cheapest_that_kept_the_target(self) -> None:
        cheap = self.case(HPA=(0.92, 5.0), KEDA=(0.89, 1.0))
        assert report.best_peer(cheap, 0.9) == "HPA"

    def test_where_none_kept_it_the_nearest_is_the_best_peer(self) -> None:
        far = dict.fromkeys(compare.PEERS, (0.5, 1.0))
        assert report.best_peer(self.case(**far | {"KEDA": (0.8, 9.0)}), 0.9) == "KEDA"

    @pytest.mark.parametrize(
        ("ours", "met"), [((0.92, 4.0), True), ((0.92, 4.1), False), ((0.91, 1.0), False)]
    )
    def test_the_goal_is_its_share_for_a_fifth_less(
        self, ours: tuple[float, float], met: bool
    ) -> None:
        case = self.case(HPA=(0.92, 5.0), ours=ours, untuned=(0.9, 1.0))
        assert report.verdict(case, 0.9).met is met

    def test_what_speaks_against_us_is_counted(self) -> None:
        lost = self.case(HPA=(0.92, 5.0), ours=(0.8, 2.0), untuned=(0.95, 3.0), fixed=(0.9, 2.0))
        won = self.case(HPA=(0.92, 5.0), ours=(0.99, 3.0), untuned=(0.97, 3.0), fixed=(0.9, 4.0))
        said, _ = report.summary([lost, won], [], 0.9)
        assert "met in 1 of 2 cases by Assay as tuned, in 2 by Assay untuned" in said
        assert "95.0% to 97.0% everywhere" in said
        assert "fell below 90% on the second in 1." in said
        assert said.endswith("in 1.")

    def test_a_peer_that_is_ahead_on_a_synthetic_trace_is_named(self) -> None:
        found = [
            shapes.Shaped("spike", name, "", 2, replace(self.NONE, attained=share, gpu_hours=hours))
            for name, share, hours in (
                (compare.UNTUNED, 0.83, 3.0),
                ("HPA", 0.91, 5.0),
                ("KEDA", 0.8, 4.0),
            )
        ]
        case = self.case(ours=(0.9, 1.0), untuned=(0.9, 1.0))
        _, said = report.summary([case], found, 0.9)
        assert "spike (83.0% for 3.00): HPA 91.0% for 5.00. " in said


class TestTrace:
    def test_the_azure_format_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.csv"
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:17:04.0319600,3180,8\n"
            "2023-11-16 18:17:03.9799600,4808,0\n"
        )
        first, second = read(path)
        assert (first, second.prompt, second.output) == (Request(0.0, 4808, 1), 3180, 8)
        assert second.at == pytest.approx(0.052)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("TIMESTAMP,ContextTokens\n", "no column GeneratedTokens"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,1\n", "now"),
        ],
    )
    def test_what_is_no_trace_is_refused(self, tmp_path: Path, text: str, error: str) -> None:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            read(path)

    def test_a_multiplied_trace_keeps_every_request_in_its_part(self) -> None:
        trace = steady(1.0, 100)
        found = multiplied(trace, 4, split=50.0, end=100.0)
        assert [request.at for request in found] == sorted(request.at for request in found)
        for begin, end in ((0.0, 50.0), (50.0, 100.0)):
            few = sorted(one.prompt for one in trace if begin <= one.at < end)
            many = sorted(one.prompt for one in found if begin <= one.at < end)
            assert many == sorted(few * 4)
        assert multiplied(trace, 1, split=50.0, end=100.0) == trace

    def test_a_stretched_trace_is_longer(self) -> None:
        assert [one.at for one in stretched([Request(2.0, 1, 1)], 3.0)] == [6.0]

    @pytest.mark.parametrize("name", SYNTHETIC)
    def test_synthetic_traces_follow_their_rate(self, name: str) -> None:
        trace, shape = synthetic(name), SYNTHETIC[name]
        assert trace == synthetic(name)
        for begin in range(0, int(shape.length_s), 600):
            expected = sum(shape.rate(at) for at in range(begin, begin + 600))
            count = sum(begin <= one.at < begin + 600 for one in trace)
            assert abs(count - expected) <= 5 * math.sqrt(expected) + 1


class TestHpa:
    """The first three are the examples of kubernetes.io, "Algorithm details"."""

    def test_twice_the_target_asks_for_twice_as_many(self) -> None:
        assert by_pods([200.0], 0, 1, 100.0) == 2
        assert by_pods([200.0] * 3, 0, 3, 100.0) == 6

    def test_half_the_target_asks_for_half_as_many(self) -> None:
        assert by_pods([50.0] * 4, 0, 4, 100.0) == 2

    def test_within_a_tenth_nothing_changes(self) -> None:
        assert by_pods([109.0] * 10, 0, 10, 100.0) == 10
        assert by_pods([91.0] * 10, 0, 10, 100.0) == 10
        assert by_pods([112.0] * 10, 0, 10, 100.0) == 12

    def test_replicas_that_start_count_as_idle_on_the_way_up(self) -> None:
        # 3 at 200, 3 starting: mean 100 over six, so six are enough.
        assert by_pods([200.0] * 3, 3, 6, 100.0) == 6
        assert by_pods([300.0] * 3, 3, 6, 100.0) == 9

    def test_replicas_that_start_count_as_busy_on_the_way_down(self) -> None:
        # 2 at 20 and 2 counted at 100: mean 60 over four.
        assert by_pods([20.0] * 2, 2, 4, 100.0) == 3

    def test_external_metrics_divide_the_total(self) -> None:
        assert by_total(35.0, 2, 10.0) == 4
        assert by_total(21.0, 2, 10.0) == 2
        assert by_total(0.0, 2, 10.0) == 0

    def test_down_goes_to_the_highest_of_the_window(self) -> None:
        behaviour = Behaviour(300.0)
        found = [behaviour.apply(want, 10, now) for want, now in ((10, 0), (4, 15), (6, 30))]
        assert found == [10, 10, 10]
        assert behaviour.apply(3, 10, 301) == 6
        assert behaviour.apply(3, 6, 331) == 3

    def test_up_is_at_once_and_at_most_double_or_four_more_in_15_s(self) -> None:
        assert Behaviour().apply(100, 1, 0) == 5
        behaviour = Behaviour()
        assert behaviour.apply(100, 10, 0) == 20
        assert behaviour.apply(100, 20, 10) == 20
        assert behaviour.apply(100, 20, 15) == 40

    def test_a_burst_is_answered_within_one_sync_and_kept_for_the_window(self) -> None:
        run = simulate(BURST, Hpa(2.0, down_s=120.0), WORLD)
        ups = [one for one in run.scalings if one.after > one.before and 300 < one.at < 450]
        assert ups[0].at <= 330
        downs = [one for one in run.scalings if one.after < one.before and one.at > ups[-1].at]
        assert downs[0].at - ups[-1].at >= 120


class TestKpa:
    """By hand, from the rules of autoscaler.go: target 70% of 10, so 7."""

    def test_the_stable_window_decides(self) -> None:
        assert Kpa(10.0).decide(stable=21.0, panic=21.0, ready=3, now=0.0) == 3
        assert Kpa(10.0).decide(stable=22.0, panic=22.0, ready=3, now=0.0) == 4

    def test_twice_what_the_ready_ones_can_do_is_panic_and_nothing_goes_down_in_it(self) -> None:
        policy = Kpa(10.0)
        assert policy.decide(stable=7.0, panic=14.0, ready=1, now=0.0) == 2
        assert policy.decide(stable=7.0, panic=35.0, ready=1, now=2.0) == 5
        assert policy.decide(stable=7.0, panic=0.0, ready=5, now=10.0) == 5
        assert policy.decide(stable=7.0, panic=7.0, ready=5, now=62.0) == 5
        assert policy.decide(stable=7.0, panic=7.0, ready=5, now=63.0) == 2

    def test_down_goes_at_most_by_half(self) -> None:
        assert Kpa(10.0).decide(stable=0.0, panic=0.0, ready=9, now=0.0) == 4
        assert Kpa(10.0).decide(stable=0.0, panic=0.0, ready=1, now=0.0) == 1


class TestOtherPeers:
    def test_apa_acts_beyond_its_tolerances_only(self) -> None:
        policy = Apa(10.0, up=0.1, down=0.2)
        assert policy.decide(11.0, 4, 4) == 4
        assert policy.decide(12.0, 4, 4) == 5
        assert policy.decide(8.0, 4, 4) == 4
        assert policy.decide(7.0, 4, 4) == 3

    def test_apa_at_most_doubles_and_at_most_halves(self) -> None:
        assert Apa(10.0).decide(90.0, 4, 4) == 8
        assert Apa(10.0).decide(1.0, 8, 8) == 4

    def test_apa_counts_replicas_that_start(self) -> None:
        # Two at 30 with a target of 10 need six; four are on their way.
        assert Apa(10.0).decide(30.0, 6, 2) == 6
        assert Apa(10.0).decide(5.0, 6, 2) == 5

    def test_the_planner_divides_demand_by_what_an_engine_can_do(self) -> None:
        policy = Planner(ENGINE, OBJECTIVE, interval_s=60.0)
        trace = [Request(at / 4, 2000, 28) for at in range(0, 1200)]
        run = simulate(trace, policy, replace(WORLD, start_s=1.0, most=16))
        expected = math.ceil(4 / policy.capacity(2000, 28))
        assert run.scalings[0].at == 60.0
        assert run.scalings[-1].after in {expected, expected + 1}

    def test_an_engine_can_do_more_within_a_wider_objective(self) -> None:
        tight = Planner(ENGINE, Objective("", 1.0, 0.05)).capacity(2000, 28)
        wide = Planner(ENGINE, Objective("", 10.0, 1.0)).capacity(2000, 28)
        assert 0 < tight < wide

    def test_a_trend_is_followed_and_a_constant_repeated(self) -> None:
        trend, constant = Level(*TREND), Level()
        for value in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0):
            ahead, same = trend.next(value), constant.next(value)
        assert same == 60.0
        assert ahead == pytest.approx(70.0, abs=6.0)

    def test_foresight_has_replicas_ready_when_a_burst_comes(self) -> None:
        policy = Foresight(BURST, ENGINE, start_s=60.0, bin_s=10.0, utilisation=0.7)
        run = simulate(BURST, policy, WORLD)
        ups = [one.at for one in run.scalings if one.after > one.before and one.at > 200]
        assert ups[0] <= 300 - 60
        assert score(run, OBJECTIVE, 300.0, 420.0, 1).attained > 0.9


def test_all_policies_have_grids_of_one_size() -> None:
    setup = compare.Setup(BURST, WORLD, 0.0, 450.0, 900.0)
    found = [setting.policy for setting in compare.settings(setup, [OBJECTIVE])]
    assert {name: found.count(name) for name in (compare.OURS, *compare.PEERS)} == dict.fromkeys(
        (compare.OURS, *compare.PEERS), compare.GRID
    )
    assert set(found) == set(compare.POLICIES)


def test_every_policy_serves_the_burst_with_more_replicas_and_lets_them_go() -> None:
    """Each with the first of its settings; but for a fixed number, which serves it all the same."""
    setup = compare.Setup(BURST, WORLD, 0.0, 450.0, 900.0)
    tried: set[str] = set()
    for setting in compare.settings(setup, [OBJECTIVE]):
        if setting.policy not in tried:
            tried.add(setting.policy)
            run = compare.replay(setup, setting)
            assert all(served.times == 1 for served in run.served), setting.policy
            before, during, after = (
                wanted(run, setting.first, *span) for span in ((0, 300), (300, 420), (420, 900))
            )
            moves = max(during) > min(before) and max(during) > min(after)
            assert moves == (setting.policy != compare.STATIC), setting.policy
    assert tried == set(compare.POLICIES)


def wanted(run: Run, first: int, begin: float, end: float) -> set[int]:
    """The numbers of replicas that were wanted from one time to another."""
    changes = [Scaling(0.0, first, first), *run.scalings, Scaling(math.inf, 0, 0)]
    return {
        one.after for one, following in pairwise(changes) if one.at < end and following.at > begin
    }
