"""`assay-verify run` and `explain`: judges completions from a file, and says why of one."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from assay_verifiers.answers import json_line, write_atomically
from assay_verifiers.batch import Job, verify_batch
from assay_verifiers.config import FormatFirstVerifier, VerifierModel, WeightedVerifier
from assay_verifiers.contract import STATUSES, Task, Verdict
from assay_verifiers.progress import Counted
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.suites import Judged

_LONGEST_SHOWN = 600


@dataclass(frozen=True)
class Line:
    """One line of the input with the digest of what it says."""

    item: Judged
    digest: str


async def judge_file(
    lines: list[Line],
    out: Path,
    bench: Bench,
    console: Console,
    *,
    concurrency: int,
    resume: bool,
) -> list[Verdict]:
    """Judges all lines and writes the verdicts in the input's order.

    Verdicts are kept beside the output as they come, so that an interrupted run can go on; the
    output itself appears whole at the end.

    Raises:
        Unavailable: a verifier cannot work here; nothing was judged.
        OSError: the output cannot be written.
    """
    bench.check(line.item.verifier for line in lines)
    partial = out.with_name(f"{out.name}.partial")
    known = _kept(partial) if resume else {}
    found: list[Verdict | None] = [known.get(line.digest) for line in lines]
    missing = [place for place, verdict in enumerate(found) if verdict is None]
    with partial.open("ab" if resume else "wb") as file:
        if resume and file.tell() and not _ends_with_newline(partial):
            file.write(b"\n")

        done = len(lines) - len(missing)
        with Counted("judging", len(lines), console, done=done) as counted:

            def keep(number: int, verdict: Verdict) -> None:
                line = lines[missing[number]]
                found[missing[number]] = verdict
                told = {"digest": line.digest, "id": line.item.id, **_plain(verdict)}
                file.write(json_line(told))
                file.flush()
                counted.step(verdict.status)

            await verify_batch(
                bench,
                (_job(lines[place].item) for place in missing),
                concurrency=concurrency,
                on_verdict=keep,
            )
    verdicts = [verdict for verdict in found if verdict is not None]
    content = (
        json_line({"id": line.item.id, **_plain(verdict)})
        for line, verdict in zip(lines, verdicts, strict=True)
    )
    write_atomically(out, b"".join(content))
    partial.unlink()
    return verdicts


def _job(item: Judged) -> Job:
    return Job(item.verifier, item.task(), item.completion)


def _plain(verdict: Verdict) -> dict[str, object]:
    return {
        "score": verdict.score,
        "status": verdict.status,
        "detail": verdict.detail,
        "seconds": round(verdict.seconds, 6),
    }


def _kept(partial: Path) -> dict[str, Verdict]:
    """What an interrupted run had judged; what it could not judge is judged again."""
    kept: dict[str, Verdict] = {}
    if not partial.exists():
        return kept
    for line in partial.read_bytes().splitlines():
        try:
            data = json.loads(line)
            verdict = Verdict(data["score"], data["status"], data["detail"], data["seconds"])
            digest = data["digest"]
        except (ValueError, KeyError, TypeError):
            continue  # Torn by the end of the process; its item is judged again.
        if not verdict.masked:
            kept[digest] = verdict
    return kept


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def print_counts(verdicts: list[Verdict], seconds: float, console: Console) -> None:
    """The closing table: counts, the mean of what could be judged, and the speed."""
    counts = Counter(verdict.status for verdict in verdicts)
    table = Table("status", "items", "share")
    for status in STATUSES:
        share = counts[status] / len(verdicts)
        table.add_row(status, str(counts[status]), f"{share:.1%}")
    console.print(table)
    judged = [verdict.score for verdict in verdicts if not verdict.masked]
    mean = f"{math.fsum(judged) / len(judged):.4f}" if judged else "-"
    speed = len(verdicts) / seconds if seconds else 0.0
    console.print(
        f"mean score {mean} of {len(judged)} judged items "
        f"({len(verdicts) - len(judged)} masked), {speed:.1f} items/s",
        highlight=False,
    )


async def explain(item: Judged, bench: Bench, console: Console) -> None:
    """Shows one item, and the verdict of each part of its verifier as a tree."""
    bench.check([item.verifier])
    task = item.task()
    tree = Tree(Text(item.id, style="bold"))
    tree.add(_shown("prompt", task.prompt))
    tree.add(_shown("completion", item.completion))
    tree.add(_shown("reference", json.dumps(item.reference, ensure_ascii=False)))
    await _add(
        tree,
        item.verifier.type,
        item.verifier,
        task=task,
        completion=item.completion,
        bench=bench,
    )
    console.print(tree)


async def _add(
    tree: Tree, name: str, model: VerifierModel, *, task: Task, completion: str, bench: Bench
) -> Verdict:
    began = time.monotonic()
    verdict = await verify_one(bench.verifier(model), task, completion)
    colour = {"ok": "green", "wrong": "red", "unparsed": "red"}.get(verdict.status, "yellow")
    branch = tree.add(
        Text.assemble(
            f"{name}: ",
            (f"{verdict.status} {verdict.score:g}", f"bold {colour}"),
            " (masked)" if verdict.masked else "",
            f"  {time.monotonic() - began:.3f} s",
        )
    )
    if verdict.detail and not model.children():
        branch.add(Text(verdict.detail))
    first: Verdict | None = None
    for part, child in _parts(model):
        if isinstance(model, FormatFirstVerifier) and first and first.status != "ok":
            branch.add(Text(f"{part}: not asked, since the format is not ok"))
            continue
        told = await _add(branch, part, child, task=task, completion=completion, bench=bench)
        first = first or told
    return verdict


def _parts(model: VerifierModel) -> Iterable[tuple[str, VerifierModel]]:
    if isinstance(model, WeightedVerifier):
        return [
            (f"{part.name or part.verifier.type} (weight {part.weight:g})", part.verifier)
            for part in model.parts
        ]
    if isinstance(model, FormatFirstVerifier):
        return [
            (f"format: {model.format.type}", model.format),
            (f"then: {model.then.type}", model.then),
        ]
    return [(child.type, child) for child in model.children()]


def _shown(name: str, text: str) -> Text:
    """A text with its end, where answers stand, if it is long."""
    if len(text) > _LONGEST_SHOWN:
        half = _LONGEST_SHOWN // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
    return Text.assemble((f"{name}: ", "dim"), text)


def counts_line(counts: Mapping[str, int]) -> str:
    """Counts in a line: `math 12, regex 3`."""
    return ", ".join(f"{name or '(none)'} {count}" for name, count in counts.items())
