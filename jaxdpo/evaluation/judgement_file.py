"""Answers and criteria → a file of judgements, which an interrupted judging continues.

judgements.jsonl            every judgement, criterion after criterion: there when all are
judgements.jsonl.partial    those so far
judgements.settings.json    the criteria; others are refused
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from jaxdpo.data.generations import Generation
from jaxdpo.data.resumable import ResumableLines, resume_lines
from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.evaluation.criteria.spec import Judge, Spec, criterion_named, label_of, source_digest
from jaxdpo.evaluation.judgement import Criterion, Judgement, example_of

# So many answers are judged before their judgements are written. A judge that asks again where it
# cannot read a reply gives none before all of them are read, and a chunk is what a kill can lose.
CHUNK = 64
# Settings of a judge that change how it is asked and not what it says, so they may change between
# the beginning of a file and its end.
_CHANGEABLE = {"key_env", "concurrency", "timeout", "retries", "cache", "prices"}

# Id of the prompt, sample, model, answer and criterion.
Key = tuple[str, int, str, str, str]


class JudgedLine(Generation):
    """One answer and one criterion's judgement of it."""

    criterion: str = Field(description="the criterion's name")
    passed: bool | None = Field(description="null: not judged, or only scored")
    score: float | None = Field(description="higher is better; null: only passed or not")
    explanation: str = Field(description="why, for people")

    @property
    def judgement(self) -> Judgement:
        """The judgement by itself."""
        return Judgement(passed=self.passed, score=self.score, explanation=self.explanation)

    @property
    def judged(self) -> bool:
        """True if the criterion came to a judgement."""
        return self.judgement.judged


class JudgedAnswers(NamedTuple):
    """The judgements of answers.

    Attributes:
      lines: The judgements, criterion after criterion, each in the order of the answers.
      usage: Criterion ↦ what it has cost in this call, by name; none for those that had nothing
        left to judge.
    """

    lines: list[JudgedLine]
    usage: dict[str, dict[str, float]]

    def by_answer(self, answers: int) -> list[dict[str, Judgement]]:
        """Returns criterion ↦ judgement for each of so many answers, in their order."""
        found: list[dict[str, Judgement]] = [{} for _ in range(answers)]
        for number, line in enumerate(self.lines):
            # The lines go through all answers once for each criterion.
            found[number % answers][line.criterion] = line.judgement
        return found


def judge_to_file(
    path: Path,
    answers: Sequence[Generation],
    criteria: Sequence[Spec],
    advance: Callable[[int], None] = lambda _: None,
) -> JudgedAnswers:
    """Judges every answer by every criterion, writes judgements as they come, and returns all.

    Args:
      path: The file; those beside it are named after it.
      answers: The answers.
      criteria: The criteria.
      advance: Called with the number of judgements that were added.

    Raises:
      UserError: If the files are of other criteria, or cannot be written, or a judge stops.
    """
    usage = {}
    with resume_lines(
        path, JudgedLine, lambda x: _key(x, x.criterion), _settings(criteria)
    ) as file:
        for spec in criteria:
            label = label_of(spec)
            missing = [each for each in answers if _key(each, label) not in file]
            advance(len(answers) - len(missing))
            if missing:
                # Made only now: a judge that has nothing left to judge is not loaded.
                criterion = criterion_named(spec)
                _judge(criterion, missing, file, advance)
                usage[label] = criterion.usage()
        keys = [_key(each, label_of(spec)) for spec in criteria for each in answers]
        return JudgedAnswers(file.finish(keys), usage)


def _judge(
    criterion: Criterion,
    answers: Sequence[Generation],
    file: ResumableLines[JudgedLine],
    advance: Callable[[int], None],
) -> None:
    for start in range(0, len(answers), CHUNK):
        chunk = answers[start : start + CHUNK]
        judgements = criterion.judge([example_of(each) for each in chunk])
        for each, judgement in zip(chunk, judgements, strict=True):
            file.add(JudgedLine(**vars(each), criterion=criterion.name, **vars(judgement)))
            advance(1)


def _key(each: Generation, criterion: str) -> Key:
    return each.id, each.sample, each.model, each.completion, criterion


def _settings(criteria: Sequence[Spec]) -> dict[str, Any]:
    """Returns everything that judgements depend on beside the answers."""
    found = [spec.model_dump(mode="json") for spec in criteria]
    for spec, values in zip(criteria, found, strict=True):
        if isinstance(spec, Judge):
            values["judge"] = {k: v for k, v in values["judge"].items() if k not in _CHANGEABLE}
            # Files that are older than this setting go on where it is off.
            if not spec.judge.confidence:
                del values["judge"]["confidence"]
    # A function keeps its name when its author changes its mind: judgements of two versions of it
    # in one file would be compared as if they were by one.
    digests = {label_of(spec): digest for spec in criteria if (digest := source_digest(spec))}
    return {"criteria": found, **({"functions": digests} if digests else {})}


def pass_rates(lines: Sequence[JudgedLine]) -> dict[str, Estimate]:
    """Computes the share of answers that each criterion passes, and that all do, of those judged.

    An answer that a criterion could not judge counts for none of its shares, nor for that of all.
    """
    answers: dict[Key, list[bool | None]] = {}
    by_criterion: dict[str, list[bool]] = {}
    for line in lines:
        answers.setdefault(_key(line, ""), []).append(line.passed)
        if line.passed is not None:
            by_criterion.setdefault(line.criterion, []).append(line.passed)
    rates = {name: share(sum(passed), len(passed)) for name, passed in by_criterion.items()}
    whole = [all(passed) for passed in answers.values() if None not in passed]
    return {**rates, "all": share(sum(whole), len(whole))}
