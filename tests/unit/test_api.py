"""The custom resources: what stands under crds/ is what the models say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from assay_operator.api import engine, reference
from assay_operator.api import inference_service as api
from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.api.checkpoint_grant import CheckpointGrantSpec
from assay_operator.api.meta import Duration, seconds
from assay_operator.api.rollout import Gate
from assay_operator.api.schema import (
    CHECKPOINT,
    INFERENCE_SERVICE,
    KINDS,
    VERIFIED_RL_JOB,
    Kind,
    crd,
    files,
    structural,
)
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.api.verifiers import TYPES, weak
from assay_operator.inference import profiles
from assay_verifiers.config import GateLimits
from tests.refused import BEYOND, GATE, GOOD, REFUSED, Refused, changed

ROOT = Path(__file__).parents[2]


def nodes(schema: Any, path: str = "") -> Any:
    """Every schema node under `schema` with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], f"{path}[{name}]")


def root_schema(kind: Kind = INFERENCE_SERVICE) -> dict[str, Any]:
    version = crd(kind)["spec"]["versions"][0]
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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_node_is_structural(kind: Kind) -> None:
    for path, node in nodes(root_schema(kind)):
        assert not {"$ref", "anyOf", "oneOf", "title"} & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_described(kind: Kind, part: str) -> None:
    for path, node in nodes(root_schema(kind)["properties"].get(part, {})):
        inside = path == "" or path.endswith(("[items]", "[additionalProperties]"))
        assert inside or node.get("description"), path


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


# --- All four kinds ---------------------------------------------------------------------------

