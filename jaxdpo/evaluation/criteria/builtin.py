"""Ready criteria. Each is a frozen configuration whose `score` judges one answer.

A criterion that lacks what it compares with (a limit in the prompt, a field of the metadata) makes
no judgement and says why.
"""

import functools
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import jsonschema
from jsonschema.exceptions import best_match
from jsonschema.validators import validator_for
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from rapidfuzz.distance import Indel

from jaxdpo.data.pairs import Message
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.length_limits import Unit, count, limit_in
from jaxdpo.evaluation.judgement import Judgement


class Check(BaseModel):
    """What all ready criteria have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = Field(
        default=None, description="what its judgements are known by; default: its name"
    )


class Limit(Check):
    """At most so many words, sentences or tokens."""

    name: Literal["word_limit", "sentence_limit", "token_limit"]
    limit: int | Literal["from_prompt"] = Field(
        default="from_prompt", description="a number, or as the prompt's last user message says"
    )
    tokenizer: str | None = Field(
        default=None, description="token_limit: folder or org/name of the model that counts"
    )

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        if (self.tokenizer is not None) != (self.name == "token_limit"):
            raise ValueError("tokenizer is needed by token_limit, and by it alone")
        return self

    @property
    def _unit(self) -> Unit:
        units: dict[str, Unit] = {"word_limit": "word", "sentence_limit": "sentence"}
        return units.get(self.name, "token")

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        limit = self.limit if isinstance(self.limit, int) else limit_in(messages, self._unit)
        if limit is None:
            return Judgement(explanation=f"the prompt names no single limit of {self._unit}s")
        found = (
            _tokens(completion, self.tokenizer) if self.tokenizer else count(completion, self._unit)
        )
        return Judgement(
            passed=found <= limit, explanation=f"{found} {self._unit}s of at most {limit}"
        )


class Regex(Check):
    """A regular expression is found in the answer."""

    name: Literal["regex"]
    pattern: str = Field(description="as Python's `re` has it; (?i) ignores case")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        found = re.search(self.pattern, completion)
        said = f"found {found[0]!r}" if found else "not found"
        return Judgement(passed=bool(found), explanation=f"{self.pattern}: {said}")


class Contains(Check):
    """The answer contains every one of some texts, or none of them."""

    name: Literal["contains", "excludes"]
    texts: tuple[str, ...] = Field(min_length=1, description="what is looked for")
    ignore_case: bool = Field(default=False, description="whether A is a")

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        fold = str.casefold if self.ignore_case else str
        wanted = self.name == "contains"
        wrong = [text for text in self.texts if (fold(text) in fold(completion)) != wanted]
        said = f"{'lacks' if wanted else 'contains'} {', '.join(map(repr, wrong))}"
        return Judgement(passed=not wrong, explanation=said if wrong else "as it should be")


class Json(Check):
    """The answer is one JSON value and nothing else, and keeps to a JSON Schema if there is one."""

    name: Literal["json"]
    json_schema: dict[str, Any] | str | None = Field(
        default=None, description="JSON Schema, or a file that holds it"
    )

    @field_validator("json_schema")
    @classmethod
    def _read(cls, given: dict[str, Any] | str | None) -> dict[str, Any] | None:
        schema: Any = given
        if isinstance(given, str):
            try:
                schema = json.loads(Path(given).expanduser().read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{given}: cannot be read as JSON: {error}") from None
        if given is None:
            return None
        try:
            validator_for(schema).check_schema(schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"is no JSON Schema: {error.message}") from None
        return schema

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        try:
            value = json.loads(completion, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return Judgement(passed=False, explanation=f"not JSON: {error}")
        if isinstance(self.json_schema, dict):
            validator = validator_for(self.json_schema)(self.json_schema)
            problem = best_match(validator.iter_errors(value))
            if problem is not None:
                said = f"{problem.json_path}: {problem.message}"
                return Judgement(passed=False, explanation=said)
        return Judgement(passed=True, explanation="as it should be")


class Equals(Check):
    """The answer is the text in a field of the metadata, or one of those listed there."""

    name: Literal["equals"]
    field: str = Field(description="of metadata")
    normalise: bool = Field(
        default=True, description="ignore case, punctuation, articles and white space"
    )

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        wanted = metadata.get(self.field)
        if wanted is None:
            return Judgement(explanation=f"metadata has no {self.field}")
        fold = _normalised if self.normalise else str
        right = [str(each) for each in (wanted if isinstance(wanted, list) else [wanted])]
        passed = fold(completion) in map(fold, right)
        return Judgement(passed=passed, explanation=f"expected {' or '.join(map(repr, right))}")


class Extracted(Check):
    """Every text and number in the answer, a JSON value, stands literally in the source."""

    name: Literal["extracted"]
    source: str | None = Field(
        default=None, description="field of metadata; default: the last user message"
    )

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        text = last_user(messages) if self.source is None else metadata.get(self.source)
        if not isinstance(text, str):
            return Judgement(explanation=f"metadata has no text in {self.source}")
        try:
            # As written: 1.50 in the source is not 1.5.
            value = json.loads(
                completion, parse_int=str, parse_float=str, parse_constant=_no_constant
            )
        except (ValueError, RecursionError) as error:
            return Judgement(passed=False, score=0, explanation=f"not JSON: {error}")
        values = list(_leaves(value))
        wrong = [leaf for leaf in values if leaf not in text]
        return Judgement(
            passed=not wrong,
            score=1 - len(wrong) / len(values) if values else 1,
            explanation=f"not in the source: {', '.join(map(repr, wrong))}"
            if wrong
            else f"all {len(values)} values stand in the source",
        )


def sequence_similarity(one: Sequence[Hashable], two: Sequence[Hashable]) -> float:
    """Returns twice the length of the longest common subsequence over the sum of both lengths.

    >>> sequence_similarity("it opens at 9".split(), "it closes at".split())
    0.5714285714285714
    """
    # Bit-parallel: an answer of thousands of words that repeats itself costs milliseconds. The
    # standard library's difflib.SequenceMatcher is cubic on such texts.
    return Indel.normalized_similarity(one, two)


class Similarity(Check):
    """How like a reference the answer is, by its words: 1 for the same, 0 for none in common."""

    name: Literal["similarity"]
    field: str = Field(description="of metadata, the reference")
    at_least: float = Field(default=0.5, ge=0, le=1, description="what passes")

    def score(
        self, messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        reference = metadata.get(self.field)
        if not isinstance(reference, str):
            return Judgement(explanation=f"metadata has no text in {self.field}")
        both = _normalised(reference).split(), _normalised(completion).split()
        ratio = sequence_similarity(*both)
        return Judgement(
            passed=ratio >= self.at_least, score=ratio, explanation=f"similarity {ratio:.2f}"
        )


@functools.cache
def _tokenizer(path: str) -> Any:
    return load_chat(path).tokenizer


def _tokens(text: str, path: str) -> int:
    return len(_tokenizer(path).encode(text, add_special_tokens=False))


def last_user(messages: Sequence[Message]) -> str:
    """What the user said last."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    if not said:
        raise UserError("a prompt without a user's message cannot be judged")
    return said[-1]


def _normalised(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
