"""A model, lengths and settings of a run that is planned and never started."""

import numpy as np

from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig

MODEL = ModelConfig(
    vocab_size=1024,
    hidden_size=64,
    num_layers=4,
    attention=AttentionConfig(num_heads=8, num_kv_heads=8, head_dim=8),
    mlp=MLPConfig(intermediate_size=192),
)
LENGTHS = np.full((16, 3), [24, 20, 20], np.int32)
SETTINGS = [
    "model.path=x", "data.path=x", "training.folder=x", "batch.size=16", "batch.row_length=128",
    "batch.rows_per_device=1", "model.attention=dense",
]  # fmt: skip
