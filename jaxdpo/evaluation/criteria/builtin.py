"""Built-in criteria. Each is a frozen configuration whose `judge` judges one answer.

A criterion that has nothing to compare with (no limit in the prompt, no such field of the metadata,
no answer in the data set) makes no judgement and says why. `unjudgeable` says so before there is an
answer.
"""

import functools
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from rapidfuzz.distance import Indel

from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria import bounded
from jaxdpo.evaluation.criteria.length_limits import Unit, count, limit_in
from jaxdpo.evaluation.judgement import Example, Judgement


class Check(BaseModel):
    """Base of all criteria's configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str | None = Field(
        default=None, description="name of its judgements; default: its own name"
    )


class Builtin(Check):
    """Base of the built-in criteria."""

    def judge(self, example: Example) -> Judgement:
        """Judges one answer."""
        raise NotImplementedError

    def unjudgeable(self, prompt: Prompt) -> str | None:
        """Returns why no answer to a prompt could be judged; None if answers can be."""
        return None


class Limit(Builtin):
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

    def judge(self, example: Example) -> Judgement:
        """Passes an answer that is within the limit."""
        limit = self._limit_in(example.messages)
        if limit is None:
            return Judgement(explanation=f"the prompt names no single limit of {self._unit}s")
        text = example.completion
        found = _tokens(text, self.tokenizer) if self.tokenizer else count(text, self._unit)
        return Judgement(
            passed=found <= limit, explanation=f"{found} {self._unit}s of at most {limit}"
        )

    def unjudgeable(self, prompt: Prompt) -> str | None:
        """Returns why no answer to a prompt could be judged: it names no limit, or several."""
        if self._limit_in(prompt.messages) is None:
            return f"the prompt names no single limit of {self._unit}s"
        return None

    def _limit_in(self, messages: Sequence[Message]) -> int | None:
        return self.limit if isinstance(self.limit, int) else limit_in(messages, self._unit)


class Regex(Builtin):
    """A regular expression is found in the answer."""

    name: Literal["regex"]
    pattern: str = Field(description="as Python's `re` has it; (?i) ignores case")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        bounded.compile_pattern(pattern)
        return pattern

    def judge(self, example: Example) -> Judgement:
        """Passes an answer in which the expression is found."""
        try:
            found = bounded.search(self.pattern, example.completion)
        except bounded.TooSlow as slow:
            return Judgement(explanation=str(slow))
        said = f"found {found[0]!r}" if found else "not found"
        return Judgement(passed=bool(found), explanation=f"{self.pattern}: {said}")


class Contains(Builtin):
    """The answer contains every one of some texts, or none of them."""

    name: Literal["contains", "excludes"]
    texts: tuple[str, ...] = Field(min_length=1, description="what is looked for")
    ignore_case: bool = Field(default=False, description="whether A is a")

    def judge(self, example: Example) -> Judgement:
        """Passes an answer with all of the texts, or with none."""
        # casefold and not lower: "Straße" and "STRASSE" are the same word.
        fold = str.casefold if self.ignore_case else str
        wanted = self.name == "contains"
        answer = fold(example.completion)
        wrong = [text for text in self.texts if (fold(text) in answer) != wanted]
        said = f"{'lacks' if wanted else 'contains'} {', '.join(map(repr, wrong))}"
        return Judgement(passed=not wrong, explanation=said if wrong else "as it should be")


class Json(Builtin):
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
        bounded.check_schema(schema)
        return schema

    def judge(self, example: Example) -> Judgement:
        """Passes an answer that is JSON and keeps to the schema."""
        try:
            # Python's reader takes NaN and Infinity, which are not JSON.
            value = json.loads(example.completion, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return Judgement(passed=False, explanation=f"not JSON: {error}")
        if isinstance(self.json_schema, dict):
            try:
                problem = bounded.find_problem(self.json_schema, value)
            except (bounded.TooSlow, ValueError) as undecided:
                return Judgement(explanation=str(undecided))
            if problem is not None:
                said = f"{problem.json_path}: {problem.message}"
                return Judgement(passed=False, explanation=said)
        return Judgement(passed=True, explanation="as it should be")


class Compared(Builtin):
    """Base of the criteria that compare the answer with the data set's own, or a field."""

    field: str | None = Field(
        default=None, description="of metadata; default: the data set's own answer"
    )

    def references(self, metadata: Mapping[str, Any], reference: str | None) -> list[str]:
        """Returns the texts to compare with; none where there are none."""
        if self.field is None:
            return [] if reference is None else [reference]
        found = metadata.get(self.field)
        listed = found if isinstance(found, list) else [found]
        return [str(each) for each in listed if each is not None]

    def missing(self) -> str:
        """Returns the explanation of an answer that there is nothing to compare with."""
        if self.field is None:
            return "the data set has no answer of its own to this prompt"
        return f"metadata has no {self.field}"

    def unjudgeable(self, prompt: Prompt) -> str | None:
        """Returns why no answer to a prompt could be judged: nothing to compare it with."""
        reference = Example((), "", reference=prompt.answer).reference_text
        return None if self.references(prompt.metadata, reference) else self.missing()


