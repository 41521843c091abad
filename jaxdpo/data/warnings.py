"""Warnings about data that trains, but not as it was meant: for inspection and the start of a run.

Each `warn_of_…` returns one sentence that says what is wrong, by value, and what to do; or None.
"""

import re
import unicodedata

import numpy as np

# Fewer optimizer steps than this teach next to nothing: the warm-up alone takes about as many.
FEW_STEPS = 5
# Where this share of the pairs is dropped, the rest no longer stands for the data.
_MANY_DROPPED = 0.5
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
        f"{batch_size} a step), which teaches next to nothing; lower batch.size, or raise "
        "training.epochs or training.max_steps"
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
