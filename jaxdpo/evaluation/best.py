"""Best of n: the best of several answers to a prompt."""

from collections.abc import Sequence
from statistics import fmean

from jaxdpo.data.generations import Generation
from jaxdpo.evaluation.judgement import Judgement


def mean_score(said: dict[str, Judgement]) -> float | None:
    """Returns the mean of an answer's values by its criteria; None if one could not judge it."""
    if not all(judgement.judged for judgement in said.values()):
        return None
    return fmean(judgement.value for judgement in said.values())


def best_of(
    answers: Sequence[Generation], judgements: Sequence[dict[str, Judgement]]
) -> list[Generation]:
    """Returns each prompt's best answer, by the mean over the criteria; of equal ones the first.

    Prompts without an answer that every criterion judged have none.

    Args:
      answers: Answers to any prompts.
      judgements: Criterion ↦ judgement, for each answer.
    """
    best: dict[str, tuple[float, Generation]] = {}
    for answer, said in zip(answers, judgements, strict=True):
        value = mean_score(said)
        # Strictly greater: of answers that are equally good the first is kept, whatever the order
        # of criteria or of a set.
        if value is not None and (answer.id not in best or value > best[answer.id][0]):
            best[answer.id] = (value, answer)
    return [answer for _, answer in best.values()]
