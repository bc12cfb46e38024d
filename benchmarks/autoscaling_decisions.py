"""What a decision about replicas costs the operator, for a thousand services. No cluster.

    python -m benchmarks.autoscaling_decisions

Each service has an hour behind it, of which its state remembers all that it ever will, and a load
of its own. Measured is the processor's time, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from assay_operator.autoscaling.decision import Decision, decide
from assay_operator.autoscaling.model import Histogram, Measured, Policy, Sample
from assay_operator.autoscaling.record import record
from assay_operator.autoscaling.signals import engine_page
from assay_operator.autoscaling.state import State, write
from benchmarks.common import Row, python_versions, quantile, say
from benchmarks.common import write as write_table

SERVICES, ROUNDS = 1000, 5
HOUR_S, POINT_S, LOOK_S = 3600.0, 30.0, 5.0
GOAL_MS = 1.0
TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0)
ITL = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4)
LINES = 1000
"""Of an engine's metrics page; a sixth of them count."""


@dataclass
class Service:
    """One service: what it wants, what is asked of it, and what its decisions remember."""

    policy: Policy
    rate: float
    state: State
    now: float = 0.0

    def sample(self, seconds: float, chance: random.Random) -> Sample:
        """The next look at it."""
        self.now += seconds
        ready = self.state.replicas or 1
        came = max(0.0, chance.gauss(self.rate * seconds, (self.rate * seconds) ** 0.5))
        running = came / seconds * 100 * 0.02
        return Sample(
            now=self.now,
            seconds=seconds,
            arrivals=came,
            running=running,
            queued=0.0,
            prompt_tokens=came * 600,
            output_tokens=came * 100,
            ready=ready,
            warm=ready,
            oldest_ready_s=self.now,
            measured=Measured(
                engines=ready,
                running=running,
                prompt_tokens=came * 600,
                output_tokens=came * 100,
                kv_use=min(0.9, running / ready / 100),
                ttft=Histogram.of((chance.expovariate(8) for _ in range(int(came) + 1)), TTFT),
                itl=Histogram.of((chance.gauss(0.022, 0.002) for _ in range(50)), ITL),
                answers=Histogram.of((chance.gauss(0.022, 0.002) for _ in range(20)), ITL),
                prompts=Histogram((500.0, 1000.0), (came / 2, came / 2, 0.0), came * 600),
            ),
        )

    def decide(self, sample: Sample) -> Decision:
        decision = decide(self.policy, self.state, sample)
        self.state = decision.state
        return decision


def services(chance: random.Random) -> Iterator[Service]:
    """They have an hour behind them."""
    for number in range(SERVICES):
        policy = Policy(max=50, ttft_s=0.5, itl_s=0.04, profile="nvidia-h200")
        if number % 3 == 0:
            policy = replace(policy, ttft_s=None, itl_s=None, concurrency=16.0)
        made = Service(policy, rate=chance.lognormvariate(1, 1), state=State())
        for _ in range(int(HOUR_S / POINT_S)):
            made.rate *= chance.uniform(0.9, 1.11)
            made.decide(made.sample(POINT_S, chance))
        yield made


def page() -> str:
    """An engine's metrics, as long as SGLang's."""
    rank = 'engine_type="unified",model_name="/models/x",moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    lines = [f"sglang:{name}{{{rank}}} 3.0" for name in ("num_running_reqs", "num_queue_reqs")]
    for name, bounds in (
        ("time_to_first_token_seconds", TTFT * 2),
        ("inter_token_latency_seconds", ITL * 2),
        ("request_time_per_output_token_seconds", ITL * 4),
        ("prompt_tokens_histogram", ITL * 3),
    ):
        lines += [f'sglang:{name}_bucket{{{rank},le="{bound}"}} 9.0' for bound in bounds]
    return "\n".join(
        [*lines, *(f"sglang:other_{n}{{{rank}}} 1" for n in range(LINES - len(lines)))]
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of the processor, and what came of it."""
    began = time.process_time_ns()
    made = work()
    return (time.process_time_ns() - began) / 1e6, made


def main() -> int:
    chance = random.Random(7)
    say(f"an hour of {SERVICES} services")
    fleet = list(services(chance))
    decided: list[float] = []
    told: list[float] = []
    for number in range(ROUNDS):
        say(f"round {number + 1} of {ROUNDS}")
        for each in fleet:
            sample = each.sample(LOOK_S, chance)
            took, decision = timed(partial(each.decide, sample))
            decided.append(took)
            told.append(timed(partial(record, decision.findings))[0])
    sizes = [len(json.dumps(write(each.state), separators=(",", ":"))) for each in fleet]
    text = page()
    read = [timed(partial(engine_page, text))[0] for _ in range(200)]
    mean = statistics.fmean(decided)
    rows = [
        Row(
            f"a decision, mean of {len(decided):,}", f"{mean:.2f} ms", "below 1 ms", mean < GOAL_MS
        ),
        Row("a decision, median / p99", _pair(decided)),
        Row("its record in words and numbers, median / p99", _pair(told)),
        Row(f"reading an engine's metrics page of {LINES:,} lines, median / p99", _pair(read)),
        Row("a service's state in the status, median / largest", _sizes(sizes)),
    ]
    notes = [
        f"{len(decided):,} decisions for {SERVICES:,} services, each with an hour of history; two "
        "thirds have objectives for times, the others one for concurrency; up to 50 replicas.",
        f"One every {LOOK_S:g} s for each service; a record and a status at most once a minute, "
        "unless the number changes.",
    ]
    write_table(
        "autoscaling-decisions",
        "What a decision about replicas costs",
        rows,
        notes=notes,
        about=python_versions("pydantic"),
        raw={"decisionMs": decided, "recordMs": told, "pageMs": read, "stateBytes": sizes},
        command="python -m benchmarks.autoscaling_decisions",
    )
    return 0


def _pair(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} / {quantile(values, 0.99):.2f} ms"


def _sizes(values: list[int]) -> str:
    return f"{statistics.median(values) / 1000:.1f} / {max(values) / 1000:.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
