"""Rows of the tables, and the raw figures beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.autoscaling import fit
from benchmarks.autoscaling.compare import (
    GRID,
    OURS,
    PEERS,
    POLICIES,
    STATIC,
    UNTUNED,
    Outcome,
    Setup,
)
from benchmarks.autoscaling.engine import Engine
from benchmarks.autoscaling.policy import Objective
from benchmarks.autoscaling.score import Score
from benchmarks.autoscaling.shapes import Shaped
from benchmarks.autoscaling.trace import SYNTHETIC
from benchmarks.common import Json, Row

SAVED = 0.2
"""The goal: so much less than the best peer's GPU-hours, for at least its share."""
SHARES = (0.9, 0.95, 0.98)
"""Within the objective, at which settings are compared in hindsight."""
CLOSE = 0.05
MOST_REVERSALS = 1
MOST_OVERSHOOT = 1.5


@dataclass(frozen=True)
class Case:
    """One start-up time and one objective.

    Attributes:
        start_s: seconds.
        objective: that requests were scored by.
        outcomes: of every setting.
        chosen: by tuning, by the policy's name.
    """

    start_s: float
    objective: Objective
    outcomes: Sequence[Outcome]
    chosen: Mapping[str, Outcome]

    @property
    def title(self) -> str:
        """In words."""
        return f"start {self.start_s:g} s, {self.objective.name}"


def calibration(engine: Engine) -> list[Row]:
    """The simulated engine beside the measured one."""
    rows = []
    for point in fit.MEASURED:
        tokens_s = fit.throughput(engine, point)
        error = tokens_s / point.tokens_s - 1
        rows.append(
            Row(
                f"engine of the size that was measured, {point.clients} clients, "
                f"{fit.PROMPT} tokens in, {fit.OUTPUT} out",
                f"{tokens_s:,.0f} output tokens/s simulated, {point.tokens_s:,.0f} measured "
                f"({error:+.1%})",
                f"within {CLOSE:.0%}",
                abs(error) <= CLOSE,
            )
        )
    base, each = fit.straight(fit.TINY)
    errors = ", ".join(
        f"{point.clients / (base + each * point.clients) / point.tokens_s - 1:+.0%}"
        for point in fit.TINY
    )
    clients = ", ".join(str(point.clients) for point in fit.TINY)
    rows.append(
        Row(
            f"the same form, fitted to a real engine of 2.8 M parameters on CPU, {clients} clients",
            f"off by {errors}",
        )
    )
    return rows


def best_peer(case: Case, target: float) -> str:
    """The cheapest that kept the target, or else the nearest to it."""

    def rank(name: str) -> tuple[float, float]:
        score = case.chosen[name].judged
        return max(0.0, target - score.attained), score.gpu_hours

    return min(PEERS, key=rank)


def meets(case: Case, policy: str, target: float) -> bool:
    """Whether a policy has the best peer's share for so many fewer GPU-hours."""
    score, best = case.chosen[policy].judged, case.chosen[best_peer(case, target)].judged
    cheap = score.gpu_hours <= (1 - SAVED) * best.gpu_hours
    return score.attained >= best.attained and cheap


def verdict(case: Case, target: float) -> Row:
    """Ours beside the best peer."""
    ours, name = case.chosen[OURS].judged, best_peer(case, target)
    peers = {each: case.chosen[each].judged for each in PEERS}
    best = peers[name]
    saved = 1 - ours.gpu_hours / best.gpu_hours
    most = max(peers, key=lambda each: (peers[each].attained, -peers[each].gpu_hours))
    text = (
        f"{ours.attained:.1%} for {ours.gpu_hours:.2f} GPU-hours; best peer {name}: "
        f"{best.attained:.1%} for {best.gpu_hours:.2f} ({-saved:+.0%} for Assay)"
    )
    if most != name:
        text += f"; highest share of a peer: {most}, {_brief(peers[most])}"
    text += f"; Assay untuned: {_brief(case.chosen[UNTUNED].judged)}"
    return Row(
        f"{case.title}: Assay",
        text,
        f"at least the best peer's share for {SAVED:.0%} fewer GPU-hours",
        meets(case, OURS, target),
    )


def _brief(score: Score) -> str:
    return f"{score.attained:.1%} for {score.gpu_hours:.2f}"


