"""Whether engines that run one model can load another one's weights as they run. Pure.

An engine reads config, tokenizer and chat template at its start and lays its tensors out then. So
all of those have to be the same, and what is not makes new engines necessary: that is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from assay_trainer.tensorfiles import Tensors, counted

CONFIG: Final = "config.json"
_READ_AT_START = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "*.jinja", "generation_config.json", "*processor_config.json"),
    *("*.model", "*.tiktoken", "tekken.json", "hf_quant_config.json", "*.py"),
)
_DTYPES = ("dtype", "torch_dtype")
# Who wrote a file, or when: nothing of the model. Which dtype, `_dtype` compares.
_INERT = frozenset({"_name_or_path", "transformers_version", "_from_model_config", *_DTYPES})
_LONGEST = 60


@dataclass(frozen=True)
class Model:
    """What counts of a model.

    Attributes:
        config: the content of config.json.
        start: a digest of each other file that an engine reads at its start.
        tensors: as they are loaded.
    """

    config: Mapping[str, Any]
    start: Mapping[str, str]
    tensors: Tensors


def is_read_at_start(name: str) -> bool:
    """Whether an engine reads this file of a model's folder when it starts, config.json aside."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _READ_AT_START)


def essential(document: Any) -> Any:
    """A JSON document without what says nothing of the model."""
    if isinstance(document, dict):
        return {key: essential(value) for key, value in document.items() if key not in _INERT}
    return document


def differences(candidate: Model, incumbent: Model) -> list[str]:
    """A sentence for each reason why engines that run the incumbent cannot load the candidate."""
    return [
        *_of_config(essential(candidate.config), essential(incumbent.config), CONFIG),
        *_of_dtype(candidate.config, incumbent.config),
        *_of_start(candidate.start, incumbent.start),
        *_of_tensors(candidate.tensors, incumbent.tensors),
    ]


def _of_config(mine: Any, theirs: Any, where: str) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() | theirs.keys()):
            there = f"{where}: {key}" if where == CONFIG else f"{where}.{key}"
            if key not in mine:
                yield f"{there} is missing, it was {_shown(theirs[key])}"
            elif key not in theirs:
                yield f"{there} is new: {_shown(mine[key])}"
            else:
                yield from _of_config(mine[key], theirs[key], there)
    elif mine != theirs or isinstance(mine, bool) != isinstance(theirs, bool):
        yield f"{where} is {_shown(mine)}, not {_shown(theirs)}"


def _of_dtype(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """Two versions of the format have two names for it, and a folder may have either or both."""
    one, other = (
        next((config[key] for key in _DTYPES if config.get(key)), None) for config in (mine, theirs)
    )
    if one and other and one != other:
        yield f"{CONFIG}: dtype is {_shown(one)}, not {_shown(other)}"


def _of_start(mine: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine:
            yield f"{name} is missing"
        elif name not in theirs:
            yield f"{name} is new"
        elif mine[name] != theirs[name]:
            yield f"{name} is another one"


def _of_tensors(mine: Tensors, theirs: Tensors) -> Iterator[str]:
    if missing := sorted(theirs.keys() - mine.keys()):
        yield f"{counted(missing, 'tensor')} missing"
    if new := sorted(mine.keys() - theirs.keys()):
        yield f"{counted(new, 'tensor')} new"
    changed = sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name])
    if changed:
        name = changed[0]
        yield f"{counted(changed, 'tensor')}: {mine[name]}, not {theirs[name]}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
