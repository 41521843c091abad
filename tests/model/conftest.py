"""A tiny decoder with every part awake, and rows of packed pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import Params, abstract_params
from tests.tiny import Pairs

LENGTHS = [(4, 3, 5), (1, 1, 1), (6, 2, 4), (10, 12, 10)]
ROWS = [[0, 1, 2], [3]]


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """Three layers, grouped heads of an uneven size, biases, a window on the middle layer."""
    return ModelConfig(
        vocab_size=40,
        hidden_size=24,
        num_layers=3,
        attention=AttentionConfig(
            num_heads=6, num_kv_heads=2, head_dim=6, qkv_bias=True, windows=(None, 4, None)
        ),
        mlp=MLPConfig(intermediate_size=32, bias=True),
    )


@pytest.fixture(scope="session")
def params(config: ModelConfig) -> Params:
    """Random parameters large enough that norms, biases and attention all show."""
    rng = np.random.default_rng(1)

    def values(path, leaf):
        noise = 0.3 * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(noise + 1 if path[-1].key == "scale" else noise)

    return jax.tree.map_with_path(values, abstract_params(config, jnp.float32))


@pytest.fixture(scope="session")
def pairs() -> list[TokenizedPair]:
    """Pairs of random ids, one of a single token each, one longer than the window."""
    rng = np.random.default_rng(0)
    return [
        TokenizedPair(*(rng.integers(1, 40, length).astype(np.int32) for length in lengths))
        for lengths in LENGTHS
    ]


@pytest.fixture(scope="session")
def packed(pairs: list[TokenizedPair]) -> PackedBatch:
    """Two rows: three pairs and padding; one pair that fills its row."""
    shape = BatchShape(
        rows=2, row_length=32, pairs=3, scores=24, tiles=1, sequences=3, sequence_width=24
    )
    return pack_batch(Pairs(pairs), ROWS, shape)
