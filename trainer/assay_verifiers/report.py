"""The gate's report: the whole as JSON, a summary for a termination message, a table for people."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assay_verifiers.answers import Record
from assay_verifiers.config import GateLimits
from assay_verifiers.contract import STATUSES, Status
from assay_verifiers.decision import Decision, ItemScores
from assay_verifiers.endpoints import Identity, Sampling
from assay_verifiers.statistics import Difference, Score
from assay_verifiers.suites import Suite, SuiteItem
from assay_verifiers.termination import MOST_BYTES

EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
_WORST_TOLD = 50
_LOOKS_TOLD = 10
_NAME_TOLD = 80
"""Characters of a version that are always told, if they are plain: a digest with its scheme."""
_TRUNCATED_WARNING = 0.05


@dataclass(frozen=True)
class Facts:
    """What a run of the gate found out.

    Attributes:
        items: of the suite, those that were to be asked.
        looks: how many each look was to ask, those of the looks before included.
        urls: by side.
        identities: by side, as they were when it began.
        versions: by side, the weight versions that were seen.
        records: the answers, by side, item and sample.
        stopped: why a side was asked no more, by side: the whole is undecided then.
        began: when this start began, in seconds since the epoch.
    """

    suite: Suite
    items: tuple[SuiteItem, ...]
    looks: tuple[int, ...]
    limits: GateLimits
    sampling: Sampling
    urls: Mapping[str, str]
    identities: Mapping[str, Identity]
    versions: Mapping[str, tuple[str, ...]]
    records: Mapping[tuple[str, str, int], Record]
    stopped: Mapping[str, str]
    began: float

    def of(self, side: str, item: str) -> list[Record]:
        """The answers of a side to an item."""
        keys = ((side, item, sample) for sample in range(self.sampling.samples))
        return [self.records[key] for key in keys if key in self.records]

    def of_side(self, side: str) -> list[Record]:
        """The answers of a side."""
        return [record for item in self.items for record in self.of(side, item.id)]

    def item_score(self, side: str, item: str) -> float | None:
        """The mean of the samples that could be judged; None where there is none."""
        judged = [record.score for record in self.of(side, item) if not record.masked]
        return math.fsum(judged) / len(judged) if judged else None

    def item_scores(self) -> list[ItemScores]:
        """Every item with both sides' scores."""
        return [
            ItemScores(
                item.id,
                self.item_score("candidate", item.id),
                self.item_score("incumbent", item.id),
            )
            for item in self.items
        ]

    def statuses(self, side: str) -> dict[Status, int]:
        """How many of a side's answers have which status."""
        counts = Counter(record.status for record in self.of_side(side))
        return {status: counts[status] for status in STATUSES}


