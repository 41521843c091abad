"""A small tokenizer for a use case's text: byte-level BPE with ChatML-like control tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxdpo.use_cases.language import SYLLABLES

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


def write_tokenizer(folder: Path, texts: Sequence[str]) -> int:
    """Trains a tokenizer on a task's text and writes its files; returns the vocabulary's size.

    A name's word is always two pieces: names are what the model must copy into its answers, and a
    name that it has never seen must look to it as the known ones do. So the syllables are merged
    before anything else: they come first in the trainer's text, oftener than anything in the rest.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["system", "user", "assistant", "tool"] * 100
    tokenizer.train_from_iterator([*SYLLABLES * 10 * len(texts), *roles, *texts], trainer)
    # Attention and head are fastest where the vocabulary is a multiple of 64.
    missing = -tokenizer.get_vocab_size() % 64
    tokenizer.add_special_tokens([f"<|reserved_{number}|>" for number in range(missing)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer.get_vocab_size()