def hindsight(case: Case) -> Row:
    """What the cheapest setting would have cost, had one known which it is."""
    parts = []
    for share in SHARES:
        ours = _cheapest(case, [OURS], share)
        peer = _cheapest(case, PEERS, share)
        name = f" ({peer.policy})" if peer else ""
        fixed = _hours(_cheapest(case, [STATIC], share))
        parts.append(f"{share:.0%}: {_hours(ours)}, peers {_hours(peer)}{name}, fixed {fixed}")
    return Row(f"{case.title}: GPU-hours of the best setting in hindsight", "; ".join(parts))


def _cheapest(case: Case, names: Sequence[str], share: float) -> Outcome | None:
    good = [one for one in case.outcomes if one.policy in names and one.judged.attained >= share]
    return min(good, key=lambda one: one.judged.gpu_hours, default=None)


def _hours(one: Outcome | None) -> str:
    return f"{one.judged.gpu_hours:.2f}" if one else "none"


def policies(case: Case) -> list[Row]:
    """What every policy's chosen setting did on the judged part."""
    return [
        Row(f"{case.title}: {name}, {case.chosen[name].text}", describe(case.chosen[name].judged))
        for name in POLICIES
    ]


def describe(score: Score) -> str:
    """A score in words."""
    return (
        f"{score.attained:.1%} (TTFT {score.ttft:.1%}, ITL {score.itl:.1%}), "
        f"{score.gpu_hours:.2f} GPU-hours, {_count(score.scalings, 'scaling')}, "
        f"{_count(score.reversals, 'reversal')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shapes(found: Sequence[Shaped]) -> list[Row]:
    """What policies did on the synthetic traces."""
    goal = f"at most {MOST_REVERSALS} reversal in 300 s, {MOST_OVERSHOOT:g} times what would do"
    rows = []
    for one in found:
        score, over = one.score, one.score.peak / one.needed
        rows.append(
            Row(
                f"{one.trace}: {one.policy}",
                f"peak {score.peak} replicas where {one.needed} would do, at most "
                f"{_count(score.oscillation, 'reversal')} in 300 s; {describe(score)}",
                goal if one.policy in {OURS, UNTUNED} else "",
                score.oscillation <= MOST_REVERSALS and over <= MOST_OVERSHOOT,
            )
        )
    return rows


def summary(cases: Sequence[Case], found: Sequence[Shaped], target: float) -> list[str]:
    """What the figures say, also against us: computed, so that it says no more than they do."""
    fell = [case for case in cases if case.chosen[OURS].judged.attained < target]
    dearer = [case for case in cases if _fixed_is_cheaper(case)]
    return [
        f"The goal is met in {_met(cases, OURS, target)} of {len(cases)} cases by Assay as tuned, "
        f"in {_met(cases, UNTUNED, target)} by Assay untuned, which has "
        f"{_range([case.chosen[UNTUNED].judged.attained for case in cases])} everywhere. What "
        f"tuning chose for Assay on the first half fell below {target:.0%} on the second in "
        f"{len(fell)}. A fixed number, had one known it, would have been cheaper than the cheapest "
        f"setting of Assay for one of the shares {', '.join(f'{each:.0%}' for each in SHARES)} in "
        f"{len(dearer)}.",
        f"Synthetic traces on which a peer had more within the objective than Assay untuned: "
        f"{'; '.join(_ahead(found)) or 'none'}. What comes and is over within a start-up is not "
        "saved by any scaling: only replicas that were there before help.",
    ]


def _met(cases: Sequence[Case], policy: str, target: float) -> int:
    return sum(meets(case, policy, target) for case in cases)


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.1%} to {max(shares):.1%}"


def _fixed_is_cheaper(case: Case) -> bool:
    """At one of the shares at least."""
    for share in SHARES:
        ours, fixed = (_cheapest(case, [name], share) for name in (OURS, STATIC))
        if fixed and (not ours or fixed.judged.gpu_hours < ours.judged.gpu_hours):
            return True
    return False


def _ahead(found: Sequence[Shaped]) -> Iterator[str]:
    """By trace, the peers that had a higher share, with what they took for it."""
    for ours in (one for one in found if one.policy == UNTUNED):
        better = [
            f"{one.policy} {_brief(one.score)}"
            for one in found
            if one.trace == ours.trace
            and one.policy in PEERS
            and one.score.attained > ours.score.attained
        ]
        if better:
            yield f"{ours.trace} ({_brief(ours.score)}): {', '.join(better)}"


