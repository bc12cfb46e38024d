"""Writes the CustomResourceDefinitions from the pydantic models.

The models give JSON Schema with references and null unions; a CRD wants a *structural* schema:
everything inline, one type a node, `nullable` absent where a key may simply be left out. CEL rules
and Kubernetes extensions travel in `json_schema_extra` (see `meta.validated`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from assay_operator.api.inference_service import InferenceService
from assay_operator.api.meta import GROUP, VERSION, cel

_DROPPED = ("title", "additionalProperties", "$defs", "discriminator")
MAX_NAME = 45
"""KIND.NAME is a label value (at most 63 characters), and NAME-engine names a Deployment."""
CRD_LABELS = {"app.kubernetes.io/part-of": "assay"}


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Kind:
    """A custom resource and what the API server shall know about it beyond its schema."""

    model: type[BaseModel]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    scale: dict[str, str] | None = None

    @property
    def name(self) -> str:
        return self.model.__name__


INFERENCE_SERVICE = Kind(
    model=InferenceService,
    plural="inferenceservices",
    short_name="infsvc",
    columns=(
        Column(
            "Ready",
            '.status.conditions[?(@.type=="Ready")].status',
            description="Whether a replica answers",
        ),
        Column("Replicas", ".status.routable", description="Routable and wanted replicas"),
        Column("Checkpoint", ".status.checkpoint", description="The weights that are served"),
        Column("URL", ".status.url", description="Where the OpenAI API is served"),
        Column(
            "Reason",
            '.status.conditions[?(@.type=="Ready")].reason',
            description="Why it is, or is not, ready",
        ),
        Column("Age", ".metadata.creationTimestamp", type="date"),
        Column(
            "Message",
            '.status.conditions[?(@.type=="Ready")].message',
            description="What is wrong and what to do",
            priority=1,
        ),
    ),
    scale={
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
)

KINDS: tuple[Kind, ...] = (INFERENCE_SERVICE,)


def structural(node: Any, definitions: dict[str, Any]) -> Any:
    """The structural form of one JSON-schema node.

    Args:
        node: a JSON-schema node as pydantic writes it.
        definitions: the `$defs` that its references point to.

    Raises:
        ValueError: a union that no structural schema can say.
    """
    if isinstance(node, list):
        return [structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    reference = node.pop("$ref", None)
    if reference is not None:
        node = {**definitions[reference.rsplit("/", 1)[-1]], **node}
    variants = node.pop("anyOf", None)
    if variants is not None:
        node = {**_single(variants, node), **node}
        return structural(node, definitions)
    out: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: structural(child, definitions) for name, child in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            out[key] = structural(value, definitions)
        elif key == "default" and value is None:
            continue
        elif key == "const":
            out["enum"] = [value]
        elif key in ("default", "enum", "required"):
            out[key] = value
        elif key not in _DROPPED:
            out[key] = structural(value, definitions)
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


def _single(variants: list[dict[str, Any]], node: dict[str, Any]) -> dict[str, Any]:
    """The one variant of a union that remains once null is a matter of leaving the key out."""
    remaining = [variant for variant in variants if variant.get("type") != "null"]
    if node.get("x-kubernetes-int-or-string"):
        return {}
    if len(remaining) != 1:
        raise ValueError(f"a structural schema cannot say this union: {variants}")
    return remaining[0]


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`, as plain data."""
    schema = kind.model.model_json_schema(mode="validation")
    root = structural(schema, schema.get("$defs", {}))
    root["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        # The name becomes a label value and the name of a Service.
        "metadata": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": MAX_NAME}},
        },
        **root["properties"],
    }
    root["x-kubernetes-validations"] = [
        cel(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be lower-case letters, digits and '-', beginning with a letter: "
            "it becomes the name of a Service",
        ),
        *root.get("x-kubernetes-validations", []),
    ]
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = kind.scale
    columns = [
        {
            "name": column.name,
            "type": column.type,
            "jsonPath": column.path,
            **({"description": column.description} if column.description else {}),
            **({"priority": column.priority} if column.priority else {}),
        }
        for column in kind.columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": CRD_LABELS},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["assay"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def render(kind: Kind) -> str:
    """The CRD as the YAML text that stands under crds/."""
    head = "# Generated by `make crds` from operator/assay_operator/api. Never edit it.\n"
    return head + yaml.safe_dump(crd(kind), sort_keys=False, width=100)


def files(folder: Path) -> dict[Path, str]:
    """The files that belong into `folder`: path -> content."""
    return {folder / f"{GROUP}_{kind.plural}.yaml": render(kind) for kind in KINDS}
