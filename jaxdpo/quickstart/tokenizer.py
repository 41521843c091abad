"""A tokenizer for a small model: byte-level BPE with ChatML-like control tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

MAX_LENGTH = 512

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Settings that transformers needs beside tokenizer.json and chat_template.jinja.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "model_max_length": MAX_LENGTH,
}


def write_tokenizer(
    folder: Path, texts: Sequence[str], syllables: Sequence[str], vocab_size: int
) -> None:
    """Trains the tokenizer and writes its files and the chat template.

    Args:
      folder: Where to.
      texts: A task's text, free of names.
      syllables: The parts that names are made of.
      vocab_size: Of the tokenizer, exactly.
    """
    train_tokenizer(texts, syllables, vocab_size).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def train_tokenizer(texts: Sequence[str], syllables: Sequence[str], vocab_size: int) -> Tokenizer:
    """Trains the BPE so that any text can be encoded and every syllable is one piece.

    Args:
      texts: A task's text, free of names.
      syllables: The parts that names are made of.
      vocab_size: Of the tokenizer, exactly.
    """
    # A model must copy names into its answers, and a word that it has never seen must look to it as
    # the known ones do. So the syllables are merged before anything else is: they come first in the
    # trainer's text, oftener than anything in the rest.
    # The roles of every message: a hundred times, so that each is one piece.
    texts = [*["system", "user", "assistant", "tool"] * 100, *texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*list(syllables) * 10 * len(texts), *texts], trainer)
    # The text may have fewer pieces in it; the rest is reserved, so that the size is as asked.
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    return tokenizer
