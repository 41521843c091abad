"""Warnings come where data trains, but not as it was meant, and nowhere else."""

import numpy as np
import pytest

from jaxdpo.data.reading.reports import TokenizeReport
from jaxdpo.data.warnings import (
    breaks_off,
    is_invisible,
    warn_of_drops,
    warn_of_steps,
    warn_of_weights,
)

LONG = "The town hall opens at nine and closes at five, and on Fridays it closes at noon, so that "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG + "people who come", True),
        (LONG + "people who come,", True),
        (LONG + "people who come \n", True),
        (LONG + "nobody waits.", False),
        (LONG + "nobody waits!", False),
        (LONG + 'they say "come"', False),
        (LONG + "nobody waits:\n- one\n- two", False),
        (LONG + "nobody waits:\n\n    return x", False),
        ("No", False),
        ("", False),
        ("   ", False),
        (LONG + "誰も待たない。", False),
    ],
)
def test_answers_that_break_off(text: str, expected: bool):
    assert breaks_off(text) is expected


@pytest.mark.parametrize("text", ["\u200b", " \n\t", "\u2060\ufeff", "\u00a0\u3000", "\x07"])
def test_text_that_shows_nothing(text: str):
    assert is_invisible(text)
    assert not is_invisible(text + "a")


def test_a_text_of_no_characters_is_not_invisible():
    assert not is_invisible("")


def test_weights_that_are_all_zero():
    zero = np.zeros(3, np.float32)
    assert "weight of all 3 TRAIN pairs is 0" in (warn_of_weights(zero, "w") or "")
    assert "data.weight_key=w" in (warn_of_weights(zero, "w") or "")
    assert warn_of_weights(np.array([0, 0, 0.5], np.float32), "w") is None
    assert warn_of_weights(None, None) is None


@pytest.mark.parametrize(("steps", "said"), [(1, "1 optimizer step "), (2, "2 optimizer steps ")])
def test_a_run_of_two_steps(steps: int, said: str):
    warning = warn_of_steps(steps, pairs=64, batch_size=32)
    assert warning is not None
    assert said in warning
    assert "64 TRAIN pairs, 32 a step" in warning


def test_a_run_of_many_steps_is_not_warned_of():
    assert warn_of_steps(5, pairs=160, batch_size=32) is None


def test_a_limit_that_drops_half_of_the_pairs():
    assert "drops 5 of 10 pairs" in (warn_of_drops(5, 5, 64) or "")
    assert warn_of_drops(4, 6, 64) is None
    assert warn_of_drops(0, 0, 64) is None
    places = tuple(f"a.jsonl:{i}" for i in range(6))
    assert "warning: data.max_length=64 drops 6" in TokenizeReport(2, dropped=places).summary(64)
    assert "warning" not in TokenizeReport(20, dropped=places).summary(64)
