"""The plugin's gates: an op is put into SGLang only where that is the SGLang it was written for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from assay_kernels.integrations.active import OpRecord
from assay_kernels.integrations.gates import Calls, Installed, Patch, Signature, resolve
from assay_kernels.registry import Uses

MODULE = "a_program_to_patch"
TARGET = f"{MODULE}.Layer.forward"
TAKES_X = Signature(("self", "x"), ("scale",))


class Layer:
    """A layer of the program."""

    def forward(self, x: int) -> int:
        return x + 1


def one_more(original: Callable[..., int], self: Layer, x: int) -> int:
    return original(self, x) + 100


def never(original: Callable[..., int], *_: Any) -> int:
    raise AssertionError("nothing is called here")


@pytest.fixture(autouse=True)
def program() -> Iterator[ModuleType]:
    """The module that is patched, with a new class each time."""
    module = ModuleType(MODULE)
    module.Layer = type("Layer", (Layer,), {"forward": Layer.forward})  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
    yield module
    del sys.modules[MODULE]


def apply(target: str, around: Callable[..., Any]) -> None:
    """What SGLang's registry does with a hook, once all plugins were called."""
    owner, _, name = target.rpartition(".")
    original = resolve(target)
    setattr(resolve(owner), name, lambda *words, **named: around(original, *words, **named))


def lose(target: str, around: Callable[..., Any]) -> None:
    """A registry that fails, and only logs that it did."""


def installed(
    *patches: Patch, calls: Calls | None = None, obstacle: str | None = None
) -> Installed:
    return Installed(
        patches or (Patch(TARGET, TAKES_X, one_more),),
        calls or Calls(),
        lambda: Uses(3, {"tensors are on the CPU": 2}),
        lambda: obstacle,
    )


def test_where_all_gates_are_open_calls_reach_the_op(program: ModuleType) -> None:
    op = installed()
    op.install("0.5.23", apply)
    assert program.Layer().forward(1) == 102
    assert op.why_not() == ""


def test_an_unknown_version_keeps_its_own_code_and_the_record_names_the_known_ones(
    program: ModuleType,
) -> None:
    op = installed()
    op.install("0.9.0", apply)
    assert program.Layer().forward(1) == 2
    assert not op.record().installed
    assert op.record().why_not == "SGLang 0.9.0 is none of the versions it fits: 0.5.17, 0.5.23"


def test_a_function_with_other_parameters_is_left_alone() -> None:
    op = installed(Patch(TARGET, Signature(("self", "x", "residual")), never))
    op.install("0.5.23", apply)
    assert op.why_not() == (
        f"{TARGET} is another than expected: it takes (self, x), not (self, x, residual)"
    )


def test_a_parameter_that_a_later_version_added_is_no_obstacle(program: ModuleType) -> None:
    program.Layer.forward = lambda self, x, scale=1: x * scale
    op = installed()
    op.install("0.5.23", apply)
    assert op.why_not() == ""


@pytest.mark.parametrize("target", ["no_such_module.Layer.forward", f"{MODULE}.Other.forward"])
def test_what_is_no_longer_there_is_a_reason_not_an_error(target: str) -> None:
    op = installed(Patch(target, TAKES_X, never))
    op.install("0.5.23", apply)
    assert op.why_not().startswith(f"SGLang has no {target}")


def test_what_takes_no_parameters_is_a_reason_not_an_error(program: ModuleType) -> None:
    program.Layer.forward = 3
    op = installed()
    op.install("0.5.23", apply)
    assert op.why_not().startswith(f"SGLang has no {TARGET} to call (TypeError")


def test_a_hook_that_calls_what_is_no_longer_there_is_not_put_in(program: ModuleType) -> None:
    op = installed(Patch(TARGET, TAKES_X, one_more, needs=(f"{MODULE}.encode",)))
    op.install("0.5.23", apply)
    assert op.why_not().startswith(f"SGLang has no {MODULE}.encode to call (AttributeError")
    assert program.Layer().forward(1) == 2


def test_one_misfit_keeps_all_patches_of_an_op_out(program: ModuleType) -> None:
    """Half an op would compute with two kernels by turns."""
    op = installed(
        Patch(TARGET, TAKES_X, one_more), Patch(f"{MODULE}.Layer.backward", TAKES_X, never)
    )
    op.install("0.5.23", apply)
    assert program.Layer().forward(1) == 2


def test_a_hook_that_was_lost_shows_in_the_record() -> None:
    """SGLang logs errors of hooks and goes on: nobody else would notice."""
    op = installed()
    op.install("0.5.23", lose)
    assert op.record() == OpRecord(
        installed=False,
        why_not=f"SGLang did not apply the hook to {TARGET}; its log says why",
        fused=3,
        fallbacks={"tensors are on the CPU": 2},
    )


def test_a_device_that_kernels_do_not_run_on_is_a_reason() -> None:
    op = installed(obstacle="compute capability 7.5 is below 8.0")
    op.install("0.5.23", apply)
    assert op.why_not() == "compute capability 7.5 is below 8.0"


def test_stock_kernels_are_a_reason(program: ModuleType) -> None:
    op = installed()
    op.refuse("the engine was started with ASSAY_KERNELS=stock")
    assert program.Layer().forward(1) == 2
    assert op.record().why_not == "the engine was started with ASSAY_KERNELS=stock"


def test_calls_that_went_past_and_runs_in_plain_pytorch_are_counted_together() -> None:
    calls = Calls()
    op = installed(calls=calls)
    op.install("0.5.23", apply)
    for _ in range(4):
        calls.passed("there are no rows")
    assert op.record() == OpRecord(
        installed=True, fused=3, fallbacks={"tensors are on the CPU": 2, "there are no rows": 4}
    )
