#!/usr/bin/env python3
"""Entry point of Assay's engine containers: check the checkpoint, then become SGLang.

    assay-engine SGLANG_ARGUMENT...      check, then serve
    assay-engine --check                 check only, and say what would be served

Which weights an engine serves is not written in its pod template: it stands in the *checkpoint
pointer*, a small JSON file that the operator mounts from a ConfigMap. A pod that restarts, months
after it was created, therefore comes up with what is served today.

    {"path": "/models/solver/base", "version": "sha256:5f1c..."}

`path` is a folder inside the container with config.json and *.safetensors; `version` is what
SGLang then reports as its weight version. The launcher refuses everything that SGLang would only
trip over after minutes, or would load although it must not. Each refusal has its own exit status
and says in one paragraph, on stderr and in the container's termination message, what is wrong and
what to do about it.

| status | name               | what was found                                                  |
|--------|--------------------|-----------------------------------------------------------------|
| 64     | POINTER_MISSING    | the pointer file does not exist or cannot be read               |
| 65     | POINTER_MALFORMED  | it is not JSON, or path or version is missing or of a wrong kind |
| 66     | MODEL_MISSING      | the folder that it names does not exist                         |
| 67     | CONFIG_MISSING     | the folder has no readable config.json                          |
| 68     | WEIGHTS_MISSING    | the folder has no weight files at all                           |
| 69     | WEIGHTS_UNSAFE     | it has pickled weights only (*.bin, *.pt, ...), never loaded    |
| 70     | WEIGHTS_INCOMPLETE | a safetensors file is missing, cut short or damaged             |
| 71     | ENGINE_MISSING     | this Python cannot import SGLang                                |

Any other status is SGLang's own (2: it did not understand an argument).

Environment: ASSAY_POINTER (default /etc/assay/pointer/pointer.json), ASSAY_TERMINATION_LOG
(default /dev/termination-log), ASSAY_CACHE_DIR (default /cache, and the folder for temporary files
where that cannot be written). Standard library only, Python 3.10 or later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

POINTER_MISSING = 64
POINTER_MALFORMED = 65
MODEL_MISSING = 66
CONFIG_MISSING = 67
WEIGHTS_MISSING = 68
WEIGHTS_UNSAFE = 69
WEIGHTS_INCOMPLETE = 70
ENGINE_MISSING = 71

DEFAULT_POINTER = "/etc/assay/pointer/pointer.json"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
DEFAULT_CACHE = "/cache"

INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# How SGLang starts without CUDA. Its scheduler and detokenizer get a Python of their own each, as
# they must where CUDA is in use; here they are forked from the first process, which has a single
# thread then: nothing is imported three times, which is most of the work of a start.
FORKING = """\
import multiprocessing, runpy
multiprocessing.set_start_method = lambda *_, **__: None
runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
"""

LISTED = 20  # entries of a folder that a message names at most
HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors format itself

# Variables that name a folder which some library writes to, and its place below the cache folder.
CACHES = {
    "HF_HOME": "huggingface",
    "TORCH_HOME": "torch",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "SGLANG_CACHE_DIR": "sglang",
    "SGLANG_DG_CACHE_DIR": "deep-gemm",
    "OUTLINES_CACHE_DIR": "outlines",
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
    "XDG_CACHE_HOME": "xdg",
}


class Refusal(Exception):
    """The engine must not start; carries the exit status and the paragraph for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Pointer:
    """What shall be served: a folder in this container and the version to report for it."""

    path: Path
    version: str


