"""What stands between SGLang's code and an op: gates of version, signature and of each call.

A `Patch` is one function of SGLang that an op takes calls of. It is put there by SGLang's own
registry of hooks, whose errors are logged and swallowed; so a patch looks afterwards whether the
function was really replaced. Where a gate of a call is shut, SGLang's own code runs, and the reason
is counted.
"""

from __future__ import annotations

import inspect
import pkgutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay_kernels.integrations.active import OpRecord
from assay_kernels.registry import Uses

KNOWN = ("0.5.17", "0.5.23")
"""Versions of SGLang whose sources the hooks were written for, and on which they ran."""

Around = Callable[..., Any]
Register = Callable[[str, Around], None]


@dataclass(frozen=True)
class Signature:
    """The parameters that a function must have.

    Attributes:
        names: all of them, in order.
        optional: that may stand after those, in this order.
    """

    names: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def misfit(self, function: Callable[..., Any]) -> str:
        """What differs; empty where nothing does."""
        found = tuple(inspect.signature(function).parameters)
        more = found[len(self.names) :]
        if found[: len(self.names)] == self.names and more == self.optional[: len(more)]:
            return ""
        return f"it takes ({', '.join(found)}), not ({', '.join(self.names)})"


class Calls:
    """Counts the calls of an op that went to SGLang's own code; from several threads, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed: Counter[str] = Counter()

    def passed(self, why_not: str) -> None:
        """Counts one."""
        with self._lock:
            self._passed[why_not] += 1

    def reasons(self) -> dict[str, int]:
        """How often, by reason."""
        with self._lock:
            return dict(self._passed)


@dataclass(frozen=True)
class Patch:
    """One function of SGLang that an op takes calls of.

    Attributes:
        target: its dotted path.
        signature: that it must have.
        around: takes the original function and a call's arguments.
        needs: dotted paths of what else of SGLang it calls.
    """

    target: str
    signature: Signature
    around: Around
    needs: tuple[str, ...] = ()


class Installed:
    """An op's patches in this process."""

    def __init__(
        self,
        patches: Sequence[Patch],
        calls: Calls,
        uses: Callable[[], Uses],
        obstacle: Callable[[], str | None] = lambda: None,
        known: Sequence[str] = KNOWN,
    ) -> None:
        """Describes what shall be installed.

        Args:
            patches: of the op.
            calls: where their gates count.
            uses: how often the op itself ran.
            obstacle: what keeps its kernels from running in this process, if anything does.
            known: versions of SGLang that the patches fit; any where there are none.
        """
        self._patches = tuple(patches)
        self._calls = calls
        self._uses = uses
        self._obstacle = obstacle
        self._known = tuple(known)
        self._originals: dict[str, Any] = {}
        self._why_not = "it was not asked for"

    def install(self, version: str, register: Register) -> None:
        """Registers the patches, all or none.

        Args:
            version: SGLang's.
            register: takes a target and what shall be put around it.
        """
        self._why_not = self._refusal(version)
        if self._why_not:
            return
        for patch in self._patches:
            self._originals[patch.target] = resolve(patch.target)
            register(patch.target, patch.around)

    def refuse(self, why_not: str) -> None:
        """Leaves SGLang's code alone."""
        self._why_not = why_not

    def _refusal(self, version: str) -> str:
        if self._known and version not in self._known:
            return f"SGLang {version} is none of the versions it fits: {', '.join(self._known)}"
        for patch in self._patches:
            target = patch.target
            try:
                misfit = patch.signature.misfit(resolve(target))
                for target in patch.needs:
                    resolve(target)
            except Exception as error:
                # Importing a module of SGLang can fail in any way, and what it has there may be
                # nothing that takes parameters.
                return f"SGLang has no {target} to call ({type(error).__name__}: {error})"
            if misfit:
                return f"{patch.target} is another than expected: {misfit}"
        return self._obstacle() or ""

    def why_not(self) -> str:
        """Why calls do not reach the op; empty where they do. True after hooks were applied."""
        if self._why_not:
            return self._why_not
        for target, original in self._originals.items():
            if resolve(target) is original:
                return f"SGLang did not apply the hook to {target}; its log says why"
        return ""

    def record(self) -> OpRecord:
        """For the record of active kernels."""
        uses, why_not = self._uses(), self.why_not()
        fallbacks = Counter(self._calls.reasons()) + Counter(dict(uses.fallbacks))
        return OpRecord(not why_not, why_not, uses.fused, dict(sorted(fallbacks.items())))


def resolve(target: str) -> Any:
    """What a dotted path names.

    Raises:
        ImportError: there is no such module.
        AttributeError: there is no such name in it.
    """
    return pkgutil.resolve_name(target)


def records(installed: Mapping[str, Installed]) -> dict[str, OpRecord]:
    """The records of some ops."""
    return {name: op.record() for name, op in installed.items()}
