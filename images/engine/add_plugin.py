#!/usr/bin/env python3
"""Put Assay's kernels into a folder on PYTHONPATH, so that SGLang finds the plugin in them.

    python3 images/engine/add_plugin.py DEST

DEST gets the package `assay_kernels` and the metadata by which Python finds entry points: what
`pip install` would put there, without pip, an index or anything else of this project. Both engine
images, the tests and the benchmarks use it. Standard library only.
"""

from __future__ import annotations

import compileall
import os
import shutil
import sys
import tomllib
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GROUP = "sglang.srt.plugins"


def entry_points(project: dict[str, Any]) -> str:
    """The text of entry_points.txt: SGLang's group of pyproject.toml."""
    lines = [f"{name} = {value}" for name, value in project["entry-points"][GROUP].items()]
    return "\n".join((f"[{GROUP}]", *lines, ""))


def add(dest: Path) -> None:
    """Writes package and metadata; what stood there of them before is replaced."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    package = dest / "assay_kernels"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "kernels/assay_kernels", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    info = dest / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points(project))
    # An engine's root is read-only: what is not compiled here is compiled at every start.
    compileall.compile_dir(package, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)


def main(arguments: list[str]) -> int:
    """Command line."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    # The engine runs as another user than the one who builds.
    os.umask(0o022)
    dest = Path(arguments[0])
    dest.mkdir(parents=True, exist_ok=True)
    add(dest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
