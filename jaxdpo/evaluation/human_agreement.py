"""How far a judge agrees with people, on answers that people have judged.

A line of an alignment file is a conversation, its last message the answer, and what a person said:

    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], "judgement": "PASS"}

`metadata` is optional, and an `explanation` by the person.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxdpo.data.bad_pair import BadLine, BadPair, kind, show
from jaxdpo.data.reading.messages import parse_message
from jaxdpo.data.reading.said import listed, need
from jaxdpo.data.reading.sources import Source, read_source
from jaxdpo.errors import UserError, nearest
from jaxdpo.evaluation.agreement import Estimate, cohen_kappa, share
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement
from jaxdpo.storage.files import replacing

_KEYS = ("messages", "judgement", "metadata", "explanation")
_SAID = {"PASS": True, "FAIL": False}


@dataclass(frozen=True)
class Labelled:
    """An answer that a person has judged.

    Attributes:
      example: The answer.
      passed: What the person said.
      explanation: Why, if they said it.
      where: Where it stands, as `file:line`.
    """

    example: Example
    passed: bool
    explanation: str
    where: str


@dataclass(frozen=True)
class Disagreement:
    """An answer that a person and the judge see differently, with what each says."""

    where: str
    messages: Sequence[dict[str, Any]]
    completion: str
    person: str
    person_explanation: str
    judge: str
    judge_explanation: str


@dataclass(frozen=True)
class Alignment:
    """How far a criterion agrees with people.

    Attributes:
      criterion: Its name.
      answers: How many answers both have judged.
      agreement: The share on which they agree.
      precision: Of PASS: of the answers that the criterion passes, those that people pass.
      recall: Of PASS: of the answers that people pass, those that the criterion passes.
      fail_precision: The same of FAIL.
      fail_recall: The same of FAIL.
      kappa: Agreement beyond chance, Cohen's κ.
      disagreements: Where they differ.
      unjudged: `file:line` and reason of answers that the criterion could not judge.
    """

    criterion: str
    answers: int
    agreement: Estimate
    precision: Estimate
    recall: Estimate
    fail_precision: Estimate
    fail_recall: Estimate
    kappa: Estimate
    disagreements: tuple[Disagreement, ...]
    unjudged: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The figures, for a table."""
        return [
            ("answers judged by both", str(self.answers)),
            ("could not be judged", str(len(self.unjudged))),
            ("agreement", str(self.agreement)),
            ("precision of PASS", str(self.precision)),
            ("recall of PASS", str(self.recall)),
            ("precision of FAIL", str(self.fail_precision)),
            ("recall of FAIL", str(self.fail_recall)),
            ("Cohen's κ", str(self.kappa)),
        ]


def read_alignment(path: str) -> list[Labelled]:
    """The answers of an alignment file.

    Raises:
      UserError: If it cannot be read, is empty, or has a line that is not as documented.
    """
    found: list[Labelled] = []
    for record in read_source(Source(path)):
        if isinstance(record, BadLine):
            raise UserError(str(record))
        if record.value is not None:
            where = f"{path}:{record.line}"
            try:
                found.append(_parse(record.value, where))
            except BadPair as bad:
                raise UserError(f"{where}: {bad}") from None
    if not found:
        raise UserError(f"{path}: holds no judged answers; write one a line")
    return found


def _parse(record: dict[str, Any], where: str) -> Labelled:
    for key in record:
        if key not in _KEYS:
            raise BadPair("unknown-key", f"unknown key {show(key)}{nearest(key, _KEYS)}")
    given, judgement = need(record, "messages", "judgement")
    if judgement not in ("PASS", "FAIL"):
        raise BadPair("judgement", f"judgement is {show(judgement)}; write 'PASS' or 'FAIL'")
    if not isinstance(given, list) or len(given) < 2:
        raise BadPair("messages-type", "messages holds no conversation; end it with the answer")
    messages = [parse_message(said.message, said.field) for said in listed(given, "messages")]
    last, metadata = messages[-1], record.get("metadata") or {}
    if last["role"] != "assistant" or not last.get("content"):
        raise BadPair(
            "last-not-assistant", "the last message is not the assistant's text; it is judged"
        )
    if not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    example = Example(tuple(messages[:-1]), last["content"], metadata)
    return Labelled(example, _SAID[judgement], str(record.get("explanation") or ""), where)


def align(criterion: Criterion, labelled: Sequence[Labelled]) -> Alignment:
    """Lets a criterion judge what people have judged, and compares.

        alignment = align(criterion_named({"judge": {...}}), read_alignment("alignment.jsonl"))

    Args:
      criterion: One that passes and fails answers.
      labelled: What people said.
    """
    judgements = list(criterion.judge([each.example for each in labelled]))
    both = list(zip(labelled, judgements, strict=True))
    judged = [(each, said) for each, said in both if said.passed is not None]
    people = [each.passed for each, _ in judged]
    judge = [bool(said.passed) for _, said in judged]

    def overlap(passed: bool, of: Sequence[bool]) -> Estimate:
        agreed = sum(a == b == passed for a, b in zip(people, judge, strict=True))
        return share(agreed, list(of).count(passed))

    return Alignment(
        criterion=criterion.name,
        answers=len(judged),
        agreement=share(sum(map(bool.__eq__, people, judge)), len(judged)),
        precision=overlap(True, judge),
        recall=overlap(True, people),
        fail_precision=overlap(False, judge),
        fail_recall=overlap(False, people),
        kappa=cohen_kappa(people, judge),
        disagreements=tuple(
            _differ(each, said) for each, said in judged if each.passed != said.passed
        ),
        unjudged=tuple(
            f"{each.where}: {said.explanation}" for each, said in both if said.passed is None
        ),
    )


def _differ(labelled: Labelled, said: Judgement) -> Disagreement:
    names = {passed: name for name, passed in _SAID.items()}
    return Disagreement(
        where=labelled.where,
        messages=labelled.example.messages,
        completion=labelled.example.completion,
        person=names[labelled.passed],
        person_explanation=labelled.explanation,
        judge=names[bool(said.passed)],
        judge_explanation=said.explanation,
    )


def write_alignment(alignment: Alignment, path: Path) -> None:
    """Writes figures, disagreements and what could not be judged as JSON.

    A figure that is undefined is null.
    """
    figures = {
        name: value._asdict() if isinstance(value, Estimate) else value
        for name, value in vars(alignment).items()
    }
    for value in figures.values():
        if isinstance(value, dict):
            value.update({key: None for key, number in value.items() if number != number})
    figures["disagreements"] = [asdict(each) for each in alignment.disagreements]
    with replacing(path) as file:
        json.dump(figures, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