def notes(setup: Setup, target: float, name: str) -> list[str]:
    """What a reader must know to judge the figures."""
    engine, world = setup.world.engine, setup.world
    busy = sum(
        engine.prefill(one.prompt) + one.output * engine.decode(8, 8 * one.prompt) / 8
        for one in setup.trace
    )
    shapes_of = "; ".join(f"{key}: {shape.text}" for key, shape in SYNTHETIC.items())
    bigger = fit.LARGE.parameters / fit.SMALL.parameters
    return [
        f"{len(setup.trace):,} requests in {setup.end / 60:.0f} minutes. Their work alone would "
        f"keep {busy / setup.end:.1f} replicas busy on average. All is simulated; only the first "
        "rows stand beside a measurement.",
        f"The engine has the shape of {fit.LARGE.name}, {bigger:.0f} times as big as the one that "
        f"was measured ({fit.SMALL.name}), which would serve this trace with a fraction of a card. "
        f"An iteration takes {engine.base_s * 1e3:.1f} ms, and {engine.prompt_s * 1e6:.0f} us a "
        f"prompt token, or {engine.sequence_s * 1e6:.0f} us a sequence and "
        f"{engine.context_s * 1e9:.0f} ns a token of context; {engine.chunk} prompt tokens at "
        f"most; {engine.kv_tokens:,} tokens of cache. A replica's first {engine.warm_s:g} s "
        f"take {engine.warm_factor:g} times as long. benchmarks/autoscaling/fit.py says where each "
        "constant comes from.",
        f"{world.least} to {world.most} replicas, {world.route} router. GPU-hours run from asking "
        "for a replica until it has finished what it had.",
        f"Each policy has {GRID} settings. Tuning takes the cheapest that had {target:.0%} within "
        "the objective on the first half of the trace or, where none had, the best; the first "
        f"{setup.settle / 60:.0f} minutes are not scored, since all begin with one replica, and "
        "Assay knowing nothing. In the table is the second half of a run over the whole trace.",
        "Peers see fresh and exact metrics at every look, the planner knows the engine's times "
        "exactly, and Assay learns what it needs. Of Assay's knobs a user has attainment and "
        "scaleDownAfter only, so it stands there untuned too. The best peer is, of the peers as "
        f"tuned, the cheapest that kept {target:.0%} on the judged half, or else the nearest to "
        "that; it is chosen knowing how it did there, and others may have had more for more. "
        "static is a fixed number, tuned too; foresight knows the trace. Neither is a peer. Bursts "
        "of this trace are shorter than most start-ups, so a number well chosen beforehand is hard "
        "to beat.",
        "No blind test. After results had been seen, the method was changed: which minutes are not "
        "scored, the planner's objective as a knob, Assay's grid, the row of Assay untuned, and "
        "which peer is called the best. Assay's rules were still changed while this trace was at "
        "hand, and its defaults may suit it. Only another trace, run once, would tell.",
        f"Synthetic traces, with the settings that tuning chose in the middle case: {shapes_of}. "
        f"What would do: the fewest replicas that, always there, have {target:.0%} within the "
        "objective.",
        f"Pictures: [{name}-fronts.png]({name}-fronts.png), "
        f"[{name}-replicas.png]({name}-replicas.png).",
    ]


def raw(cases: Sequence[Case], found: Sequence[Shaped], arguments: Json, engine: Engine) -> Json:
    """Everything, for the JSON file."""
    return {
        "arguments": arguments,
        "engine": asdict(engine),
        "cases": [
            {
                "startS": case.start_s,
                "objective": asdict(case.objective),
                "chosen": {name: one.text for name, one in case.chosen.items()},
                "outcomes": [outcome(one) for one in case.outcomes],
            }
            for case in cases
        ],
        "shapes": [
            {
                "trace": one.trace,
                "policy": one.policy,
                "setting": one.text,
                "needed": one.needed,
                "score": figures(one.score),
            }
            for one in found
        ],
    }


def outcome(one: Outcome) -> Json:
    """A setting's two scores, as JSON."""
    return {
        "policy": one.policy,
        "setting": one.text,
        "tuned": figures(one.tuned),
        "judged": figures(one.judged),
    }


def figures(score: Score) -> Json:
    """A score, as JSON, rounded to what it is good for."""
    return {
        key: round(value, 5) if isinstance(value, float) else value
        for key, value in asdict(score).items()
    }
