"""NEFTune's noise: its bounds by the paper, and where it goes and does not go."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdpo.config import load_config
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.errors import UserError
from jaxdpo.model.compute import Compute
from jaxdpo.model.decoder import init_params
from jaxdpo.model.neftune import embedding_noise
from tests.tiny import MODEL, Pairs, hidden_states

# 4 + 2 + 0 and 1 + 8 + 0 tokens, all of them different, in a row of 20.
NONE = np.zeros(0, np.int32)
PAIRS = Pairs(
    [
        TokenizedPair(np.arange(4, dtype=np.int32), np.array([4, 5], np.int32), NONE),
        TokenizedPair(np.array([6], np.int32), np.arange(7, 15, dtype=np.int32), NONE),
    ]
)
SHAPE = BatchShape(rows=1, row_length=20, pairs=2, scores=12, tiles=1)
COMPUTE = Compute(jnp.dtype("float32"), "dense", "none", neftune_alpha=5.0)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, pack_batch(PAIRS, [[0, 1]], SHAPE))


def test_each_sequence_has_noise_by_its_own_length(batch):
    channels = 4000
    noise_TD = np.asarray(embedding_noise(batch, 5.0, channels, KEY))[0]
    for pair, length in ((1, 6), (2, 9)):
        of_pair = noise_TD[np.asarray(batch.pair_ids)[0] == pair].ravel()
        assert of_pair.size == length * channels
        bound = 5.0 / np.sqrt(length * channels)
        uniform = stats.uniform(-bound, 2 * bound)
        # Uniform, by Kolmogorov and Smirnov; with another length's bound it is not.
        assert stats.kstest(of_pair, uniform.cdf).pvalue > 1e-3
    assert not noise_TD[np.asarray(batch.pair_ids)[0] == 0].any()


def test_it_is_what_other_embeddings_would_be_and_only_in_training(batch):
    params = init_params(MODEL, jax.random.key(0), jnp.float32)
    noisy = hidden_states(MODEL, params, None, batch, COMPUTE, dropout_key=KEY)
    plain = hidden_states(MODEL, params, None, batch, COMPUTE)
    noise_BTD = embedding_noise(
        batch, 5.0, MODEL.hidden_size, jax.random.fold_in(KEY, MODEL.num_layers)
    )
    is_token_T = np.asarray(batch.pair_ids)[0] > 0
    # Every token stands once, so a table of embeddings can hold the noise of its place.
    table = params["embed"]["weight"].at[batch.tokens[0, is_token_T]].add(noise_BTD[0, is_token_T])
    moved = {**params, "embed": {"weight": table}}
    expected = hidden_states(MODEL, moved, None, batch, replace(COMPUTE, neftune_alpha=0.0))
    tokens = (0, is_token_T)
    np.testing.assert_allclose(noisy[tokens], expected[tokens], rtol=1e-5, atol=1e-5)
    without = hidden_states(MODEL, params, None, batch, replace(COMPUTE, neftune_alpha=0.0))
    np.testing.assert_array_equal(plain, without)
    assert np.abs(noisy[tokens] - plain[tokens]).max() > 0.01


def test_it_is_for_supervised_fine_tuning():
    required = ["model.path=m", "data.path=d.jsonl", "training.folder=r"]
    given = [*required, "training.neftune_alpha=5"]
    assert load_config(None, [*given, "loss.type=sft"]).training.neftune_alpha == 5
    with pytest.raises(UserError, match=r"neftune_alpha is noise for supervised fine-tuning"):
        load_config(None, given)
