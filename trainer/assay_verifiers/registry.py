"""From a configuration to a verifier that works: built-in types, plug-ins, what they share.

A package offers a verifier of its own by an entry point in the group `assay.verifiers`, whose name
is the type and whose value is a `Kind`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from types import TracebackType
from typing import Any, Self

from assay_verifiers.config import ENTRY_POINTS, MODELS, SOFT_TYPES, VerifierModel
from assay_verifiers.contract import Task, Unavailable, Verdict, Verifier, error
from assay_verifiers.workers import Workers

_BUILT_IN = {
    "math": "assay_verifiers.types.math:make",
    "code": "assay_verifiers.types.code:make",
    "logic": "assay_verifiers.types.logic:make",
    "reasoning-gym": "assay_verifiers.types.reasoning:make",
    "json": "assay_verifiers.types.json:make",
    "regex": "assay_verifiers.types.regex:make",
    "http": "assay_verifiers.types.http:make",
    "reward-model": "assay_verifiers.types.reward_model:make",
    "human": "assay_verifiers.types.human:make",
    "weighted": "assay_verifiers.types.compose:make_weighted",
    "all": "assay_verifiers.types.compose:make_all",
    "format-first": "assay_verifiers.types.compose:make_format_first",
}
# What the worker processes of the types above import, and warm up, before they are forked.
_PRELOAD = {
    "math": "assay_verifiers.types.math",
    "logic": "assay_verifiers.types.logic_check",
    "reasoning-gym": "assay_verifiers.types.reasoning_score",
    "json": "assay_verifiers.types.json_check",
}

Maker = Callable[[Any, "Bench"], Verifier]


@dataclass(frozen=True)
class Kind:
    """A type of verifier that a plug-in offers.

    Attributes:
        model: its configuration, a `VerifierModel` whose `type` has the type's name as default.
        make: builds the verifier from the configuration and the bench. Raises `Unavailable` where
            it cannot work here.
        soft: whether its word is an opinion, without a proof.
        preload: modules that its functions in worker processes need. A function `warm_up` in one is
            called once, before workers are forked.
    """

    model: type[VerifierModel]
    make: Maker
    soft: bool = False
    preload: tuple[str, ...] = ()


def plugins() -> dict[str, Kind]:
    """The types that installed packages offer, made known to `config.parse_verifier`.

    Raises:
        ValueError: an entry point cannot be loaded, is not a `Kind`, or takes a built-in type's
            name.
    """
    kinds: dict[str, Kind] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            kind = point.load()
        except Exception as reason:
            raise ValueError(f"entry point {point.value} cannot be loaded: {reason}") from reason
        if not isinstance(kind, Kind):
            raise ValueError(f"entry point {point.value} is not an assay_verifiers.registry.Kind")
        if point.name in _BUILT_IN:
            raise ValueError(f"entry point {point.value} takes the built-in type {point.name!r}")
        kinds[point.name] = kind
        MODELS[point.name] = kind.model
    return kinds


PLUGINS: dict[str, Kind] = {}
"""The plug-ins' types, loaded when one is first needed: their modules import this one."""


def plugin(type_: str) -> Kind | None:
    """What a package offers under a type's name; None for a built-in type.

    Raises:
        ValueError: see `plugins`.
    """
    if type_ not in PLUGINS and type_ not in _BUILT_IN:
        PLUGINS.update(plugins())
    return PLUGINS.get(type_)


def soft(model: VerifierModel) -> bool:
    """Whether nothing harder than an opinion is in a configuration."""
    if children := model.children():
        return all(soft(child) for child in children)
    kind = plugin(model.type)
    return model.type in SOFT_TYPES or (kind is not None and kind.soft)


class Bench:
    """What the verifiers of one process share: worker processes, sandboxes, connections.

    An asynchronous context manager; leaving it ends everything that it started.

    Args:
        workers: worker processes and, apart from those, sandboxes; the number of cores by default.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._count = workers
        self._workers: Workers | None = None
        self._verifiers: dict[str, Verifier] = {}
        self._preload: list[str] = []
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stack.aclose()
        self._verifiers.clear()

    @property
    def count(self) -> int | None:
        """How many workers and sandboxes there shall be at most."""
        return self._count

    @property
    def workers(self) -> Workers:
        """The worker processes, started at the first use."""
        if self._workers is None:
            self._workers = Workers(self._count, preload=self._preload)
            self.stack.callback(self._workers.close)
        return self._workers

    def verifier(self, model: VerifierModel) -> Verifier:
        """The verifier of a configuration; the same one for an equal configuration.

        Raises:
            Unavailable: it cannot work here.
        """
        key = model.model_dump_json()
        if key not in self._verifiers:
            self._preload += _preloaded(model.type)
            self._verifiers[key] = _maker(model.type)(model, self)
        return self._verifiers[key]

    def check(self, models: Iterable[VerifierModel]) -> None:
        """Makes all verifiers, so that what cannot work here is told before the work begins.

        Raises:
            Unavailable: one cannot work here.
        """
        for model in models:
            self.verifier(model)


def _preloaded(type_: str) -> tuple[str, ...]:
    if kind := plugin(type_):
        return kind.preload
    return (_PRELOAD[type_],) if type_ in _PRELOAD else ()


def _maker(type_: str) -> Maker:
    if kind := plugin(type_):
        return kind.make
    module, _, name = _BUILT_IN[type_].partition(":")
    try:
        maker: Maker = getattr(import_module(module), name)
    except ImportError as reason:
        raise Unavailable(
            f"verifier type {type_!r} needs the package {reason.name!r}: "
            "pip install 'assay[verifiers]'"
        ) from reason
    return maker


async def verify_one(verifier: Verifier, task: Task, completion: str) -> Verdict:
    """One verdict with its time; a defect of the verifier is `error`, never a score."""
    began = time.monotonic()
    try:
        verdict = await verifier.verify(task, completion)
    except Exception as defect:
        verdict = error(f"the verifier failed: {type(defect).__name__}: {defect}")
    return verdict.took(time.monotonic() - began)
