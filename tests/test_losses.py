"""The loss against the paper's formula in float64, and its metrics by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.losses import sigmoid_loss
from jaxdpo.metrics import means, preference_sums


def test_sigmoid_loss_is_the_papers():
    rng = np.random.default_rng(0)
    logps = rng.normal(-40, 15, (4, 64))
    for beta in (0.01, 0.1, 1.0):
        chosen, rejected, ref_chosen, ref_rejected = logps
        logits = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        expected = np.log1p(np.exp(-logits))
        actual = sigmoid_loss(*logps.astype(np.float32), beta=beta)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def test_log_two_at_the_reference():
    logps = jnp.array([-12.5, -300.0])
    np.testing.assert_allclose(
        sigmoid_loss(logps, 2 * logps, logps, 2 * logps, beta=0.1), np.log(2), rtol=1e-6
    )


def test_gradient_pushes_the_pair_apart_in_equal_measure():
    gradients = jax.grad(
        lambda c, r: sigmoid_loss(c, r, 0.0, 0.0, beta=0.5),
        (0, 1),  # pyright: ignore
    )(1.0, 3.0)
    # -β σ(-β(c - r)), with c - r = -2.
    expected = 0.5 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(gradients, (-expected, expected), rtol=1e-6)


def test_extreme_log_ratios_stay_finite():
    far = jnp.array([1e4, -1e4])
    zero = jnp.zeros(2)
    loss = sigmoid_loss(far, zero, zero, zero, beta=1.0)
    np.testing.assert_allclose(loss, [0.0, 1e4])
    gradient = jax.vmap(jax.grad(lambda c: sigmoid_loss(c, 0.0, 0.0, 0.0, beta=1.0)))(far)
    np.testing.assert_allclose(gradient, [0.0, -1.0])


def test_metrics_by_hand():
    policy = jnp.array([[-5.0, -9.0], [-7.0, -4.0], [-3.0, -3.0], [99.0, 99.0]])
    reference = jnp.array([[-6.0, -7.0], [-5.0, -5.0], [-3.0, -3.0], [0.0, 0.0]])
    is_pair = jnp.array([True, True, True, False])
    sums = preference_sums(policy, reference, is_pair, beta=0.5)
    actual = means({name: float(value) for name, value in sums.items()})
    expected = {
        "rewards/chosen": (0.5 - 1.0 + 0) / 3,
        "rewards/rejected": (-1.0 + 0.5 + 0) / 3,
        "rewards/margins": (1.5 - 1.5 + 0) / 3,
        "rewards/accuracies": (1 + 0 + 0.5) / 3,
        "logps/chosen": (-5 - 7 - 3) / 3,
        "logps/rejected": (-9 - 4 - 3) / 3,
        "num_pairs": 3,
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-6, err_msg=name)


def test_swapping_a_pair_flips_its_margin():
    rng = np.random.default_rng(1)
    policy, reference = (jnp.asarray(rng.normal(size=(8, 2)), jnp.float32) for _ in range(2))
    everything = jnp.ones(8, bool)
    straight = preference_sums(policy, reference, everything, 0.3)
    swapped = preference_sums(policy[:, ::-1], reference[:, ::-1], everything, 0.3)
    np.testing.assert_allclose(straight["rewards/margins"], -swapped["rewards/margins"], rtol=1e-6)
    np.testing.assert_allclose(
        straight["rewards/accuracies"], 8 - swapped["rewards/accuracies"], rtol=1e-6
    )