MODELS: dict[str, type[BaseModel]] = {
    "InferenceService": api.InferenceServiceSpec,
    "VerifiedRLJob": VerifiedRLJobSpec,
    "Checkpoint": CheckpointSpec,
    "CheckpointGrant": CheckpointGrantSpec,
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_spec_is_accepted(kind: str) -> None:
    MODELS[kind].model_validate(GOOD[kind])


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_pydantic_says_what_the_crds_rules_say(case: Refused) -> None:
    with pytest.raises(ValidationError) as error:
        MODELS[case.kind].model_validate(case.spec)
    assert case.says in str(error.value)
    kind = next(kind for kind in KINDS if kind.name == case.kind)
    rules = [
        rule["message"]
        for _, node in nodes(root_schema(kind))
        for rule in node.get("x-kubernetes-validations", ())
    ]
    assert any(case.says in message for message in rules)


@pytest.mark.parametrize(("kind", "path", "value"), BEYOND)
def test_pydantic_has_the_bounds_of_the_schema(kind: str, path: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        MODELS[kind].model_validate(changed(GOOD[kind], {path: value}))


def test_every_rule_is_tried() -> None:
    """But for those that no spec alone can break, and those that cases further above try."""
    for kind in KINDS:
        for path, node in nodes(root_schema(kind)["properties"]["spec"]):
            for rule in node.get("x-kubernetes-validations", ()):
                if "oldSelf" not in rule["rule"] and path.split(".")[-1] not in TRIED:
                    assert any(case.says in rule["message"] for case in REFUSED), rule["message"]


TRIED = {"replicas", "servedName", "extraArgs"}


def test_a_bound_that_excludes_itself_is_written_as_openapi_has_it() -> None:
    node = {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 1}
    assert structural(node, {}) == {
        "type": "number",
        "minimum": 0.5,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_lists_strings_and_maps_that_rules_look_at_are_bounded(kind: Kind) -> None:
    """Else the API server finds the rules too dear and refuses the CRD."""

    def unbounded(node: dict[str, Any]) -> bool:
        if node.get("type") == "array":
            return "maxItems" not in node
        if node.get("type") == "string":
            return "maxLength" not in node and "enum" not in node
        return isinstance(node.get("additionalProperties"), dict) and "maxProperties" not in node

    for path, node in nodes(root_schema(kind)["properties"]["spec"]):
        if node.get("x-kubernetes-validations") and node["type"] != "object":
            for inside, child in nodes(node, path):
                assert not unbounded(child), inside


def test_a_checkpoint_never_changes() -> None:
    rules = root_schema(CHECKPOINT)["properties"]["spec"]["x-kubernetes-validations"]
    assert "self == oldSelf" in {rule["rule"] for rule in rules}


def test_storage_can_only_grow() -> None:
    spec = root_schema(VERIFIED_RL_JOB)["properties"]["spec"]["properties"]
    rules = spec["checkpoint"]["properties"]["storage"]["x-kubernetes-validations"]
    assert any("oldSelf.claim" in rule["rule"] for rule in rules)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_columns_show_fields_that_exist(kind: Kind) -> None:
    for column in kind.columns:
        node = {"properties": root_schema(kind)["properties"]}
        for name in column.path.lstrip(".").split("[")[0].split("."):
            if name == "creationTimestamp":
                break
            assert name in node["properties"], column
            node = node["properties"][name] if name != "metadata" else {"properties": {name: {}}}


def test_the_columns_are_those_of_the_design() -> None:
    assert {
        kind.short_name: [column.name.upper() for column in kind.columns if not column.priority]
        for kind in KINDS
    } == {
        "infsvc": ["READY", "REPLICAS", "CHECKPOINT", "SCORE", "URL", "REASON", "AGE"],
        "vrl": ["PHASE", "STEP", "REWARD", "SCORE", "BEST", "ETA", "AGE"],
        "ckpt": ["JOB", "STEP", "SCORE", "VERIFIED", "DIGEST", "AGE"],
        "ckptgrant": ["AGE"],
    }


def test_a_rollout_keeps_whatever_its_state_machine_writes() -> None:
    """The API server drops what a schema does not name, and with it the way to go on."""
    status = root_schema()["properties"]["status"]["properties"]
    for name in ("rollout", "served"):
        assert status[name]["x-kubernetes-preserve-unknown-fields"]
    assert status["rollout"]["properties"]["from"]["x-kubernetes-preserve-unknown-fields"]


@pytest.mark.parametrize(
    ("replicas", "wanted", "unavailable"), [(1, None, 0), (2, None, 1), (3, 0, 0), (1, 2, 2)]
)
def test_a_lone_replica_is_never_taken_away(
    replicas: int, wanted: int | None, unavailable: int
) -> None:
    spec = {**GOOD["InferenceService"], "replicas": replicas}
    spec["rollout"] = {} if wanted is None else {"maxUnavailable": wanted}
    assert api.InferenceServiceSpec.model_validate(spec).max_unavailable == unavailable


def test_the_gates_limits_are_the_verifiers() -> None:
    """A gate of the API is what `assay-verify gate` takes, with its defaults."""
    gate = Gate.model_validate(GATE)
    assert GateLimits.model_validate(gate.model_dump(include=set(GateLimits.model_fields))) == (
        GateLimits()
    )


@pytest.mark.parametrize(
    ("duration", "wanted"), [("0s", 0), ("90s", 90), ("30m", 1800), ("24h", 86400)]
)
def test_durations_are_seconds(duration: str, wanted: int) -> None:
    assert TypeAdapter(Duration).validate_python(duration) == duration
    assert seconds(duration) == wanted


def test_no_duration_is_beyond_what_a_date_can_be() -> None:
    longest = "9" * 7 + "h"
    assert TypeAdapter(Duration).validate_python(longest)
    assert datetime.now(UTC) + timedelta(seconds=seconds(longest))
    with pytest.raises(ValidationError):
        TypeAdapter(Duration).validate_python(f"9{longest}")


@pytest.mark.parametrize(
    ("verifiers", "is_weak"),
    [
        ([], False),
        ([{"type": "math"}], False),
        ([{"type": "http", "url": "http://a"}], True),
        ([{"type": "http", "url": "http://a"}, {"type": "math"}], False),
        ([{"type": "all", "parts": [{"type": "human", "labels": "a"}]}], True),
        ([{"type": "all", "parts": [{"type": "human", "labels": "a"}, {"type": "math"}]}], False),
        ([{"type": "format-first", "format": {"type": "regex"}, "then": {"type": "math"}}], False),
    ],
)
def test_verification_is_weak_where_nothing_proves(verifiers: list[Any], is_weak: bool) -> None:
    spec = VerifiedRLJobSpec.model_validate({**GOOD["VerifiedRLJob"], "verifiers": verifiers})
    assert weak(spec.verifiers) is is_weak


def test_a_wrong_field_of_a_verifier_is_told_with_its_place() -> None:
    bad = {**GOOD["VerifiedRLJob"], "verifiers": [{"type": "math", "timeout": -1}]}
    with pytest.raises(ValidationError) as error:
        VerifiedRLJobSpec.model_validate(bad)
    assert [each["loc"] for each in error.value.errors()] == [("verifiers", 0, "timeout")]


def test_the_types_are_those_that_the_verifiers_come_with() -> None:
    assert {*TYPES} == {
        *("all", "code", "format-first", "http", "human", "json", "logic", "math"),
        *("reasoning-gym", "regex", "reward-model", "weighted"),
    }


def test_a_generated_source_gives_no_parameter_twice() -> None:
    data = {"source": "reasoning-gym://number_sorting?seed=7&seed=8"}
    with pytest.raises(ValidationError, match="twice"):
        VerifiedRLJobSpec.model_validate({**GOOD["VerifiedRLJob"], "data": data})


@pytest.mark.parametrize(
    ("grant", "namespace", "job", "allowed"),
    [
        ({"from": [{"namespace": "a"}]}, "a", "solver", True),
        ({"from": [{"namespace": "a"}]}, "b", "solver", False),
        ({"from": [{"namespace": "a"}], "jobs": ["other"]}, "a", "solver", False),
        ({"from": [{"namespace": "b"}, {"namespace": "a"}], "jobs": ["solver"]}, "a", "solver", 1),
    ],
)
def test_a_grant_allows_what_it_names(
    grant: dict[str, Any], namespace: str, job: str, allowed: bool
) -> None:
    assert CheckpointGrantSpec.model_validate(grant).allows(namespace, job) is bool(allowed)
