"""Ready criteria on answers judged by hand, and how criteria are named."""

import json

import pytest
from pydantic import BaseModel

from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.length_limits import count, limits_of
from jaxdpo.evaluation.criteria.spec import Criteria, criterion_named
from jaxdpo.evaluation.judgement import Example, Judgement
from tests.folders import tokenizer

NOTE = "The hall opens at 9, costs 1.50 euros and seats 60. Answer in at most five words."
SCHEMA = {
    "type": "object",
    "properties": {"opens": {"type": "integer"}},
    "required": ["opens"],
    "additionalProperties": False,
}


def judged(spec, completion, metadata=None, said=NOTE):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": said}]
    return criterion_named(spec).score(messages, completion, metadata or {})


@pytest.mark.parametrize(
    ("spec", "completion", "metadata", "passed"),
    [
        ("word_limit", "It opens at nine o'clock.", {}, True),
        ("word_limit", "It opens at nine o'clock sharp.", {}, False),
        ({"name": "word_limit", "limit": 2}, "At nine.", {}, True),
        ({"name": "word_limit", "limit": 2}, "", {}, True),
        ("sentence_limit", "At nine.", {}, None),
        ({"name": "sentence_limit", "limit": 2}, "It does. At 9! Come", {}, False),
        ({"name": "sentence_limit", "limit": 2}, "It costs 1.50 euros. Come", {}, True),
        ({"name": "regex", "pattern": r"\b\d+\b"}, "At 9.", {}, True),
        ({"name": "regex", "pattern": r"\A\d+\Z"}, "At 9.", {}, False),
        ({"name": "contains", "texts": ["opens", "9"]}, "It opens at 9.", {}, True),
        ({"name": "contains", "texts": ["Opens", "9"]}, "It opens at 9.", {}, False),
        ({"name": "contains", "texts": ["Opens"], "ignore_case": True}, "It opens.", {}, True),
        ({"name": "excludes", "texts": ["sorry", "I am"]}, "It opens.", {}, True),
        ({"name": "excludes", "texts": ["sorry", "I am"]}, "I am glad.", {}, False),
        ("json", '{"opens": 9}', {}, True),
        ("json", '```json\n{"opens": 9}\n```', {}, False),
        ("json", '{"opens": NaN}', {}, False),
        ("json", '{"opens": 9} and so on', {}, False),
        ({"name": "json", "json_schema": SCHEMA}, '{"opens": 9}', {}, True),
        ({"name": "json", "json_schema": SCHEMA}, '{"opens": "9"}', {}, False),
        ({"name": "json", "json_schema": SCHEMA}, '{"opens": 9, "a": 1}', {}, False),
        ({"name": "equals", "field": "answer"}, "The  Hobart!", {"answer": "hobart"}, True),
        ({"name": "equals", "field": "answer"}, "9", {"answer": 9}, True),
        ({"name": "equals", "field": "answer"}, "ten", {"answer": ["9", "nine"]}, False),
        ({"name": "equals", "field": "answer"}, "nine", {"answer": ["9", "nine"]}, True),
        ({"name": "equals", "field": "answer", "normalise": False}, "Nine", {"answer": "nine"},
         False),
        ({"name": "equals", "field": "answer"}, "nine", {}, None),
        ("extracted", '{"opens": 9, "price": 1.50, "place": "hall"}', {}, True),
        ("extracted", '{"opens": 9, "price": 1.5e0}', {}, False),
        ("extracted", '{"opens": 10}', {}, False),
        ("extracted", '[{"who": ["hall", "Hall"]}]', {}, False),
        ("extracted", '{"open": true, "who": null}', {}, True),
        ("extracted", "9", {}, True),
        ("extracted", "nine", {}, False),
        ({"name": "extracted", "source": "text"}, '{"a": "b"}', {"text": "abc"}, True),
        ({"name": "extracted", "source": "text"}, '{"a": "b"}', {}, None),
        ({"name": "similarity", "field": "gold"}, "It opens at 9", {"gold": "It opens, at 9."},
         True),
        ({"name": "similarity", "field": "gold"}, "No idea", {"gold": "It opens at 9."}, False),
        ({"name": "similarity", "field": "gold"}, "No idea", {}, None),
    ],
)  # fmt: skip
def test_ready_criteria(spec, completion, metadata, passed):
    judgement = judged(spec, completion, metadata)
    assert judgement.passed is passed
    assert judgement.judged == (passed is not None)
    assert judgement.explanation


