"""Metrics by hand."""

import jax.numpy as jnp
import numpy as np

from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores
from jaxdpo.training.metrics import completion_sums, means, reward_sums


def test_metrics_by_hand():
    logps = jnp.array([[-5.0, -9.0], [-7.0, -4.0], [-3.0, -3.0], [99.0, 99.0]])
    tokens = jnp.array([[5.0, 3.0], [2.0, 8.0], [1.0, 1.0], [9.0, 9.0]])
    reference = jnp.array([[-6.0, -7.0], [-5.0, -5.0], [-3.0, -3.0], [0.0, 0.0]])
    is_pair = jnp.array([True, True, True, False])
    policy = CompletionScores(logps, logps, tokens, entropy=tokens * 0.5, correct=tokens - 1)
    columns = PairColumns(reference)
    sums = completion_sums(policy, columns, is_pair)
    sums |= reward_sums(0.5 * (logps - reference), columns, is_pair)
    actual = means({name: float(value) for name, value in sums.items()})
    expected = {
        "rewards/chosen": (0.5 - 1.0 + 0) / 3,
        "rewards/rejected": (-1.0 + 0.5 + 0) / 3,
        "rewards/margins": (1.5 - 1.5 + 0) / 3,
        "rewards/accuracies": (1 + 0 + 0.5) / 3,
        "logps/chosen": (-5 - 7 - 3) / 3,
        "logps/rejected": (-9 - 4 - 3) / 3,
        "logps/chosen_per_token": -15 / 8,
        "logps/rejected_per_token": -16 / 12,
        "lengths/chosen": 8 / 3,
        "lengths/rejected": 12 / 3,
        # (log ratio)² / 2n of each completion, averaged over the pair's two.
        "kl": ((1 / 10 + 4 / 6) / 2 + (4 / 4 + 1 / 16) / 2) / 3,
        "entropy": 0.5,
        "token_accuracy": (4 + 1 + 0) / 8,
        "num_pairs": 3,
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)


def test_swapping_a_pair_flips_its_margin():
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)), jnp.float32)
    straight = reward_sums(rewards, PairColumns(), jnp.ones(8, bool))
    swapped = reward_sums(rewards[:, ::-1], PairColumns(), jnp.ones(8, bool))
    np.testing.assert_allclose(straight["rewards/margins"], -swapped["rewards/margins"], rtol=1e-6)
    np.testing.assert_allclose(
        straight["rewards/accuracies"], 8 - swapped["rewards/accuracies"], rtol=1e-6
    )
