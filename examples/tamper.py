#!/usr/bin/env python3
"""Makes bad checkpoints of good ones, for `make demo`: it runs in a pod that sees both folders.

    python3 tamper.py spoil FOLDER OUT                 a copy of which some bytes are others
    python3 tamper.py mix FOLDER OTHER OUT --share X   weights between those of two models

The first is what a broken disk or a cut-off copy leaves. The second is sound in every file, and
just not as good: nothing but questions can tell.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPOILT_BYTES = 64
OF_TRAINER = ("manifest.json", "trainer")
"""What a trainer writes beside a model: it would tell at once that the weights are others."""


def spoil(folder: Path, out: Path) -> None:
    """A copy with every bit of some bytes in the middle of its weights turned over."""
    shutil.copytree(folder, out)
    weights = next(out.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    for place in range(middle, middle + SPOILT_BYTES):
        content[place] ^= 0xFF
    weights.write_bytes(content)


def mixed(
    one: Mapping[str, NDArray[np.float32]], other: Mapping[str, NDArray[np.float32]], share: float
) -> dict[str, NDArray[np.float32]]:
    """Tensors between those of two models of the same names and shapes.

    Args:
        one: a model.
        other: another one.
        share: of the other, from 0 to 1.

    Raises:
        ValueError: names or shapes are not the same.
    """
    if {name: each.shape for name, each in one.items()} != {
        name: each.shape for name, each in other.items()
    }:
        raise ValueError("the models are not of one shape")
    part = np.float32(share)
    return {name: each + part * (other[name] - each) for name, each in one.items()}


def mix(folder: Path, other: Path, out: Path, share: float) -> None:
    """A model with all that `folder` has, and weights on the way to those of `other`."""
    # Only here, since this alone reads tensors.
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415

    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*OF_TRAINER))
    for weights in out.glob("*.safetensors"):
        made = mixed(load_file(weights), load_file(other / weights.name), share)
        save_file(made, weights, metadata={"format": "pt"})
        weights.chmod(0o644)  # engines may run as another user


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a bad checkpoint of good ones.")
    commands = parser.add_subparsers(dest="command", required=True)
    each = commands.add_parser("spoil", help="a copy of which some bytes are others")
    each.add_argument("folder", type=Path)
    each.add_argument("out", type=Path)
    each = commands.add_parser("mix", help="weights between those of two models")
    each.add_argument("folder", type=Path)
    each.add_argument("other", type=Path)
    each.add_argument("out", type=Path)
    each.add_argument("--share", type=float, required=True, help="of the other, from 0 to 1")
    arguments = parser.parse_args()
    if arguments.command == "spoil":
        spoil(arguments.folder, arguments.out)
    else:
        mix(arguments.folder, arguments.other, arguments.out, arguments.share)


if __name__ == "__main__":
    main()