def test_scores():
    # Three of four values stand in the note.
    said = judged("extracted", '{"a": 9, "b": 60, "c": "hall", "d": 61}')
    assert (said.score, said.explanation) == (0.75, "not in the source: '61'")
    # Two of the words "it opens at 9" and "it closes at" match: 2 * 2 / 7.
    said = judged({"name": "similarity", "field": "f"}, "It opens at 9", {"f": "It closes at"})
    assert said.score == pytest.approx(4 / 7)


def test_tokens_are_counted_by_the_models_own_tokenizer(tmp_path):
    own = tokenizer([NOTE] * 3)
    own.save_pretrained(tmp_path)
    text = "It opens at 9."
    length = len(own(text, add_special_tokens=False)["input_ids"])
    for limit, passed in ((length, True), (length - 1, False)):
        spec = {"name": "token_limit", "limit": limit, "tokenizer": str(tmp_path)}
        assert judged(spec, text).passed is passed


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("Answer in at most 5 words.", {5}),
        ("Use no more than twelve words, please", {12}),
        ("In fewer than 20 words: why?", {19}),
        ("under 100 words", {99}),
        ("Answer in 50 words or less.", {50}),
        ("a 30-word limit", {30}),
        ("Up to 1,000 words", {1000}),
        ("Limit your answer to 7 words", {7}),
        ("Maximum of 8 words, at most 8 words!", {8}),
        ("at most 5 sentences", set()),
        ("Write 5 words", set()),
        ("at least 5 words", set()),
        ("at most 5 words, or within 9 words", {5, 9}),
    ],
)
def test_limits_that_prompts_name(text, limits):
    assert limits_of(text, "word") == limits


def test_a_limit_that_is_not_one_makes_no_judgement():
    for said in ("Why?", "At most 5 words. No, at most 9 words."):
        assert not judged("word_limit", "Because.", said=said).judged


def test_counting():
    assert count("  It's  half-past\n9. ", "word") == 3
    assert count('He said "No." Then he left! Why? ', "sentence") == 3
    assert count("你好。再见！", "sentence") == 2
    assert count("", "sentence") == 0


def long(messages, completion, metadata):
    return Judgement(passed=len(completion) > 3, score=len(completion), explanation="its length")


def wrong(messages, completion, metadata):
    return True


def test_a_function_by_its_import_path():
    criterion = criterion_named({"function": f"{__name__}:long", "label": "length"})
    assert criterion.name == "length"
    said = list(criterion.judge([Example([], "abc"), Example([], "abcd")]))
    assert [(each.passed, each.score) for each in said] == [(False, 3), (True, 4)]
    assert criterion_named(f"{__name__}:long").name == "long"
    with pytest.raises(UserError, match="returned True; return a"):
        criterion_named(f"{__name__}:wrong").score([], "a")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("word_limt", "there is none of this name; did you mean 'word_limit'"),
        ({"name": "word_limit", "limt": 3}, "limt: unknown key; did you mean 'limit'"),
        ({"name": "word_limit", "limit": "five"}, "limit"),
        ({"name": "token_limit", "limit": 3}, "tokenizer is needed by token_limit"),
        ({"name": "word_limit", "tokenizer": "x"}, "tokenizer is needed by token_limit"),
        ({"name": "regex", "pattern": "("}, "is no regular expression"),
        ({"name": "json", "json_schema": {"type": "objct"}}, "is no JSON Schema"),
        ({"name": "json", "json_schema": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"name": "contains", "texts": []}, "texts"),
        ({"nam": "x"}, "write {name: …}, {function: module:name} or"),
        ("nowhere:score", "nowhere cannot be imported"),
        ("json:score", "json has no score"),
        ({"judge": {"instructions": "x"}}, "judge.model: must be given"),
        ({"judge": {"instructions": "x", "model": "m", "basurl": 1}}, "did you mean 'base_url'"),
    ],
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(UserError) as refused:
        criterion_named(spec)
    assert message in str(refused.value)


class Holder(BaseModel):
    criteria: Criteria


def test_criteria_of_a_configuration(tmp_path):
    path = tmp_path / "criteria.yaml"
    path.write_text("criteria: [word_limit, {name: regex, pattern: a, label: has-a}]\n")
    for given in (str(path), ["word_limit", {"name": "regex", "pattern": "a", "label": "has-a"}]):
        held = Holder.model_validate({"criteria": given})
        assert [criterion_named(spec).name for spec in held.criteria] == ["word_limit", "has-a"]
    # What is kept in a run's configuration reads back as the same.
    assert Holder.model_validate(json.loads(held.model_dump_json())) == held
    assert len(Holder.model_validate({"criteria": "json"}).criteria) == 1
    for given, message in (([], "there are none"), (["json", "json"], "2 are called 'json'")):
        with pytest.raises(UserError, match=message):
            Holder.model_validate({"criteria": given})
