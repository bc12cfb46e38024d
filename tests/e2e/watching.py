"""Watches a service through a rollout, and says what should not have been.

What is told (every status, by the API server's own watch) is held against what is seen: the workers
that routers list, and the answers that users get.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from assay_operator.inference.rollout_state import OVER
from tests.e2e import lookout
from tests.e2e.clients import Background, routers
from tests.kube import Json, Kube, NotYet

LATE_SECONDS = 2.0
"""How much later than the router we may learn of a status."""


@dataclass(frozen=True)
class Told:
    """One status of a service.

    Attributes:
        at: when we learned of it, in seconds since the epoch.
        status: all of it.
    """

    at: float
    status: Json

    @property
    def rollout(self) -> Json:
        found: Json = self.status.get("rollout") or {}
        return found

    @property
    def phase(self) -> str:
        return str(self.rollout.get("phase", ""))

    @property
    def served(self) -> str:
        """The version that is served."""
        return str((self.status.get("served") or {}).get("version", ""))

    @property
    def admitted(self) -> frozenset[str]:
        """The versions that may answer users: what is served, and during a rollout what it goes out
        from and, once that has passed the gate, what it goes to."""
        rollout = self.rollout
        if not rollout or self.phase in OVER:
            return frozenset({self.served})
        before = {self.served, rollout["from"]["version"], *rollout.get("older", ())}
        passed = rollout.get("passed") or rollout.get("committed")
        return frozenset(before | {rollout["to"]["version"]} if passed else before)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to be done for the rollout."""
        return self.phase in OVER and not self.rollout.get("replicas")

    def is_at(self, phase: str, stage: str = "") -> bool:
        """Whether the rollout is in a phase, and a replica in its hands at a stage."""
        stages = {record["stage"] for record in self.rollout.get("replicas", ())}
        return self.phase == phase and (not stage or stage in stages)


def unadmitted(told: Sequence[Told], seen: Iterable[tuple[float, str]]) -> list[str]:
    """What was in use that was not admitted then, nor before.

    Args:
        told: all statuses, in order; the first is the one that the rollout began from.
        seen: when which version was in use.
    """
    wrong = []
    for at, version in seen:
        known = [each for each in told if each.at <= at + LATE_SECONDS] or told[:1]
        if not any(version in each.admitted for each in known):
            wrong.append(f"{at:.1f}: {version} in phase {known[-1].phase}")
    return wrong


def seconds_short(looks: Sequence[Json], least: int) -> float:
    """For how long fewer than `least` workers were listed. A router that is silent lists nobody
    that we know of: what comes of that is seen in the answers."""
    short = [
        float(after["at"] - before["at"])
        for before, after in pairwise(looks)
        if before["listed"] is not None and len(before["listed"]) < least
    ]
    return sum(short)


def unexcused(failures: Iterable[Json], struck: Sequence[float], outage: float) -> list[Json]:
    """The failed requests that no fault explains.

    Args:
        failures: as `Load` notes them.
        struck: when a fault hit an engine or a router that was in use.
        outage: seconds for which requests may fail then.
    """
    return [
        line
        for line in failures
        if not any(
            line["at"] <= when + outage and line["at"] + line["s"] >= when for when in struck
        )
    ]


class Lookout(Background):
    """Looks at a service's routers from the client pod for the time of a `with` block."""

    def __init__(self, kube: Kube, name: str) -> None:
        addresses = [pod["status"]["podIP"] for pod in routers(kube, name)]
        super().__init__(kube, "lookout", Path(lookout.__file__).read_text(), *addresses)

    def listed(self) -> list[tuple[float, str]]:
        """When which version was listed."""
        return [
            (line["at"], version)
            for line in self.lines
            for version in (line["listed"] or {}).values()
            if version is not None
        ]


class Story:
    """Every status that a service has from the beginning of a `with` block on."""

    def __init__(self, kube: Kube, name: str) -> None:
        kubectl = str(kube.cluster.bin / "kubectl")
        self._command = [
            *(kubectl, "-n", kube.namespace, "get", "infsvc", name, "--watch"),
            *("-o", 'jsonpath={.status}{"\\n"}'),
        ]
        self._environment = {**os.environ, **kube.cluster.environment}
        self._told: list[Told] = []
        self._news = threading.Condition()
        self._watch: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._over = False

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(lambda _: True, 0, 30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        while self._thread.is_alive():
            if self._watch:
                self._watch.terminate()
            self._thread.join(0.2)

    def _listen(self) -> None:
        while not self._over:
            with subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as self._watch:
                for line in self._watch.stdout or ():
                    if line.strip():
                        self._add(Told(time.time(), json.loads(line)))
            # The API server is away, or the watch has come to its end.
            time.sleep(0.3)

    def _add(self, told: Told) -> None:
        with self._news:
            self._told.append(told)
            self._news.notify_all()

    @property
    def told(self) -> list[Told]:
        """All that there were, in order."""
        return list(self._told)

    def wait(self, is_it: Callable[[Told], bool], begin: int, seconds: float) -> int:
        """The number of the first status, not before `begin`, that is what is waited for.

        Raises:
            NotYet: there was none in time.
        """
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for number, told in enumerate(self._told[begin:], begin):
                    if is_it(told):
                        return number
                left = deadline - time.monotonic()
                if left <= 0:
                    raise NotYet(f"not within {seconds:.0f} s:{self.tale(begin)}")
                self._news.wait(left)

    def tale(self, begin: int = 0) -> str:
        """What the rollout said of itself, one line each time that it said something else."""
        said = groupby(self._told[begin:], lambda told: told.rollout.get("message", "no rollout"))
        return "".join(f"\n{next(group).at:.1f} {message}" for message, group in said)
