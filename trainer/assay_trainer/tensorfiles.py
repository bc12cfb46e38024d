"""The headers of safetensors files, read without the library: no tensor is loaded, no torch. Pure.

A file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object
with each tensor's dtype, shape and place among the bytes that follow. The engine's launcher looks
whether the last byte is there; here every tensor has to lie where it must.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from assay_verifiers.jsontext import NoJson, parse

PREFIX: Final = 8
HEADER_LIMIT: Final = 100_000_000
"""Of bytes; the format's own."""
INDEX: Final = "model.safetensors.index.json"
SUFFIX: Final = ".safetensors"

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class Damaged(ValueError):
    """A file is no safetensors file that may be loaded; the message goes on after its name."""


@dataclass(frozen=True)
class Tensor:
    """One tensor, as a header tells of it."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


Tensors = Mapping[str, Tensor]


def header_length(size: int, prefix: bytes) -> int:
    """How many bytes the header has.

    Args:
        size: of the file.
        prefix: its first PREFIX bytes.

    Raises:
        Damaged: the file has not that many, or no file may.
    """
    length = int.from_bytes(prefix, "little")
    if size < PREFIX or length > size - PREFIX:
        raise Damaged(f"is cut short ({size} bytes)")
    if length > HEADER_LIMIT:
        raise Damaged(f"has a header of {length} bytes, {HEADER_LIMIT} at most are allowed")
    return length


def tensors_of(size: int, header: bytes) -> Tensors:
    """The tensors that a header tells of.

    Args:
        size: of the file.
        header: the bytes after the prefix, as many as that says.

    Raises:
        Damaged: it is no header, a tensor has not the bytes that its shape needs, or they do not
            fill the file without a gap.
    """
    try:
        data = parse(header.decode(), max_characters=HEADER_LIMIT)
    except (NoJson, UnicodeDecodeError) as reason:
        raise Damaged(f"does not begin with a safetensors header: {reason}") from None
    if not isinstance(data, dict):
        raise Damaged("does not begin with a safetensors header: it is no JSON object")
    data.pop(_METADATA, None)
    found: dict[str, Tensor] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in data.items():
        found[name], (begin, end) = _tensor(name, entry)
        places.append((begin, end, name))
    _check_places(places, size - PREFIX - len(header))
    return found


def _tensor(name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise Damaged(f"does not tell dtype, shape and place of {name}")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BITS:
        raise Damaged(f"has {name} in {dtype!r}, a type that is not known here")
    if not _sizes(shape) or not _sizes(place) or len(place) != 2:
        raise Damaged(f"tells no shape or place of {name}")
    begin, end = place
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise Damaged(f"has {end - begin} bytes for {name}, which is {Tensor(dtype, tuple(shape))}")
    return Tensor(dtype, tuple(shape)), (begin, end)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_places(places: list[tuple[int, int, str]], room: int) -> None:
    """Tensors lie one after another, without a gap: else two could share bytes, or some hide."""
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise Damaged(f"has {name} at byte {begin}, not {at}, of its data")
        at = end
    if at > room:
        raise Damaged(f"is cut short ({room} bytes of tensors, {at} expected)")
    if at < room:
        raise Damaged(f"has {room - at} bytes more than its tensors")


def loaded(
    files: Mapping[str, Tensors], index: Any, damaged: Set[str] = frozenset()
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that an engine loads from a folder, and what is missing or there twice.

    Args:
        files: the sound safetensors files at the folder's top, by name.
        index: the content of INDEX, None where there is none. Then all of them are loaded.
        damaged: those that are there and not sound: what they lack is nobody's to say.
    """
    if index is None:
        return _together(files, sorted(files))
    place = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(place, dict) or not all(isinstance(name, str) for name in place.values()):
        return {}, [f"{INDEX} has no weight_map of names to files"]
    wanted: dict[str, list[str]] = defaultdict(list)
    for tensor, name in place.items():
        wanted[name].append(tensor)
    found, problems = _together(files, [name for name in sorted(wanted) if name in files])
    for name in sorted(wanted.keys() - damaged):
        missing = [tensor for tensor in wanted[name] if tensor not in files.get(name, {})]
        if missing and name not in files:
            problems.append(f"{name} is missing, with {counted(missing, 'tensor')}")
        elif missing:
            problems.append(f"{name} lacks {counted(missing, 'tensor')} named by {INDEX}")
    return found, problems


def _together(
    files: Mapping[str, Tensors], names: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    found: dict[str, Tensor] = {}
    twice = []
    for name in names:
        twice += [tensor for tensor in files[name] if tensor in found]
        found.update(files[name])
    if not twice:
        return found, []
    told = counted(twice, "tensor")
    return found, [f"{told} in two files at once: which one is loaded would be chance"]


def counted(names: Sequence[str], what: str) -> str:
    """Some names for people: how many, and one of them."""
    if len(names) == 1:
        return f"{what} {names[0]}"
    return f"{len(names)} {what}s ({min(names)}, ...)"
