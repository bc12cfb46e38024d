"""Job files and model folders for tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

SHORTEST: dict[str, Any] = {
    "model": {"path": "model"},
    "data": {"source": "items.jsonl"},
    "rollout": {"engines": ["http://127.0.0.1:30000"]},
    "trainer": {"steps": 100},
    "checkpoint": {"directory": "run"},
}
"""Everything else has a default."""

GONE = object()


def with_fields(changes: dict[str, Any]) -> dict[str, Any]:
    """The shortest job with fields set (or GONE), each named by its path with points."""
    job = copy.deepcopy(SHORTEST)
    for path, value in changes.items():
        *steps, last = path.split(".")
        place = job
        for step in steps:
            place = place.setdefault(step, {})
        if value is GONE:
            del place[last]
        else:
            place[last] = value
    return job


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A job file."""
    path = folder / "job.json"
    path.write_text(json.dumps(with_fields(changes or {})))
    return path


def write_model(folder: Path, context: int = 4096, template: bool = True) -> None:
    """What a check looks at of a model's folder. The weights are not read, so they are empty."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ messages }}"} if template else {})
    )
    (folder / "model.safetensors").touch()


def write_items(path: Path, *prompts: str, **more: Any) -> None:
    """A suite; `more` is in every item."""
    lines = [
        {"id": f"{path.stem}-{i}", "prompt": prompt, "reference": "4", **more}
        for i, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
