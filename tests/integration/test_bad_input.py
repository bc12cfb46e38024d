"""What the API server refuses at `kubectl apply`, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kube import Json, Kube, infsvc


def model(**fields: Any) -> Json:
    return {"model": {"source": "pvc://models/tiny", **fields}}


def engine(**fields: Any) -> Json:
    return {"engine": {"accelerator": "cpu", **fields}}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (engine(profile="gpt-9"), ["spec.engine.profile", '"deepseek-v3"']),
        (engine(accelerator="abacus"), ["spec.engine.accelerator", '"nvidia-h200"']),
        (engine(tuning="fast"), ["spec.engine.tuning", '"latency"']),
        ({"replicas": -1}, ["spec.replicas"]),
        ({"replicas": 1001}, ["spec.replicas", "between 0 and 1000"]),
        (model(source="http://x/y"), ["spec.model.source", "pvc://CLAIM/PATH"]),
        (model(source="pvc://models/../../etc"), ["spec.model.source", "name the folder itself"]),
        (model(source="pvc://Upper/x"), ["spec.model.source", "pvc://CLAIM/PATH"]),
        (model(source="oci://"), ["spec.model.source", "oci://IMAGE"]),
        (model(servedName="-x"), ["spec.model.servedName", "begin and end"]),
        (model(servedName="a b"), ["spec.model.servedName"]),
        (engine(extraArgs=["--port", "80"]), ["spec.engine.extraArgs", "--port"]),
        (engine(extraArgs=["--host=::"]), ["spec.engine.extraArgs", "--host"]),
        (engine(extraArgs=["--model-path", "/x"]), ["extraArgs", "spec.model.source"]),
        (engine(parallelism={"tensor": 16}), ["spec.engine.parallelism.tensor", "8"]),
        (engine(resources={"limits": {"memory": "much"}}), ["resources.limits.memory"]),
        ({"router": {"policy": "guess"}}, ["spec.router.policy", '"cache_aware"']),
        ({"replcas": 2}, ["replcas"]),
    ],
)
def test_a_bad_spec_is_refused_with_field_and_remedy(
    kube: Kube, spec: Json, says: list[str]
) -> None:
    message = kube.refusal(infsvc("bad", spec))
    for words in says:
        assert words in message


@pytest.mark.parametrize("name", ["1st", "a.b", "a" * 46])
def test_a_name_that_cannot_name_a_service_is_refused(kube: Kube, name: str) -> None:
    assert "name" in kube.refusal(infsvc(name, {}))


def test_the_longest_name_is_accepted_and_gets_its_children(kube: Kube) -> None:
    name = "n" * 45
    with kube.service(name, {"replicas": 0}):
        kube.kubectl("wait", f"infsvc/{name}", "--for=condition=Applied", "--timeout=60s")
        assert f"Deployment/{name}-engine" in kube.children(name)


def test_defaults_stand_in_the_object(kube: Kube) -> None:
    bare = infsvc("bare", {"replicas": 0})
    bare["spec"] = {"model": {"source": "oci://registry.example/m:v1"}, "replicas": 0}
    kube.apply(bare)
    try:
        spec = (kube.get("infsvc", "bare") or {})["spec"]
        assert spec["engine"]["profile"] == "auto"
        assert spec["router"] == {"replicas": 1, "policy": "cache_aware"}
    finally:
        kube.delete("infsvc", "bare")
