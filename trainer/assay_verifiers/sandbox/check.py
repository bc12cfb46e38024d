"""Runs the hostile programs of `controls` and says whether the sandbox holds here."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .controls import CONTROLS, ORDINARY, QUICK, TESTS, Control
from .host import KINDS, Sandbox, SandboxDiedError, SandboxUnavailableError
from .lockdown import Limits

_RIGHT = "def f(n): return n * n + 1"


@dataclass(frozen=True)
class Result:
    """What became of one control."""

    control: Control
    status: str
    detail: str

    @property
    def held(self) -> bool:
        """Whether the sandbox held."""
        return self.status in self.control.statuses


async def check(kind: str, controls: Sequence[Control] = CONTROLS) -> list[Result]:
    """Runs controls in a sandbox, and after each a right program in the same cell.

    Raises:
        SandboxUnavailableError: this kind cannot be started here.
    """
    results: list[Result] = []
    outside = tempfile.mkdtemp(prefix="assay-outside-")
    cells: dict[Limits, Sandbox] = {}
    try:
        for control in (ORDINARY, *controls):
            limits = replace(Limits(), **control.limits)
            try:
                if limits not in cells:
                    cells[limits] = await Sandbox.start(kind, limits)
                status, detail = await _one(cells[limits], control, outside)
            except SandboxDiedError as reason:
                status, detail = "error", str(reason)
                cells.pop(limits, None)
            except SandboxUnavailableError as reason:
                if not control.limits:
                    raise
                # Limits that cannot be kept here are refused, which is safe.
                status, detail = control.statuses[0], f"refused: {reason}"
            results.append(Result(control, status, detail))
    finally:
        for cell in cells.values():
            await cell.end()
        shutil.rmtree(outside, ignore_errors=True)
    return results


async def _one(sandbox: Sandbox, control: Control, outside: str) -> tuple[str, str]:
    with open(os.path.join(outside, "secret"), "w", encoding="ascii") as file:  # noqa: ASYNC230
        file.write("secret")
    status, detail = await judge(sandbox, control.code.replace("OUTSIDE", outside))
    if not _untouched(outside):
        return "error", "it wrote outside"
    after, why = await judge(sandbox, _RIGHT)
    return (status, detail) if after == "ok" else ("error", f"the next item: {after}: {why}")


def _untouched(outside: str) -> bool:
    with open(os.path.join(outside, "secret"), encoding="ascii") as file:
        return os.listdir(outside) == ["secret"] and file.read() == "secret"


async def judge(sandbox: Sandbox, code: str) -> tuple[str, str]:
    """Status and detail that a program of this module gets.

    Raises:
        SandboxDiedError: the cell did not survive it.
    """
    report = await sandbox.function(
        {"code": code, "entry": "f", "file": "main.py"},
        {"tests": TESTS, "entry": "f", "prompt": ""},
    )
    return report.judged(sandbox.limits)


async def problem(kind: str, limits: Limits, controls: Sequence[Control]) -> str:
    """Why a kind of sandbox does not work here, "" if it does: by trying, not by asking.

    Args:
        limits: under which a simple program must work.
        controls: that must hold, under their own limits.
    """
    try:
        sandbox = await Sandbox.start(kind, limits)
        try:
            status, detail = await judge(sandbox, _RIGHT)
        finally:
            await sandbox.end()
        if status != "ok":
            return f"{kind}: under these limits a simple program does not work: {detail}"
        results = await check(kind, controls) if controls else []
    except (SandboxUnavailableError, SandboxDiedError) as reason:
        return str(reason)
    holes = [f"{r.control.name} ({r.status}: {r.detail})" for r in results if not r.held]
    return f"{kind}: it does not hold {'; '.join(holes)}" if holes else ""


def check_sandbox() -> list[tuple[str, str]]:
    """Every kind that protects, with "" where it works here, else the problem and the remedy."""
    return [(kind, asyncio.run(problem(kind, Limits(), CONTROLS))) for kind in KINDS]


def main(arguments: Sequence[str]) -> int:
    """Prints every control's fate; 0 if all hold in every kind asked for (or in any, if none).

    Args:
        arguments: kinds, and `--quick` for only a few controls.
    """
    kinds = [argument for argument in arguments if argument != "--quick"]
    controls = QUICK if "--quick" in arguments else CONTROLS
    codes = []
    for kind in kinds or KINDS:
        try:
            results = asyncio.run(check(kind, controls))
        except SandboxUnavailableError as reason:
            print(f"{kind}: not available: {reason}")
            codes.append(2)
            continue
        for result in results:
            mark = "holds" if result.held else "FAILS"
            print(
                f"{kind:12}{mark}  {result.control.name:52}{result.status:9}{result.detail[:120]}"
            )
        codes.append(0 if all(result.held for result in results) else 1)
    if 1 in codes or (kinds and 2 in codes) or 0 not in codes:
        print("the sandbox does not hold", file=sys.stderr)
        return 1
    return 0
