"""Model folders for tests, written without any library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay_trainer.manifest import NAME, Manifest, digest_of, encode
from assay_trainer.storage import hashed, plain_files

CONFIG = {"model_type": "qwen3", "hidden_size": 4, "rope": {"theta": 10000}, "dtype": "float32"}
TENSORS = {"embed": (8, 4), "layer.0.weight": (4, 4), "norm": (4,)}
INDEX = "model.safetensors.index.json"
_BYTES = {"F32": 4, "BF16": 2}


def tensor_file(
    shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", change: Any = None, fill: int = 0
) -> bytes:
    """A safetensors file. `change` is given the header to spoil it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    if change:
        change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes([fill]) * at


def write_model(
    folder: Path, *, config: Mapping[str, Any] = CONFIG, dtype: str = "F32", fill: int = 0
) -> Path:
    """What a user has: configuration, tokenizer, one file of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"vocab": {"a": 0}}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (folder / "model.safetensors").write_bytes(tensor_file(TENSORS, dtype, fill=fill))
    return folder


def write_shards(folder: Path) -> Path:
    """The same model in two files with an index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    names = {"embed": "a.safetensors", "layer.0.weight": "b.safetensors", "norm": "b.safetensors"}
    for file in ("a.safetensors", "b.safetensors"):
        part = {name: shape for name, shape in TENSORS.items() if names[name] == file}
        (folder / file).write_bytes(tensor_file(part))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def write_checkpoint(folder: Path, **more: Any) -> Path:
    """What a trainer leaves: a model, what only it reads, and a manifest."""
    write_model(folder, **more)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state.json").write_text('{"position": 80}')
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> str:
    """Of what lies there now; its digest."""
    paths, _ = plain_files(folder)
    paths.pop(NAME, None)
    files, _ = hashed(paths)
    manifest = Manifest(
        step=20,
        version="1.20",
        job="d" * 64,
        parent=None,
        digest=digest_of(files),
        files=files,
        evaluation=None,
        verified=False,
        time="2026-01-02T03:04:05+00:00",
    )
    (folder / NAME).write_bytes(encode(manifest))
    return manifest.digest
