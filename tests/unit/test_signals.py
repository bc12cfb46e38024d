"""What is made of the metrics pages of engines and routers, between two looks at a service."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from assay_operator.autoscaling.model import Histogram, Sample
from assay_operator.autoscaling.signals import (
    EnginePage,
    RouterPage,
    Scan,
    Standing,
    engine_page,
    quiet,
    router_page,
    sample,
)

URL = "http://10.0.0.1:30000"
LABELS = 'engine_type="unified",model_name="/models/tiny"'
RANK = f'{LABELS},moe_ep_rank="0",pp_rank="0"'


def histogram(name: str, counts: dict[str, float], total: float, more: str = "") -> str:
    buckets = [
        f'sglang:{name}_bucket{{{LABELS}{more},le="{bound}"}} {count}'
        for bound, count in counts.items()
    ]
    last = list(counts.values())[-1]
    return "\n".join(
        [
            f"# TYPE sglang:{name} histogram",
            *buckets,
            f"sglang:{name}_sum{{{LABELS}{more}}} {total}",
            f"sglang:{name}_count{{{LABELS}{more}}} {last}",
        ]
    )


def page(**more: str) -> str:
    """As SGLang writes it, shortened; the order of lines is its own."""
    return "\n".join(
        [
            f'sglang:num_running_reqs{{{RANK},tp_rank="0"}} {more.get("running", "3.0")}',
            f'sglang:num_queue_reqs{{{RANK},tp_rank="0"}} 2.0',
            f'sglang:token_usage{{{RANK},tp_rank="0"}} 0.25',
            f'sglang:fwd_occupancy{{{RANK},tp_rank="0"}} NaN',
            f'sglang:realtime_tokens_total{{{RANK},mode="prefill_compute",tp_rank="0"}} 700.0',
            f'sglang:realtime_tokens_total{{{RANK},mode="prefill_cache",tp_rank="0"}} 50.0',
            f'sglang:realtime_tokens_total{{{RANK},mode="decode",tp_rank="0"}} 300.0',
            histogram("time_to_first_token_seconds", {"0.1": 4, "0.2": 6, "+Inf": 7}, 1.5),
            histogram("inter_token_latency_seconds", {"0.01": 200, "+Inf": 290}, 3.0),
            histogram("request_time_per_output_token_seconds", {"0.01": 5, "+Inf": 6}, 0.06),
            histogram("prompt_tokens_histogram", {"100.0": 5, "1e+06": 7, "+Inf": 7}, 750),
            more.get("text", ""),
        ]
    )


class TestEnginePages:
    def test_a_page_is_read(self) -> None:
        found = engine_page(page())
        assert (found.running, found.queued, found.kv_use) == (3, 2, 0.25)
        assert found.prompt_tokens == 700, "what the cache held was not computed"
        assert found.output_tokens == 307, "the first token of each answer comes with its prompt"
        assert found.ttft == Histogram((0.1, 0.2), (4, 2, 1), 1.5)
        assert found.prompts.bounds == (100, 1e6)

    def test_streamed_answers_and_others_are_taken_together(self) -> None:
        more = histogram(
            "time_to_first_token_seconds",
            {"0.1": 1, "0.2": 1, "+Inf": 2},
            4.0,
            ',is_streaming="true"',
        )
        assert engine_page(page(text=more)).ttft == Histogram((0.1, 0.2), (5, 2, 2), 5.5)

    def test_ranks_that_work_on_the_same_requests_are_not_added_up(self) -> None:
        same = f'sglang:num_running_reqs{{{RANK},tp_rank="1"}} 3.0'
        assert engine_page(page(text=same)).running == 3
        other = f'sglang:num_running_reqs{{dp_rank="1",{RANK},tp_rank="0"}} 4.0'
        assert engine_page(page(text=other)).running == 7

    def test_gauges_of_single_priorities_are_parts_of_the_one_of_all(self) -> None:
        """SGLang with --enable-priority-scheduling; requests without a priority are "None"."""
        parts = "\n".join(
            f'sglang:{name}{{{RANK},priority="{priority}",tp_rank="0"}} 1.0'
            for name in ("num_running_reqs", "num_queue_reqs")
            for priority in ("0", "1", "None")
        )
        found = engine_page(page(text=parts))
        assert (found.running, found.queued) == (3, 2)
        of_all = page(text=parts).replace(",tp_rank", ',priority="",tp_rank')
        assert engine_page(of_all).running == 3

    def test_histograms_of_single_priorities_are_added_up(self) -> None:
        """There is none of all: each answer counts under its own priority."""
        more = histogram(
            "time_to_first_token_seconds", {"0.1": 1, "0.2": 1, "+Inf": 2}, 4.0, ',priority="1"'
        )
        assert engine_page(page(text=more)).ttft.count == 9

    @pytest.mark.parametrize("gauge", ["num_running_reqs", "num_queue_reqs"])
    def test_an_engine_whose_requests_are_not_a_number_says_nothing(self, gauge: str) -> None:
        unknown = re.sub(rf"(sglang:{gauge}{{.*}}) .*", r"\1 NaN", page())
        with pytest.raises(ValueError, match="does not say"):
            engine_page(unknown)
        other = f'sglang:{gauge}{{dp_rank="1",{RANK},tp_rank="0"}} NaN'
        with pytest.raises(ValueError, match="does not say"):
            engine_page(page(text=other))

    def test_a_rank_that_knows_the_number_speaks_for_the_others(self) -> None:
        same = f'sglang:num_running_reqs{{{RANK},tp_rank="1"}} NaN'
        assert engine_page(page(text=same)).running == 3

    def test_a_use_of_the_cache_that_is_not_a_number_is_unknown(self) -> None:
        unknown = page().replace(f'token_usage{{{RANK},tp_rank="0"}} 0.25', "token_usage{} NaN")
        assert engine_page(unknown).kv_use is None

    @pytest.mark.parametrize("text", ["", "<html>", "sglang:num_running_reqs{} 1", "404 not found"])
    def test_what_is_no_engines_page_is_an_error(self, text: str) -> None:
        with pytest.raises(ValueError, match="no engine"):
            engine_page(text)

    def test_a_line_that_cannot_be_read_spoils_no_other(self) -> None:
        torn = 'sglang:num_running_reqs{tp_rank="0"'
        assert engine_page(page(text=torn)).running == 3


class TestRouterPages:
    def test_requests_for_models_are_counted_and_healthy_engines_are_named(self) -> None:
        text = "\n".join(
            [
                'smg_http_requests_total{method="GET",path="/readiness"} 99',
                'smg_router_requests_total{model="tiny",endpoint="chat",streaming="false"} 5',
                'smg_router_requests_total{model="unknown",endpoint="generate"} 6',
                f'smg_worker_health{{worker="{URL}/"}} 1',
                'smg_worker_health{worker="http://10.0.0.2:30000"} 0',
            ]
        )
        assert router_page(text) == RouterPage(11, frozenset({URL}))

    def test_what_is_no_routers_page_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no router"):
            router_page(page())


FIRST = engine_page(page())


def later(**changes: float) -> EnginePage:
    """What the same engine says after it answered ten more requests."""
    return replace(
        FIRST,
        prompt_tokens=1700,
        output_tokens=507,
        ttft=Histogram((0.1, 0.2), (10, 6, 1), 2.5),
        itl=Histogram((0.01,), (300, 180), 4.0),
        answers=Histogram((0.01,), (12, 4), 0.26),
        prompts=Histogram((100.0, 1e6), (5, 12, 0), 5750),
        **changes,
    )


def scan(at: float, **pods: EnginePage | None) -> Scan:
    return Scan(at, engines=pods, routers={"r": RouterPage(at, frozenset({URL}))})


def between(before: Scan | None, after: Scan, ready: str = "a") -> Sample:
    uids = frozenset(ready)
    return sample(before, after, Standing(ready=uids, warm=uids), now=1e9)


class TestSamples:
    def test_a_sample_is_what_happened_between_two_looks(self) -> None:
        found = between(scan(10, a=FIRST), scan(15, a=later()))
        assert (found.seconds, found.arrivals, found.known) == (5, 5, True)
        assert (found.running, found.queued) == (3, 2)
        assert (found.prompt_tokens, found.output_tokens) == (1000, 200)
        assert found.measured is not None
        assert found.measured.ttft == Histogram((0.1, 0.2), (6, 4, 0), 1.0)
        assert found.measured.engines == 1

    def test_the_first_look_counts_nothing(self) -> None:
        found = between(None, scan(10, a=FIRST))
        assert (found.seconds, found.arrivals, found.measured) == (0, None, None)
        assert found.running == 3 and not found.known

    def test_an_engine_that_does_not_answer_is_unknown_and_not_idle(self) -> None:
        found = between(scan(10, a=FIRST, b=FIRST), scan(15, a=later(), b=None), ready="ab")
        assert found.silent == 1 and not found.known
        assert found.running is None and found.queued is None

    def test_an_engine_that_was_started_anew_is_counted_from_its_next_page(self) -> None:
        anew = replace(later(), prompt_tokens=10, output_tokens=2)
        found = between(scan(10, a=FIRST, b=FIRST), scan(15, a=later(), b=anew), ready="ab")
        assert found.measured is not None and found.measured.engines == 1
        assert found.prompt_tokens == 1000, "and never less than none"
        assert found.known, "what it runs now it does say"

    def test_one_histogram_that_went_backwards_is_enough_to_know_that(self) -> None:
        anew = replace(later(), ttft=Histogram((0.1, 0.2), (1, 0, 0), 9.0))
        assert between(scan(10, a=FIRST), scan(15, a=anew)).measured is None

    @pytest.mark.parametrize(
        "sum_", [{"prompt_tokens": math.nan}, {"ttft": Histogram((0.1, 0.2), (10, 6, 1), math.nan)}]
    )
    def test_a_sum_that_is_not_a_number_teaches_nothing(self, sum_: dict[str, Any]) -> None:
        found = between(scan(10, a=FIRST), scan(15, a=replace(later(), **sum_)))
        assert found.measured is None and found.prompt_tokens is None

    def test_a_router_whose_count_is_not_a_number_leaves_arrivals_unknown(self) -> None:
        lost = replace(scan(15, a=later()), routers={"r": RouterPage(math.nan, frozenset())})
        assert between(scan(10, a=FIRST), lost).arrivals is None

    @pytest.mark.parametrize("known", [{}, {"r": None}, {"r": RouterPage(99, frozenset())}])
    def test_arrivals_are_unknown_where_a_router_has_no_page_before(
        self, known: dict[str, RouterPage | None]
    ) -> None:
        before = replace(scan(10, a=FIRST), routers=known)
        assert between(before, scan(15, a=later())).arrivals is None

    def test_arrivals_are_unknown_where_a_router_does_not_answer(self) -> None:
        silent = replace(scan(15, a=later()), routers={"r": None})
        assert between(scan(10, a=FIRST), silent).arrivals is None

    def test_capacity_is_not_learned_from_a_cold_engine(self) -> None:
        standing = Standing(ready=frozenset("ab"), warm=frozenset("a"))
        found = sample(scan(10, a=FIRST, b=FIRST), scan(15, a=later(), b=later()), standing, 1e9)
        assert found.measured is not None and found.measured.engines == 1
        assert (found.ready, found.warm, found.prompt_tokens) == (2, 1, 2000)

    def test_times_between_tokens_come_from_whole_answers_where_nothing_is_streamed(self) -> None:
        """SGLang measures them where it hands tokens out: of such answers every 50."""
        few = replace(later(), itl=Histogram((0.01,), (202, 90), 3.1))
        found = between(scan(10, a=FIRST), scan(15, a=few)).measured
        assert found is not None and found.itl == found.answers
        assert found.answers.count == 10

    @pytest.mark.parametrize(
        ("before", "after", "arrivals"),
        [
            pytest.param((0, 9, 0), (3, 12, 0), 3, id="three begin to wait"),
            pytest.param((3, 12, 0), (0, 12, 4), 1, id="three of four at the router waited before"),
            pytest.param((0, 9, 0), (0, 11, 2), 2, id="two pass through at once"),
            pytest.param(
                (512, 600, 0), (512, 650, 0), 50, id="fifty are refused: all places taken"
            ),
            pytest.param((5, 12, 0), (5, 17, 0), 5, id="five leave, and five others come"),
            pytest.param((0, 12, 3), (2, 12, 3), 0, id="two come back from a router"),
            pytest.param((4, 12, 0), (2, 2, 0), 2, id="the activator was started anew"),
        ],
    )
    def test_a_request_that_comes_to_the_activator_counts_there_and_not_again_at_the_router(
        self, before: tuple[int, int, int], after: tuple[int, int, int], arrivals: int
    ) -> None:
        found = between(held(0, *before), held(1, *after), ready="")
        assert (found.arrivals, found.held) == (arrivals, after[0])

    def test_what_waited_at_an_activator_that_is_gone_is_not_counted_again(self) -> None:
        after = Scan(1, routers={"r": RouterPage(5, frozenset())})
        assert between(held(0, 3, 9, 0), after, ready="").arrivals == 2
        assert between(after, held(2, 4, 90, 5), ready="").arrivals == 4, "another one"

    def test_a_silent_activator_is_unknown(self) -> None:
        silent = Scan(1, activators={"x": None})
        assert (
            between(
                Scan(0, activators={"x": {"held": 0, "requests": 0}}), silent, ready=""
            ).arrivals
            is None
        )


def held(at: float, waiting: int, came: int, routed: float) -> Scan:
    """An activator where so many wait of all that came, and a router that got so many."""
    return Scan(
        at,
        routers={"r": RouterPage(routed, frozenset())},
        activators={"x": {"held": waiting, "requests": came}},
    )


class TestQuiet:
    IDLE = replace(FIRST, running=0, queued=0)

    def test_it_is_quiet_when_nothing_runs_and_nothing_came(self) -> None:
        before = Scan(0, {"a": self.IDLE}, {"r": RouterPage(5, frozenset())})
        assert quiet(before, before) is True
        assert quiet(before, replace(before, engines={"a": FIRST})) is False
        assert quiet(before, replace(before, routers={"r": RouterPage(6, frozenset())})) is False

    def test_silence_of_a_pod_is_not_quiet(self) -> None:
        before = Scan(0, {"a": self.IDLE}, {"r": RouterPage(5, frozenset())})
        assert quiet(before, replace(before, engines={"a": None})) is None
        assert quiet(before, replace(before, routers={"r": None})) is None
        assert quiet(None, before) is None
