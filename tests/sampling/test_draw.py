"""Draws against the distribution they come from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jaxdpo.sampling.draw import next_tokens, row_draws
from tests.sampling.frequencies import assert_frequencies

DRAWS = 20_000
draw = jax.jit(next_tokens)


def counts_of(logits_V, temperature, top_k, top_p):
    keys = jax.random.split(jax.random.key(5), DRAWS)
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (DRAWS, len(logits_V)))
    draws = row_draws([temperature] * DRAWS, [top_k] * DRAWS, [top_p] * DRAWS)
    tokens = draw(logits_BV, keys, draws)
    return np.bincount(np.asarray(tokens), minlength=len(logits_V))


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.55, 0.45, 1e-6])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_from_the_nucleus(temperature, top_p):
    values = np.log(np.array([0.1, 0.02, 0.5, 0.08, 0.3]))
    probabilities = np.exp(values / temperature)
    probabilities /= probabilities.sum()
    nucleus, mass = [], 0.0
    for token in np.argsort(-probabilities):
        nucleus.append(token)
        mass += probabilities[token]
        if mass >= top_p - 1e-9:
            break
    expected = np.zeros(5)
    expected[nucleus] = probabilities[nucleus] / mass
    assert_frequencies(counts_of(values, temperature, None, top_p), expected)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, 1.0), (0.7, 12, 1.0), (1.3, 12, 0.8), (1.0, 60, 0.95), (1.0, 1, 1.0)],
)
def test_frequencies_are_those_of_transformers(temperature, top_k, top_p):
    """Temperature, then top-k, then top-p of what is left."""
    values = 1.5 * np.random.default_rng(0).standard_normal(60)
    scores = torch.tensor(values, dtype=torch.float64)[None]
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    # None of the three looks at the tokens so far.
    unread: Any = None
    for warper in warpers:
        scores = warper(unread, scores)
    expected = scores.softmax(-1)[0].numpy()
    assert_frequencies(counts_of(values, temperature, top_k, top_p), expected)


def test_temperature_0_takes_the_likeliest_token():
    logits_BV = jnp.array([[0.0, 3.0, 2.9], [1.0, 0.0, -1.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    assert next_tokens(logits_BV, keys, row_draws([0.0] * 2, [None] * 2, [1.0] * 2)).tolist() == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    "temperature", [1e-40, 1e-38, 1e-12, 1e-8, 1e-7, 1e-4, 0.1, 0.5, 3.0, 100.0]
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_every_temperature_draws_from_its_own_softmax(temperature, scale):
    """Against the softmax of fp32 logits in float64, in which no quotient here overflows."""
    logits_V = (scale * np.array([0.3, -0.5, 1.25, 0.0, 1.0])).astype(np.float32)
    below_V = logits_V.astype(np.float64) - logits_V.max()
    weights_V = np.exp(below_V / temperature)
    expected = weights_V / weights_V.sum()
    # A token that a right sampler draws less often than once in 10⁹ must not occur.
    expected[expected < 1e-9 / DRAWS] = 0.0
    assert_frequencies(counts_of(logits_V, temperature, None, 1.0), expected)
    assert_frequencies(counts_of(logits_V, temperature, 5, 1.0), expected)


def test_the_lowest_temperatures_draw_evenly_among_the_likeliest():
    counts = counts_of([1.0, 7.0, -2.0, 7.0], 1e-12, None, 0.99)
    assert_frequencies(counts, np.array([0.0, 0.5, 0.0, 0.5]))
