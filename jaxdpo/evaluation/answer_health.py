"""The health of a model's answers while it trains: whether they end, repeat themselves, or pass.

Loss and margins can improve while answers fall apart, so a run answers a few TEST prompts at each
evaluation and reports what a reader would notice first.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.evaluation.agreement import share
from jaxdpo.evaluation.criteria.spec import Criteria
from jaxdpo.evaluation.judgement import Criterion, Example
from jaxdpo.training.best_step import PASS_RATE

# Welleck et al. 2019 count repeated 4-grams; of fewer than 24 tokens too few are left to count.
_NGRAM, _FEWEST_TOKENS = 4, 24
# People hardly ever repeat four words in a row, and lists repeat some. An answer in which most
# 4-grams stood before is a loop.
_REPETITIVE = 0.5
# Metrics of answers begin with this, and those of criteria with the second.
PREFIX = "answers/"
assert PASS_RATE.startswith(PREFIX)


class WatchConfig(BaseModel):
    """The TEST prompts that the policy answers at each evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(
        default=8, ge=0, le=64, description="TEST prompts answered at each evaluation; 0: none"
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens of an answer at most, answers being greedy; default: twice the longest "
        "answer that the data has to these prompts, so that what does not end by then never will",
    )
    criteria: Criteria | None = Field(
        default=None, description="criteria whose pass rates are reported; default: none"
    )


class WatchedAnswer(NamedTuple):
    """One answer to one of the watched prompts.

    Attributes:
      example: The prompt with the answer's text, as criteria are given them.
      ids: i32 `[n]`, the answer's tokens without its end token.
      finished: Whether it ended by itself rather than at the most tokens allowed.
    """

    example: Example
    ids: np.ndarray
    finished: bool


def repetition(ids: np.ndarray) -> float:
    """Returns the share of an answer's 4-grams that repeat an earlier one.

    It is seq-rep-4 of Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training",
    section 6.1: 1 − distinct 4-grams / 4-grams.

    >>> repetition(np.tile([5, 6], 20)).__round__(2)
    0.95

    Args:
      ids: i32 `[n]`, tokens.

    Returns:
      The share, from 0 to 1; 0 for answers of fewer than 24 tokens.
    """
    if len(ids) < _FEWEST_TOKENS:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(ids, _NGRAM)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)


def answer_metrics(
    answers: Sequence[WatchedAnswer], criteria: Sequence[Criterion]
) -> dict[str, float]:
    """Returns what a reader would notice of a model's answers, as metrics of an evaluation.

    An answer is broken if it does not end, is empty, or repeats itself; each is a share of the
    answers. An answer that a criterion cannot judge counts for none of its pass rate.

    Args:
      answers: The answers; at least one.
      criteria: What they are judged by.

    Returns:
      `answers/unfinished`, `answers/empty`, `answers/repetitive`, `answers/broken` (shares),
      `answers/tokens` (mean), and `answers/pass_rate/<criterion>` with the ends of its 95%
      interval, the same with `_low` and `_high` behind it.
    """
    unfinished = [not each.finished for each in answers]
    empty = [not each.example.completion.strip() for each in answers]
    repetitive = [repetition(each.ids) > _REPETITIVE for each in answers]
    broken = [any(faults) for faults in zip(unfinished, empty, repetitive, strict=True)]
    shares = {
        "unfinished": unfinished,
        "empty": empty,
        "repetitive": repetitive,
        "broken": broken,
        "tokens": [len(each.ids) for each in answers],
    }
    metrics = {PREFIX + name: float(np.mean(values)) for name, values in shares.items()}
    examples = [each.example for each in answers]
    for criterion in criteria:
        passed = [each.passed for each in criterion.judge(examples) if each.passed is not None]
        if passed:
            rate, name = share(sum(passed), len(passed)), PASS_RATE + criterion.name
            metrics |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return metrics


def collapsed(before: Mapping[str, float], now: Mapping[str, float], more: float) -> str | None:
    """Says how answers fell apart since training began, if they did.

    Args:
      before: Metrics of the evaluation before the first step.
      now: Metrics of a later evaluation.
      more: The share of broken answers, beyond that before training, that counts as a collapse.

    Returns:
      A sentence with the numbers, or None.
    """
    name = f"{PREFIX}broken"
    if name not in now or now[name] < before.get(name, 0.0) + more:
        return None
    kinds = ("unfinished", "empty", "repetitive")
    shown = ", ".join(f"{now[PREFIX + kind]:.0%} {kind}" for kind in kinds if now[PREFIX + kind])
    return (
        f"{now[name]:.0%} of the answers to TEST prompts are broken ({shown}), and "
        f"{before.get(name, 0.0):.0%} were before training"
    )
