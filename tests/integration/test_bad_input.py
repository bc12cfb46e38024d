"""What the API server refuses at `kubectl apply`, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.kube import Json, Kube, infsvc
from tests.refused import BEYOND, DIGEST, GOOD, REFUSED, Refused, changed, named


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
        (model(source="pvc://models/../../etc"), ["spec.model.source", "name the place itself"]),
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


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_spec_is_accepted(kube: Kube, kind: str) -> None:
    kube.kubectl(
        *("apply", "--dry-run=server", "-f", "-"),
        input=yaml.safe_dump(named(kind, "good", GOOD[kind])),
    )


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_fields_that_do_not_go_together_are_refused_with_a_remedy(
    kube: Kube, case: Refused
) -> None:
    assert case.says in kube.refusal(case.object)


@pytest.mark.parametrize(("kind", "path", "value"), BEYOND)
def test_what_is_beyond_its_bounds_is_refused(
    kube: Kube, kind: str, path: str, value: object
) -> None:
    message = kube.refusal(named(kind, "bad", changed(GOOD[kind], {path: value})))
    assert f"spec.{path.split('.', maxsplit=1)[0]}" in message


@pytest.mark.parametrize(
    ("kind", "length"), [("InferenceService", 45), ("VerifiedRLJob", 36), ("Checkpoint", 52)]
)
def test_names_from_which_others_are_made_are_short(kube: Kube, kind: str, length: int) -> None:
    assert "metadata.name" in kube.refusal(named(kind, "n" * (length + 1), GOOD[kind]))
    assert "beginning with a letter" in kube.refusal(named(kind, "1st", GOOD[kind]))
    longest = named(kind, "n" * length, GOOD[kind])
    kube.kubectl("apply", "--dry-run=server", "-f", "-", input=yaml.safe_dump(longest))


def test_a_checkpoint_cannot_be_changed(kube: Kube) -> None:
    first = named("Checkpoint", "fixed", GOOD["Checkpoint"])
    kube.apply(first)
    try:
        other = changed(GOOD["Checkpoint"], {"digest": DIGEST[:-1] + "0"})
        assert "cannot be changed" in kube.refusal(named("Checkpoint", "fixed", other))
        kube.apply(first)
    finally:
        kube.delete("ckpt", "fixed")


def test_a_jobs_storage_can_only_grow(kube: Kube) -> None:
    def job(**storage: str) -> Json:
        kept = {"checkpoint.storage": storage, "checkpoint.onDelete": "Delete"}
        spec = changed(GOOD["VerifiedRLJob"], kept)
        return named("VerifiedRLJob", "stored", spec)

    kube.apply(job(size="1Gi"))
    try:
        for bad in (
            job(size="1Mi"),
            job(claim="runs"),
            job(size="1Gi", className="fast"),
            job(size="1Gi", accessMode="ReadWriteOnce"),
        ):
            assert "cannot be changed" in kube.refusal(bad)
        kube.apply(job(size="2Gi"))
    finally:
        kube.delete("vrl", "stored")
