"""The table of the job file's fields in docs/training.md, from the models.

python -m tests.trainer.fields      prints it, to be put into the page
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from assay_trainer.job import Job
from assay_trainer.settings import NamedVerifier

HEAD = ("| field | default | what it does |", "| --- | --- | --- |")
FROM_LOSS = {"algorithm.clip", "algorithm.average"}


def table() -> str:
    """All fields, in the models' order."""
    return "\n".join([*HEAD, *(row(path, field) for path, field in fields(Job, ""))])


def fields(model: type[BaseModel], path: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        here = f"{path}{name}"
        inner = part(field.annotation)
        if inner is None or inner is NamedVerifier:
            yield here, field
        else:
            # `evaluation` and `status` may be left out as a whole, which is worth a line.
            if field.description:
                yield here, field
            yield from fields(inner, f"{here}.")


def part(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a part; none for the correction, which is one of several."""
    parts = [annotation, *getattr(annotation, "__args__", ())]
    models = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
    return models[0] if len(models) == 1 else None


def row(path: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif path in FROM_LOSS:
        default = "the loss's own"
    elif isinstance(field.default, BaseModel):
        default = f"`{json.dumps(field.default.model_dump(mode='json'))}`"
    elif field.default is None or field.default == ():
        default = "none"
    else:
        default = f"`{json.dumps(field.default)}`"
    return f"| `{path}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(table())
