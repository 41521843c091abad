"""Judgements, a line each → for every prompt its answers and their mean scores.

    {"messages": [...], "completion": "At 9.", "criterion": "short", "passed": true, "score": null,
     "explanation": "2 words of at most 5"}

is a line; `tools`, `tool_calls`, `reference`, `split`, `metadata`, `model`, `sample`, `finished`,
`id`, `annotator` and `time` are optional. The mean score of an answer is the mean over its
criteria, each the mean of its judgements: the score, or else 1 for passed and 0 for failed. So
scores that are combined should have one scale.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any, NamedTuple

from pydantic import ValidationError

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import SAMPLED
from jaxdpo.data.reading.said import need
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.feedback.preferences import COMMON, asked_in, unknown_keys

_SAID = ("passed", "score", "explanation")
# Two people judge one answer in conversations of their own, so that is nothing of the prompt's.
_ABOUT = ("model", "sample", "finished", "annotator", "time", "conversation", "notes", "also")
# Fields of a generation beside its text: the ids and calls of the answer, and the data's own.
_BESIDE = (SAMPLED, "tool_calls", "reference")
_OWN = ("id", "completion", "sample", "finished", "criterion", *_SAID, *_BESIDE)
_PROMPT = tuple(key for key in COMMON if key not in _ABOUT)


class Judged(NamedTuple):
    """One judgement of a file.

    Attributes:
      where: Its place, as `file:line`.
      prompt: The fields of its line that belong to the prompt.
      answer: The answer, as it stands there.
      criterion: Name of the criterion.
      judgement: The judgement.
      about: Its annotator, and the model and sample that it is about.
      sampled: The ids that the answer was sampled as, if it stands there as a text with them.
    """

    where: str
    prompt: dict[str, Any]
    answer: Any
    criterion: str
    judgement: Judgement
    about: dict[str, Any]
    sampled: dict[str, Any] | None = None

    def key(self) -> str:
        """Returns a key that is equal for lines about one answer to one prompt."""
        return _canonical([self.prompt, self.answer])


def parse_judged(record: dict[str, Any], where: str) -> Judged:
    """Checks one line of judgements.

    Raises:
      BadPair: If it is not as documented.
    """
    own = unknown_keys(record, _OWN)
    messages, completion = asked_in(record), need(record, "completion")[0]
    calls = record.get("tool_calls")
    if isinstance(completion, str) and calls:
        # An answer by calls is a message: its text may be empty.
        completion = {"role": "assistant", "content": completion, "tool_calls": calls}
    if isinstance(completion, str) and not completion.strip():
        raise BadPair("empty-completion", "completion is empty; nothing can be learnt from it")
    criterion = record.get("criterion") or "score"
    if not isinstance(criterion, str):
        raise BadPair("criterion-type", "criterion is no string; write the criterion's name")
    given = {key: record[key] for key in _SAID if record.get(key) is not None}
    try:
        judgement = Judgement.model_validate(given, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadPair("judgement", f"{problem['loc'][0]}: {problem['msg']}") from None
    about = {key: record[key] for key in (*own, *_ABOUT) if record.get(key) is not None}
    prompt = {key: record[key] for key in _PROMPT if record.get(key) is not None}
    prompt.pop("prompt", None)
    prompt["messages"] = messages
    sampled = record.get(SAMPLED) if isinstance(completion, str) else None
    return Judged(where, prompt, completion, criterion, judgement, about, sampled)


def by_prompt(judged: Iterable[Judged]) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Gathers judgements to a record of each prompt, in the order in which prompts first appear.

    Yields:
      Where the prompt first stands; its record, as the source `criteria` reads it; and how many
      answers were left out because one of the prompt's criteria has no judgement of them.
    """
    prompts: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        prompts[_canonical(one.prompt)].append(one)
    for lines in prompts.values():
        asked = {one.criterion for one in lines}
        answers: defaultdict[str, list[Judged]] = defaultdict(list)
        for one in lines:
            answers[_canonical(one.answer)].append(one)
        # An answer that one criterion could not judge would be valued by fewer of them than the
        # others are, and win or lose by that.
        valued = [_valued(each) for each in answers.values() if _criteria(each) == asked]
        yield lines[0].where, {**lines[0].prompt, "answers": valued}, len(answers) - len(valued)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _criteria(lines: Iterable[Judged]) -> set[str]:
    return {one.criterion for one in lines if one.judgement.judged}


def _valued(lines: list[Judged]) -> dict[str, Any]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for one in lines:
        if one.judgement.judged:
            values[one.criterion].append(one.judgement.value)
    said = [
        {"criterion": one.criterion, **one.judgement.model_dump(exclude_none=True), **one.about}
        for one in lines
    ]
    value = fmean(fmean(each) for each in values.values())
    answer, sampled = lines[0].answer, lines[0].sampled
    if sampled is not None:
        # Training takes what was sampled; its text would not always be encoded to the same ids.
        answer = {"role": "assistant", "content": answer, SAMPLED: sampled}
    return {"completion": answer, "value": value, "why": {"judgements": said}}
