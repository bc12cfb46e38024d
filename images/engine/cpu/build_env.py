#!/usr/bin/env python3
"""Build the Python environment in which SGLang serves on a CPU.

    python images/engine/cpu/build_env.py DEST [--progress]
    python images/engine/cpu/build_env.py --key

DEST becomes a folder of importable packages for PYTHONPATH. It holds no interpreter and no path of
the machine that built it, so the same folder serves the CPU image (mounted at /opt/assay/engine)
and the tests of this repository, and is built once rather than once an image.

The wheels are always those for CPython 3.11 on glibc, whatever Python runs this script: Debian
12's, which the image has. The folder is built aside and renamed when it is complete, so the script
can be killed at any moment and run again. A complete DEST is left alone. `content_key()` names the
content: use it in DEST's name, and changed pins get a folder of their own.

What only a GPU uses is taken out again (PRUNED, 1.7 of 6 GB); tests/engine serves from the result.
Standard library and pip only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
SHIM = HERE / "sgl_kernel"
PYTHON = "3.11"
GLIBC_MINORS = range(36, 4, -1)  # Debian 12 has glibc 2.36; wheels for an older one run as well
COMPLETE = ".complete"  # the marker file; holds the content key

# Files that no CPU process maps: parts of CUDA libraries that are loaded on first use of a GPU, and
# compilers and headers for its kernels. What torch links against stays, or it cannot be imported.
PRUNED = (
    "nvidia/**/*.a",
    "nvidia/*/include",
    "nvidia/cu13/lib/libcheckpoint.so",
    "nvidia/cu13/lib/libcufftw.so.*",
    "nvidia/cu13/lib/libcusolverMg.so.*",
    "nvidia/cu13/lib/libnvblas.so.*",
    "nvidia/cu13/lib/libnvperf_*.so",
    "nvidia/cu13/lib/libnvrtc*.alt.so.*",
    "nvidia/cu13/lib/libpcsamplingutil.so",
    "nvidia/cudnn/lib/libcudnn_*.so.*",
    "nvidia/nvshmem/lib/*.bc",
    "nvidia/nvshmem/lib/nvshmem_*.so.*",
    "torch/include",
    "torch/lib/libtorch_cuda_linalg.so",
    "triton/backends/nvidia/bin",
    "triton/backends/nvidia/include",
    "triton/backends/nvidia/lib",
)

Report = Callable[[str], None]


def content_key() -> str:
    """A short name for the content: it changes when pins, shim, Python or pruning change."""
    digest = hashlib.sha256()
    for file in (REQUIREMENTS, *sorted(SHIM.glob("*.py"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update("\0".join((PYTHON, platform.machine(), *PRUNED)).encode())
    return digest.hexdigest()[:16]


def requirements() -> list[str]:
    """The pinned requirements, without comments."""
    lines = (line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pip_command(target: Path) -> list[str]:
    """The pip call that fetches wheels for the image's Python, not for the one running here."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    platforms = [part for tag in tags for part in ("--platform", tag)]
    tag = PYTHON.replace(".", "")
    return [
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile"),
        *("--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off"),
        *("--target", str(target)),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
        *(f"--abi=cp{tag}", "--abi=abi3", "--abi=none", *platforms),
        *("--requirement", str(REQUIREMENTS)),
    ]


def install(target: Path, report: Report) -> None:
    """Install the requirements into `target`, reporting each package as pip comes to it."""
    total = len(requirements())
    done = 0
    tail: list[str] = []
    with subprocess.Popen(
        pip_command(target), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            tail = [*tail[-20:], line]
            if match := re.match(r"Collecting (\S+)", line):
                done += 1
                report(f"[{done}/{total}] {match[1]}")
            elif line.startswith("Installing collected packages"):
                report(f"unpacking {total} packages")
    if pip.returncode != 0:
        raise SystemExit(f"build_env: pip failed ({pip.returncode}):\n{''.join(tail)}")


def prune(target: Path) -> int:
    """Take out what PRUNED names; returns the bytes saved."""
    saved = 0
    for pattern in PRUNED:
        for path in sorted(target.glob(pattern)):
            saved += sum(file.lstat().st_size for file in files_of(path))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return saved


def files_of(path: Path) -> Iterator[Path]:
    """A file itself, or all files below a folder."""
    yield from (child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]


def compile_bytecode(target: Path, report: Report) -> None:
    """Compile to bytecode, if the right Python is at hand.

    The folder is mounted read-only, so Python could never keep bytecode that it compiled itself,
    and every start of an engine would compile some 5,000 modules again. The content never changes
    under its name: unchecked bytecode spares Python a look at each source file.
    """
    python = matching_python()
    if python is None:
        report(f"no Python {PYTHON} here to compile bytecode: engines will start more slowly")
        return
    report("compiling bytecode")
    command = [python, "-m", "compileall", "-q", "-j0", "--invalidation-mode=unchecked-hash"]
    # Packages ship templates and tests that are not valid Python; those that fail stay source.
    subprocess.run([*command, str(target)], check=False, stdout=subprocess.DEVNULL)


def matching_python() -> str | None:
    """An interpreter of the version that the packages are for."""
    probe = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in (sys.executable, f"/usr/bin/python{PYTHON}", shutil.which(f"python{PYTHON}")):
        if candidate is None or not Path(candidate).exists():
            continue
        answer = subprocess.run(
            [candidate, "-c", probe], check=False, capture_output=True, text=True
        )
        if answer.stdout.strip() == PYTHON:
            return candidate
    return None


def is_complete(dest: Path) -> bool:
    """Whether `dest` was built to the end from what stands here now."""
    try:
        return (dest / COMPLETE).read_text(encoding="utf-8").strip() == content_key()
    except OSError:
        return False


def remove_leftovers(dest: Path) -> None:
    """Remove what builds of the same folder left when they were killed."""
    for leftover in dest.parent.glob(f".{dest.name}.building-*"):
        if not Path("/proc", leftover.name.rpartition("-")[2]).exists():
            shutil.rmtree(leftover, ignore_errors=True)


def build(dest: Path, report: Report) -> None:
    """Build `dest`, or find that it is there."""
    if is_complete(dest):
        report(f"{dest} is complete")
        return
    dest.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(dest)
    aside = dest.parent / f".{dest.name}.building-{os.getpid()}"
    install(aside, report)
    shutil.copytree(SHIM, aside / SHIM.name, ignore=shutil.ignore_patterns("__pycache__"))
    report(f"pruned {prune(aside) / 1e9:.1f} GB that only a GPU needs")
    compile_bytecode(aside, report)
    (aside / COMPLETE).write_text(f"{content_key()}\n", encoding="utf-8")
    if dest.exists() and not is_complete(dest):
        shutil.rmtree(dest)
    try:
        aside.rename(dest)
    except OSError:
        # Another process was faster; what it built is the same.
        shutil.rmtree(aside, ignore_errors=True)
        if not is_complete(dest):
            raise
    report(f"{dest} is complete")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the CPU engine's Python environment.")
    parser.add_argument("dest", type=Path, nargs="?", help="the folder to build")
    parser.add_argument("--key", action="store_true", help="print the content key and stop")
    parser.add_argument("--progress", action="store_true", help="print a line for each step")
    arguments = parser.parse_args()
    if arguments.key:
        print(content_key())
        return
    if arguments.dest is None:
        parser.error("name the folder to build")
    # The engine runs as another user than the one who builds.
    os.umask(0o022)

    def report(line: str) -> None:
        if arguments.progress:
            print(line, flush=True)

    build(arguments.dest.resolve(), report)


if __name__ == "__main__":
    main()