class Equals(Compared):
    """The answer is the reference, or one of those listed in a field of the metadata."""

    name: Literal["equals"]
    normalise: bool = Field(
        default=True, description="ignore case, punctuation, articles and white space"
    )

    def judge(self, example: Example) -> Judgement:
        """Passes an answer that is one of the references."""
        right = self.references(example.metadata, example.reference_text)
        if not right:
            return Judgement(explanation=self.missing())
        fold = _normalised if self.normalise else str
        passed = fold(example.completion) in map(fold, right)
        return Judgement(passed=passed, explanation=f"expected {' or '.join(map(repr, right))}")


class Extracted(Builtin):
    """Every text and number in the answer, a JSON value, stands literally in the source."""

    name: Literal["extracted"]
    source: str | None = Field(
        default=None, description="field of metadata; default: the last user message"
    )

    def judge(self, example: Example) -> Judgement:
        """Scores an answer by the share of its values that stand in the source."""
        text = self._source(example.messages, example.metadata)
        if not isinstance(text, str):
            return Judgement(explanation=f"metadata has no text in {self.source}")
        try:
            # As written: 1.50 in the source is not 1.5.
            value = json.loads(
                example.completion, parse_int=str, parse_float=str, parse_constant=_no_constant
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

    def unjudgeable(self, prompt: Prompt) -> str | None:
        """Returns why no answer to a prompt could be judged: its metadata has no source."""
        if isinstance(self._source(prompt.messages, prompt.metadata), str):
            return None
        return f"metadata has no text in {self.source}"

    def _source(self, messages: Sequence[Message], metadata: Mapping[str, Any]) -> Any:
        return last_user(messages) if self.source is None else metadata.get(self.source)


def sequence_similarity(one: Sequence[Hashable], two: Sequence[Hashable]) -> float:
    """Returns twice the length of the longest common subsequence over the sum of both lengths.

    >>> sequence_similarity("it opens at 9".split(), "it closes at".split())
    0.5714285714285714
    """
    # Bit-parallel: an answer of thousands of words that repeats itself costs milliseconds. The
    # standard library's difflib.SequenceMatcher is cubic on such texts.
    return Indel.normalized_similarity(one, two)


class Similarity(Compared):
    """The answer is like the reference by its words: 1 for the same, 0 for none in common."""

    name: Literal["similarity"]
    at_least: float = Field(default=0.5, ge=0, le=1, description="the least that passes")

    def judge(self, example: Example) -> Judgement:
        """Scores an answer by its similarity to the nearest reference."""
        references = self.references(example.metadata, example.reference_text)
        if not references:
            return Judgement(explanation=self.missing())
        words = _normalised(example.completion).split()
        ratio = max(sequence_similarity(_normalised(each).split(), words) for each in references)
        return Judgement(
            passed=ratio >= self.at_least, score=ratio, explanation=f"similarity {ratio:.2f}"
        )


class ToolCalls(Builtin):
    """The answer makes the calls that the data set's own answer makes, and no others."""

    name: Literal["tool_calls"]

    def judge(self, example: Example) -> Judgement:
        """Passes an answer with the same functions and arguments, in any order."""
        if not example.reference:
            return Judgement(explanation="the data set has no answer of its own to this prompt")
        found, wanted = (
            sorted(map(_call, example.tool_calls)),
            sorted(map(_call, example.reference_calls)),
        )
        said = f"calls {', '.join(found) or 'nothing'}, expected {', '.join(wanted) or 'no call'}"
        return Judgement(passed=found == wanted, explanation=said)

    def unjudgeable(self, prompt: Prompt) -> str | None:
        """Returns why no answer to a prompt could be judged: the data has none to compare."""
        return None if prompt.answer else "the data set has no answer of its own to this prompt"


def _call(call: Mapping[str, Any]) -> str:
    """Writes a call as name(arguments), the same for equal arguments however they are written."""
    function = call.get("function", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # a model's mistake: it equals nothing but itself
            return f"{function.get('name')}({arguments})"
    return f"{function.get('name')}({json.dumps(arguments, sort_keys=True, ensure_ascii=False)})"


@functools.cache
def _tokenizer(path: str) -> Any:
    return load_chat(path).tokenizer


def _tokens(text: str, path: str) -> int:
    return len(_tokenizer(path).encode(text, add_special_tokens=False))


def last_user(messages: Sequence[Message]) -> str:
    """Returns the text of the user's last message."""
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
    # A list of what is left to do and no recursion: an answer may be nested to any depth.
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += reversed(item.values())
        elif isinstance(item, list):
            waiting += reversed(item)
