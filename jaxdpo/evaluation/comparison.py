"""Models compared on the same prompts: what they answered, and what was said of the answers."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxdpo.data.generations import Generation
from jaxdpo.data.prompts import Prompt
from jaxdpo.evaluation import statistics
from jaxdpo.evaluation.agreement import UNDEFINED, Estimate, share
from jaxdpo.evaluation.head_to_head import Preference
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement

# The name of what no single criterion is: an answer passes it if it passes all of them.
ALL = "all criteria"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One prompt, what each model answered, and what was said of it.

    Attributes:
      prompt: What was asked.
      answers: Model ↦ its answer.
      judgements: Model ↦ criterion ↦ what it says.
      preferences: Two models ↦ which answer the judge prefers.
    """

    prompt: Prompt
    answers: dict[str, Generation]
    judgements: dict[str, dict[str, Judgement]]
    preferences: dict[tuple[str, str], Preference] = field(default_factory=dict)


class Rate(NamedTuple):
    """How one model does by one criterion.

    Attributes:
      model: The model.
      criterion: The criterion.
      pass_rate: Share of its answers that pass; undefined where the criterion only scores.
      mean_score: Mean of their scores; undefined where it only passes or fails.
      judged: How many answers were judged.
      unjudged: How many could not be.
    """

    model: str
    criterion: str
    pass_rate: Estimate
    mean_score: Estimate
    judged: int
    unjudged: int


class Versus(NamedTuple):
    """Two models by one criterion, on the prompts on which both were judged.

    Attributes:
      first: One model.
      second: The other.
      criterion: The criterion.
      counts: On how many prompts which of them passed; None where the criterion only scores.
      difference: Of pass rates, or of mean scores: the second's less the first's.
      fewer_failures: By which share the second fails less often; undefined where not known.
      p_value: Of their being equal: McNemar's exact test, or the paired t-test of scores.
      adjusted: The same, raised by Holm's method for all comparisons of the evaluation.
    """

    first: str
    second: str
    criterion: str
    counts: statistics.Paired | None
    difference: Estimate
    fewer_failures: Estimate
    p_value: float
    adjusted: float


class HeadToHead(NamedTuple):
    """Two models before a judge: how often the second one's answer is preferred."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    failed: int
    win_rate: Estimate
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """What an evaluation found.

    Attributes:
      models: Name ↦ where it lies.
      criteria: Their names, with `ALL` last if there are several that pass and fail.
      rows: Every prompt.
      rates: Each model by each criterion.
      versus: Each two models by each criterion.
      head_to_head: Each two models before the judge.
      words: Model ↦ mean words of its answers.
      cut_off: Model ↦ answers that ended at the most tokens.
      spent: What judging cost, by name.
    """

    models: dict[str, str]
    criteria: tuple[str, ...]
    rows: tuple[Row, ...]
    rates: tuple[Rate, ...]
    versus: tuple[Versus, ...]
    head_to_head: tuple[HeadToHead, ...]
    words: dict[str, Estimate]
    cut_off: dict[str, int]
    spent: dict[str, float]

    def rate(self, model: str, criterion: str) -> Rate:
        """How a model does by a criterion."""
        return next(r for r in self.rates if (r.model, r.criterion) == (model, criterion))

    def _repr_html_(self) -> str:
        from jaxdpo.evaluation.report import notebook_html

        return notebook_html(self)


def judge_answers(
    criteria: Sequence[Criterion],
    answers: Mapping[str, Sequence[Generation]],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, list[dict[str, Judgement]]]:
    """What each criterion says of each model's answers: model ↦ by answer, criterion ↦ judgement.

    Args:
      criteria: What judges.
      answers: Model ↦ its answers.
      advance: Told of every judgement.
    """
    found: dict[str, list[dict[str, Judgement]]] = {}
    for model, given in answers.items():
        examples = [Example(a.messages, a.completion, a.metadata) for a in given]
        found[model] = [{} for _ in given]
        for criterion in criteria:
            for said, judgement in zip(found[model], criterion.judge(examples), strict=True):
                said[criterion.name] = judgement
                advance(1)
    return found


def judgement_line(answer: Generation, criterion: str, judgement: Judgement) -> str:
    """A line of a file of judgements, as `jaxdpo.collect criteria` reads them."""
    value = answer.model_dump(exclude={"finished"})
    if not answer.tools:
        del value["tools"]
    value |= {"criterion": criterion, **judgement.model_dump()}
    return json.dumps(value, ensure_ascii=False) + "\n"


def compare_rows(
    models: dict[str, str], criteria: Sequence[str], rows: Sequence[Row], spent: dict[str, float]
) -> Comparison:
    """All figures of an evaluation.

    Args:
      models: Name ↦ where it lies, in the order in which they are compared.
      criteria: Their names.
      rows: Every prompt, answered by every model.
      spent: What judging cost.
    """
    passing = [name for name in criteria if _passes(rows, name)]
    names = (*criteria, ALL) if len(passing) > 1 else tuple(criteria)
    pairs = list(itertools.combinations(models, 2))
    versus = [_versus(rows, first, second, name) for name in names for first, second in pairs]
    duels = [duel for pair in pairs if (duel := _head_to_head(rows, *pair)) is not None]
    adjusted = statistics.holm([each.p_value for each in (*versus, *duels)])
    return Comparison(
        models=dict(models),
        criteria=names,
        rows=tuple(rows),
        rates=tuple(_rate(rows, model, name) for name in names for model in models),
        versus=tuple(v._replace(adjusted=p) for v, p in zip(versus, adjusted, strict=False)),
        head_to_head=tuple(
            d._replace(adjusted=p) for d, p in zip(duels, adjusted[len(versus) :], strict=True)
        ),
        words={
            model: statistics.mean_score([len(r.answers[model].completion.split()) for r in rows])
            for model in models
        },
        cut_off={model: sum(not r.answers[model].finished for r in rows) for model in models},
        spent=spent,
    )


def judgement_of(row: Row, model: str, criterion: str) -> Judgement:
    """What is said of a model's answer, by one criterion or by all that pass and fail."""
    said = row.judgements[model]
    if criterion != ALL:
        return said[criterion]
    passing = [each for each in said.values() if each.passed is not None or each.score is None]
    if any(each.passed is None for each in passing):
        return Judgement(explanation="not judged by every criterion")
    failed = [name for name, judgement in said.items() if judgement.passed is False]
    return Judgement(passed=not failed, explanation=", ".join(failed))


