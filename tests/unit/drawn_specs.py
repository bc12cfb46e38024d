"""Specs drawn at random from a CRD's own schema, so that no field is forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from math import gcd
from typing import Any

from hypothesis import strategies as st

from assay_operator.api.schema import Kind, crd

Json = dict[str, Any]

_MATCHES = re.compile(r"self\.matches\(r?'\^(.*)\$'\)")
_ANYTHING = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), max_size=2)

SOFT: tuple[Json, ...] = (
    {"type": "http", "url": "http://judge.example", "retry": {"attempts": 20}},
    {"type": "reward-model", "url": "https://judge.example", "scale": [-1, 1], "threshold": 1},
    {"type": "human", "labels": "/labels.jsonl"},
)
HARD: tuple[Json, ...] = (
    {"type": "math"},
    {"type": "math", "timeout": 3600, "answer": "boxed", "absoluteTolerance": 0},
    {"type": "code", "command": ["node", "{file}"], "limits": {"memoryMiB": 16}},
    {"type": "logic", "unique": True},
    {"type": "reasoning-gym", "dataset": "number_sorting", "threshold": 0.5},
    {
        "type": "json",
        "schema": {"type": "object", "properties": {"a": {"minimum": 1}}},
        "rules": [{"name": "sum", "cel": "output.a > 0", "weight": 2}],
        "grounding": [{"path": "$.a"}],
    },
    {"type": "regex", "pattern": "^a$", "group": 1},
)


def numbers(node: Json) -> st.SearchStrategy[int | float]:
    """Within the bounds of a node, and often at them."""
    if node["type"] == "integer":
        least = node.get("minimum", 0) + bool(node.get("exclusiveMinimum"))
        # What has no bound is bounded by a rule: no test needs more.
        most = node.get("maximum", 1000) - bool(node.get("exclusiveMaximum"))
        return st.sampled_from([least, most]) | st.integers(least, most)
    low, high = float(node.get("minimum", 0)), float(node.get("maximum", 1e9))
    return st.floats(
        low,
        high,
        exclude_min=bool(node.get("exclusiveMinimum")),
        exclude_max=bool(node.get("exclusiveMaximum")),
    )


def strings(node: Json) -> st.SearchStrategy[str]:
    """As its rules have it."""
    least, most = node.get("minLength", 0), node.get("maxLength", 16)
    found = [
        match[1]
        for rule in node.get("x-kubernetes-validations", ())
        if (match := _MATCHES.fullmatch(rule["rule"]))
    ]
    if not found:
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=most)
    matching = st.from_regex(found[0], fullmatch=True, alphabet=st.characters(codec="ascii"))
    return matching.filter(lambda text: len(text) <= most and not {".", ".."} & {*text.split("/")})


def values(node: Json) -> st.SearchStrategy[Any]:
    """Values of one node of a structural schema."""
    if "enum" in node:
        return st.sampled_from(node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return st.integers(0, 64) | st.sampled_from(["500m", "1.5", "16Gi"])
    return _OF_TYPE[node["type"]](node)


def lists(node: Json) -> st.SearchStrategy[list[Any]]:
    """Short ones."""
    if "weight" in node["items"].get("properties", ()):
        return verifiers()
    most = min(node.get("maxItems", 3), 3)
    return st.lists(values(node["items"]), min_size=node.get("minItems", 0), max_size=most)


def maps(node: Json) -> st.SearchStrategy[Json]:
    """Objects with fields that are named, with names of one's own, or with anything."""
    if "properties" in node:
        return objects(node)
    inner = node.get("additionalProperties")
    if not inner:
        return _ANYTHING
    names = st.sampled_from(["cpu", "memory", "example.com/disk"])
    return st.dictionaries(names, values(inner), max_size=2)


_OF_TYPE: dict[str, Callable[[Json], st.SearchStrategy[Any]]] = {
    "boolean": lambda _: st.booleans(),
    "integer": numbers,
    "number": numbers,
    "string": strings,
    "array": lists,
    "object": maps,
}


def objects(node: Json) -> st.SearchStrategy[Json]:
    """Objects with all that they need, and some of what they may have."""
    drawn = {name: values(child) for name, child in node["properties"].items()}
    needed = set(node.get("required", ()))
    return st.fixed_dictionaries(
        {name: drawn[name] for name in drawn if name in needed},
        optional={name: drawn[name] for name in drawn if name not in needed},
    )


@cache
def part(kind: Kind, *path: str) -> st.SearchStrategy[Any]:
    """Values of a field of a kind's spec, or of all of the spec. Made once: that takes a while."""
    node: Json = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name in ("spec", *path):
        node = node["properties"][name]
    return values(node)


