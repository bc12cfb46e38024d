"""Where weights and items come from, as they are written in a spec."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from assay_operator.api.meta import ApiModel, ObjectName, cel, text

CHECKPOINT_SCHEME = "checkpoint://"

_CLAIM = r"pvc://[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(/[A-Za-z0-9._-]+)*"
_IMAGE = r"oci://[A-Za-z0-9][A-Za-z0-9.:/_@-]*[A-Za-z0-9]"
_CHECKPOINT = r"checkpoint://[a-z]([-a-z0-9]{0,50}[a-z0-9])?"
_STEPS_HELP = "must not walk through . or ..: name the place itself"
_STEPS = cel("!self.split('/').exists(step, step in ['.', '..'])", _STEPS_HELP)


def _no_dots(path: str) -> str:
    if {".", ".."} & set(path.split("/")):
        raise ValueError(_STEPS_HELP)
    return path


ServedSource = Annotated[
    str,
    *text(
        f"{_CLAIM}|{_IMAGE}|{_CHECKPOINT}",
        "must be pvc://CLAIM/PATH, oci://IMAGE or checkpoint://NAME, such as pvc://models/qwen3-8b "
        "or oci://registry.example/models/qwen3-8b:v1",
        1024,
        _STEPS,
    ),
    AfterValidator(_no_dots),
]
"""Weights that can be served."""

FolderSource = Annotated[
    str,
    *text(
        _CLAIM,
        "must be pvc://CLAIM/PATH, such as pvc://models/qwen3-8b: a folder in a "
        "PersistentVolumeClaim of this namespace",
        1024,
        _STEPS,
    ),
    AfterValidator(_no_dots),
]
"""A folder in a claim."""

FilePath = Annotated[
    str,
    *text(
        r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*",
        "must be the file's path within the claim, such as data/train.jsonl",
        512,
        _STEPS,
    ),
    AfterValidator(_no_dots),
]

Key = Annotated[
    str,
    *text(
        r"[-_A-Za-z0-9][-._A-Za-z0-9]*",
        "must be a key of a ConfigMap: letters, digits, '-', '_' and '.', not first a dot",
        253,
    ),
]

# All of ASCII that can be seen, but # and &. \x27 is the quote that would end the rule's string.
_PARAMETER = r"[A-Za-z0-9_.-]+=[!-\"$%\x27-~]*"


def _each_once(source: str) -> str:
    keys = [pair.partition("=")[0] for pair in source.partition("?")[2].split("&")]
    if len(set(keys)) < len(keys):
        raise ValueError("gives a parameter twice: take one of them away")
    return source


GeneratorSource = Annotated[
    str,
    *text(
        f"reasoning-gym://[A-Za-z0-9_.-]+(\\?{_PARAMETER}(&{_PARAMETER})*)?",
        "must be reasoning-gym://NAME?key=value&..., such as "
        "reasoning-gym://number_sorting?seed=7&size=1000; items of your own stand in a ConfigMap "
        "or a claim",
        512,
    ),
    AfterValidator(_each_once),
]
"""Items that are made and not read. That no parameter comes twice is for pydantic alone: to the API
server a rule that compares each with each is too dear."""

SUITE_KEY = "suite.jsonl"
DATA_KEY = "data.jsonl"


class SuiteReference(ApiModel):
    """Held-out items: a suite (docs/verifiers.md) in a ConfigMap of this namespace."""

    configMap: ObjectName = Field(description="The ConfigMap's name.")
    key: Key = Field(SUITE_KEY, description="Its key that holds the suite as JSON lines.")
