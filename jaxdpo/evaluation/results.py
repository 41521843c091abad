"""The figures of an evaluation: every prompt's answers and judgements, and their totals."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxdpo.data.generations import Generation
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.evaluation import statistics
from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.evaluation.judges.pairwise import Preference

# In the place of a criterion's name: an answer passes it if it passes all of them.
ALL = "all criteria"
# Below this adjusted p-value two models are called different.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Row:
    """One prompt with each model's answer and its judgements.

    Attributes:
      prompt: The prompt.
      answers: Model ↦ its answer.
      judgements: Model ↦ criterion ↦ judgement of its answer.
      preferences: Two models ↦ the answer that the judge prefers.
    """

    prompt: Prompt
    answers: dict[str, Generation]
    judgements: dict[str, dict[str, Judgement]]
    preferences: dict[tuple[str, str], Preference] = field(default_factory=dict)


class Rate(NamedTuple):
    """Pass rate and mean score of one model by one criterion.

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
      p_value: P-value of no difference: McNemar's exact test, or the paired t-test of scores.
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
class Results:
    """The figures of an evaluation.

    Attributes:
      models: Name ↦ where it lies.
      criteria: Their names, with `ALL` last if there are several that pass and fail.
      rows: Every prompt.
      rates: Each model by each criterion.
      versus: Each two models by each criterion.
      head_to_head: Each two models before the judge.
      words: Model ↦ mean words of its answers.
      cut_off: Model ↦ answers that ended at the most tokens.
      usage: The cost of judging, by name.
    """

    models: dict[str, str]
    criteria: tuple[str, ...]
    rows: tuple[Row, ...]
    rates: tuple[Rate, ...]
    versus: tuple[Versus, ...]
    head_to_head: tuple[HeadToHead, ...]
    words: dict[str, Estimate]
    cut_off: dict[str, int]
    usage: dict[str, float]

    def rate(self, model: str, criterion: str) -> Rate:
        """Returns the figures of a model by a criterion."""
        return next(r for r in self.rates if (r.model, r.criterion) == (model, criterion))


def judgement_of(row: Row, model: str, criterion: str) -> Judgement:
    """Returns the judgement of a model's answer, by one criterion or by all that pass and fail.

    Args:
      row: The prompt.
      model: Name of the model.
      criterion: Name of the criterion, or `ALL`.
    """
    said = row.judgements[model]
    if criterion != ALL:
        return said[criterion]
    # A criterion that only scores has no part in "all pass", and one without a judgement counts as
    # one that passes and fails: its answer would be judged on fewer criteria than the others.
    passing = [each for each in said.values() if each.passed is not None or each.score is None]
    if any(each.passed is None for each in passing):
        return Judgement(explanation="not judged by every criterion")
    failed = [name for name, judgement in said.items() if judgement.passed is False]
    return Judgement(passed=not failed, explanation=", ".join(failed))


def unjudged(results: Results) -> Iterator[tuple[str, str, str, str]]:
    """Yields every answer that could not be judged: prompt, model or models, criterion, why."""
    for row in results.rows:
        where = row.prompt.source or row.prompt.id
        for model, said in row.judgements.items():
            for name, judgement in said.items():
                if not judgement.judged:
                    yield where, model, name, judgement.explanation
        for (first, second), preference in row.preferences.items():
            if preference.verdict is None:
                yield where, f"{first} and {second}", "head to head", preference.explanation
