"""The parts of a task: its prompts of three splits, and its criterion."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Judgement

# Settings are chosen on VALIDATION and measured on TEST. No topic of one split is in another.
Split = Literal["TRAIN", "VALIDATION", "TEST"]
# The most that an answer scores which does not pass: it is never near one that does.
_MOST_FAILED = 0.6
# Draws in a row that yield nothing new, after which there is nothing new.
_IN_VAIN = 1000


@dataclass(frozen=True)
class Asked:
    """A prompt, and what its criterion must know beside it."""

    prompt: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task for a language model.

    Attributes:
      name: Name of its module, and of its folder.
      title: Name for people.
      asks: The question in one line, for people.
      criterion: `module:function`, as criteria of one's own are given to the commands.
      draw: Draws prompts of a split: (split, number of prompts, draws) → prompts, none twice.
      max_new_tokens: Tokens of an answer at most, well above what a right one has.
    """

    name: str
    title: str
    asks: str
    criterion: str
    draw: Callable[[Split, int, random.Random], Sequence[Asked]]
    max_new_tokens: int


def distinct(count: int, draw: Callable[[], Asked]) -> list[Asked]:
    """Draws until there are so many different prompts.

    Args:
      count: Number of prompts.
      draw: Draws one, which may have been drawn before.

    Raises:
      UserError: If there are not so many.
    """
    found: dict[str, Asked] = {}
    in_vain = 0
    while len(found) < count:
        asked = draw()
        in_vain = in_vain + 1 if asked.prompt in found else 0
        if in_vain == _IN_VAIN:
            raise UserError(f"there are only about {len(found)} such prompts, and not {count}")
        found.setdefault(asked.prompt, asked)
    return list(found.values())


def judged(checks: Mapping[str, bool]) -> Judgement:
    """Passes an answer that meets every check; others score by how many they meet.

    The score parts bad answers from worse, so that pairs can be made of prompts of which no answer
    is right.

    Args:
      checks: What is asked for ↦ whether it is met.
    """
    # Every check weighs the same: which of two bad answers is better is not known any better.
    failed = [name for name, met in checks.items() if not met]
    met = len(checks) - len(failed)
    score = 1.0 if not failed else _MOST_FAILED * met / len(checks)
    said = "right in all" if not failed else f"not: {', '.join(failed)}"
    return Judgement(passed=not failed, score=score, explanation=said)
