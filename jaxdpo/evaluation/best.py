"""The best of several answers to a prompt."""

from collections.abc import Sequence
from statistics import fmean

from jaxdpo.data.generations import Generation
from jaxdpo.evaluation.judgement import Judgement


def worth(said: dict[str, Judgement]) -> float | None:
    """The mean of what an answer's criteria give it; None if one of them could not judge it."""
    if not all(judgement.judged for judgement in said.values()):
        return None
    return fmean(judgement.value for judgement in said.values())


def best_of(
    answers: Sequence[Generation], judgements: Sequence[dict[str, Judgement]]
) -> list[Generation]:
    """Each prompt's best answer, by the mean over the criteria; of equal ones the first.

    Prompts of which no answer was judged by every criterion have none.

    Args:
      answers: Answers to any prompts.
      judgements: Of each answer, criterion ↦ judgement.
    """
    best: dict[str, tuple[float, Generation]] = {}
    for answer, said in zip(answers, judgements, strict=True):
        value = worth(said)
        if value is not None and (answer.id not in best or value > best[answer.id][0]):
            best[answer.id] = (value, answer)
    return [answer for _, answer in best.values()]
