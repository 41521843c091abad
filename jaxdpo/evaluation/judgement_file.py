"""Answers and criteria → a file of judgements, which an interrupted judging continues.

judgements.jsonl            every judgement, criterion after criterion: there when all are
judgements.jsonl.partial    those so far
judgements.settings.json    the criteria; others are refused
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxdpo.data.generations import Generation, load_lines
from jaxdpo.data.resumable import check_settings, partial_of, read_partial, write_whole
from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.evaluation.criteria.spec import Judge, Spec, criterion_named, label_of
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement

# So many answers are judged before what was said of them is written.
CHUNK = 64
# What may change while a judge goes on: it says the same.
_CHANGEABLE = {"key_env", "concurrency", "timeout", "retries", "cache", "prices"}


class JudgedLine(Generation):
    """One answer and what one criterion said of it."""

    criterion: str = Field(description="what it was judged by")
    passed: bool | None = Field(description="null: not judged, or only scored")
    score: float | None = Field(description="higher is better; null: only passed or not")
    explanation: str = Field(description="why, for people")

    @property
    def judged(self) -> bool:
        """Whether the criterion came to a judgement."""
        return self.passed is not None or self.score is not None


def judge_to_file(
    path: Path,
    generations: Sequence[Generation],
    criteria: Sequence[Spec],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[JudgedLine], dict[str, dict[str, float]]]:
    """Judges every answer by every criterion, keeps what is said as it comes, and returns all.

    Args:
      path: The file; those beside it are named after it.
      generations: The answers.
      criteria: What they are judged by.
      advance: Told of every so many judgements that there are.

    Returns:
      The judgements, criterion after criterion in the order of the answers, and what each criterion
      has cost.

    Raises:
      UserError: If the files are of other criteria, or cannot be written, or a judge stops.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_settings(path.with_suffix(".settings.json"), {"criteria": _depends_on(criteria)})
        partial = partial_of(path)
        kept = load_lines(path, JudgedLine) if path.exists() else []
        kept += read_partial(partial, JudgedLine)
        done = {_key(each, each.criterion): each for each in kept}
        spent = {}
        for spec in criteria:
            label = label_of(spec)
            missing = [each for each in generations if _key(each, label) not in done]
            advance(len(generations) - len(missing))
            if missing:
                criterion = criterion_named(spec)
                for line in _judge(criterion, missing, partial, advance):
                    done[_key(line, label)] = line
                spent[label] = criterion.spent()
        ordered = [done[_key(each, label_of(spec))] for spec in criteria for each in generations]
        write_whole(path, ordered, kept)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return ordered, spent


def _judge(
    criterion: Criterion,
    generations: Sequence[Generation],
    partial: Path,
    advance: Callable[[int], None],
) -> Iterable[JudgedLine]:
    with open(partial, "a", encoding="utf-8") as file:
        for start in range(0, len(generations), CHUNK):
            chunk = generations[start : start + CHUNK]
            examples = [Example(each.messages, each.completion, each.metadata) for each in chunk]
            for each, judgement in zip(chunk, criterion.judge(examples), strict=True):
                line = _line(each, criterion.name, judgement)
                file.write(line.line())
                file.flush()
                advance(1)
                yield line


def _line(each: Generation, criterion: str, judgement: Judgement) -> JudgedLine:
    return JudgedLine(**vars(each), criterion=criterion, **vars(judgement))


def _key(each: Generation, criterion: str) -> tuple[str, int, str, str, str]:
    return each.id, each.sample, each.model, each.completion, criterion


def _depends_on(criteria: Sequence[Spec]) -> list[dict[str, Any]]:
    found = [spec.model_dump(mode="json") for spec in criteria]
    for spec, values in zip(criteria, found, strict=True):
        if isinstance(spec, Judge):
            values["judge"] = {k: v for k, v in values["judge"].items() if k not in _CHANGEABLE}
    return found


def pass_rates(lines: Sequence[JudgedLine]) -> dict[str, Estimate]:
    """The share of answers that each criterion passes, and that all do, of those judged.

    An answer that a criterion could not judge counts for none of its shares, nor for that of all.
    """
    answers: dict[tuple[str, int, str, str, str], list[bool | None]] = {}
    by_criterion: dict[str, list[bool]] = {}
    for line in lines:
        answers.setdefault(_key(line, ""), []).append(line.passed)
        if line.passed is not None:
            by_criterion.setdefault(line.criterion, []).append(line.passed)
    rates = {name: share(sum(passed), len(passed)) for name, passed in by_criterion.items()}
    whole = [all(passed) for passed in answers.values() if None not in passed]
    return {**rates, "all": share(sum(whole), len(whole))}
