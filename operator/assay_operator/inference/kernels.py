"""Whether an engine runs the kernels that it was asked to: how its plugin tells. Pure.

SGLang logs and swallows whatever goes wrong in a plugin, so an engine that serves may well run
without it. Each process of an engine publishes what it runs, and the plugin answers for all of them
at `GET /assay/kernels`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from assay_operator.plan import Json

KERNELS_PATH = "/assay/kernels"
KERNELS_VARIABLE = "ASSAY_KERNELS"
"""Tells the plugin what spec.engine.kernels says; by it a pod is known that was asked for them."""
_LONGEST = 200
_MOST_OPS = 32


@dataclass(frozen=True)
class Kernels:
    """What one engine says about the fused kernels that it was asked to run.

    Attributes:
        active: whether it runs them.
        why_not: where it does not, in one line.
        ops: names of the ops that are in place in any of its processes.
        hardened: whether it refuses requests that would end it.
        release: of the plugin and of the SGLang that it is in, for people.
    """

    active: bool
    why_not: str = ""
    ops: tuple[str, ...] = ()
    hardened: bool = False
    release: str = ""


def asks_for_fused(pod: Json) -> bool:
    """Whether an engine pod was made to run fused kernels, overrides of its template included."""
    containers = pod.get("spec", {}).get("containers") or []
    found = [
        variable.get("value")
        for container in containers
        if container["name"] == "engine"
        for variable in container.get("env") or []
        if variable["name"] == KERNELS_VARIABLE
    ]
    # As in a container, the last one of a name counts.
    return found[-1:] == ["fused"]


def not_there(why: str) -> Kernels:
    """Of an engine that does not answer as one with the plugin does."""
    return Kernels(active=False, why_not=f"the plugin is not in it ({_line(why)})")


def read_kernels(text: str) -> Kernels:
    """What an engine answered, as far as it is an answer of the plugin's."""
    try:
        answer: Any = json.loads(text)
    except ValueError:
        return not_there(f"{KERNELS_PATH}: the answer is not JSON")
    if not isinstance(answer, dict) or not isinstance(answer.get("active"), bool):
        return not_there(f"{KERNELS_PATH}: the answer does not say what is active")
    why = _line(answer.get("why_not") or "it does not say why")
    active = answer["active"]
    if active and answer.get("kernels") != "fused":
        active, why = False, f"it runs {_line(answer.get('kernels'))} kernels"
    return Kernels(
        active=active,
        why_not="" if active else why,
        ops=tuple(sorted(set(_ops(answer.get("processes"))))[:_MOST_OPS]),
        hardened=answer.get("hardened") is True,
        release=f"plugin {_line(answer.get('plugin'))}, SGLang {_line(answer.get('sglang'))}",
    )


def _ops(processes: Any) -> Iterator[str]:
    """The ops that some process has in place. They belong into those that run the model."""
    for process in processes if isinstance(processes, list) else []:
        ops = process.get("ops") if isinstance(process, dict) else None
        for name, state in (ops if isinstance(ops, dict) else {}).items():
            if isinstance(state, dict) and state.get("installed") is True:
                yield _line(name)


def _line(text: Any) -> str:
    """What a pod said, on one line and of a bounded length: it comes into a status."""
    return " ".join(str(text).split())[:_LONGEST]
