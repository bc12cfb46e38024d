"""The chart as files: what can be said of it without Helm. The rest: tests/integration."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay_operator.api import schema as crds
from assay_operator.cluster.audit import ACTING, CHILDREN, OWNERS
from assay_operator.cluster.client import KINDS
from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import (
    ACTIVATOR_STATUS_PORT,
    ENGINE_PORT,
    METRICS_PORT,
)
from assay_operator.training.jobfile import STATUS_PORT

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "assay"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}


def complaints(value: Any, schema: dict[str, Any], place: str = "values") -> Iterator[str]:
    """What `value` does against `schema`, as far as JSON Schema is used in the chart."""
    known = {
        *("$schema", "title", "description", "type", "properties", "additionalProperties"),
        *("required", "items", "enum", "pattern", "minLength", "minItems", "minimum", "maximum"),
    }
    assert set(schema) <= known, f"{place}: teach this function {set(schema) - known}"
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        yield f"{place}: {value!r} is no {schema['type']}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    if kind is int and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{place}: {value} is out of bounds"
    if kind in (str, list) and len(value) < schema.get("minLength", schema.get("minItems", 0)):
        yield f"{place} is too short"
    if kind is list:
        for index, item in enumerate(value):
            yield from complaints(item, schema.get("items", {}), f"{place}[{index}]")
    if kind is dict:
        for name in set(schema.get("required", ())) - set(value):
            yield f"{place}.{name} is missing"
        for name, item in value.items():
            rest = schema.get("additionalProperties", True)
            inner = schema.get("properties", {}).get(name, rest)
            if inner is False:
                yield f"{place}.{name} is unknown"
            elif inner is not True:
                yield from complaints(item, inner, f"{place}.{name}")


def named(schema: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema with its dotted name."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{place}{name}", inner
        yield from named(inner, f"{place}{name}.")


def test_the_crds_are_those_of_the_models() -> None:
    for folder in (ROOT / "crds", CHART / "files" / "crds"):
        there = {path: path.read_text() for path in folder.glob("*.yaml")}
        assert there == crds.files(folder), f"{folder} is old: run `make crds`"


def test_the_values_satisfy_the_schema() -> None:
    assert list(complaints(VALUES, SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"replica": 2}, "values.replica is unknown"),
        ({"replicas": "2"}, "values.replicas: '2' is no integer"),
        ({"replicas": 0}, "values.replicas: 0 is out of bounds"),
        ({"config": {"engin": {}}}, "values.config.engin is unknown"),
        ({"config": {"router": {"image": ""}}}, "values.config.router.image is too short"),
    ],
)
def test_the_schema_refuses(change: dict[str, Any], complaint: str) -> None:
    assert list(complaints(change, SCHEMA)) == [complaint]


def test_every_object_of_the_schema_says_what_it_takes() -> None:
    for name, inner in named({"properties": {"values": SCHEMA}}):
        if inner["type"] == "object" and "properties" in inner:
            assert inner["additionalProperties"] is False, f"{name} takes unknown keys"


def test_every_value_of_the_schema_has_a_default() -> None:
    for name, _ in named(SCHEMA):
        value: Any = VALUES
        for part in name.split("."):
            if name == "global":
                break
            assert part in value, f"{name} is not in values.yaml"
            value = value[part]


def test_the_configuration_in_the_values_is_the_operators_default() -> None:
    assert OperatorConfig.model_validate(VALUES["config"]) == OperatorConfig()


def test_the_schema_knows_every_field_of_the_configuration() -> None:
    ours = SCHEMA["properties"]["config"]["properties"]
    # Where the operator runs, the chart knows without being told.
    assert {*ours, "networkPolicy", "metricsUrl"} == set(OperatorConfig.model_fields)
    for part in ("engine", "router", "activator", "verifier", "trainer"):
        model = OperatorConfig.model_fields[part].annotation
        assert model is not None
        assert set(ours[part]["properties"]) == set(model.model_fields)  # type: ignore[attr-defined]


def test_the_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_operators_rights_name_what_they_are_for() -> None:
    text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    rules = re.findall(r"(?:apiGroups|resources|verbs|nonResourceURLs|resourceNames): .*", text)
    assert rules
    for rule in rules:
        assert "*" not in rule
        assert "secrets" not in rule
        assert "pods/exec" not in rule and "pods/proxy" not in rule
        assert "escalate" not in rule and "impersonate" not in rule


def granted() -> dict[str, set[str]]:
    """What the operator may do in the namespaces that it watches: RESOURCE.GROUP -> verbs."""
    text = (CHART / "templates" / "_helpers.tpl").read_text()
    rules = text.partition('define "assay.rules" -}}')[2].partition("{{- end -}}")[0]
    plain = re.sub(r"\{\{.*?\}\}", "name", rules)
    found: dict[str, set[str]] = {}
    for rule in yaml.safe_load(plain):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                name = f"{resource}.{group}".rstrip(".")
                found.setdefault(name, set()).update(rule["verbs"])
    return found


def resource_of(kind: str) -> str:
    return f"{KINDS[kind].plural}.{KINDS[kind].group}".rstrip(".")


def test_the_operator_may_watch_all_that_it_watches() -> None:
    rights = granted()
    for kind in (*OWNERS, *CHILDREN):
        assert {"get", "list", "watch"} <= rights[resource_of(kind)], kind


def test_the_operator_may_write_its_children_and_no_spec_of_a_user() -> None:
    rights = granted()
    for kind in set(CHILDREN) - {"Pod"}:
        assert {"create", "patch"} <= rights[resource_of(kind)], kind
    for kind in ACTING:
        assert rights[f"{KINDS[kind].plural}/status.{KINDS[kind].group}"] == {"get", "patch"}, kind
    writing = {"create", "update", "patch", "delete"}
    users = ("InferenceService", "VerifiedRLJob", "CheckpointGrant")
    assert not any(writing & rights[resource_of(kind)] for kind in users)


def test_what_cannot_be_made_again_is_never_the_operators_to_delete() -> None:
    rights = granted()
    assert "delete" not in rights["persistentvolumeclaims"]
    assert not any("deletecollection" in verbs for verbs in rights.values())


def test_people_may_see_and_change_every_kind() -> None:
    text = (CHART / "templates" / "rbac.yaml").read_text()
    for kind in crds.KINDS:
        assert text.count(f"{kind.plural}") >= 2, f"{kind.name} is in no role for people"


def test_a_policy_for_the_operators_pods_lets_them_ask_all_that_they_ask() -> None:
    text = (CHART / "templates" / "networkpolicy.yaml").read_text().partition("egress:")[2]
    ports = {int(port) for port in re.findall(r"port: (\d+)", text)}
    assert {ENGINE_PORT, METRICS_PORT, ACTIVATOR_STATUS_PORT, STATUS_PORT} <= ports


def test_every_value_is_read_by_a_template() -> None:
    text = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    read = {match.removesuffix(".") for match in re.findall(r"\.Values\.([A-Za-z.]+)", text)}
    for name, _ in named(SCHEMA):
        if name != "global":
            assert any(
                name == known or name.startswith(f"{known}.") or known.startswith(f"{name}.")
                for known in read
            ), f"no template reads {name}"
