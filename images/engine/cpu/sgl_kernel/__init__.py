"""A stand-in for SGLang's compiled kernels on machines without an NVIDIA driver.

SGLang imports names from `sgl_kernel` wherever a layer *could* use a compiled kernel, and then,
on a CPU, takes the plain PyTorch path instead. The published wheel cannot be imported there at
all: it links against the driver's library. This module can. It has every name that is asked of
it, so the imports work; calling one says which kernel was missed, which would mean that a layer
has no PyTorch path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

# SGLang compares this with the oldest version of the wheel that it accepts.
__version__ = "0.4.10"

# Makes `import sgl_kernel.NAME` fail with ModuleNotFoundError, which SGLang handles everywhere.
__path__: list[str] = []


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """A function that only says that this kernel is not here."""
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(f"the compiled kernel sgl_kernel.{name} does not run on a CPU")

    absent.__name__ = absent.__qualname__ = name
    return absent
