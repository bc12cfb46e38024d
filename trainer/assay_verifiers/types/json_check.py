"""Structured output of documents: schema, expected values, rules, grounding. Runs in a worker."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonpath_rfc9535
import jsonschema
import jsonschema.exceptions
import jsonschema.validators
import referencing
import referencing.exceptions

from assay_verifiers.config import Grounding, JsonVerifier, Rule
from assay_verifiers.contract import Verdict, error, ok, unparsed, wrong
from assay_verifiers.jsontext import NoJson, answer_json
from assay_verifiers.types import cel_rules

_MOST_PROBLEMS = 5
_LONGEST_SHOWN = 120
_QUOTES_AND_DASHES = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u00ad": None,  # A soft hyphen is a hint of the typesetter's.
    }
)


@dataclass(frozen=True)
class Item:
    """What a reference says of one document."""

    source: str | None
    schema: str | None
    expected: dict[str, Any]
    variables: dict[str, Any]


@lru_cache(maxsize=64)
def configured(config: str) -> JsonVerifier:
    """A configuration with everything in it compiled and checked, once in each process.

    Raises:
        ValueError: its schema, a rule or a path is none; says which.
    """
    model = JsonVerifier.model_validate_json(config)
    if model.json_schema is not None:
        schema_validator(json.dumps(model.json_schema))
    for rule in model.rules:
        try:
            cel_rules.compiled(rule.cel)
        except ValueError as reason:
            raise ValueError(f"rule {rule.name!r} is no rule: {reason}") from None
    for grounding in model.grounding:
        _path(grounding.path)
    return model


@lru_cache(maxsize=256)
def schema_validator(schema: str) -> Any:
    """A validator of a JSON Schema: the draft that it names or the latest, formats asserted.

    Raises:
        ValueError: it is no JSON Schema, or asks for a format that cannot be checked.
    """
    value = json.loads(schema)
    kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(value)
    except jsonschema.exceptions.SchemaError as reason:
        raise ValueError(f"the schema is none: {reason.json_path}: {reason.message}") from None
    # By the standard a format that nothing checks passes; as a reward it would be a free one.
    if unchecked := sorted(_formats(value) - set(kind.FORMAT_CHECKER.checkers)):
        raise ValueError(f"the schema asks for the format {unchecked[0]!r}, which nothing checks")
    # An empty registry: by default a reference to a URL would be fetched from there.
    return kind(value, registry=referencing.Registry(), format_checker=kind.FORMAT_CHECKER)


def _formats(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_formats, schema))
    if not isinstance(schema, dict):
        return set()
    named = schema.get("format")
    return set().union(*map(_formats, schema.values()), [named] if isinstance(named, str) else [])


@lru_cache(maxsize=1024)
def _path(path: str) -> Any:
    try:
        return jsonpath_rfc9535.compile(path)
    except jsonpath_rfc9535.JSONPathError as reason:
        raise ValueError(f"{path!r} is no JSONPath: {reason}") from None


def check(config: str, reference: Any, completion: str) -> Verdict:
    """Judges one completion.

    Schema and grounding must hold for any credit: a quotation that the source does not hold is
    made up, whatever the sums say. Expected values and rules can be partial credit.

    Args:
        config: a `JsonVerifier` as JSON.
        reference: the item's.
        completion: the model's text.
    """
    try:
        model = configured(config)
        item = _item(reference, model)
    except (ValueError, cel_rules.Failed) as reason:
        return error(str(reason))
    try:
        output = answer_json(completion, model.maxDepth)
    except NoJson as reason:
        return unparsed(str(reason))
    try:
        if item.schema is not None and (problems := _schema_problems(item.schema, output)):
            return wrong(f"schema: {'; '.join(problems)}")
    except referencing.exceptions.Unresolvable as reason:
        return error(f"the schema refers to what is not in it: {reason}")

    # Grounding beside the rules, so that the detail is whole.
    made_up = [
        problem
        for grounding in model.grounding
        for problem in _grounding_problems(grounding, output, item.source or "")
    ]
    failed = [
        *((1.0, problem) for problem in _unexpected(item.expected, output)),
        *_broken_rules(model.rules, output, item.variables),
    ]
    if not made_up and not failed:
        return ok("every rule holds" if model.rules else "")
    share = 0.0
    if model.partial and not made_up:
        total = len(item.expected) + sum(rule.weight for rule in model.rules)
        share = max(0.0, 1 - sum(weight for weight, _ in failed) / total)
    return wrong("; ".join([*made_up, *(problem for _, problem in failed)]), share)


def _item(reference: Any, model: JsonVerifier) -> Item:
    """Reads a reference.

    Raises:
        ValueError: it lacks what the configuration needs, or something in it is of no use.
    """
    given = reference if isinstance(reference, dict) else {}
    source, expected, schema = given.get("source"), given.get("expected", {}), given.get("schema")
    if source is not None and not isinstance(source, str):
        raise ValueError("the reference's source is not a text")
    if not isinstance(expected, dict):
        raise ValueError("the reference's expected is not an object of values by JSONPath")
    for path in expected:
        _path(path)
    schema_text = json.dumps(model.json_schema if schema is None else schema)
    if schema_text != "null":
        schema_validator(schema_text)
    lacking = [name for name, value in (("source", source), ("data", given.get("data")))
               if value is None]  # fmt: skip
    if model.grounding and "source" in lacking:
        raise ValueError("the reference holds no source for the grounding")
    for rule in model.rules:
        for name in lacking:
            if cel_rules.uses(rule.cel, name):
                raise ValueError(f"rule {rule.name!r} uses {name}, which the reference lacks")
    variables = {"source": source, "reference": reference, "data": given.get("data")}
    if model.rules:
        variables = {name: cel_rules.plain(value) for name, value in variables.items()}
    return Item(source, None if schema_text == "null" else schema_text, expected, variables)


def _schema_problems(schema: str, output: Any) -> list[str]:
    found = list(schema_validator(schema).iter_errors(output))
    found.sort(key=lambda problem: problem.json_path)
    shown = [f"{problem.json_path}: {_cut(problem.message)}" for problem in found[:_MOST_PROBLEMS]]
    return shown + ([f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else [])


def _unexpected(expected: dict[str, Any], output: Any) -> Iterator[str]:
    for path, value in expected.items():
        query = _path(path)
        found = query.find(output).values()
        if query.singular_query():
            if not found:
                yield f"expected {path}: missing"
                continue
            found = found[0]
        if not equal(found, value):
            yield f"expected {path}: {_cut(json.dumps(found))} is not {_cut(json.dumps(value))}"


def equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are the same: numbers as numbers (1 is 1.0), true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def _broken_rules(
    rules: tuple[Rule, ...], output: Any, variables: dict[str, Any]
) -> Iterator[tuple[float, str]]:
    try:
        known = {"output": cel_rules.plain(output), **variables}
    except cel_rules.Failed as reason:
        yield from ((rule.weight, f"rule {rule.name!r}: {reason}") for rule in rules)
        return
    for rule in rules:
        try:
            cel_rules.require(rule.cel, known)
        except cel_rules.Failed as reason:
            yield rule.weight, f"rule {rule.name!r} {reason}"


def _grounding_problems(grounding: Grounding, output: Any, source: str) -> Iterator[str]:
    quotations = _path(grounding.path).find(output).values()
    if not quotations and grounding.required:
        yield f"grounding {grounding.path}: no quotation"
    for quotation in quotations:
        if not isinstance(quotation, str):
            yield f"grounding {grounding.path}: {_cut(json.dumps(quotation))} is not a text"
        elif len(normalised(quotation)) < grounding.minLength:
            yield f"grounding {grounding.path}: {quotation!r} is too short to prove anything"
        elif not grounded(quotation, source):
            yield f"grounding {grounding.path}: not in the source: {_cut(repr(quotation))}"


def normalised(text: str) -> str:
    """A text without what typesetting changes: white space, kinds of quotes and of dashes."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES_AND_DASHES).split())


def grounded(quotation: str, source: str) -> bool:
    """Whether a source holds a quotation, whole words and whole numbers: 5 mg is not in 15 mg.

    Letter case counts; white space and the kinds of quotes and dashes do not.
    """
    wanted = normalised(quotation)
    if not wanted:
        return False
    before = r"(?<!\w)" if _is_word(wanted[0]) else ""
    after = r"(?!\w)" if _is_word(wanted[-1]) else ""
    if wanted[0].isdecimal():
        before += r"(?<!\d[.,])"
    if wanted[-1].isdecimal():
        after += r"(?![.,]\d)"
    return re.search(before + re.escape(wanted) + after, normalised(source)) is not None


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
