"""Criteria end in bounded time and read nothing but the answer, whatever schema or answer says."""

import json
import time

import pytest

from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.judgement import Example

ASKED = [{"role": "user", "content": "q"}]
NEARLY = "a" * 40 + "!"


def judge(spec, answer):
    [judgement] = criterion_named(spec).judge([Example(ASKED, answer)])
    return judgement


def schema(**keywords):
    return {"name": "json", "json_schema": keywords}


@pytest.mark.parametrize(
    ("spec", "answer"),
    [
        ({"name": "regex", "pattern": "^(a|aa)+$"}, NEARLY),
        (schema(type="string", pattern="^(a|aa)+$"), json.dumps(NEARLY)),
        (schema(patternProperties={"^(a|aa)+$": False}), json.dumps({NEARLY: 1})),
        (
            schema(patternProperties={"^(a|aa)+$": {}}, additionalProperties=False),
            json.dumps({NEARLY: 1}),
        ),
    ],
)
def test_an_expression_without_end_makes_no_judgement(spec, answer):
    start = time.process_time()
    judgement = judge(spec, answer)
    assert judgement.passed is None and "took more than 1 s" in (judgement.explanation or "")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "other.json#/$defs/a"]
)
def test_another_document_is_refused_by_name(target):
    with pytest.raises(UserError, match=r"\$\.properties\.a\.\$ref: .* is not fetched"):
        criterion_named(schema(properties={"a": {"$ref": target}}))


def test_a_schema_that_cannot_be_decided_makes_no_judgement():
    without_end = judge(schema(**{"$ref": "#"}), "1")
    assert without_end.passed is None and "without end" in (without_end.explanation or "")
    missing = judge(schema(**{"$ref": "#/$defs/a"}), "1")
    assert missing.passed is None and "'/$defs/a'" in (missing.explanation or "")


@pytest.mark.parametrize("pattern", ["(", "[", "a{2,1}"])
def test_what_is_no_expression_is_refused(pattern):
    for spec in ({"name": "regex", "pattern": pattern}, schema(pattern=pattern)):
        with pytest.raises(UserError, match="is no regular expression"):
            criterion_named(spec)


def test_keywords_with_expressions_follow_the_specification():
    """Cases of JSON Schema's own test suite: pattern, patternProperties, additionalProperties."""
    pattern = schema(pattern="^a*$")
    assert [judge(pattern, text).passed for text in ('"aaa"', '"abc"', "true")] == [
        True,
        False,
        True,
    ]
    assert judge(schema(pattern="a+"), '"xxaayy"').passed
    by_name = schema(patternProperties={"f.*o": {"type": "integer"}})
    assert judge(by_name, '{"foo": 1}').passed
    assert not judge(by_name, '{"foo": "bar", "fooooo": 2}').passed
    closed = schema(
        properties={"foo": {}, "bar": {}}, patternProperties={"^v": {}}, additionalProperties=False
    )
    assert judge(closed, '{"foo": 1}').passed and judge(closed, "[1, 2, 3]").passed
    assert judge(closed, '{"foo": 1, "vroom": 2}').passed
    refused = judge(closed, '{"foo": 1, "bar": 2, "quux": "boom"}')
    assert refused.passed is False and "'quux'" in (refused.explanation or "")
    typed = schema(properties={"foo": {}}, additionalProperties={"type": "boolean"})
    assert judge(typed, '{"foo": 1, "quux": true}').passed
    assert not judge(typed, '{"foo": 1, "quux": 12}').passed


def test_an_answer_nested_to_the_reader_s_limit_is_judged():
    deep = "[" * 900 + '"q"' + "]" * 900
    assert judge({"name": "extracted"}, deep).passed
