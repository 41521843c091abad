"""Criteria in requests: what they say of each answer, and the best of several by them.

A request names criteria that the server was started with, or describes one that looks at the text
alone. It cannot bring a function, a judge, a file, a regular expression or a schema: those would
have whoever may ask run code, open connections or files, or keep the processor busy for ever.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdpo.data.pairs import Message
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.best import mean_score
from jaxdpo.evaluation.criteria.spec import Spec, check_named, criterion_named, label_of
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement
from jaxdpo.serving.errors import RequestError
from jaxdpo.serving.tool_calls import read_calls

if TYPE_CHECKING:
    from jaxdpo.serving.chat import ChatAnswer

# Criteria that a request may describe itself.
_PLAIN = ("word_limit", "sentence_limit", "contains", "excludes")
_MOST_CRITERIA = 16

CriteriaByName = Mapping[str, Criterion]


class Judged(NamedTuple):
    """An answer, and what each criterion says of it.

    Attributes:
      answer: The answer.
      results: Criterion ↦ its judgement, in words for JSON.
    """

    answer: "ChatAnswer"
    results: dict[str, Any]


def named_criteria(specs: Sequence[Spec]) -> dict[str, Criterion]:
    """Returns the criteria of a server by the names that requests have them under."""
    return {label_of(spec): criterion_named(spec) for spec in specs}


def wanted_criteria(wanted: Sequence[Any], known: CriteriaByName) -> list[Criterion]:
    """Returns the criteria that a request asks for.

    Args:
      wanted: Names, or descriptions of plain criteria.
      known: The server's criteria.

    Raises:
      RequestError: If one is neither.
    """
    if len(wanted) > _MOST_CRITERIA:
        raise RequestError(400, f"has {len(wanted)} criteria; at most {_MOST_CRITERIA}", "criteria")
    found = [_criterion(each, known) for each in wanted]
    # Results are told apart by names.
    names = [criterion.name for criterion in found]
    if len(set(names)) < len(names):
        raise RequestError(400, "two criteria have one name; give one a label", "criteria")
    return found


def _criterion(wanted: Any, known: CriteriaByName) -> Criterion:
    if isinstance(wanted, str):
        if wanted in known:
            return known[wanted]
        raise RequestError(
            400,
            f"the server has no criterion {wanted!r}{nearest(wanted, known)}; it has "
            f"{', '.join(known) or 'none'}",
            "criteria",
        )
    if not isinstance(wanted, dict) or wanted.get("name") not in _PLAIN:
        raise RequestError(
            400,
            f"a request may name a criterion of the server, or describe one of {', '.join(_PLAIN)}",
            "criteria",
        )
    try:
        return criterion_named(check_named(wanted))
    except UserError as error:
        raise RequestError(400, str(error), "criteria") from None


async def judge(
    criteria: Sequence[Criterion],
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    answers: Sequence["ChatAnswer"],
) -> list[Judged]:
    """Judges answers to a conversation.

    Args:
      criteria: The criteria.
      messages: The conversation.
      tools: Tools that it offers.
      answers: The answers.

    Raises:
      RequestError: If a criterion cannot judge at all.
    """
    examples = [_example(messages, tools, answer.text) for answer in answers]

    def judged() -> list[dict[str, Judgement]]:
        said: list[dict[str, Judgement]] = [{} for _ in examples]
        for criterion in criteria:
            for own, judgement in zip(said, criterion.judge(examples), strict=True):
                own[criterion.name] = judgement
        return said

    try:
        # In a thread, since a judge is a server that is waited for.
        said = await asyncio.to_thread(judged)
    except UserError as error:
        raise RequestError(502, f"a criterion failed: {error}", "criteria") from None
    return [
        Judged(answer, {name: each.model_dump() for name, each in own.items()})
        for answer, own in zip(answers, said, strict=True)
    ]


def best_first(judged: Sequence[Judged]) -> list[Judged]:
    """Orders answers by the mean of their values, the best first; those not judged come last."""

    def worth(each: Judged) -> float:
        results = {name: Judgement(**result) for name, result in each.results.items()}
        value = mean_score(results)
        return float("-inf") if value is None else value

    # `sorted` is stable: of answers that are equally good the first that was drawn stays first.
    return sorted(judged, key=worth, reverse=True)


def _example(messages: Sequence[Message], tools: Sequence[dict[str, Any]], text: str) -> Example:
    read = read_calls(text, tools)
    return Example(messages, read.content or "", tools=tools, tool_calls=read.calls)
