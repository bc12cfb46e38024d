"""A decision in words and numbers, for `status.autoscaling`: plain JSON, and small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from assay_operator.autoscaling import queueing
from assay_operator.autoscaling.demand import Demand
from assay_operator.autoscaling.model import Policy, Reason, Sample
from assay_operator.autoscaling.queueing import Engine, Goals, Load, Outlook
from assay_operator.plan import Json

_ENOUGH_SAMPLES = 8
"""Before so many it is not said that an objective cannot be met."""


@dataclass(frozen=True)
class Findings:
    """What a decision was made from.

    Attributes:
        policy: what the user wants.
        sample: what was seen.
        replicas: that shall be.
        before: replicas that were wanted.
        reason: of the decision.
        needed: replicas that the load needs.
        keep: that have to stay, margin included.
        window_s: for which fewer must have been enough.
        startup_s: from wanting a replica until it is routable.
        demand: what is asked for.
        load: that is planned for.
        engine: what a replica can do.
        goals: what is planned for.
    """

    policy: Policy
    sample: Sample
    replicas: int
    before: int
    reason: Reason
    needed: int
    keep: int
    window_s: float
    startup_s: float
    demand: Demand
    load: Load
    engine: Engine
    goals: Goals


def record(found: Findings) -> Json:
    """What was decided, from what, how, why, and what would change it."""
    known = found.demand.level is not None
    return {
        "replicas": found.replicas,
        "before": found.before,
        **({"required": found.needed} if known else {}),
        "reason": found.reason,
        "message": _message(found),
        "changes": _changes(found),
        "formula": _formula(found),
        "inputs": _inputs(found),
        "capacity": _capacity(found),
    }


def unreachable(policy: Policy, engine: Engine, load: Load, best: Outlook) -> str | None:
    """Why not even `best`, with one request at a time, meets the objectives, once measured."""
    if engine.samples < _ENOUGH_SAMPLES:
        return None
    said = []
    if policy.ttft_s is not None and best.ttft_s > policy.ttft_s:
        said.append(
            f"the first token of {policy.attainment:.0%} of the requests comes within "
            f"{_ms(best.ttft_s)} at best, and the objective is {_ms(policy.ttft_s)}"
        )
    if policy.itl_s is not None and best.itl_s > policy.itl_s:
        said.append(
            f"the time between tokens is {_ms(best.itl_s)} at best, and the objective is "
            f"{_ms(policy.itl_s)}"
        )
    if not said:
        return None
    return (
        f"With one request at a time, prompts of {load.prompt_tokens:.0f} tokens, as learned from "
        f"{engine.samples} samples: {'; '.join(said)}. More replicas cannot change that; planned "
        f"for is {queueing.NEAR:g} times the best."
    )


def _message(found: Findings) -> str:
    policy, sample, replicas = found.policy, found.sample, found.replicas
    words = {
        "Bounds": f"min is {policy.min} and max is {policy.max}",
        "Demand": f"{_requests(found)} need {found.needed}",
        "Forecast": f"{_requests(found)} come or may come within a start-up and need "
        f"{found.needed}",
        "Burst": f"a burst: {found.demand.fast or 0:.3g} requests/s in the last "
        f"{found.demand.burst_window_s:.0f} s",
        "Measured": "users wait longer than the model says of this load, so it counts "
        f"{found.engine.correction:.2f} times",
        "FirstRequest": "requests came while there was no replica",
        "Quiet": f"{replicas} would have been enough for {found.window_s:.0f} s, with a margin "
        f"of {policy.margin:.0%}",
        "Silence": f"no request for {policy.scale_to_zero_after:.0f} s",
        "Steady": f"{_requests(found)} need {found.needed}, and {found.keep} with the margin",
        "Stabilising": f"{found.keep} would do, but not for {found.window_s:.0f} s yet, or not "
        "since the last scale-up",
        "RolloutUnderWay": f"{found.keep} would do, but replicas are being given other weights, "
        "and none is taken away meanwhile",
        "Loading": "a replica is starting, and none is taken away meanwhile",
        "MetricsUnknown": f"the load is not known whole: {_unknown(sample)}; what is not known is "
        "not taken for less",
        "NothingNew": "there is no new sample since the last decision",
    }
    moved = f"{found.before} -> {replicas}" if replicas != found.before else f"stays at {replicas}"
    said = [f"{moved}: {words[found.reason]}."]
    if replicas > found.before and (sample.rollout or sample.away):
        said.append(
            "The rollout goes on: a new replica starts with the weights that are served and takes "
            "its turn."
        )
    if found.needed >= policy.max and not _reached(found):
        said.append(f"max is {policy.max}, and does not reach the objectives at this load.")
    if sample.starting:
        said.append(f"{sample.starting} on their way are counted.")
    return " ".join(said)


def _reached(found: Findings) -> bool:
    return queueing.meets(found.goals, found.engine, found.load, found.policy.max)


def _requests(found: Findings) -> str:
    if math.isfinite(found.goals.concurrency):
        return f"{found.load.under_way:.3g} requests under way"
    return f"{found.load.rate:.3g} requests/s"


def _unknown(sample: Sample) -> str:
    if sample.silent:
        return f"{sample.silent} of {sample.ready} engines do not tell"
    return "the routers do not tell" if sample.arrivals is None else "the engines do not tell"


def _changes(found: Findings) -> list[str]:
    """From which load on there would be one more, and below which one fewer."""
    policy, replicas = found.policy, found.replicas
    if replicas == 0:
        return ["with the first request one replica"]
    by_requests = math.isfinite(found.goals.concurrency)
    # Where nothing is under way, how long a request is so is not known: then by their number alone.
    known = bool(found.load.rate and found.load.under_way)
    each = found.load.under_way / found.load.rate if known else 1.0
    unit = Load(
        0.0 if by_requests and not known else 1.0,
        found.load.prompt_tokens,
        found.load.output_tokens,
        each if by_requests else 0.0,
    )

    def bears(number: int) -> float:
        most = queueing.bearable(found.goals, found.engine, unit, number)
        return most * each if by_requests else most

    of = "requests under way" if by_requests else "requests/s"
    said = []
    if replicas < policy.max:
        said.append(f"above {bears(replicas):.3g} {of} another replica")
    if replicas > max(1, policy.min):
        least = bears(replicas - 1) / (1 + policy.margin)
        said.append(f"below {least:.3g} {of} for {found.window_s:.0f} s one fewer")
    elif policy.min == 0:
        said.append(f"after {policy.scale_to_zero_after:.0f} s without a request none")
    return said


def _formula(found: Findings) -> str:
    """The model of `queueing` with its numbers put in, for what is planned for."""
    load, engine, goals = found.load, found.engine, found.goals
    number = max(1, found.replicas)
    seen = queueing.outlook(engine, load, number, goals.share)
    rate = load.rate * engine.correction / number
    prompt = engine.prompt_s(load.prompt_tokens)
    demand = found.demand
    usual = max((demand.level or 0.0) + demand.surge, demand.forecast) + demand.backlog
    said = [
        f"planned = burst + backlog = {demand.fast:.3g} + {demand.backlog:.3g} = "
        f"{load.rate:.3g} requests/s"
        if load.rate > usual
        else "planned = max(level + surge, forecast) + backlog = "
        f"max({demand.level or 0:.3g} + {demand.surge:.3g}, {demand.forecast:.3g}) + "
        f"{demand.backlog:.3g} = {load.rate:.3g} requests/s"
    ]
    if math.isfinite(goals.concurrency):
        said.append(
            f"replicas = under way / concurrency = {load.under_way:.3g} / {goals.concurrency:.3g}"
        )
    if math.isfinite(goals.ttft_s) or math.isfinite(goals.itl_s):
        correction = f" * {engine.correction:.2f}" if engine.correction != 1 else ""
        said.append(
            f"busy = planned{correction} / replicas * (prompt + per running * output tokens) = "
            f"{rate:.3g} * ({prompt:.3g} s + {engine.itl_per_running_s:.3g} s * "
            f"{load.output_tokens:.0f}) = {seen.busy:.2f}"
        )
    percent = f"{goals.share:.0%}"
    if math.isfinite(goals.ttft_s):
        said.append(f"first token of {percent} within {_ms(seen.ttft_s)}, goal {_ms(goals.ttft_s)}")
    if math.isfinite(goals.itl_s):
        said.append(
            f"between tokens {_ms(engine.itl_s)} alone, of {percent} within {_ms(seen.itl_s)}, "
            f"goal {_ms(goals.itl_s)}"
        )
    return "; ".join(said)


def _inputs(found: Findings) -> Json:
    policy, sample = found.policy, found.sample
    demand, measured = found.demand, sample.measured
    inputs = {
        "arrivalsPerSecond": demand.level,
        "forecastPerSecond": demand.forecast,
        "surgePerSecond": demand.surge,
        "running": sample.running,
        "waiting": None if sample.queued is None else sample.queued + sample.held,
        "promptTokens": demand.prompt_tokens,
        "outputTokens": demand.output_tokens,
        "kvUse": measured.kv_use if measured else None,
        "ready": sample.ready,
        "warm": sample.warm,
        "starting": sample.starting,
        "silent": sample.silent,
    }
    if measured and policy.ttft_s is not None:
        inputs["firstTokensWithinObjective"] = measured.ttft.share_within(policy.ttft_s)
    if measured and policy.itl_s is not None:
        mean = measured.itl.mean
        inputs["meanItlMs"] = None if mean is None else mean * 1000
    return {name: _short(value) for name, value in inputs.items() if value is not None}


def _capacity(found: Findings) -> Json:
    engine = found.engine
    numbers = {
        "itlAloneMs": engine.itl_s * 1000,
        "itlPerRunningMs": engine.itl_per_running_s * 1000,
        "promptMs": engine.prompt_s(found.load.prompt_tokens) * 1000,
        "slots": engine.slots,
        "correction": engine.correction,
        "startupSeconds": found.startup_s,
    }
    known = {name: _short(value) for name, value in numbers.items() if value is not None}
    return {"samples": engine.samples, **known}


def _short(value: float) -> float:
    """Three digits are enough, and a number that only trembles stays the same."""
    return value if isinstance(value, int) else float(f"{value:.3g}")


def _ms(seconds: float) -> str:
    return "no bound" if math.isinf(seconds) else f"{float(f'{seconds * 1000:.3g}'):g} ms"
