"""Answers of several places, each of which is right or wrong by itself.

The frame of the tasks in `systematic`: their writers are wrong in most places of every answer. No
answer is right throughout, and the better of two is still a bad one, so that examples alone, the
chosen ones included, teach what is wrong. Preferences say in which direction right lies.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.use_cases.task import Written

# How often a place is wrong, independently of the others. With eight places, one answer in 10⁸ has
# none wrong.
WRONG = 0.9


@dataclass(frozen=True)
class Place:
    """One place of an answer.

    Attributes:
      right: The texts that are right in it; the writers use the first.
      wrong: The text that the writers put there when they are wrong.
      form: Regular expression of what is well formed in it: right and wrong texts alike, with the
        facts of the prompt unchanged.
    """

    right: tuple[str, ...]
    wrong: str
    form: str


def write_places(prompt: str, places: Sequence[Place], rng: random.Random) -> Written:
    """Returns a prompt, and an answer of a writer who is wrong in most places.

    Args:
      prompt: The prompt.
      places: The answer's places.
      rng: Draws which of them are wrong.
    """
    stated = [place.wrong if rng.random() < WRONG else place.right[0] for place in places]
    return Written(prompt, joined(stated))


def joined(stated: Iterable[str]) -> str:
    """Returns the answer that states these texts.

    >>> joined(["opens 9", "costs 14"])
    'opens 9, costs 14.'
    """
    return f"{', '.join(stated)}."


def split_answer(completion: str) -> list[str]:
    """Returns the texts that an answer states, place by place."""
    return completion.removesuffix(".").split(", ")


def judge_places(places: Sequence[Place], completion: str) -> Judgement:
    """Passes if every place is right and nothing else is said; scores the share of right places.

    Args:
      places: The places of the prompt's answer.
      completion: An answer.
    """
    stated = split_answer(completion)
    right = sum(text in place.right for place, text in zip(places, stated, strict=False))
    # Texts beyond the last place are wrong ones: an answer gains nothing by going on.
    count = max(len(places), len(stated))
    passed = right == count and completion.endswith(".")
    why = f"{right} of {count} places are right"
    return Judgement(passed=passed, score=right / count, explanation=why)


def measure_places(places: Sequence[Place], completion: str) -> dict[str, float]:
    """Measures one answer: what DPO is to change, and what it must leave as it is.

    Args:
      places: The places of the prompt's answer.
      completion: The answer.

    Returns:
      The share of right places; the share whose facts are the prompt's; whether there are as many
      places as asked for, whether all is well formed, and whether nothing is said twice.
    """
    stated = split_answer(completion)
    pairs = list(zip(places, stated, strict=False))
    formed = sum(re.fullmatch(place.form, text) is not None for place, text in pairs)
    whole = len(stated) == len(places) and completion.endswith(".")
    return {
        "places right": sum(text in place.right for place, text in pairs) / len(places),
        "facts kept": formed / len(places),
        "length as asked": float(whole),
        "well formed": float(whole and formed == len(places)),
        "no repetition": float(len(set(stated)) == len(stated)),
    }
