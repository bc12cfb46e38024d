"""The record of active kernels: what each process of an engine publishes, and what is made of it.

SGLang runs its plugins in several processes and swallows their exceptions. So every process writes
what it has installed, and how often each op ran, into a folder that the engine's processes share;
the one that serves HTTP puts the records together, and readiness asks it.

`fused` counts launches that Python made. Where SGLang replays a CUDA graph, no Python runs: a
kernel inside the graph counts once for each capture, not for each token.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEDULER = "scheduler"
HTTP = "http"
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class OpRecord:
    """One op in one process.

    Attributes:
        installed: whether calls of SGLang's code reach it.
        why_not: why they don't; empty where they do.
        fused: how often its kernels were launched.
        fallbacks: how often plain PyTorch or SGLang's own code ran instead, by reason.
    """

    installed: bool
    why_not: str = ""
    fused: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessRecord:
    """One process of an engine.

    Attributes:
        pid: of the process.
        role: http, scheduler, detokenizer or controller.
        rank: of a scheduler, as in {"tp": 0, "pp": 0, "dp": 0}; None elsewhere.
        ops: by name.
        hardened: whether what keeps requests from ending this process is in place.
    """

    pid: int
    role: str
    rank: Mapping[str, int] | None
    ops: Mapping[str, OpRecord]
    hardened: bool = True


@dataclass(frozen=True)
class Engine:
    """What is the same in all processes of an engine.

    Attributes:
        plugin: its version.
        sglang: SGLang's version.
        kernels: fused or stock.
        schedulers: how many scheduler processes this host should have.
    """

    plugin: str
    sglang: str
    kernels: str
    schedulers: int


def report(engine: Engine, processes: Iterable[ProcessRecord]) -> dict[str, Any]:
    """The answer of `GET /assay/kernels`, made for JSON.

    `active` is true where the engine was started with fused kernels and each of its scheduler
    processes has installed every op; `why_not` says what is missing. `hardened` is true where
    requests are checked in all processes that have published.
    """
    found = sorted(processes, key=lambda process: (process.role, process.pid))
    why_not = inactive(engine, found)
    return {
        "plugin": engine.plugin,
        "sglang": engine.sglang,
        "kernels": engine.kernels,
        "hardened": all(process.hardened for process in found),
        "processes": [asdict(process) for process in found],
        "active": not why_not,
        "why_not": why_not,
    }


def inactive(engine: Engine, processes: Iterable[ProcessRecord]) -> str:
    """Why the fused kernels are not active; empty where they are."""
    if engine.kernels != "fused":
        return f"the engine was started with ASSAY_KERNELS={engine.kernels}"
    schedulers = [process for process in processes if process.role == SCHEDULER]
    if len(schedulers) < engine.schedulers:
        return (
            f"{len(schedulers)} of {engine.schedulers} scheduler processes have published what "
            "they installed"
        )
    for process in schedulers:
        if not process.ops:
            return f"process {process.pid} has published no op"
        for name, op in sorted(process.ops.items()):
            if not op.installed:
                return f"{name} is not installed in process {process.pid}: {op.why_not}"
    return ""


def write(folder: Path, record: ProcessRecord) -> None:
    """Writes a record so that readers find the old one or the new one, whole.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _path(folder, record.role, record.pid)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(asdict(record)), encoding="utf-8")
    aside.replace(path)


def _path(folder: Path, role: str, pid: int) -> Path:
    return folder / f"{role}-{pid}.json"


def forget_ended(folder: Path) -> None:
    """Deletes records of schedulers that are no longer there; for a process that is none itself.

    A process that lives in another pid namespace looks ended from here: it writes its own again.
    """
    for path in folder.glob(f"{SCHEDULER}-*.json"):
        pid = path.stem.removeprefix(f"{SCHEDULER}-")
        # A container that starts again may give this process the id that a scheduler had.
        if pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))):
            path.unlink(missing_ok=True)


def read(folder: Path) -> list[ProcessRecord]:
    """The records of processes that are alive; what cannot be read counts as absent."""
    found = []
    for path in folder.glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ops = {name: OpRecord(**op) for name, op in content.pop("ops").items()}
            record = ProcessRecord(ops=ops, **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if _alive(record.pid):
            found.append(record)
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def publish(folder: Path, found: ProcessRecord, last: ProcessRecord | None) -> ProcessRecord | None:
    """Writes a record that is another than the last one, or that somebody deleted.

    Args:
        folder: of the records.
        found: the record as it is now.
        last: what this returned before; None at first.

    Returns:
        What was written last; None where the folder cannot be written just now.
    """
    if found == last and _path(folder, found.role, found.pid).exists():
        return last
    try:
        write(folder, found)
    except OSError:
        return None
    return found


def keep_writing(folder: Path, record: Callable[[], ProcessRecord]) -> None:
    """Publishes a record as it changes, at most once a second, from a thread.

    A folder that cannot be written for a while leaves the last record in place. The thread is this
    process's: one that is forked from it publishes nothing before it calls this itself.
    """

    def run() -> None:
        last: ProcessRecord | None = None
        # Hooks are applied right after a plugin returns: the first record waits for that.
        while True:
            time.sleep(EVERY_SECONDS)
            last = publish(folder, record(), last)

    threading.Thread(target=run, name="assay-kernels", daemon=True).start()