def read_pointer(file: Path) -> Pointer:
    """Read and check the pointer file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            POINTER_MISSING,
            f"There is no readable checkpoint pointer at {file} ({error}). The operator mounts it "
            "from a ConfigMap; when you run this image yourself, write "
            '{"path": "/models/NAME", "version": "v1"} to a file and name it in ASSAY_POINTER.',
        ) from None
    try:
        content: Any = json.loads(text)
    except ValueError as error:
        raise malformed(file, f"it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise malformed(file, "it is not a JSON object")
    for key in ("path", "version"):
        value = content.get(key)
        if not isinstance(value, str) or not value.strip():
            raise malformed(file, f'its "{key}" is not a non-empty string')
    path = Path(content["path"])
    if not path.is_absolute():
        raise malformed(file, f'its "path", {content["path"]!r}, is not absolute')
    return Pointer(path, content["version"])


def malformed(file: Path, reason: str) -> Refusal:
    """The refusal of a pointer whose content is wrong."""
    return Refusal(
        POINTER_MALFORMED,
        f"The checkpoint pointer {file} cannot be used: {reason}. It must look like "
        '{"path": "/models/NAME", "version": "v1"}, with an absolute path inside the container.',
    )


def check_model(folder: Path) -> None:
    """Refuse a folder that SGLang could not, or must not, load."""
    if not folder.is_dir():
        raise Refusal(MODEL_MISSING, missing_folder(folder))
    check_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not (folder / INDEX).is_file():
        raise no_weights(folder)
    for name in indexed_files(folder / INDEX):
        if not (folder / name).is_file():
            raise incomplete(folder, f"{INDEX} names {name}, which is not there")
    for file in weights:
        damage = safetensors_damage(file)
        if damage:
            raise incomplete(folder, f"{file.name} {damage}")


def missing_folder(folder: Path) -> str:
    """Say that the folder is missing, and what lies beside the place where it should be."""
    found = next(parent for parent in folder.parents if parent.is_dir())
    kind = "is not a folder" if folder.exists() else "does not exist"
    return (
        f"The model folder {folder} {kind}. {found} holds: {listing(found)}. Correct the path in "
        "spec.model.source, or copy the model to that place in the volume."
    )


def check_config(folder: Path) -> None:
    """Refuse a folder without a config.json that holds a JSON object."""
    reason = "there is none"
    try:
        if isinstance(json.loads((folder / "config.json").read_text(encoding="utf-8")), dict):
            return
        reason = "it is not a JSON object"
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = str(error)
    raise Refusal(
        CONFIG_MISSING,
        f"The model folder {folder} has no usable config.json ({reason}). It holds: "
        f"{listing(folder)}. spec.model.source must name the folder with config.json, the "
        "tokenizer and *.safetensors itself, not a folder above it.",
    )


def no_weights(folder: Path) -> Refusal:
    """The refusal of a folder without safetensors: nothing there, or only pickled weights."""
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    if not pickled:
        return Refusal(
            WEIGHTS_MISSING,
            f"The model folder {folder} has no *.safetensors file. It holds: {listing(folder)}. "
            "Copy the weights there, or correct the path in spec.model.source.",
        )
    return Refusal(
        WEIGHTS_UNSAFE,
        f"The model folder {folder} has pickled weights only ({abridged(pickled)}). Loading them "
        "can run any code that is hidden in them, so Assay serves safetensors only. Convert the "
        "model where you trust it, for instance with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER).",
    )


def incomplete(folder: Path, reason: str) -> Refusal:
    """The refusal of a folder whose safetensors are not all there."""
    return Refusal(
        WEIGHTS_INCOMPLETE,
        f"The weights in {folder} are incomplete: {reason}. A copy to the volume was probably cut "
        "short or still runs: copy the model again, beside this folder, and rename it when it is "
        "complete.",
    )


def indexed_files(index: Path) -> list[str]:
    """The names of the files over which an index says that the weights are spread."""
    if not index.is_file():
        return []
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise incomplete(index.parent, f"{INDEX} cannot be read ({error!r})") from None


def safetensors_damage(file: Path) -> str | None:
    """What is wrong with a safetensors file, as far as its header and its size tell.

    A file begins with the length of its header (8 bytes, little-endian) and the header, a JSON
    object with each tensor's offsets into the bytes that follow. Reading this much takes
    milliseconds even on network storage, and finds a file that was cut off.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                return f"is cut short ({size} bytes)"
            header: Any = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "does not begin with a safetensors header"
    if size < expected:
        return f"is cut short ({size} bytes, {expected} expected)"
    return None


