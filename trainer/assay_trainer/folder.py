"""A Hugging Face folder that SGLang can serve as it is: config, tokenizer, safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

LARGEST = "5GB"
"""Of one file of weights."""

BESIDE = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
"""What else a model's folder holds: configuration, tokenizer, chat template."""
NOT_COPIED = {"config.json", "manifest.json"}
MODE = 0o644
"""Engines may run as another user, and safetensors' own files are for their owner alone."""


def write_model(folder: Path, source: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes weights with everything else that the model's own folder holds.

    Nothing is flushed to the disk: that is for the caller, who also renames.

    Args:
        folder: made if it is not there.
        source: the folder that the run began with.
        weights: by their names in Hugging Face files, all of one dtype, on the CPU.

    Raises:
        OSError: the disk is full, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in BESIDE and path.name not in NOT_COPIED and not _is_index(path):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_bytes())
    kinds = {tensor.dtype for tensor in weights.values()}
    text = json.dumps(_typed(config, kinds.pop()), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    shards = split_torch_state_dict_into_shards(dict(weights), max_shard_size=LARGEST)
    for name, tensors in shards.filename_to_tensors.items():
        part = {tensor: weights[tensor].contiguous() for tensor in tensors}
        save_file(part, folder / name, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(MODE)


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _typed(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The configuration with the dtype that the files have now."""
    name = str(dtype).removeprefix("torch.")
    old = {"torch_dtype": name} if "torch_dtype" in config else {}
    return {**config, **old, "dtype": name}
