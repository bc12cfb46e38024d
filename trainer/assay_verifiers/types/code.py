"""Programs that pass their tests, run in a sandbox.

What becomes of a candidate:

- no code in the completion: `unparsed`;
- a wrong answer, an exception, a syntax error, an exit, a crash, or more output, files, threads or
  memory than allowed: `wrong`, since the program did that by itself;
- the deadline, or the limit of CPU seconds: `timeout`;
- tests that cannot work or never call the function, a sandbox that fails, a candidate killed from
  outside: `error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.aliases import AliasChoices

from assay_verifiers.config import CodeVerifier
from assay_verifiers.contract import (
    Task,
    Unavailable,
    Verdict,
    Verifier,
    error,
    ok,
    unparsed,
    wrong,
)
from assay_verifiers.registry import Bench
from assay_verifiers.sandbox.check import problem
from assay_verifiers.sandbox.controls import QUICK, Control
from assay_verifiers.sandbox.extract import whole_program
from assay_verifiers.sandbox.host import (
    KINDS,
    Report,
    Sandbox,
    SandboxDiedError,
    Sandboxes,
    SandboxUnavailableError,
)
from assay_verifiers.sandbox.lockdown import Limits

_SHOWN = 200


class FunctionTests(BaseModel):
    """A reference with function tests.

    `prompt` is the code that the model was to continue, where that is not the item's prompt.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    tests: str = Field(min_length=1, validation_alias=AliasChoices("tests", "test"))
    entry_point: str = Field(
        pattern=r"^[A-Za-z_]\w*$", validation_alias=AliasChoices("entry_point", "entryPoint")
    )
    prompt: str | None = None


class Case(BaseModel):
    """One run of a program: what it reads, what it must write."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    stdin: str = ""
    stdout: str


class Cases(BaseModel):
    """A reference with cases of standard input and output."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    cases: tuple[Case, ...] = Field(min_length=1)


_REFERENCE: TypeAdapter[FunctionTests | Cases] = TypeAdapter(FunctionTests | Cases)


def reference_of(reference: Any) -> FunctionTests | Cases:
    """A reference of either form.

    Raises:
        ValueError: it is neither; the message says what is missing.
    """
    form = Cases if isinstance(reference, Mapping) and "cases" in reference else FunctionTests
    try:
        return form.model_validate(reference)
    except ValidationError as reason:
        first = reason.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            "the reference needs tests and entry_point, or cases: "
            + (f"{place}: " if place else "")
            + first["msg"]
        ) from reason


def same_output(
    written: str, expected: str, compare: Literal["exact", "trimmed", "tokens"]
) -> bool:
    """Whether a program wrote what it should, as `CodeVerifier.compare` says."""
    forms: dict[str, Callable[[str], object]] = {
        "exact": str,
        "trimmed": lambda text: [line.rstrip() for line in text.rstrip().splitlines()],
        "tokens": str.split,
    }
    form = forms[compare]
    return form(written) == form(expected)


def _limits(model: CodeVerifier) -> Limits:
    limits = model.limits
    return Limits(
        wall=limits.wallSeconds,
        cpu=limits.cpuSeconds,
        memory=limits.memoryMiB << 20,
        processes=limits.processes,
        open_files=limits.openFiles,
        files=limits.fileMiB << 20,
        output=limits.outputKiB << 10,
    )


class _DoesNotWork(Exception):
    """A probe's finding. Raised, so that only successes are remembered: a cause may go away."""


@lru_cache(maxsize=64)
def _probe(kind: str, limits: Limits, controls: tuple[Control, ...]) -> None:
    # In a thread of its own, since the caller may already be in an event loop.
    with ThreadPoolExecutor(1) as executor:
        found = executor.submit(asyncio.run, problem(kind, limits, controls)).result()
    if found:
        raise _DoesNotWork(found)


def _problem(kind: str, limits: Limits) -> str:
    """Why a kind of sandbox does not work here under these limits, "" if it does."""
    try:
        _probe(kind, Limits(), QUICK)
        _probe(kind, limits, ())
    except _DoesNotWork as reason:
        return str(reason)
    return ""