def build_report(facts: Facts, decision: Decision) -> dict[str, Any]:
    """The whole report as JSON data."""
    if facts.stopped:
        reason = "; ".join(facts.stopped.values())
        decision = replace(decision, outcome="undecided", reason=reason, more_items=None)
    warnings = list(decision.warnings)
    if facts.suite.weak:
        warnings.append(
            f"{facts.suite.weak} of {len(facts.suite.items)} items are judged by opinions only "
            "(http, reward-model, human): their scores prove nothing"
        )
    sides = {}
    for name in facts.urls:
        truncated = sum(record.finish == "length" for record in facts.of_side(name))
        answered = sum(record.text is not None for record in facts.of_side(name))
        if answered and truncated / answered > _TRUNCATED_WARNING:
            warnings.append(
                f"{name}: {truncated} of {answered} answers ended at the limit of tokens"
            )
        identity = facts.identities.get(name)
        sides[name] = {
            "url": facts.urls[name],
            "api": identity.api if identity else None,
            "model": identity.model if identity else None,
            "weightVersions": list(facts.versions.get(name, ())),
            "statuses": facts.statuses(name),
            "truncated": truncated,
            "generatedTokens": sum(record.tokens or 0 for record in facts.of_side(name)),
        }
    return {
        "verdict": decision.outcome,
        "reason": decision.reason,
        "exitCode": EXIT_CODES[decision.outcome],
        "moreItems": decision.more_items,
        "stopped": sorted(facts.stopped),
        "warnings": warnings,
        "suite": {
            "name": facts.suite.name,
            "digest": facts.suite.digest,
            "items": len(facts.suite.items),
            "weak": facts.suite.weak,
        },
        "looks": {
            "taken": len(facts.looks),
            "of": facts.limits.looks,
            "items": list(facts.looks),
        },
        "limits": facts.limits.model_dump(),
        "sampling": asdict(facts.sampling),
        "sides": sides,
        "score": {
            name: _score(score)
            for name, score in (
                ("candidate", decision.candidate),
                ("incumbent", decision.incumbent),
            )
            if score
        },
        "difference": _difference(decision.difference) if decision.difference else None,
        "breakdown": _breakdown(facts),
        "regressions": _regressions(facts),
        "assay": version("assay"),
        "startedAt": datetime.fromtimestamp(facts.began, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - facts.began, 3),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "mean": score.mean,
        "items": score.items,
        "interval": [score.interval.low, score.interval.high],
        "oneSidedBounds": [score.bound.low, score.bound.high],
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "mean": difference.mean,
        "items": difference.items,
        "better": difference.better,
        "worse": difference.worse,
        "interval": [difference.interval.low, difference.interval.high],
        "oneSidedBounds": [difference.bound.low, difference.bound.high],
        "pValue": difference.p_value,
    }


def _groups(item: SuiteItem) -> list[str]:
    split = [f"split {item.split}"] if item.split else []
    return [f"type {item.verifier.type}", *split, *(f"tag {tag}" for tag in item.tags)]


