"""SGLang's plugin: fused kernels in the processes that run the model, hardening in the other.

SGLang calls `install` in each of its processes (entry-point group `sglang.srt.plugins`, name
`assay`), in those that are forked from another one, too: see `load_again_in_forks`. Environment:

    ASSAY_KERNELS      fused or stock (default). With stock, SGLang computes as it always does.
    ASSAY_KERNELS_DIR  where the processes of one engine publish what they installed; by default a
                       folder among the temporary files, made by the process that starts first.

Requests that would end the engine are refused with either. `GET /assay/kernels` says what is
active: see `active.report`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from assay_kernels import registry
from assay_kernels.integrations import active, sglang_layers, sglang_requests, sglang_sampler
from assay_kernels.integrations.active import HTTP, SCHEDULER, Engine, ProcessRecord
from assay_kernels.integrations.gates import Calls, Installed, Patch, records
from assay_kernels.registry import Uses

KERNELS = "ASSAY_KERNELS"
FOLDER = "ASSAY_KERNELS_DIR"
KINDS = ("fused", "stock")
ROUTE = "/assay/kernels"
DISTRIBUTION = "assay"

_ENTRIES = {
    "run_scheduler_process": SCHEDULER,
    "run_detokenizer_process": "detokenizer",
    "run_data_parallel_controller_process": "controller",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """What this process is for.

    Attributes:
        role: http, scheduler, detokenizer or controller.
        rank: of a scheduler; None elsewhere.
    """

    role: str
    rank: Mapping[str, int] | None


def install() -> None:
    """SGLang calls this once in each process, before it imports models."""
    place, folder, kernels = place_of_caller(), shared_folder(os.environ), wanted(os.environ)
    if place.role == SCHEDULER:
        install_in_scheduler(place, folder, kernels)
    elif place.role == HTTP:
        active.forget_ended(folder)
        load_again_in_forks()
        install_in_http(place, folder, kernels)


def load_again_in_forks() -> None:
    """Has SGLang call its plugins in processes that are forked from this one, as in new ones.

    SGLang notes that it has called them, and a forked process inherits the note. Without this the
    process that runs the model would have what was put in for the one that serves HTTP, and no
    more. Hooks that it inherits stay as they are, since SGLang applies none twice.
    """
    from sglang.srt import plugins  # noqa: PLC0415 (only where SGLang is)

    os.register_at_fork(after_in_child=lambda: setattr(plugins, "_plugins_loaded", False))


def install_in_scheduler(place: Place, folder: Path, kernels: str) -> None:
    """Puts the ops where the model runs, and publishes which are there and how often they ran."""
    try:
        ops = install_ops(kernels)
    except Exception as error:
        ops = {"plugin": _failed(error)}
    hardening = _harden(sglang_requests.scheduler_patches())
    active.keep_writing(folder, lambda: _record(place, ops, hardening))


def wanted(environment: Mapping[str, str]) -> str:
    """Which kernels the engine was started with; stock where that is not one of the two."""
    kernels = environment.get(KERNELS, "stock")
    if kernels not in KINDS:
        _log.error("%s=%s is none of %s: stock it is", KERNELS, kernels, ", ".join(KINDS))
        return "stock"
    return kernels


def shared_folder(environment: os._Environ[str] | dict[str, str]) -> Path:
    """The folder of the records; the first process makes it, and its children find it."""
    if not environment.get(FOLDER):
        environment[FOLDER] = made = tempfile.mkdtemp(prefix="assay-kernels-")
        atexit.register(_remove, made, os.getpid())
    folder = Path(environment[FOLDER])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remove(folder: str, maker: int) -> None:
    """Takes a folder away again; in a process that was forked from its maker it stays."""
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)


def place_of_caller() -> Place:
    """Which of SGLang's processes this is.

    SGLang does not say so to a plugin, and a process gets its name and its ranks only later; but it
    is the function that a process begins with which loads the plugins.
    """
    frame = sys._getframe()
    while frame is not None:
        role = _ENTRIES.get(frame.f_code.co_name)
        if role == SCHEDULER:
            ranks = {name: frame.f_locals.get(f"{name}_rank") for name in ("tp", "pp", "dp")}
            return Place(role, {name: rank or 0 for name, rank in ranks.items()})
        if role:
            return Place(role, None)
        frame = frame.f_back  # type: ignore[assignment]
    return Place(HTTP, None)


def install_ops(kernels: str) -> dict[str, Installed]:
    """Puts the ops in, or notes why not."""
    from sglang.srt.utils import is_cuda  # noqa: PLC0415 (only where SGLang is)

    ops = known_ops(bool(is_cuda()))
    for op in ops.values():
        if kernels == "fused":
            op.install(_version("sglang"), _register)
        else:
            op.refuse(f"the engine was started with {KERNELS}={kernels}")
    return ops


def known_ops(on_gpu: bool) -> dict[str, Installed]:
    """All ops that SGLang has a place for, by name."""
    forward = "forward_cuda" if on_gpu else "forward_native"
    places: dict[str, Callable[[Calls], list[Patch]]] = {
        "matmul": sglang_layers.matmul,
        "qk_norm_rope": sglang_layers.qk_norm_rope,
        "rms_norm": lambda calls: [sglang_layers.rms_norm(calls, forward)],
        "sampler": lambda calls: [sglang_sampler.sampler(calls)],
        "silu_mul": lambda calls: [sglang_layers.silu_mul(calls, forward)],
    }
    found = {}
    for name, patches in places.items():
        # Not all of registry.ops(): the trainer's need the trainer.
        op, calls = importlib.import_module(registry.OPS[name]).OP, Calls()
        obstacle = functools.partial(_obstacle, op) if on_gpu else lambda: None
        found[name] = Installed(patches(calls), calls, op.uses, obstacle)
    return found


def _failed(error: Exception) -> Installed:
    """What stands in the record where something could not be installed.

    SGLang would log the error and go on; so it is published, and nobody takes it for success.
    """
    _log.error("the plugin could not be installed", exc_info=error)
    nothing = Installed((), Calls(), lambda: Uses(0, {}))
    nothing.refuse(f"{type(error).__name__}: {error}")
    return nothing


def _obstacle(op: registry.Op) -> str | None:
    why_not: str | None = op.obstacle(torch.device("cuda"))
    return why_not


def install_in_http(place: Place, folder: Path, kernels: str) -> None:
    """Refuses what would end the engine, and says on a route which kernels are active."""
    from sglang.srt.entrypoints.http_server import app  # noqa: PLC0415 (only where SGLang is)

    hardening = _harden(sglang_requests.patches())

    async def answer() -> dict[str, Any]:
        engine = Engine(_version(DISTRIBUTION), _version("sglang"), kernels, schedulers())
        return active.report(engine, [_record(place, {}, hardening), *active.read(folder)])

    app.add_api_route(ROUTE, answer, methods=["GET"])


def _harden(patches: list[Patch]) -> Installed:
    """Hooks that fit any version of SGLang whose functions have the right parameters."""
    hardening = Installed(patches, Calls(), lambda: Uses(0, {}), known=())
    try:
        hardening.install(_version("sglang"), _register)
    except Exception as error:
        return _failed(error)
    return hardening


def schedulers() -> int:
    """How many scheduler processes this host's part of the engine has."""
    from sglang.srt.entrypoints import http_server  # noqa: PLC0415 (only where SGLang is)

    state = http_server._global_state
    if state is None:
        return 1
    arguments = state.tokenizer_manager.server_args
    ranks = int(arguments.tp_size) * int(arguments.pp_size)
    if not getattr(arguments, "enable_dp_attention", False):
        ranks *= int(arguments.dp_size)
    return max(1, ranks // int(arguments.nnodes))


def _record(place: Place, ops: Mapping[str, Installed], hardening: Installed) -> ProcessRecord:
    hardened = not hardening.why_not()
    return ProcessRecord(os.getpid(), place.role, place.rank, records(ops), hardened)


def _register(target: str, around: Callable[..., Any]) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType  # noqa: PLC0415

    HookRegistry.register(target, around, HookType.AROUND)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"
