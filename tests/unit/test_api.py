"""The custom resources: what stands under crds/ is what the models say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from assay_operator.api import engine, reference
from assay_operator.api import inference_service as api
from assay_operator.api.schema import INFERENCE_SERVICE, crd, files, structural
from assay_operator.inference import profiles

ROOT = Path(__file__).parents[2]


def nodes(schema: Any, path: str = "") -> Any:
    """Every schema node under `schema` with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], f"{path}[{name}]")


def root_schema() -> dict[str, Any]:
    version = crd(INFERENCE_SERVICE)["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def test_the_crds_folder_is_up_to_date() -> None:
    for path, text in files(ROOT / "crds").items():
        assert path.read_text() == text, f"{path.name} is out of date: run `make crds`"
    assert {path.name for path in (ROOT / "crds").glob("*.yaml")} == {
        path.name for path in files(ROOT / "crds")
    }


def test_the_api_reference_is_up_to_date() -> None:
    written = (ROOT / "docs/api.md").read_text()
    assert written == reference.render(), "docs/api.md is out of date: run `make crds`"


def test_every_node_is_structural() -> None:
    for path, node in nodes(root_schema()):
        assert not {"$ref", "anyOf", "oneOf", "title"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path


def test_every_field_is_described() -> None:
    for path, node in nodes(root_schema()["properties"]["spec"]):
        assert path == "" or path.endswith("[items]") or node.get("description"), path


def test_defaults_reach_nested_fields_when_their_parent_is_left_out() -> None:
    spec = root_schema()["properties"]["spec"]["properties"]
    assert spec["engine"]["default"] == {}
    assert spec["engine"]["properties"]["profile"]["default"] == "auto"
    assert spec["router"]["default"] == {}
    assert spec["replicas"]["default"] == 1


def test_the_scale_subresource_points_at_fields_that_exist() -> None:
    properties = root_schema()["properties"]
    scale = crd(INFERENCE_SERVICE)["spec"]["versions"][0]["subresources"]["scale"]
    for path in scale.values():
        _, part, field = path.split(".")
        assert field in properties[part]["properties"]


def test_a_union_that_no_structural_schema_can_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot say this union"):
        structural({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {})


def test_the_enums_of_the_api_are_those_of_the_profile_table() -> None:
    assert set(get_args(engine.Profile)) == set(profiles.families())
    assert set(get_args(engine.Accelerator)) == set(profiles.accelerators())


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "model"),
        ({"model": {"source": "pvc://a/b", "name": "x"}}, "model.name"),
        ({"model": {"source": "pvc://a/b"}, "engine": {"profile": "gpt"}}, "engine.profile"),
        ({"model": {"source": "pvc://a/b"}, "router": {"replicas": 0}}, "router.replicas"),
        ({"model": {"source": "http://a"}}, "model.source"),
        ({"model": {"source": "pvc://a/../b"}}, "model.source"),
        ({"model": {"source": "pvc://a/.."}}, "model.source"),
        ({"model": {"source": "pvc://a", "servedName": "a b"}}, "model.servedName"),
        ({"model": {"source": "pvc://a"}, "replicas": -1}, "replicas"),
        (
            {"model": {"source": "pvc://a"}, "engine": {"extraArgs": ["--por=1"]}},
            "engine.extraArgs",
        ),
    ],
)
def test_pydantic_refuses_what_the_api_server_would_refuse(spec: Any, field: str) -> None:
    with pytest.raises(ValidationError) as error:
        api.InferenceServiceSpec.model_validate(spec)
    assert field in {".".join(map(str, item["loc"])) for item in error.value.errors()}
