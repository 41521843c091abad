"""A tiny model and random tokenised pairs, for tests of what is above the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxdpo.data.packing.batch import PackedBatch
from jaxdpo.data.pairs import TokenizedPair
from jaxdpo.devices.sharding import AXES, shardings_for
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import Params, abstract_params, forward, init_params
from jaxdpo.model.lora import LoraParams

VOCABULARY = 97
MODEL = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_layers=2,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8),
    mlp=MLPConfig(intermediate_size=48),
)


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs in memory."""

    pairs: Sequence[TokenizedPair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenizedPair:
        return self.pairs[index]

    def source(self, index: int) -> str:
        return f"pairs.jsonl:{index + 1}"

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([[len(ids) for ids in pair[:3]] for pair in self.pairs], np.int32)


def random_pairs(count: int = 24, longest: int = 20, seed: int = 0) -> Pairs:
    """Pairs of uniformly random lengths and tokens."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, VOCABULARY, length).astype(np.int32)

    lengths = rng.integers(2, longest, (count, 3))
    return Pairs([TokenizedPair(*(ids(length) for length in row)) for row in lengths])


def mesh_of(data: int, fsdp: int, tensor: int, expert: int = 1) -> Mesh:
    """A mesh of the first devices; where there are fewer, as on one GPU, the test is skipped."""
    shape = (data, fsdp, tensor, expert)
    if jax.device_count() < math.prod(shape):
        pytest.skip(f"needs {math.prod(shape)} devices")
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def random_params(mesh: Mesh, seed: int = 0, model: ModelConfig = MODEL) -> Params:
    """Random weights, five times the usual size so that gradients are not tiny, born sharded."""
    shardings = shardings_for(abstract_params(model, jnp.float32), mesh)

    def initial() -> Params:
        params = init_params(model, jax.random.key(seed), jnp.float32)
        return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)

    return jax.jit(initial, out_shardings=shardings)()


def hidden_states(
    config: ModelConfig,
    params: Params,
    lora: LoraParams | None,
    batch: PackedBatch,
    compute: Compute,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm, `[B, T, D]`: the forward pass without router loss."""
    return forward(config, params, lora, batch, compute, dropout_key=dropout_key).hidden_BTD


def compilations(program: Any) -> int:
    """Counts the programs that a jitted function was compiled to."""
    return program._cache_size()


def temporary_bytes(compiled: Any) -> int:
    """Bytes of temporaries that a compiled program needs."""
    return compiled.memory_analysis().temp_size_in_bytes