def choose(wanted: str, limits: Limits) -> str:
    """The kind of sandbox to use: the first of `auto` that works here.

    Raises:
        Unavailable: none works; the message says why and what the remedy is.
    """
    if wanted == "none":
        return wanted
    problems = []
    for kind in KINDS if wanted == "auto" else (wanted,):
        found = _problem(kind, limits)
        if not found:
            return kind
        problems.append(found)
    raise Unavailable(
        f"no sandbox for untrusted code: {'; '.join(problems)}. Install bubblewrap where user "
        "namespaces are allowed, or use Linux 6.2 or later with Landlock; sandbox: none runs code "
        "unprotected"
    )


@dataclass(frozen=True)
class _Code:
    model: CodeVerifier
    limits: Limits
    sandboxes: Sandboxes

    async def verify(self, task: Task, completion: str) -> Verdict:
        try:
            reference = reference_of(task.reference)
        except ValueError as reason:
            return error(str(reason))
        try:
            if isinstance(reference, Cases):
                return await self._cases(reference, completion)
            return await self._function(reference, task.prompt, completion)
        except (SandboxDiedError, SandboxUnavailableError) as reason:
            return error(str(reason))

    async def _function(self, reference: FunctionTests, prompt: str, completion: str) -> Verdict:
        if reference.prompt is not None:
            prompt = reference.prompt
        common = {"entry": reference.entry_point, "prompt": prompt}
        program = {**common, "completion": completion, "file": self.model.fileName}
        async with self.sandboxes.lease() as sandbox:
            report = await sandbox.function(program, {**common, "tests": reference.tests})
        status, detail = report.judged(self.limits)
        return ok(detail) if status == "ok" else Verdict(0.0, status, detail)

    async def _cases(self, reference: Cases, completion: str) -> Verdict:
        code = whole_program(completion, python=not self.model.command)
        if code is None:
            return unparsed("no program")
        program = {"code": code, "file": self.model.fileName, "command": list(self.model.command)}
        passed, failure = 0, ""
        async with self.sandboxes.lease() as sandbox:
            for number, case in enumerate(reference.cases, 1):
                verdict = await self._case(sandbox, program, case)
                if verdict.masked:
                    return Verdict(0.0, verdict.status, f"case {number}: {verdict.detail}")
                if verdict.status == "ok":
                    passed += 1
                    continue
                failure = failure or f"case {number} of {len(reference.cases)}: {verdict.detail}"
                if not self.model.partial:
                    break
        if not failure:
            return ok(f"passed, {passed} cases")
        return wrong(failure, passed / len(reference.cases) if self.model.partial else 0.0)

    async def _case(self, sandbox: Sandbox, program: dict[str, Any], case: Case) -> Verdict:
        report = await sandbox.run(program, case.stdin.encode("utf-8", "surrogatepass"))
        if trouble := report.trouble(self.limits):
            return Verdict(0.0, *trouble)
        if report.code != 0:
            return wrong(_ended(report))
        written = report.stdout.decode("utf-8", "replace")
        if same_output(written, case.stdout, self.model.compare):
            return ok()
        return wrong(f"it wrote {written[:_SHOWN]!r} instead of {case.stdout[:_SHOWN]!r}")


def _ended(report: Report) -> str:
    lines = report.stderr.decode("utf-8", "replace").strip().splitlines()
    code = f"exit code {report.code}" if report.code > 0 else f"signal {-report.code}"
    return f"{code}: {lines[-1][:_SHOWN]}" if lines else code


def make(model: CodeVerifier, bench: Bench) -> Verifier:
    """Programs judged by running them, in as many sandboxes as the bench has workers.

    Raises:
        Unavailable: no sandbox of the kind that is wanted works here.
    """
    limits = _limits(model)
    sandboxes = Sandboxes(choose(model.sandbox, limits), limits, bench.count)
    bench.stack.push_async_callback(sandboxes.close)
    return _Code(model, limits, sandboxes)
