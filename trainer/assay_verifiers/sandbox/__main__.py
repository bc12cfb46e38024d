"""`python3 sandbox check [--quick] [KIND ...]` runs the hostile programs here.

`cell` is for `host` alone.

The folder need not be part of an installed package, nor have one above it.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _load() -> None:
    """Makes the folder of this file the package `sandbox`, without its siblings in sys.path."""
    folder = os.path.dirname(os.path.abspath(__file__))
    spec = importlib.util.spec_from_file_location(
        "sandbox", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["sandbox"] = package
    spec.loader.exec_module(package)
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != folder]


if __name__ == "__main__":
    _load()
    if sys.argv[1:2] == ["cell"]:
        importlib.import_module("sandbox.cell").main(sys.argv[2:])
    elif sys.argv[1:2] == ["check"]:
        sys.exit(importlib.import_module("sandbox.check").main(sys.argv[2:]))
    else:
        sys.exit(__doc__)
