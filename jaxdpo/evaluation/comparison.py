"""Models compared on the same prompts: all figures of an evaluation from its judged answers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from jaxdpo.evaluation import statistics
from jaxdpo.evaluation.agreement import UNDEFINED, share
from jaxdpo.evaluation.report.html import notebook_html
from jaxdpo.evaluation.report.verdict import verdict
from jaxdpo.evaluation.results import ALL, HeadToHead, Rate, Results, Row, Versus, judgement_of


class Comparison(Results):
    """The results of an evaluation, shown in a notebook as its chart and tables."""

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __repr__(self) -> str:
        # All prompts, answers and judgements would be pages.
        return f"Comparison({', '.join(self.models)}: {verdict(self)})"


def compare_rows(
    models: dict[str, str], criteria: Sequence[str], rows: Sequence[Row], usage: dict[str, float]
) -> Comparison:
    """Computes all figures of an evaluation.

    Args:
      models: Name ↦ where it lies, in the order in which they are compared.
      criteria: Their names.
      rows: Every prompt, answered by every model.
      usage: The cost of judging, by name.
    """
    passing = [name for name in criteria if _passes(rows, name)]
    # Of a single criterion "all of them" would be the same row again.
    names = (*criteria, ALL) if len(passing) > 1 else tuple(criteria)
    # In the order in which the models were named, so that "sft → dpo" reads forwards.
    pairs = list(itertools.combinations(models, 2))
    versus = [_versus(rows, first, second, name) for name in names for first, second in pairs]
    duels = [duel for pair in pairs if (duel := _head_to_head(rows, *pair)) is not None]
    # Together: each further comparison is a further chance of a difference that is none.
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
        usage=usage,
    )


def to_json(value: Any) -> Any:
    """Returns figures as JSON has them: named tuples as objects, undefined figures as null."""
    if hasattr(value, "_asdict"):
        return {name: to_json(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _passes(rows: Sequence[Row], criterion: str) -> bool:
    """Tells whether a criterion passes and fails answers, rather than scoring them alone."""
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
    # Only prompts on which both were judged: McNemar's test and its interval compare pairs.
    passed = [(bool(a.passed), bool(b.passed)) for a, b in said if None not in (a.passed, b.passed)]
    if passed:
        counts = statistics.pair_up([a for a, _ in passed], [b for _, b in passed])
        figures = (statistics.difference(counts), statistics.fewer_failures(counts))
        p_value = statistics.mcnemar(counts)
        # Adjusted once all comparisons are there.
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
