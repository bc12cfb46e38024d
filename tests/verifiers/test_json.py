"""Structured output of a document: schema, expected values, rules, evidence in the source."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay_verifiers.config import JsonVerifier
from assay_verifiers.contract import Task, Verdict
from assay_verifiers.jsontext import NoJson, answer_json
from assay_verifiers.registry import Bench, verify_one
from assay_verifiers.types.json_check import check, equal, grounded

INVOICE_TEXT = """INVOICE 2026-117
Date of issue: 3 March 2026    Due: 2 April 2026
Consulting, 3 days at 0.10 MEUR        0.30
Travel                                 10.10
Hotel \u2013 two nights                     20.20
Total                                  30.60"""
INVOICE = {
    "type": "json",
    "schema": {
        "type": "object",
        "required": ["issued", "due", "lines", "total"],
        "properties": {
            "issued": {"type": "string", "format": "date"},
            "due": {"type": "string", "format": "date"},
            "total": {"type": "number", "minimum": 0},
            "lines": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "required": ["text", "amount"]},
            },
        },
        "additionalProperties": False,
    },
    "rules": [
        {"name": "total", "cel": "output.total == sum(output.lines.map(l, l.amount))"},
        {"name": "dates in order", "cel": "date(output.issued) <= date(output.due)", "weight": 3},
        {"name": "unit prices", "cel": "output.lines.all(l, !has(l.quantity) || "
         "round(l.quantity * l.price, 2) == l.amount)"},
    ],
    "grounding": [{"path": "$.lines[*].text", "minLength": 4}],
}  # fmt: skip
RIGHT_INVOICE: dict[str, Any] = {
    "issued": "2026-03-03",
    "due": "2026-04-02",
    "total": 30.6,
    "lines": [
        {"text": "Consulting, 3 days", "quantity": 3, "price": 0.1, "amount": 0.3},
        {"text": "Travel", "amount": 10.1},
        {"text": "Hotel - two nights", "amount": 20.2},
    ],
}

LETTER = "Discharge letter. Start ramipril 5 mg daily; stop ibuprofen. Creatinine 1.4 mg/dl."
MEDICATION = {
    "type": "json",
    "rules": [
        {"name": "no drug both started and stopped",
         "cel": "output.start.all(d, !(d.name in output.stop.map(s, s.name)))"},
        {"name": "dose within the limit",
         "cel": "output.start.all(d, d.name in data.max_mg && d.mg <= data.max_mg[d.name])"},
    ],
    "grounding": [{"path": "$.start[*].evidence"}, {"path": "$.stop[*].evidence"}],
}  # fmt: skip
MEDICATION_REFERENCE = {
    "source": LETTER,
    "data": {"max_mg": {"ramipril": 10}},
    "expected": {"$.start[*].name": ["ramipril"], "$.start[0].mg": 5},
}
RIGHT_MEDICATION: dict[str, Any] = {
    "start": [{"name": "ramipril", "mg": 5.0, "evidence": "Start ramipril 5 mg daily"}],
    "stop": [{"name": "ibuprofen", "evidence": "stop ibuprofen"}],
}

CONTRACT = """\u00a7 7 Term. This agreement runs for 24 months from 1 January 2026. Either party may
terminate it with \u201cthree months\u2019 notice\u201d.
\u00a7 12 Liability is limited to EUR 50,000."""
CLAUSES = {
    "type": "json",
    "rules": [
        {"name": "end follows from start and term",
         "cel": "timestamp(output.end + 'T00:00:00Z') > timestamp(output.start + 'T00:00:00Z') "
         "&& output.months == 24.0"},
        {"name": "clauses exist", "cel": "output.clauses.all(c, source.contains(c.number))"},
    ],
    "grounding": [{"path": "$.clauses[*].quote", "minLength": 10}],
}  # fmt: skip
RIGHT_CLAUSES: dict[str, Any] = {
    "start": "2026-01-01",
    "end": "2027-12-31",
    "months": 24,
    "clauses": [
        {
            "number": "\u00a7 7",
            "quote": 'Either party may terminate it with "three months\' notice"',
        },
        {"number": "\u00a7 12", "quote": "Liability is limited to EUR 50,000"},
    ],
}


def judge(config: dict[str, Any], reference: Any, output: Any, **more: Any) -> Verdict:
    text = output if isinstance(output, str) else json.dumps(output)
    return check(json.dumps({**config, **more}), reference, text)


def changed(value: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(value)), **fields}


@pytest.mark.parametrize(
    ("config", "reference", "output"),
    [
        (INVOICE, {"source": INVOICE_TEXT}, RIGHT_INVOICE),
        (MEDICATION, MEDICATION_REFERENCE, RIGHT_MEDICATION),
        (CLAUSES, {"source": CONTRACT}, RIGHT_CLAUSES),
    ],
)
async def test_a_right_reading_of_a_document_is_ok(
    bench: Bench, config: dict[str, Any], reference: Any, output: Any
) -> None:
    verifier = bench.verifier(JsonVerifier.model_validate(config))
    completion = f"Here it is:\n```json\n{json.dumps(output, indent=1)}\n```"
    verdict = await verify_one(verifier, Task("a", reference=reference), completion)
    assert (verdict.score, verdict.status) == (1, "ok"), verdict.detail


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"total": 31.6}, ["rule 'total' is false", "output.total = 31.6", "= 30.6"]),
        ({"due": "2026-03-01"}, ["rule 'dates in order' is false", "2026-03-01"]),
        ({"due": "1 March"}, ["schema", "$.due", "date"]),
        ({"total": "30.6"}, ["schema", "$.total", "number"]),
        ({"paid": True}, ["schema", "paid"]),
        ({"lines": []}, ["schema", "$.lines"]),
        (
            {"lines": [{"text": "Travel", "amount": 30.6, "quantity": 3, "price": 10.1}]},
            ["rule 'unit prices' is false"],
        ),
        ({"lines": [{"text": "Travel", "amount": "30.6"}]}, ["'total' cannot", "not a number"]),
        ({"lines": [{"text": "Champagne", "amount": 30.6}]}, ["not in the source", "Champagne"]),
    ],
)
def test_an_invoice_that_is_wrong_is_told_which_rule_failed_and_how(
    change: dict[str, Any], says: list[str]
) -> None:
    verdict = judge(INVOICE, {"source": INVOICE_TEXT}, changed(RIGHT_INVOICE, **change))
    assert (verdict.score, verdict.status) == (0, "wrong")
    for text in says:
        assert text in verdict.detail


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"mg": 50}, "$.start[0].mg: 50 is not 5"),
        ({"evidence": "Start ramipril 5 mg"}, None),
        ({"evidence": "ramipril 5 mg daily; stop ibuprofen"}, None),
        ({"evidence": "mg daily"}, None),
        ({"evidence": "4 mg/dl"}, "not in the source"),
        ({"evidence": "ramipril  5\nmg"}, None),
        ({"evidence": "start ramipril"}, "not in the source"),
        ({"evidence": ""}, "too short"),
        ({"evidence": 5}, "not a text"),
        ({"name": "ibuprofen"}, "both started and stopped"),
    ],
)
def test_a_medication_list_must_be_grounded_and_safe(
    start: dict[str, Any], says: str | None
) -> None:
    output = changed(RIGHT_MEDICATION)
    output["start"][0] |= start
    verdict = judge(MEDICATION, MEDICATION_REFERENCE, output)
    assert verdict.status == ("ok" if says is None else "wrong"), verdict.detail
    assert says is None or says in verdict.detail


def test_a_missing_field_fails_the_rule_that_needs_it() -> None:
    output = changed(RIGHT_CLAUSES)
    del output["end"]
    verdict = judge(CLAUSES, {"source": CONTRACT}, output)
    assert verdict.status == "wrong"
    assert "rule 'end follows from start and term' cannot be evaluated" in verdict.detail
    assert '"end"' in verdict.detail


def test_evidence_that_is_missing_altogether_is_wrong_unless_it_is_optional() -> None:
    output = changed(RIGHT_CLAUSES, clauses=[])
    assert judge(CLAUSES, {"source": CONTRACT}, output).status == "wrong"
    optional = [{"path": "$.clauses[*].quote", "required": False}]
    assert judge(CLAUSES, {"source": CONTRACT}, output, grounding=optional).status == "ok"


def test_the_share_of_rules_is_partial_credit_only_where_that_is_configured() -> None:
    output = changed(RIGHT_INVOICE, total=31)
    reference = {"source": INVOICE_TEXT}
    assert judge(INVOICE, reference, output).score == 0
    assert judge(INVOICE, reference, output, partial=True).score == pytest.approx(4 / 5)
    made_up = changed(output, lines=[{"text": "Champagne", "amount": 31}])
    assert judge(INVOICE, reference, made_up, partial=True).score == 0


@pytest.mark.parametrize("written", ["100", "100.0", "1e2", "1.00E+2"])
def test_how_a_number_is_written_decides_nothing(written: str) -> None:
    rules = [
        {"name": "adds up", "cel": "output.net + output.tax == output.gross"},
        {"name": "index", "cel": "output.list[0] == output.net"},
    ]
    output = f'{{"net": {written}, "tax": 7.5, "gross": 107.5, "list": [{written}]}}'
    verdict = judge({"type": "json", "rules": rules}, {"expected": {"$.net": 100}}, output)
    assert verdict.status == "ok", verdict.detail


def test_numbers_too_large_to_compare_exactly_prove_nothing() -> None:
    rules = [{"name": "same", "cel": "output.a == output.b"}]
    verdict = judge({"type": "json", "rules": rules}, None, {"a": 2**53 + 1, "b": 2**53 + 2})
    assert verdict.status == "wrong"
    assert "too large" in verdict.detail


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rules": [{"name": "typo", "cel": "outptu.total > 1"}]}, "'typo'.*outptu"),
        ({"rules": [{"name": "cut", "cel": "output.total =="}]}, "'cut'"),
        ({"rules": [{"name": "number", "cel": "1 + 1"}]}, "'number'.*true or false"),
        ({"schema": {"type": "objekt"}}, "schema"),
        ({"schema": {"items": [{"format": "iban"}]}}, "schema"),
        ({"schema": {"properties": {"a": {"format": "iban"}}}}, "'iban'"),
        ({"grounding": [{"path": "$..["}]}, "JSONPath"),
    ],
)
async def test_what_does_not_compile_is_refused_before_any_item(
    bench: Bench, config: dict[str, Any], says: str
) -> None:
    model = JsonVerifier.model_validate({"type": "json", **config})
    with pytest.raises(ValueError, match=f"(?s){says}"):
        bench.verifier(model)


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (INVOICE, None),
        (INVOICE, {"source": 5}),
        (CLAUSES, {"text": CONTRACT}),
        (MEDICATION, {"source": LETTER}),
        (MEDICATION, {**MEDICATION_REFERENCE, "expected": ["ramipril"]}),
        (MEDICATION, {**MEDICATION_REFERENCE, "expected": {"name": 1}}),
        (MEDICATION, {**MEDICATION_REFERENCE, "schema": {"type": "objekt"}}),
        ({"type": "json", "schema": {"$ref": "http://localhost/schema"}}, None),
    ],
)
def test_a_broken_item_is_an_error_whatever_the_answer(
    config: dict[str, Any], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A schema is never fetched from where it says that it lies: this one would allow anything.
    monkeypatch.setattr("urllib.request.urlopen", lambda *_: io.BytesIO(b"{}"))
    verdict = judge(config, reference, {})
    assert (verdict.score, verdict.status) == (0, "error"), verdict.detail


def test_the_references_schema_goes_before_the_configurations() -> None:
    reference = {"schema": {"type": "object", "required": ["b"]}}
    config = {"type": "json", "schema": {"type": "object", "required": ["a"]}}
    assert judge(config, reference, {"b": 1}).status == "ok"
    assert judge(config, reference, {"a": 1}).status == "wrong"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", "2026-02-28", "2026-02-30"),
        ("time", "12:00:00Z", "25:00:00Z"),
        ("date-time", "2026-02-28T12:00:00Z", "2026-02-28 noon"),
        ("email", "a@b.org", "a.b.org"),
        ("uri", "https://b.org/a", "b.org/a b"),
        ("ipv4", "10.0.0.1", "10.0.0.256"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
    ],
)
def test_formats_are_asserted(name: str, right: str, wrong: str) -> None:
    config = {"type": "json", "schema": {"properties": {"a": {"format": name}}}}
    assert judge(config, None, {"a": right}).status == "ok"
    assert judge(config, None, {"a": wrong}).status == "wrong"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ("[1, 2]", [1, 2]),
        ('First {"a": 1}, no: {"a": {"b": 2}}.', {"a": {"b": 2}}),
        ('It\'s 5" wide: {"a": "}\\"{"} as said', {"a": '}"{'}),
        ('```json\n{"a": 1}\n```\nor {"a": 2}', {"a": 1}),
        ('```\n{"a": 1}\n```\n```json\n{"a": 2}\n```\n```python\nx = {}\n```', {"a": 2}),
        ('<think>{"a": 1}</think>{"a": 2}', {"a": 2}),
        ('```json\n{"a": 1}', {"a": 1}),
    ],
)
def test_exactly_one_place_of_a_text_is_its_json(text: str, value: Any) -> None:
    assert answer_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "no JSON here",
        "42",
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "{" * 500_000,
        '"\\' * 300_000,
        "x" * (1 << 20) + '{"a": 1}',
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": -Infinity}',
        '{"a": 1e400}',
        '{"a": ' + "9" * 100_000 + "}",
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        '{"a": 1,}',
        "{'a': 1}",
        '{"a": \u0661}',
        '{"a": 1} // {"b":',
        '{"cut": {"a": 1}',
        "```json\nnot json\n```",
    ],
)
def test_what_is_no_strict_json_is_unparsed(text: str) -> None:
    verdict = judge({"type": "json"}, None, text)
    assert (verdict.score, verdict.status) == (0, "unparsed"), verdict.detail


def test_depth_is_bounded_by_the_configuration() -> None:
    assert judge({"type": "json", "maxDepth": 3}, None, {"a": [[1]]}).status == "ok"
    assert judge({"type": "json", "maxDepth": 2}, None, {"a": [[1]]}).status == "unparsed"
    deepest = '{"a":' * 127 + "{}" + "}" * 127
    config = {"type": "json", "maxDepth": 128, "schema": {"$ref": "#/$defs/n", "$defs": {
        "n": {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}}},
        "rules": [{"name": "x", "cel": "has(output.a)"}]}  # fmt: skip
    assert judge(config, {"expected": {"$.a.a": 1}}, deepest).status == "wrong"


@pytest.mark.parametrize(
    ("quotation", "holds"),
    [
        ("5 mg", False),
        ("15 mg", True),
        ("take 15", True),
        ("0.5", False),
        ("10.5", True),
        ("10", False),
        ("1,000", False),
        ("21,000", True),
        ("Dose", True),
        ("dose", False),
        ("it\u2019s fine \u2014 really", True),
        ("", False),
        (" ", False),
    ],
)
def test_a_quotation_stands_in_the_source_as_whole_words_and_numbers(
    quotation: str, holds: bool
) -> None:
    source = "Dose: take 15 mg,\n 10.5 or 21,000;  it's fine -\treally."
    assert grounded(quotation, source) is holds


def test_true_is_not_one() -> None:
    assert equal({"a": [1, None]}, {"a": [1.0, None]})
    assert not equal(True, 1)
    assert not equal([0], [False])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet='{}[]":,\\`json\n 12eE.-tru/<>think', max_size=200)))
def test_reading_json_never_fails_otherwise_than_by_saying_so(text: str) -> None:
    try:
        value = answer_json(text)
    except NoJson:
        return
    json.dumps(value, allow_nan=False).encode()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=5), st.booleans())
def test_json_that_was_written_is_read_as_it_was(value: dict[str, Any], fenced: bool) -> None:
    text = json.dumps(value, allow_nan=False)
    if any(
        "\ud800" <= character <= "\udfff" for character in json.dumps(value, ensure_ascii=False)
    ):
        return
    if any(mark in text for mark in ("Infinity", "</think>")):
        return
    assert answer_json(f"So:\n```json\n{text}\n```\n" if fenced else f"So {text} it is.") == value


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_no_value_makes_a_rule_fail_otherwise_than_by_saying_so(value: Any) -> None:
    verdict = judge(CLAUSES, {"source": CONTRACT}, {**RIGHT_CLAUSES, "months": value})
    assert verdict.status in ("ok", "wrong", "unparsed")
    assert (verdict.status == "ok") == (equal(value, 24))
