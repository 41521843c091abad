"""Use cases: a generator of examples, a criterion, and measures of quality."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split

# Pairs are made of in-domain prompts alone. Shifted ones have other topics and other wordings:
# there it is seen whether the lesson of the pairs holds beyond them.
Domain = Literal["in-domain", "shifted"]
DOMAINS: tuple[Domain, ...] = ("in-domain", "shifted")


class Written(NamedTuple):
    """A prompt, and an answer to it as an imperfect writer wrote it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class UseCase:
    """A task.

    Attributes:
      name: Name of the module, and of the files with its settings.
      title: Name for people.
      failure: The fault that is counted.
      published: Failures of 100 before and after DPO that were published for such a task.
      supervised_steps: Optimizer steps in which a small model learns the task from nothing.
      write: Draws a prompt and an imperfect answer.
      criterion: `module:function`, as criteria of one's own are given; its score orders the answers
        that pass.
      quality: Measures of an answer, 0 to 1, beside the criterion; each is averaged over the
        answers that have it.
    """

    name: str
    title: str
    failure: str
    published: tuple[float, float]
    supervised_steps: int
    write: Callable[[Domain, Split, random.Random], Written]
    criterion: str
    quality: Callable[[str, str], dict[str, float]]

    def judge(self, example: Example) -> Judgement:
        """Judges one answer by the criterion."""
        return next(criterion_named(self.criterion).judge([example]))

    def written(self, domain: Domain | None, split: Split, seed: str) -> Iterator[Written]:
        """Yields examples without end, no prompt twice.

        Args:
          domain: Their domain; None for both, by lot.
          split: "TRAIN" or "TEST": whose names they are about.
          seed: Of the draws; another use case draws others from the same one.
        """
        rng, seen = random.Random(f"{self.name} {seed}"), set()
        while True:
            example = self.write(domain or rng.choice(DOMAINS), split, rng)
            if example.prompt not in seen:
                seen.add(example.prompt)
                yield example


def named_in(text: str, table: Mapping[Domain, Sequence[str]]) -> list[str]:
    """Returns the words of a table that a text names, in the text's order."""
    known = {word for of_domain in table.values() for word in of_domain}
    return [word for word in re.findall(r"[a-z]+", text) if word in known]


def mean_quality(measures: Iterable[dict[str, float]]) -> dict[str, float]:
    """Computes the mean of each measure over the answers that have it."""
    found: dict[str, list[float]] = {}
    for of_answer in measures:
        for name, value in of_answer.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in sorted(found.items())}