def verifiers(unique: bool = True) -> st.SearchStrategy[list[Json]]:
    """Lists of verifiers of every type, within each other too; each with a name of its own."""
    within = st.recursive(
        st.sampled_from(SOFT + HARD),
        lambda inner: (
            st.builds(lambda parts: {"type": "all", "parts": parts}, st.lists(inner, min_size=1))
            | st.builds(
                lambda parts: {"type": "weighted", "parts": [{"verifier": each} for each in parts]},
                st.lists(inner, min_size=1),
            )
            | st.builds(lambda a, b: {"type": "format-first", "format": a, "then": b}, inner, inner)
        ),
        max_leaves=4,
    )
    share = st.fixed_dictionaries(
        {}, optional={"weight": st.floats(0, 1e6, exclude_min=True), "name": st.text(min_size=1)}
    )
    one = st.builds(lambda verifier, own: {**verifier, **own}, within, share)
    name = (lambda each: each.get("name", each["type"])) if unique else None
    return st.lists(one, max_size=3, unique_by=name)


def fitting(spec: Json) -> Json:
    """The same with fields that go together, where they only happened not to.

    What is missing counts with its default; so what is put right is written out.
    """
    steps = spec["trainer"]["steps"]
    every = spec["checkpoint"]["every"] = min(spec["checkpoint"].get("every", 20), steps)
    if "evaluation" in spec:
        weighed = min(spec["evaluation"].get("every", 20), steps)
        if weighed % every and every % weighed:
            weighed = every
        spec["evaluation"]["every"] = weighed
    trainer = spec["trainer"]
    trainer["warmupSteps"] = min(trainer.get("warmupSteps", 0), steps)
    trainer["updatesPerStep"] = gcd(
        trainer.get("updatesPerStep", 1), trainer.get("promptsPerStep", 64)
    )
    if trainer.get("accelerator") == "cpu":
        trainer["gpusPerNode"] = 1
        if trainer.get("kernels") == "fused":
            del trainer["kernels"]
    _exact_or_not(trainer, spec.setdefault("rollout", {}).setdefault("engine", {}))
    longest = spec["data"].get("maxPromptTokens", 1024)
    longest += spec.get("rollout", {}).get("maxTokens", 512)
    trainer["tokensPerMicroBatch"] = max(trainer.get("tokensPerMicroBatch", 0), longest)
    if "contextLength" in spec["model"]:
        spec["model"]["contextLength"] = max(spec["model"]["contextLength"], longest)
    return _fitting_parts(spec)


def _fitting_parts(spec: Json) -> Json:
    data, algorithm = spec["data"], spec.get("algorithm", {})
    place = next((name for name in ("source", "configMap", "claim") if name in data), "source")
    if place == "source":
        data.setdefault("source", "reasoning-gym://number_sorting")
    _only(data, place, {"source": (), "configMap": ("key", "split"), "claim": ("path", "split")})
    if place == "claim":
        data.setdefault("path", "data.jsonl")
    if evaluation := spec.get("evaluation"):
        suite = evaluation["suite"]
        where = "configMap" if "configMap" in suite else "source"
        suite.setdefault("source", "reasoning-gym://number_sorting?seed=8")
        _only(suite, where, {"source": (), "configMap": ("key",)})
        if where == "source":
            evaluation.pop("split", None)
    storage = spec["checkpoint"]["storage"]
    kept = "claim" if "claim" in storage else "size"
    storage.setdefault("size", "1Gi")
    _only(storage, kept, {"claim": (), "size": ("className", "accessMode")})
    if algorithm.get("name") != "reinforce++" and algorithm.get("groupSize") == 1:
        algorithm["groupSize"] = 2
    if algorithm.get("groupSize") == 1:
        spec.get("rollout", {}).pop("resampleRounds", None)
    if "clip" in algorithm:
        algorithm["clip"] = [min(max(algorithm["clip"][0], 1e-9), 1), max(algorithm["clip"][1], 1)]
        algorithm["clip"][1] = min(algorithm["clip"][1], 1e6)
    if correction := algorithm.get("importanceCorrection"):
        of_type = {"tis": ("cap",), "icepop": ("alpha", "beta"), "none": ()}
        _only(correction, correction.get("type", "tis"), of_type)
    engine = spec.get("rollout", {}).get("engine", {})
    # Any text could be an argument that Assay sets itself.
    engine.pop("extraArgs", None)
    for node in (data, spec.get("evaluation", {}).get("suite", {})):
        if "source" in node:
            node["source"] = _once(node["source"])
    return spec


def _exact_or_not(trainer: Json, engine: Json) -> None:
    """Both deterministic or neither, and that only where it can be."""
    cannot = [
        "cpu" in (trainer.get("accelerator"), engine.get("accelerator")),
        "stock" in (trainer.get("kernels"), engine.get("kernels")),
        trainer.get("precision") == "fp32",
    ]
    exact = trainer.get("deterministic", False) and not any(cannot)
    trainer["deterministic"] = engine["deterministic"] = exact


def _once(source: str) -> str:
    """Without a parameter that was drawn twice."""
    name, _, query = source.partition("?")
    pairs = {pair.partition("=")[0]: pair for pair in query.split("&")}
    return "?".join([name, "&".join(pairs.values())] if query else [name])


def _only(node: Json, chosen: str, belongs: dict[str, tuple[str, ...]]) -> None:
    """Drops the alternatives to `chosen`, and what belongs to them alone."""
    for name, companions in belongs.items():
        if name != chosen:
            node.pop(name, None)
            for each in companions:
                if each not in belongs[chosen]:
                    node.pop(each, None)
