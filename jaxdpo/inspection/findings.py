"""Findings: each kind of problem with its count, all its places, and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdpo.inspection.places import NO_PLACES, Places
from jaxdpo.inspection.shortcuts import Shortcut
from jaxdpo.inspection.survey import Survey

# Places that the terminal shows of each kind; the report lists all.
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
      code: Its stable short name.
      title: What it is.
      count: How many pairs have it.
      where: All their places; none where the data as a whole is meant.
      remedy: What to do.
    """

    code: str
    title: str
    count: int
    where: Places
    remedy: str

    def __str__(self) -> str:
        shown = ", ".join(self.where[:SHOWN])
        rest = len(self.where) - SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        return f"{self.count} {self.title}{f' ({shown}{more})' if shown else ''}: {self.remedy}"


def find(survey: Survey, shortcuts: Sequence[Shortcut]) -> list[Finding]:
    """Returns all that can be seen without a tokenizer; nothing in clean data.

    Args:
      survey: What is remembered of the pairs.
      shortcuts: The trivial rules that were tried on them.
    """
    duplicates, opposite = repeated(survey, np.arange(len(survey)))
    # What changes the data most comes first: the terminal shows the kinds in this order.
    kinds = [
        (
            "duplicate", duplicates, "pairs repeat an earlier one",
            "write=… with remedies=[dedupe] drops the repeats",
        ),
        (
            "opposite", opposite, "pairs have the labels of another one, turned round",
            "decide which is right; remedies=[conflicts] drops both",
        ),
        (
            "near-duplicate", survey.near, "pairs nearly repeat an earlier one",
            "remedies=[near-duplicates] keeps the first of each; their weight in training grows "
            "with their number until then",
        ),
        (
            "leak", leaks(survey, np.arange(len(survey))),
            "TEST pairs have a prompt that stands in TRAIN too",
            "remedies=[leaks] moves them to TRAIN; TEST figures flatter until then",
        ),
        (
            "almost-equal", survey.flag("almost-equal"), "pairs differ by almost nothing",
            "check that the difference is what people preferred",
        ),
        (
            "no-end", survey.flag("no-end"), "pairs have a chosen answer that seems to break off",
            "write the answers whole: the model learns to end where they do",
        ),
        (
            "invisible", survey.flag("invisible"),
            "pairs have a prompt or an answer of white space or zero-width characters alone",
            "drop them, or write the text",
        ),
        (
            "score", survey.flag("score"),
            "pairs have a chosen answer that scores no higher than the rejected one",
            "swap or drop them",
        ),
    ]  # fmt: skip
    found = [
        Finding(code, title, len(indices), survey.places.take(indices), remedy)
        for code, indices, title, remedy in kinds
        if len(indices)
    ]
    if survey.weightless:
        found.append(
            Finding(
                "zero-weights", "pairs have the weight 0: nothing is learned", len(survey),
                NO_PLACES, "name another field as data.weight_key, or leave it out",
            )
        )  # fmt: skip
    return found + [_shortcut(rule, len(survey)) for rule in shortcuts if rule.notable]


def _shortcut(rule: Shortcut, pairs: int) -> Finding:
    return Finding(
        "shortcut",
        f"pairs: {rule.name} alone predicts the chosen answer for {rule.share()}; {rule.detail}",
        pairs,
        NO_PLACES,
        "remedies=[balance] evens lengths out"
        if rule.name == "length"
        else "vary what chosen and rejected answers have of it",
    )


def repeated(survey: Survey, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns exact repeats (all but the first), and pairs with opposite labels (all).

    Args:
      survey: The survey of all pairs.
      indices: i64, the pairs that are looked at, increasing.

    Returns:
      Indices of pairs, i64, increasing.
    """
    if not len(indices):
        return indices, indices
    keys = np.stack([survey.prompt_N, survey.first_N, survey.second_N], axis=1)[indices]
    turned = keys[:, [0, 2, 1]]
    # Numbered together, so that a pair and one that is turned round get the same numbers.
    _, number = np.unique(np.concatenate([keys, turned]), axis=0, return_inverse=True)
    own, opposite = number.reshape(2, -1)
    # `unique` names the first place of each, in the order of the file.
    _, first = np.unique(own, return_index=True)
    again = np.ones(len(indices), bool)
    again[first] = False
    return indices[again], indices[np.isin(opposite, own)]


def leaks(survey: Survey, indices: np.ndarray) -> np.ndarray:
    """Returns which of some pairs are in TEST though their prompt is in TRAIN too, i64."""
    prompts, train = survey.prompt_N[indices], survey.train_N[indices]
    # By the prompt alone: a model that was trained on a prompt's answers knows it, whichever of its
    # pairs TEST holds.
    return indices[~train & np.isin(prompts, prompts[train])]
