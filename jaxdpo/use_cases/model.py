"""The small model of a use case, with random weights, and a tokenizer for its text."""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxdpo.model.config import AttentionConfig, MLPConfig, ModelConfig
from jaxdpo.quickstart import new_model
from jaxdpo.use_cases.names import ENDS, STARTS, SYLLABLES

# The first of the two layers sees three tokens alone. So each token soon knows those before it,
# which is the half of copying ("what came after this word before?") that is slow to learn: copying
# is learnt in 200 steps of 32 examples instead of many more.
WINDOWS = (3, None)

# All bytes, all syllables, and every word of each task.
VOCAB_SIZE = 576

_NAME = re.compile(rf"\b({'|'.join(STARTS)})({'|'.join(ENDS)})\b", re.IGNORECASE)


def write_new_model(folder: Path, texts: Sequence[str], seed: int) -> None:
    """Trains a tokenizer on texts and writes a model with random weights beside it.

    Args:
      folder: Where to.
      texts: A task's prompts and answers.
      seed: Of the weights.
    """
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
    # Without the names: a name that is one piece cannot be copied syllable by syllable, and one of
    # TEST, which the tokenizer must not have seen, would be in more pieces than those of TRAIN.
    nameless = [_NAME.sub("", text) for text in texts]
    # Windows that differ by layer are Qwen3's to say, in Hugging Face's form.
    hf_config = {"model_type": "qwen3", "use_sliding_window": True}
    new_model.write_new_model(folder, config, hf_config, nameless, SYLLABLES, seed)
