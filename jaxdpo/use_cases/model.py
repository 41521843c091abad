"""A small model with random weights and a tokenizer for a use case's text."""

import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.hub.write import save_pretrained
from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.model.decoder import init_params
from jaxdpo.quickstart.tokenizer import CONTROL_TOKENS, END, MAX_LENGTH, PAD, write_tokenizer
from jaxdpo.use_cases.names import ENDS, STARTS, SYLLABLES

# Of both layers the first sees three tokens alone. So each token soon knows those before it, which
# is what copying is made of, and it is learnt in 200 steps of 32 examples instead of many more.
WINDOWS = (3, None)

# All bytes, all syllables, and every word of each task.
VOCAB_SIZE = 576

# What config.json says beside the architecture.
HF_CONFIG = {
    "model_type": "qwen3",
    "max_position_embeddings": MAX_LENGTH,
    "use_sliding_window": True,
    "bos_token_id": None,
    "eos_token_id": CONTROL_TOKENS.index(END),
    "pad_token_id": CONTROL_TOKENS.index(PAD),
}

_NAME = re.compile(rf"\b({'|'.join(STARTS)})({'|'.join(ENDS)})\b", re.IGNORECASE)


def write_new_model(folder: Path, texts: Sequence[str], seed: int) -> None:
    """Trains a tokenizer on the texts and writes a model with random weights beside it."""
    tokenizer_folder = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer_folder.mkdir(parents=True, exist_ok=True)
    nameless = [_NAME.sub("", text) for text in texts]
    write_tokenizer(tokenizer_folder, nameless, SYLLABLES, VOCAB_SIZE)
    config = ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        num_layers=len(WINDOWS),
        attention=AttentionConfig(
            num_heads=4, num_kv_heads=2, head_dim=32, qk_norm="head", windows=WINDOWS
        ),
        mlp=MLPConfig(intermediate_size=256),
        tied_head=True,
    )
    params = init_params(config, jax.random.key(seed), jnp.float32)
    tokenizer = load_chat(str(tokenizer_folder)).tokenizer
    save_pretrained(folder, config, params, tokenizer, HF_CONFIG)
