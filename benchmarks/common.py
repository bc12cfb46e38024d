"""What every benchmark says beside its figures: machine, versions, date, command."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.cluster.files import write_text
from tests.cluster.settings import HELM_VERSION, KIND_VERSION, REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
ENGINE_PACKAGES = ("sglang", "smg", "torch")

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure, with its goal where the project set one.

    Attributes:
        name: what was measured.
        value: the figure, with its unit.
        goal: the goal, empty where there is none.
        met: whether it was met.
    """

    name: str
    value: str
    goal: str = ""
    met: bool = True


def machine() -> str:
    """Processor, cores, memory and kernel, in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def versions(cluster: Cluster, environment: Path) -> str:
    """The versions of everything that a figure depends on, in one line."""
    server = json.loads(cluster.kubectl("version", "-o", "json").stdout)["serverVersion"]
    found = [
        f"Kubernetes {server['gitVersion']} (kind {KIND_VERSION})",
        f"Helm {HELM_VERSION}",
        f"kopf {version('kopf')}",
        f"Python {platform.python_version()}",
        *(f"{name} {_installed(environment, name)}" for name in ENGINE_PACKAGES),
        f"Assay {_commit()}",
    ]
    return ", ".join(found)


def python_versions(*packages: str) -> str:
    """The versions of what a benchmark without a cluster depends on, in one line."""
    found = [
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages),
        f"Assay {_commit()}",
    ]
    return ", ".join(found)


def environment_versions(environment: Path, *packages: str) -> str:
    """The versions of what a benchmark without a cluster runs from the engine environment."""
    found = [
        f"Python {platform.python_version()}",
        *(f"{name} {_installed(environment, name)}" for name in packages),
        f"Assay {_commit()}",
    ]
    return ", ".join(found)


def _installed(environment: Path, package: str) -> str:
    folders = [path.name for path in environment.glob(f"{package}-*.dist-info")]
    return folders[0].removeprefix(f"{package}-").removesuffix(".dist-info") if folders else "?"


def _commit() -> str:
    # Where the tree is a copy without its history, whoever copied it must say.
    if told := os.environ.get("ASSAY_COMMIT"):
        return told
    words = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float], unit: str, digits: int = 1) -> str:
    """Median with minimum and maximum."""
    return (
        f"{statistics.median(values):.{digits}f} {unit} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} runs)"
    )


def write(
    name: str,
    title: str,
    rows: Sequence[Row],
    *,
    notes: Sequence[str],
    about: str,
    raw: Json,
    command: str = "",
) -> None:
    """Writes the table and the raw figures under benchmarks/results, and prints the table.

    Args:
        name: of the files.
        title: of the table.
        rows: the figures.
        notes: what a reader must know to judge them.
        about: the line of versions.
        raw: everything measured, for the JSON file.
        command: that measures it again; by default `benchmarks.all`.
    """
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    command = command or f"python -m benchmarks.all {name}"
    lines = [
        f"# {title}",
        "",
        "| figure | measured | goal | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row.name} | {row.value} | {row.goal} | "
            f"{('met' if row.met else '**missed**') if row.goal else ''} |"
            for row in rows
        ),
        "",
        *(f"- {note}" for note in notes),
        "",
        f"{date}, `{command}`. Machine: {machine()}. {about}.",
        "",
    ]
    text = "\n".join(lines)
    write_text(RESULTS / f"{name}.md", text)
    write_text(RESULTS / f"{name}.json", json.dumps(raw, indent=1) + "\n")
    print(text, flush=True)


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(f"[{datetime.now(UTC):%H:%M:%S}] {text}", file=sys.stderr, flush=True)
