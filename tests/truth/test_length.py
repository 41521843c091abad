"""Length bias of DPO and its cures, on policies that stop with one probability after each token.

Park et al. 2024, "Disentangling Length from Quality in Direct Preference Optimization"
(arXiv 2403.19159). Answers are good or bad and 4 or 8 tokens long. People prefer good ones, and
beside that longer ones: by BT scores of their own, QUALITY for a good answer and LENGTH a token,
so that of two answers that differ in length alone the longer one is chosen with p = 0.7.
A policy has two numbers: log-odds of a good answer, and of stopping after a token. So
log π(y) = log π(quality) + (n − 1) log(1 − s) + log s, and its answers have 1/s tokens on average.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from jaxdpo.losses import LossConfig
from jaxdpo.scoring.logprobs import sum_by_completion, tail_discounts
from tests.truth.tabular import loss_of_logps, minimise

ANSWERS = list(itertools.product((0, 1), (4, 8)))
QUALITY, LENGTH = 1.0, logit(0.7) / 4
BETA = 2.0
# Answers of the reference have 6 tokens on average, as those of the pairs have.
STOP = 1 / 6
# For each ordered pair of answers: (quality, length) of both, and how often the first is chosen.
PAIRS = [(a, b) for a, b in itertools.permutations(ANSWERS, 2)]
GOOD = np.array([[a[0], b[0]] for a, b in PAIRS])
TOKENS = np.array([[a[1], b[1]] for a, b in PAIRS])
WEIGHTS = expit(QUALITY * (GOOD[:, 0] - GOOD[:, 1]) + LENGTH * (TOKENS[:, 0] - TOKENS[:, 1]))
WEIGHTS /= WEIGHTS.sum()


def answer_logps(theta: jax.Array, ld_alpha: float) -> jax.Array:
    """log π of both answers of each pair, f64 `[N, 2]`.

    Args:
      theta: f64 `[2]`, log-odds of a good answer and of stopping.
      ld_alpha: Factor on the tokens that the longer answer has more (LD-DPO).
    """
    quality = jnp.where(GOOD == 1, jax.nn.log_sigmoid(theta[0]), jax.nn.log_sigmoid(-theta[0]))
    # A row for each pair, as packing lays it out: the chosen answer's tokens, the rejected one's.
    place, longest = np.arange(2 * TOKENS.max())[None], TOKENS.sum(1, keepdims=True)
    is_token = place < longest
    branch = np.where(is_token, np.where(place < TOKENS[:, :1], 1, 2), 0).astype(np.int32)
    last = (place == TOKENS[:, :1] - 1) | (place == longest - 1)
    stop, go_on = jax.nn.log_sigmoid(theta[1]), jax.nn.log_sigmoid(-theta[1])
    logps = jnp.where(is_token, jnp.where(last, stop, go_on), 0.0)
    pair, lengths = jnp.asarray(is_token.astype(np.int32)), jnp.asarray(TOKENS[:, None], float)
    factors = tail_discounts(pair, jnp.asarray(branch), lengths, ld_alpha)
    return quality + sum_by_completion(logps * factors, pair, jnp.asarray(branch), 1)[:, 0]


def trained(config: LossConfig, ld_alpha: float = 1.0, margins: np.ndarray | None = None) -> tuple:
    """(probability of a good answer, mean length) of the policy that minimises the loss."""
    start = np.array([0.0, logit(STOP)])

    def objective(theta: jax.Array) -> jax.Array:
        reference = answer_logps(jnp.asarray(start), ld_alpha)
        logps = answer_logps(theta, ld_alpha)
        return loss_of_logps(config, logps, reference, WEIGHTS, TOKENS.astype(float), margins)

    good, stop = expit(minimise(objective, start))
    return good, 1 / stop


def test_dpo_outgrows_both_sides_and_a_margin_cures_it() -> None:
    """DPO's answers become longer than any that it saw; R-DPO's stay as long as the reference's.

    The additive BT model is met exactly: β log (1 − s)/(1 − s_ref) = LENGTH, so that
    1 − s = (1 − s_ref) e^(LENGTH/β), 13.6 tokens, beyond the 8 of the longest answer. R-DPO adds
    LENGTH · (n_c − n_r) to the log-odds (Park et al., equation 9; here `data.margin_key` with the
    other sign, since a margin is taken off), and what is left is quality: 6 tokens. With the wrong
    sign answers never end: the policy has to make up for twice the preference for length.
    """
    good, length = trained(LossConfig(beta=BETA))
    stop = 1 - (1 - STOP) * np.exp(LENGTH / BETA)
    assert length == pytest.approx(1 / stop, rel=1e-6)
    assert length > TOKENS.max()
    # Quality is learnt beside it, as if length did not matter: QUALITY is a difference of log-odds.
    assert good == pytest.approx(expit(QUALITY / BETA), rel=1e-6)
    margins = -LENGTH * (TOKENS[:, 0] - TOKENS[:, 1])
    cured = trained(LossConfig(beta=BETA), margins=margins)
    assert cured == pytest.approx((expit(QUALITY / BETA), 1 / STOP), rel=1e-6)


def test_ld_alpha_brings_the_length_back() -> None:
    """The less the longer answer's tail counts, the less of the preference is put into length.

    Liu et al. 2024, "Length Desensitization in DPO" (arXiv 2409.06411), equation 9. With α = 0 a
    longer answer differs by one token alone, which goes on where the other stops: logit(1 − s) has
    to carry logit(0.7)/β. Known by hand: 8.64 tokens. If the discount fell on the head of an answer
    instead of its tail, or on one side only, lengths would not fall with α.
    """
    lengths = [trained(LossConfig(beta=BETA), ld_alpha)[1] for ld_alpha in (1.0, 0.5, 0.0)]
    assert lengths[0] > lengths[1] > lengths[2] > 1 / STOP
    by_hand = 1 + np.exp(logit(1 - STOP) + logit(0.7) / BETA)
    assert lengths[2] == pytest.approx(by_hand, rel=1e-6)


def test_normalising_by_length_shortens_it() -> None:
    """`sigmoid_norm` compares log-ratios a token, where twice the tokens are not twice the margin.

    Lambert et al. 2024 (Tülu 3, arXiv 2411.15124), equation 6, with its β larger by the mean number
    of tokens, so that both losses ask for as much. It is no cure: answers become 9.6 tokens long
    instead of 13.6, where the margin of R-DPO leaves them at 6. Without the division by length it
    would be DPO with six times the β, and quality would be learnt a sixth as well.
    """
    dpo_good, dpo = trained(LossConfig(beta=BETA))
    good, normalised = trained(LossConfig(type="sigmoid_norm", beta=BETA / STOP))
    assert 1 / STOP < normalised < 0.75 * dpo
    assert good == pytest.approx(dpo_good, abs=0.05)
