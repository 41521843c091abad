"""A model folder to begin with: a tokenizer trained on a task's text, and random weights."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.hub.write import save_pretrained
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import init_params
from jaxdpo.quickstart.tokenizer import CONTROL_TOKENS, END, MAX_LENGTH, PAD, write_tokenizer

# Entries of config.json beside the architecture, the same for every small model.
TOKENS: Mapping[str, Any] = {
    "max_position_embeddings": MAX_LENGTH,
    "bos_token_id": None,
    "eos_token_id": CONTROL_TOKENS.index(END),
    "pad_token_id": CONTROL_TOKENS.index(PAD),
}


def write_new_model(
    folder: Path,
    config: ModelConfig,
    hf_config: Mapping[str, Any],
    texts: Sequence[str],
    syllables: Sequence[str],
    seed: int,
) -> None:
    """Trains a tokenizer and writes a Hugging Face folder with random weights, in float32.

    Args:
      folder: Where to.
      config: Architecture; its vocabulary is the tokenizer's.
      hf_config: Entries of config.json beside the architecture, `TOKENS` excepted.
      texts: A task's text, free of names.
      syllables: The parts that names are made of.
      seed: Of the weights.
    """
    # Apart from the folder, which appears only when it is complete.
    with tempfile.TemporaryDirectory() as tokenizer_folder:
        write_tokenizer(Path(tokenizer_folder), texts, syllables, config.vocab_size)
        tokenizer = load_chat(tokenizer_folder).tokenizer
    params = init_params(config, jax.random.key(seed), jnp.float32)
    save_pretrained(folder, config, params, tokenizer, {**hf_config, **TOKENS})
