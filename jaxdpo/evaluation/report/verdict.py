"""The outcome of an evaluation in one sentence with its numbers."""

import math

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.results import ALL, SIGNIFICANT, HeadToHead, Results, Versus


def verdict(results: Results) -> str:
    """Says who won, by how much, and how sure that is.

    By all criteria together where there are several, else by the one there is; by the judge's
    choices where there are no criteria.

    Args:
      results: The figures.
    """
    prompts = f"{len(results.rows)} prompts"
    if len(results.models) == 1 and results.criteria:
        [model] = results.models
        criterion = results.criteria[-1]
        return f"{model} {_figure(results, model, criterion)} of {prompts}, by {criterion}."
    sentences = []
    if results.versus:
        sentences.append(_by_criterion(_most_telling(results), results, prompts))
    if results.head_to_head:
        sentences.append(_by_judge(results.head_to_head))
    return " ".join(sentences) or f"{prompts}; nothing compares the models."


def _most_telling(results: Results) -> Versus:
    """Returns the comparison of the best model with the next, by the criterion that counts."""
    criterion = ALL if ALL in results.criteria else results.criteria[0]
    # The best against the next best: that is the choice a reader has to make.
    ranked = sorted(results.models, key=lambda model: _value(results, model, criterion))
    best = set(ranked[-2:])
    return next(
        v for v in results.versus if v.criterion == criterion and {v.first, v.second} == best
    )


def _value(results: Results, model: str, criterion: str) -> float:
    value = _estimate(results, model, criterion).value
    # A model that could not be judged is never the best.
    return -math.inf if math.isnan(value) else value


def _estimate(results: Results, model: str, criterion: str) -> Estimate:
    rate = results.rate(model, criterion)
    return rate.mean_score if math.isnan(rate.pass_rate.value) else rate.pass_rate


def _by_criterion(versus: Versus, results: Results, prompts: str) -> str:
    second_better = versus.difference.value > 0
    better, other = (
        (versus.second, versus.first) if second_better else (versus.first, versus.second)
    )
    figures = [f"{m} {_figure(results, m, versus.criterion)}" for m in (better, other)]
    by = "by all criteria together" if versus.criterion == ALL else f"by {versus.criterion}"
    if versus.adjusted < SIGNIFICANT:
        won = f"{better} wins"
        sure = f"a difference that chance hardly explains (p = {versus.adjusted:.2g})"
    else:
        won = "No winner"
        sure = f"a difference that chance may explain (p = {versus.adjusted:.2g})"
    return f"{won} {by}: {figures[0]}, {figures[1]}, on {prompts}; {sure}."


def _by_judge(duels: tuple[HeadToHead, ...]) -> str:
    # Of several pairs of models the clearest one; the table has them all.
    duel = max(duels, key=lambda each: abs(each.win_rate.value - 0.5))
    rate = duel.win_rate
    if math.isnan(rate.value):
        return "The judge gave no verdict that could be read."
    sure = "" if duel.adjusted < SIGNIFICANT else ", which chance may explain"
    return (
        f"The judge prefers {duel.second} to {duel.first} on {rate.value:.0%} of prompts "
        f"(95% interval {100 * rate.low:.0f} to {100 * rate.high:.0f}%), ties counted half{sure}."
    )


def _figure(results: Results, model: str, criterion: str) -> str:
    estimate = _estimate(results, model, criterion)
    if math.isnan(estimate.value):
        return "could not be judged"
    if not math.isnan(results.rate(model, criterion).pass_rate.value):
        ends = f"{100 * estimate.low:.0f} to {100 * estimate.high:.0f}%"
        return f"passes on {estimate.value:.0%} (95% interval {ends})"
    return f"scores {estimate.value:.3g} (95% interval {estimate.low:.3g} to {estimate.high:.3g})"
