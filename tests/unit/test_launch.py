"""The engine launcher: what it refuses, with which status and words, and what it would run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

LAUNCHER = Path(__file__).parents[2] / "images/engine/launch.py"
README = LAUNCHER.with_name("README.md")


@pytest.fixture(scope="module")
def launch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assay_engine_launch", LAUNCHER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes: config.json and one whole safetensors file."""
    folder = tmp_path / "models" / "solver"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    write_safetensors(folder / "model.safetensors")
    return folder


def write_safetensors(file: Path, size: int = 16) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


def run(tmp_path: Path, pointer: object, *arguments: str) -> tuple[int, str, str]:
    """Run the launcher with a pointer; its status, its stderr and its termination message."""
    file = tmp_path / "pointer.json"
    if pointer is not None:
        file.write_text(pointer if isinstance(pointer, str) else json.dumps(pointer))
    log = tmp_path / "termination-log"
    log.write_text("")
    answer = subprocess.run(
        [sys.executable, "-S", str(LAUNCHER), *(arguments or ("--check",))],
        env={"ASSAY_POINTER": str(file), "ASSAY_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.returncode, answer.stderr, log.read_text()


def test_a_whole_model_passes(tmp_path: Path, model: Path) -> None:
    status, errors, log = run(tmp_path, {"path": str(model), "version": "v1"})
    assert (status, errors, log) == (0, "", "")


@pytest.mark.parametrize(
    ("pointer", "status", "words"),
    [
        (None, 64, "no readable checkpoint pointer"),
        ("{", 65, "not JSON"),
        ("[]", 65, "not a JSON object"),
        ({"version": "v1"}, 65, '"path" is not a non-empty string'),
        ({"path": "/models/x"}, 65, '"version" is not a non-empty string'),
        ({"path": "/models/x", "version": " "}, 65, '"version" is not a non-empty string'),
        ({"path": "models/x", "version": "v1"}, 65, "not absolute"),
    ],
)
def test_a_bad_pointer_is_refused(tmp_path: Path, pointer: object, status: int, words: str) -> None:
    found, errors, log = run(tmp_path, pointer)
    assert found == status
    assert words in errors
    assert words in log


Spoil = Callable[[Path], None]


def _remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def _pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _shard_missing(folder: Path) -> None:
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "status", "words"),
    [
        (_remove("config.json"), 67, "no usable config.json (there is none)"),
        (lambda folder: (folder / "config.json").write_text("{"), 67, "no usable config.json"),
        (_remove("model.safetensors"), 68, "no *.safetensors file. It holds: config.json"),
        (_pickled_only, 69, "pickled weights only (pytorch_model.bin)"),
        (_cut_short, 70, "model.safetensors is cut short"),
        (_shard_missing, 70, "names model-2.safetensors, which is not there"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), 70, "cut short"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"[]"),
            70,
            "does not begin with a safetensors header",
        ),
    ],
)
def test_a_bad_model_is_refused(
    tmp_path: Path, model: Path, spoil: Spoil, status: int, words: str
) -> None:
    spoil(model)
    found, errors, log = run(tmp_path, {"path": str(model), "version": "v1"})
    assert found == status
    assert words in errors
    assert words in log


def test_a_missing_folder_names_what_is_there_instead(tmp_path: Path, model: Path) -> None:
    for number in range(30):
        (model.parent / f"other-{number:02}").mkdir()
    pointer = {"path": str(model.parent / "slover" / "v2"), "version": "v1"}
    status, _, log = run(tmp_path, pointer)
    assert status == 66
    assert f"{model.parent} holds: other-00/, other-01/" in log
    assert "and 11 more" in log  # 31 entries, 20 of them named
    assert len(log) < 4096  # the kubelet cuts a longer termination message


def test_without_sglang_it_says_so(tmp_path: Path, model: Path) -> None:
    status, _, log = run(tmp_path, {"path": str(model), "version": "v1"}, "--port", "1")
    assert status == 71
    assert "finds no SGLang" in log


def test_an_unwritable_termination_log_does_not_hide_the_refusal(
    launch: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = launch.Refusal(66, "it is not there")
    status = launch.refuse(refusal, {"ASSAY_TERMINATION_LOG": str(tmp_path / "no" / "log")})
    assert status == 66
    assert "it is not there" in capsys.readouterr().err


def test_the_pointer_wins_over_any_argument(launch: ModuleType) -> None:
    pointer = launch.Pointer(Path("/models/x"), "v1")
    line = launch.command(pointer, ["--model", "/elsewhere", "--port", "30000"])
    assert line[1:3] == ["-m", "sglang.launch_server"]
    assert line[-6:] == [
        *("--model-path", "/models/x"),
        *("--weight-version", "v1"),
        *("--load-format", "safetensors"),
    ]


@pytest.mark.parametrize("device", [["--device", "cpu"], ["--device=cpu"]])
def test_without_cuda_the_engines_processes_are_forked(
    launch: ModuleType, device: list[str]
) -> None:
    line = launch.command(launch.Pointer(Path("/models/x"), "v1"), [*device, "--port", "30000"])
    assert line[1:3] == ["-c", launch.FORKING]
    assert line[3:-6] == [*device, "--port", "30000"]


def test_caches_go_to_the_mounted_folder_and_the_users_settings_stay(
    launch: ModuleType, tmp_path: Path
) -> None:
    environment = {"ASSAY_CACHE_DIR": str(tmp_path), "HF_HOME": "/mine"}
    launch.prepare(environment)
    assert environment["HF_HOME"] == "/mine"
    assert environment["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_without_a_mounted_folder_caches_go_to_a_private_one(
    launch: ModuleType, tmp_path: Path
) -> None:
    place = launch.writable_cache({"ASSAY_CACHE_DIR": str(tmp_path / "absent")})
    assert os.access(place, os.W_OK)
    assert place.stat().st_mode & 0o077 == 0
    place.rmdir()


def test_the_statuses_are_distinct_and_documented(launch: ModuleType) -> None:
    statuses = {
        name: value
        for name, value in vars(launch).items()
        if name.isupper() and isinstance(value, int) and 64 <= value <= 78
    }
    assert len(set(statuses.values())) == len(statuses) == 8
    for text in (launch.__doc__ or "", README.read_text(encoding="utf-8")):
        for name, value in statuses.items():
            assert any(
                line.split("|")[1:3]
                and [part.strip() for part in line.split("|")[1:3]] == [str(value), name]
                for line in text.splitlines()
            ), name
