"""The table of losses tells the truth: what a loss lists changes it, and nothing else does."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import loss_sums, pair_losses
from jaxdpo.losses.table import LOSSES, Loss, LossName, readers
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores

PAIRS = 6
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(2, 20, (PAIRS, 2)).astype(np.float32)
# About -1 nat a token, so that no loss is at a saturated end where nothing changes it.
LOGPS = (-TOKENS * RNG.uniform(0.5, 1.5, (PAIRS, 2))).astype(np.float32)
REFERENCE = (LOGPS + RNG.normal(0, 1, (PAIRS, 2))).astype(np.float32)
LABELS = np.array([1, 0, 1, 1, 0, 1], np.float32)
WEIGHTS = RNG.uniform(0.5, 2, PAIRS).astype(np.float32)
MARGINS = RNG.uniform(0.1, 1, PAIRS).astype(np.float32)
# Another value of each option that a formula takes, and of the divergence.
OTHERS = {
    "beta": 0.25,
    "label_smoothing": 0.3,
    "gamma": 1.5,
    "alpha": 0.2,
    "discopop_tau": 0.4,
    "desirable_weight": 2.0,
    "undesirable_weight": 2.0,
    "f_divergence": "forward_kl",
}


def columns_of(name: str, **changed) -> PairColumns:
    labels = jnp.asarray(LABELS) if name == "kto" else None
    return PairColumns(reference=jnp.asarray(REFERENCE), labels=labels)._replace(**changed)


def scores_of(logps: np.ndarray) -> CompletionScores:
    return CompletionScores(jnp.asarray(logps), jnp.asarray(logps), jnp.asarray(TOKENS))


def total(name: LossName, columns: PairColumns, logps: np.ndarray = LOGPS, **options) -> float:
    # `model_copy` checks nothing, so that an option which the loss does not list can be set.
    needed = {"type": (name,), "label_smoothing": 0.1 if name == "exo_pair" else 0.0}
    config = LossConfig().model_copy(update=needed | options)
    everything, mean = jnp.ones(PAIRS, bool), jnp.float32(TOKENS[:, 0].mean())
    return float(loss_sums(config, scores_of(logps), columns, everything, mean)["loss"])


def test_every_name_has_an_entry_and_every_entry_a_name():
    assert tuple(LOSSES) == get_args(LossName)


@pytest.mark.parametrize("name", LOSSES)
def test_a_formula_takes_no_option_that_is_not_listed(name):
    taken = LOSSES[name].parameters & set(LossConfig.model_fields)
    assert taken <= set(LOSSES[name].options)


@pytest.mark.parametrize("option", OTHERS)
@pytest.mark.parametrize("name", LOSSES)
def test_an_option_changes_the_losses_that_list_it_and_no_others(name, option):
    before = total(name, columns_of(name))
    more = {"f_divergence": "alpha_divergence"} if option == "alpha" else {}
    if more:
        before = total(name, columns_of(name), **more)
    after = total(name, columns_of(name), **more, **{option: OTHERS[option]})
    assert (before != after) == (option in LOSSES[name].options)


@pytest.mark.parametrize("name", LOSSES)
def test_margins_and_weights_change_the_losses_that_list_them(name):
    before = total(name, columns_of(name))
    with_margins = total(name, columns_of(name, margins=jnp.asarray(MARGINS)))
    assert (before != with_margins) == ("data.margin_key" in LOSSES[name].options)
    with_weights = total(name, columns_of(name, weights=jnp.asarray(WEIGHTS)))
    assert (before != with_weights) == ("data.weight_key" in LOSSES[name].options)


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_changes_the_losses_that_need_it(name):
    other = columns_of(name, reference=jnp.asarray(REFERENCE + np.float32([3.0, -2.0])))
    changed = total(name, columns_of(name)) != total(name, other)
    assert changed == LOSSES[name].needs_reference


@pytest.mark.parametrize("name", LOSSES)
def test_one_pair_changes_the_others_losses_where_they_are_coupled(name):
    everything, mean = jnp.ones(PAIRS, bool), jnp.float32(TOKENS[:, 0].mean())
    smoothing = 0.1 if name == "exo_pair" else 0.0
    config = LossConfig().model_copy(update={"type": (name,), "label_smoothing": smoothing})

    def losses(logps: np.ndarray) -> np.ndarray:
        found = pair_losses(config, scores_of(logps), columns_of(name), everything, mean)
        return np.asarray(found[name])

    # One completion of the first pair becomes far likelier: enough to change the order of margins
    # and log-ratios, and the sign of the mean of the mismatched ones.
    moved = [LOGPS.copy(), LOGPS.copy()]
    moved[0][0, 0] += 30
    moved[1][0, 1] += 30
    changed = any((losses(LOGPS)[1:] != losses(each)[1:]).any() for each in moved)
    assert changed == LOSSES[name].couples
    assert LOSSES[name].couples or not LOSSES[name].sorts


def test_a_new_loss_reads_nothing_that_it_does_not_list(monkeypatch):
    options = {option for loss in LOSSES.values() for option in loss.options}
    monkeypatch.setitem(LOSSES, "new", Loss(lambda chosen_logratios: -chosen_logratios, ()))
    assert not any("new" in readers(option) for option in options)
