"""Agreement of a judge with people, on answers that people have judged.

A line of the file (OpenPipe's alignment sets have the same form) is a conversation, its last
message the answer, and a person's judgement of it:

    {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], "judgement": "PASS"}

`judgement` may be missing: nobody has judged that answer yet, and it is counted and left out. An
`explanation` by the person, `tools`, `split` and `metadata` are optional, and the answer may be
calls of tools.
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

_KEYS = ("messages", "judgement", "metadata", "explanation", "tools", "split")
_SAID = {"PASS": True, "FAIL": False}
_NAMES = {passed: name for name, passed in _SAID.items()}


@dataclass(frozen=True)
class HumanJudgement:
    """An answer, and a person's judgement of it.

    Attributes:
      example: The answer.
      passed: The judgement; None if nobody has judged the answer.
      explanation: Why, if the person said it.
      where: Place of the line, as `file:line`.
    """

    example: Example
    passed: bool | None
    explanation: str
    where: str


@dataclass(frozen=True)
class Disagreement:
    """An answer that a person and the judge see differently, with both judgements."""

    where: str
    messages: Sequence[dict[str, Any]]
    completion: str
    person: str
    person_explanation: str
    judge: str
    judge_explanation: str


@dataclass(frozen=True)
class HumanAgreement:
    """Agreement of a criterion with people.

    Attributes:
      criterion: Its name.
      answers: Number of answers that both have judged.
      agreement: The share on which they agree.
      precision: Of PASS: the share of the answers passed by the criterion that people pass, too.
      recall: Of PASS: the share of the answers passed by people that the criterion passes, too.
      fail_precision: The same of FAIL.
      fail_recall: The same of FAIL.
      kappa: Agreement beyond chance, Cohen's κ.
      disagreements: Answers on which they differ.
      unjudged: `file:line` and reason of answers that the criterion could not judge.
      without_judgement: Number of answers that nobody has judged, which are left out.
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
    without_judgement: int = 0

    def rows(self) -> list[tuple[str, str]]:
        """Returns the figures as rows of a table."""
        missing = [("not judged by people", str(self.without_judgement))]
        return [
            ("answers judged by both", str(self.answers)),
            ("could not be judged", str(len(self.unjudged))),
            *(missing if self.without_judgement else []),
            ("agreement", str(self.agreement)),
            ("precision of PASS", str(self.precision)),
            ("recall of PASS", str(self.recall)),
            ("precision of FAIL", str(self.fail_precision)),
            ("recall of FAIL", str(self.fail_recall)),
            ("Cohen's κ", str(self.kappa)),
        ]


def read_human_judgements(path: str) -> list[HumanJudgement]:
    """Reads answers and people's judgements of them.

    Raises:
      UserError: If the file cannot be read, has no judgement, or has a line that is not as
        documented.
    """
    found: list[HumanJudgement] = []
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
    if all(each.passed is None for each in found):
        raise UserError(
            f'{path}: none of its {len(found)} answers has a judgement; add "judgement": "PASS" or '
            '"FAIL" to the lines that people have judged'
        )
    return found


def _parse(record: dict[str, Any], where: str) -> HumanJudgement:
    for key in record:
        # A key that is spelt almost as a known one is a mistake; others are a tool's own fields.
        if key not in _KEYS and (hint := nearest(key, _KEYS)):
            raise BadPair("unknown-key", f"unknown key {show(key)}{hint}")
    given = need(record, "messages")[0]
    judgement = record.get("judgement")
    if judgement not in ("PASS", "FAIL", None):
        raise BadPair("judgement", f"judgement is {show(judgement)}; write 'PASS' or 'FAIL'")
    if not isinstance(given, list) or len(given) < 2:
        raise BadPair("messages-type", "messages holds no conversation; end it with the answer")
    messages = [parse_message(said.message, said.field) for said in listed(given, "messages")]
    last, metadata = messages[-1], record.get("metadata") or {}
    calls = last.get("tool_calls") or ()
    if last["role"] != "assistant" or not (last.get("content") or calls):
        raise BadPair(
            "last-not-assistant",
            "the last message is not the assistant's text or calls; that is what is judged",
        )
    if not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    tools = record.get("tools") or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise BadPair("tools-type", f"tools is {kind(tools)}; write a list of objects")
    example = Example(
        tuple(messages[:-1]), last.get("content") or "", metadata, tuple(tools), tuple(calls)
    )
    passed = None if judgement is None else _SAID[judgement]
    return HumanJudgement(example, passed, str(record.get("explanation") or ""), where)


def compare_with_people(criterion: Criterion, people: Sequence[HumanJudgement]) -> HumanAgreement:
    """Lets a criterion judge the answers that people have judged, and compares.

        judge = criterion_named({"judge": {...}})
        agreement = compare_with_people(judge, read_human_judgements("alignment.jsonl"))

    Args:
      criterion: One that passes and fails answers.
      people: Answers and people's judgements of them.
    """
    # Answers that nobody has judged are not judged here either: a judge costs money.
    labelled = [each for each in people if each.passed is not None]
    judgements = list(criterion.judge([each.example for each in labelled]))
    both = list(zip(labelled, judgements, strict=True))
    judged = [(each, said) for each, said in both if said.passed is not None]
    human = [bool(each.passed) for each, _ in judged]
    judge = [bool(said.passed) for _, said in judged]

    def overlap(passed: bool, of: Sequence[bool]) -> Estimate:
        # Both said `passed`, as a share of those that one of them said it of.
        agreed = sum(a == b == passed for a, b in zip(human, judge, strict=True))
        return share(agreed, list(of).count(passed))

    return HumanAgreement(
        criterion=criterion.name,
        answers=len(judged),
        agreement=share(sum(map(bool.__eq__, human, judge)), len(judged)),
        precision=overlap(True, judge),
        recall=overlap(True, human),
        fail_precision=overlap(False, judge),
        fail_recall=overlap(False, human),
        kappa=cohen_kappa(human, judge),
        disagreements=tuple(
            _disagreement(each, said) for each, said in judged if each.passed != said.passed
        ),
        unjudged=tuple(
            f"{each.where}: {said.explanation}" for each, said in both if said.passed is None
        ),
        without_judgement=len(people) - len(labelled),
    )


def _disagreement(labelled: HumanJudgement, said: Judgement) -> Disagreement:
    return Disagreement(
        where=labelled.where,
        messages=labelled.example.messages,
        completion=labelled.example.completion,
        person=_NAMES[bool(labelled.passed)],
        person_explanation=labelled.explanation,
        judge=_NAMES[bool(said.passed)],
        judge_explanation=said.explanation,
    )


def write_human_agreement(agreement: HumanAgreement, path: Path) -> None:
    """Writes figures, disagreements and answers that could not be judged as JSON.

    A figure that is undefined is null.
    """
    figures = {
        name: value._asdict() if isinstance(value, Estimate) else value
        for name, value in vars(agreement).items()
    }
    for value in figures.values():
        if isinstance(value, dict):
            # JSON has no NaN, which alone is unequal to itself.
            value.update({key: None for key, number in value.items() if number != number})
    figures["disagreements"] = [asdict(each) for each in agreement.disagreements]
    with replacing(path) as file:
        json.dump(figures, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
