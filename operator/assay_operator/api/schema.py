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

from assay_operator.api.checkpoint import Checkpoint
from assay_operator.api.checkpoint_grant import CheckpointGrant
from assay_operator.api.inference_service import InferenceService
from assay_operator.api.meta import GROUP, VERSION, cel
from assay_operator.api.verified_rl_job import VerifiedRLJob

_DROPPED = ("title", "additionalProperties", "$defs", "discriminator")
_EXCLUSIVE = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
CRD_LABELS = {"app.kubernetes.io/part-of": "assay"}


@dataclass(frozen=True)
class Column:
    """One column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, eq=False)
class Kind:
    """A custom resource and what the API server shall know about it beyond its schema.

    Attributes:
        model: its pydantic model.
        plural: its name in URLs.
        short_name: its name for `kubectl get`.
        columns: of `kubectl get`.
        longest_name: of an object, in characters; None where no other name is made from it.
        scale: the paths of its scale subresource.
    """

    model: type[BaseModel]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    longest_name: int | None = None
    scale: dict[str, str] | None = None

    @property
    def name(self) -> str:
        return self.model.__name__

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of spec and status it has."""
        return tuple(self.model.model_fields)


def _condition(kind: str, part: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{part}'


_AGE = Column("Age", ".metadata.creationTimestamp", type="date")

INFERENCE_SERVICE = Kind(
    model=InferenceService,
    plural="inferenceservices",
    short_name="infsvc",
    # NAME-inspect-HASH8 names a Job, whose name is a label value: at most 63 characters.
    longest_name=45,
    columns=(
        Column("Ready", _condition("Ready", "status"), description="Whether a replica answers"),
        Column("Replicas", ".status.routable", description="Routable and wanted replicas"),
        # By name: a digest is longer than all the rest, and status.checkpoint has it.
        Column("Checkpoint", ".status.served.name", description="The weights that are served"),
        Column("Score", ".status.score", type="number", description="How they scored"),
        Column("URL", ".status.url", description="Where the OpenAI API is served"),
        Column("Reason", _condition("Ready", "reason"), description="Why it is, or is not, ready"),
        _AGE,
        Column(
            "Rollout",
            ".status.rollout.phase",
            description="Where the latest change of the weights is",
            priority=1,
        ),
        Column(
            "Message",
            _condition("Ready", "message"),
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

VERIFIED_RL_JOB = Kind(
    model=VerifiedRLJob,
    plural="verifiedrljobs",
    short_name="vrl",
    # NAME-ATTEMPT-STEP names a Checkpoint.
    longest_name=36,
    columns=(
        Column("Phase", ".status.phase", description="What is going on"),
        Column("Step", ".status.progress", description="Finished steps of all"),
        Column("Reward", ".status.reward", type="number", description="Of the last step"),
        Column("Score", ".status.score", type="number", description="Of the latest evaluation"),
        Column("Best", ".status.best", description="The best verified Checkpoint"),
        Column("ETA", ".status.eta", description="How long the rest will take"),
        _AGE,
        Column("Message", ".status.message", description="What it is doing", priority=1),
    ),
)

CHECKPOINT = Kind(
    model=Checkpoint,
    plural="checkpoints",
    short_name="ckpt",
    # checkpoint.NAME is a label value: at most 63 characters.
    longest_name=52,
    columns=(
        Column("Job", ".spec.job.name", description="The job that made it"),
        Column("Step", ".spec.job.step", type="integer", description="After which it was taken"),
        Column("Score", ".status.score", type="number", description="Of the latest evaluation"),
        Column("Verified", _condition("Verified", "status"), description="Whether that was enough"),
        Column("Digest", ".status.shortDigest", description="What names its bytes, shortened"),
        _AGE,
        Column("Source", ".spec.source", description="Where it lies", priority=1),
        Column(
            "Message",
            _condition("Verified", "message"),
            description="Why it is, or is not, verified",
            priority=1,
        ),
    ),
)

CHECKPOINT_GRANT = Kind(
    model=CheckpointGrant,
    plural="checkpointgrants",
    short_name="ckptgrant",
    columns=(_AGE,),
)

KINDS: tuple[Kind, ...] = (INFERENCE_SERVICE, VERIFIED_RL_JOB, CHECKPOINT, CHECKPOINT_GRANT)


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
        out |= _entry(key, value, definitions)
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


def _entry(key: str, value: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The structural form of one key of a node."""
    if key == "properties":
        return {key: {name: structural(child, definitions) for name, child in value.items()}}
    if key == "additionalProperties" and isinstance(value, dict):
        return {key: structural(value, definitions)}
    if key in _DROPPED or (key == "default" and value is None):
        return {}
    if key == "const":
        key, value = "enum", [value]
    if key in _EXCLUSIVE:
        # OpenAPI 3.0, which CRDs are written in, has a flag beside the bound.
        return {_EXCLUSIVE[key]: value, key: True}
    if key in ("default", "enum", "required"):
        return {key: value}
    return {key: structural(value, definitions)}


def _single(variants: list[dict[str, Any]], node: dict[str, Any]) -> dict[str, Any]:
    """The one variant of a union that remains once null is a matter of leaving the key out."""
    remaining = [variant for variant in variants if variant.get("type") != "null"]
    if node.get("x-kubernetes-int-or-string"):
        return {}
    if len(remaining) != 1:
        raise ValueError(f"a structural schema cannot say this union: {variants}")
    return remaining[0]


_NAME_RULE = cel(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name must be lower-case letters, digits and '-', beginning with a letter: "
    "the names of Services and Jobs are made from it",
)


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`, as plain data."""
    schema = kind.model.model_json_schema(mode="validation")
    root = structural(schema, schema.get("$defs", {}))
    metadata: dict[str, Any] = {"type": "object"}
    if kind.longest_name:
        name = {"type": "string", "maxLength": kind.longest_name}
        metadata["properties"] = {"name": name}
        root["x-kubernetes-validations"] = [_NAME_RULE, *root.get("x-kubernetes-validations", [])]
    root["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": metadata,
        **root["properties"],
    }
    subresources: dict[str, Any] = {"status": {}} if "status" in kind.parts else {}
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
                    **({"subresources": subresources} if subresources else {}),
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