def listing(folder: Path) -> str:
    """The names in a folder, for a message."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return f"(it cannot be listed: {error.strerror})"
    return abridged(names) or "nothing"


def abridged(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def command(pointer: Pointer, arguments: Sequence[str]) -> list[str]:
    """The command that serves.

    The launcher's arguments come last, where argparse lets them win over any other spelling of
    the same option. The load format keeps SGLang from falling back to pickled weights, now and
    whenever it is told later to load other weights from disk.
    """
    forks = "--device=cpu" in arguments or ("--device", "cpu") in pairwise(arguments)
    return [
        sys.executable,
        *(("-c", FORKING) if forks else ("-m", "sglang.launch_server")),
        *arguments,
        "--model-path",
        str(pointer.path),
        "--weight-version",
        pointer.version,
        "--load-format",
        "safetensors",
    ]


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set what SGLang needs in a container with a read-only root, where nobody set it."""
    cache = writable_cache(environment)
    for name, value in settings(cache):
        environment.setdefault(name, value)


def settings(cache: Path) -> Iterator[tuple[str, str]]:
    """Default environment: unbuffered output, no downloads, no imports from the working folder."""
    yield "PYTHONUNBUFFERED", "1"
    yield "PYTHONSAFEPATH", "1"
    yield "HF_HUB_OFFLINE", "1"
    yield "HF_HUB_DISABLE_TELEMETRY", "1"
    for name, place in CACHES.items():
        yield name, str(cache / place)


def writable_cache(environment: Mapping[str, str]) -> Path:
    """The folder for caches: the mounted one, or a private one among the temporary files."""
    wanted = Path(environment.get("ASSAY_CACHE_DIR", DEFAULT_CACHE))
    if wanted.is_dir() and os.access(wanted, os.W_OK):
        return wanted
    return Path(tempfile.mkdtemp(prefix="assay-engine-"))


def check(environment: Mapping[str, str]) -> Pointer:
    """All checks that need no SGLang; the pointer if they pass."""
    pointer = read_pointer(Path(environment.get("ASSAY_POINTER", DEFAULT_POINTER)))
    check_model(pointer.path)
    return pointer


def check_engine() -> None:
    """Refuse to start where SGLang cannot be imported, before Python says so in its own way."""
    if importlib.util.find_spec("sglang") is None:
        raise Refusal(
            ENGINE_MISSING,
            f"{sys.executable} finds no SGLang (PYTHONPATH={os.environ.get('PYTHONPATH', '')}). "
            "Use the CUDA image, or mount the engine environment at /opt/assay/engine in the CPU "
            "image: see images/engine/README.md.",
        )


def refuse(refusal: Refusal, environment: Mapping[str, str]) -> int:
    """Report a refusal where people and the operator look for it; returns the exit status."""
    print(f"assay-engine: {refusal}", file=sys.stderr, flush=True)
    log = Path(environment.get("ASSAY_TERMINATION_LOG", DEFAULT_TERMINATION_LOG))
    try:
        log.write_text(f"{refusal}\n", encoding="utf-8")
    except OSError as error:
        # Outside Kubernetes there is no such file, and stderr has said it all.
        print(f"assay-engine: no termination message at {log}: {error.strerror}", file=sys.stderr)
    return refusal.status


def serve(pointer: Pointer, arguments: Sequence[str]) -> NoReturn:
    """Become SGLang: same process, so that signals and exit statuses are SGLang's own."""
    check_engine()
    prepare(os.environ)
    line = command(pointer, arguments)
    print(f"assay-engine: serving {pointer.path} as {pointer.version}", flush=True)
    os.execv(line[0], line)


def main(arguments: Sequence[str]) -> int:
    """Run the launcher; returns only if nothing is served."""
    try:
        pointer = check(os.environ)
        if "--check" not in arguments:
            serve(pointer, arguments)
        print(f"assay-engine: {pointer.path} can be served as {pointer.version}")
    except Refusal as refusal:
        return refuse(refusal, os.environ)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
