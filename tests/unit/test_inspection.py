"""`assay-train inspect`: no damaged, foreign or dangerous folder passes, and no good one fails."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_trainer import storage
from assay_trainer.cli import main
from assay_trainer.inspection import Inspection, inspect
from assay_trainer.manifest import NAME
from assay_trainer.tensorfiles import Damaged, Tensor, header_length, tensors_of
from tests.unit.folders import (
    CONFIG,
    INDEX,
    TENSORS,
    tensor_file,
    write_checkpoint,
    write_manifest,
    write_model,
    write_shards,
)

Spoil = Callable[[Path], object]
LAUNCHER = Path(__file__).parents[2] / "images/engine/launch.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "step-20")


# Whole


@pytest.mark.parametrize("write", [write_model, write_shards, write_checkpoint])
def test_a_good_folder_is_intact(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = inspect(write(tmp_path / "model"))
    assert (found.intact, found.problems, found.in_place) == (True, (), None)
    assert found.files == sum(path.is_file() for path in (tmp_path / "model").rglob("*"))


def test_the_digest_is_what_sha256sum_says_of_the_models_files(folder: Path) -> None:
    """As docs/training.md shows it, with a manifest and without one."""
    command = (
        "find . -type f -not -path './trainer/*' -not -name manifest.json -printf '%P\\n' "
        "| LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    )
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, text=True, check=True
    )
    digest = f"sha256:{done.stdout.split()[0]}"
    assert inspect(folder).digest == digest
    (folder / NAME).unlink()
    assert inspect(folder).digest == digest
    assert inspect(folder, digest=digest).intact


def test_a_folder_without_a_manifest_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    found = inspect(write_model(tmp_path / "model"))
    other = f"sha256:{'0' * 64}"
    refused = inspect(tmp_path / "model", digest=other)
    assert refused.problems == (
        f"the digest is {found.digest}, not {other}: these are other files",
    )


# Damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: flip(f / "model.safetensors"), "model.safetensors is damaged: its SHA-256"),
        (lambda f: flip(f / "trainer/state.json"), "trainer/state.json is damaged"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "new.txt").touch(), "new.txt is not in the manifest"),
        (lambda f: (f / NAME).write_text("{"), "manifest.json is cut off or damaged"),
        (lambda f: (f / "link").symlink_to("config.json"), "link is no plain file"),
        (lambda f: os.truncate(f / "model.safetensors", 100), "is cut short"),
    ],
)
def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(
    folder: Path, spoil: Spoil, problem: str
) -> None:
    spoil(folder)
    found = inspect(folder)
    assert found.intact is False
    assert any(problem in sentence for sentence in found.problems), found.problems


def test_every_part_of_every_file_counts(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            assert inspect(folder).intact is False, path
        path.write_bytes(content)
    assert inspect(folder).intact


# Dangerous


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "a.PT", "x.pth", "x.pkl", "x.ckpt", "trainer/optimizer.pt", "deep/a.bin"],
)
def test_a_pickle_anywhere_is_refused_even_if_the_manifest_names_it(
    folder: Path, name: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    write_manifest(folder)
    (problem,) = inspect(folder).problems
    assert problem.startswith(f"{name} may be a pickle")


@pytest.mark.parametrize("name", ["modeling_solver.py", "deep/run.py", "kernel.so", "a.pyc"])
def test_code_is_refused_unless_it_is_trusted(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    write_manifest(folder)
    (problem,) = inspect(folder).problems
    assert problem.startswith(f"{name} is code")
    assert inspect(folder, code=True).intact


def test_a_name_that_a_digest_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "a\nb.txt").touch()
    (problem,) = inspect(folder).problems
    assert "a character that no file here may have in its name" in problem


# Weights


def put(content: bytes) -> Spoil:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    return put(tensor_file(TENSORS, change=change))


DAMAGES: list[tuple[Spoil, str]] = [
    (put(b""), "is cut short (0 bytes)"),
    (put(b"\xff" * 8), "is cut short (8 bytes)"),
    (put((4).to_bytes(8, "little") + b"[1] "), "it is no JSON object"),
    (put((3).to_bytes(8, "little") + b"\xff\xff\xff"), "does not begin with a safetensors header"),
    (put(tensor_file(TENSORS)[:-1]), "is cut short (207 bytes of tensors, 208 expected)"),
    (put(tensor_file(TENSORS) + b"1"), "has 1 bytes more than its tensors"),
    (header(lambda h: h["norm"].pop("shape")), "does not tell dtype, shape and place of norm"),
    (header(lambda h: h["norm"].update(shape=[5])), "has 16 bytes for norm, which is F32 [5]"),
    (header(lambda h: h["norm"].update(dtype="OBJ")), "has norm in 'OBJ', a type that is not"),
    (header(lambda h: h["norm"].update(shape=[-4])), "tells no shape or place of norm"),
    (header(lambda h: h["norm"].update(shape=[True, 4])), "tells no shape or place of norm"),
    (header(lambda h: h["norm"].update(data_offsets=[0, 16])), "has embed at byte 0, not 16"),
    (header(lambda h: h["norm"].update(data_offsets=[9_000, 9_016])), "has norm at byte 9000"),
    (header(lambda h: h.pop("embed")), "has layer.0.weight at byte 128, not 0, of its data"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no weights that may be loaded"),
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be used: not"),
    (lambda folder: (folder / "config.json").write_text("[]"), "config.json is no JSON object"),
    (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "stands twice"),
]


@pytest.mark.parametrize(("spoil", "problem"), DAMAGES)
def test_a_folder_whose_weights_are_not_sound_is_refused(
    tmp_path: Path, spoil: Spoil, problem: str
) -> None:
    folder = write_model(tmp_path / "model")
    spoil(folder)
    found = inspect(folder)
    assert found.intact is False
    assert any(problem in sentence for sentence in found.problems), found.problems


@pytest.mark.parametrize(("spoil", "_"), DAMAGES)
def test_what_the_engines_launcher_refuses_does_not_get_that_far(
    tmp_path: Path, spoil: Spoil, _: str
) -> None:
    folder = write_model(tmp_path / "model")
    spoil(folder)
    spec = importlib.util.spec_from_file_location("assay_engine_launch", LAUNCHER)
    assert spec and spec.loader
    launch = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = launch
    spec.loader.exec_module(launch)
    try:
        launch.check_model(folder)
    except launch.Refusal:
        assert inspect(folder).intact is False


def index(**places: str) -> Spoil:
    return lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / "b.safetensors").unlink(), "b.safetensors is missing, with 2 tensors"),
        (index(embed="a.safetensors", gone="a.safetensors"), "a.safetensors lacks tensor gone"),
        (index(embed="../a.safetensors"), "../a.safetensors is missing, with tensor embed"),
        (lambda f: (f / INDEX).write_text("{}"), "has no weight_map"),
        (lambda f: (f / INDEX).write_text("{"), f"{INDEX} cannot be used"),
        (
            lambda f: (f / "b.safetensors").write_bytes(tensor_file(TENSORS)),
            "tensor embed in two files at once",
        ),
    ],
)
def test_shards_must_be_complete_by_their_index(tmp_path: Path, spoil: Spoil, problem: str) -> None:
    folder = write_shards(tmp_path / "model")
    spoil(folder)
    found = inspect(folder)
    assert any(problem in sentence for sentence in found.problems), found.problems


def test_a_damaged_shard_is_told_of_once(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    os.truncate(folder / "b.safetensors", 20)
    assert inspect(folder).problems == ("b.safetensors is cut short (20 bytes)",)


def test_what_the_index_does_not_name_is_not_loaded_and_does_not_matter(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    (folder / "consolidated.safetensors").write_bytes(tensor_file(TENSORS))
    assert inspect(folder).intact


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_header_by_mistake(content: bytes) -> None:
    """Whatever a file holds, reading it ends with tensors that fit or with a reason."""
    try:
        length = header_length(len(content), content[:8])
        found = tensors_of(len(content), content[8 : 8 + length])
    except Damaged:
        return
    assert not found and len(content) == 8 + length


def test_a_header_tells_names_types_and_shapes() -> None:
    content = tensor_file({"a": (2, 3), "b": ()}, "BF16")
    length = header_length(len(content), content[:8])
    tensors = tensors_of(len(content), content[8 : 8 + length])
    assert tensors == {"a": Tensor("BF16", (2, 3)), "b": Tensor("BF16", ())}
    assert str(tensors["a"]) == "BF16 [2, 3]"


# Alike


def alike(tmp_path: Path, spoil: Spoil, **more: Any) -> Inspection:
    served = write_model(tmp_path / "served")
    folder = write_checkpoint(tmp_path / "new", fill=7, **more)
    spoil(folder)
    write_manifest(folder)
    found = inspect(folder, like=served)
    assert found.intact, found.problems
    return found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: None,
        lambda f: (f / "README.md").write_text("trained"),
        lambda f: (f / "tokenizer.json").write_text('{\n "vocab": {"a":0}}'),
        lambda f: (f / "config.json").write_text(
            json.dumps({**CONFIG, "transformers_version": "9", "_name_or_path": "/x"})
        ),
        lambda f: (f / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float32"})),
    ],
)
def test_new_weights_of_the_same_model_can_be_loaded_in_place(tmp_path: Path, spoil: Spoil) -> None:
    found = alike(tmp_path, spoil)
    assert (found.in_place, found.reasons) == (True, ())


def test_the_same_model_in_other_files_can_be_loaded_in_place(tmp_path: Path) -> None:
    served = write_shards(tmp_path / "served")
    assert inspect(write_checkpoint(tmp_path / "new"), like=served).in_place


def config(**changes: Any) -> Spoil:
    return lambda folder: (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (config(hidden_size=8), "config.json: hidden_size is 8, not 4"),
        (config(model_type="llama"), "config.json: model_type is 'llama', not 'qwen3'"),
        (config(rope={"theta": 5}), "config.json: rope.theta is 5, not 10000"),
        (config(rope={}), "config.json: rope.theta is missing, it was 10000"),
        (config(more=1), "config.json: more is new: 1"),
        (config(dtype="bfloat16"), "config.json: dtype is 'bfloat16', not 'float32'"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is another one"),
        (lambda f: (f / "chat_template.jinja").touch(), "chat_template.jinja is new"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
        (put(tensor_file({**TENSORS, "norm": (5,)})), "tensor norm: F32 [5], not F32 [4]"),
        (
            put(tensor_file({"embed": (8, 4), "norm": (4,)})),
            "tensor layer.0.weight missing",
        ),
        (put(tensor_file({**TENSORS, "more": (1,)})), "tensor more new"),
    ],
)
def test_another_model_cannot_be_loaded_in_place_and_is_no_damage(
    tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    found = alike(tmp_path, spoil)
    assert found.in_place is False
    assert found.reasons == (reason,)


def test_other_precision_is_another_layout(tmp_path: Path) -> None:
    found = alike(tmp_path, lambda folder: None, dtype="BF16")
    assert found.reasons == ("3 tensors (embed, ...): BF16 [8, 4], not F32 [8, 4]",)


def test_a_damaged_folder_is_loaded_nowhere(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "new")
    flip(folder / "model.safetensors")
    found = inspect(folder, like=write_model(tmp_path / "served"))
    assert (found.intact, found.in_place, found.reasons) == (False, False, ())


@pytest.mark.parametrize("spoil", [lambda f: None, lambda f: (f / "config.json").unlink()])
def test_a_served_folder_that_cannot_be_compared_with_makes_new_engines_necessary(
    folder: Path, tmp_path: Path, spoil: Spoil
) -> None:
    served = tmp_path / "gone"
    found = inspect(folder, like=served)
    assert found.intact and found.in_place is False
    write_model(served)
    (served / "config.json").unlink()
    found = inspect(folder, like=served)
    assert found.intact and found.in_place is False
    assert "config.json is missing" in (found.reasons or ("",))[0]


# Storage that fails


def test_storage_that_fails_says_nothing_about_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hashlib.file_digest

    def failing(file: Any, name: Any) -> Any:
        if file.name.endswith("model.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, name)

    monkeypatch.setattr(storage.hashlib, "file_digest", failing)
    found = inspect(folder)
    assert (found.intact, found.digest, found.in_place) == (None, None, None)
    assert found.failing == ("model.safetensors cannot be read: Input/output error",)
    assert main(["inspect", str(folder)]) == 3


def test_a_file_that_may_not_be_read_is_a_problem_of_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Any, name: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(storage.hashlib, "file_digest", refused)
    assert inspect(folder).intact is False


# The command


def test_the_command_says_what_it_found_and_leaves_a_summary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served, told = write_model(tmp_path / "served"), tmp_path / "termination-log"
    told.write_text("what stood there before, and is longer" * 200)
    command = ["inspect", str(folder), "--like", str(served), "--summary", str(told)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"engines that run {served} can load it as they run" in said
    assert json.loads(told.read_text()) == {
        "intact": True,
        "digest": inspect(folder).digest,
        "files": 6,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "inPlace": True,
        "reasons": [],
        "problems": [],
    }
    flip(folder / "model.safetensors")
    assert main(command) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert json.loads(told.read_text())["intact"] is False


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "none")]) == 1
    assert f"{tmp_path / 'none'} does not exist" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert inspect(tmp_path / "file", like=tmp_path).in_place is False


@pytest.mark.parametrize("digest", ["sha256:abc", "a" * 64, f"sha256:{'A' * 64}"])
def test_a_digest_that_is_none_is_a_usage_error(folder: Path, digest: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(folder), "--digest", digest])


@pytest.mark.parametrize("letter", ["\U0001f4a9", '"', "\x01", "a"])
def test_the_summary_fits_whatever_the_names_are(letter: str) -> None:
    sentences = tuple(letter * 3000 for _ in range(500))
    found = Inspection(f"sha256:{'a' * 64}", 10**9, 10**18, sentences, sentences, sentences)
    data = json.loads(found.summary())
    assert len(found.summary()) < 4096
    assert data["problems"] and data["problems"][-1].startswith("and ")
