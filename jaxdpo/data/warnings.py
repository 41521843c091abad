"""Warnings about data that trains, but not as it was meant: for inspection and the start of a run.

Each function returns one sentence that says what is wrong, by value, and what to do; or None.
"""

import re
import unicodedata
from collections.abc import Mapping

import numpy as np

# Fewer optimizer steps than this teach next to nothing: the warm-up alone takes about as many.
FEW_STEPS = 5
# Shares of the data from which on a run warns.
_MANY_BREAK_OFF, _MANY_DROPPED = 0.1, 0.5
# Answers of fewer words are titles, names and labels, which end without a full stop.
_LONG_ANSWER = 20
_WORD = re.compile(r"\w+")


def breaks_off(text: str) -> bool:
    """Returns whether a long answer ends in the middle of a sentence, by its last character.

    >>> breaks_off("word " * 20 + "and then the"), breaks_off("word " * 20 + "end.")
    (True, False)
    """
    text = text.rstrip()
    # The last character decides most answers, and costs nothing: look at it first. Scripts other
    # than ASCII's have full stops of their own, and some have none.
    if not text or not text[-1].isascii() or not (text[-1].isalnum() or text[-1] == ","):
        return False
    last = text[text.rfind("\n") + 1 :]
    # The last item of a list, a heading or a line of code ends without a full stop.
    if last.lstrip()[:1] in "-*#•|0123456789" or last[:1].isspace():
        return False
    words = _WORD.finditer(text)
    return sum(1 for _ in zip(range(_LONG_ANSWER), words, strict=False)) == _LONG_ANSWER


def is_invisible(text: str) -> bool:
    """Returns whether a text holds characters, but only white space and zero-width ones.

    >>> is_invisible("\\u200b \\n"), is_invisible(""), is_invisible("a")
    (True, False, False)
    """
    # Cc, Cf and Z…: control characters, formatting ones such as U+200B, and separators. The first
    # character of nearly every text is a letter, so nearly always one is looked at.
    return bool(text) and all(unicodedata.category(c)[0] in "ZC" for c in text)


def warn_of_labels(labels: Mapping[str, int]) -> str | None:
    """Warns of labelled answers that all have one label.

    Args:
      labels: Answers by label, "true" and "false"; empty for pairs.
    """
    if len(labels) != 1:
        return None
    [(label, count)] = labels.items()
    missing = "false" if label == "true" else "true"
    return (
        f"all {count} labelled answers have the label {label}: nothing says what to prefer them "
        f"to; add answers with the label {missing}, or train on the good ones with loss.type=sft"
    )


def warn_of_weights(weights: np.ndarray | None, key: str | None) -> str | None:
    """Warns of weights that leave nothing to train on.

    Args:
      weights: f32 `[N]`, the pairs' factors on the loss, or None.
      key: The field of the metadata that they come from.
    """
    if weights is None or not len(weights) or weights.any():
        return None
    return (
        f"data.weight_key={key}: the weight of all {len(weights)} TRAIN pairs is 0, so nothing is "
        "learned; name another field, or leave it out"
    )


def warn_of_steps(
    steps: int, pairs: int, batch_size: int, period: str = "the whole run"
) -> str | None:
    """Warns of a handful of optimizer steps.

    Args:
      steps: Optimizer steps of the period.
      pairs: TRAIN pairs.
      batch_size: Pairs of an optimizer step.
      period: What the steps are of, as the sentence begins.
    """
    if steps >= FEW_STEPS:
        return None
    return (
        f"{period} is {steps} optimizer step{'s' if steps != 1 else ''} ({pairs} TRAIN pairs, "
        f"{batch_size} a step), which teaches next to nothing; lower batch.size or raise "
        "training.epochs"
    )


def warn_of_drops(dropped: int, kept: int, max_length: int) -> str | None:
    """Warns of a `data.max_length` that drops half of the pairs or more.

    Args:
      dropped: Pairs that were dropped because their completions leave the prompt no room.
      kept: Pairs that are left.
      max_length: Most tokens of a prompt and one completion.
    """
    if not dropped or dropped < _MANY_DROPPED * (dropped + kept):
        return None
    return (
        f"data.max_length={max_length} drops {dropped} of {dropped + kept} pairs, the long answers "
        "among them, so that the rest no longer stands for the data; raise data.max_length"
    )


def warn_of_broken_off(count: int, answers: int, first: str) -> str | None:
    """Warns of answers that end in the middle of a sentence.

    Args:
      count: Answers that should be learned and break off.
      answers: All answers that should be learned.
      first: `file:line` of the first that breaks off.
    """
    if count < max(_MANY_BREAK_OFF * answers, 1):
        return None
    return (
        f"{count} of {answers} answers to be learned seem to break off in the middle of a sentence "
        f"(first at {first}); they may have been cut at a token limit: write them whole, because "
        "the model learns to end where they do"
    )


def warn_of_invisible(count: int, first: str) -> str | None:
    """Warns of prompts or answers that show nothing.

    Args:
      count: Pairs with such a text.
      first: `file:line` of the first.
    """
    if not count:
        return None
    return (
        f"{count} pairs have a prompt or an answer of white space or zero-width characters alone "
        f"(first at {first}); drop them, or write the text"
    )
