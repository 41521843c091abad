"""Models compared on the same prompts: what they answered, and what was said of the answers."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxdpo.data.generations import Generation
from jaxdpo.evaluation import statistics
from jaxdpo.evaluation.agreement import UNDEFINED, share
from jaxdpo.evaluation.judgement import Criterion, Example, Judgement
from jaxdpo.evaluation.report.html import notebook_html
from jaxdpo.evaluation.results import ALL, HeadToHead, Rate, Results, Row, Versus, judgement_of


class Comparison(Results):
    """The results of an evaluation, shown in a notebook as its chart and tables."""

    def _repr_html_(self) -> str:
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