def _breakdown(facts: Facts) -> list[dict[str, Any]]:
    """Each type's, split's and tag's items with the sides' means."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: Counter[str] = Counter()
    for item in facts.items:
        for group in _groups(item):
            counts[group] += 1
            for side in facts.urls:
                score = facts.item_score(side, item.id)
                if score is not None:
                    found[group][side].append(score)
    return [
        {
            "group": group,
            "items": counts[group],
            **{
                side: math.fsum(scores) / len(scores) if scores else None
                for side in facts.urls
                for scores in [found[group][side]]
            },
        }
        for group in sorted(counts)
    ]


def _regressions(facts: Facts) -> list[dict[str, Any]]:
    """The items on which the candidate fell furthest behind, the worst first."""
    worse = [
        (item.candidate - item.incumbent, item)
        for item in facts.item_scores()
        if item.candidate is not None
        and item.incumbent is not None
        and item.candidate < item.incumbent
    ]
    worse.sort(key=lambda entry: (entry[0], entry[1].id))
    told = []
    for _, item in worse[:_WORST_TOLD]:
        lost = (r for r in facts.of("candidate", item.id) if not r.masked and r.score < 1)
        detail = next((record.detail for record in lost), "")
        told.append({**asdict(item), "detail": detail})
    return told


def summary(report: Mapping[str, Any]) -> bytes:
    """The report in less than 4 KB of JSON, whatever names and reasons are in it."""
    for longest, ids in ((400, 10), (200, 10), (100, 5), (50, 3), (12, 0)):
        data = json.dumps(_summary(report, longest, ids), separators=(",", ":")).encode()
        if len(data) <= MOST_BYTES:
            return data
    raise AssertionError("the shortest summary has a fixed size")


def _summary(report: Mapping[str, Any], longest: int, ids: int) -> dict[str, Any]:
    def cut(text: str | None) -> str | None:
        return text if text is None or len(text) <= longest else f"{text[: longest - 3]}..."

    def name(version: str) -> str | None:
        # Who reads it asks whether these weights are the ones that were meant.
        plain = version.isascii() and version.isprintable() and len(version) <= _NAME_TOLD
        return version if plain else cut(version)

    def figures(values: Mapping[str, Any] | None, *names: str) -> dict[str, Any] | None:
        if values is None:
            return None
        return {
            name: [round(v, 6) for v in values[name]]
            if isinstance(values[name], list)
            else round(values[name], 6)
            for name in names
        }

    return {
        "verdict": report["verdict"],
        "reason": cut(report["reason"]),
        "moreItems": report["moreItems"],
        "stopped": report["stopped"],
        "warnings": [cut(text) for text in report["warnings"][:3]],
        "suite": {**report["suite"], "name": cut(report["suite"]["name"])},
        "looks": {**report["looks"], "items": report["looks"]["items"][-_LOOKS_TOLD:]},
        "score": {
            side: figures(score, "mean", "items", "interval", "oneSidedBounds")
            for side, score in report["score"].items()
        },
        "difference": figures(
            report["difference"], "mean", "items", "interval", "oneSidedBounds", "pValue"
        ),
        "sides": {
            which: {
                "model": cut(side["model"]),
                "weightVersions": [name(version) for version in side["weightVersions"][:3]],
                "statuses": side["statuses"],
            }
            for which, side in report["sides"].items()
        },
        "regressions": [cut(entry["id"]) for entry in report["regressions"][:ids]],
    }


def broken_summary(reason: str) -> bytes:
    """The summary of a gate that could not begin: a broken suite, a wrong option."""
    return json.dumps({"verdict": None, "reason": reason[:300]}).encode()


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The report as tables."""
    confidence = f"{report['limits']['confidence']:.0%}"
    table = Table(title=f"{report['suite']['name']}  {report['suite']['digest'][:19]}")
    for column in ("", *report["sides"]):
        table.add_column(escape(column), justify="right" if column else "left")

    def row(name: str, cell: Any) -> None:
        table.add_row(name, *(escape(str(cell(side))) for side in report["sides"]))

    sides, scores = report["sides"], report["score"]
    row("model", lambda side: sides[side]["model"] or "-")
    row("weights", lambda side: ", ".join(sides[side]["weightVersions"]) or "not told")
    row("score", lambda side: f"{scores[side]['mean']:.4f}" if side in scores else "-")
    row(
        f"{confidence} interval",
        lambda side: _range(scores[side]["interval"]) if side in scores else "-",
    )
    row("items judged", lambda side: scores[side]["items"] if side in scores else "-")
    for status in STATUSES:
        row(status, lambda side, status=status: sides[side]["statuses"][status])
    row("cut at the limit", lambda side: sides[side]["truncated"])
    console.print(table)
    if difference := report["difference"]:
        console.print(
            f"difference {difference['mean']:+.4f}, {confidence} interval "
            f"{_range(difference['interval'], '+')}, exact test p = {difference['pValue']:.3g}, "
            f"{difference['better']} items better, {difference['worse']} worse, "
            f"of {difference['items']}",
            highlight=False,
        )
    _print_groups(report, console)
    for entry in report["regressions"][:10]:
        console.print(
            f"  worse: {entry['id']}  {entry['incumbent']:.3g} -> {entry['candidate']:.3g}  "
            f"{' '.join(entry['detail'].split())[:100]}",
            markup=False,
            highlight=False,
        )
    for warning in report["warnings"]:
        console.print(f"[yellow]note:[/] {escape(warning)}", highlight=False)
    colour = {"pass": "green", "fail": "red", "undecided": "yellow"}[report["verdict"]]
    console.print(f"[bold {colour}]{report['verdict']}[/]: {escape(report['reason'])}")


def _print_groups(report: Mapping[str, Any], console: Console) -> None:
    if len(report["breakdown"]) < 2:
        return
    table = Table("", "items", *report["sides"])
    for entry in report["breakdown"]:
        means = (entry[side] for side in report["sides"])
        table.add_row(
            escape(entry["group"]),
            str(entry["items"]),
            *("-" if mean is None else f"{mean:.4f}" for mean in means),
        )
    console.print(table)


def _range(values: list[float], sign: str = "") -> str:
    return f"{values[0]:{sign}.4f} to {values[1]:{sign}.4f}"