def unjudged(comparison: Comparison) -> Iterator[tuple[str, str, str, str]]:
    """What could not be judged: prompt, model or models, criterion, why."""
    for row in comparison.rows:
        where = row.prompt.source or row.prompt.id
        for model, said in row.judgements.items():
            for name, judgement in said.items():
                if not judgement.judged:
                    yield where, model, name, judgement.explanation
        for (first, second), preference in row.preferences.items():
            if preference.verdict is None:
                yield where, f"{first} and {second}", "head to head", preference.explanation


def to_json(value: Any) -> Any:
    """Figures as JSON: named tuples as objects, what is undefined as null."""
    if hasattr(value, "_asdict"):
        return {name: to_json(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _passes(rows: Sequence[Row], criterion: str) -> bool:
    """Whether a criterion passes and fails answers, rather than scoring them alone."""
    said = [row.judgements[model][criterion] for row in rows for model in row.judgements]
    return any(judgement.passed is not None for judgement in said)


def _rate(rows: Sequence[Row], model: str, criterion: str) -> Rate:
    said = [judgement_of(row, model, criterion) for row in rows]
    passed = [judgement.passed for judgement in said if judgement.passed is not None]
    scores = [judgement.score for judgement in said if judgement.score is not None]
    judged = sum(judgement.judged for judgement in said)
    return Rate(
        model,
        criterion,
        share(sum(passed), len(passed)),
        statistics.mean_score(scores),
        judged,
        len(said) - judged,
    )


def _versus(rows: Sequence[Row], first: str, second: str, criterion: str) -> Versus:
    said = [(judgement_of(r, first, criterion), judgement_of(r, second, criterion)) for r in rows]
    passed = [(bool(a.passed), bool(b.passed)) for a, b in said if None not in (a.passed, b.passed)]
    if passed:
        counts = statistics.pair_up([a for a, _ in passed], [b for _, b in passed])
        figures = (statistics.difference(counts), statistics.fewer_failures(counts))
        p_value = statistics.mcnemar(counts)
        return Versus(first, second, criterion, counts, *figures, p_value, p_value)
    scores = [(a.score, b.score) for a, b in said if a.score is not None and b.score is not None]
    mean = statistics.score_difference([a for a, _ in scores], [b for _, b in scores])
    return Versus(first, second, criterion, None, mean.mean, UNDEFINED, mean.p_value, mean.p_value)


def _head_to_head(rows: Sequence[Row], first: str, second: str) -> HeadToHead | None:
    found = [row.preferences[first, second] for row in rows if (first, second) in row.preferences]
    if not found:
        return None
    verdicts = [preference.verdict for preference in found]
    wins, losses, ties = (verdicts.count(each) for each in ("second", "first", "tie"))
    p_value = statistics.sign_test(wins, losses)
    return HeadToHead(
        first,
        second,
        wins,
        losses,
        ties,
        verdicts.count(None),
        statistics.win_rate(wins, losses, ties),
        p_value,
        p_value,
    )
