"""Which types of verifiers there are, and whether each works on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from assay_verifiers.config import MODELS, VerifierModel
from assay_verifiers.contract import Unavailable
from assay_verifiers.registry import Bench, plugin, plugins, soft

# What the types whose fields are not all optional are tried with; nothing of it is asked or read.
_SAMPLES: dict[str, dict[str, Any]] = {
    "http": {"url": "http://localhost/"},
    "reward-model": {"url": "http://localhost/"},
    "human": {"labels": os.devnull},
    "weighted": {"parts": [{"verifier": {"type": "regex", "pattern": "."}}]},
    "all": {"parts": [{"type": "regex", "pattern": "."}]},
    "format-first": {
        "format": {"type": "regex", "pattern": "."},
        "then": {"type": "regex", "pattern": "."},
    },
}


@dataclass(frozen=True)
class Entry:
    """One type.

    Attributes:
        source: `built in`, or the package's module that offers it.
        soft: whether its word is an opinion; a composed type is as soft as its parts.
        problem: why it does not work here, with the remedy; empty where it does.
    """

    type: str
    source: str
    soft: bool
    problem: str


def entries(bench: Bench) -> list[Entry]:
    """All types, each made once to see whether it works.

    Raises:
        ValueError: a package offers something that is no verifier.
    """
    plugins()
    return [_entry(type_, model, bench) for type_, model in sorted(MODELS.items())]


def _entry(type_: str, model: type[VerifierModel], bench: Bench) -> Entry:
    kind = plugin(type_)
    source = kind.model.__module__ if kind else "built in"
    try:
        sample = model.model_validate({"type": type_, **_SAMPLES.get(type_, {})})
    except ValidationError as reason:
        fields = ", ".join(str(error["loc"][0]) for error in reason.errors() if error["loc"])
        is_soft = kind is not None and kind.soft
        return Entry(type_, source, is_soft, f"not tried: it needs {fields}")
    try:
        bench.verifier(sample)
    except Unavailable as reason:
        return Entry(type_, source, soft(sample), str(reason))
    return Entry(type_, source, soft(sample), "")
